"""Doubles and checks for programs that use or extend trio_repair. Nothing here needs a test framework.

`check_store` holds a store to its contract in one line; `FaultyStore` and `SimulatedStore` put faults and time between
a store and its caller; `RecordingInstrument` remembers what an engine did, and `assert_trace` judges it. Hypothesis
strategies live in `trio_repair.testing.strategies`, the only module here that imports Hypothesis.
"""

from __future__ import annotations

from ._contents import EMBEDDING, OTHER_EMBEDDING, HeldCopy, HeldDocument, StoreContents
from ._contract import PROMISES, ContractBroken, check_store
from ._doubles import (
    SEED_LATENCIES,
    RecordingInstrument,
    SimulatedStore,
    make_document,
    seed_stores,
)
from ._faults import DriverFault, Fault, FaultKind
from ._faulty_store import FaultyStore, write_newer
from ._trace import TraceViolation, assert_trace

__all__ = [
    "EMBEDDING",
    "OTHER_EMBEDDING",
    "PROMISES",
    "SEED_LATENCIES",
    "ContractBroken",
    "DriverFault",
    "Fault",
    "FaultKind",
    "FaultyStore",
    "HeldCopy",
    "HeldDocument",
    "RecordingInstrument",
    "SimulatedStore",
    "StoreContents",
    "TraceViolation",
    "assert_trace",
    "check_store",
    "make_document",
    "seed_stores",
    "write_newer",
]
