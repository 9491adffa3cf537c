"""Telling the instruments what happens."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import attrs
import trio

from ._errors import StoreError
from ._events import DETAILS, CallEvent, EngineEvent, EventKind
from ._model import Document, DocumentVersion, RepairJob, RepairPhase, RepairResult
from ._views import Observation, Prepared, Removal, StoredDocument, StoreTraits, Write, WriteAnswer
from .abc import Instrument, Store

T = TypeVar("T")
PhaseTeller: TypeAlias = Callable[[str, RepairPhase], None]

logger = logging.getLogger("trio_repair")


def unheard(kind: EventKind, **_fields: object) -> None:
    """Takes the place of `Telling.emit` where nobody listens: who is about to tell something often asks for it."""


class Telling:
    """The instruments of one engine. One that raises is logged and dropped."""

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self._instruments = list(instruments)
        self._details = {
            kind: [one for one in instruments if kind in getattr(one, "also_hears", ())] for kind in DETAILS
        }
        self._calls = itertools.count(1)
        self._now = trio.lowlevel.current_clock().current_time
        """The Trio clock, without the detour that every `trio.current_time` takes."""
        self._opened_at = self._now()

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
        at = self._now() - self._opened_at
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
        self._tell(event, self._instruments)

    def _tell(self, event: EngineEvent, listeners: Sequence[Instrument]) -> None:
        for instrument in tuple(listeners):
            try:
                instrument.on_event(event)
            except Exception:
                if instrument in self._instruments:  # it may have raised in an event of its own making, too
                    logger.exception("%r raised and is dropped", instrument)
                    self._instruments.remove(instrument)
                    for those in self._details.values():
                        if instrument in those:
                            those.remove(instrument)

    # What few want to know; with nobody who does, the engine runs without the parts that tell it.

    @property
    def phase_teller(self) -> PhaseTeller | None:
        """Tells the phases of a document's repair; None if nobody asks for them."""
        return self._tell_phase if self._details[EventKind.PHASE] else None

    def listening(self, name: str, store: Store) -> Store:
        """A store whose calls are told; the store itself if nobody asks for them."""
        calls = self._details[EventKind.CALL_SENT] or self._details[EventKind.CALL_ENDED]
        return cast("Store", _ToldStore(name, store, self)) if calls else store

    def _tell_phase(self, doc_id: str, phase: RepairPhase) -> None:
        at = self._now() - self._opened_at
        event = EngineEvent(kind=EventKind.PHASE, at=at, doc_id=doc_id, detail=phase.value)
        self._tell(event, self._details[EventKind.PHASE])

    async def tell_call(
        self, store: str, operation: str, doc_ids: tuple[str, ...], call: Callable[[], Awaitable[T]]
    ) -> T:
        """Make a call and tell it. **If cancelled:** as the call."""
        began = self._now()
        at = began - self._opened_at
        sent = CallEvent(
            kind=EventKind.CALL_SENT,
            at=at,
            store=store,
            call=next(self._calls),
            operation=operation,
            doc_ids=doc_ids,
        )
        self._tell(sent, self._details[EventKind.CALL_SENT])
        problem: str | None = None
        try:
            answers = await call()
        except trio.Cancelled:
            problem = "given up"
            raise
        except BaseException as error:
            problem = f"raised {type(error).__name__}"
            raise
        finally:
            now = self._now()
            ended = attrs.evolve(
                sent, kind=EventKind.CALL_ENDED, at=now - self._opened_at, seconds=now - began, detail=problem
            )
            self._tell(ended, self._details[EventKind.CALL_ENDED])
        return answers


class _ToldStore:
    """A store that tells the calls that a batcher makes, in the task that makes them, and only those."""

    def __init__(self, name: str, inner: Store, telling: Telling) -> None:
        self._name = name
        self._inner = inner
        self._telling = telling

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def traits(self) -> StoreTraits:
        return self._inner.traits

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        return await self._telling.tell_call(
            self._name, "observe", tuple(doc_ids), lambda: self._inner.observe(doc_ids)
        )

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        return await self._telling.tell_call(self._name, "read", tuple(doc_ids), lambda: self._inner.read(doc_ids))

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        doc_ids = tuple([document.doc_id for document in documents])
        return await self._telling.tell_call(self._name, "prepare", doc_ids, lambda: self._inner.prepare(documents))

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        doc_ids = tuple([write.prepared.document.doc_id for write in writes])
        return await self._telling.tell_call(self._name, "write", doc_ids, lambda: self._inner.write(writes))

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        doc_ids = tuple([removal.doc_id for removal in removals])
        return await self._telling.tell_call(self._name, "remove", doc_ids, lambda: self._inner.remove(removals))
