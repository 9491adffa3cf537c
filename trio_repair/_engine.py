"""The repair execution engine: one supervisor nursery, and each repair in it under a cancel scope of its own.

Jobs come in through `submit`, `run` or `execute_repair_job`, wait in the work queue, and are started by a synchronous
dispatcher as slots free up: the permit is taken before the task is spawned, so that there are never more tasks than
slots. Settling a job (statistics, instruments, handle) is one synchronous act.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType

import attrs
import trio

from ._active import ActiveTable
from ._backoff import backoff_delay
from ._batching import Batcher, StoreStatistics
from ._config import AutoRepairConfig
from ._errors import DuplicateJob, EngineClosed, InvalidValue
from ._events import EngineEvent, EventKind
from ._execution import Repairer, Verdict
from ._limits import Limits
from ._model import (
    ActiveRepair,
    DocumentVersion,
    RepairJob,
    RepairOutcome,
    RepairPriority,
    RepairResult,
    SyncStrategy,
    check_doc_id,
    utc_now,
)
from ._planning import Policy, RepairPlan
from ._progress import untouched_receipt
from ._queue import WorkQueue
from ._requests import Operation
from ._streaming import JobSource, PlannedJob, ResultStream
from ._ticket import Choice, Entry, Mission, Ticket
from ._timetable import Timetable
from ._views import Fence
from .abc import Instrument, Stores

logger = logging.getLogger("trio_repair")

TIMED_OUT_ERROR = "Repair operation timed out"
CANCELLED_ERROR = "Repair was cancelled"


def _system_clock() -> dt.datetime:
    return utc_now()


@attrs.frozen(kw_only=True)
class EngineStatistics:
    """A snapshot of an engine. ``accepted == sum(outcomes.values()) + queued + active`` jobs."""

    accepted: int
    outcomes: Mapping[RepairOutcome, int]
    """Settled jobs by outcome; every outcome has an entry."""
    queued: int
    """Jobs that wait: for a slot, for another repair of their document, or for the end of a back-off."""
    active: int
    """Jobs whose repair is running, overdue ones included."""
    running: int
    """Repairs that hold a slot."""
    overdue: int
    """Repairs among these that have not stopped although their time was up."""
    locked: int
    """Documents on which a store still works although their repair has ended."""
    retries: int
    reobserved: int
    stores: Mapping[str, StoreStatistics]


class RepairHandle:
    """A job that an engine has accepted."""

    __slots__ = ("_engine", "_ticket")

    def __init__(self, engine: RepairExecutionEngine, ticket: Ticket) -> None:
        self._engine = engine
        self._ticket = ticket

    @property
    def job(self) -> RepairJob:
        """The job as it was submitted."""
        return self._ticket.job

    @property
    def result(self) -> RepairResult | None:
        """The result, once there is one."""
        return self._ticket.result

    async def wait(self) -> RepairResult:
        """Wait for the result. **If cancelled:** the job goes on; use `cancel` to end it too."""
        ticket = self._ticket
        if ticket.result is None:
            if ticket.event is None:
                ticket.event = trio.Event()
            await ticket.event.wait()
        else:
            await trio.lowlevel.checkpoint()
        assert ticket.result is not None
        return ticket.result

    def cancel(self) -> bool:
        """Withdraw the job; see `RepairExecutionEngine.cancel`."""
        return self._engine._withdraw(self._ticket)


class RepairExecutionEngine:
    """Executes repairs. Made by `open_repair_engine`; all methods are for the Trio thread that opened it.

    Invariants:
        - `_tickets` holds every accepted job that is not settled, by id.
        - An entry is in the queue or in `_active`, never in both.
    """

    def __init__(
        self,
        stores: Stores,
        config: AutoRepairConfig,
        instruments: Sequence[Instrument],
        rng: random.Random,
        *,
        wall_clock: Callable[[], dt.datetime] = _system_clock,
        executor: Callable[[Entry], Awaitable[Verdict]] | None = None,
    ) -> None:
        self._config = config
        self._instruments = list(instruments)
        self._rng = rng
        self._wall_clock = wall_clock
        self._opened_at = trio.current_time()
        self._timetable = Timetable()
        self._queue = WorkQueue(config.aging_seconds)
        self._active = ActiveTable()
        self._tickets: dict[str, Ticket] = {}
        self._limits = Limits(config.max_concurrent_jobs, config.max_queued_jobs, self._limits_changed)
        self._batchers = {
            name: Batcher(name, store, config, self._timetable, self._emit, fail_fast=name == "cache")
            for name, store in stores.by_name.items()
        }
        self._repairer = repairer = Repairer(
            self._batchers, Policy.of(stores, config), config, self._emit, lambda: wall_clock().timestamp()
        )
        self._untouched = untouched_receipt(repairer.fences)
        self._execute = repairer.attempt if executor is None else executor
        self._nursery: trio.Nursery
        self._room = trio.Event()
        self._idle: trio.Event | None = None
        self._closed = False
        self._paused = False
        self._aborted = False
        self._accepted = 0
        self._attempts = 0
        self._retries = 0
        self._reobserved = 0
        self._outcomes: Counter[RepairOutcome] = Counter()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "paused" if self._paused else "open"
        return f"<RepairExecutionEngine {state}: {len(self._queue)} queued, {len(self._active)} running>"

    # Taking jobs

    async def execute_repair_job(self, job: RepairJob) -> RepairResult:
        """Repair one document and return the result.

        Failures of the repair are results, never exceptions.

        Raises:
            DuplicateJob: a job of this id is queued or running.
            EngineClosed: the engine takes no more jobs.

        **If cancelled:** the job is withdrawn, and its repair is cancelled if no other job waits for it.
        """
        return await self._wait_or_withdraw(await self.submit(job))

    async def submit(self, job: RepairJob, *, plan: RepairPlan | None = None) -> RepairHandle:
        """Accept a job, waiting while the queue is full.

        Args:
            job: what to repair.
            plan: carry out this plan and nothing else; a document that moved since is refused.

        Raises:
            DuplicateJob: a job of this id is queued or running.
            EngineClosed: the engine takes no more jobs.
            InvalidValue: the plan is for another document.

        **If cancelled:** the job was not accepted.
        """
        await trio.lowlevel.checkpoint()
        return await self._submit(job, _mission(job, plan))

    async def _submit(self, job: RepairJob, mission: Mission, stream: ResultStream | None = None) -> RepairHandle:
        while True:
            try:
                return self._accept(job, mission, stream)
            except trio.WouldBlock:
                await self._room.wait()

    async def _feed(self, item: RepairJob | PlannedJob, stream: ResultStream) -> None:
        job, plan = (item.job, item.plan) if isinstance(item, PlannedJob) else (item, None)
        await self._submit(job, _mission(job, plan), stream)

    def submit_nowait(self, job: RepairJob, *, plan: RepairPlan | None = None) -> RepairHandle:
        """Accept a job now.

        Raises:
            trio.WouldBlock: the queue is full.
            DuplicateJob: a job of this id is queued or running.
            EngineClosed: the engine takes no more jobs.
            InvalidValue: the plan is for another document.
        """
        return self._accept(job, _mission(job, plan), None)

    @asynccontextmanager
    async def run(self, jobs: JobSource) -> AsyncIterator[ResultStream]:
        """Repair a stream of jobs and stream the results, as many at a time as there are slots.

        Use it as ``async with engine.run(jobs) as results: async for result in results: ...``.

        Args:
            jobs: an iterable or async iterable of `RepairJob` or `PlannedJob`, pulled as slots free up. It may be
                endless: at most twice `max_concurrent_jobs` are accepted whose results were not taken.

        Results come in order of completion. An error that the source raises comes out of the loop, after the results
        of the jobs before it.

        **If left early or cancelled:** jobs whose result was not taken are withdrawn.
        """
        stream = ResultStream(jobs, self._limits, submit=self._feed, withdraw=self._withdraw)
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.feed)
                try:
                    yield stream
                except Exception as error:
                    failure = error
                finally:
                    nursery.cancel_scope.cancel()
                    stream.withdraw()
        except BaseException as beside:
            if failure is None:
                raise
            raise _both(failure, beside) from None  # noqa: ASYNC104 - Cancelled is in there
        if failure is not None:
            raise failure

    async def resolve(
        self,
        doc_id: str,
        choice: Choice,
        *,
        expected: Mapping[str, str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it is the job's, and bounds its attempt, not this call
        job_id: str | None = None,
    ) -> RepairResult:
        """Commit a person's choice between copies, through the same fence as every repair.

        Args:
            doc_id: the document.
            choice: "text" or "vector": that store's copy becomes the copy. "delete": tombstones are written.
            expected: tokens by store, as a receipt or `show` gave them; the choice is refused if a store holds
                anything else by now. None: whatever the stores hold when the repair starts.
            timeout: seconds for the whole attempt; None: `job_timeout_seconds`.
            job_id: the id of the job that this makes; None: a new one.

        Raises:
            DuplicateJob: a job of this id is queued or running.
            InvalidValue: the choice or a store's name is unknown, or the document id is not valid.
            EngineClosed: the engine takes no more jobs.

        **If cancelled:** as `execute_repair_job`.
        """
        check_doc_id(doc_id)
        if choice not in ("text", "vector", "delete"):
            raise InvalidValue("choice", f"must be 'text', 'vector' or 'delete', not {choice!r}")
        for name in expected if expected is not None else ():
            if name not in self._batchers:
                raise InvalidValue("expected", f"names a store {name!r}; this engine has {', '.join(self._batchers)}")
        job = RepairJob(
            doc_id=doc_id,
            strategy=SyncStrategy.MANUAL_RESOLUTION,
            priority=RepairPriority.CRITICAL,
            created_at=self._wall_clock(),
            timeout=timeout,
        )
        if job_id is not None:
            job = attrs.evolve(job, id=job_id)
        mission = Mission(strategy=job.strategy, choice=choice, expected=expected)
        await trio.lowlevel.checkpoint()
        return await self._wait_or_withdraw(await self._submit(job, mission))

    @staticmethod
    async def _wait_or_withdraw(handle: RepairHandle) -> RepairResult:
        try:
            return await handle.wait()
        except trio.Cancelled:
            handle.cancel()
            raise

    def _accept(self, job: RepairJob, mission: Mission, stream: ResultStream | None) -> RepairHandle:
        if self._closed:
            raise EngineClosed("the engine takes no more jobs; open a new one")
        if job.id in self._tickets:
            raise DuplicateJob(job.id)
        if len(self._queue) >= self._limits.max_queued_jobs:
            if self._room.is_set():
                self._room = trio.Event()
            raise trio.WouldBlock
        now = trio.current_time()
        deadline = None if job.deadline is None else now + (job.deadline - self._wall_clock()).total_seconds()
        ticket = Ticket(job, now, deadline, None if stream is None else stream.settled)
        self._tickets[job.id] = ticket
        self._accepted += 1
        if stream is not None:
            stream.accepted(ticket)
        # Plans and choices are a caller's own; they are never shared.
        key: object = ticket
        if mission.moves_with_the_document:
            key = (job.strategy, job.timeout, job.deadline, job.max_retries - job.retry_count)
        self._queue.add(ticket, key, mission, now)
        if deadline is not None:
            ticket.timer = self._timetable.at(deadline, self._deadline_passed, ticket)
        locked_by = self._queue.locked_by(job.doc_id)
        if locked_by is not None:
            self._watch_lock(ticket, locked_by)
        if self._instruments:
            # Told last: an instrument may withdraw the job at once, and finds it complete.
            self._emit(EventKind.ACCEPTED, doc_id=job.doc_id, job=job)
        self._dispatch()
        return RepairHandle(self, ticket)

    # Looking and steering

    @property
    def limits(self) -> Limits:
        """Limits that can be changed while the engine runs."""
        return self._limits

    @property
    def active_operations(self) -> Mapping[str, ActiveRepair]:
        """A snapshot of the running repairs, a row for each job id. A repair past its timeout is not among them."""
        return self._active.rows(trio.current_time())

    def cleanup_timed_out_operations(self) -> list[str]:
        """Cancel every repair that is past its timeout, and return the ids of their jobs.

        The engine cancels them by itself; this finds those that have not stopped. They leave `active_operations`, are
        counted as overdue, keep their slot and their document locked until they end, and then give their result.
        Each id is returned once.
        """
        ids: list[str] = []
        for entry in self._active.past_deadline(trio.current_time()):
            if entry.overdue:
                continue
            entry.overdue = True
            if entry.scope is not None:
                entry.scope.cancel()
            for ticket in entry.tickets:
                ids.append(ticket.job.id)
                self._emit(EventKind.OVERDUE, doc_id=entry.doc_id, job=ticket.job)
        return ids

    def cancel(self, job_id: str) -> bool:
        """Withdraw a job. It is settled as CANCELLED, unless its repair has come to another end by then.

        A running repair is cancelled only if no other job waits for it, and settles when it has stopped.

        Returns:
            False if no such job is queued or running.
        """
        ticket = self._tickets.get(job_id)
        return ticket is not None and self._withdraw(ticket)

    def statistics(self) -> EngineStatistics:
        """A snapshot. O(running repairs + documents in the queue)."""
        return EngineStatistics(
            accepted=self._accepted,
            outcomes=MappingProxyType({outcome: self._outcomes[outcome] for outcome in RepairOutcome}),
            queued=len(self._queue),
            active=len(self._tickets) - len(self._queue),
            running=len(self._active),
            overdue=self._active.overdue(trio.current_time()),
            locked=self._queue.locked_documents(),
            retries=self._retries,
            reobserved=self._reobserved,
            stores=MappingProxyType({name: batcher.statistics() for name, batcher in self._batchers.items()}),
        )

    def pause(self) -> None:
        """Start no more repairs. Running ones go on; jobs are still accepted, and deadlines still pass."""
        self._paused = True

    def resume(self) -> None:
        """Start repairs again."""
        self._paused = False
        self._dispatch()

    async def drain(self) -> None:
        """Wait until no job is queued or running. Jobs are still accepted meanwhile, and waited for too.

        **If cancelled:** nothing has changed.
        """
        while self._tickets or len(self._active):
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()
        await trio.lowlevel.checkpoint()

    # Running

    def _dispatch(self) -> None:
        """Start what may start. The slot is taken here, before the task is spawned."""
        while not self._paused and not self._aborted and len(self._active) < self._limits.max_concurrent_jobs:
            entry = self._queue.pop()
            if entry is None:
                break
            self._active.add(entry)
            now = trio.current_time()
            entry.attempts += 1
            entry.started_at = now
            if entry.first_started_at is None:
                entry.first_started_at = now
            timeout = entry.tickets[0].job.timeout
            entry.timeout_at = now + (self._config.job_timeout_seconds if timeout is None else timeout)
            deadline = entry.tickets[0].deadline
            if deadline is not None:
                entry.timeout_at = max(now, min(entry.timeout_at, deadline))
            for ticket in entry.tickets:
                self._stop_timers(ticket)
            self._attempts += 1
            entry.attempt = self._attempts
            self._nursery.start_soon(self._supervise, entry)
            if self._instruments:
                # In the step that takes the slot, so that what is told of running repairs and the limit agrees.
                self._tell_started(entry, now)
        if not self._room.is_set() and len(self._queue) < self._limits.max_queued_jobs:
            self._room.set()

    def _tell_started(self, entry: Entry, now: float) -> None:
        limit, attempt, timeout = self._limits.max_concurrent_jobs, entry.attempt, entry.timeout_at - now
        for ticket in tuple(entry.tickets):
            self._emit(
                EventKind.STARTED,
                doc_id=entry.doc_id,
                job=ticket.job,
                attempt=attempt,
                limit=limit,
                timeout=timeout,
                detail=entry.mission.follows,
            )

    async def _supervise(self, entry: Entry) -> None:
        """Run one attempt under its own cancel scope, and settle or requeue synchronously, whatever happened."""
        verdict: Verdict | None = None
        failure: BaseException | None = None
        scope: trio.CancelScope | None = None
        try:
            with trio.move_on_after(max(0.0, entry.timeout_at - trio.current_time())) as scope:
                entry.scope = scope
                if entry.cancelled:
                    scope.cancel()
                verdict = await self._execute(entry)
        except Exception as error:
            failure = error
        except BaseExceptionGroup as group:
            # A concurrent error beside Cancelled is kept for the result; the rest goes on.
            failure, rest = group.split(Exception)
            if rest is not None:
                raise rest from None
        finally:
            self._ended(entry, verdict, failure, timed_out=scope is not None and scope.cancelled_caught)

    def _ended(self, entry: Entry, verdict: Verdict | None, failure: BaseException | None, *, timed_out: bool) -> None:
        now = trio.current_time()
        entry.scope = None
        entry.overdue = False
        entry.running_seconds += now - entry.started_at
        self._active.remove(entry)
        if entry.progress is not None:
            entry.progress.withdraw()
        self._emit(EventKind.ENDED, doc_id=entry.doc_id, attempt=entry.attempt)
        if verdict is None:
            verdict = self._verdict_without_one(entry, failure, timed_out=timed_out)
        # A store may still work on a write of this attempt; until it has ended, nothing else touches the document.
        outstanding = [] if entry.progress is None else entry.progress.outstanding()
        for name, request in outstanding:
            request.on_ended = self._unlocker(entry.doc_id, name)
        if outstanding:
            # Before anybody is told of the end, and may ask for the document again.
            self._queue.lock(entry.doc_id, [name for name, _request in outstanding])
            for name, _request in outstanding:
                self._emit(EventKind.LOCKED, doc_id=entry.doc_id, store=name)
        delay = self._delay_before_next_attempt(entry, verdict, now)
        if delay is None:
            if verdict.park is not None:
                # It was to go on after a wait, and nothing but a cancellation keeps it from that.
                verdict = Verdict(RepairOutcome.CANCELLED, CANCELLED_ERROR)
            self._queue.finish(entry)
            tickets, entry.tickets = entry.tickets, []
            for ticket in tickets:
                self._settle(ticket, verdict)
        else:
            self._queue.put_back(entry, now + delay)
            self._timetable.at(now + delay, self._back_off_over, entry)
            for ticket in entry.tickets:
                if ticket.deadline is not None:
                    ticket.timer = self._timetable.at(ticket.deadline, self._deadline_passed, ticket)
        if outstanding:
            for ticket in self._queue.waiting_on(entry.doc_id):
                self._watch_lock(ticket, outstanding[0][0])
        self._dispatch()

    def _verdict_without_one(self, entry: Entry, failure: BaseException | None, *, timed_out: bool) -> Verdict:
        progress = entry.progress
        beside = None if failure is None else f"{_names(failure)} was raised"
        if failure is not None:
            # Where, not what: its message may hold document text.
            where = "".join(traceback.format_tb(failure.__traceback__)).rstrip()
            logger.error("repair of %r raised %s\n%s", entry.doc_id, _names(failure), where)
        if progress is not None:
            self._repairer.take_in_read_back(progress)
        if progress is not None and progress.verified:
            # The critical stores were read back equal; what was cut off is the cache's part.
            step = progress.stores.get("cache")
            if step is not None:
                progress.warnings.append(f"Cache update warning: not finished{f' ({beside})' if beside else ''}")
            return Repairer.finished(progress)
        if timed_out and not entry.cancelled:
            waiting = self._store_waited_for(entry)
            if waiting is not None:
                return Verdict(RepairOutcome.FAILED, waiting)
            error = TIMED_OUT_ERROR if beside is None else f"{TIMED_OUT_ERROR}; {beside}"
            return Verdict(RepairOutcome.TIMED_OUT, error)
        if failure is not None:
            return Verdict(RepairOutcome.FAILED, f"internal error: {beside}")
        return Verdict(RepairOutcome.CANCELLED, CANCELLED_ERROR)

    def _store_waited_for(self, entry: Entry) -> str | None:
        """If the attempt could do nothing but wait for a store whose breaker is open: which."""
        progress = entry.progress
        if progress is None or progress.outstanding():
            return None
        for name, request in progress.waits_for.items():
            # What is only prepared does not wait for the breaker.
            waits = request.answer is None and not request.was_sent and request.operation is not Operation.PREPARE
            if waits and self._batchers[name].is_open():
                return f"{name} store: is unreachable; check it and repair again"
        return None

    def _delay_before_next_attempt(self, entry: Entry, verdict: Verdict, now: float) -> float | None:
        """How long to wait before the entry runs again, its slot free meanwhile; None: it is to be settled."""
        if not entry.tickets or entry.cancelled or self._aborted or (self._closed and self._paused):
            return None
        if verdict.park is not None:
            return verdict.park
        job, deadline = entry.tickets[0].job, entry.tickets[0].deadline
        if not verdict.transient or job.retry_count + entry.retries >= job.max_retries:
            return None
        base, cap = self._config.backoff_base, self._config.backoff_cap
        delay = backoff_delay(entry.retries + 1, base=base, cap=cap, rng=self._rng)
        if deadline is not None and now + delay >= deadline:
            return None
        entry.retries += 1
        self._retries += 1
        self._emit(EventKind.RETRY, doc_id=entry.doc_id, job=job, detail=verdict.error)
        return delay

    def _back_off_over(self, entry: Entry) -> None:
        self._queue.make_ready(entry)
        self._dispatch()

    # Ending

    def _withdraw(self, ticket: Ticket) -> bool:
        if ticket.result is not None:
            return False
        entry = ticket.entry
        verdict = Verdict(RepairOutcome.CANCELLED, CANCELLED_ERROR)
        if self._queue.holds(entry):
            self._queue.discard(ticket)
            self._settle(ticket, verdict)
        elif len(entry.tickets) > 1:
            entry.tickets.remove(ticket)
            self._settle(ticket, verdict)
        else:
            entry.cancelled = True
            if entry.scope is not None:
                entry.scope.cancel()
        self._dispatch()
        return True

    def _deadline_passed(self, ticket: Ticket) -> None:
        """A job's deadline passed while it waited."""
        locked_by = self._queue.locked_by(ticket.job.doc_id)
        if locked_by is not None:
            self._lock_outlasted(ticket, locked_by)
            return
        self._queue.discard(ticket)
        self._settle(ticket, Verdict(RepairOutcome.TIMED_OUT, TIMED_OUT_ERROR))
        self._dispatch()

    def _watch_lock(self, ticket: Ticket, store: str) -> None:
        if ticket.lock_timer is None:
            when = trio.current_time() + self._config.unavailable_timeout
            ticket.lock_timer = self._timetable.at(when, self._lock_outlasted, ticket, store)

    def _lock_outlasted(self, ticket: Ticket, store: str) -> None:
        problem = f"{store} store: still busy with an earlier write of document {ticket.job.doc_id!r}; try again later"
        self._queue.discard(ticket)
        self._settle(ticket, Verdict(RepairOutcome.FAILED, problem))
        self._dispatch()

    def _unlocker(self, doc_id: str, store: str) -> Callable[[], None]:
        def unlock() -> None:
            self._queue.unlock(doc_id, store)
            self._emit(EventKind.UNLOCKED, doc_id=doc_id, store=store)
            if self._queue.locked_by(doc_id) is None:
                for ticket in self._queue.waiting_on(doc_id):
                    if ticket.lock_timer is not None:
                        self._timetable.cancel(ticket.lock_timer)
                        ticket.lock_timer = None
            self._dispatch()

        return unlock

    def _stop_timers(self, ticket: Ticket) -> None:
        if ticket.timer is not None:
            self._timetable.cancel(ticket.timer)
            ticket.timer = None
        if ticket.lock_timer is not None:
            self._timetable.cancel(ticket.lock_timer)
            ticket.lock_timer = None

    def _settle(self, ticket: Ticket, verdict: Verdict) -> None:
        """Statistics, instruments, handle: one synchronous act."""
        self._stop_timers(ticket)
        job, entry = ticket.job, ticket.entry
        started = entry.first_started_at
        progress = entry.progress
        result = RepairResult(
            doc_id=job.doc_id,
            job_id=job.id,
            outcome=verdict.outcome,
            updated_systems=() if progress is None else progress.updated_systems(),
            error=None if verdict.outcome.success else verdict.error,
            warnings=() if progress is None else tuple(progress.warnings),
            source=None if progress is None else progress.source,
            version=None if progress is None else progress.version,
            receipt=self._untouched if progress is None else progress.receipt(),
            attempts=entry.attempts,
            queued_seconds=max(0.0, (trio.current_time() if started is None else started) - ticket.accepted_at),
            running_seconds=entry.running_seconds,
        )
        ticket.result = result
        del self._tickets[job.id]
        self._outcomes[verdict.outcome] += 1
        if self._instruments:
            self._emit(EventKind.SETTLED, doc_id=job.doc_id, job=job, result=result)
        if ticket.event is not None:
            ticket.event.set()
        if ticket.on_settled is not None:
            ticket.on_settled(ticket)
        if self._idle is not None and not self._tickets and not len(self._active):
            self._idle.set()
            self._idle = None

    # Opening and closing

    def _limits_changed(self) -> None:
        self._dispatch()

    def _emit(
        self,
        kind: EventKind,
        *,
        doc_id: str | None = None,
        job: RepairJob | None = None,
        store: str | None = None,
        token: str | None = None,
        version: DocumentVersion | None = None,
        attempt: int | None = None,
        limit: int | None = None,
        timeout: float | None = None,
        detail: str | None = None,
        result: RepairResult | None = None,
    ) -> None:
        if kind is EventKind.REOBSERVED:
            self._reobserved += 1
        if not self._instruments:
            return
        at = trio.current_time() - self._opened_at
        event = EngineEvent(
            kind=kind,
            at=at,
            doc_id=doc_id,
            job=job,
            store=store,
            token=token,
            version=version,
            attempt=attempt,
            limit=limit,
            timeout=timeout,
            detail=detail,
            result=result,
        )
        for instrument in tuple(self._instruments):
            try:
                instrument.on_event(event)
            except Exception:
                if instrument in self._instruments:  # it may have raised in an event of its own making, too
                    logger.exception("%r raised and is dropped", instrument)
                    self._instruments.remove(instrument)

    def _start(self, repairs: trio.Nursery, calls: trio.Nursery) -> None:
        self._nursery = repairs
        for batcher in self._batchers.values():
            batcher.nursery = calls
        calls.start_soon(self._timetable.serve)

    async def _drain_at_exit(self) -> None:
        """No more intake; let accepted jobs end, for at most `drain_timeout`. A paused engine starts no more."""
        self._closed = True
        self._room.set()
        if self._paused:
            self._settle_queue()
        with trio.move_on_after(self._config.drain_timeout):
            await self.drain()

    def _abort(self) -> None:
        """Start nothing more, and settle every job that waits as CANCELLED."""
        self._closed = True
        self._aborted = True
        self._room.set()
        self._settle_queue()

    def _settle_queue(self) -> None:
        for ticket in self._queue.tickets():
            if ticket.result is None:  # an instrument that was told of one may withdraw another
                self._queue.discard(ticket)
                self._settle(ticket, Verdict(RepairOutcome.CANCELLED, CANCELLED_ERROR))

    def _close_batchers(self) -> None:
        grace_ends = trio.current_time() + self._config.grace
        for batcher in self._batchers.values():
            batcher.close(grace_ends)


def _mission(job: RepairJob, plan: RepairPlan | None) -> Mission:
    if plan is not None and plan.doc_id != job.doc_id:
        raise InvalidValue("plan", f"is for document {plan.doc_id!r}, the job for {job.doc_id!r}")
    return Mission(strategy=job.strategy, plan=plan)


def _names(failure: BaseException) -> str:
    """The types of what was raised; of a group, those of its members."""
    if isinstance(failure, BaseExceptionGroup):
        return ", ".join(dict.fromkeys(_names(error) for error in failure.exceptions))
    return type(failure).__name__


def _both(failure: Exception, beside: BaseException) -> BaseException:
    """The exception of a block's body is kept when leaving the block is cancelled, or fails, as well."""
    return BaseExceptionGroup("the block failed, and leaving it was cancelled or failed as well", [failure, beside])


@asynccontextmanager
async def open_repair_engine(
    stores: Stores,
    config: AutoRepairConfig | None = None,
    *,
    instruments: Sequence[Instrument] = (),
    rng: random.Random | None = None,
    wall_clock: Callable[[], dt.datetime] | None = None,
    executor: Callable[[Entry], Awaitable[Verdict]] | None = None,
) -> AsyncIterator[RepairExecutionEngine]:
    """Open an engine over stores that stay yours: it never closes them.

    Args:
        stores: the stores, by role. All must use `config.content` as their definition of content.
        config: settings; None: the defaults.
        instruments: told of everything that happens.
        rng: source of the jitter; None: one of its own.
        wall_clock: the time of day, timezone-aware, for jobs' deadlines and hybrid-logical-clock numbers; None: the
            system's.
        executor: replaces the repair of one document; for measuring the engine's own cost.

    Leaving the block normally takes no more jobs and waits for the accepted ones, at most `drain_timeout`. An
    exception that leaves the block, and cancellation from outside, cancel everything at once: jobs settle as
    CANCELLED, and store calls under way get `grace` seconds to end. Nothing outlives the block.

    Raises:
        InvalidValue: a store's fence is weak and `allow_weak_fence` is not set.
    """
    config = AutoRepairConfig() if config is None else config
    for name, store in stores.by_name.items():
        if store.traits.fence is Fence.WEAK and not config.allow_weak_fence:
            raise InvalidValue(
                "stores", f"the {name} store's fence is weak; set allow_weak_fence to accept that updates may be lost"
            )
    engine = RepairExecutionEngine(
        stores,
        config,
        instruments,
        random.Random() if rng is None else rng,
        wall_clock=_system_clock if wall_clock is None else wall_clock,
        executor=executor,
    )
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as calls:
            try:
                async with trio.open_nursery() as repairs:
                    engine._start(repairs, calls)
                    try:
                        yield engine
                        await engine._drain_at_exit()
                    except Exception as error:
                        failure = error
                    finally:
                        engine._abort()
                        repairs.cancel_scope.cancel()
            finally:
                engine._close_batchers()
                calls.cancel_scope.cancel()
    except BaseException as beside:
        if failure is None:
            raise
        raise _both(failure, beside) from None  # noqa: ASYNC104 - Cancelled is in there
    if failure is not None:
        raise failure
