"""Deterministic simulation: the real engine over stores that fail in every way, in virtual time, under a seed.

`simulate` runs the engine, its queue, batchers and planner over simulated stores, while an application writes at the
same time and its host is cancelled, restarted and paused. One seed gives one trace, with the same hash in every
process. Safety is judged all along, by what the stores really held; liveness once the faults have stopped.

After the simulators of FoundationDB and TigerBeetle. Needs no test framework.
"""

from __future__ import annotations

from ._profiles import PROFILES, Mishap, Profile
from ._report import SimulationReport, simulate
from ._scheduler import SimulationUnsupported
from ._story import Violation

__all__ = [
    "PROFILES",
    "Mishap",
    "Profile",
    "SimulationReport",
    "SimulationUnsupported",
    "Violation",
    "simulate",
]
