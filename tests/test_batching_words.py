"""What a batcher tells, to the word: answers, events, log and statistics of each way in which a call may end."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from engine_world import Stubborn, World, answered
from test_batching import Served, serve

from trio_repair import CircuitOpen, EventKind, StoreUnavailable, WriteAnswer, WriteStatus
from trio_repair._requests import Operation, Request
from trio_repair._stepping import Gather
from trio_repair.testing import Fault, FaultKind, make_document

OVERDUE = (EventKind.CALL_OVERDUE, {"store": "text", "detail": "observe"})
OPENED = (EventKind.BREAKER_OPENED, {"store": "text"})
CLOSED = (EventKind.BREAKER_CLOSED, {"store": "text"})


def _said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def _counts(served: Served) -> dict[str, Any]:
    """The statistics that are not 0."""
    return {name: value for name, value in attrs.asdict(served.batcher.statistics()).items() if value != 0}


async def _one(served: Served, ask: Any) -> Request:
    gather = Gather(1)
    request = ask(gather)
    await answered(gather)
    return request


async def _prepared(served: Served, doc_id: str = "d") -> tuple[Any, str]:
    (view,) = await served.observe(doc_id)
    request = await _one(served, lambda gather: served.batcher.prepare(make_document(doc_id, "new", number=5), gather))
    return request.answer, view.token


async def test_a_write_and_a_removal(autojump_clock, caplog):
    """Each is told when it is sent and when it is settled, with its token; only a write names a version."""
    world = World()
    async with serve(world.faulty["text"]) as served:
        prepared, token = await _prepared(served)
        written = await _one(served, lambda gather: served.batcher.write(prepared, token, gather))
        after = written.answer.observation.token
        stale = await _one(served, lambda gather: served.batcher.remove("d", token, gather))
        gone = await _one(served, lambda gather: served.batcher.remove("d", after, gather))
        assert [True, False, True] == [request.landed for request in (written, stale, gone)]
        assert [(False, False), (True, True), (True, False)] == [
            (request.removes, request.refused) for request in (written, stale, gone)
        ]
        assert None is world.number("text", "d")
        assert [True] * 3 == [request.ended for request in (written, stale, gone)]
        version = prepared.document.version
        common = {"doc_id": "d", "store": "text"}
        told = [
            (EventKind.WRITE_SENT, {**common, "token": token, "version": version}),
            (EventKind.WRITE_SETTLED, {**common, "token": token, "detail": "landed"}),
            (EventKind.WRITE_SENT, {**common, "token": token, "version": None}),
            (EventKind.WRITE_SETTLED, {**common, "token": token, "detail": "refused"}),
            (EventKind.WRITE_SENT, {**common, "token": after, "version": None}),
            (EventKind.WRITE_SETTLED, {**common, "token": after, "detail": "landed"}),
        ]
        assert told == served.events
        assert {"calls": 5, "documents": 5, "breaker": "closed"} == _counts(served)
        assert not served.batcher.is_open()
    assert [] == _said(caplog)


async def test_a_call_that_hangs(autojump_clock, caplog):
    """Which call, how long it was waited for, and when the store is tried next."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.HANG, "observe", times=1))
    async with serve(world.faulty["text"], store_call_timeout=2.5, breaker_reset=1.5) as served:
        (answer,) = await served.observe("d")
        assert (StoreUnavailable, "text store: observe did not answer within 2.5 s") == (type(answer), str(answer))
        assert {"calls": 1, "documents": 1, "abandoned": 1, "breaker": "open"} == _counts(served)
        assert served.batcher.is_open()
        await served.observe("d")
        assert [OVERDUE, OPENED, CLOSED] == served.events
        assert {"calls": 2, "documents": 2, "abandoned": 1, "breaker": "closed"} == _counts(served)
    assert [
        ("WARNING", "text store: observe did not answer within 2.5 s"),
        ("WARNING", "text store: unreachable, next try in 1.5 s: observe did not answer within 2.5 s"),
    ] == _said(caplog)


async def test_a_write_that_hangs_or_fails(autojump_clock, caplog):
    """A write that was given up is unknown, with the reason; one whose store raised an error is known to have failed."""
    world = World()
    async with serve(world.faulty["text"], store_call_timeout=2.0, breaker_reset=1.0) as served:
        prepared, token = await _prepared(served)
        world.faulty["text"].add(Fault(FaultKind.HANG, "write", times=1))
        hung = await _one(served, lambda gather: served.batcher.write(prepared, token, gather))
        assert isinstance(hung.answer, WriteAnswer)
        assert (WriteStatus.UNKNOWN, "text store: write did not answer within 2 s") == (
            hung.answer.status,
            str(hung.answer.error),
        )
        world.faulty["text"].add(Fault(FaultKind.UNAVAILABLE, "write", times=1))
        down = await _one(served, lambda gather: served.batcher.write(prepared, token, gather))
        assert isinstance(down.answer, StoreUnavailable)
        settled = [fields for kind, fields in served.events if kind is EventKind.WRITE_SETTLED]
        common = {"doc_id": "d", "store": "text", "token": token}
        assert [{**common, "detail": "unknown"}, {**common, "detail": "failed"}] == settled
        assert {"calls": 4, "documents": 4, "abandoned": 1, "failures": 1, "breaker": "open"} == _counts(served)


async def test_an_adapter_that_breaks_its_contract(autojump_clock, caplog):
    """The type of what it raised, and the document if there was but one; the error itself is the cause."""

    class Broken:
        traits = World().stores.text.traits

        async def observe(self, doc_ids: Any) -> Any:
            raise RuntimeError("driver")

    async with serve(Broken()) as served:
        (answer,) = await served.observe("d")
        assert "text store, document 'd': observe raised RuntimeError" == str(answer)
        assert "driver" == str(answer.__cause__)
        assert [
            (EventKind.STORE_MISBEHAVED, {"store": "text", "detail": "observe raised RuntimeError"})
        ] == served.events
        assert {"calls": 1, "documents": 1, "misbehaved": 1, "breaker": "closed"} == _counts(served)
    assert [("ERROR", "text store: broke its contract: observe raised RuntimeError")] == _said(caplog)


async def test_a_call_that_closing_cuts_off(autojump_clock, caplog):
    """What did not end within the grace period is named; who asks later is told why not."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.HANG, "observe"))
    async with serve(world.faulty["text"], store_call_timeout=100.0) as served:
        gather = Gather(1)
        cut = served.batcher.observe("d", gather)
        await trio.sleep(1.0)
        served.batcher.close(3.0)
        late = served.batcher.observe("e", Gather(1))
        await answered(gather)
        assert 3.0 == trio.current_time()
        assert "text store: the call was given up" == str(cut.answer)
        assert "text store, document 'e': the engine is closing" == str(late.answer)
        assert [OVERDUE] == served.events
        assert {"calls": 1, "documents": 1, "abandoned": 1, "breaker": "closed"} == _counts(served)
    assert [("WARNING", "text store: observe did not end within the grace period")] == _said(caplog)


async def test_what_waits_when_closing_begins(autojump_clock):
    """It is answered and over, so that nobody waits for its end."""
    world = World({"text": {"observe": 5.0}}, max_calls=1)
    async with serve(world.faulty["text"]) as served:
        served.batcher.observe("d", Gather(1))
        await trio.sleep(1.0)
        waiting = served.batcher.observe("e", Gather(1))
        served.batcher.close(10.0)
        assert "text store, document 'e': the engine is closing" == str(waiting.answer)
        assert (True, False) == (waiting.ended, waiting.was_sent)


@pytest.mark.parametrize(
    ("fail_fast", "said"),
    [
        (True, "text store, document 'd': is unreachable: injected: not now"),
        (False, "text store, document 'd': unreachable for 7.5 s: injected: not now"),
    ],
)
async def test_a_store_that_is_unreachable(autojump_clock, fail_fast: bool, said: str):
    """At once or after the whole of `unavailable_timeout`, and the request is over by that."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.UNAVAILABLE, "observe"))
    settings = {"breaker_failures": 1, "breaker_reset": 100.0, "unavailable_timeout": 7.5}
    async with serve(world.faulty["text"], fail_fast=fail_fast, **settings) as served:
        await served.observe("a")
        await trio.sleep(1.25)
        request = await _one(served, lambda gather: served.batcher.observe("d", gather))
        assert (CircuitOpen, said, "d") == (type(request.answer), str(request.answer), request.answer.doc_id)
        # Refused where it stood in the queue, it is over; refused at the door, it was never in it.
        assert (not fail_fast, False) == (request.ended, request.was_sent)


async def test_a_write_that_was_sent_and_then_waits_in_vain_to_be_sent_again(autojump_clock):
    """Its first call broke, the store is away since: nobody knows what that call did, and the write says so."""
    world = World(max_calls=1)
    text = world.faulty["text"]
    settings = {"breaker_failures": 1, "breaker_reset": 100.0, "unavailable_timeout": 5.0}
    async with serve(text, **settings) as served:
        prepared = [await _prepared(served, doc_id) for doc_id in "de"]
        # One call for both breaks, and the next one, for the first half, finds the store away.
        text.add(Fault(FaultKind.DRIVER_ERROR, "write", times=1))
        gather = Gather(2)
        requests = [served.batcher.write(document, token, gather) for document, token in prepared]
        text.add(Fault(FaultKind.UNAVAILABLE, "write"))
        await answered(gather)
        first, second = (request.answer for request in requests)
        assert isinstance(first, StoreUnavailable)
        assert isinstance(second, WriteAnswer)
        assert (WriteStatus.UNKNOWN, "text store, document 'e': unreachable for 5 s: injected: not now") == (
            second.status,
            str(second.error),
        )
        assert isinstance(second.error, CircuitOpen)
        assert (True, True) == (requests[1].ended, requests[1].verdict_unknown)
        assert [True, True] == [request.sent_again for request in requests]


async def test_a_document_that_hangs_its_store(autojump_clock):
    """Guilty once it has hung alone while others were answered: it is named, and not asked about for a while."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.HANG, "observe", doc_id="d"))
    settings = {"store_call_timeout": 1.0, "breaker_reset": 0.5, "unavailable_timeout": 6.0}
    async with serve(world.faulty["text"], **settings) as served:
        await served.observe("d")
        await served.observe("other")
        await served.observe("d")
        convicted = trio.current_time()
        problem = "does not answer observe for this document; not asked again for a while"
        (answer,) = await served.observe("d")
        assert (StoreUnavailable, f"text store, document 'd': {problem}") == (type(answer), str(answer))
        assert "closed" == served.batcher.statistics().breaker
        await trio.sleep(convicted + 6.0 - trio.current_time() - 0.01)
        (answer,) = await served.observe("d")
        assert problem in str(answer)
        await trio.sleep(0.01)
        world.faulty["text"].heal()
        (answer,) = await served.observe("d")
        assert not isinstance(answer, StoreUnavailable)


@pytest.mark.parametrize(("grace", "named_after"), [(2.0, 2.0), (0.0, 0.1)])
async def test_a_call_that_will_not_stop(autojump_clock, caplog, grace: float, named_after: float):
    """Told to stop when it was given up, it is named once, `grace` seconds later, and a tenth of a second at least."""
    world = World()
    text = Stubborn(world.faulty["text"], "observe")
    async with serve(text, store_call_timeout=1.0, grace=grace, breaker_reset=50.0) as served:
        await served.observe("d")
        assert served.batcher._suspects.may_hang((Operation.OBSERVE, "d"))
        await trio.sleep(named_after - 0.01)
        assert 0 == served.batcher.statistics().overstayed
        await trio.sleep(0.02)
        assert {"calls": 1, "documents": 1, "abandoned": 1, "overstayed": 1, "breaker": "open"} == _counts(served)
        assert [OVERDUE, OPENED, (EventKind.CALL_OVERSTAYED, {"store": "text", "detail": "observe"})] == served.events
        text.release.set()
    said = (
        "text store: observe was told to stop and goes on: the adapter swallows cancellation or waits for its driver; "
        "the engine cannot close before it returns"
    )
    assert ("ERROR", said) == _said(caplog)[-1]


async def test_calls_that_block_the_loop(autojump_clock, caplog):
    """Each is counted, and told with its operation and its seconds."""
    world = World()
    world.faulty["text"].add(Fault(FaultKind.BLOCKED_LOOP, "observe", delay=0.02, times=2))
    async with serve(world.faulty["text"], loop_block_seconds=0.01) as served:
        await served.observe("d")
        await served.observe("d")
        assert 2 == served.batcher.statistics().blocked
        for kind, fields in served.events:
            operation, _, seconds = fields["detail"].partition(": ")
            assert (EventKind.LOOP_BLOCKED, "text", "observe", " s") == (kind, fields["store"], operation, seconds[-2:])
            assert 0.02 <= float(seconds[:-2]) < 5
    for level, message in _said(caplog):
        assert level == "ERROR"
        assert message.startswith("text store: observe blocked the event loop for 0.")
        assert message.endswith(" s; run it in a thread")
