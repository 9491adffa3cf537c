"""Non-vacuity: the scenarios reach every outcome, every word of a receipt and every fault."""

from __future__ import annotations

from collections import Counter

import attrs
from hypothesis import HealthCheck, Phase, given, settings

from trio_repair import RepairOutcome, StepState, SyncStrategy
from trio_repair.testing import FaultKind

from .drawing import KINDS
from .laws import LAWS
from .play import Trace, injected, play
from .recording import Effect
from .scenario import Scenario

BATCHES = {"i01": 40, "i01 contended": 40, "i06": 40, "i10": 20, "i12": 30}


@attrs.define
class Reached:
    outcomes: Counter[RepairOutcome] = attrs.field(factory=Counter)
    states: Counter[StepState] = attrs.field(factory=Counter)
    faults: Counter[FaultKind] = attrs.field(factory=Counter)
    strategies: Counter[SyncStrategy] = attrs.field(factory=Counter)
    authors: Counter[str] = attrs.field(factory=Counter)
    retries: int = 0
    reobserved: int = 0
    shared: int = 0

    def add(self, trace: Trace) -> None:
        for result in trace.results:
            self.outcomes[result.outcome] += 1
            self.states.update(step.state for step in result.receipt)
        self.faults.update(injected(trace))
        self.authors.update(entry.author for entry in trace.entries if isinstance(entry, Effect))
        self.retries += trace.statistics.retries
        self.reobserved += trace.statistics.reobserved


def reached() -> Reached:
    total = Reached()
    for name, number in BATCHES.items():

        @settings(
            max_examples=number,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(LAWS[name].draw)
        def batch(scenario: Scenario) -> None:
            total.add(play(scenario))

        batch()
    return total


def test_every_outcome_receipt_state_and_fault_is_reached() -> None:
    """A batch of drawn scenarios ends in every outcome, says every word of a receipt and injects every fault."""
    total = reached()
    assert set(RepairOutcome) == set(total.outcomes), total
    assert set(StepState) == set(total.states), total
    assert set(KINDS) == {kind for kind, count in total.faults.items() if count}, total
    assert {"engine", "rival", "app"} == set(total.authors), total
    assert total.retries > 0, total
    assert total.reobserved > 0, total
