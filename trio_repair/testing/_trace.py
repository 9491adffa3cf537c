"""Check a recorded stream of engine events: what can be known from a log alone, in one pass.

The stores are not asked. What they really held, an engine can be wrong about only where its events contradict each
other; `trio_repair.testing.simulation` looks into the stores as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from trio_repair import (
    DocumentVersion,
    EngineEvent,
    EventKind,
    RepairJob,
    RepairOutcome,
    RepairResult,
    StepState,
    SyncStrategy,
)

_CRITICAL: Final = ("text", "vector")
_READ_BACK: Final = frozenset({StepState.CONSISTENT, StepState.VERIFIED})
_EPSILON: Final = 1e-6
"""Seconds. Times of events are differences of floats."""


class TraceViolation(AssertionError):
    """A trace that no engine that keeps its promises can leave.

    Attributes:
        invariant: "I1", "I3", "I8", "I9", "I12", "I13" or "I15".
        event: the event at which it shows; None at the end of the trace.
        detail: what is wrong, without document text.
    """

    def __init__(self, invariant: str, event: EngineEvent | None, detail: str) -> None:
        where = "at the end" if event is None else f"at {event.at:.6f} s, {event.kind.value}"
        super().__init__(f"{invariant}, {where}: {detail}")
        self.invariant = invariant
        self.event = event
        self.detail = detail


@attrs.define
class _Look:
    at: int
    """Where in the trace."""
    token: str
    version: DocumentVersion | None


@attrs.define
class _Attempt:
    number: int
    started_at: float
    timeout: float
    known_overdue: bool = False


@attrs.define
class _Repair:
    """What jobs that joined each other share, through all its attempts."""

    strategy: SyncStrategy | None
    """None: a person's choice, which may override anything."""
    seen_whole: bool
    """Its jobs were accepted within the trace, so nothing that it did is missing."""
    looks: dict[str, dict[str, DocumentVersion | None]] = attrs.field(factory=dict)
    """By store: what each token that the last attempt saw stands for."""
    last: dict[str, _Look] = attrs.field(factory=dict)
    """By store: the last look of the last attempt."""
    sent: dict[str, int] = attrs.field(factory=dict)
    """By store: where in the trace the last attempt last sent a write."""
    ever_sent: dict[str, None] = attrs.field(factory=dict)
    """The stores to which any attempt has sent a write."""


@attrs.define
class _Document:
    """What is known of a document that runs or is locked."""

    repair: _Repair
    attempt: _Attempt | None = None
    """The one that is running."""
    locks: list[str] = attrs.field(factory=list)


class TraceChecker:
    """The state of a check. Feed it each event with `see`, in order, and say `end` when the engine has closed."""

    def __init__(self, *, complete: bool = True, tolerance: float = 0.1) -> None:
        self._complete = complete
        self._tolerance = tolerance
        self._count = 0
        self._jobs: dict[str, RepairJob] = {}
        """Accepted and not settled."""
        self._documents: dict[str, _Document] = {}
        self._repairs: dict[str, _Repair] = {}
        """By job that has started and is not settled."""
        self._running: dict[int, str] = {}
        """By number of attempt: the document."""
        self._steps: dict[EventKind, Callable[[EngineEvent], None]] = {
            EventKind.ACCEPTED: self._accepted,
            EventKind.STARTED: self._started,
            EventKind.OBSERVED: self._observed,
            EventKind.ENDED: self._ended,
            EventKind.LOCKED: self._locked,
            EventKind.UNLOCKED: self._unlocked,
            EventKind.WRITE_SENT: self._write_sent,
            EventKind.OVERDUE: self._overdue,
            EventKind.SETTLED: self._settled,
        }

    def see(self, event: EngineEvent) -> None:
        """Take in the next event.

        Raises:
            TraceViolation: it contradicts those before it.
        """
        self._count += 1
        step = self._steps.get(event.kind)
        if step is not None:
            step(event)

    def end(self) -> None:
        """The engine has closed.

        Raises:
            TraceViolation: something is left that should have ended.
        """
        if not self._complete:
            return
        for job_id in self._jobs:
            raise TraceViolation("I9", None, f"job {job_id!r} was accepted and never settled")
        for doc_id in self._running.values():
            raise TraceViolation("I15", None, f"the repair of {doc_id!r} outlived the engine")
        for doc_id, document in self._documents.items():
            if document.locks:
                raise TraceViolation("I15", None, f"document {doc_id!r} is still locked by {document.locks[0]}")

    def _running_repair(self, event: EngineEvent) -> _Repair | None:
        document = self._documents.get(str(event.doc_id))
        if document is not None and document.attempt is not None:
            return document.repair
        if self._complete:
            raise TraceViolation("I12", event, f"{event.doc_id!r} is dealt with although no repair of it runs")
        return None

    def _forget_if_idle(self, doc_id: str, document: _Document) -> None:
        if document.attempt is None and not document.locks:
            del self._documents[doc_id]

    def _accepted(self, event: EngineEvent) -> None:
        assert event.job is not None
        if event.job.id in self._jobs:
            raise TraceViolation("I9", event, f"job {event.job.id!r} was accepted twice")
        self._jobs[event.job.id] = event.job

    def _started(self, event: EngineEvent) -> None:
        assert event.job is not None and event.attempt is not None  # noqa: PT018 - the kind of event says so
        job, doc_id = event.job, str(event.doc_id)
        if self._complete and job.id not in self._jobs:
            raise TraceViolation("I9", event, f"job {job.id!r} started, and was not accepted before or has settled")
        document = self._documents.get(doc_id)
        running = None if document is None else document.attempt
        if document is not None and running is not None:
            if running.number != event.attempt:
                raise TraceViolation("I12", event, f"{doc_id!r} is repaired twice: attempt {running.number} still runs")
            self._repairs[job.id] = document.repair
            return
        if document is not None and document.locks:
            raise TraceViolation("I12", event, f"{doc_id!r} started while {document.locks[0]} still works on a write")
        self._running[event.attempt] = doc_id
        if event.limit is not None and len(self._running) > event.limit:
            raise TraceViolation("I13", event, f"{len(self._running)} repairs run, {event.limit} may")
        repair = self._repairs.get(job.id)
        if repair is None:
            repair = self._repairs[job.id] = _Repair(_followed(event, job), seen_whole=job.id in self._jobs)
        repair.looks, repair.last, repair.sent = {}, {}, {}
        timeout = math.inf if event.timeout is None else event.timeout
        attempt = _Attempt(number=event.attempt, started_at=event.at, timeout=timeout)
        self._documents[doc_id] = _Document(repair, attempt)

    def _observed(self, event: EngineEvent) -> None:
        repair = self._running_repair(event)
        if repair is not None:
            store, token = str(event.store), str(event.token)
            repair.looks.setdefault(store, {})[token] = event.version
            repair.last[store] = _Look(self._count, token, event.version)

    def _ended(self, event: EngineEvent) -> None:
        assert event.attempt is not None
        doc_id = str(event.doc_id)
        document = self._documents.get(doc_id)
        attempt = None if document is None else document.attempt
        if document is None or attempt is None or attempt.number != event.attempt:
            if self._complete:
                raise TraceViolation("I12", event, f"attempt {event.attempt} ended, and was not running")
            return
        document.attempt = None
        del self._running[attempt.number]
        late = event.at - attempt.started_at - attempt.timeout
        if late > self._tolerance + _EPSILON and not attempt.known_overdue:
            raise TraceViolation(
                "I15", event, f"{doc_id!r} ran {late:.3f} s past its timeout and was not reported overdue"
            )
        self._forget_if_idle(doc_id, document)

    def _overdue(self, event: EngineEvent) -> None:
        document = self._documents.get(str(event.doc_id))
        if document is not None and document.attempt is not None:
            document.attempt.known_overdue = True

    def _locked(self, event: EngineEvent) -> None:
        document = self._documents.get(str(event.doc_id))
        if document is None:
            # Its attempt has just ended, and that was all that was to be known of it.
            document = self._documents[str(event.doc_id)] = _Document(_Repair(None, seen_whole=False))
        document.locks.append(str(event.store))

    def _unlocked(self, event: EngineEvent) -> None:
        document = self._documents.get(str(event.doc_id))
        if document is not None and str(event.store) in document.locks:
            document.locks.remove(str(event.store))
            self._forget_if_idle(str(event.doc_id), document)
        elif self._complete:
            raise TraceViolation("I12", event, f"{event.doc_id!r} was unlocked by {event.store}, which held no lock")

    def _write_sent(self, event: EngineEvent) -> None:
        repair = self._running_repair(event)
        if repair is None:
            return
        store, token, version = str(event.store), str(event.token), event.version
        seen = repair.looks.get(store, {})
        if token not in seen:
            raise TraceViolation("I1", event, f"a write of {event.doc_id!r} names a state of {store} that was not seen")
        repair.sent[store] = self._count
        repair.ever_sent[store] = None
        if store in _CRITICAL:
            self._check_order(event, repair, seen[token], version)

    @staticmethod
    def _check_order(
        event: EngineEvent, repair: _Repair, displaced: DocumentVersion | None, version: DocumentVersion | None
    ) -> None:
        if repair.strategy is None:
            return
        if repair.strategy is SyncStrategy.MOST_RECENT and _rank(version) < _rank(displaced):
            raise TraceViolation(
                "I1", event, f"number {_rank(displaced)} of {event.doc_id!r} would give way to {_rank(version)}"
            )
        if version is None or version.deleted:
            return
        beside = [repair.last[name].version for name in _CRITICAL if name in repair.last and name != event.store]
        for tombstone in (displaced, *beside):
            if tombstone is None or not tombstone.deleted:
                continue
            if tombstone.number is None or version.number is None or version.number <= tombstone.number:
                raise TraceViolation(
                    "I3",
                    event,
                    f"version {version.number} of {event.doc_id!r} would override the tombstone {tombstone.number}",
                )

    def _settled(self, event: EngineEvent) -> None:
        assert event.job is not None and event.result is not None  # noqa: PT018 - the kind of event says so
        job, result = event.job, event.result
        if self._jobs.pop(job.id, None) is None and self._complete:
            raise TraceViolation("I9", event, f"job {job.id!r} settled twice, or was never accepted")
        if result.job_id != job.id or result.doc_id != job.doc_id:
            raise TraceViolation("I9", event, f"job {job.id!r} was given the result of job {result.job_id!r}")
        repair = self._repairs.pop(job.id, None)
        if self._complete or (repair is not None and repair.seen_whole):
            _check_receipt(event, result, repair)


def _followed(event: EngineEvent, job: RepairJob) -> SyncStrategy | None:
    if event.detail is None:
        return job.strategy
    return None if event.detail == "resolution" else SyncStrategy(event.detail)


def _rank(version: DocumentVersion | None) -> int:
    return -1 if version is None or version.number is None else version.number


def _check_receipt(event: EngineEvent, result: RepairResult, repair: _Repair | None) -> None:
    sent = {} if repair is None else repair.ever_sent
    steps = {step.store: step for step in result.receipt}
    for step in result.receipt:
        if step.state is StepState.UNTOUCHED and step.store in sent:
            raise TraceViolation("I8", event, f"{step.store} is said to be untouched, and was sent a write")
        if step.state in (StepState.VERIFIED, StepState.APPLIED, StepState.INVALIDATED, StepState.UNKNOWN) and (
            step.store not in sent
        ):
            raise TraceViolation("I8", event, f"{step.store} is {step.state.value}, and was never sent a write")
        if step.store in result.updated_systems and step.state is StepState.UNTOUCHED:
            raise TraceViolation("I8", event, f"{step.store} is updated and untouched at once")
    read_back = all(name in steps and steps[name].state in _READ_BACK for name in _CRITICAL)
    if not result.success:
        # One of several jobs may be withdrawn from a repair that has come so far.
        if read_back and result.outcome is not RepairOutcome.CANCELLED:
            raise TraceViolation("I8", event, f"{result.outcome.value}, and the critical stores were read back equal")
        return
    if not read_back or repair is None:
        raise TraceViolation("I8", event, f"{result.outcome.value}, and no critical store's step says so")
    if result.success != (result.error is None):
        raise TraceViolation("I8", event, f"{result.outcome.value} with an error")
    for name in _CRITICAL:
        look = repair.last.get(name)
        if look is None or look.at < repair.sent.get(name, 0):
            raise TraceViolation("I8", event, f"{result.outcome.value}, and {name} was not read back after the write")
        if not _same(look.version, result.version):
            raise TraceViolation("I8", event, f"{result.outcome.value}, and {name} was read back as something else")


def _same(held: DocumentVersion | None, decided: DocumentVersion | None) -> bool:
    if held is None or decided is None:
        # A store that keeps no tombstones equals one by holding nothing.
        return held is decided or (held is None and decided is not None and decided.deleted)
    if held.deleted or decided.deleted:
        return held.deleted == decided.deleted and held.number == decided.number
    return held == decided


def assert_trace(events: Iterable[EngineEvent], *, complete: bool = True, tolerance: float = 0.1) -> None:
    """Check what one engine told its instruments, in linear time, against the invariants that a log can show.

    I1: each write names a state that its attempt had seen, and under MOST_RECENT none lowers a number. I3: none puts a
    version over a tombstone, or beside one, that does not rank below it, except a person's choice. I8: a job succeeds
    if and only if each critical store was read back, after the last write, as decided; receipts claim nothing that was
    not sent, and own up to all that was. I9: each accepted job settles once. I12: never two repairs of a document, nor
    one while a store still works on a write. I13: none starts beyond the limit. I15: none runs on past its timeout
    unless it was reported overdue; nothing is left when the engine closes.

    Args:
        events: the events of one engine, in order; for instance `RecordingInstrument.events`, or a file that
            `trio_repair.instrumentation.JsonLinesInstrument` wrote, read with `read_events`.
        complete: they reach from the opening of the engine to its closing. False: what began before the first event
            is not judged, and what is unfinished after the last is no fault.
        tolerance: seconds that an attempt may need to stop; a program that blocks Trio's loop needs more.

    Raises:
        TraceViolation: naming the invariant, the event and what is wrong.
    """
    checker = TraceChecker(complete=complete, tolerance=tolerance)
    for event in events:
        checker.see(event)
    checker.end()
