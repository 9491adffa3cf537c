"""assert_trace: what real engines leave behind holds, and a trace that is edited to break a promise is rejected."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from typing import Any

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
from trio_repair.testing._trace import TraceChecker

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
    return [*events[:index], attrs.evolve(events[index], **changes), *events[index + 1 :]]  # type: ignore[arg-type]  # fields of any kind


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
    return _changed(events, index, result=attrs.evolve(result, **changes))  # type: ignore[arg-type]  # fields of any kind


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


def _second_repair_beside(attempt: int = 2) -> Events:
    started = _index(ONE, K.STARTED)
    other = attrs.evolve(job(id="two"), doc_id="d")
    accepted = attrs.evolve(ONE[0], job=other)
    settled = attrs.evolve(ONE[-1], job=other, result=attrs.evolve(ONE[-1].result, job_id="two"))  # type: ignore[arg-type]  # a settled event has one
    again = attrs.evolve(ONE[started], job=other, attempt=attempt)
    return [*ONE[: started + 1], accepted, again, *ONE[started + 1 :], settled]


def _joins_too_late() -> Events:
    """It was accepted in time, and is told of the attempt when that has looked already."""
    late = _second_repair_beside(attempt=1)
    accepted, started = late[2], late[3]
    return [accepted, *ONE[:3], started, *ONE[3:], late[-1]]


def _other(doc_id: str, attempt: int) -> Events:
    """A repair of another document begins and ends."""
    other = job(doc_id, id=f"of {doc_id}")
    begun = [
        EngineEvent(kind=K.ACCEPTED, at=0.0, doc_id=doc_id, job=other),
        EngineEvent(kind=K.STARTED, at=0.0, doc_id=doc_id, job=other, attempt=attempt, limit=9, timeout=30.0),
    ]
    return [*begun, EngineEvent(kind=K.ENDED, at=0.0, doc_id=doc_id, attempt=attempt)]


def _one_number_for_two() -> Events:
    started = _index(ONE, K.STARTED)
    return [*ONE[: started + 1], *_other("x", 1), *ONE[started + 1 :]]


def _of_another_document() -> Events:
    return [ONE[0], *(attrs.evolve(event, doc_id="x") for event in ONE[1:-1]), ONE[-1]]


def _moved(kind: EventKind, before: EventKind) -> Events:
    """ONE, with one event told before another."""
    rest = _without(ONE, _index(ONE, kind))
    place = _index(rest, before)
    return [*rest[:place], attrs.evolve(ONE[_index(ONE, kind)], at=rest[place].at), *rest[place:]]


def _withdrawn_while_it_ran() -> Events:
    """Its only job is withdrawn, and the repair goes on until it has ended."""
    events = _moved(K.SETTLED, K.ENDED)
    return _result(events, outcome=RepairOutcome.CANCELLED, error="Repair was cancelled")


def _older_token() -> Events:
    first = _index(ONE, K.OBSERVED, store="vector")
    again = attrs.evolve(ONE[first], token="another", version=DocumentVersion(number=0, digest="00"))
    return [*ONE[: first + 1], again, *ONE[first + 1 :]]


def _shows_what_was_displaced() -> Events:
    sent = _index(ONE, K.WRITE_SENT)
    second = _index(ONE[sent:], K.OBSERVED, store="vector") + sent
    return _changed(ONE, second, token=ONE[sent].token)


def _displaced_twice() -> Events:
    sent = _index(ONE, K.WRITE_SENT)
    again = [attrs.evolve(event, at=ONE[sent + 1].at) for event in ONE[sent : sent + 2]]
    return [*ONE[: sent + 2], *again, *ONE[sent + 2 :]]


def _displaced_by_two_repairs() -> Events:
    later = [attrs.evolve(event, at=event.at + 5.0) for event in ONE]
    return [*ONE, *(attrs.evolve(event, attempt=2) if event.attempt else event for event in later)]


def _no_verdict_and_no_lock() -> Events:
    """A write gets no verdict and its attempt ends; then the next repair of the document starts."""
    sent = _index(ONE, K.WRITE_SENT)
    stopped = [*ONE[: sent + 1], ONE[_index(ONE, K.ENDED)]]
    other = job(id="two", timeout=5.0)
    second = [attrs.evolve(ONE[0], job=other, at=1.0), attrs.evolve(ONE[1], job=other, attempt=2, at=1.0)]
    return [*stopped, *second]


def _removed_without_a_tombstone() -> Events:
    one = [attrs.evolve(e, job=job(id="one", strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH)) if e.job else e for e in ONE]
    return _changed(one, _index(one, K.WRITE_SENT), version=None)


def _told_overdue(at: float) -> Events:
    late = _settled_late()
    told = attrs.evolve(late[_index(late, K.STARTED)], kind=K.OVERDUE, at=at)
    place = next(index for index, event in enumerate(late) if event.at > at)
    return [*late[:place], told, *late[place:]]


EDITED: list[tuple[str, str, Callable[[], Events]]] = [
    ("I1", "a write names a state that nobody saw", _unseen_token),
    ("I1", "MOST_RECENT lowers a number", _lower_number),
    ("I1", "a write names a state after which another one was seen", _older_token),
    ("I1", "a store shows again what was displaced", _shows_what_was_displaced),
    ("I1", "two writes displace one state", _displaced_twice),
    ("I1", "two repairs displace one state", _displaced_by_two_repairs),
    ("I3", "a version is put over its tombstone", _over_a_tombstone),
    ("I3", "a copy goes without a tombstone", _removed_without_a_tombstone),
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
    ("I9", "a job is repaired as another document", _of_another_document),
    ("I9", "a job settles before its attempt has ended", lambda: _moved(K.SETTLED, K.ENDED)),
    ("I9", "an attempt goes on for nobody", _withdrawn_while_it_ran),
    ("I12", "two repairs of a document run", _second_repair_beside),
    ("I12", "two repairs of a document run under one number", lambda: _second_repair_beside(attempt=1)),
    ("I12", "a job joins what has begun to look", _joins_too_late),
    ("I12", "a write without a verdict locks nothing", _no_verdict_and_no_lock),
    ("I12", "a repair starts while a store still works", _locked_while_started),
    ("I12", "a write is sent when the repair has ended", lambda: [*ONE[:-1], ONE[_index(ONE, K.WRITE_SENT)], ONE[-1]]),
    ("I13", "more run than the limit allows", lambda: _changed(ONE, _index(ONE, K.STARTED), limit=0)),
    ("I13", "two documents have one attempt", _one_number_for_two),
    ("I15", "a repair runs past its timeout", _settled_late),
    ("I15", "a repair is reported overdue before its timeout", lambda: _told_overdue(0.5)),
    ("I15", "a repair is reported overdue long after its timeout", lambda: _told_overdue(30.5)),
    ("I15", "a repair outlives the engine", lambda: _withdrawn_while_it_ran()[:-1]),
    ("I15", "time is not a number", lambda: [attrs.evolve(event, at=math.nan) for event in ONE]),
    ("I15", "time runs backwards", lambda: [attrs.evolve(event, at=2.0 - event.at) for event in ONE]),
    ("I15", "time is before the opening", lambda: [attrs.evolve(event, at=event.at - 5.0) for event in ONE]),
    ("I12", "what does not run is locked", lambda: [*ONE, attrs.evolve(LOCKED, at=1.0)]),
    ("I15", "a lock outlives the engine", lambda: [*ONE[:-1], attrs.evolve(LOCKED, at=1.0), ONE[-1]]),
]


@pytest.mark.parametrize(("invariant", "what", "edit"), EDITED, ids=[f"{number}-{what}" for number, what, _ in EDITED])
def test_control_an_edited_trace_is_rejected(invariant: str, what: str, edit: Callable[[], Events]) -> None:
    """Each promise has a trace that breaks it, and is rejected under its number."""
    with pytest.raises(TraceViolation) as caught:
        assert_trace(edit())
    assert invariant == caught.value.invariant


def test_an_overdue_repair_that_was_reported_is_no_violation() -> None:
    """OVERDUE owns up to it: the same late end, told of in time, is accepted. Control: the edits above."""
    assert_trace(_told_overdue(30.05))


def test_attempts_that_share_a_number_are_no_crash_in_a_part_of_a_log() -> None:
    """Two documents, one number, both ended: a violation, also where less is known."""
    with pytest.raises(TraceViolation, match="I13"):
        assert_trace(_one_number_for_two(), complete=False)


def test_a_violation_names_every_document_that_it_is_about() -> None:
    """Of one repair too many, those that fill the limit as well."""
    started = _index(ONE, K.STARTED)
    beside = _changed(_other("x", 2), 1, limit=1)
    with pytest.raises(TraceViolation) as caught:
        assert_trace([*ONE[: started + 1], *beside, *ONE[started + 1 :]])
    assert ("I13", ("d", "x")) == (caught.value.invariant, caught.value.doc_ids)


def test_a_write_that_was_taken_back_from_a_broken_call_needs_no_lock() -> None:
    """Two writes go out in one call, which breaks; they are to be sent again, and nobody waits for them by then."""
    company = _no_verdict_and_no_lock()
    sent = _index(company, K.WRITE_SENT)
    beside = [*_other("x", 2)[:2], attrs.evolve(company[2], doc_id="x"), attrs.evolve(company[3], doc_id="x")]
    other = attrs.evolve(company[sent], doc_id="x")
    trace = [*company[:sent], *beside, company[sent], other, *company[sent + 1 :]]
    trace[-1] = attrs.evolve(trace[-1], attempt=3)
    assert_trace(trace, complete=False)
    with pytest.raises(TraceViolation, match="I12"):
        assert_trace([event for event in trace if event is not other], complete=False)


def test_memory_is_bounded_by_the_work_in_hand() -> None:
    """A trace of many documents that are done leaves nothing behind but a few displaced states."""
    checker = TraceChecker()
    for number in range(6000):
        doc_id = f"d{number}"
        for event in ONE:
            changes: dict[str, Any] = {"doc_id": doc_id, "at": event.at + number}
            if event.attempt is not None:
                changes["attempt"] = number + 1
            if event.job is not None:
                changes["job"] = attrs.evolve(event.job, doc_id=doc_id)
            if event.result is not None:
                changes["result"] = attrs.evolve(event.result, doc_id=doc_id)
            checker.see(attrs.evolve(event, **changes))
    checker.end()
    sizes = {name: len(held) for name, held in vars(checker).items() if isinstance(held, dict)}
    assert {"_jobs": 0, "_documents": 0, "_repairs": 0, "_running": 0} == {
        name: size for name, size in sizes.items() if name != "_steps"
    }
    assert 4096 == len(checker._displaced._tokens)


def test_a_store_that_was_put_back_may_show_what_was_displaced() -> None:
    """The simulation says so when a crash takes back what was confirmed. Control: the same trace, without that."""
    trace = _displaced_by_two_repairs()
    checker = TraceChecker()
    for event in trace[: len(ONE)]:
        checker.see(event)
    for store in ("vector", "cache"):
        checker.may_go_back(store)
    for event in trace[len(ONE) :]:
        checker.see(event)
    checker.end()


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
