"""An engine as Prometheus metrics. Needs the extra ``trio-repair[prometheus]``.

Every label has a fixed set of values: no metric grows with the number of documents or jobs. docs/instruments.md lists
the metrics.
"""

from __future__ import annotations

import functools
import time
from collections import Counter as Tally
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from trio_repair import CallEvent, EngineEvent, EventKind, InvalidValue, RepairJob, RepairOutcome, RepairPriority

_REPAIR_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_CALL_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_CALL_DOCUMENTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class PrometheusInstrument:
    """Counts what one engine does, for a scrape to read at any time and in any thread.

    ::

        instrument = PrometheusInstrument()
        prometheus_client.start_http_server(9464, addr="127.0.0.1", registry=instrument.registry)
        async with open_repair_engine(stores, instruments=[instrument]) as engine:
            ...

    Args:
        registry: where the metrics are registered; None: a registry of its own, at `registry`.
        clock: seconds that never go back; to tell which repairs are overdue.

    Raises:
        InvalidValue: the registry has these metrics already. An instrument is for one engine, and a registry for one
            instrument.
    """

    also_hears: Final = frozenset({EventKind.CALL_ENDED})

    def __init__(
        self, registry: CollectorRegistry | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=True) if registry is None else registry
        self._clock = clock
        self._queued = dict.fromkeys(RepairPriority, 0)
        # Invariant: an accepted job that is not settled is either in `_waiting`, or in `_attempt_of` and its attempt.
        self._waiting: dict[str, RepairPriority] = {}
        self._attempt_of: dict[str, int] = {}
        self._attempts: dict[int, dict[str, RepairPriority]] = {}
        self._known: dict[tuple[str, str], tuple[Histogram, Histogram, Counter]] = {}
        """What a call is counted with, by store and operation."""
        self._due: dict[int, float] = {}
        """When each running attempt is to have ended, on the clock."""
        self._locks: Tally[str] = Tally()
        """On how many stores a write of each locked document is still under way."""
        try:
            self._register()
        except ValueError as error:
            raise InvalidValue(
                "registry", "has metrics of these names already; give each engine's instrument a registry of its own"
            ) from error
        self._handlers: Final[dict[EventKind, Callable[[EngineEvent], None]]] = {
            EventKind.ACCEPTED: self._on_accepted,
            EventKind.STARTED: self._on_started,
            EventKind.ENDED: self._on_ended,
            EventKind.SETTLED: self._on_settled,
            EventKind.RETRY: lambda _: self._retries.inc(),
            EventKind.REOBSERVED: lambda _: self._reobserved.inc(),
            EventKind.LOCKED: self._on_locked,
            EventKind.UNLOCKED: self._on_unlocked,
            EventKind.WRITE_SETTLED: lambda event: self._writes.labels(event.store, event.detail).inc(),
            EventKind.CALL_ENDED: self._on_call_ended,
            EventKind.CALL_OVERDUE: lambda event: self._abandoned.labels(event.store, event.detail).inc(),
            EventKind.CALL_OVERSTAYED: lambda event: self._overstayed.labels(event.store, event.detail).inc(),
            EventKind.LOOP_BLOCKED: lambda event: self._blocked.labels(event.store).inc(),
            EventKind.STORE_MISBEHAVED: lambda event: self._misbehaved.labels(event.store).inc(),
            EventKind.BREAKER_OPENED: lambda event: self._breaker.labels(event.store).set(1),
            EventKind.BREAKER_CLOSED: lambda event: self._breaker.labels(event.store).set(0),
        }

    def on_event(self, event: EngineEvent) -> None:
        """Count one event."""
        handler = self._handlers.get(event.kind)
        if handler is not None:
            handler(event)

    def _register(self) -> None:
        counter = functools.partial(Counter, namespace="trio_repair", registry=self.registry)
        gauge = functools.partial(Gauge, namespace="trio_repair", registry=self.registry)
        histogram = functools.partial(Histogram, namespace="trio_repair", registry=self.registry)
        by_call = ("store", "operation")
        # Jobs and repairs
        self._accepted = counter("jobs_accepted", "Jobs that the engine accepted.", ("priority",))
        self._results = counter("results", "Jobs that were settled.", ("outcome",))
        queued = gauge("queued_jobs", "Jobs that wait: for a slot, a document or the end of a back-off.", ("priority",))
        gauge("active_repairs", "Repairs that hold a slot.").set_function(lambda: len(self._due))
        gauge("overdue_repairs", "Active repairs whose time is up.").set_function(self._overdue)
        self._limit = gauge(
            "active_repairs_limit", "How many repairs may be active, as of the last start; 0 before the first."
        )
        gauge("locked_documents", "Documents that a store still writes although their repair has ended.").set_function(
            lambda: len(self._locks)
        )
        self._retries = counter("retries", "Attempts that failed for a transient reason and are repeated.")
        self._reobserved = counter("reobserved", "Documents that changed under their repair and were looked at again.")
        self._queued_time = histogram(
            "queued",
            "How long settled jobs waited before their first attempt.",
            unit="seconds",
            buckets=_REPAIR_SECONDS,
        )
        self._running_time = histogram(
            "running", "How long the attempts of settled jobs took in all.", unit="seconds", buckets=_REPAIR_SECONDS
        )
        # Stores
        self._call_time = histogram(
            "store_call", "How long store calls took.", by_call, unit="seconds", buckets=_CALL_SECONDS
        )
        self._call_size = histogram(
            "store_call", "How many documents a store call was for.", by_call, unit="documents", buckets=_CALL_DOCUMENTS
        )
        self._failed = counter("store_calls_failed", "Store calls that raised or were given up.", by_call)
        self._abandoned = counter("store_calls_abandoned", "Store calls that were given up for their time.", by_call)
        self._overstayed = counter("store_calls_overstayed", "Store calls that went on when told to stop.", by_call)
        self._blocked = counter("store_loop_blocked", "Store calls that blocked the event loop.", ("store",))
        self._misbehaved = counter("store_misbehaved", "Store calls that broke the contract of stores.", ("store",))
        self._writes = counter("store_writes", "Writes of one document each.", ("store", "verdict"))
        self._breaker = gauge("store_breaker_open", "1 while a store's circuit breaker is not closed.", ("store",))
        # Rates begin at 0, not with the first one that is not.
        for priority in RepairPriority:
            self._accepted.labels(priority.name.lower())
            child = queued.labels(priority.name.lower())
            child.set_function(functools.partial(self._queued.__getitem__, priority))
        for outcome in RepairOutcome:
            self._results.labels(outcome.value)

    def _overdue(self) -> int:
        now = self._clock()
        return sum(1 for due in tuple(self._due.values()) if now > due)

    # Jobs

    def _on_accepted(self, event: EngineEvent) -> None:
        job = _job(event)
        self._waiting[job.id] = job.priority
        self._queued[job.priority] += 1
        self._accepted.labels(job.priority.name.lower()).inc()

    def _on_started(self, event: EngineEvent) -> None:
        job, attempt = _job(event), event.attempt
        assert attempt is not None
        if self._waiting.pop(job.id, None) is not None:
            self._queued[job.priority] -= 1
        if attempt not in self._attempts:
            self._attempts[attempt] = {}
            self._due[attempt] = self._clock() + (0.0 if event.timeout is None else event.timeout)
            self._limit.set(0 if event.limit is None else event.limit)
        self._attempts[attempt][job.id] = job.priority
        self._attempt_of[job.id] = attempt

    def _on_ended(self, event: EngineEvent) -> None:
        assert event.attempt is not None
        self._due.pop(event.attempt, None)
        for job_id, priority in self._attempts.pop(event.attempt, {}).items():
            # It is settled in this same step, or it waits for the next attempt.
            del self._attempt_of[job_id]
            self._waiting[job_id] = priority
            self._queued[priority] += 1

    def _on_settled(self, event: EngineEvent) -> None:
        job, result = _job(event), event.result
        assert result is not None
        if self._waiting.pop(job.id, None) is not None:
            self._queued[job.priority] -= 1
        attempt = self._attempt_of.pop(job.id, None)
        if attempt is not None:
            del self._attempts[attempt][job.id]
        self._results.labels(result.outcome.value).inc()
        self._queued_time.observe(result.queued_seconds)
        self._running_time.observe(result.running_seconds)

    def _on_locked(self, event: EngineEvent) -> None:
        self._locks[_doc_id(event)] += 1

    def _on_unlocked(self, event: EngineEvent) -> None:
        doc_id = _doc_id(event)
        self._locks[doc_id] -= 1
        if self._locks[doc_id] <= 0:
            del self._locks[doc_id]

    # Stores

    def _on_call_ended(self, event: EngineEvent) -> None:
        assert isinstance(event, CallEvent)
        assert event.store is not None
        seconds, documents, failed = self._of_call(event.store, event.operation)
        seconds.observe(0.0 if event.seconds is None else event.seconds)
        documents.observe(len(event.doc_ids))
        if event.detail is not None:
            failed.inc()

    def _of_call(self, store: str, operation: str) -> tuple[Histogram, Histogram, Counter]:
        known = self._known.get((store, operation))
        if known is None:
            labels = store, operation
            # What has not happened yet is shown as 0.
            self._abandoned.labels(*labels)
            self._overstayed.labels(*labels)
            for metric in (self._blocked, self._misbehaved, self._breaker):
                metric.labels(store)
            known = self._call_time.labels(*labels), self._call_size.labels(*labels), self._failed.labels(*labels)
            self._known[labels] = known
        return known


def _job(event: EngineEvent) -> RepairJob:
    assert event.job is not None
    return event.job


def _doc_id(event: EngineEvent) -> str:
    assert event.doc_id is not None
    return event.doc_id
