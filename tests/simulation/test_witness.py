"""The judge of a simulation: whose look is whose."""

from __future__ import annotations

import pytest

from trio_repair import AbsentMeans, EngineEvent, EventKind, Observation, Presence, RepairJob, SyncStrategy
from trio_repair.testing import EMBEDDING
from trio_repair.testing.simulation._oracle import CRITICAL, Rules
from trio_repair.testing.simulation._witness import Witness

RULES = Rules(
    absent=dict.fromkeys(CRITICAL, AbsentMeans.MISSING),
    missing_source="refuse",
    hlc=False,
    skew=1.0,
    embedding=EMBEDDING,
)
SEEN = Observation(presence=Presence.ABSENT, token="absent")
JOB = RepairJob(id="one", doc_id="d", strategy=SyncStrategy.MOST_RECENT)


@pytest.mark.parametrize("before", [True, False])
async def test_a_call_that_would_not_stop_shows_nothing_to_the_next_attempt(before: bool) -> None:
    """What was asked before an attempt began is not its look. Control: what it asked itself is."""
    witness = Witness(RULES, lambda: 0.0, lambda: None)
    started = EngineEvent(kind=EventKind.STARTED, at=0.0, doc_id="d", job=JOB, attempt=1, limit=1, timeout=9.0)
    witness.on_event(EngineEvent(kind=EventKind.ACCEPTED, at=0.0, doc_id="d", job=JOB))
    if before:
        records = witness.call_began("text", "observe", ["d"])
        witness.on_event(started)
    else:
        witness.on_event(started)
        records = witness.call_began("text", "observe", ["d"])
    witness.call_ended("text", "observe", records, [SEEN])
    assert witness.violation is None
    assert (0 if before else 1) == len(witness._attempts["d"].views("text"))
