"""assert_trace: what real engines leave behind holds, and a trace that is edited to break a promise is rejected."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import attrs
import pytest
import trio
from engine_world import Stubborn, World, config, job
from hypothesis import HealthCheck, given, settings
from properties.laws import wild, with_plans
from properties.play import play
from properties.recording import Happened
from properties.scenario import Scenario
from trio.testing import MockClock

from trio_repair import (
    DocumentVersion,
    EngineEvent,
    EventKind,
    InvalidValue,
    RepairOutcome,
    StepState,
    Stores,
    SyncStrategy,
    open_repair_engine,
)
from trio_repair.instrumentation import JsonLinesInstrument, read_events
from trio_repair.testing import Fault, FaultKind, RecordingInstrument, TraceViolation, assert_trace

Events = list[EngineEvent]
K = EventKind


def _record(main: Callable[[RecordingInstrument], object]) -> Events:
    instrument = RecordingInstrument()
    trio.run(main, instrument, clock=MockClock(autojump_threshold=0))
    return instrument.events


async def _one_repair(instrument: RecordingInstrument) -> None:
    world = World({"vector": {"write": 1.0}})
    world.drift()
    async with open_repair_engine(world.stores, config(), instruments=[instrument]) as engine:
        await engine.execute_repair_job(job(id="one", strategy=SyncStrategy.MOST_RECENT))


async def _busy(instrument: RecordingInstrument) -> None:
    """Retries, a refused fence, a resolution, a tombstone, jobs that share, a withdrawal, a stubborn store."""
    world = World({"vector": {"write": 0.5}})
    world.drift("a", "b", "c", "e")
    world.put_all("t", number=3)
    world.memory["text"].delete_nowait("t", number=4)
    world.faulty["vector"].add(Fault(FaultKind.CONCURRENT_WRITE, "write", times=1, doc_id="a"))
    world.faulty["text"].add(Fault(FaultKind.UNAVAILABLE, "observe", times=1))
    stubborn = Stubborn(world.faulty["vector"], "write", doc_id="c")
    stores = Stores(text=world.faulty["text"], vector=stubborn, cache=world.faulty["cache"])
    async with open_repair_engine(
        stores, config(store_call_timeout=2.0, max_concurrent_jobs=2), instruments=[instrument], rng=random.Random(1)
    ) as engine:
        for name in "abcet":
            engine.submit_nowait(job(name, id=name, strategy=SyncStrategy.MOST_RECENT, timeout=20.0))
        engine.submit_nowait(job("e", id="companion", strategy=SyncStrategy.MOST_RECENT, timeout=20.0))
        withdrawn = engine.submit_nowait(job("b", id="withdrawn"))
        engine.submit_nowait(job("c", id="behind", strategy=SyncStrategy.VECTOR_SOURCE_OF_TRUTH))
        await trio.sleep(0.1)
        withdrawn.cancel()
        await trio.sleep(10.0)
        stubborn.release.set()
        await engine.resolve("t", "vector", job_id="person")
        await engine.drain()


LOCKED = EngineEvent(kind=K.LOCKED, at=0.0, doc_id="d", store="text")
ONE = _record(_one_repair)
BUSY = _record(_busy)


def test_what_engines_leave_behind_holds() -> None:
    """A plain repair, and one run with a bit of everything; each of the events that are judged is there."""
    assert_trace(ONE)
    assert_trace(BUSY)
    kinds = {event.kind for event in BUSY}
    assert {K.ACCEPTED, K.STARTED, K.OBSERVED, K.WRITE_SENT, K.RETRY, K.REOBSERVED, K.LOCKED, K.UNLOCKED} <= kinds


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(scenario=wild() | with_plans())
def test_every_drawn_play_leaves_a_trace_that_holds(scenario: Scenario) -> None:
    """Faults, storms, limits, plans and closings of all kinds: no true trace is rejected."""
    trace = play(scenario)
    late = max(scenario.stubborn.values(), default=0.0)
    assert_trace([entry.event for entry in trace.first() if isinstance(entry, Happened)], tolerance=late)


def test_any_window_of_a_true_trace_holds_as_a_part() -> None:
    """Logs are rotated: with `complete=False` neither a late beginning nor an early end is held against them."""
    for begin in range(len(BUSY)):
        assert_trace(BUSY[begin:], complete=False)
        assert_trace(BUSY[:begin], complete=False)


# Controls: a true trace with one thing changed


def _index(events: Events, kind: EventKind, **wanted: object) -> int:
    for index, event in enumerate(events):
        if event.kind is kind and all(getattr(event, name) == value for name, value in wanted.items()):
            return index
    raise AssertionError(f"no {kind} with {wanted}")


def _changed(events: Events, index: int, **changes: object) -> Events:
    return [*events[:index], attrs.evolve(events[index], **changes), *events[index + 1 :]]  # type: ignore[arg-type]


def _without(events: Events, index: int) -> Events:
    return [*events[:index], *events[index + 1 :]]


def _result(events: Events, state: StepState | None = None, **changes: object) -> Events:
    """The result of the first job, changed."""
    index = _index(events, K.SETTLED)
    result = events[index].result
    assert result is not None
    if state is not None:
        receipt = tuple(attrs.evolve(step, state=state) if step.store == "vector" else step for step in result.receipt)
        changes["receipt"] = receipt
    return _changed(events, index, result=attrs.evolve(result, **changes))  # type: ignore[arg-type]


def _unseen_token() -> Events:
    return _changed(ONE, _index(ONE, K.WRITE_SENT), token="somebody else's")


def _lower_number() -> Events:
    return _changed(ONE, _index(ONE, K.WRITE_SENT), version=DocumentVersion(number=0, digest="00"))


def _over_a_tombstone() -> Events:
    grave = DocumentVersion(number=2, deleted=True)
    return _changed(ONE, _index(ONE, K.OBSERVED, store="vector"), version=grave)


def _beside_a_tombstone() -> Events:
    return _changed(ONE, _index(ONE, K.OBSERVED, store="text"), version=DocumentVersion(number=9, deleted=True))


def _not_read_back() -> Events:
    second = _index(ONE[_index(ONE, K.WRITE_SENT) :], K.OBSERVED, store="vector") + _index(ONE, K.WRITE_SENT)
    return _without(ONE, second)


def _read_back_as_something_else() -> Events:
    sent = _index(ONE, K.WRITE_SENT)
    second = _index(ONE[sent:], K.OBSERVED, store="vector") + sent
    return _changed(ONE, second, version=DocumentVersion(number=2, digest="00"))


def _settled_late() -> Events:
    ended = _index(ONE, K.ENDED)
    return [*ONE[:ended], *(attrs.evolve(event, at=event.at + 31.0) for event in ONE[ended:])]


def _locked_while_started() -> Events:
    return [ONE[0], LOCKED, *ONE[1:]]


def _second_repair_beside() -> Events:
    started = _index(ONE, K.STARTED)
    other = attrs.evolve(job(id="two"), doc_id="d")
    accepted = attrs.evolve(ONE[0], job=other)
    return [*ONE[: started + 1], accepted, attrs.evolve(ONE[started], job=other, attempt=2), *ONE[started + 1 :]]


EDITED: list[tuple[str, str, Callable[[], Events]]] = [
    ("I1", "a write names a state that nobody saw", _unseen_token),
    ("I1", "MOST_RECENT lowers a number", _lower_number),
    ("I3", "a version is put over its tombstone", _over_a_tombstone),
    ("I3", "a version is put beside its tombstone", _beside_a_tombstone),
    ("I8", "success without a look after the write", _not_read_back),
    ("I8", "success, and the look saw something else", _read_back_as_something_else),
    ("I8", "a store that was written is said to be untouched", lambda: _result(ONE, StepState.UNTOUCHED)),
    ("I8", "a write is claimed that was never sent", lambda: _without(ONE, _index(ONE, K.WRITE_SENT, store="cache"))),
    ("I8", "success, and a step says otherwise", lambda: _result(ONE, StepState.UNKNOWN)),
    ("I8", "all was read back equal, and it is called a failure", lambda: _result(ONE, outcome=RepairOutcome.FAILED)),
    ("I9", "a job settles twice", lambda: [*ONE, ONE[-1]]),
    ("I9", "a job never settles", lambda: ONE[:-1]),
    ("I9", "a job is accepted twice", lambda: [ONE[0], *ONE]),
    ("I9", "a job settles with the result of another", lambda: _result(ONE, job_id="other")),
    ("I12", "two repairs of a document run", _second_repair_beside),
    ("I12", "a repair starts while a store still works", _locked_while_started),
    ("I12", "a write is sent when the repair has ended", lambda: [*ONE[:-1], ONE[_index(ONE, K.WRITE_SENT)], ONE[-1]]),
    ("I13", "more run than the limit allows", lambda: _changed(ONE, _index(ONE, K.STARTED), limit=0)),
    ("I15", "a repair runs past its timeout", _settled_late),
    ("I15", "a repair outlives the engine", lambda: _without(ONE, _index(ONE, K.ENDED))),
    ("I15", "a lock outlives the engine", lambda: [*ONE, LOCKED]),
]


@pytest.mark.parametrize(("invariant", "what", "edit"), EDITED, ids=[f"{number}-{what}" for number, what, _ in EDITED])
def test_control_an_edited_trace_is_rejected(invariant: str, what: str, edit: Callable[[], Events]) -> None:
    """Each promise has a trace that breaks it, and is rejected under its number."""
    with pytest.raises(TraceViolation) as caught:
        assert_trace(edit())
    assert invariant == caught.value.invariant


def test_an_overdue_repair_that_was_reported_is_no_violation() -> None:
    """OVERDUE owns up to it: the same late end, told of, is accepted. Control: the edit above, without it."""
    late = _settled_late()
    started = late[_index(late, K.STARTED)]
    told = attrs.evolve(started, kind=K.OVERDUE, at=30.5)
    assert_trace([*late[: _index(late, K.ENDED)], told, *late[_index(late, K.ENDED) :]])


# JSON lines


def test_events_come_back_from_json_lines_as_they_were() -> None:
    """Writer and reader agree on every field of every event, and so a log can be judged later."""
    stream = io.StringIO()
    instrument = JsonLinesInstrument(stream)
    for event in BUSY:
        instrument.on_event(event)
    stream.seek(0)
    events = list(read_events(stream))
    assert events == BUSY
    assert_trace(events)


@pytest.mark.parametrize("line", ["nonsense", "{}", '{"kind": "unheard-of", "at": 0}', "[]", "3"])
def test_a_line_that_is_no_event_is_named(line: str) -> None:
    """By its number, so that it can be found in a long log."""
    with pytest.raises(InvalidValue, match="line 2"):
        list(read_events(["\n", line]))
