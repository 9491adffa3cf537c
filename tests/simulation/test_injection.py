"""What a simulation needs from the engine: a time of day and job ids that are not the system's."""

from __future__ import annotations

import datetime as dt

import pytest
import trio
from engine_world import World, config, job

from trio_repair import DuplicateJob, RepairOutcome, open_repair_engine
from trio_repair.testing import RecordingInstrument

LONG_AGO = dt.datetime(1999, 1, 1, tzinfo=dt.timezone.utc)


async def test_deadlines_are_read_on_the_given_clock(autojump_clock) -> None:
    """Two seconds after the given time of day, whatever the system's clock shows."""
    world = World({"text": {"observe": 60.0}})
    world.drift()
    async with open_repair_engine(world.stores, config(), wall_clock=lambda: LONG_AGO) as engine:
        begin = trio.current_time()
        result = await engine.execute_repair_job(job(deadline=LONG_AGO + dt.timedelta(seconds=2)))
        assert (RepairOutcome.TIMED_OUT, 2.0) == (result.outcome, trio.current_time() - begin)


async def test_control_without_it_the_systems_clock_counts(autojump_clock) -> None:
    """The same deadline passed long ago."""
    world = World()
    async with open_repair_engine(world.stores, config()) as engine:
        begin = trio.current_time()
        result = await engine.execute_repair_job(job(deadline=LONG_AGO + dt.timedelta(seconds=2)))
        assert (RepairOutcome.TIMED_OUT, 0.0) == (result.outcome, trio.current_time() - begin)


async def test_a_resolution_takes_the_callers_job_id(autojump_clock) -> None:
    """In events and result; and like every id it must be unique while it is live."""
    world = World({"text": {"observe": 1.0}})
    world.drift()
    events = RecordingInstrument()
    async with open_repair_engine(world.stores, config(), instruments=[events]) as engine:
        engine.submit_nowait(job("other", id="mine"))
        with pytest.raises(DuplicateJob):
            await engine.resolve("d", "text", job_id="mine")
        result = await engine.resolve("d", "text", job_id="yours")
    assert "yours" == result.job_id
    assert {"mine", "yours"} == {event.job.id for event in events.events if event.job is not None}


async def test_control_without_one_each_resolution_has_an_id_of_its_own(autojump_clock) -> None:
    """As before."""
    world = World()
    world.drift()
    async with open_repair_engine(world.stores, config()) as engine:
        ids = [(await engine.resolve("d", "text")).job_id for _ in range(2)]
    assert 2 == len(set(ids))
