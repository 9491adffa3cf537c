"""What instruments are told, and what becomes of one that raises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import trio
from engine_world import World, config, job

from trio_repair import (
    CallEvent,
    EngineEvent,
    EventKind,
    Prepared,
    Removal,
    RepairOutcome,
    RepairPhase,
    RepairResult,
    Write,
    open_repair_engine,
)
from trio_repair import _execution as execution
from trio_repair import _telling as telling_module
from trio_repair._batching import Batcher
from trio_repair._events import DETAILS
from trio_repair._telling import Telling
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import Fault, FaultKind, RecordingInstrument, make_document


async def test_an_event_carries_all_that_was_told_and_the_time_since_opening(autojump_clock):
    """Each field arrives under its own name; what was not told is None; seconds count from the opening."""
    await trio.sleep(5.0)
    listener = RecordingInstrument()
    telling = Telling([listener])
    await trio.sleep(2.5)
    told = {
        "doc_id": "d",
        "job": job("d"),
        "store": "text",
        "token": "t",
        "version": make_document("d", "text", number=1).version,
        "attempt": 3,
        "limit": 4,
        "timeout": 1.5,
        "detail": "why",
        "result": RepairResult(doc_id="d", job_id="j", outcome=RepairOutcome.FAILED),
    }
    telling.emit(EventKind.SETTLED, **told)
    telling.emit(EventKind.OVERDUE)
    full, empty = (attrs.asdict(event, recurse=False) for event in listener.events)
    assert {"kind": EventKind.SETTLED, "at": 2.5, **told} == full
    assert {"kind": EventKind.OVERDUE, "at": 2.5, **dict.fromkeys(told)} == empty


async def test_an_instrument_that_raises_is_logged_and_dropped(caplog):
    """It hears nothing more, also if it raised in an event of its own making; the others hear everything."""

    class Broken:
        heard = 0

        def __repr__(self) -> str:
            return "<Broken>"

        def on_event(self, event: EngineEvent) -> None:
            self.heard += 1
            if event.kind is EventKind.OVERDUE:
                telling.emit(EventKind.RETRY)
            raise ValueError("broken")

    broken, listener = Broken(), RecordingInstrument()
    telling = Telling([broken, listener])
    assert telling
    telling.emit(EventKind.OVERDUE)
    telling.emit(EventKind.LOCKED)
    assert 2 == broken.heard
    assert {EventKind.OVERDUE, EventKind.RETRY, EventKind.LOCKED} == {event.kind for event in listener.events}
    (record,) = caplog.records
    assert ("trio_repair", "<Broken> raised and is dropped") == (record.name, record.getMessage())
    assert record.exc_info is not None


async def test_without_instruments_nothing_is_told():
    """The engine asks first, and need not."""
    telling = Telling([])
    assert not telling
    telling.emit(EventKind.OVERDUE)


class Detailed(RecordingInstrument):
    """Asks for everything."""

    also_hears = DETAILS


async def test_phases_and_calls_go_to_those_who_ask(autojump_clock):
    """In the order of a repair; a call is told in the task that makes it, with its documents and its time."""
    world = World({"vector": {"write": 0.25}})
    world.drift("a", "b")
    world.put("text", "b", number=1)
    plain, detailed = RecordingInstrument(), Detailed()
    tasks: dict[int, trio.lowlevel.Task] = {}

    class Where:
        also_hears = frozenset({EventKind.CALL_SENT, EventKind.CALL_ENDED})

        def on_event(self, event: EngineEvent) -> None:
            if isinstance(event, CallEvent):
                assert trio.lowlevel.current_task() is tasks.setdefault(event.call, trio.lowlevel.current_task())

    async with open_repair_engine(world.stores, instruments=[plain, detailed, Where()]) as engine:
        async with engine.run([job("a"), job("b")]) as results:
            assert 2 == len([result async for result in results])
        statistics = engine.statistics()
    assert plain.events == [event for event in detailed.events if event.kind not in DETAILS]
    phases = [event.detail for event in detailed.of(EventKind.PHASE) if event.doc_id == "a"]
    assert [phase.value for phase in RepairPhase] == list(dict.fromkeys(phases))
    sent, ended = detailed.of(EventKind.CALL_SENT), detailed.of(EventKind.CALL_ENDED)
    assert len(sent) == len(ended) == len(tasks) == sum(of.calls for of in statistics.stores.values())
    assert [*range(1, len(sent) + 1)] == [event.call for event in sent]
    writes = [event for event in ended if (event.store, event.operation) == ("vector", "write")]
    assert [(("a",), 0.25, None)] == [(event.doc_ids, event.seconds, event.detail) for event in writes]
    assert {("a", "b"), ("b", "a")} & {event.doc_ids for event in sent if event.operation == "observe"}


@pytest.mark.parametrize(
    ("fault", "detail"),
    [
        (Fault(FaultKind.UNAVAILABLE, "observe", times=1), "raised StoreUnavailable"),
        (Fault(FaultKind.LATENCY, "observe", times=1, delay=50.0), "given up"),
    ],
)
async def test_how_a_call_ended(autojump_clock, fault: Fault, detail: str):
    """By the type of what was raised; a call that is cancelled was given up."""
    world = World()
    world.drift()
    world.faulty["vector"].add(fault)
    detailed = Detailed()
    async with open_repair_engine(world.stores, config(store_call_timeout=1.0), instruments=[detailed]) as engine:
        await engine.execute_repair_job(job(max_retries=2))
    assert detail in {event.detail for event in detailed.of(EventKind.CALL_ENDED)}


class Slow:
    """Answers each call with its name and what was asked, a second later."""

    traits = MemoryStore().traits
    other = "what only this one has"

    def __getattr__(self, name: str) -> Any:
        if name not in {"observe", "read", "prepare", "write", "remove"}:
            raise AttributeError(name)

        async def answer(asked: Sequence[Any]) -> Any:
            await trio.sleep(1.0)
            return [(name, one) for one in asked]

        return answer


PREPARED = Prepared(document=make_document("d", "text"))
CALLS: dict[str, Any] = {
    "observe": "d",
    "read": "d",
    "prepare": PREPARED.document,
    "write": Write(prepared=PREPARED, token="t"),
    "remove": Removal(doc_id="d", token="t"),
}


@pytest.mark.parametrize("hears", [EventKind.CALL_SENT, EventKind.CALL_ENDED])
@pytest.mark.parametrize("operation", CALLS)
async def test_what_is_told_of_a_call(autojump_clock, operation: str, hears: EventKind):
    """Whichever of the two is heard: store, operation, documents, and when; and the answer is the store's."""

    class Hears(RecordingInstrument):
        also_hears = frozenset({hears})

    await trio.sleep(5.0)
    listener = Hears()
    told: Any = Telling([listener]).listening("vector", Slow())  # type: ignore[arg-type] # all of a store that is called
    await trio.sleep(2.5)
    asked = CALLS[operation]
    assert [(operation, asked)] == await getattr(told, operation)([asked])
    assert (Slow.traits, Slow.other) == (told.traits, told.other)
    (event,) = listener.events
    assert isinstance(event, CallEvent)
    assert (hears, "vector", operation, ("d",)) == (event.kind, event.store, event.operation, event.doc_ids)
    sent = hears is EventKind.CALL_SENT
    assert ((2.5, None) if sent else (3.5, 1.0)) == (event.at, event.seconds)


async def test_when_a_phase_began(autojump_clock):
    """In seconds since the opening."""

    class Hears(RecordingInstrument):
        also_hears = frozenset({EventKind.PHASE})

    await trio.sleep(5.0)
    listener = Hears()
    tell = Telling([listener]).phase_teller
    await trio.sleep(2.5)
    assert tell is not None
    tell("d", RepairPhase.WRITE)
    assert [(EventKind.PHASE, 2.5, "d", "write")] == [
        (event.kind, event.at, event.doc_id, event.detail) for event in listener.events
    ]


async def test_a_dropped_instrument_hears_no_details(autojump_clock, caplog):
    """It raised at a call, and was told of nothing after it; the call went on."""

    class Broken(Detailed):
        def on_event(self, event: EngineEvent) -> None:
            super().on_event(event)
            if event.kind is EventKind.CALL_SENT:
                raise ValueError("broken")

    world = World()
    world.drift()
    broken = Broken()
    async with open_repair_engine(world.stores, instruments=[broken]) as engine:
        assert (await engine.execute_repair_job(job())).success
    assert EventKind.CALL_SENT is broken.kinds[-1]
    assert 1 == broken.kinds.count(EventKind.CALL_SENT)
    assert 1 == len(caplog.records)


def made(monkeypatch: pytest.MonkeyPatch, count: Counter[str]) -> None:
    """Count what exists only for instruments: every event, told store, told progress, and round of telling."""

    def counted(name: str, what: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **given: Any) -> Any:
            count[name] += 1
            return what(*args, **given)

        return make

    for module, name in [
        (telling_module, "EngineEvent"),
        (telling_module, "CallEvent"),
        (telling_module, "_ToldStore"),
        (execution, "ToldProgress"),
        (Telling, "emit"),
        (Telling, "_tell"),
        (Telling, "_tell_phase"),
        (Telling, "tell_call"),
    ]:
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))


async def test_what_nobody_hears_costs_nothing(autojump_clock, monkeypatch):
    """Without instruments nothing is made or called; with one that asks for no details, nothing of them.

    The control: each is made for an instrument that does ask.
    """
    stores: list[object] = []
    begin = Batcher.__init__

    def noting(self: Batcher, name: str, store: Any, *args: Any, **given: Any) -> None:
        stores.append(store)
        begin(self, name, store, *args, **given)

    monkeypatch.setattr(Batcher, "__init__", noting)
    counts: list[Counter[str]] = []
    for instruments in ([], [RecordingInstrument()], [Detailed()]):
        with monkeypatch.context() as patch:
            count: Counter[str] = Counter()
            made(patch, count)
            world = World()
            world.drift("a", "b")
            stores.clear()
            async with open_repair_engine(world.stores, instruments=instruments) as engine:
                async with engine.run([job("a"), job("b")]) as results:
                    assert [True, True] == [result.success async for result in results]
            counts.append(count)
            assert bool(count["_ToldStore"]) == (stores != list(world.faulty.values()))
    off, plain, detailed = counts
    assert not off
    assert {"EngineEvent", "emit", "_tell"} == set(plain)
    assert {
        "EngineEvent",
        "emit",
        "_tell",
        "CallEvent",
        "_ToldStore",
        "ToldProgress",
        "_tell_phase",
        "tell_call",
    } == set(detailed)
