"""What an engine does, on the standard library's logging."""

from __future__ import annotations

import logging
from typing import Final

from .._events import EngineEvent, EventKind
from .._model import RepairOutcome

_LEVELS: Final = {
    EventKind.RETRY: logging.INFO,
    EventKind.REOBSERVED: logging.INFO,
    EventKind.BREAKER_OPENED: logging.WARNING,
    EventKind.BREAKER_CLOSED: logging.INFO,
    EventKind.CALL_OVERDUE: logging.WARNING,
    EventKind.STORE_MISBEHAVED: logging.ERROR,
    EventKind.OVERDUE: logging.WARNING,
}
_SETTLED_LEVELS: Final = {
    RepairOutcome.FAILED: logging.ERROR,
    RepairOutcome.TIMED_OUT: logging.WARNING,
    RepairOutcome.NEEDS_MANUAL: logging.WARNING,
}


class LoggingInstrument:
    """Writes each event as one record: failures as warnings and errors, the rest as INFO or DEBUG.

    The record's `extra` carries `trio_repair_event`, the `EngineEvent` itself, for structured handlers.

    Args:
        logger: where to write; None: the logger "trio_repair.events".
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logging.getLogger("trio_repair.events") if logger is None else logger

    def on_event(self, event: EngineEvent) -> None:
        """Log one event."""
        if event.result is not None:
            level = _SETTLED_LEVELS.get(event.result.outcome, logging.INFO)
        else:
            level = _LEVELS.get(event.kind, logging.DEBUG)
        if not self._logger.isEnabledFor(level):
            return
        self._logger.log(level, "%s", _sentence(event), extra={"trio_repair_event": event})


def _sentence(event: EngineEvent) -> str:
    parts = [event.kind.value]
    if event.store is not None:
        parts.append(f"store={event.store}")
    if event.doc_id is not None:
        parts.append(f"doc_id={event.doc_id!r}")
    if event.job is not None:
        parts.append(f"job_id={event.job.id}")
    if event.result is not None:
        result = event.result
        parts.append(f"outcome={result.outcome.value}")
        parts.append(f"updated={','.join(result.updated_systems)}")
        if result.error is not None:
            parts.append(f"error={result.error!r}")
        parts.extend(f"warning={warning!r}" for warning in result.warnings)
    if event.detail is not None:
        parts.append(f"detail={event.detail!r}")
    return " ".join(parts)
