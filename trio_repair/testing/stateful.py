"""State machines for Hypothesis that run inside Trio, and a ready one for engines and stores. Needs Hypothesis.

`TrioStateMachine` is a `RuleBasedStateMachine` whose steps may be async; `repair_machine` makes one that drives an
engine over your stores and checks its invariants after each step.
"""

from __future__ import annotations

from ._repair_machine import OpenStores, RepairMachine, repair_machine
from ._trio_machine import StepTimeout, TrioStateMachine, initialize, invariant, precondition, rule

__all__ = [
    "OpenStores",
    "RepairMachine",
    "StepTimeout",
    "TrioStateMachine",
    "initialize",
    "invariant",
    "precondition",
    "repair_machine",
    "rule",
]
