"""Random cancels over the SQLite stores: what was told and what is stored never differ. A share of the full run.

The full run is ``python -m tests.crash.cancels``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from properties.planted import Bug, planted

from .cancels import OF_ONE_JOB, storm

CANCELS = 300
ENOUGH_FOR_A_BUG = 400


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The log of store calls that are given up."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


async def test_random_cancels(tmp_path: Path) -> None:
    """Cancelled in every way and phase, by the hundred: each receipt is true, and in the end all gets repaired."""
    report = await storm(tmp_path, cancels=CANCELS, seed=1)
    assert [] == report.differences
    assert set(OF_ONE_JOB) < report.hits.keys()
    assert {"observe", "read", "prepare", "write", "verify", "cache"} >= report.phases.keys() >= {"observe", "write"}
    assert {"cancelled", "timed-out", "repaired"} < report.outcomes.keys()
    for state in ("untouched", "unknown", "applied", "verified"):
        assert 0 < report.states["vector", state]


BUGS = [
    Bug(
        "a write without a verdict counts as never sent",
        "_progress:StoreProgress.state",
        "if request.was_sent]",
        "if request.answer is not None]",
    ),
    Bug("what has landed is forgotten", "_progress:Progress._learn", "store.learn()", "pass"),
    Bug(
        "a write under way is not told",
        "_progress:StoreProgress.state",
        "return StepState.UNKNOWN",
        "return StepState.FAILED",
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=str)
async def test_control_a_planted_bug_is_found_within_so_many_cancels(tmp_path: Path, bug: Bug) -> None:
    """The control: an engine with one line changed is found out by the same cancels."""
    with planted(bug):
        report = await storm(tmp_path, cancels=ENOUGH_FOR_A_BUG, seed=1, at_first_difference=True)
    assert report.differences
