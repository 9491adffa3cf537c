"""An engine's repairs as OpenTelemetry spans. Needs the extra ``trio-repair[otel]``.

A job's span lasts from its acceptance to its result, and its parent is the span that was current where the job was
submitted. Below it is a span for each phase of its attempts. A bulk call of a store serves many repairs, so it has a
span of its own, which is linked to the phases that it serves and is current while the store and its embedder work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Token
from typing import Final

import attrs
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode, TracerProvider

from trio_repair import CallEvent, EngineEvent, EventKind, RepairJob, RepairOutcome, RepairResult, __version__

_FAILURES: Final = frozenset({RepairOutcome.FAILED, RepairOutcome.TIMED_OUT})
_HIDDEN: Final = "<doc_id>"


@attrs.define(eq=False)
class _Repair:
    """A job that is not settled."""

    span: Span
    context: Context
    """Where it was submitted."""
    linked: bool = False
    """Its span is linked to the one that has the phases of the repair that it shares."""


@attrs.define(eq=False)
class _Attempt:
    """An attempt that is running."""

    number: int
    repairs: list[_Repair]
    """Of the jobs that share it, in order."""
    phase: str | None = None
    span: Span | None = None
    """Of the phase."""

    @property
    def carrier(self) -> _Repair:
        """The job whose span has the phases: the first that is not settled."""
        return next((repair for repair in self.repairs if repair.span.is_recording()), self.repairs[0])

    @property
    def context(self) -> Context:
        """What is done for the attempt now is done in this context."""
        carrier = self.carrier
        return trace.set_span_in_context(carrier.span if self.span is None else self.span, carrier.context)

    def end_phase(self) -> None:
        if self.span is not None:
            self.span.end()
        self.span = self.phase = None


class OpenTelemetryInstrument:
    """Traces one engine. No attribute holds document text.

    Args:
        tracer_provider: None: the global one.
        ids: whether spans carry the ids of documents and jobs. Off by default: ids of documents are often names of
            files or people, and traces leave the machine. Without them, an id in the text of an error is hidden.
    """

    also_hears: Final = frozenset({EventKind.PHASE, EventKind.CALL_SENT, EventKind.CALL_ENDED})

    def __init__(self, tracer_provider: TracerProvider | None = None, *, ids: bool = False) -> None:
        self._tracer = trace.get_tracer("trio_repair", __version__, tracer_provider)
        self._ids = ids
        self._repairs: dict[str, _Repair] = {}
        """By id of the job."""
        self._attempts: dict[str, _Attempt] = {}
        """By id of the document, of which one repair runs at a time."""
        self._calls: dict[int, tuple[Span, Token[Context]]] = {}
        """Store calls under way: the span, and what takes it from its task's context again."""
        self._handlers: Final[dict[EventKind, Callable[[EngineEvent], None]]] = {
            EventKind.ACCEPTED: self._on_accepted,
            EventKind.STARTED: self._on_started,
            EventKind.PHASE: self._on_phase,
            EventKind.REOBSERVED: self._on_reobserved,
            EventKind.RETRY: self._on_retry,
            EventKind.OVERDUE: self._on_overdue,
            EventKind.ENDED: self._on_ended,
            EventKind.SETTLED: self._on_settled,
            EventKind.CALL_SENT: self._on_call_sent,
            EventKind.CALL_ENDED: self._on_call_ended,
        }

    def on_event(self, event: EngineEvent) -> None:
        """Begin, mark or end a span."""
        handler = self._handlers.get(event.kind)
        if handler is not None:
            handler(event)

    # Jobs

    def _on_accepted(self, event: EngineEvent) -> None:
        # Told in the task that submits, so that its context is the current one; a repair runs in any task's.
        job = _job(event)
        attributes: dict[str, str] = {
            "trio_repair.strategy": job.strategy.value,
            "trio_repair.priority": job.priority.name.lower(),
            "trio_repair.trigger": job.trigger.value,
        }
        if self._ids:
            attributes |= {"trio_repair.doc_id": job.doc_id, "trio_repair.job_id": job.id}
        here = context.get_current()
        span = self._tracer.start_span("trio_repair.repair", context=here, attributes=attributes)
        self._repairs[job.id] = _Repair(span, here)

    def _on_started(self, event: EngineEvent) -> None:
        job = _job(event)
        repair = self._repairs.get(job.id)
        if repair is None or event.attempt is None:
            return
        attempt = self._attempts.get(job.doc_id)
        if attempt is None or attempt.number != event.attempt:
            self._attempts[job.doc_id] = _Attempt(event.attempt, [repair])
        else:
            attempt.repairs.append(repair)
            if not repair.linked:
                repair.linked = True
                repair.span.add_link(attempt.carrier.span.get_span_context())
        repair.span.add_event("started", {} if event.detail is None else {"trio_repair.follows": event.detail})

    def _on_phase(self, event: EngineEvent) -> None:
        attempt = None if event.doc_id is None else self._attempts.get(event.doc_id)
        if attempt is None or event.detail == attempt.phase:
            return
        attempt.end_phase()
        attempt.span = self._tracer.start_span(f"trio_repair.{event.detail}", context=attempt.context)
        attempt.phase = event.detail

    def _on_reobserved(self, event: EngineEvent) -> None:
        repair = self._repairs.get(_job(event).id)
        if repair is not None and event.store is not None:
            repair.span.add_event("document changed", {"trio_repair.store": event.store})

    def _on_retry(self, event: EngineEvent) -> None:
        repair = self._repairs.get(_job(event).id)
        if repair is not None and event.detail is not None:
            reason = self._told(event.detail, _job(event).doc_id, "failed")
            repair.span.add_event("retry", {"trio_repair.reason": reason})

    def _on_overdue(self, event: EngineEvent) -> None:
        repair = self._repairs.get(_job(event).id)
        if repair is not None:
            repair.span.add_event("overdue")

    def _on_ended(self, event: EngineEvent) -> None:
        attempt = None if event.doc_id is None else self._attempts.get(event.doc_id)
        if attempt is not None and event.doc_id is not None and attempt.number == event.attempt:
            attempt.end_phase()
            del self._attempts[event.doc_id]

    def _on_settled(self, event: EngineEvent) -> None:
        repair, result = self._repairs.pop(_job(event).id, None), event.result
        if repair is None or result is None:
            return
        span = repair.span
        span.set_attributes(_attributes(result))
        if result.outcome in _FAILURES:
            error = result.outcome.value if result.error is None else result.error
            span.set_status(Status(StatusCode.ERROR, self._told(error, result.doc_id, result.outcome.value)))
        span.end()

    def _told(self, text: str, doc_id: str, otherwise: str) -> str:
        """A text without the document's id, unless ids are told; if it cannot be without, `otherwise`."""
        if self._ids:
            return text
        quoted = repr(doc_id)
        hidden = text.replace(quoted, _HIDDEN)
        rest = hidden.replace(_HIDDEN, "")
        return otherwise if doc_id in rest or quoted[1:-1] in rest else hidden

    # Store calls

    def _on_call_sent(self, event: EngineEvent) -> None:
        assert isinstance(event, CallEvent)
        served = [self._attempts[doc_id] for doc_id in event.doc_ids if doc_id in self._attempts]
        links: Sequence[Link] = ()
        if len(event.doc_ids) == len(served) == 1:
            # It is made for this repair alone.
            around = served[0].context
        else:
            # The task's own context is that of whoever happened to set the call off.
            around = Context()
            links = [Link(trace.get_current_span(attempt.context).get_span_context()) for attempt in served]
        span = self._tracer.start_span(
            f"trio_repair.call.{event.operation}",
            context=around,
            links=links,
            attributes={"trio_repair.store": str(event.store), "trio_repair.documents": len(event.doc_ids)},
        )
        # Told in the call's own task: the store and its embedder, in their threads too, find it as the current span.
        self._calls[event.call] = span, context.attach(trace.set_span_in_context(span, around))

    def _on_call_ended(self, event: EngineEvent) -> None:
        assert isinstance(event, CallEvent)
        span, token = self._calls.pop(event.call)
        context.detach(token)
        if event.detail is not None:
            span.set_status(Status(StatusCode.ERROR, event.detail))
        span.end()


def _attributes(result: RepairResult) -> dict[str, str | int | float | Sequence[str]]:
    found: dict[str, str | int | float | Sequence[str]] = {
        "trio_repair.outcome": result.outcome.value,
        "trio_repair.attempts": result.attempts,
        "trio_repair.updated_systems": result.updated_systems,
        "trio_repair.warnings": len(result.warnings),
        "trio_repair.queued_seconds": result.queued_seconds,
        "trio_repair.running_seconds": result.running_seconds,
    }
    if result.source is not None:
        found["trio_repair.source"] = result.source
    return found


def _job(event: EngineEvent) -> RepairJob:
    assert event.job is not None
    return event.job
