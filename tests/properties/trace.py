"""What a play leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from trio_repair import EngineStatistics, RepairHandle, RepairPlan, RepairResult
from trio_repair.stores.memory import MemoryCopy
from trio_repair.testing import FaultKind, FaultyStore

from .recording import Entry, GroundStore, Happened, Log, RoundBegan
from .scenario import Scenario

MARKER = "classified-"
"""Every text of every document holds it; nothing that the engine says may."""

PATIENT: dict[str, Any] = {
    "job_timeout_seconds": 600.0,
    "drain_timeout": 3600.0,
    "store_call_timeout": 60.0,
    "unavailable_timeout": 300.0,
    "breaker_failures": 100,
    "max_queued_jobs": 100,
}
"""Settings under which nothing ends for lack of time."""

Snapshot = Mapping[str, Mapping[str, MemoryCopy]]


@attrs.define(kw_only=True)
class Caller:
    """Somebody who waits in `execute_repair_job`."""

    job_id: str
    left: bool = False
    """It was cancelled, and its Cancelled arrived where it belongs."""
    refused: bool = False
    result: RepairResult | None = None


@attrs.define
class Trace:
    scenario: Scenario
    log: Log = attrs.field(factory=Log)
    stores: dict[str, GroundStore] = attrs.field(factory=dict)
    faulty: dict[str, FaultyStore] = attrs.field(factory=dict)
    before: Snapshot = attrs.field(factory=dict)
    after: Snapshot = attrs.field(factory=dict)
    """At the end of the first engine."""
    handles: dict[str, RepairHandle] = attrs.field(factory=dict)
    plans: dict[str, RepairPlan] = attrs.field(factory=dict)
    """By job id."""
    callers: list[Caller] = attrs.field(factory=list)
    streamed: list[RepairResult] = attrs.field(factory=list)
    resolved: list[RepairResult] = attrs.field(factory=list)
    refused: int = 0
    """Jobs that were not accepted: the queue was full, the engine closing."""
    cleaned: list[list[str]] = attrs.field(factory=list)
    statistics: EngineStatistics = attrs.field(init=False)
    """After the first engine had closed."""
    final_rounds: list[list[RepairResult]] = attrs.field(factory=list)
    ending_at: float = 0.0
    """When the engine was told to stop."""
    ended_at: float = 0.0
    host_cancelled: bool = False
    tasks_left: int = 0
    escaped: BaseException | None = None
    said: list[str] = attrs.field(factory=list)
    """Log records as they would be printed."""

    @property
    def entries(self) -> list[Entry]:
        return self.log.entries

    @property
    def results(self) -> list[RepairResult]:
        """Of the first engine, in order."""
        happened = [entry.event for entry in self.first() if isinstance(entry, Happened)]
        return [event.result for event in happened if event.result is not None]

    def first(self) -> list[Entry]:
        """The log of the first engine."""
        for index, entry in enumerate(self.entries):
            if isinstance(entry, RoundBegan):
                return self.entries[:index]
        return self.entries


def injected(trace: Trace) -> dict[FaultKind, int]:
    """How often each fault had its effect."""
    total: dict[FaultKind, int] = {}
    for faulty in trace.faulty.values():
        for kind, count in faulty.injected.items():
            total[kind] = total.get(kind, 0) + count
    return total
