"""What really happened: a log below the engine (every change of a store), beside it (events) and between (calls)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs
import trio

from trio_repair import (
    Document,
    EmbeddingIdentity,
    EngineEvent,
    EngineStatistics,
    Observation,
    Prepared,
    StoreTraits,
    WriteAnswer,
)
from trio_repair.abc import Store
from trio_repair.stores.memory import MemoryStore


@attrs.frozen(kw_only=True, eq=False)
class Call:
    """One bulk call that the engine made."""

    store: str
    operation: str
    doc_ids: tuple[str, ...]
    tokens: tuple[str | None, ...]
    versions: tuple[Any, ...]
    """What is to be written, for each document; None if nothing is."""


@attrs.frozen(kw_only=True)
class Entry:
    at: float
    """Virtual seconds since the beginning."""


@attrs.frozen(kw_only=True)
class Began(Entry):
    call: Call


@attrs.frozen(kw_only=True)
class Ended(Entry):
    call: Call
    answers: Sequence[Any] | None
    """None if it failed or was cancelled."""


@attrs.frozen(kw_only=True)
class Effect(Entry):
    """A store's content changed."""

    store: str
    doc_id: str
    author: str
    """"engine"; "rival" (a FaultyStore's concurrent writer); "app"."""
    asked: str | None
    """The token that the writer named; None for the application, which names none."""
    before: Observation
    after: Observation


@attrs.frozen(kw_only=True)
class Happened(Entry):
    event: EngineEvent
    late: tuple[str, ...]
    """Jobs that `active_operations` showed although their time was up."""


@attrs.frozen(kw_only=True)
class AttemptBegan(Entry):
    doc_id: str


@attrs.frozen(kw_only=True)
class AttemptEnded(Entry):
    doc_id: str
    timed_out: bool
    """It was cancelled at its timeout."""


@attrs.frozen(kw_only=True)
class LimitSet(Entry):
    value: int


@attrs.frozen(kw_only=True)
class Sampled(Entry):
    statistics: EngineStatistics
    active: tuple[str, ...]


@attrs.frozen(kw_only=True)
class RoundBegan(Entry):
    """A further engine runs over the same stores, with no faults any more."""

    number: int


class Log:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.start = 0.0
        self.on = False

    def now(self) -> float:
        return trio.current_time() - self.start

    def add(self, kind: type[Entry], **fields: Any) -> None:
        if self.on:
            self.entries.append(kind(at=self.now(), **fields))


class GroundStore(MemoryStore):
    """The truth: logs each change, with who made it and what it displaced."""

    def __init__(self, name: str, log: Log, *, traits: StoreTraits, embedding: EmbeddingIdentity | None = None) -> None:
        super().__init__(name, traits=traits, embedding=embedding)
        self.engine_documents: dict[int, Document] = {}
        """By identity: documents that were prepared for the engine, and so are written by it."""
        self._log = log
        self._author = "app"
        self._asked: str | None = None

    def _change(
        self, doc_id: str, expected: str, document: Document | None, held: Mapping[str, str] | None
    ) -> WriteAnswer:
        by_engine = document is None or id(document) in self.engine_documents
        self._author, self._asked = "engine" if by_engine else "rival", expected
        try:
            return super()._change(doc_id, expected, document, held)
        finally:
            self._author, self._asked = "app", None

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        before = self.observe_nowait(doc_id)
        after = super()._replace(doc_id, document)
        self._note(doc_id, before, after)
        return after

    def damage(self, doc_id: str, *, intact: bool = False, embedding: EmbeddingIdentity | None = None) -> Observation:
        before = self.observe_nowait(doc_id)
        after = super().damage(doc_id, intact=intact, embedding=embedding)
        self._note(doc_id, before, after)
        return after

    def _note(self, doc_id: str, before: Observation, after: Observation) -> None:
        self._log.add(
            Effect,
            store=self.name,
            doc_id=doc_id,
            author=self._author,
            asked=self._asked,
            before=before,
            after=after,
        )


class Tap:
    """What the engine is given as a store: logs each call, and lets answers take their time on the way back."""

    def __init__(
        self,
        name: str,
        inner: Store,
        ground: GroundStore,
        log: Log,
        answer_delay: float,
        leaking: frozenset[str] = frozenset(),
    ) -> None:
        self.name = name
        self.inner = inner
        self.ground = ground
        self._log = log
        self._answer_delay = answer_delay
        self._leaking = leaking

    @property
    def traits(self) -> StoreTraits:
        return self.inner.traits

    def held_token(self, doc_id: str) -> str:
        """For planted bugs that know what no engine can know."""
        return self.ground.observe_nowait(doc_id).token

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Any]:
        return await self._call("observe", [(doc_id, None, None) for doc_id in doc_ids], doc_ids)

    async def read(self, doc_ids: Sequence[str]) -> Sequence[Any]:
        return await self._call("read", [(doc_id, None, None) for doc_id in doc_ids], doc_ids)

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Any]:
        named = [(document.doc_id, None, document.version) for document in documents]
        answers = await self._call("prepare", named, documents)
        for answer in answers:
            if isinstance(answer, Prepared):
                self.ground.engine_documents[id(answer.document)] = answer.document
        return answers

    async def write(self, writes: Sequence[Any]) -> Sequence[Any]:
        named = [(write.prepared.document.doc_id, write.token, write.prepared.document.version) for write in writes]
        return await self._call("write", named, writes)

    async def remove(self, removals: Sequence[Any]) -> Sequence[Any]:
        return await self._call("remove", [(removal.doc_id, removal.token, None) for removal in removals], removals)

    def open_scan(self, after: str | None = None) -> AbstractAsyncContextManager[Any]:
        return self.inner.open_scan(after)

    async def count(self) -> int:
        return await self.inner.count()

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def _call(
        self, operation: str, named: Sequence[tuple[str, str | None, Any]], items: Sequence[Any]
    ) -> Sequence[Any]:
        ids, tokens, versions = zip(*named, strict=True)
        call = Call(store=self.name, operation=operation, doc_ids=ids, tokens=tokens, versions=versions)
        self._log.add(Began, call=call)
        answers: Sequence[Any] | None = None
        try:
            for doc_id in self._leaking.intersection(ids) if operation != "observe" else ():
                held = self.ground.get_nowait(doc_id)
                raise ValueError(f"near {'?' if held is None else held.text!r}: no such column")
            arrived: Sequence[Any] = await getattr(self.inner, operation)(items)
            if self._answer_delay:
                await trio.sleep(self._answer_delay)
            answers = arrived
        finally:
            self._log.add(Ended, call=call, answers=answers)
        return answers
