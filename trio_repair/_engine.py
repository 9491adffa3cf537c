"""The engine's public face: take jobs, look at them, steer them. The work is done by the supervisor."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final

import attrs
import trio

from ._batching import StoreStatistics
from ._config import AutoRepairConfig
from ._errors import InvalidValue
from ._limits import Limits
from ._model import (
    ActiveRepair,
    RepairJob,
    RepairOutcome,
    RepairPriority,
    RepairResult,
    SyncStrategy,
    check_doc_id,
    utc_now,
)
from ._planning import RepairPlan
from ._streaming import JobSource, PlannedJob, ResultStream
from ._supervisor import Supervisor
from ._telling import Telling
from ._ticket import Choice, Entry, Mission, Ticket
from ._verdict import Verdict
from ._views import Fence
from .abc import Instrument, Stores


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
    """Repairs that have taken a slot and have not ended."""
    overdue: int
    """Repairs among these that have not stopped although their time was up."""
    locked: int
    """Documents on which a store still works although their repair has ended."""
    retries: int
    reobserved: int
    stores: Mapping[str, StoreStatistics]


class RepairHandle:
    """A job that an engine has accepted."""

    __slots__ = ("_supervisor", "_ticket")

    def __init__(self, supervisor: Supervisor, ticket: Ticket) -> None:
        self._supervisor = supervisor
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
        return self._supervisor.withdraw(self._ticket)


class RepairExecutionEngine:
    """Executes repairs. Made by `open_repair_engine`; all methods are for the Trio thread that opened it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def __repr__(self) -> str:
        of = self._supervisor
        state = "closed" if of.closed else "paused" if of.paused else "open"
        return f"<RepairExecutionEngine {state}: {len(of.queue)} queued, {of.active.running} running>"

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

    async def _submit(self, job: RepairJob, mission: Mission) -> RepairHandle:
        while True:
            try:
                return self._accept(job, mission)
            except trio.WouldBlock:
                await self._supervisor.room.wait()

    def _feed(self, item: RepairJob | PlannedJob, stream: ResultStream) -> None:
        job, plan = (item.job, item.plan) if isinstance(item, PlannedJob) else (item, None)
        self._supervisor.accept(job, _mission(job, plan), stream)

    async def _wait_for_room(self) -> None:
        await self._supervisor.room.wait()

    def submit_nowait(self, job: RepairJob, *, plan: RepairPlan | None = None) -> RepairHandle:
        """Accept a job now.

        Raises:
            trio.WouldBlock: the queue is full.
            DuplicateJob: a job of this id is queued or running.
            EngineClosed: the engine takes no more jobs.
            InvalidValue: the plan is for another document.
        """
        return self._accept(job, _mission(job, plan))

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
        stream = ResultStream(
            jobs,
            self.limits,
            accept=self._feed,
            wait_for_room=self._wait_for_room,
            withdraw=self._supervisor.withdraw,
        )
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
            if name not in self._supervisor.batchers:
                raise InvalidValue(
                    "expected", f"names a store {name!r}; this engine has {', '.join(self._supervisor.batchers)}"
                )
        job = RepairJob(
            doc_id=doc_id,
            strategy=SyncStrategy.MANUAL_RESOLUTION,
            priority=RepairPriority.CRITICAL,
            created_at=self._supervisor.wall_clock(),
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

    def _accept(self, job: RepairJob, mission: Mission) -> RepairHandle:
        return RepairHandle(self._supervisor, self._supervisor.accept(job, mission, None))

    # Looking and steering

    @property
    def limits(self) -> Limits:
        """Limits that can be changed while the engine runs."""
        return self._supervisor.limits

    @property
    def active_operations(self) -> Mapping[str, ActiveRepair]:
        """A snapshot of the running repairs, a row for each job id. A repair past its timeout is not among them."""
        return self._supervisor.active.rows(trio.current_time())

    def cleanup_timed_out_operations(self) -> list[str]:
        """Cancel every repair that is past its timeout, and return the ids of their jobs.

        The engine cancels them by itself; this finds those that have not stopped. They leave `active_operations`, are
        counted as overdue, keep their slot and their document locked until they end, and then give their result.
        Each id is returned once.
        """
        return self._supervisor.stop_overdue()

    def cancel(self, job_id: str) -> bool:
        """Withdraw a job. It is settled as CANCELLED, unless its repair has come to another end by then.

        A running repair is cancelled only if no other job waits for it, and settles when it has stopped: at once,
        unless a store is to be heard that has something to write, or something written to look at.

        Returns:
            False if no such job is queued or running.
        """
        ticket = self._supervisor.tickets.get(job_id)
        return ticket is not None and self._supervisor.withdraw(ticket)

    def statistics(self) -> EngineStatistics:
        """A snapshot. O(running repairs + documents in the queue)."""
        of = self._supervisor
        return EngineStatistics(
            accepted=of.accepted,
            outcomes=MappingProxyType({outcome: of.outcomes[outcome] for outcome in RepairOutcome}),
            queued=len(of.queue),
            active=len(of.tickets) - len(of.queue),
            running=of.active.running,
            overdue=of.active.overdue(trio.current_time()),
            locked=of.queue.locked_documents(),
            retries=of.retries,
            reobserved=of.repairer.reobserved,
            stores=MappingProxyType({name: batcher.statistics() for name, batcher in of.batchers.items()}),
        )

    def pause(self) -> None:
        """Start no more repairs. Running ones go on; jobs are still accepted, and deadlines still pass."""
        self._supervisor.paused = True

    def resume(self) -> None:
        """Start repairs again."""
        self._supervisor.paused = False
        self._supervisor.dispatch()

    async def drain(self) -> None:
        """Wait until no job is queued or running. Jobs are still accepted meanwhile, and waited for too.

        While the engine is paused, waiting jobs stay: it waits for `resume`, or for their deadlines.

        **If cancelled:** nothing has changed.
        """
        await self._supervisor.drain()


_FOLLOWING: Final = {strategy: Mission(strategy=strategy) for strategy in SyncStrategy}


def _mission(job: RepairJob, plan: RepairPlan | None) -> Mission:
    if plan is None:
        return _FOLLOWING[job.strategy]
    if plan.doc_id != job.doc_id:
        raise InvalidValue("plan", f"is for document {plan.doc_id!r}, the job for {job.doc_id!r}")
    return Mission(strategy=job.strategy, plan=plan)


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
    executor: Callable[[Entry], Awaitable[Verdict | None]] | None = None,
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
    supervisor = Supervisor(
        stores,
        config,
        Telling(instruments),
        random.Random() if rng is None else rng,
        _system_clock if wall_clock is None else wall_clock,
        executor,
    )
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as timers:
            timers.start_soon(supervisor.serve_timers)
            try:
                async with trio.open_nursery() as calls:
                    try:
                        async with trio.open_nursery() as repairs:
                            supervisor.start(repairs, calls)
                            try:
                                yield RepairExecutionEngine(supervisor)
                                await supervisor.drain_at_exit()
                            except Exception as error:
                                failure = error
                            finally:
                                supervisor.abort()
                                repairs.cancel_scope.cancel()
                    finally:
                        supervisor.close_batchers()
                        calls.cancel_scope.cancel()
            finally:
                supervisor.stop_timers()
    except BaseException as beside:
        if failure is None:
            raise
        raise _both(failure, beside) from None  # noqa: ASYNC104 - Cancelled is in there
    if failure is not None:
        raise failure
