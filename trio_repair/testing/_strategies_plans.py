"""Strategies for what goes wrong over time, and for who goes next."""

from __future__ import annotations

from collections.abc import Collection

import hypothesis.strategies as st

from ._fault_plans import FaultPlan, Trouble
from ._faults import FaultKind
from ._interleaving import Interleaving
from ._strategies_values import DRAWN_FAULTS, faults


@st.composite
def fault_plans(
    draw: st.DrawFn,
    *,
    stores: Collection[str] = ("text", "vector", "cache"),
    kinds: Collection[FaultKind] = DRAWN_FAULTS,
    seconds: float = 60.0,
    max_size: int = 5,
) -> FaultPlan:
    """Plans that are over after `seconds`: every fault in them ends, in an order that is not that of their beginnings.

    Args:
        stores: names to choose from.
        kinds: faults to draw from; by default as `faults`.
        seconds: when the last fault has ended, at the latest.
        max_size: the largest number of faults.
    """
    moments = st.integers(0, 100).map(lambda hundredth: hundredth * seconds / 100)
    troubles: list[Trouble] = []
    for _ in range(draw(st.integers(0, max_size))):
        start, end = sorted([draw(moments), draw(moments)])
        fault = draw(faults(kinds=kinds))
        troubles.append(Trouble(store=draw(st.sampled_from(sorted(stores))), fault=fault, start=start, end=end))
    return FaultPlan(tuple(troubles))


def interleavings(*, max_turns: int = 40) -> st.SearchStrategy[Interleaving]:
    """Orders in which actors take turns; see `trio_repair.testing.Interleaving`. They shrink to "the first one goes".

    Args:
        max_turns: so many turns are drawn; those that come after them are given to whoever is named first.
    """
    # 60 can be divided by every number of actors up to six, so that none is favoured.
    return st.builds(Interleaving, st.lists(st.integers(0, 59), max_size=max_turns).map(tuple))
