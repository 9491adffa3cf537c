"""Doubles and checks for programs that use or extend trio_repair. Nothing here needs a test framework.

`check_store` holds a store to its contract in one line; `FaultyStore` and `SimulatedStore` put faults and time between
a store and its caller, and `applied` does so by a `FaultPlan`; `CrashingStore` can lose what it had not committed;
`Interleaving` lets concurrent actors take turns; `RecordingInstrument` remembers what an engine did, and `assert_trace`
judges it. `trio_repair.testing.strategies` and `trio_repair.testing.stateful` need Hypothesis, nothing else here does.
"""

from __future__ import annotations

from ._ailments import Crashable, write_newer
from ._contents import EMBEDDING, OTHER_EMBEDDING, HeldCopy, HeldDocument, StoreContents
from ._contract import PROMISES, ContractBroken, check_store
from ._crashing_store import CrashingStore
from ._doubles import (
    SEED_LATENCIES,
    RecordingInstrument,
    SimulatedStore,
    make_document,
    seed_stores,
)
from ._fault_plans import FaultPlan, Trouble, applied
from ._faults import DriverFault, Fault, FaultKind
from ._faulty_store import FaultyStore
from ._interleaving import Interleaving, Turn
from ._trace import assert_trace
from ._trace_state import TraceViolation

__all__ = [
    "EMBEDDING",
    "OTHER_EMBEDDING",
    "PROMISES",
    "SEED_LATENCIES",
    "ContractBroken",
    "Crashable",
    "CrashingStore",
    "DriverFault",
    "Fault",
    "FaultKind",
    "FaultPlan",
    "FaultyStore",
    "HeldCopy",
    "HeldDocument",
    "Interleaving",
    "RecordingInstrument",
    "SimulatedStore",
    "StoreContents",
    "TraceViolation",
    "Trouble",
    "Turn",
    "applied",
    "assert_trace",
    "check_store",
    "make_document",
    "seed_stores",
    "write_newer",
]
