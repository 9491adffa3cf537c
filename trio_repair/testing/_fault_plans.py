"""Faults over time: when each starts, and when it is over."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager

import attrs
import trio

from trio_repair import InvalidValue

from ._faults import Fault
from ._faulty_store import FaultyStore


@attrs.frozen(kw_only=True)
class Trouble:
    """A fault of one store, for a while.

    Raises:
        InvalidValue: it starts before the plan does, or ends before it starts.
    """

    store: str
    """By name, as `applied` is given them."""
    fault: Fault
    start: float = 0.0
    """Seconds from the beginning of the plan."""
    end: float | None = None
    """Seconds from the beginning of the plan; None: with the plan."""

    def __attrs_post_init__(self) -> None:
        if not math.isfinite(self.start) or self.start < 0:
            raise InvalidValue("start", f"must be finite seconds of at least 0, not {self.start}")
        if self.end is not None and (not math.isfinite(self.end) or self.end < self.start):
            raise InvalidValue("end", f"must be None, or finite seconds of at least {self.start}, not {self.end}")


def _as_tuple(troubles: Iterable[Trouble]) -> tuple[Trouble, ...]:
    return tuple(troubles)


@attrs.frozen
class FaultPlan:
    """What goes wrong with several stores, and when. A value: it can be drawn, printed and played again."""

    troubles: tuple[Trouble, ...] = attrs.field(default=(), converter=_as_tuple)

    @property
    def seconds(self) -> float:
        """When the last fault starts or ends."""
        moments = [trouble.start if trouble.end is None else trouble.end for trouble in self.troubles]
        return max(moments, default=0.0)


@asynccontextmanager
async def applied(plan: FaultPlan, stores: Mapping[str, FaultyStore]) -> AsyncGenerator[None, None]:
    """Play `plan` on Trio's clock for as long as the block lasts; after it, its faults are over, as is the plan.

    Args:
        plan: what goes wrong. Its time begins with the block.
        stores: by the names that the plan uses. Faults that they have already stay as they are.

    Raises:
        InvalidValue: the plan names a store that is not there, or wants one to crash that cannot.

    **If cancelled:** the plan's faults are over.
    """
    for trouble in plan.troubles:
        if trouble.store not in stores:
            raise InvalidValue("stores", f"lacks {trouble.store!r}, which the plan names")
        stores[trouble.store].check_fault(trouble.fault)
    begin = trio.current_time()
    try:
        async with trio.open_nursery() as nursery:
            for trouble in plan.troubles:
                nursery.start_soon(_suffer, trouble, stores[trouble.store], begin)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
    finally:
        for trouble in plan.troubles:
            stores[trouble.store].heal(trouble.fault)


async def _suffer(trouble: Trouble, store: FaultyStore, begin: float) -> None:
    await trio.sleep_until(begin + trouble.start)
    store.add(trouble.fault)
    if trouble.end is not None:
        await trio.sleep_until(begin + trouble.end)
        store.heal(trouble.fault)
