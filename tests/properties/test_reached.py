"""Non-vacuity: the scenarios reach every outcome, every word of a receipt and every fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from trio_repair import RepairOutcome, StepState
from trio_repair.testing import FaultKind

from .drawing import KINDS
from .laws import LAWS
from .planted import Bug, planted
from .play import play
from .recording import Effect
from .scenario import Scenario
from .situations import calm
from .trace import Trace, injected

_HASTY = {"store_call_timeout": 0.2, "job_timeout_seconds": 5.0, "max_reobserve": 0, "max_queued_jobs": 100}

BATCHES = (
    (LAWS["i08"].draw, 40),
    (LAWS["i09"].draw, 30),
    (LAWS["i01 contended"].draw, 10),
    (calm(kinds=(FaultKind.CONCURRENT_WRITE,), operations=("write",), for_ever=True, config=_HASTY), 5),
    (calm(kinds=(FaultKind.SWALLOWED_CANCEL,), operations=("observe",), for_ever=True, config=_HASTY), 20),
    *((calm(kinds=(kind,), for_ever=True, config=_HASTY), 5) for kind in KINDS),
)


@attrs.define
class Reached:
    outcomes: Counter[RepairOutcome] = attrs.field(factory=Counter)
    states: Counter[StepState] = attrs.field(factory=Counter)
    faults: Counter[FaultKind] = attrs.field(factory=Counter)
    authors: Counter[str] = attrs.field(factory=Counter)
    retries: int = 0
    reobserved: int = 0

    def add(self, trace: Trace) -> None:
        for result in trace.results:
            self.outcomes[result.outcome] += 1
            self.states.update(step.state for step in result.receipt)
        self.faults.update(injected(trace))
        self.authors.update(entry.author for entry in trace.entries if isinstance(entry, Effect))
        self.retries += trace.statistics.retries
        self.reobserved += trace.statistics.reobserved


def reached(batches: Sequence[tuple[st.SearchStrategy[Scenario], int]] = BATCHES) -> Reached:
    total = Reached()
    for draw, number in batches:

        @settings(
            max_examples=number,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(draw)
        def batch(scenario: Scenario) -> None:
            total.add(play(scenario))

        batch()
    return total


def _check_outcomes(total: Reached) -> None:
    assert set(RepairOutcome) == set(total.outcomes), total


def _check(total: Reached) -> None:
    _check_outcomes(total)
    assert set(StepState) == set(total.states), total
    assert set(KINDS) == {kind for kind, count in total.faults.items() if count}, total
    assert {"engine", "rival", "app"} == set(total.authors), total
    assert total.retries > 0, total
    assert total.reobserved > 0, total


def test_every_outcome_receipt_state_and_fault_is_reached() -> None:
    """A batch of drawn scenarios ends in every outcome, says every word of a receipt and injects every fault."""
    _check(reached())


def test_control_an_engine_that_always_fails_is_noticed() -> None:
    """An engine that reports FAILED without trying breaks no law of safety; it is found to do nothing."""
    bug = Bug(
        "always failed",
        "_execution:Repairer._attempt",
        "return await self._look_and_repair(entry, progress)",
        'return Verdict(RepairOutcome.FAILED, "no")',
    )
    _check_outcomes(reached(BATCHES[:1]))
    with planted(bug), pytest.raises(AssertionError):
        _check_outcomes(reached(BATCHES[:1]))
