"""What people and programs do to an engine in one episode: jobs, plans, cancellations, limits, restarts."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs
import trio

from trio_repair import (
    AutoRepairConfig,
    CheckIncomplete,
    EngineClosed,
    Policy,
    RepairExecutionEngine,
    RepairJob,
    RepairPriority,
    RepairResult,
    StoreMisbehaved,
    StoreUnavailable,
    SyncStrategy,
    check,
    open_repair_engine,
    plan_repair,
    plan_resolution,
)

from ._profiles import Mishap
from ._world import SKEW, STORES, World

_STRATEGIES: Final = (
    *[SyncStrategy.MOST_RECENT] * 4,
    SyncStrategy.TEXT_SOURCE_OF_TRUTH,
    SyncStrategy.VECTOR_SOURCE_OF_TRUTH,
    SyncStrategy.TEXT_SOURCE_OF_TRUTH,
    SyncStrategy.VECTOR_SOURCE_OF_TRUTH,
    SyncStrategy.MANUAL_RESOLUTION,
)


class HostFailed(Exception):
    """The program around the engine fails."""


def draw_config(rng: random.Random, *, hlc: bool) -> AutoRepairConfig:
    """Settings of one host."""
    return AutoRepairConfig(
        job_timeout_seconds=rng.uniform(2, 20),
        max_concurrent_jobs=rng.randint(1, 6),
        max_queued_jobs=rng.choice((3, 20, 50)),
        aging_seconds=rng.uniform(1, 10),
        backoff_base=rng.uniform(0.05, 0.5),
        backoff_cap=rng.uniform(1, 10),
        max_reobserve=rng.randint(0, 3),
        store_call_timeout=rng.uniform(1.5, 8),
        unavailable_timeout=rng.uniform(3, 15),
        breaker_failures=rng.randint(1, 6),
        breaker_reset=rng.uniform(0.5, 3),
        grace=rng.choice((0.0, rng.uniform(0.1, 3))),
        drain_timeout=rng.uniform(5, 60),
        settle=rng.choice((0.0, rng.uniform(0.2, 2))),
        missing_source=rng.choice(("refuse", "refuse", "refuse", "delete")),
        cache=rng.choice(("refresh", "refresh", "invalidate", "fill")),
        numbers="hlc" if hlc else "counter",
        skew=SKEW,
    )


class Host:
    """The program in which the engine runs. It is restarted now and then."""

    def __init__(self, world: World, seed: int) -> None:
        self.rng = random.Random(f"{seed} host")
        self.config: AutoRepairConfig
        self.engine: RepairExecutionEngine | None = None
        self._world = world
        self._scope = trio.CancelScope()
        self._leave = trio.Event()
        self._fail = False
        self._up = trio.Event()
        self._down = trio.Event()

    async def start(self) -> RepairExecutionEngine:
        """Open an engine in a task of its own, under settings of its own."""
        self.config = draw_config(self.rng, hlc=self._world.hlc)
        self._scope, self._leave, self._fail = trio.CancelScope(), trio.Event(), False
        self._up, self._down = trio.Event(), trio.Event()
        self._world.nursery.start_soon(self._run)
        await self._up.wait()
        assert self.engine is not None
        return self.engine

    async def stop(self, how: str) -> None:
        """End it: "drain", "raise" or "cancel"."""
        self._fail = how == "raise"
        if how == "cancel":
            self._scope.cancel()
        else:
            self._leave.set()
        await self._down.wait()

    async def _run(self) -> None:
        world, witness = self._world, self._world.witness
        engine: RepairExecutionEngine | None = None
        failed = finished = False
        try:
            with self._scope:
                try:
                    async with open_repair_engine(
                        world.engine_stores, self.config, instruments=[witness], rng=self.rng, wall_clock=world.wall
                    ) as engine:
                        witness.engine_opened(engine, self.config)
                        self.engine = engine
                        self._up.set()
                        await self._leave.wait()
                        if self._fail:
                            raise HostFailed  # noqa: TRY301 - it must leave the engine's block
                    finished = True
                except HostFailed:
                    failed = True
            if witness.violation is None:
                ways = (finished, failed, self._scope.cancelled_caught)
                if ways != (not self._fail and not self._scope.cancel_called, self._fail, self._scope.cancel_called):
                    witness.fail("I16", None, f"the host ended otherwise than it should: {ways}")
        except Exception as error:  # whatever comes out of an engine's block, other than our own
            witness.fail("I16", None, f"the engine's block raised {error!r}")
        finally:
            self.engine = None
            if engine is not None:
                witness.engine_closed(engine)
            self._down.set()


@attrs.define
class Operator:
    """Whoever uses the engine."""

    world: World
    host: Host
    rng: random.Random
    jobs: int = 0
    callers: list[trio.CancelScope] = attrs.field(factory=list)
    results: int = 0

    def actions(self) -> list[tuple[float, Callable[[], Awaitable[None]]]]:
        """What may be done, each with its weight."""
        return [
            (30, self._write),
            (4, self._delete),
            (3, self._damage),
            (4, self._conflict),
            (30, self._submit),
            (8, self._execute),
            (3, self._stream),
            (5, self._outage),
            (5, self._planned),
            (3, self._resolve),
            (2, self._cancel_one),
            (1, self._cancel_storm),
            (2, self._pause),
            (4, self._limit),
            (2, self._cleanup),
            (1, self._check),
        ]

    async def act(self) -> None:
        """Do one thing, at random."""
        actions = self.actions()
        (chosen,) = self.rng.choices([act for _, act in actions], [weight for weight, _ in actions])
        await chosen()
        self.world.witness.sample()

    def new_job(self, doc_id: str, strategy: SyncStrategy | None = None, **given: Any) -> RepairJob:
        """A job with an id that only the seed decides."""
        self.jobs += 1
        rng = self.rng
        deadline = None
        if rng.random() < 0.2:
            deadline = self.world.wall() + dt.timedelta(seconds=rng.uniform(0.5, 40))
        return RepairJob(
            **{
                "id": f"job-{self.jobs}",
                "doc_id": doc_id,
                "strategy": rng.choice(_STRATEGIES) if strategy is None else strategy,
                "priority": rng.choice(tuple(RepairPriority)),
                "created_at": self.world.wall(),
                "deadline": deadline,
                "timeout": rng.uniform(0.05, 10) if rng.random() < 0.3 else None,
                "max_retries": rng.randint(0, 3),
                **given,
            }
        )

    def _doc(self) -> str:
        # Some documents are asked for far more often than others, as everywhere.
        ids = self.world.doc_ids
        if self.world.recent and self.rng.random() < 0.6:
            return self.rng.choice(self.world.recent)
        return ids[min(int(self.rng.expovariate(3 / len(ids))), len(ids) - 1)]

    def _doc_to_repair(self) -> str:
        differing = self.world.differing() if self.rng.random() < 0.7 else []
        return self.rng.choice(differing) if differing else self._doc()

    async def _write(self) -> None:
        gap = self.rng.choice((0.0, 0.01, self.rng.uniform(0, 3)))
        self.world.nursery.start_soon(lambda: self.world.write(self._doc(), delete=False, gap=gap))

    async def _delete(self) -> None:
        gap = self.rng.choice((0.0, self.rng.uniform(0, 3)))
        self.world.nursery.start_soon(lambda: self.world.write(self._doc(), delete=True, gap=gap))

    async def _damage(self) -> None:
        self.world.damage(self._doc())

    async def _conflict(self) -> None:
        self.world.conflict(self._doc())

    async def _submit(self) -> None:
        engine = self.host.engine
        for _ in range(self.rng.randint(1, 4)):
            job = self.new_job(self._doc_to_repair())
            try:
                if engine is not None:
                    engine.submit_nowait(job)
            except (trio.WouldBlock, EngineClosed):
                self.world.witness.note(job.doc_id, f"{job.id} finds no room")

    async def _outage(self) -> None:
        """Many documents fall behind, and are repaired together: their texts and writes travel in one call."""
        ids = self.rng.sample(self.world.doc_ids, self.rng.randint(2, len(self.world.doc_ids)))
        self.world.lose_writes(ids)
        jobs = [self.new_job(doc_id, SyncStrategy.TEXT_SOURCE_OF_TRUTH) for doc_id in ids]
        self.world.nursery.start_soon(self._take_stream, jobs, None)

    async def _execute(self) -> None:
        scope = trio.CancelScope()
        if self.rng.random() < 0.5:
            scope.deadline = trio.current_time() + self.rng.uniform(0, 3)
        self.callers = [*self.callers[-20:], scope]
        self.world.nursery.start_soon(self._wait_for, self.new_job(self._doc_to_repair()), scope)

    async def _wait_for(self, job: RepairJob, scope: trio.CancelScope) -> None:
        engine = self.host.engine
        if engine is None:
            return
        witness = self.world.witness
        returned = False
        with scope:
            try:
                result: RepairResult | None = await engine.execute_repair_job(job)
                returned = result is not None
            except EngineClosed:
                returned = True
        if scope.cancelled_caught:
            witness.count(Mishap.LEFT_CALLER)
        elif not returned:
            witness.fail("I16", job.doc_id, f"the caller that waits for {job.id} came away with nothing")

    async def _stream(self) -> None:
        ids = {self._doc_to_repair(): None for _ in range(self.rng.randint(1, 6))}
        take = self.rng.choice((None, None, 1, 3))
        self.world.nursery.start_soon(self._take_stream, [self.new_job(doc_id) for doc_id in ids], take)

    async def _take_stream(self, jobs: list[RepairJob], take: int | None) -> None:
        engine = self.host.engine
        if engine is None:
            return
        self.world.witness.count(Mishap.STREAM)
        taken = 0
        try:
            async with engine.run(jobs) as results:
                async for _result in results:
                    taken += 1
                    if taken == take:
                        return
        except EngineClosed:
            return
        if taken < len(jobs):
            self.world.witness.fail("I9", None, f"a stream of {len(jobs)} jobs ended after {taken} results")

    async def _planned(self) -> None:
        doc_id, strategy = self._doc_to_repair(), self.rng.choice(_STRATEGIES)
        views = {name: store.observe_nowait(doc_id) for name, store in self.world.stores.items()}
        policy = Policy.of(self.world.check_stores, self.host.config)
        if self.rng.random() < 0.1:
            choice = self.rng.choice(("text", "vector", "delete"))
            plan = plan_resolution(doc_id, views, choice, policy)  # type: ignore[arg-type]
        else:
            plan = plan_repair(doc_id, views, strategy, policy, now=self.world.wall().timestamp())

        async def carry_out(wait: float) -> None:
            await trio.sleep(wait)
            engine = self.host.engine
            job = self.new_job(doc_id, strategy)
            if engine is None:
                return
            self.world.witness.plans[job.id] = plan
            try:
                await engine.submit(job, plan=plan)
                self.world.witness.count(Mishap.PLANNED_JOB)
            except EngineClosed:
                self.world.witness.plans.pop(job.id, None)

        self.world.nursery.start_soon(carry_out, self.rng.choice((0.0, self.rng.uniform(0, 20))))

    async def _resolve(self) -> None:
        self.jobs += 1
        doc_id, job_id = self._doc_to_repair(), f"resolution-{self.jobs}"
        stores = self.world.stores
        expected = None
        if self.rng.random() < 0.5:
            expected = {name: stores[name].observe_nowait(doc_id).token for name in STORES}
        choice = self.rng.choice(("text", "vector", "delete"))

        async def resolve() -> None:
            engine = self.host.engine
            if engine is None:
                return
            self.world.witness.resolutions[job_id] = None
            self.world.witness.count(Mishap.RESOLVE)
            try:
                await engine.resolve(doc_id, choice, expected=expected, job_id=job_id)  # type: ignore[arg-type]
            except EngineClosed:
                self.world.witness.resolutions.pop(job_id, None)

        self.world.nursery.start_soon(resolve)

    async def _cancel_one(self) -> None:
        live = self.world.witness.live_jobs()
        if live and self.host.engine is not None:
            self.host.engine.cancel(self.rng.choice(live))

    async def _cancel_storm(self) -> None:
        live = self.world.witness.live_jobs()
        if self.host.engine is None or not live:
            return
        self.world.witness.count(Mishap.CANCEL_STORM)
        for job_id in live:
            if self.rng.random() < 0.5:
                self.host.engine.cancel(job_id)
        for scope in self.callers:
            scope.cancel()

    async def _pause(self) -> None:
        engine = self.host.engine
        if engine is None:
            return
        self.world.witness.count(Mishap.PAUSE)
        engine.pause()
        self.world.witness.paused = True

        async def resume(wait: float) -> None:
            await trio.sleep(wait)
            if self.host.engine is engine:
                self.world.witness.paused = False
                engine.resume()

        self.world.nursery.start_soon(resume, self.rng.uniform(0, 15))

    async def _limit(self) -> None:
        engine = self.host.engine
        if engine is None:
            return
        self.world.witness.count(Mishap.LIMIT_CHANGE)
        engine.limits.max_concurrent_jobs = self.rng.randint(1, 6)
        if self.rng.random() < 0.3:
            engine.limits.max_queued_jobs = self.rng.randint(1, 50)

    async def _cleanup(self) -> None:
        if self.host.engine is not None:
            self.world.witness.count(Mishap.CLEANUP)
            ids = self.host.engine.cleanup_timed_out_operations()
            if len(set(ids)) != len(ids):
                self.world.witness.fail("I15", None, f"cleanup names a job twice: {ids}")

    async def _check(self) -> None:
        self.world.nursery.start_soon(self.check_and_repair)

    async def check_and_repair(self) -> None:
        """Look for divergences while everything goes on, and have them repaired."""
        world, engine = self.world, self.host.engine
        if engine is None:
            return
        found: list[str] = []
        world.witness.count(Mishap.CHECK)
        try:
            async with check(world.check_stores, self.host.config) as checking:
                found = [divergence.doc_id async for divergence in checking]
        except* (CheckIncomplete, StoreUnavailable, StoreMisbehaved):
            world.witness.note(None, "a check could not look")
        try:
            async with engine.run([self.new_job(doc_id) for doc_id in found]) as results:
                async for _ in results:
                    pass
        except EngineClosed:
            return
