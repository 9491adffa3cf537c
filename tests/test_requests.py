"""One document's part in a bulk call: how it waits, and what its answer is worth."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from trio_repair import (
    Observation,
    Prepared,
    Presence,
    Removal,
    StoredDocument,
    StoreRejected,
    StoreUnavailable,
    WriteAnswer,
    WriteStatus,
)
from trio_repair._requests import Operation, Request, contract_problem, is_whole
from trio_repair._stepping import Gather
from trio_repair.testing import make_document

SEEN = Observation(presence=Presence.ABSENT, token="t")
PREPARED = Prepared(document=make_document("d", "text", number=1))
FOREIGN = Prepared(document=make_document("e", "text", number=1))
STORED = StoredDocument(document=make_document("d", "text", number=1), token="t")
LANDED = WriteAnswer(status=WriteStatus.LANDED, observation=SEEN)
BAD = StoreRejected("text", "no", "d")


def _request(operation: Operation = Operation.OBSERVE, gather: Gather | None = None) -> Request:
    return Request(operation, "d", Removal(doc_id="d", token="t"), Gather(1) if gather is None else gather)


@pytest.mark.parametrize(
    ("operation", "answers", "problem"),
    [
        (Operation.OBSERVE, [SEEN], None),
        (Operation.READ, [STORED], None),
        (Operation.PREPARE, (PREPARED,), None),
        (Operation.WRITE, [LANDED], None),
        (Operation.REMOVE, [LANDED], None),
        (Operation.WRITE, [BAD], None),
        (Operation.OBSERVE, None, "observe answered with NoneType, not a sequence"),
        (Operation.OBSERVE, {"d": SEEN}, "observe answered with dict, not a sequence"),
        (Operation.READ, [], "read answered 0 of 1 documents"),
        (Operation.READ, [STORED, STORED], "read answered 2 of 1 documents"),
        (Operation.OBSERVE, [LANDED], "observe answered with WriteAnswer"),
        (Operation.WRITE, [SEEN], "write answered with Observation"),
        (Operation.READ, [SEEN], "read answered with Observation"),
        (Operation.WRITE, [ValueError("no")], "write answered with ValueError"),
        (Operation.PREPARE, [FOREIGN], "prepare answered for document 'e', asked for another"),
    ],
)
def test_the_shape_of_answers(operation: Operation, answers: Any, problem: str | None):
    """One answer for each document, of the right kind, about that document, or an error in its place."""
    assert problem == contract_problem(operation, [_request(operation)], answers)


@pytest.mark.parametrize(
    ("operation", "good", "bad"), [(Operation.OBSERVE, SEEN, LANDED), (Operation.WRITE, LANDED, STORED)]
)
def test_every_answer_is_looked_at(operation: Operation, good: Any, bad: Any):
    """Not only the first one: an answer of the wrong kind is found wherever it stands."""
    requests = [_request(operation) for _ in range(3)]
    problem = f"{operation.value} answered with {type(bad).__name__}"
    for place in range(3):
        answers = [good, good, good]
        assert contract_problem(operation, requests, answers) is None
        answers[place] = bad
        assert problem == contract_problem(operation, requests, answers)


def _spoiled(value: Any, **fields: Any) -> Any:
    """As an adapter might build it that nobody type-checks."""
    spoiled = copy.copy(value)
    for name, wrong in fields.items():
        object.__setattr__(spoiled, name, wrong)
    return spoiled


class Forgetful(StoreUnavailable):
    """An error whose constructor does not call its base class."""

    def __init__(self) -> None:
        pass


LIVE = Observation(presence=Presence.LIVE, token="t", version=PREPARED.document.version)


@pytest.mark.parametrize(
    ("operation", "answer", "fits"),
    [
        (Operation.OBSERVE, LIVE, True),
        (Operation.OBSERVE, _spoiled(LIVE, token=5), False),
        (Operation.OBSERVE, _spoiled(LIVE, presence="live"), False),
        (Operation.OBSERVE, _spoiled(LIVE, version=1), False),
        (Operation.READ, StoredDocument(document=None, token="t"), True),
        (Operation.READ, _spoiled(STORED, token=None), False),
        (Operation.READ, _spoiled(STORED, document="text"), False),
        (Operation.PREPARE, _spoiled(PREPARED, document=None), False),
        (Operation.WRITE, WriteAnswer(status=WriteStatus.UNKNOWN), True),
        (Operation.WRITE, WriteAnswer(status=WriteStatus.UNKNOWN, error=BAD), True),
        (Operation.WRITE, WriteAnswer(status=WriteStatus.REFUSED, observation=LIVE, error=BAD), True),
        (Operation.WRITE, _spoiled(LANDED, status="landed"), False),
        (Operation.WRITE, _spoiled(LANDED, observation=_spoiled(LIVE, token=5)), False),
        (Operation.WRITE, _spoiled(LANDED, error="no"), False),
        (Operation.WRITE, WriteAnswer(status=WriteStatus.REJECTED, error="no"), False),  # type: ignore[arg-type]  # wrong on purpose
        (Operation.WRITE, WriteAnswer(status=WriteStatus.REJECTED, error=Forgetful()), False),
    ],
)
def test_the_fields_of_an_answer(operation: Operation, answer: Any, fits: bool):
    """Wrong types inside an answer of the right type are found at the door, not where they are used."""
    requests = [_request(operation), _request(operation)]
    problem = f"{operation.value} answered with {type(answer).__name__} whose fields have wrong types"
    good = {Operation.OBSERVE: SEEN, Operation.READ: STORED, Operation.PREPARE: PREPARED, Operation.WRITE: LANDED}
    for answers in ([answer, good[operation]], [good[operation], answer], [BAD, answer]):
        assert (None if fits else problem) == contract_problem(operation, requests, answers)


def test_answers_that_raise_when_they_are_looked_at():
    """What an adapter's own class raises is named by its type, and nothing of it is said."""

    class Broken(list[Any]):
        def __len__(self) -> int:
            raise KeyError("MARKER")

    problem = "observe answered with what cannot be read (KeyError)"
    assert problem == contract_problem(Operation.OBSERVE, [_request()], Broken())


def test_an_error_without_its_fields():
    """A subclass that forgot to call its base class cannot be told; its type is named."""
    requests = [_request(), _request()]
    problem = "observe answered with a Forgetful that was not made by its constructor"
    assert problem == contract_problem(Operation.OBSERVE, requests, [BAD, Forgetful()])
    assert [True, False] == [is_whole(BAD), is_whole(Forgetful())]


class Uneven(Sequence[Observation]):
    """Of three answers by its length, and of others by its iterator."""

    def __init__(self, given: int) -> None:
        self.given = given

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Any:
        if index >= self.given:
            raise IndexError
        return SEEN


@pytest.mark.parametrize("given", [0, 2, 3, 4])
def test_a_sequence_has_as_many_answers_as_it_gives(given):
    """And not as many as it says: whoever goes along it would be left with a request too many."""
    problem = contract_problem(Operation.OBSERVE, [_request() for _ in range(3)], Uneven(given))
    assert problem == (None if given == 3 else "observe answered with what cannot be read (ValueError)")


def test_a_new_request_has_no_history():
    """It was neither queued nor sent, answered nor withdrawn, and may travel in any company."""
    request = _request()
    flags = ("disproved", "ended", "queued", "sent_again", "was_sent", "withdrawn")
    assert dict.fromkeys(flags, False) == {name: getattr(request, name) for name in flags}
    assert (None, None, None) == (request.answer, request.company, request.on_ended)


@pytest.mark.parametrize("answer", [None, StoreUnavailable("cache", "raised after the effect")])
def test_an_entry_that_is_gone_may_be_gone_by_a_removal_without_a_verdict(answer):
    """What was taken away and is not there any more was taken away by us, it may be; what is still there was not."""
    request = _request(Operation.REMOVE)
    assert not request.may_explain(None)
    request.was_sent = True
    if answer is not None:
        request.settle(answer)
    assert (True, False) == (request.may_explain(None), request.may_explain(PREPARED.document.version))


def test_the_first_answer_counts():
    """A verdict that comes after the request was given up changes nothing, and wakes nobody twice."""
    gather = Gather(2)
    request, other = _request(gather=gather), _request(gather=gather)
    request.settle(SEEN)
    request.settle(BAD)
    assert (SEEN, 1) == (request.answer, gather._missing)
    other.settle(BAD)
    assert 0 == gather._missing


def test_withdrawn_before_it_was_sent_or_while_it_is_under_way():
    """What waits in its queue has ended by that; what a store works on has not, and what is answered is not withdrawn."""
    queued, sent, answered = _request(), _request(), _request()
    queued.queued = True
    answered.settle(SEEN)
    for request in (queued, sent, answered):
        request.withdraw()
    assert [(True, True), (True, False), (False, False)] == [
        (request.withdrawn, request.ended) for request in (queued, sent, answered)
    ]


def test_whoever_waits_for_the_end_is_told_once():
    """The end of a call is announced, and only the first time."""
    told = []
    request = _request()
    request.on_ended = lambda: told.append(request.ended)
    request.end()
    request.end()
    assert [True] == told
