"""An engine's events as JSON lines: written as they happen, read back as the same events."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from .._errors import InvalidValue
from .._events import EngineEvent, EventKind
from .._model import (
    DocumentVersion,
    ReceiptStep,
    RepairJob,
    RepairOutcome,
    RepairPriority,
    RepairResult,
    RepairTrigger,
    StepState,
    SyncStrategy,
)


class JsonLinesInstrument:
    """Writes each event as one line of JSON. No line holds document text.

    It writes synchronously, in the engine's task: give it a local file. A write that fails raises, and the engine then
    drops the instrument; the repair does not notice.

    Args:
        stream: a text stream, in UTF-8; it stays yours to close. Open a file with ``buffering=1``, so that a killed
            process leaves whole lines behind.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def on_event(self, event: EngineEvent) -> None:
        """Write one event."""
        self._stream.write(json.dumps(_event_to_json(event), separators=(",", ":")) + "\n")


def read_events(lines: Iterable[str]) -> Iterator[EngineEvent]:
    """The events in lines that `JsonLinesInstrument` wrote, for instance an open file. Empty lines are skipped.

    Raises:
        InvalidValue: a line is no event; the message has its number.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _event_from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InvalidValue("lines", f"line {number} is no event ({type(error).__name__})") from None


def _event_to_json(event: EngineEvent) -> dict[str, Any]:
    record: dict[str, Any] = {
        "kind": event.kind.value,
        "at": event.at,
        "doc_id": event.doc_id,
        "job": None if event.job is None else _job_to_json(event.job),
        "store": event.store,
        "token": event.token,
        "version": _version_to_json(event.version),
        "attempt": event.attempt,
        "limit": event.limit,
        "timeout": event.timeout,
        "detail": event.detail,
        "result": None if event.result is None else _result_to_json(event.result),
    }
    return {key: value for key, value in record.items() if value is not None}


def _event_from_json(record: Mapping[str, Any]) -> EngineEvent:
    job, result = record.get("job"), record.get("result")
    return EngineEvent(
        kind=EventKind(record["kind"]),
        at=record["at"],
        doc_id=record.get("doc_id"),
        job=None if job is None else _job_from_json(job),
        store=record.get("store"),
        token=record.get("token"),
        version=_version_from_json(record.get("version")),
        attempt=record.get("attempt"),
        limit=record.get("limit"),
        timeout=record.get("timeout"),
        detail=record.get("detail"),
        result=None if result is None else _result_from_json(result),
    )


def _time(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text)


def _version_to_json(version: DocumentVersion | None) -> dict[str, Any] | None:
    if version is None:
        return None
    return {
        "number": version.number,
        "digest": version.digest,
        "deleted": version.deleted,
        "updated_at": None if version.updated_at is None else version.updated_at.isoformat(),
    }


def _version_from_json(record: Mapping[str, Any] | None) -> DocumentVersion | None:
    if record is None:
        return None
    return DocumentVersion(
        number=record["number"],
        digest=record["digest"],
        deleted=record["deleted"],
        updated_at=_time(record["updated_at"]),
    )


def _job_to_json(job: RepairJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "doc_id": job.doc_id,
        "strategy": job.strategy.value,
        "priority": job.priority.name,
        "trigger": job.trigger.value,
        "created_at": job.created_at.isoformat(),
        "deadline": None if job.deadline is None else job.deadline.isoformat(),
        "timeout": job.timeout,
        "retry_count": job.retry_count,
        "max_retries": job.max_retries,
    }


def _job_from_json(record: Mapping[str, Any]) -> RepairJob:
    return RepairJob(
        id=record["id"],
        doc_id=record["doc_id"],
        strategy=SyncStrategy(record["strategy"]),
        priority=RepairPriority[record["priority"]],
        trigger=RepairTrigger(record["trigger"]),
        created_at=dt.datetime.fromisoformat(record["created_at"]),
        deadline=_time(record["deadline"]),
        timeout=record["timeout"],
        retry_count=record["retry_count"],
        max_retries=record["max_retries"],
    )


def _result_to_json(result: RepairResult) -> dict[str, Any]:
    return {
        "doc_id": result.doc_id,
        "job_id": result.job_id,
        "outcome": result.outcome.value,
        "updated_systems": list(result.updated_systems),
        "error": result.error,
        "warnings": list(result.warnings),
        "source": result.source,
        "version": _version_to_json(result.version),
        "receipt": [
            {
                "store": step.store,
                "state": step.state.value,
                "before": _version_to_json(step.before),
                "after": _version_to_json(step.after),
                "token": step.token,
                "fence": step.fence,
                "detail": step.detail,
            }
            for step in result.receipt
        ],
        "attempts": result.attempts,
        "queued_seconds": result.queued_seconds,
        "running_seconds": result.running_seconds,
    }


def _result_from_json(record: Mapping[str, Any]) -> RepairResult:
    return RepairResult(
        doc_id=record["doc_id"],
        job_id=record["job_id"],
        outcome=RepairOutcome(record["outcome"]),
        updated_systems=tuple(record["updated_systems"]),
        error=record["error"],
        warnings=tuple(record["warnings"]),
        source=record["source"],
        version=_version_from_json(record["version"]),
        receipt=tuple(
            ReceiptStep(
                store=step["store"],
                state=StepState(step["state"]),
                before=_version_from_json(step["before"]),
                after=_version_from_json(step["after"]),
                token=step["token"],
                fence=step["fence"],
                detail=step["detail"],
            )
            for step in record["receipt"]
        ),
        attempts=record["attempts"],
        queued_seconds=record["queued_seconds"],
        running_seconds=record["running_seconds"],
    )
