"""Telling the instruments what happens."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from ._events import EngineEvent, EventKind
from ._model import DocumentVersion, RepairJob, RepairResult
from .abc import Instrument

logger = logging.getLogger("trio_repair")


def unheard(kind: EventKind, **_fields: object) -> None:
    """Takes the place of `Telling.emit` where nobody listens: who is about to tell something often asks for it."""


class Telling:
    """The instruments of one engine. One that raises is logged and dropped."""

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self._instruments = list(instruments)
        self._opened_at = trio.current_time()

    def __bool__(self) -> bool:
        return bool(self._instruments)

    def emit(
        self,
        kind: EventKind,
        *,
        doc_id: str | None = None,
        job: RepairJob | None = None,
        store: str | None = None,
        token: str | None = None,
        version: DocumentVersion | None = None,
        attempt: int | None = None,
        limit: int | None = None,
        timeout: float | None = None,
        detail: str | None = None,
        result: RepairResult | None = None,
    ) -> None:
        """Tell every instrument, in this very step."""
        if not self._instruments:
            return
        at = trio.current_time() - self._opened_at
        event = EngineEvent(
            kind=kind,
            at=at,
            doc_id=doc_id,
            job=job,
            store=store,
            token=token,
            version=version,
            attempt=attempt,
            limit=limit,
            timeout=timeout,
            detail=detail,
            result=result,
        )
        for instrument in tuple(self._instruments):
            try:
                instrument.on_event(event)
            except Exception:
                if instrument in self._instruments:  # it may have raised in an event of its own making, too
                    logger.exception("%r raised and is dropped", instrument)
                    self._instruments.remove(instrument)
