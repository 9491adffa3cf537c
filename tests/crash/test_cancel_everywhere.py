"""A repair that is cancelled after any step of the scheduler, in any way, tells the truth and can be made good."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from properties.planted import Bug, planted

from trio_repair import RepairOutcome, StepState

from .cutting import VIRTUAL, Cut, Way, cut, cut_at_every_step
from .held import Files
from .scenarios import SCENARIOS, Scenario, SqliteWorld
from .sqlite_files import open_stores
from .stepping import Stepper

COPY, DELETE = SCENARIOS[:2]

S = StepState
REACHES = {
    COPY: {
        "vector": {S.UNTOUCHED, S.UNKNOWN, S.APPLIED, S.VERIFIED},
        "cache": {S.UNTOUCHED, S.UNKNOWN, S.APPLIED},
    },
    DELETE: {
        "vector": {S.UNTOUCHED, S.UNKNOWN, S.APPLIED, S.VERIFIED},
        "cache": {S.UNTOUCHED, S.UNKNOWN, S.INVALIDATED},
    },
}
REACHES_OUTCOME = {
    Way.JOB: RepairOutcome.CANCELLED,
    Way.TIMEOUT: RepairOutcome.TIMED_OUT,
    Way.HOST_WITHOUT_GRACE: RepairOutcome.CANCELLED,
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The log of ten thousand calls that are given up."""
    logger = logging.getLogger("trio_repair")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def _wrong(cuts: list[Cut]) -> dict[int, list[str]]:
    return {step: done.wrong for step, done in enumerate(cuts, 1) if done.wrong}


# The first two make every kind of change; for the others, who it is that cancels makes no difference.
CUTS = [
    (scenario, way)
    for scenario in SCENARIOS
    for way in Way
    if scenario in (COPY, DELETE) or way not in (Way.JOB_AND_AGAIN, Way.CALLER, Way.HOST)
]
CUTS.remove((DELETE, Way.JOB_AND_AGAIN))  # as long as all the others


@pytest.mark.parametrize(("scenario", "way"), CUTS, ids=str)
def test_cut_off_after_any_step(scenario: Scenario, way: Way) -> None:
    """Told is stored, a copy stays readable at every step, nothing is left over, and repairing again makes it good."""
    cuts = cut_at_every_step(scenario, way)
    assert {} == _wrong(cuts)
    assert all(done.acted for done in cuts), [step for step, done in enumerate(cuts, 1) if not done.acted]
    assert 25 < len(cuts)
    if scenario in REACHES and way in (Way.JOB, Way.TIMEOUT, Way.HOST_WITHOUT_GRACE):
        # Early and late, before a write is sent, while it is under way, and after it landed.
        results = [done.result for done in cuts if done.result is not None]
        assert {REACHES_OUTCOME[way], RepairOutcome.REPAIRED} == {result.outcome for result in results}
        for store, states in REACHES[scenario].items():
            assert states == {result.step(store).state for result in results}


PLANTED = [
    (
        Way.JOB,
        "was sent",
        Bug(
            "a write without a verdict counts as never sent",
            "_progress:StoreProgress.state",
            "if request.was_sent]",
            "if request.answer is not None]",
        ),
    ),
    (
        Way.CALLER,
        "it was written",
        Bug("what has landed is forgotten", "_progress:Progress._learn", "store.learn()", "pass"),
    ),
    (
        Way.JOB_AND_AGAIN,
        "two changes of d under way at once",
        Bug(
            "a write under way does not lock its document",
            "_progress:Progress.outstanding",
            "request.was_sent and not request.ended",
            "False",
        ),
    ),
    (
        Way.TIMEOUT,
        "it does not hold",
        Bug(
            "what was only written is told as read back",
            "_progress:StoreProgress.wrote",
            "confirmed = False",
            "confirmed = True",
        ),
    ),
]


@pytest.mark.parametrize(("way", "found", "bug"), PLANTED, ids=lambda value: value if isinstance(value, Bug) else "")
def test_control_a_planted_bug_is_found_at_some_step(way: Way, found: str, bug: Bug) -> None:
    """The control: with one line of the engine changed, the same cuts find it."""
    with planted(bug):
        wrong = [
            problem
            for problems in _wrong(cut_at_every_step(COPY, way, at_first_wrong=True)).values()
            for problem in problems
        ]
    assert any(found in problem for problem in wrong), wrong


def test_control_a_store_that_deletes_and_then_inserts_is_found() -> None:
    """The control of "a copy stays readable": between the two steps there is none, and cut off there it is gone."""
    cuts = cut_at_every_step(COPY, Way.HOST_WITHOUT_GRACE, delete_then_insert=True, at_first_wrong=True)
    wrong = _wrong(cuts)
    assert any(
        "vector had a readable copy and has none" in problem for problems in wrong.values() for problem in problems
    )


@contextlib.asynccontextmanager
async def _sqlite_world(directory: Path):
    async with open_stores(directory, create=True) as stores:
        files = Files(directory)
        try:
            yield SqliteWorld(stores, files)
        finally:
            files.close()


async def _cut_in_files(world: SqliteWorld, scenario: Scenario, way: Way, step: int, doc_id: str) -> Cut:
    stepper = Stepper()
    trio.lowlevel.add_instrument(stepper)
    try:
        return await cut(world, scenario, way, step, stepper, doc_id=doc_id, checkpoints=False)
    finally:
        trio.lowlevel.remove_instrument(stepper)


@pytest.mark.parametrize("way", [way for way in Way if way not in VIRTUAL], ids=str)
async def test_cut_off_over_sqlite(tmp_path: Path, way: Way) -> None:
    """The same over the SQLite stores, whose threads go on while the repair is cut off; every fifth step."""
    numbers = itertools.count()
    outcomes: Counter[RepairOutcome | None] = Counter()
    async with _sqlite_world(tmp_path) as world:
        for scenario in SCENARIOS:
            alone = await _cut_in_files(world, scenario, way, 0, f"{scenario}-{next(numbers)}")
            assert [] == alone.wrong
            for step in range(1, alone.steps, 5):
                done = await _cut_in_files(world, scenario, way, step, f"{scenario}-{next(numbers)}")
                assert [] == done.wrong, (scenario, step)
                outcomes[None if done.result is None else done.result.outcome] += 1
        assert [] == world.files.unsound()
    assert 0 < outcomes[RepairOutcome.CANCELLED]
    assert 0 < outcomes[RepairOutcome.REPAIRED]
