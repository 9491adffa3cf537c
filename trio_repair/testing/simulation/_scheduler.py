"""Trio's scheduler under a seed. The only place that touches Trio's private parts.

Trio runs the tasks of one round in random order, on purpose. A replay needs the same order again: tasks sorted by
their number and shuffled by a generator of ours. Hypothesis' Trio support and trio's own tests do the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

from trio_repair import TrioRepairError

_FLAG: Final = "_ALLOW_DETERMINISTIC_SCHEDULING"


class SimulationUnsupported(TrioRepairError):
    """This version of Trio keeps its scheduler's random generator elsewhere: a seed would not give one trace."""


@contextmanager
def seeded_scheduler(seed: int) -> Iterator[None]:
    """Within the block, `trio.run` schedules tasks in an order that `seed` decides.

    Raises:
        SimulationUnsupported: Trio has no such switch; nothing was changed.
    """
    run: Any = trio._core._run
    generator = getattr(run, "_r", None)
    allowed = getattr(run, _FLAG, None)
    if not isinstance(generator, random.Random) or not isinstance(allowed, bool):
        raise SimulationUnsupported(
            f"simulations need a Trio whose scheduler can be seeded, and {trio.__version__} is none; use 0.31 to 0.35"
        )
    state = generator.getstate()
    setattr(run, _FLAG, True)
    generator.seed(seed)
    try:
        yield
    finally:
        setattr(run, _FLAG, allowed)
        generator.setstate(state)
