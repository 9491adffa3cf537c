"""Adapters that break their contract at run time: they are named in the log and counted, and no receipt is false."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import attrs
import pytest
import trio
from engine_world import World, config, job

from trio_repair import EventKind, RepairOutcome, StepState, StoreError, open_repair_engine
from trio_repair._store_call import Stretches
from trio_repair.testing import Fault, FaultKind, RecordingInstrument

from properties.planted import Bug, planted  # isort: skip


class Deaf:
    """A store whose call of one operation goes on for `seconds`, whatever it is told."""

    def __init__(self, inner: Any, operation: str, seconds: float) -> None:
        self.inner = inner
        self.operation = operation
        self.seconds = seconds

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name != self.operation:
            return method

        async def call(arguments: Any) -> Any:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.seconds)
                return await method(arguments)

        return call


def _true(world: World, result: Any) -> None:
    """The receipt says of each store nothing that the store does not bear out."""
    for step in result.receipt:
        held = world.version(step.store)
        if step.state in (StepState.VERIFIED, StepState.APPLIED, StepState.CONSISTENT):
            assert held == step.after, step
        if step.state in (StepState.UNTOUCHED, StepState.REFUSED):
            assert held == step.before or not step.before, step


class Blocking:
    """A vector store of which one preparation keeps the loop to itself for `seconds` of real time."""

    def __init__(self, inner: Any, seconds: float, started: trio.Event) -> None:
        self.inner = inner
        self.seconds = seconds
        self.started = started

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def prepare(self, documents: Any) -> Any:
        await self.started.wait()
        time.sleep(self.seconds)  # noqa: ASYNC251 - blocking is the fault
        return await self.inner.prepare(documents)


class InItsThread:
    """A store whose looks are answered from a thread, well in time; `block` is set when one is under way."""

    def __init__(self, inner: Any, block: trio.Event) -> None:
        self.inner = inner
        self.block = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def observe(self, doc_ids: Any) -> Any:
        if "e" in doc_ids:
            await trio.to_thread.run_sync(self._look)
        return await self.inner.observe(doc_ids)

    def _look(self) -> None:
        trio.from_thread.run_sync(self.block.set)
        time.sleep(0.1)


async def _who_is_called_hung() -> list[str]:
    world = World()
    world.drift("d", "e")
    started = trio.Event()
    events = RecordingInstrument()
    settings = config(store_call_timeout=0.3, loop_block_seconds=0.1)
    text = InItsThread(world.memory["text"], started)
    stores = attrs.evolve(world.stores, text=text, vector=Blocking(world.memory["vector"], 0.8, started), cache=None)
    async with open_repair_engine(stores, settings, instruments=[events]) as engine:
        first = engine.submit_nowait(job("d"))
        await trio.sleep(0.05)
        second = engine.submit_nowait(job("e"))
        await first.wait()
        await second.wait()
    return [event.store for event in events.events if event.kind is EventKind.CALL_OVERDUE]


def test_whoever_answered_while_the_loop_was_blocked_did_not_hang():
    """On the real clock: the text store's answer was there in time, and only taken in late; it is not called hung.

    The control takes the moment away in which what has come in is looked at.
    """
    assert "text" not in trio.run(_who_is_called_hung)
    bug = Bug("no excuse", "_batching:Batcher._give_up", "if not call.excused and", "if False and")
    with planted(bug):
        assert "text" in trio.run(_who_is_called_hung)


async def test_a_call_that_blocks_the_loop_is_named(autojump_clock, caplog):
    """Which store, which operation, and for how long; counted; the repair is as good as any."""
    world = World()
    world.drift()
    world.faulty["vector"].add(Fault(FaultKind.BLOCKED_LOOP, "write", delay=0.06))
    events = RecordingInstrument()
    settings = config(loop_block_seconds=0.05)
    async with open_repair_engine(world.stores, settings, instruments=[events]) as engine:
        result = await engine.execute_repair_job(job())
        stores = engine.statistics().stores
    assert RepairOutcome.REPAIRED is result.outcome
    _true(world, result)
    assert 1 == stores["vector"].blocked
    assert 0 == stores["text"].blocked
    (event,) = [event for event in events.events if event.kind is EventKind.LOOP_BLOCKED]
    assert event.store == "vector"
    (said,) = [record for record in caplog.records if "blocked the event loop" in record.getMessage()]
    assert said.getMessage().startswith("vector store: write blocked the event loop for 0.0")
    assert logging.ERROR == said.levelno


async def test_a_call_that_waits_without_blocking_is_not_named(autojump_clock, caplog):
    """Control: time that passes while others may run is not held against a store."""
    world = World()
    world.drift()
    world.faulty["vector"].add(Fault(FaultKind.LATENCY, "write", delay=3.0))
    async with open_repair_engine(world.stores, config(loop_block_seconds=0.05)) as engine:
        assert (await engine.execute_repair_job(job())).success
        assert [0, 0, 0] == [store.blocked for store in engine.statistics().stores.values()]
    assert "blocked" not in caplog.text


async def test_only_the_stretches_between_awaits_count():
    """Two stretches of half the limit are not one; results, exceptions and cancellation pass through unchanged."""

    async def halves(error: Exception | None) -> str:
        time.sleep(0.02)  # noqa: ASYNC251 - it is to block
        await trio.lowlevel.checkpoint()
        time.sleep(0.02)  # noqa: ASYNC251 - it is to block
        if error is not None:
            raise error
        return "done"

    stretches = Stretches(halves, None)
    assert await stretches == "done"
    assert 0.02 <= stretches.longest < 0.04
    with pytest.raises(KeyError, match="mine"):
        await Stretches(halves, KeyError("mine"))
    with trio.move_on_after(0) as scope:
        await Stretches(halves, None)
    assert scope.cancelled_caught

    async def heeds(_argument: None) -> str:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return "told to stop"

    with trio.move_on_after(0.01) as scope:
        assert await Stretches(heeds, None) == "told to stop"
    assert not scope.cancelled_caught


async def test_a_call_that_swallows_its_cancellation_is_named(autojump_clock, caplog):
    """Named once its grace is over, while it still runs; what it did late is told as unknown, never as untouched."""
    world = World()
    world.drift()
    events = RecordingInstrument()
    stores = world.stores
    deaf = Deaf(stores.vector, "write", seconds=8.0)
    object.__setattr__(stores, "vector", deaf)
    settings = config(store_call_timeout=1.0, grace=2.0, unavailable_timeout=1.0)
    async with open_repair_engine(stores, settings, instruments=[events]) as engine:
        result = await engine.execute_repair_job(job(max_retries=0, timeout=30.0))
        assert not result.success
        assert StepState.UNKNOWN is result.step("vector").state
        assert 0 == engine.statistics().stores["vector"].overstayed
        await trio.sleep_until(4.0)
        assert 1 == engine.statistics().stores["vector"].overstayed
        assert 1 == world.number("vector")
        again = await engine.execute_repair_job(job(id="2"))
        assert RepairOutcome.FAILED is again.outcome, "its document is locked while that write may still land"
        await trio.sleep_until(9.0)
        assert 2 == world.number("vector")
        assert StepState.CONSISTENT is (await engine.execute_repair_job(job(id="3"))).step("vector").state
    (event,) = [event for event in events.events if event.kind is EventKind.CALL_OVERSTAYED]
    assert ("vector", "write", 3.0) == (event.store, event.detail, event.at)
    assert "vector store: write was told to stop and goes on" in caplog.text


async def test_a_call_that_keeps_an_engine_from_closing_is_named_meanwhile(autojump_clock, caplog):
    """The operator who waits for the end of the program can read why it does not come."""
    world = World()
    world.drift()
    stores = world.stores
    object.__setattr__(stores, "vector", Deaf(stores.vector, "write", seconds=60.0))
    said_at: list[float] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "goes on" in record.getMessage():
                said_at.append(trio.current_time())

    handler = Notes()
    logging.getLogger("trio_repair").addHandler(handler)
    try:
        with trio.move_on_after(1.0):
            async with open_repair_engine(stores, config(grace=2.0, store_call_timeout=100.0)) as engine:
                await engine.execute_repair_job(job(timeout=200.0))
    finally:
        logging.getLogger("trio_repair").removeHandler(handler)
    assert ([5.0], 60.0) == (said_at, trio.current_time())


async def test_a_call_that_stops_when_told_is_not_named(autojump_clock, caplog):
    """Control: one that is given up and ends is no scandal."""
    world = World()
    world.drift()
    world.faulty["vector"].add(Fault(FaultKind.HANG, "write", times=1))
    async with open_repair_engine(world.stores, config(store_call_timeout=1.0, grace=0.0)) as engine:
        await engine.execute_repair_job(job(max_retries=0))
        await trio.sleep(30.0)
        statistics = engine.statistics().stores["vector"]
        assert (1, 0) == (statistics.abandoned, statistics.overstayed)
    assert "goes on" not in caplog.text


@pytest.mark.parametrize("operation", ["observe", "read", "prepare", "write"])
async def test_an_answer_of_the_wrong_length_is_named(autojump_clock, caplog, operation: str):
    """It belongs to nobody; the documents of the call are asked for again, alone, and only they can fail."""
    world = World()
    ids = [f"d{index}" for index in range(8)]
    world.drift(*ids)
    name = "text" if operation == "read" else "vector"
    world.faulty[name].add(Fault(FaultKind.WRONG_LENGTH, operation, doc_id="d3"))
    async with open_repair_engine(world.stores, config()) as engine:
        async with engine.run([job(doc_id, id=doc_id, max_retries=0) for doc_id in ids]) as stream:
            results = {result.doc_id: result async for result in stream}
        assert 0 < engine.statistics().stores[name].misbehaved
    # A write is read back, whatever was said of it.
    assert ({"d3"} if operation != "write" else set()) == {
        doc_id for doc_id, result in results.items() if not result.success
    }
    assert f"{name} store: broke its contract: {operation} answered" in caplog.text
    for doc_id, result in results.items():
        for step in result.receipt:
            held = world.version(step.store, doc_id)
            if step.state in (StepState.VERIFIED, StepState.APPLIED, StepState.CONSISTENT):
                assert held == step.after
            if step.state is StepState.UNTOUCHED:
                assert not step.before or held == step.before


BUGS = [
    Bug(
        "nobody looks whether calls end",
        "_batching:Batcher._watch_stopping",
        "self._timetable.at(told_at + max(self._config.grace, MIN_STOPPING), self._overstayed, call)",
        "pass",
    ),
    Bug("the loop is never watched", "_batching:Batcher._blocked_the_loop", 'self._counts["blocked"] += 1', "return"),
    Bug(
        "answers of the wrong length are dealt out",
        "_requests:contract_problem",
        "return _contract_problem(operation, requests, answers)",
        "return None",
    ),
]


@pytest.mark.parametrize(
    ("bug", "test"),
    [
        (BUGS[0], test_a_call_that_keeps_an_engine_from_closing_is_named_meanwhile),
        (BUGS[1], test_a_call_that_blocks_the_loop_is_named),
        (BUGS[2], test_an_answer_of_the_wrong_length_is_named),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
async def test_control_without_its_watchdog_each_fails(autojump_clock, caplog, bug: Bug, test: Any):
    """Control: each of the tests above fails when what it tests is taken out."""
    more = {"operation": "write"} if "length" in test.__name__ else {}
    with planted(bug), pytest.raises(BaseException) as caught:
        await test(autojump_clock, caplog, **more)
    assert not isinstance(caught.value, (KeyboardInterrupt, SystemExit))


def _breaking(world: World, name: str, operation: str, answer: Any) -> Any:
    """The stores of a world; one answers each call of an operation with what `answer` makes of the right answers."""
    inner = getattr(world.stores, name)

    class Breaking:
        def __getattr__(self, attribute: str) -> Any:
            method = getattr(inner, attribute)

            async def call(arguments: Any) -> Any:
                return answer(await method(arguments))

            return call if attribute == operation else method

    stores = world.stores
    object.__setattr__(stores, name, Breaking())
    return stores


class Unreadable(list[Any]):
    def __len__(self) -> int:
        raise RuntimeError("no length")


class Halfmade(StoreError):
    def __init__(self) -> None:
        pass


def _raise(error: BaseException) -> Any:
    raise error


WRONG: dict[str, tuple[str, Any]] = {
    "a status that is none": ("write", lambda found: [attrs.evolve(one, status="landed") for one in found]),
    "no status": ("write", lambda found: [attrs.evolve(one, status=None) for one in found]),
    "a word for an observation": ("write", lambda found: [attrs.evolve(one, observation="x") for one in found]),
    "a word for an error": ("write", lambda found: [attrs.evolve(one, observation=None, error="x") for one in found]),
    "a tuple for a version": ("observe", lambda found: [attrs.evolve(one, version=("v",)) for one in found]),
    "a list for a token": ("observe", lambda found: [attrs.evolve(one, token=[1]) for one in found]),
    "no token": ("observe", lambda found: [attrs.evolve(one, token=None) for one in found]),
    "answers without a length": ("observe", Unreadable),
    "an error without a problem": ("observe", lambda found: [Halfmade() for _ in found]),
    "an error without a problem, raised": ("observe", lambda _found: _raise(Halfmade())),
    "another library's cancellation": ("observe", lambda _found: _raise(asyncio.CancelledError())),
    "a group of base exceptions": ("write", lambda _found: _raise(BaseExceptionGroup("x", [asyncio.CancelledError()]))),
}


@pytest.mark.parametrize("what", WRONG)
async def test_an_answer_of_the_wrong_type_is_named(autojump_clock, caplog, what: str):
    """Whatever an adapter answers or raises: it is misbehaviour of that store, and the engine and its siblings live."""
    world = World(cache=False)
    world.drift("a", "b")
    world.put_all("fine")
    operation, answer = WRONG[what]
    async with open_repair_engine(_breaking(world, "vector", operation, answer), config()) as engine:
        async with engine.run([job(doc_id, id=doc_id, max_retries=0) for doc_id in "ab"]) as stream:
            results = [result async for result in stream]
        statistics = engine.statistics()
    assert statistics.stores["vector"].misbehaved > 0
    assert f"vector store: broke its contract: {operation}" in caplog.text
    assert 2 == len(results)
    for result in results:
        assert result.success == (operation == "write"), result
        assert result.success or "vector" in str(result.error)
        for step in result.receipt:
            if step.state in (StepState.VERIFIED, StepState.CONSISTENT):
                assert world.version(step.store, result.doc_id) == step.after


async def test_a_store_that_lacks_a_method_is_named(autojump_clock, caplog):
    """An adapter that was never finished fails its own calls."""
    world = World(cache=False)
    world.drift()
    inner = world.stores.vector

    class Unfinished:
        def __getattr__(self, attribute: str) -> Any:
            if attribute == "write":
                raise AttributeError(attribute)
            return getattr(inner, attribute)

    stores = world.stores
    object.__setattr__(stores, "vector", Unfinished())
    async with open_repair_engine(stores, config()) as engine:
        result = await engine.execute_repair_job(job(max_retries=0))
        assert engine.statistics().stores["vector"].misbehaved > 0
    assert RepairOutcome.FAILED is result.outcome
    assert "broke its contract: write raised AttributeError" in caplog.text


async def test_a_preparation_that_never_ends_keeps_no_other_waiting(autojump_clock):
    """An embedder that hangs on one text, and cannot be stopped: other documents are prepared beside it."""
    world = World(cache=False)
    world.drift("good", "poison")
    inner = world.stores.vector

    class Stuck:
        def __getattr__(self, attribute: str) -> Any:
            method = getattr(inner, attribute)

            async def prepare(documents: Any) -> Any:
                if any(document.doc_id == "poison" for document in documents):
                    with trio.CancelScope(shield=True):
                        await trio.sleep(1_000.0)
                return await method(documents)

            return prepare if attribute == "prepare" else method

    stores = world.stores
    object.__setattr__(stores, "vector", Stuck())
    async with open_repair_engine(stores, config(store_call_timeout=1.0, unavailable_timeout=5.0)) as engine:
        began = trio.current_time()
        poison = engine.submit_nowait(job("poison", timeout=600.0, max_retries=3))
        good = await engine.execute_repair_job(job("good", timeout=600.0, max_retries=3))
        assert RepairOutcome.REPAIRED is good.outcome
        assert trio.current_time() - began < 20.0
        result = await poison.wait()
        assert RepairOutcome.FAILED is result.outcome
        assert "prepare" in str(result.error)


async def test_when_too_many_preparations_hang_no_more_are_begun(autojump_clock):
    """What waits for such an embedder is told so at once, and nothing piles up in it."""
    world = World(cache=False)
    ids = [f"d{index}" for index in range(12)]
    world.drift(*ids)
    under_way = 0

    class Stuck:
        def __getattr__(self, attribute: str) -> Any:
            method = getattr(world.faulty["vector"], attribute)

            async def prepare(documents: Any) -> Any:
                nonlocal under_way
                under_way += 1
                with trio.CancelScope(shield=True):
                    await trio.sleep(500.0)
                return await method(documents)

            return prepare if attribute == "prepare" else method

    stores = world.stores
    object.__setattr__(stores, "vector", Stuck())
    settings = config(store_call_timeout=1.0, unavailable_timeout=5.0, max_concurrent_jobs=1)
    async with open_repair_engine(stores, settings) as engine:
        async with engine.run([job(doc_id, id=doc_id, max_retries=0) for doc_id in ids]) as stream:
            errors = [str(result.error) async for result in stream]
    assert 8 == under_way
    assert 4 == sum("8 calls of prepare were given up and never ended" in error for error in errors)
