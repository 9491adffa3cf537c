"""Check a recorded stream of engine events: what can be known from a log alone, in one pass.

The stores are not asked. What they really held, an engine can be wrong about only where its events contradict each
other; `trio_repair.testing.simulation` looks into the stores as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from trio_repair import DocumentVersion, EngineEvent, EventKind, RepairJob, RepairOutcome, SyncStrategy

from ._trace_receipt import check_receipt
from ._trace_state import (
    CRITICAL,
    EPSILON,
    Attempt,
    Displaced,
    Document,
    Look,
    Repair,
    Sent,
    TraceViolation,
    ends_by,
    rank,
)


class TraceChecker:
    """The state of a check. Feed it each event with `see`, in order, and say `end` when the engine has closed.

    Invariants:
        - `_documents` holds the documents that are not done, so memory is bounded by the work in hand.
        - `_running` holds those of them that have an attempt, in the order in which they started.
    """

    def __init__(self, *, complete: bool = True, tolerance: float = 0.1) -> None:
        self._complete = complete
        self._tolerance = tolerance + EPSILON
        self._count = 0
        self._now = 0.0 if complete else -math.inf
        """The latest time that was told."""
        self._jobs: dict[str, tuple[int, RepairJob]] = {}
        """Accepted and not settled, with where in the trace they were accepted."""
        self._documents: dict[str, Document] = {}
        self._repairs: dict[str, Repair] = {}
        """By job that has started and is not settled."""
        self._running: dict[str, None] = {}
        self._attempts = 0
        """The number of the last attempt."""
        self._displaced = Displaced()
        self._last_sent: tuple[int, EngineEvent, Sent] | None = None
        self._steps: dict[EventKind, Callable[[EngineEvent], None]] = {
            EventKind.ACCEPTED: self._accepted,
            EventKind.STARTED: self._started,
            EventKind.OBSERVED: self._observed,
            EventKind.ENDED: self._ended,
            EventKind.LOCKED: self._locked,
            EventKind.UNLOCKED: self._unlocked,
            EventKind.RETRY: self._retried,
            EventKind.WRITE_SENT: self._write_sent,
            EventKind.WRITE_SETTLED: self._write_settled,
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
        # Events that an instrument sets off may be told before the one that it was told of.
        if not self._now - self._tolerance <= event.at < math.inf:
            raise TraceViolation("I15", event, f"time stands at {event.at} s, and stood at {self._now:.6f} s before")
        self._now = max(self._now, event.at)

    def end(self) -> None:
        """The engine has closed.

        Raises:
            TraceViolation: something is left that should have ended.
        """
        if not self._complete:
            return
        for job_id in self._jobs:
            raise TraceViolation("I9", None, f"job {job_id!r} was accepted and never settled")
        for doc_id in self._running:
            raise TraceViolation("I15", None, f"the repair of {doc_id!r} outlived the engine", doc_ids=(doc_id,))
        for doc_id, document in self._documents.items():
            if document.locks:
                problem = f"document {doc_id!r} is still locked by {document.locks[0]}"
                raise TraceViolation("I15", None, problem, doc_ids=(doc_id,))

    def may_go_back(self, store: str) -> None:
        """The store has lost what it had confirmed: from now on, a state that was displaced there may be seen again."""
        self._displaced.distrust(store)

    # Jobs and attempts

    def _job(self, event: EngineEvent) -> RepairJob:
        job = event.job
        if job is None or job.doc_id != event.doc_id:
            raise TraceViolation("I9", event, f"{event.doc_id!r} is dealt with, and the job is of another document")
        return job

    def _accepted(self, event: EngineEvent) -> None:
        job = self._job(event)
        if job.id in self._jobs:
            raise TraceViolation("I9", event, f"job {job.id!r} was accepted twice")
        self._jobs[job.id] = self._count, job

    def _started(self, event: EngineEvent) -> None:
        job, doc_id = self._job(event), str(event.doc_id)
        if event.attempt is None or (event.timeout is not None and math.isnan(event.timeout)):
            raise TraceViolation("I15", event, "an attempt without a number, or whose timeout is no number of seconds")
        if self._complete and job.id not in self._jobs:
            raise TraceViolation("I9", event, f"job {job.id!r} started, and was not accepted before or has settled")
        document = self._documents.get(doc_id)
        if document is not None and document.attempt is not None:
            self._shares(event, job, document.repair, document.attempt)
            return
        if document is not None and document.locks:
            raise TraceViolation("I12", event, f"{doc_id!r} started while {document.locks[0]} still works on a write")
        self._check_locked(event, document)
        if event.attempt <= self._attempts:
            raise TraceViolation(
                "I13", event, f"attempt {event.attempt} of {doc_id!r} after attempt {self._attempts}", doc_ids=(doc_id,)
            )
        self._attempts = event.attempt
        self._running[doc_id] = None
        if event.limit is not None and len(self._running) > event.limit:
            problem = f"{len(self._running)} repairs run, {event.limit} may"
            raise TraceViolation("I13", event, problem, doc_ids=tuple(self._running))
        repair = self._repairs.get(job.id)
        if repair is None:
            repair = Repair(_followed(event, job), seen_whole=job.id in self._jobs)
        self._joins(job, repair)
        repair.begin_attempt()
        self._documents[doc_id] = Document(repair, Attempt(event.attempt, self._count, ends_by(event)))

    def _joins(self, job: RepairJob, repair: Repair) -> None:
        self._repairs[job.id] = repair
        repair.jobs[job.id] = None

    def _shares(self, event: EngineEvent, job: RepairJob, repair: Repair, running: Attempt) -> None:
        """One of several jobs that are told of one attempt: accepted before it, and told before anything is done."""
        problem = f"{event.doc_id!r} is repaired twice: attempt {running.number} still runs"
        if running.number != event.attempt:
            raise TraceViolation("I12", event, problem)
        others = self._repairs.get(job.id)
        accepted_at = self._jobs[job.id][0] if job.id in self._jobs else 0
        joined = others is repair or (others is None and repair.attempts == 1 and accepted_at < running.at)
        if (self._complete or repair.seen_whole) and (not joined or repair.last or repair.sent_now):
            raise TraceViolation("I12", event, f"{problem}, and job {job.id!r} cannot have joined it")
        self._joins(job, repair)

    def _running_repair(self, event: EngineEvent) -> Repair | None:
        document = self._documents.get(str(event.doc_id))
        if document is None or document.attempt is None:
            if self._complete:
                raise TraceViolation("I12", event, f"{event.doc_id!r} is dealt with although no repair of it runs")
            return None
        self._check_time(event, document.attempt)
        self._check_wanted(event, document.repair)
        return document.repair

    def _check_time(self, event: EngineEvent, attempt: Attempt) -> None:
        late = event.at - attempt.ends_by
        if late > self._tolerance and not attempt.excused:
            problem = f"{event.doc_id!r} ran {late:.3f} s past its timeout and was not reported overdue then"
            raise TraceViolation("I15", event, problem)

    @staticmethod
    def _check_wanted(event: EngineEvent, repair: Repair) -> None:
        if repair.seen_whole and not repair.jobs:
            raise TraceViolation("I9", event, f"{event.doc_id!r} is still repaired, and every job of it has settled")

    def _ended(self, event: EngineEvent) -> None:
        doc_id = str(event.doc_id)
        document = self._documents.get(doc_id)
        attempt = None if document is None else document.attempt
        if document is None or attempt is None or attempt.number != event.attempt:
            if self._complete:
                raise TraceViolation("I12", event, f"attempt {event.attempt} ended, and was not running")
            return
        self._check_time(event, attempt)
        self._check_wanted(event, document.repair)
        document.attempt = None
        del self._running[doc_id]
        for store in document.repair.sent_now:
            sent = document.repair.open(store)
            if sent is not None and not sent.in_company:
                document.unlocked[store] = None
        self._forget_if_done(doc_id, document)

    def _overdue(self, event: EngineEvent) -> None:
        document = self._documents.get(str(event.doc_id))
        attempt = None if document is None else document.attempt
        if attempt is not None and abs(event.at - attempt.ends_by) <= self._tolerance:
            attempt.excused = True

    def _retried(self, event: EngineEvent) -> None:
        self._check_locked(event, self._documents.get(str(event.doc_id)))

    # Locks

    def _locked(self, event: EngineEvent) -> None:
        doc_id, store = str(event.doc_id), str(event.store)
        document = self._documents.get(doc_id)
        if document is None:
            if self._complete:
                raise TraceViolation("I12", event, f"{doc_id!r} is locked by {store}, and no repair of it has ended")
            document = self._documents[doc_id] = Document(Repair(None, seen_whole=False))
        document.unlocked.pop(store, None)
        document.locks.append(store)

    def _unlocked(self, event: EngineEvent) -> None:
        document = self._documents.get(str(event.doc_id))
        if document is not None and str(event.store) in document.locks:
            document.locks.remove(str(event.store))
            self._forget_if_done(str(event.doc_id), document)
        elif self._complete:
            raise TraceViolation("I12", event, f"{event.doc_id!r} was unlocked by {event.store}, which held no lock")

    @staticmethod
    def _check_locked(event: EngineEvent, document: Document | None) -> None:
        for store in () if document is None else document.unlocked:
            problem = f"a write to {store} has no verdict, its attempt has ended, and {event.doc_id!r} was not locked"
            raise TraceViolation("I12", event, problem)

    def _forget_if_done(self, doc_id: str, document: Document) -> None:
        if document.done:
            del self._documents[doc_id]

    # Looks and writes

    def _observed(self, event: EngineEvent) -> None:
        repair = self._running_repair(event)
        if repair is None:
            return
        store, token = str(event.store), str(event.token)
        if event.version is not None and self._displaced.holds(store, str(event.doc_id), token):
            problem = f"{store} shows a state of {event.doc_id!r} that a write which landed had displaced"
            raise TraceViolation("I1", event, problem)
        repair.looks.setdefault(store, {})[token] = event.version
        repair.last[store] = Look(self._count, token, event.version)
        sent = repair.sent_now.get(store)
        if sent is not None and sent.verdict is not None and sent.token == token:
            sent.seen_unchanged = True

    def _write_sent(self, event: EngineEvent) -> None:
        repair = self._running_repair(event)
        if repair is None:
            return
        store, token, version = str(event.store), str(event.token), event.version
        seen = repair.looks.get(store, {})
        if token not in seen:
            raise TraceViolation("I1", event, f"a write of {event.doc_id!r} names a state of {store} that was not seen")
        if repair.last[store].token != token:
            problem = f"a write of {event.doc_id!r} names a state of {store} after which another one was seen"
            raise TraceViolation("I1", event, problem)
        sent = repair.sent_now.get(store)
        if sent is not None and sent.verdict is None and (sent.token, sent.version) == (token, version):
            sent.again, sent.at = True, self._count
        else:
            sent = Sent(self._count, token, version, seen[token])
            repair.sent.setdefault(store, []).append(sent)
            repair.sent_now[store] = sent
        self._note_company(event, sent)
        if store in CRITICAL:
            _check_order(event, repair, seen[token], version)

    def _note_company(self, event: EngineEvent, sent: Sent) -> None:
        """The writes of one call are told one after the other."""
        if self._last_sent is not None:
            count, before, other = self._last_sent
            if before.store == event.store and (count == self._count - 1 or before.at == event.at):
                sent.in_company = other.in_company = True
        self._last_sent = self._count, event, sent

    def _write_settled(self, event: EngineEvent) -> None:
        store, doc_id, token = str(event.store), str(event.doc_id), str(event.token)
        document = self._documents.get(doc_id)
        sent = None if document is None else document.repair.open(store)
        if document is None or sent is None or sent.token != token:
            if self._complete or (document is not None and document.repair.seen_whole):
                raise TraceViolation("I8", event, f"a verdict of {store} on a write of {doc_id!r} that awaits none")
            return
        sent.verdict = event.detail
        if sent.landed and sent.displaces is not None:
            if self._displaced.holds(store, doc_id, token):
                problem = f"two writes of {doc_id!r} have displaced one state of {store}"
                raise TraceViolation("I1", event, problem)
            self._displaced.add(store, doc_id, token)

    # Results

    def _settled(self, event: EngineEvent) -> None:
        job, result = self._job(event), event.result
        if self._jobs.pop(job.id, None) is None and self._complete:
            raise TraceViolation("I9", event, f"job {job.id!r} settled twice, or was never accepted")
        if result is None or result.job_id != job.id or result.doc_id != job.doc_id:
            other = None if result is None else result.job_id
            raise TraceViolation("I9", event, f"job {job.id!r} was given the result of job {other!r}")
        repair = self._repairs.pop(job.id, None)
        document = self._documents.get(job.doc_id)
        if repair is None or document is None or document.repair is not repair:
            document = None
        else:
            del repair.jobs[job.id]
            self._check_locked(event, document)
            # Whoever is withdrawn leaves at once where others share the repair; anybody else waits for its end.
            if document.attempt is not None and result.outcome is not RepairOutcome.CANCELLED:
                raise TraceViolation("I9", event, f"job {job.id!r} settles, and its repair has not ended")
        if self._complete or (repair is not None and repair.seen_whole):
            check_receipt(event, result, repair, () if document is None else document.locks)
        if document is not None:
            self._forget_if_done(job.doc_id, document)


def _followed(event: EngineEvent, job: RepairJob) -> SyncStrategy | None:
    if event.detail is None:
        return job.strategy
    return None if event.detail == "resolution" else SyncStrategy(event.detail)


def _check_order(
    event: EngineEvent, repair: Repair, displaced: DocumentVersion | None, version: DocumentVersion | None
) -> None:
    if repair.strategy is None:
        return
    if repair.strategy is SyncStrategy.MOST_RECENT and rank(version) < rank(displaced):
        raise TraceViolation(
            "I1", event, f"number {rank(displaced)} of {event.doc_id!r} would give way to {rank(version)}"
        )
    if version is None:
        raise TraceViolation("I3", event, f"the copy of {event.doc_id!r} in {event.store} would go without a tombstone")
    if version.deleted:
        if displaced is not None and displaced.deleted and rank(version) < rank(displaced):
            problem = f"tombstone {version.number} of {event.doc_id!r} would override the tombstone {displaced.number}"
            raise TraceViolation("I3", event, problem)
        return
    beside = [repair.last[name].version for name in CRITICAL if name in repair.last and name != event.store]
    for tombstone in (displaced, *beside):
        if tombstone is None or not tombstone.deleted:
            continue
        if tombstone.number is None or version.number is None or version.number <= tombstone.number:
            raise TraceViolation(
                "I3",
                event,
                f"version {version.number} of {event.doc_id!r} would override the tombstone {tombstone.number}",
            )


def assert_trace(events: Iterable[EngineEvent], *, complete: bool = True, tolerance: float = 0.1) -> None:
    """Check what one engine told its instruments, in linear time, against the invariants that a log can show.

    I1: each write names the state that its attempt saw last; a state that a write which landed has displaced is never
    seen again, or displaced again; and under MOST_RECENT none lowers a number. I3: none puts a version over a
    tombstone, or beside one, that does not rank below it, except a person's choice. I8: a job succeeds if and only if
    each critical store was read back, after the last write, as decided; each step of a receipt, and the updated
    systems, agree with what was sent and with the verdicts on it. I9: each accepted job settles once, as a job of its
    own document, and not before its attempt has ended unless it leaves others behind. I12: never two repairs of a
    document, nor one while a store still works on a write; a write without a verdict locks its document. I13: none
    starts beyond the limit. I15: none runs on past its timeout unless it was reported overdue then; time does not run
    backwards; nothing is left when the engine closes.

    A write that was sent beside others to the same store may be left without a verdict and without a lock: when a call
    breaks, its writes are to be sent again, and are taken back if nobody waits for them by then. Of the states that
    were displaced the last eight of a copy are remembered, of the 4,096 copies that were written last; a store that is
    put back to an earlier state, as by a crash, has broken its word and is told so.

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
