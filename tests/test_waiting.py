"""Which requests the next call of a store takes along."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_repair import Document, Prepared, Write
from trio_repair._requests import Operation, Request
from trio_repair._stepping import Gather
from trio_repair._suspects import Suspects
from trio_repair._waiting import WaitingRequests
from trio_repair.testing import make_document


def _added(waiting: WaitingRequests, operation: Operation, *doc_ids: str, now: float = 0.0) -> list[Request]:
    requests = [Request(operation, doc_id, doc_id, Gather(1)) for doc_id in doc_ids]
    for request in requests:
        waiting.add(request, now)
    return requests


def _ids(requests: list[Request]) -> list[str]:
    return [request.doc_id for request in requests]


def test_in_order_and_no_document_twice():
    """A second request for one document waits for the next batch, and keeps its place there."""
    waiting = WaitingRequests(Suspects())
    _added(waiting, Operation.OBSERVE, "a", "b", "a", "c")
    _added(waiting, Operation.PREPARE, "p")
    assert (4, 1) == (waiting.for_store, len(waiting.prepares))
    assert ["a", "b"] == _ids(waiting.take(Operation.OBSERVE, 2, without_suspects=False))
    batch = waiting.take(Operation.OBSERVE, 64, without_suspects=False)
    assert (["a", "c"], 0, False) == (_ids(batch), waiting.for_store, batch[0].queued)
    assert ["p"] == _ids(waiting.take(Operation.PREPARE, 64, without_suspects=False))
    assert (0, 0) == (waiting.for_store, len(waiting.prepares))


def test_a_second_request_for_a_document_holds_nobody_up():
    """What was asked for after it travels with the first one."""
    waiting = WaitingRequests(Suspects())
    _added(waiting, Operation.OBSERVE, "a", "a", "b", "c")
    assert ["a", "b", "c"] == _ids(waiting.take(Operation.OBSERVE, 64, without_suspects=False))
    assert ["a"] == _ids(waiting.take(Operation.OBSERVE, 64, without_suspects=False))


def test_the_operation_asked_for_first_goes_first():
    """Across operations the order of asking decides, without those that only prepare and without suspects."""
    suspects = Suspects()
    waiting = WaitingRequests(suspects)
    assert waiting.oldest(without_suspects=False) is None
    _added(waiting, Operation.PREPARE, "p")
    assert waiting.oldest(without_suspects=False) is None
    _added(waiting, Operation.WRITE, "hangs")
    _added(waiting, Operation.OBSERVE, "hangs", "fine")
    _added(waiting, Operation.READ, "also fine")
    suspects.hung([(Operation.OBSERVE, "hangs"), (Operation.WRITE, "hangs")])
    assert Operation.WRITE is waiting.oldest(without_suspects=False)
    assert Operation.OBSERVE is waiting.oldest(without_suspects=True)
    assert ["fine"] == _ids(waiting.take(Operation.OBSERVE, 64, without_suspects=True))
    assert Operation.READ is waiting.oldest(without_suspects=True)
    assert ["hangs"] == _ids(waiting.take(Operation.OBSERVE, 64, without_suspects=False))
    assert 2 == waiting.for_store


def test_company_is_kept_small_where_it_must_be():
    """One that may travel with one other takes one other; one that must travel alone waits for its own call."""
    suspects = Suspects()
    waiting = WaitingRequests(suspects)
    suspects.failed([(Operation.OBSERVE, "pair")], 2)
    suspects.hung([(Operation.OBSERVE, "alone")])
    _added(waiting, Operation.OBSERVE, "a", "pair", "alone", "b", "c")
    assert ["a", "pair"] == _ids(waiting.take(Operation.OBSERVE, 64, without_suspects=False))
    assert ["alone"] == _ids(waiting.take(Operation.OBSERVE, 64, without_suspects=False))
    assert ["b", "c"] == _ids(waiting.take(Operation.OBSERVE, 64, without_suspects=False))


def test_one_that_must_travel_alone_holds_nobody_up():
    """It waits for a call of its own; the others go without it, and keep their order."""
    suspects = Suspects()
    waiting = WaitingRequests(suspects)
    suspects.hung([(Operation.OBSERVE, "alone")])
    _added(waiting, Operation.OBSERVE, "a", "alone", "b")
    assert ["a", "b"] == _ids(waiting.take(Operation.OBSERVE, 64, without_suspects=False))
    assert ["alone"] == _ids(waiting.take(Operation.OBSERVE, 64, without_suspects=False))


def test_what_comes_back_is_first_again():
    """Requests of a call that broke go out again before all others, in the order that they had."""
    waiting = WaitingRequests(Suspects())
    first = _added(waiting, Operation.WRITE, "a", "b")
    taken = waiting.take(Operation.WRITE, 64, without_suspects=False)
    _added(waiting, Operation.WRITE, "c")
    waiting.put_back(Operation.WRITE, reversed(taken))
    assert (3, True) == (waiting.for_store, first[0].queued)
    assert ["a", "b", "c"] == _ids(waiting.take(Operation.WRITE, 64, without_suspects=False))


def test_withdrawn_requests_are_dropped_on_the_way():
    """They are counted until somebody meets them, and never sent or refused."""
    waiting = WaitingRequests(Suspects())
    gone, stays = _added(waiting, Operation.OBSERVE, "a", "b")
    gone.withdraw()
    assert (2, True) == (waiting.for_store, gone.ended)
    assert [stays] == waiting.take(Operation.OBSERVE, 64, without_suspects=False)
    assert (0, False) == (waiting.for_store, gone.queued)
    gone, stays = _added(waiting, Operation.OBSERVE, "a", "b", now=1.0)
    gone.withdraw()
    assert [stays] == list(waiting.take_due(2.0, 1.0))
    assert 0 == waiting.for_store


def test_who_has_waited_long_enough():
    """Exactly those that wait for the store, of all operations, and whose patience is over at this very moment."""
    waiting = WaitingRequests(Suspects())
    assert waiting.waiting_since() is None
    _added(waiting, Operation.PREPARE, "p", now=0.0)
    assert waiting.waiting_since() is None
    _added(waiting, Operation.WRITE, "w", now=0.3)
    _added(waiting, Operation.OBSERVE, "o", now=0.1)
    late = _added(waiting, Operation.OBSERVE, "late", now=0.4)
    assert 0.1 == waiting.waiting_since()
    assert [] == list(waiting.take_due(0.1 + 0.2 - 0.001, 0.2))
    (due,) = waiting.take_due(0.1 + 0.2, 0.2)
    assert ("o", False) == (due.doc_id, due.queued)
    assert ["w"] == _ids(list(waiting.take_due(0.3 + 0.2, 0.2)))
    assert late == [request for request in waiting.clear() if request.operation is Operation.OBSERVE]
    assert (0, 0, False) == (waiting.for_store, len(waiting.prepares), late[0].queued)


def test_preparations_are_taken_out_by_themselves():
    """Those that were withdrawn are dropped; what waits for the store stays."""
    waiting = WaitingRequests(Suspects())
    gone, stays = _added(waiting, Operation.PREPARE, "a", "b")
    _added(waiting, Operation.OBSERVE, "c")
    gone.withdraw()
    assert [stays] == list(waiting.clear_prepares())
    assert (0, 1, False, False) == (len(waiting.prepares), waiting.for_store, gone.queued, stays.queued)


def _carrying(operation: Operation, sizes: dict[str, int]) -> list[Request]:
    requests = []
    for doc_id, size in sizes.items():
        document = make_document(doc_id, "x" * size)
        arguments = (
            document if operation is Operation.PREPARE else Write(prepared=Prepared(document=document), token="")
        )
        requests.append(Request(operation, doc_id, arguments, Gather(1)))
    return requests


@pytest.mark.parametrize("operation", [Operation.PREPARE, Operation.WRITE])
def test_no_more_text_than_a_call_carries(operation: Operation):
    """By size as well as by count; one that is larger than that goes alone; order and the counts are kept."""
    waiting = WaitingRequests(Suspects())
    for request in _carrying(operation, {"a": 4, "b": 6, "c": 1, "large": 30, "d": 10, "e": 1}):
        waiting.add(request, 0.0)
    batches = []
    while batch := waiting.take(operation, 64, without_suspects=False, max_bytes=10):
        batches.append(_ids(batch))
    assert [["a", "b"], ["c"], ["large"], ["d"], ["e"]] == batches
    assert (0, 0) == (waiting.for_store, len(waiting.prepares))


def test_a_tombstone_carries_nothing():
    """However many there are."""
    waiting = WaitingRequests(Suspects())
    for doc_id in "abc":
        grave = Prepared(document=Document.tombstone(doc_id, number=1))
        waiting.add(Request(Operation.WRITE, doc_id, Write(prepared=grave, token=""), Gather(1)), 0.0)
    assert ["a", "b", "c"] == _ids(waiting.take(Operation.WRITE, 64, without_suspects=False, max_bytes=1))


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdefgh"), st.integers(0, 30), st.sampled_from(["", "", "", "withdrawn", "company"])
        ),
        max_size=12,
    ),
    st.integers(1, 9),
    st.sampled_from([None, 20, 60]),
)
def test_a_batch_that_stands_as_it_is_is_the_one_that_is_picked_out(requests, limit, max_bytes):
    """What is taken in one go is what is taken one by one, call after call, and what is left is the same."""

    def batches(*, picked: bool) -> list[tuple[list[str], list[bool], int]]:
        waiting = WaitingRequests(Suspects())
        if picked:
            waiting._first = lambda *_arguments: None
        for doc_id, size, kind in requests:
            prepared = Prepared(document=make_document(doc_id, "x" * size))
            request = Request(Operation.WRITE, doc_id, Write(prepared=prepared, token="t"), Gather(1))
            waiting.add(request, 0.0)
            request.withdrawn = kind == "withdrawn"
            request.company = 2 if kind == "company" else None
        taken = []
        while waiting.for_store:
            batch = waiting.take(Operation.WRITE, limit, without_suspects=False, max_bytes=max_bytes)
            taken.append((_ids(batch), [request.queued for request in batch], waiting.for_store))
        return taken

    assert batches(picked=False) == batches(picked=True)
