"""`engine.run`: bounded in, bounded out, and nothing lost or left when it is left early."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from engine_world import World, config, job
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_repair import (
    DuplicateJob,
    EngineClosed,
    PlannedJob,
    Policy,
    RepairJob,
    RepairOutcome,
    SyncStrategy,
    open_repair_engine,
    plan_repair,
)
from trio_repair._ticket import Entry
from trio_repair._verdict import Verdict

DONE = Verdict(RepairOutcome.REPAIRED)


def _opened(executor: Any = None, *, world: World | None = None, **given: Any):
    return open_repair_engine(
        (World() if world is None else world).stores, config(**given), executor=executor, rng=random.Random(1)
    )


async def _second(_entry: Entry) -> Verdict:
    await trio.sleep(1.0)
    return DONE


class Endless:
    """Jobs without end, and how many were pulled."""

    pulled = 0

    def __iter__(self) -> Iterator[RepairJob]:
        while True:
            self.pulled += 1
            yield job(f"d{self.pulled}")


@pytest.mark.parametrize("kind", ["list", "generator", "async"])
async def test_every_job_gives_its_result(autojump_clock, kind: str):
    """From a list, a generator or an async generator: as many results as jobs, in order of completion."""
    names = ["d3", "d1", "d2"]

    async def executor(entry: Entry) -> Verdict:
        await trio.sleep(int(entry.doc_id[1:]))
        return DONE

    async def source() -> AsyncIterator[RepairJob]:
        for name in names:
            await trio.lowlevel.checkpoint()
            yield job(name)

    jobs: Any = {"list": [job(name) for name in names], "generator": (job(name) for name in names), "async": source()}
    async with _opened(executor) as engine, engine.run(jobs[kind]) as results:
        assert ["d1", "d2", "d3"] == [result.doc_id async for result in results]
        with pytest.raises(StopAsyncIteration):
            await anext(results)
    assert 3.0 == trio.current_time()


async def test_no_jobs_no_results(autojump_clock):
    """An empty source ends at once."""
    async with _opened(_second) as engine, engine.run([]) as results:
        assert [] == [result async for result in results]


async def test_an_async_iterable_that_is_no_generator(autojump_clock):
    """Anything with __aiter__ will do."""

    class Source:
        left = 3

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> RepairJob:
            await trio.sleep(1.0)
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return job(f"d{self.left}")

    async with _opened(_second) as engine, engine.run(Source()) as results:
        assert 3 == len([result async for result in results])


async def test_an_endless_source_is_pulled_as_slots_free_up(autojump_clock):
    """Nobody takes results: at most twice the slots are accepted, and one more is pulled. Taking one lets one in."""
    source = Endless()
    async with _opened(_second, max_concurrent_jobs=4) as engine:
        async with engine.run(source) as results:
            await trio.sleep(100.0)
            assert (8, 9) == (engine.statistics().accepted, source.pulled)
            for taken in range(1, 50):
                assert (await anext(results)).success
                await trio.sleep(5.0)
                assert 8 + taken == engine.statistics().accepted
        assert 57 == engine.statistics().accepted


async def test_with_many_slots_no_more_jobs_wait_than_come_in_at_a_stretch(autojump_clock):
    """What waits is to be started soon: of 2,000 slots' jobs, 1,024 wait, and not as many as run."""
    source = Endless()
    async with _opened(_second, max_concurrent_jobs=2000) as engine, engine.run(source) as results:
        await trio.sleep(100.0)
        assert 3024 == engine.statistics().accepted
        for _ in range(10):
            await anext(results)
        await trio.sleep(5.0)
        assert 3034 == engine.statistics().accepted


async def test_what_was_settled_is_forgotten(autojump_clock):
    """A stream of any length keeps the jobs that are under way, and leaving it withdraws those and no others."""
    async with _opened(_second, max_concurrent_jobs=2) as engine, engine.run(Endless()) as results:
        for _ in range(20):
            await anext(results)
        assert 4 >= len(results._live)


async def test_slots_are_kept_busy(autojump_clock):
    """A hundred jobs of one second on four slots take 25 s: the window never starves a slot."""
    async with (
        _opened(_second, max_concurrent_jobs=4) as engine,
        engine.run(job(f"d{n}") for n in range(100)) as results,
    ):
        assert 100 == len([result async for result in results])
    assert 25.0 == trio.current_time()


async def test_a_short_queue_narrows_the_window(autojump_clock):
    """With one waiting job allowed beside four running, five are accepted."""
    source = Endless()
    async with _opened(_second, max_concurrent_jobs=4, max_queued_jobs=1) as engine, engine.run(source):
        await trio.sleep(100.0)
        assert 5 == engine.statistics().accepted


async def test_a_raised_limit_widens_the_window(autojump_clock):
    """Live: from the next result taken on, more are pulled."""
    source = Endless()
    async with _opened(_second, max_concurrent_jobs=1) as engine, engine.run(source) as results:
        await trio.sleep(10.0)
        assert 2 == engine.statistics().accepted
        engine.limits.max_concurrent_jobs = 10
        await anext(results)
        await trio.sleep(10.0)
        assert 21 == engine.statistics().accepted


async def test_a_source_that_raises(autojump_clock):
    """Its error comes out of the loop after the results of the jobs before it, as it is; then the stream is at its end."""

    async def source() -> AsyncIterator[RepairJob]:
        for index in range(3):
            yield job(f"d{index}")
        raise ValueError("source")

    for jobs in (source(), _raising()):
        taken = []
        async with _opened(_second) as engine:
            async with engine.run(jobs) as results:
                with pytest.raises(ValueError, match="source"):
                    async for result in results:
                        taken.append(result.success)  # noqa: PERF401 - what came before the error counts
                assert [True] * 3 == taken
                with pytest.raises(StopAsyncIteration):
                    await anext(results)


def _raising() -> Iterator[RepairJob]:
    for index in range(3):
        yield job(f"d{index}")
    raise ValueError("source")


async def test_a_duplicate_id_in_a_source(autojump_clock):
    """Refused as everywhere; the results of the jobs before it come first."""
    same = job()
    async with _opened(_second) as engine:
        async with engine.run([same, same]) as results:
            assert (await anext(results)).success
            with pytest.raises(DuplicateJob):
                await anext(results)


async def test_a_closed_engine_runs_no_stream(autojump_clock):
    """Opened too late: EngineClosed comes out of the loop."""
    async with _opened(_second) as engine:
        pass
    async with engine.run([job()]) as results:
        with pytest.raises(EngineClosed):
            await anext(results)


@pytest.mark.parametrize("how", ["break", "raise", "cancel"])
async def test_leaving_early_withdraws_the_rest(autojump_clock, how: str):
    """What was not taken is CANCELLED or done, the source is closed at once, the engine serves others."""
    closed = []

    async def source() -> AsyncIterator[RepairJob]:
        try:
            for index in range(1_000_000):
                yield job(f"d{index}")
        finally:
            closed.append(trio.current_time())

    async with _opened(_second, max_concurrent_jobs=2) as engine:
        with trio.CancelScope() as scope:
            try:
                async with engine.run(source()) as results:
                    async for _result in results:
                        if how == "break":
                            break
                        if how == "cancel":
                            scope.cancel()
                            await trio.sleep_forever()
                        raise ValueError("mine")  # noqa: TRY301 - it has to leave the block
            except ValueError as error:
                assert ("raise", "mine") == (how, str(error))
        assert (how == "cancel") == scope.cancelled_caught
        assert [1.0] == closed
        assert (await engine.execute_repair_job(job("other"))).success
        said = engine.statistics()
        assert said.accepted == sum(said.outcomes.values())
        assert said.outcomes[RepairOutcome.CANCELLED] > 0
        assert said.accepted <= 6


async def test_i16_an_error_of_the_body_survives_a_cancellation(autojump_clock):
    """The body raises while its host is cancelled and the source takes time to close: neither is lost."""

    async def source() -> AsyncIterator[RepairJob]:
        try:
            while True:
                await trio.sleep(1.0)
                yield job()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5.0)

    with pytest.raises(BaseExceptionGroup) as caught:
        async with _opened(_second) as engine:
            with trio.move_on_after(3.0):
                async with engine.run(source()):
                    await trio.sleep(0.5)
                    raise ValueError("mine")
    assert caught.group_contains(ValueError, match="mine")


async def test_a_cancelled_reader_loses_no_result(autojump_clock):
    """Cancelled while it waits, or in the very moment a result comes: the next call gives it."""
    async with _opened(_second) as engine:
        async with engine.run(job(f"d{index}") for index in range(5)) as results:
            seen = []
            for _ in range(200):
                with trio.move_on_after(0.25):
                    seen.append(await anext(results))
                if len(seen) == 5:
                    break
            assert 5 == len({result.job_id for result in seen})
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(results)
            assert scope.cancelled_caught


async def test_two_streams_and_a_caller_side_by_side(autojump_clock):
    """Each gets its own results."""
    seen: dict[str, list[str]] = {"a": [], "b": []}

    async def consume(engine: Any, name: str) -> None:
        async with engine.run(job(f"{name}{index}") for index in range(10)) as results:
            seen[name] = sorted([result.doc_id async for result in results])

    async with _opened(_second, max_concurrent_jobs=3) as engine:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume, engine, "a")
            nursery.start_soon(consume, engine, "b")
            assert (await engine.execute_repair_job(job("c"))).success
    assert [f"a{index}" for index in range(10)] == seen["a"]
    assert [f"b{index}" for index in range(10)] == seen["b"]


async def test_planned_jobs_in_a_stream(autojump_clock):
    """A plan travels with its job; one whose document moved is refused, alone."""
    world = World()
    world.drift("a", "b")
    policy = Policy.of(world.stores, config())
    items = []
    for doc_id in "ab":
        views = {name: store.observe_nowait(doc_id) for name, store in world.memory.items()}
        plan = plan_repair(doc_id, views, SyncStrategy.TEXT_SOURCE_OF_TRUTH, policy, now=0.0)
        items.append(PlannedJob(job(doc_id), plan))
    world.put("vector", "b", number=5)
    async with _opened(world=world) as engine, engine.run(items) as results:
        outcomes = {result.doc_id: result.outcome async for result in results}
    assert {"a": RepairOutcome.REPAIRED, "b": RepairOutcome.FAILED} == outcomes


async def test_jobs_of_one_document_in_a_stream_share_their_repair(autojump_clock):
    """Ten requests for one document: one result each, two repairs at most."""
    order = []

    async def executor(entry: Entry) -> Verdict:
        order.append(entry.doc_id)
        return await _second(entry)

    async with _opened(executor) as engine, engine.run(job() for _ in range(10)) as results:
        assert 10 == len({result.job_id async for result in results})
    assert ["d", "d"] == order


@settings(max_examples=30)
@given(st.data(), st.random_module())
def test_i9_results_and_jobs_are_the_same_set(data: Any, _random: Any):
    """Drawn lengths, slots, speeds and cancelled reads: each job's result comes exactly once, within the window."""

    async def main() -> None:
        rng = random.Random(data.draw(st.integers(0, 2**32)))
        slots = data.draw(st.integers(1, 4))
        jobs = [job(f"d{rng.randrange(6)}") for _ in range(data.draw(st.integers(0, 40)))]
        taken: list[str] = []

        async def executor(_entry: Entry) -> Verdict:
            await trio.sleep(rng.choice([0.0, 0.1, 1.0]))
            if rng.randrange(5) == 0:
                raise RuntimeError
            return DONE

        async def source() -> AsyncIterator[RepairJob]:
            for item in jobs:
                await trio.sleep(rng.choice([0.0, 0.3]))
                yield item

        async with _opened(executor, max_concurrent_jobs=slots, max_queued_jobs=rng.randrange(1, 5)) as engine:
            async with engine.run(source() if rng.randrange(2) else jobs) as results:
                while True:
                    with trio.move_on_after(rng.choice([0.0, 0.05, 10.0])):
                        try:
                            taken.append((await anext(results)).job_id)
                        except StopAsyncIteration:
                            break
                    assert engine.statistics().accepted - len(taken) <= 2 * slots
        assert sorted(item.id for item in jobs) == sorted(taken)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_taking_jobs_in_keeps_nobody_from_their_turn(autojump_clock):
    """However many jobs there is room for, others run meanwhile, and the first repairs are made."""
    pulled, turns = 0, []

    def source() -> Iterator[RepairJob]:
        nonlocal pulled
        for number in range(4_000):
            pulled += 1
            yield job(f"d{number}")

    async def look_on() -> None:
        while pulled < 4_000:
            turns.append(pulled)
            await trio.lowlevel.checkpoint()

    async with _opened(executor=_second, max_concurrent_jobs=3_000) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(look_on)
        async with engine.run(source()) as results:
            assert 4_000 == len([result async for result in results])
    longest = max(after - before for before, after in itertools.pairwise(turns))
    assert longest <= 2 * 1024  # Trio shuffles whose turn it is
