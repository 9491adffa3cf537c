"""The supervisor: one nursery, and each repair in it under a cancel scope of its own.

A synchronous dispatcher starts repairs as slots free up: the permit is taken before the task is spawned, so that there
are never more tasks than slots. Settling a job (statistics, instruments, handle) is one synchronous act.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import logging
import math
import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from ._active import ActiveTable
from ._backoff import backoff_delay
from ._batching import Batcher
from ._config import AutoRepairConfig
from ._errors import DuplicateJob, EngineClosed
from ._events import EventKind
from ._execution import Repairer
from ._limits import Limits
from ._model import RepairJob, RepairOutcome, RepairPhase, new_result
from ._planning import Policy
from ._progress import untouched_receipt
from ._queue import WorkQueue
from ._requests import Operation
from ._streaming import ResultStream
from ._telling import Telling, unheard
from ._ticket import Entry, Mission, Ticket
from ._timetable import Timetable
from ._verdict import CANCELLED_ERROR, TIMED_OUT_ERROR, Verdict
from .abc import Stores

_BEFORE_WRITING: Final = (RepairPhase.OBSERVE, RepairPhase.READ, RepairPhase.PREPARE)

_TASK_NAME: Final = f"{__name__}.Supervisor._supervise"
"""What Trio would call it, and make anew for each."""

logger = logging.getLogger("trio_repair")


class Supervisor:
    """Takes jobs in, runs their repairs, settles them.

    Invariants:
        - `tickets` holds every accepted job that is not settled, by id.
        - An entry is in `queue` or in `active`, never in both.
    """

    def __init__(
        self,
        stores: Stores,
        config: AutoRepairConfig,
        telling: Telling,
        rng: random.Random,
        wall_clock: Callable[[], dt.datetime],
        executor: Callable[[Entry], Awaitable[Verdict | None]] | None,
    ) -> None:
        self.config = config
        self.wall_clock = wall_clock
        self.now = trio.lowlevel.current_clock().current_time
        """The Trio clock, without the detour that every `trio.current_time` takes."""
        self.timetable = Timetable()
        self.queue = WorkQueue(config.aging_seconds)
        self.active = ActiveTable()
        self.tickets: dict[str, Ticket] = {}
        self.limits = Limits(config.max_concurrent_jobs, config.max_queued_jobs, self.dispatch)
        emit = telling.emit if telling else unheard
        self.batchers = {
            name: Batcher(name, telling.listening(name, store), config, self.timetable, emit, fail_fast=name == "cache")
            for name, store in stores.by_name.items()
        }
        self.repairer = repairer = Repairer(
            self.batchers,
            Policy.of(stores, config),
            config,
            emit,
            lambda: wall_clock().timestamp(),
            telling.phase_teller,
            cut_off=self._cut_off,
        )
        self.execute = repairer.attempt if executor is None else executor
        self.room = trio.Event()
        """Set when the queue takes jobs again, or never will."""
        self.closed = False
        self.paused = False
        self.accepted = 0
        self.retries = 0
        self.outcomes: Counter[RepairOutcome] = Counter()
        self._emit = emit
        self._heard = emit is not unheard
        self._rng = rng
        self._untouched = untouched_receipt(repairer.fences)
        self._nursery: trio.Nursery
        self._host_deadline = math.inf
        """When a scope around the engine is cancelled, as far as that was known when it was last asked for."""
        self._context = contextvars.copy_context()
        """That of who opened the engine: for what is told, and started, where no task is current."""
        self._cutting_off = False
        """A repair that was cut off is being settled."""
        self._timers_scope = trio.CancelScope(shield=True)
        self._idle: trio.Event | None = None
        self._aborted = False
        self._attempts = 0

    # Taking jobs

    def accept(self, job: RepairJob, mission: Mission, stream: ResultStream | None) -> Ticket:
        if self.closed:
            raise EngineClosed("the engine takes no more jobs; open a new one")
        if job.id in self.tickets:
            raise DuplicateJob(job.id)
        if len(self.queue) >= self.limits.max_queued_jobs:
            if self.room.is_set():
                self.room = trio.Event()
            raise trio.WouldBlock
        # The time of day first: held up between the two clocks, the deadline comes late, and not early.
        left = None if job.deadline is None else (job.deadline - self.wall_clock()).total_seconds()
        now = self.now()
        deadline = None if left is None else now + left
        ticket = Ticket(job, now, deadline, None if stream is None else stream.settled)
        self.tickets[job.id] = ticket
        self.accepted += 1
        if stream is not None:
            stream.accepted(ticket)
        # Plans and choices are a caller's own; they are never shared.
        key: object = ticket
        if mission.moves_with_the_document:
            key = (job.strategy, job.timeout, job.deadline, job.max_retries - job.retry_count)
        self.queue.add(ticket, key, mission, now)
        if deadline is not None:
            ticket.timer = self.timetable.at(deadline, self._deadline_passed, ticket)
        locked_by = self.queue.locked_by(job.doc_id)
        if locked_by is not None:
            self._watch_lock(ticket, locked_by)
        if self._heard:
            # Told last: an instrument may withdraw the job at once, and finds it complete.
            self._emit(EventKind.ACCEPTED, doc_id=job.doc_id, job=job)
        self.dispatch()
        return ticket

    def withdraw(self, ticket: Ticket) -> bool:
        entry = ticket.entry
        if ticket.result is not None or entry.over:
            return False
        verdict = Verdict(RepairOutcome.CANCELLED, CANCELLED_ERROR)
        if self.queue.holds(entry):
            self.queue.discard(ticket)
            self._settle(ticket, verdict)
        elif len(entry.tickets) > 1:
            entry.tickets.remove(ticket)
            self._settle(ticket, verdict)
        else:
            entry.cancelled = True
            if entry.scope is not None:
                entry.scope.cancel()
        self.dispatch()
        return True

    # Running

    def dispatch(self) -> None:
        """Start what may start. The slot is taken here, before the task is spawned."""
        while not self.paused and not self._aborted and len(self.active) < self.limits.max_concurrent_jobs:
            entry = self.queue.pop()
            if entry is None:
                break
            self.active.add(entry)
            now = self.now()
            entry.attempts += 1
            entry.started_at = now
            if entry.first_started_at is None:
                entry.first_started_at = now
            timeout = entry.tickets[0].job.timeout
            entry.timeout_at = now + (self.config.job_timeout_seconds if timeout is None else timeout)
            deadline = entry.tickets[0].deadline
            if deadline is not None:
                entry.timeout_at = max(now, min(entry.timeout_at, deadline))
            for ticket in entry.tickets:
                if ticket.timer is not None or ticket.lock_timer is not None:
                    self._stop_timers(ticket)
            self._attempts += 1
            entry.attempt = self._attempts
            self._nursery.start_soon(self._supervise, entry, name=_TASK_NAME)
            if self._heard:
                # In the step that takes the slot, so that what is told of running repairs and the limit agrees.
                self._tell_started(entry, now)
        if not self.room.is_set() and len(self.queue) < self.limits.max_queued_jobs:
            self.room.set()

    def _tell_started(self, entry: Entry, now: float) -> None:
        limit, attempt, timeout = self.limits.max_concurrent_jobs, entry.attempt, entry.timeout_at - now
        for ticket in tuple(entry.tickets):
            if ticket.result is not None:
                continue  # an instrument that was told of another one has withdrawn it
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
        cut_off = timed_out = False
        try:
            with trio.move_on_after(max(0.0, entry.timeout_at - self.now())) as scope:
                entry.scope = scope
                if entry.cancelled:
                    scope.cancel()
                verdict = await self.execute(entry)
                cut_off = verdict is None
        except Exception as error:
            failure = error
        except BaseExceptionGroup as group:
            # A concurrent error beside Cancelled is kept for the result; the rest goes on.
            failure, rest = group.split(Exception)
            if rest is not None:
                raise rest from None
        finally:
            if entry.cut_off:
                self._unwound(entry)
            else:
                if cut_off and scope is not None:
                    # Nothing was raised that the scope could catch: it was it, or one around it that is cancelled, too.
                    self._host_deadline = trio.current_effective_deadline()
                    timed_out = scope.cancel_called and self._host_deadline > -math.inf
                elif scope is not None:
                    timed_out = scope.cancelled_caught
                self._ended(entry, verdict, failure, timed_out=timed_out)
        if entry.cut_off and failure is not None:
            raise failure

    def _cut_off(self, entry: Entry) -> bool:
        """A repair was cancelled where it waited. Settle it in this very step, and give True, if its end is known.

        A flock of repairs meets its deadline in one round of the scheduler. Those who wait for them have the results
        in the next one, instead of after 10,000 tasks that have nothing left to do but end.
        """
        progress = entry.progress
        if progress is not None and progress.phase not in _BEFORE_WRITING:
            return False  # what a store says of a write, or the read-back, may come in this very round, and counts
        if self._cutting_off:
            return False  # an instrument that was told of one cancels others: one inside the other, without end
        in_task = trio.lowlevel.in_trio_task()
        if not entry.cancelled and (in_task or not self._has_timed_out(entry)):
            return False  # a scope around it was cancelled, or may be in this very moment: its task will see
        entry.cut_off = self._cutting_off = True
        try:
            end = partial(self._ended, entry, None, None, timed_out=True)
            if in_task:
                end()
            else:
                self._context.run(end)
        finally:
            self._cutting_off = False
        return True

    def _has_timed_out(self, entry: Entry) -> bool:
        """By the scheduler, which cancels what is past its deadline: by its own, and not the host's as well."""
        return entry.scope is not None and entry.scope.cancel_called and self.now() < self._host_deadline

    def _unwound(self, entry: Entry) -> None:
        """The task of a repair that was settled when it was cut off ends."""
        if entry.over:  # or an instrument ended more than its repair
            self.queue.finish(entry)
        self.active.unwound()
        self._tell_if_idle()
        self.dispatch()

    def _ended(self, entry: Entry, verdict: Verdict | None, failure: BaseException | None, *, timed_out: bool) -> None:
        now = self.now()
        entry.scope = None
        entry.overdue = False
        entry.running_seconds += now - entry.started_at
        if entry.cut_off:
            self.active.cut_off(entry)
        else:
            self.active.remove(entry)
        # As a rule, every store has ended what it was asked, and there is neither anything to take back nor to lock.
        unended = () if entry.progress is None else entry.progress.unended()
        for _name, request in unended:
            request.withdraw()
        if verdict is None and entry.progress is not None:
            self.repairer.take_in_read_back(entry.doc_id, entry.progress)
        if self._heard:
            self._emit(EventKind.ENDED, doc_id=entry.doc_id, attempt=entry.attempt)
        if verdict is None:
            verdict = self._verdict_without_one(entry, failure, timed_out=timed_out)
        # A store may still work on a write of this attempt; until it has ended, nothing else touches the document.
        outstanding = entry.progress.outstanding() if unended and entry.progress is not None else []
        for name, request in outstanding:
            request.on_ended = self._unlocker(entry.doc_id, name)
        if outstanding:
            # Before anybody is told of the end, and may ask for the document again.
            self.queue.lock(entry.doc_id, [name for name, _request in outstanding])
            for name, _request in outstanding:
                self._emit(EventKind.LOCKED, doc_id=entry.doc_id, store=name)
        delay = self._delay_before_next_attempt(entry, verdict, now)
        if delay is None:
            if verdict.park is not None:
                # It was to go on after a wait, and nothing but a cancellation keeps it from that.
                verdict = Verdict(RepairOutcome.CANCELLED, CANCELLED_ERROR)
            if not entry.cut_off:  # or slot and document are free when its task has ended
                self.queue.finish(entry)
            entry.over = True
            tickets, entry.tickets = entry.tickets, []
            for ticket in tickets:
                self._settle(ticket, verdict)
        else:
            self.queue.put_back(entry, now + delay)
            self.timetable.at(now + delay, self._back_off_over, entry)
            for ticket in entry.tickets:
                if ticket.deadline is not None:
                    ticket.timer = self.timetable.at(ticket.deadline, self._deadline_passed, ticket)
        if outstanding:
            for ticket in self.queue.waiting_on(entry.doc_id):
                self._watch_lock(ticket, outstanding[0][0])
        if not entry.cut_off:
            self.dispatch()

    def _verdict_without_one(self, entry: Entry, failure: BaseException | None, *, timed_out: bool) -> Verdict:
        progress = entry.progress
        beside = None if failure is None else f"{_names(failure)} was raised"
        if failure is not None:
            # Where, not what: its message may hold document text.
            where = "".join(traceback.format_tb(failure.__traceback__)).rstrip()
            logger.error("repair of %r raised %s\n%s", entry.doc_id, _names(failure), where)
        if progress is not None and progress.verified:
            # The critical stores were read back equal; what was cut off is the cache's part.
            step = progress.stores.get("cache")
            if step is not None:
                progress.warn(f"Cache update warning: not finished{f' ({beside})' if beside else ''}")
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
        if progress is None:
            return None
        for name, request in progress.waits_for.items():
            # What is only prepared does not wait for the breaker.
            waits = request.answer is None and not request.was_sent and request.operation is not Operation.PREPARE
            if waits and self.batchers[name].is_open() and not progress.outstanding():
                return f"{name} store: is unreachable{self.batchers[name].reason}; check it and repair again"
        return None

    def _delay_before_next_attempt(self, entry: Entry, verdict: Verdict, now: float) -> float | None:
        """How long to wait before the entry runs again, its slot free meanwhile; None: it is to be settled."""
        if not verdict.transient and verdict.park is None:
            return None
        if not entry.tickets or entry.cancelled or self._aborted or (self.closed and self.paused):
            return None
        if verdict.park is not None:
            return verdict.park
        job, deadline = entry.tickets[0].job, entry.tickets[0].deadline
        if not verdict.transient or job.retry_count + entry.retries >= job.max_retries:
            return None
        base, cap = self.config.backoff_base, self.config.backoff_cap
        delay = backoff_delay(entry.retries + 1, base=base, cap=cap, rng=self._rng)
        if deadline is not None and now + delay >= deadline:
            return None
        entry.retries += 1
        self.retries += 1
        self._emit(EventKind.RETRY, doc_id=entry.doc_id, job=job, detail=verdict.error)
        # An instrument may have withdrawn the job just now.
        return None if entry.cancelled or not entry.tickets else delay

    def _back_off_over(self, entry: Entry) -> None:
        self.queue.make_ready(entry)
        self.dispatch()

    def stop_overdue(self) -> list[str]:
        """Cancel every repair that is past its timeout, and return the ids of their jobs; each id once."""
        ids: list[str] = []
        for entry in self.active.past_deadline(self.now()):
            if entry.overdue:
                continue
            entry.overdue = True
            if entry.scope is not None:
                entry.scope.cancel()
            for ticket in tuple(entry.tickets):
                if ticket.result is not None:
                    continue  # an instrument that was told of another one has withdrawn it
                ids.append(ticket.job.id)
                self._emit(EventKind.OVERDUE, doc_id=entry.doc_id, job=ticket.job)
        return ids

    # Ending

    def _deadline_passed(self, ticket: Ticket) -> None:
        """A job's deadline passed while it waited."""
        locked_by = self.queue.locked_by(ticket.job.doc_id)
        if locked_by is not None:
            self._lock_outlasted(ticket, locked_by)
            return
        self.queue.discard(ticket)
        self._settle(ticket, Verdict(RepairOutcome.TIMED_OUT, TIMED_OUT_ERROR))
        self.dispatch()

    def _watch_lock(self, ticket: Ticket, store: str) -> None:
        if ticket.lock_timer is None:
            when = self.now() + self.config.unavailable_timeout
            ticket.lock_timer = self.timetable.at(when, self._lock_outlasted, ticket, store)

    def _lock_outlasted(self, ticket: Ticket, store: str) -> None:
        problem = f"{store} store: still busy with an earlier write of document {ticket.job.doc_id!r}; try again later"
        self.queue.discard(ticket)
        self._settle(ticket, Verdict(RepairOutcome.FAILED, problem))
        self.dispatch()

    def _unlocker(self, doc_id: str, store: str) -> Callable[[], None]:
        def unlock() -> None:
            self.queue.unlock(doc_id, store)
            self._emit(EventKind.UNLOCKED, doc_id=doc_id, store=store)
            if self.queue.locked_by(doc_id) is None:
                for ticket in self.queue.waiting_on(doc_id):
                    if ticket.lock_timer is not None:
                        self.timetable.cancel(ticket.lock_timer)
                        ticket.lock_timer = None
            self.dispatch()

        return unlock

    def _stop_timers(self, ticket: Ticket) -> None:
        if ticket.timer is not None:
            self.timetable.cancel(ticket.timer)
            ticket.timer = None
        if ticket.lock_timer is not None:
            self.timetable.cancel(ticket.lock_timer)
            ticket.lock_timer = None

    def _settle(self, ticket: Ticket, verdict: Verdict) -> None:
        """Statistics, instruments, handle: one synchronous act."""
        if ticket.timer is not None or ticket.lock_timer is not None:
            self._stop_timers(ticket)
        job, entry = ticket.job, ticket.entry
        started = entry.first_started_at
        progress = entry.progress
        touched = None if progress is None or progress.is_untouched else progress
        result = new_result(
            job.doc_id,
            job.id,
            verdict.outcome,
            () if touched is None else touched.updated_systems(),
            None if verdict.outcome.success else verdict.error,
            () if progress is None else tuple(progress.warnings),
            None if progress is None else progress.source,
            None if progress is None else progress.version,
            self._untouched if touched is None else touched.receipt(),
            entry.attempts,
            max(0.0, (self.now() if started is None else started) - ticket.accepted_at),
            entry.running_seconds,
        )
        ticket.result = result
        del self.tickets[job.id]
        self.outcomes[verdict.outcome] += 1
        if self._heard:
            self._emit(EventKind.SETTLED, doc_id=job.doc_id, job=job, result=result)
        if ticket.event is not None:
            ticket.event.set()
        if ticket.on_settled is not None:
            ticket.on_settled(ticket)
        self._tell_if_idle()

    def _tell_if_idle(self) -> None:
        if self._idle is not None and not self.tickets and not len(self.active):
            self._idle.set()
            self._idle = None

    # Opening and closing

    def start(self, repairs: trio.Nursery, calls: trio.Nursery) -> None:
        """Run repairs and store calls in these nurseries from now on."""
        self._nursery = repairs
        self._host_deadline = trio.current_effective_deadline()
        for batcher in self.batchers.values():
            batcher.nursery = calls

    async def serve_timers(self) -> None:
        """Run until `stop_timers`, cancelled or not: calls that end late are watched to their end."""
        with self._timers_scope:
            await self.timetable.serve()

    def stop_timers(self) -> None:
        """Nothing is left that could be late."""
        self._timers_scope.cancel()

    async def drain(self) -> None:
        """Wait until no job is queued or running. **If cancelled:** nothing has changed."""
        while self.tickets or len(self.active):
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()
        await trio.lowlevel.checkpoint()

    async def drain_at_exit(self) -> None:
        """No more intake; let accepted jobs end, for at most `drain_timeout`. A paused engine starts no more."""
        self.closed = True
        self.room.set()
        if self.paused:
            self._settle_queue()
        with trio.move_on_after(self.config.drain_timeout):
            await self.drain()

    def abort(self) -> None:
        """Start nothing more, and settle every job that waits as CANCELLED."""
        self.closed = True
        self._aborted = True
        self.room.set()
        self._settle_queue()

    def _settle_queue(self) -> None:
        for ticket in self.queue.tickets():
            # An instrument that was told of one may have withdrawn another, or let it start.
            if ticket.result is None and self.queue.holds(ticket.entry):
                self.queue.discard(ticket)
                self._settle(ticket, Verdict(RepairOutcome.CANCELLED, CANCELLED_ERROR))

    def close_batchers(self) -> None:
        grace_ends = self.now() + self.config.grace
        for batcher in self.batchers.values():
            batcher.close(grace_ends)


def _names(failure: BaseException) -> str:
    """The types of what was raised; of a group, those of its members."""
    if isinstance(failure, BaseExceptionGroup):
        return ", ".join(dict.fromkeys(_names(error) for error in failure.exceptions))
    return type(failure).__name__
