"""Batchers: bulk calls, attribution of failures, breakers, and what a store may do wrong."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from engine_world import Stubborn, World, answered, config

from trio_repair import (
    CircuitOpen,
    EngineEvent,
    EventKind,
    Observation,
    Prepared,
    StoreError,
    StoreMisbehaved,
    StoreRejected,
    StoreUnavailable,
    WriteAnswer,
    WriteStatus,
)
from trio_repair._batching import Batcher
from trio_repair._requests import Operation, Request
from trio_repair._stepping import Gather
from trio_repair._timetable import Timer, Timetable
from trio_repair.testing import Fault, FaultKind, make_document


class BoundedTimetable(Timetable):
    """Fails instead of hanging when timers breed timers without end."""

    made = 0

    def at(self, when: float, fn: Any, *args: Any) -> Timer:
        self.made += 1
        assert self.made < 20_000, f"timers without end: {fn}"
        return super().at(when, fn, *args)


class Served:
    def __init__(self, batcher: Batcher, timetable: Timetable) -> None:
        self.batcher = batcher
        self.timetable = timetable
        self.events: list[tuple[EventKind, dict[str, Any]]] = []

    def emit(self, kind: EventKind, **fields: Any) -> None:
        EngineEvent(kind=kind, at=0.0, **fields)
        self.events.append((kind, fields))

    def kinds(self, *kinds: EventKind) -> list[EventKind]:
        return [kind for kind, _fields in self.events if kind in kinds]

    async def observe(self, *doc_ids: str) -> list[Any]:
        gather = Gather(len(doc_ids))
        requests = [self.batcher.observe(doc_id, gather) for doc_id in doc_ids]
        await answered(gather)
        return [request.answer for request in requests]

    async def write(self, *doc_ids: str, number: int = 5) -> list[Any]:
        """Look, prepare and write; the answers to the writes."""
        tokens = [view.token for view in await self.observe(*doc_ids)]
        gather = Gather(len(doc_ids))
        documents = [make_document(doc_id, "new", number=number) for doc_id in doc_ids]
        prepares = [self.batcher.prepare(document, gather) for document in documents]
        await answered(gather)
        gather = Gather(len(doc_ids))
        writes = [
            self.batcher.write(prepare.answer, token, gather) for prepare, token in zip(prepares, tokens, strict=True)
        ]
        await answered(gather)
        return [request.answer for request in writes]


@contextlib.asynccontextmanager
async def serve(store: Any, *, fail_fast: bool = False, **settings: Any) -> AsyncIterator[Served]:
    timetable = BoundedTimetable()
    served: Served

    def events(kind: EventKind, **fields: Any) -> None:
        served.emit(kind, **fields)

    batcher = Batcher(
        "text",
        store,
        config(**settings),
        timetable,
        events,
        fail_fast=fail_fast,
    )
    served = Served(batcher, timetable)
    async with trio.open_nursery() as nursery:
        batcher.nursery = nursery
        nursery.start_soon(timetable.serve)
        yield served
        nursery.cancel_scope.cancel()


def _ids(count: int) -> list[str]:
    return [f"d{index}" for index in range(count)]


# Bulk calls


async def test_what_is_asked_in_one_round_travels_in_one_call(autojump_clock):
    """A hundred requests made together are one call; 300 are two, since a call may name 256."""
    world = World()
    async with serve(world.faulty["text"]) as served:
        await served.observe(*_ids(100))
        assert 1 == world.faulty["text"].calls["observe"]
        await served.observe(*_ids(300))
        assert 3 == world.faulty["text"].calls["observe"]
        statistics = served.batcher.statistics()
        assert (3, 400, 0, 0, 0, "closed") == (
            statistics.calls,
            statistics.documents,
            statistics.failures,
            statistics.abandoned,
            statistics.misbehaved,
            statistics.breaker,
        )


async def test_no_more_tasks_are_started_than_calls_are_needed(autojump_clock):
    """A hundred requests made together start one task, not one each that finds nothing to do."""
    world = World()
    async with serve(world.faulty["text"]) as served:
        started = []
        nursery = served.batcher.nursery

        class Counting:
            def start_soon(self, fn: Any) -> None:
                started.append(fn)
                nursery.start_soon(fn)

        served.batcher.nursery = Counting()  # type: ignore[assignment]  # all that is asked of a nursery
        await served.observe(*_ids(100))
        assert 1 == len(started)


async def test_a_write_does_not_wait_for_an_observation_while_calls_are_free(autojump_clock):
    """Different operations asked for together go out side by side if the store takes more than one call."""
    world = World({"text": {"observe": 50.0}})
    async with serve(world.faulty["text"], store_call_timeout=100.0) as served:
        gather, other = Gather(1), Gather(1)
        served.batcher.observe("d", gather)
        read = served.batcher.read("e", other)
        await answered(other)
        assert 0.0 == trio.current_time()
        assert read.answer is not None
        await answered(gather)
        assert 50.0 == trio.current_time()


@pytest.mark.parametrize("max_calls", [1, 3])
async def test_never_more_calls_under_way_than_the_store_allows(autojump_clock, max_calls: int):
    """`max_calls` is kept with many waiting, and used to the full; one more may only prepare."""
    world = World({"text": {"observe": 1.0, "prepare": 1.0, "read": 1.0}}, max_calls=max_calls, max_batch=2)
    async with serve(world.faulty["text"]) as served:
        async with trio.open_nursery() as nursery:
            for doc_id in _ids(20):
                nursery.start_soon(served.observe, doc_id)
        assert max_calls == world.faulty["text"].peak_calls
        assert -(-10 // max_calls) == round(trio.current_time())
        gather = Gather(12)
        for doc_id in _ids(6):
            served.batcher.prepare(make_document(doc_id), gather)
            served.batcher.read(doc_id, gather)
        await answered(gather)
        assert world.faulty["text"].peak_calls == max_calls + 1


async def test_one_document_never_stands_twice_in_one_call(autojump_clock):
    """Two requests for one document go in two calls, and nobody's order changes."""
    world = World()
    async with serve(world.faulty["text"]) as served:
        gather = Gather(3)
        for doc_id in ("d", "d", "e"):
            served.batcher.observe(doc_id, gather)
        await answered(gather)
        assert (2, 3) == (world.faulty["text"].calls["observe"], world.faulty["text"].documents["observe"])


async def test_a_request_taken_back_before_it_was_sent_is_never_sent(autojump_clock):
    """Withdrawn in time, it costs nothing; withdrawn in flight, it is answered all the same."""
    world = World({"text": {"observe": 1.0}}, max_calls=1)
    async with serve(world.faulty["text"]) as served:
        gather = Gather(2)
        sent = served.batcher.observe("sent", gather)
        await trio.sleep(0.5)
        queued = served.batcher.observe("queued", gather)
        queued.withdraw()
        sent.withdraw()
        await trio.sleep(5)
        assert (False, None) == (queued.was_sent, queued.answer)
        assert isinstance(sent.answer, Observation)
        assert 1 == world.faulty["text"].documents["observe"]


async def test_a_cancelled_wait_leaves_the_requests_as_they_were(autojump_clock):
    """Cancelling whoever waits cancels neither the call nor its answer."""
    world = World({"text": {"observe": 2.0}})
    async with serve(world.faulty["text"]) as served:
        gather = Gather(1)
        request = served.batcher.observe("d", gather)
        with trio.move_on_after(1) as scope:
            await answered(gather)
        assert scope.cancel_called
        await answered(gather) if request.answer is None else None
        assert isinstance(request.answer, Observation)


# Attribution


@pytest.mark.parametrize("kind", [FaultKind.DRIVER_ERROR, FaultKind.WRONG_LENGTH])
@pytest.mark.parametrize("operation", ["observe", "write"])
async def test_i10_a_poison_document_fails_alone(autojump_clock, kind: FaultKind, operation: str):
    """Of 64 in one call, 63 are served; the one that spoils every call it is in gets the error, whatever is done."""
    world = World()
    world.faulty["text"].add(Fault(kind, operation, doc_id="d17"))
    async with serve(world.faulty["text"]) as served:
        ids = _ids(64)
        answers = await (served.observe(*ids) if operation == "observe" else served.write(*ids))
        for doc_id, answer in zip(ids, answers, strict=True):
            if doc_id == "d17":
                error = answer.error if isinstance(answer, WriteAnswer) else answer
                assert isinstance(error, StoreMisbehaved)
                assert error.doc_id == "d17"
            elif operation == "observe":
                assert isinstance(answer, Observation)
            else:
                assert 5 == world.number("text", doc_id)
        assert world.faulty["text"].calls[operation] < 4 * 7
        assert served.batcher.statistics().misbehaved >= 7


async def test_i10_a_document_that_a_store_rejects_is_rejected_alone(autojump_clock):
    """An error in an answer concerns one document: one call, no bisection."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.REJECTED, "observe", doc_id="d3"))
    async with serve(world.faulty["text"]) as served:
        answers = await served.observe(*_ids(8))
        assert [3] == [index for index, answer in enumerate(answers) if isinstance(answer, StoreRejected)]
        assert 1 == world.faulty["text"].calls["observe"]


async def test_i10_a_rejection_raised_for_the_whole_call_is_bisected(autojump_clock):
    """An adapter that raises StoreRejected cannot say for which document: halving finds it."""
    world = World()
    inner = world.faulty["text"]

    class Raising:
        traits = inner.traits

        async def observe(self, doc_ids: Any) -> Any:
            if "d5" in doc_ids:
                raise StoreRejected("text", "one of these is bad")
            return await inner.observe(doc_ids)

    async with serve(Raising()) as served:
        answers = await served.observe(*_ids(16))
        assert [5] == [index for index, answer in enumerate(answers) if isinstance(answer, StoreError)]
        assert "closed" == served.batcher.statistics().breaker


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (lambda _ids: None, "answered with NoneType, not a sequence"),
        (iter, "not a sequence"),
        (lambda _ids: ["d"], "answered with str"),
        (lambda ids: [], "answered 0 of 1 documents"),
    ],
)
async def test_answers_that_break_the_contract_are_named(autojump_clock, answers, problem: str):
    """Wrong shapes give StoreMisbehaved with what was wrong, one event, and the store goes on being served."""

    class Wrong:
        traits = World().stores.text.traits

        async def observe(self, doc_ids: Any) -> Any:
            await trio.lowlevel.checkpoint()
            return answers(doc_ids)

    async with serve(Wrong()) as served:
        (answer,) = await served.observe("d")
        assert isinstance(answer, StoreMisbehaved)
        assert problem in answer.problem
        assert [EventKind.STORE_MISBEHAVED] == served.kinds(EventKind.STORE_MISBEHAVED)
        assert "closed" == served.batcher.statistics().breaker


async def test_i18_an_answer_for_another_document_is_never_taken(autojump_clock):
    """A store that mixes up its rows gives another document's content: refused, not written elsewhere."""
    world = World()
    for doc_id in "de":
        world.put("text", doc_id)
    inner = world.memory["text"]

    class Swapping:
        traits = inner.traits

        async def read(self, doc_ids: Any) -> Any:
            return list(reversed(await inner.read(doc_ids)))

        async def prepare(self, documents: Any) -> Any:
            return list(reversed(await inner.prepare(documents)))

    async with serve(Swapping()) as served:
        gather = Gather(4)
        requests = [served.batcher.read(doc_id, gather) for doc_id in "de"]
        requests += [served.batcher.prepare(make_document(doc_id), gather) for doc_id in "de"]
        await answered(gather)
        for request in requests:
            # Alone, a document cannot be mixed up with another: bisection serves it in the end.
            assert request.answer.document.doc_id == request.doc_id
        assert 2 == served.batcher.statistics().misbehaved


async def test_i19_a_drivers_error_is_named_by_its_type_only(autojump_clock, caplog):
    """What a driver says may hold document text; neither the answer nor the log repeats it."""

    class Leaking:
        traits = World().stores.text.traits

        async def observe(self, doc_ids: Any) -> Any:
            raise RuntimeError("MARKER text of the document")

    with caplog.at_level(logging.DEBUG):
        async with serve(Leaking()) as served:
            (answer,) = await served.observe("d")
    assert "RuntimeError" in str(answer)
    assert "MARKER" not in str(answer) + repr(answer) + caplog.text


# Writes and their verdicts


async def test_a_lost_acknowledgement_is_unknown(autojump_clock):
    """UNKNOWN is handed on as it is."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.ACK_LOST, "write"))
    async with serve(world.faulty["text"]) as served:
        (answer,) = await served.write("d")
        assert WriteStatus.UNKNOWN is answer.status
        assert 5 == world.number("text")


async def test_events_pair_every_write_with_its_verdict(autojump_clock):
    """WRITE_SENT and WRITE_SETTLED name document, store and token; a write that was never sent has neither."""
    world = World()
    async with serve(world.faulty["text"], unavailable_timeout=1.0, breaker_reset=100.0) as served:
        (token,) = [view.token for view in await served.observe("d")]
        gather = Gather(1)
        prepare = served.batcher.prepare(make_document("d"), gather)
        await answered(gather)
        gather = Gather(1)
        served.batcher.write(prepare.answer, token, gather)
        await answered(gather)
        served.batcher.breaker.failed(given_up=True)
        gather = Gather(1)
        unsent = served.batcher.write(prepare.answer, token, gather)
        await answered(gather)
        assert isinstance(unsent.answer, CircuitOpen)
        sent, settled = served.kinds(EventKind.WRITE_SENT), served.kinds(EventKind.WRITE_SETTLED)
        assert (1, 1) == (len(sent), len(settled))
        assert {"doc_id": "d", "store": "text", "token": token, "detail": "landed"} == served.events[-1][1]


async def test_a_write_is_not_sent_again_for_a_repair_that_has_ended(autojump_clock):
    """Its bulk call breaks after the repair gave it up: bisection sends the others again, not this one."""
    world = World()
    world.faulty["text"].add(
        Fault(FaultKind.LATENCY, "write", delay=1.0), Fault(FaultKind.DRIVER_ERROR, "write", times=1)
    )
    async with serve(world.faulty["text"]) as served:
        ended: list[str] = []
        tokens = [view.token for view in await served.observe("d", "e")]
        gather = Gather(2)
        prepares = [served.batcher.prepare(make_document(doc_id), gather) for doc_id in "de"]
        await answered(gather)
        gather = Gather(2)
        given_up, wanted = [
            served.batcher.write(prepare.answer, token, gather) for prepare, token in zip(prepares, tokens, strict=True)
        ]
        given_up.on_ended = lambda: ended.append("d")
        await trio.sleep(0.5)
        given_up.withdraw()
        await trio.sleep(10)
        assert (None, 1) == (world.number("text", "d"), world.number("text", "e"))
        assert WriteStatus.LANDED is wanted.answer.status
        assert (["d"], True) == (ended, given_up.ended)
        assert given_up.verdict_unknown


async def test_a_write_withdrawn_while_it_waits_to_be_sent_again_is_not_sent_again(autojump_clock):
    """Sent once, then queued again by bisection: taking it back then leaves it unknown, and ended."""
    world = World(max_calls=1)
    async with serve(world.faulty["text"]) as served:
        tokens = [view.token for view in await served.observe("d", "e")]
        gather = Gather(2)
        prepares = [served.batcher.prepare(make_document(doc_id), gather) for doc_id in "de"]
        await answered(gather)
        world.faulty["text"].add(Fault(FaultKind.DRIVER_ERROR, "write", times=1))
        gather = Gather(2)
        requests = [
            served.batcher.write(prepare.answer, token, gather) for prepare, token in zip(prepares, tokens, strict=True)
        ]
        world.slow["text"].latencies["write"] = 1.0
        await trio.sleep(0.5)  # the first half is under way again, the other half waits
        requests[1].withdraw()
        assert (True, True) == (requests[1].ended, requests[1].verdict_unknown)
        await trio.sleep(10)
        assert (1, None) == (world.number("text", "d"), world.number("text", "e"))


# Stores that do not answer


async def test_a_call_that_takes_too_long_is_given_up_and_opens_the_breaker(autojump_clock, caplog):
    """At `store_call_timeout` its requests are answered, the breaker opens, the call is cancelled; then it is probed."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.HANG, "observe", times=1))
    async with serve(world.faulty["text"], store_call_timeout=2.0, breaker_reset=1.0) as served:
        (answer,) = await served.observe("d")
        assert 2.0 == trio.current_time()
        assert isinstance(answer, StoreUnavailable)
        assert "observe did not answer within 2 s" in str(answer)
        assert "open" == served.batcher.statistics().breaker
        (answer,) = await served.observe("d")
        assert 3.0 == trio.current_time()
        assert isinstance(answer, Observation)
        assert (1, "closed") == (served.batcher.statistics().abandoned, served.batcher.statistics().breaker)
        assert [EventKind.CALL_OVERDUE, EventKind.BREAKER_OPENED, EventKind.BREAKER_CLOSED] == served.kinds(
            EventKind.CALL_OVERDUE, EventKind.BREAKER_OPENED, EventKind.BREAKER_CLOSED
        )
    assert "did not answer within 2 s" in caplog.text


async def test_failures_in_a_row_open_it_and_a_probe_of_one_closes_it(autojump_clock):
    """Five failed calls open it; the probe after `breaker_reset` names one document; then all go out."""
    world = World(max_calls=1)
    text = world.faulty["text"]
    text.add(Fault(FaultKind.UNAVAILABLE, "observe", times=5))
    async with serve(text, breaker_failures=5, breaker_reset=1.0) as served:
        for _ in range(5):
            await served.observe("d")
        assert ("open", 5) == (served.batcher.statistics().breaker, served.batcher.statistics().failures)
        before = text.calls["observe"]
        documents = text.documents["observe"]
        async with trio.open_nursery() as nursery:
            for doc_id in _ids(10):
                nursery.start_soon(served.observe, doc_id)
            await trio.sleep(0.9)
            assert before == text.calls["observe"]
        assert 1.0 == trio.current_time()
        assert (2, 10) == (text.calls["observe"] - before, text.documents["observe"] - documents)


async def test_failed_probes_come_at_doubling_intervals(autojump_clock):
    """1, 2, 4 s between probes: a store that is away is asked ever more rarely."""
    world = World()
    text = world.faulty["text"]
    times: list[float] = []

    class Down:
        traits = text.traits

        async def observe(self, doc_ids: Any) -> Any:
            times.append(trio.current_time())
            raise StoreUnavailable("text", "down")

    async with serve(Down(), breaker_failures=1, breaker_reset=1.0) as served:
        while trio.current_time() < 20:
            await served.observe("d")
    assert [0, 1, 3, 7, 15] == times[:5]


@pytest.mark.parametrize("start", [0.1, 0.3, 1.7, 123.456])
async def test_who_waits_for_an_unreachable_store_is_told_at_unavailable_timeout(autojump_clock, start: float):
    """Each request waits exactly that long, whatever the time is; rounding must not make the timer chase its tail."""
    world = World(max_calls=1)
    text = Stubborn(world.faulty["text"], "observe")
    async with serve(text, store_call_timeout=1.0, unavailable_timeout=15.0) as served:
        await trio.sleep(start)
        waited: list[float] = []

        async def ask(delay: float) -> None:
            await trio.sleep(delay)
            began = trio.current_time()
            (answer,) = await served.observe(f"d{delay}")
            assert isinstance(answer, CircuitOpen if delay else StoreUnavailable)
            waited.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for delay in (0.0, 0.1, 0.7, 3.3, 7.9):
                nursery.start_soon(ask, delay)
        assert [1.0, 15.0, 15.0, 15.0, 15.0] == pytest.approx(waited)
        text.release.set()


@pytest.mark.parametrize(("fail_fast", "expected"), [(True, 0.0), (False, 15.0)])
async def test_a_store_that_nobody_needs_answers_at_once_while_its_breaker_is_open(autojump_clock, fail_fast, expected):
    """The cache's breaker never holds up a job; the control waits."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.HANG))
    async with serve(world.faulty["text"], fail_fast=fail_fast, store_call_timeout=1.0, breaker_reset=100.0) as served:
        await served.observe("d")
        began = trio.current_time()
        (answer,) = await served.observe("d")
        assert isinstance(answer, CircuitOpen)
        assert expected == pytest.approx(trio.current_time() - began)


async def test_who_waits_when_the_cache_is_given_up_is_told_at_once(autojump_clock):
    """Requests in the queue at the moment of opening do not wait for a probe either."""
    world = World(max_calls=1)
    world.faulty["text"].add(Fault(FaultKind.HANG))
    async with serve(world.faulty["text"], fail_fast=True, store_call_timeout=2.0) as served:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.observe, "a")
            await trio.sleep(1.0)
            (answer,) = await served.observe("b")
            assert (2.0, True) == (trio.current_time(), isinstance(answer, CircuitOpen))


async def test_a_probe_for_the_cache_is_let_through_when_its_time_has_come(autojump_clock):
    """After `breaker_reset` one request goes out again, and its success closes the breaker."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.HANG, times=1))
    async with serve(world.faulty["text"], fail_fast=True, store_call_timeout=1.0, breaker_reset=2.0) as served:
        await served.observe("d")
        await trio.sleep(2.5)
        first, second = await served.observe("d", "e")
        assert isinstance(first, Observation)
        assert isinstance(second, CircuitOpen)
        (answer,) = await served.observe("e")
        assert isinstance(answer, Observation)


async def test_one_call_that_never_ends_does_not_keep_a_store_with_room_from_being_probed(autojump_clock):
    """A store that takes two calls is probed beside the one that hangs; one that takes a single call cannot be."""
    for max_calls, served_again in ((2, True), (1, False)):
        world = World(max_calls=max_calls)
        text = Stubborn(world.faulty["text"], "observe", doc_id="stuck")
        async with serve(text, store_call_timeout=1.0, unavailable_timeout=5.0) as served:
            await served.observe("stuck")
            (answer,) = await served.observe("d")
            assert served_again == isinstance(answer, Observation)
            (answer,) = await served.observe("e")
            assert served_again == isinstance(answer, Observation)
            text.release.set()


async def test_i14_after_a_hang_the_documents_of_the_call_travel_alone(autojump_clock):
    """One document hangs every call that names it. Its companions need one more try, not one for each halving."""
    world = World(max_calls=64)
    world.faulty["text"].add(Fault(FaultKind.HANG, "observe", doc_id="d0"))
    async with serve(world.faulty["text"], store_call_timeout=1.0, breaker_reset=0.5) as served:
        ids = _ids(32)
        assert all(isinstance(answer, StoreUnavailable) for answer in await served.observe(*ids))
        answers = await served.observe(*ids[1:], ids[0])
        assert [True] * 31 + [False] == [isinstance(answer, Observation) for answer in answers]


@pytest.mark.parametrize("max_calls", [1, 4])
async def test_i14_one_that_hangs_alone_while_others_are_answered_is_not_asked_again(autojump_clock, max_calls: int):
    """A hang costs the others one call in company and, where there is only one place, one alone; then no more."""
    world = World(max_calls=max_calls)
    world.faulty["text"].add(Fault(FaultKind.HANG, "observe", doc_id="d0"))
    settings = {"store_call_timeout": 1.0, "breaker_reset": 0.5, "unavailable_timeout": 20.0}
    async with serve(world.faulty["text"], **settings) as served:
        await served.observe(*_ids(8))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            # The one that hangs asks first, and the probe is about another one all the same.
            nursery.start_soon(served.observe, "d0")
            await trio.testing.wait_all_tasks_blocked()
            await served.observe("e0", "e1", "e2")
            assert (1.5 if max_calls == 1 else 0.5) == pytest.approx(trio.current_time() - began)
        assert "closed" == served.batcher.statistics().breaker
        assert 1.5 == pytest.approx(trio.current_time() - began)
        began = trio.current_time()
        for _ in range(5):
            (answer,) = await served.observe("d0")
            assert "not asked again" in str(answer)
            (answer,) = await served.observe("d1")
            assert isinstance(answer, Observation)
        assert began == trio.current_time()
        await trio.sleep(20.0)
        world.faulty["text"].heal()
        (answer,) = await served.observe("d0")
        assert isinstance(answer, Observation)


async def test_i14_those_that_may_hang_have_one_place_among_many(autojump_clock):
    """A dozen documents hang, and the others go on beside them: never two of the dozen at a time."""
    world = World(max_calls=2)
    ids = _ids(12)
    for doc_id in ids:
        world.faulty["text"].add(Fault(FaultKind.HANG, "observe", doc_id=doc_id))
    async with serve(world.faulty["text"], store_call_timeout=1.0, breaker_reset=0.5) as served:
        await served.observe(*ids)
        await served.observe("fine")
        async with trio.open_nursery() as nursery:
            for doc_id in ids:
                nursery.start_soon(served.observe, doc_id)
            await trio.sleep(0.5)
            began = trio.current_time()
            for number in range(20):
                (answer,) = await served.observe(f"fine {number}")
                assert isinstance(answer, Observation)
            assert began == trio.current_time()


async def test_what_is_remembered_of_failed_calls_is_bounded(autojump_clock):
    """A store that is down for a long time, asked for ever new documents, leaves a bounded memory of them."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.UNAVAILABLE))
    async with serve(world.faulty["text"], breaker_failures=1_000_000) as served:
        for start in range(0, 40_000, 200):
            await served.observe(*[f"d{index}" for index in range(start, start + 200)])
        assert len(served.batcher._suspects._company) <= 4096
    # While bisecting, nothing depends on that memory: a poison among many others is still found.
    world = World()
    world.faulty["text"].add(Fault(FaultKind.DRIVER_ERROR, "observe", doc_id="d0"))
    async with serve(world.faulty["text"]) as served:
        answers = await served.observe(*_ids(256))
        assert 1 == sum(isinstance(answer, StoreError) for answer in answers)
        assert [(Operation.OBSERVE, "d0")] == list(served.batcher._suspects._company)


async def test_a_call_whose_cancellation_is_swallowed_counts_as_answered(autojump_clock):
    """It comes back late with true answers: nobody waits for them any more, and the store is known to be back."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.SWALLOWED_CANCEL, "observe", delay=50.0))
    async with serve(world.faulty["text"], store_call_timeout=1.0) as served:
        (answer,) = await served.observe("d")
        assert isinstance(answer, StoreUnavailable)
        await trio.sleep(0.1)
        assert "closed" == served.batcher.statistics().breaker


async def test_preparing_too_long_is_given_up_without_opening_the_breaker(autojump_clock):
    """An embedder that hangs says nothing about the store behind it."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.HANG, "prepare", times=1))
    async with serve(world.faulty["text"], store_call_timeout=1.0) as served:
        gather = Gather(1)
        request = served.batcher.prepare(make_document("d"), gather)
        await answered(gather)
        assert isinstance(request.answer, StoreUnavailable)
        assert "closed" == served.batcher.statistics().breaker
        await trio.sleep(0.1)
        gather = Gather(1)
        request = served.batcher.prepare(make_document("d"), gather)
        await answered(gather)
        assert isinstance(request.answer, Prepared)


# Closing


async def test_closing_answers_what_waits_and_gives_what_is_under_way_its_grace(autojump_clock):
    """Queued and later requests are told at once; a call under way may end within the grace, not after."""
    world = World({"text": {"observe": 3.0}}, max_calls=1)
    for grace, landed in ((5.0, True), (1.0, False)):
        async with serve(world.faulty["text"]) as served:
            began = trio.current_time()
            gather = Gather(1)
            sent = served.batcher.observe("d", gather)
            await trio.sleep(0.1)
            waiting = served.batcher.observe("e", Gather(1))
            served.batcher.close(began + grace)
            late = served.batcher.observe("f", Gather(1))
            for request in (waiting, late):
                assert "engine is closing" in str(request.answer)
        assert min(grace, 3.0) == pytest.approx(trio.current_time() - began)
        assert landed == isinstance(sent.answer, Observation)
        assert (0 if landed else 1) == served.batcher.statistics().abandoned


async def test_a_call_that_breaks_while_closing_is_sent_again_within_the_grace_only(autojump_clock):
    """Bisection goes on for those who still wait, and no call outlives the grace."""
    world = World({"text": {"observe": 1.0}}, max_calls=1)
    world.faulty["text"].add(Fault(FaultKind.DRIVER_ERROR, "observe", times=1))
    world.faulty["text"].add(Fault(FaultKind.LATENCY, "observe", delay=1.0, times=1))
    world.faulty["text"]._faults.reverse()
    async with serve(world.faulty["text"]) as served:
        gather = Gather(2)
        first, second = (served.batcher.observe(doc_id, gather) for doc_id in "de")
        await trio.sleep(0.5)
        served.batcher.close(2.5)
    assert 2.5 == trio.current_time()
    assert isinstance(first.answer, Observation)
    assert isinstance(second.answer, StoreUnavailable)


async def test_a_call_that_was_to_start_when_the_breaker_opened_does_not_go_out(autojump_clock):
    """Its task is spawned and has not run: the request waits for the probe."""
    world = World()
    async with serve(world.faulty["text"], breaker_reset=2.0) as served:
        gather = Gather(1)
        request = served.batcher.observe("d", gather)
        served.batcher.breaker.failed(given_up=True)
        served.batcher._opened()
        await answered(gather)
        assert (2.0, 1) == (trio.current_time(), world.faulty["text"].calls["observe"])
        assert isinstance(request.answer, Observation)


async def test_a_call_given_up_before_closing_is_counted_once(autojump_clock):
    """Overdue first, then cut off: one abandoned call, not two."""
    world = World()
    text = Stubborn(world.faulty["text"], "observe")
    async with serve(text, store_call_timeout=1.0) as served:
        await served.observe("d")
        text.release.set()
        await trio.sleep(0.1)
        assert 1 == served.batcher.statistics().abandoned


def test_answers_are_given_once():
    """Whatever comes after the first answer is dropped, and wakes nobody twice."""
    gather = Gather(1)
    request = Request(Operation.OBSERVE, "d", "d", gather)
    first, second = StoreUnavailable("text", "1"), StoreUnavailable("text", "2")
    request.settle(first)
    request.settle(second)
    assert first is request.answer
    calls: Counter[str] = Counter()
    request.on_ended = lambda: calls.update(["ended"])
    request.end()
    request.end()
    assert 1 == calls["ended"]
