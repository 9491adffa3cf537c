"""Bring a document's full-text, vector and cache copies back in sync, each repair under its own deadline.

    RepairJob ──submit──▶ work queue ──slot──▶ supervisor nursery ── move_on_after(timeout) ──────────────────┐
                          one entry per         observe ▶ decide ▶ read ▶ prepare ▶ write ▶ read back ▶ cache │
                          document              (stores)  (pure)          (no effect) (fenced)                │
    RepairResult ◀── receipt for each store ◀── retry? park? leave to a person? ◀─────────────────────────────┘

Between a repair and a store stands that store's batcher, outside the repair's cancel scope: a deadline never cuts a
write off in the middle, and concurrent repairs share bulk calls.

Layers, each importing only downward:

    0  model        _model _views _events _errors _enums _config
    1  seams        abc
    2  decisions    _divergence _summary _ranges _plan _planning _backoff _clock pure, synchronous, without Trio
    3  mechanisms   _timetable _breaker _suspects _stepping _requests _waiting _store_call _batching
                    _progress _ticket _queue _active _limits _verdict _telling _execution _cache_repair _streaming
    4  engine       _engine _supervisor _check _merge _lanes
    5  edges        stores embedding instrumentation testing cli demo   they use the public surface only
"""

from ._batching import StoreStatistics
from ._check import ChangeCounts, Checking, CheckStatistics, check, count_changes
from ._config import AutoRepairConfig
from ._divergence import Divergence, DivergenceKind, Finding, diagnose, is_equal
from ._engine import EngineStatistics, RepairExecutionEngine, RepairHandle, open_repair_engine
from ._errors import (
    CheckIncomplete,
    CircuitOpen,
    DuplicateJob,
    EngineClosed,
    InvalidDocumentId,
    InvalidValue,
    MassChangeRefused,
    StoreError,
    StoreFileError,
    StoreMisbehaved,
    StoreRejected,
    StoreUnavailable,
    TrioRepairError,
)
from ._events import CallEvent, EngineEvent, EventKind
from ._model import (
    ActiveRepair,
    ContentDefinition,
    Document,
    DocumentVersion,
    ReceiptStep,
    RepairJob,
    RepairOutcome,
    RepairPhase,
    RepairPriority,
    RepairResult,
    RepairTrigger,
    StepState,
    SyncStrategy,
)
from ._planning import CacheStep, PlanAction, PlannedWrite, Policy, RepairPlan, plan_repair, plan_resolution
from ._streaming import PlannedJob, ResultStream
from ._summary import summarize
from ._views import (
    AbsentMeans,
    EmbeddingIdentity,
    Fence,
    Observation,
    Prepared,
    Presence,
    RangeDigest,
    RangeListing,
    Removal,
    StoredDocument,
    StoreTraits,
    Write,
    WriteAnswer,
    WriteStatus,
)
from .abc import Stores

__version__ = "0.1.0"

__all__ = [
    "AbsentMeans",
    "ActiveRepair",
    "AutoRepairConfig",
    "CacheStep",
    "CallEvent",
    "ChangeCounts",
    "CheckIncomplete",
    "CheckStatistics",
    "Checking",
    "CircuitOpen",
    "ContentDefinition",
    "Divergence",
    "DivergenceKind",
    "Document",
    "DocumentVersion",
    "DuplicateJob",
    "EmbeddingIdentity",
    "EngineClosed",
    "EngineEvent",
    "EngineStatistics",
    "EventKind",
    "Fence",
    "Finding",
    "InvalidDocumentId",
    "InvalidValue",
    "MassChangeRefused",
    "Observation",
    "PlanAction",
    "PlannedJob",
    "PlannedWrite",
    "Policy",
    "Prepared",
    "Presence",
    "RangeDigest",
    "RangeListing",
    "ReceiptStep",
    "Removal",
    "RepairExecutionEngine",
    "RepairHandle",
    "RepairJob",
    "RepairOutcome",
    "RepairPhase",
    "RepairPlan",
    "RepairPriority",
    "RepairResult",
    "RepairTrigger",
    "ResultStream",
    "StepState",
    "StoreError",
    "StoreFileError",
    "StoreMisbehaved",
    "StoreRejected",
    "StoreStatistics",
    "StoreTraits",
    "StoreUnavailable",
    "StoredDocument",
    "Stores",
    "SyncStrategy",
    "TrioRepairError",
    "Write",
    "WriteAnswer",
    "WriteStatus",
    "check",
    "count_changes",
    "diagnose",
    "is_equal",
    "open_repair_engine",
    "plan_repair",
    "plan_resolution",
    "summarize",
]
