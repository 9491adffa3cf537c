"""The repairs that are cut off: what the stores hold before, what is asked, and what they hold in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from trio_repair import (
    ContentDefinition,
    Document,
    DocumentVersion,
    RepairExecutionEngine,
    RepairJob,
    RepairResult,
    SyncStrategy,
    Write,
    WriteStatus,
)
from trio_repair.stores.memory import MemoryStore

from .held import NAMES, Files, Held, Holdings, held_in_memory

_FILLER = "and it goes on for a while, so that the vector store cuts it into several chunks. "


@attrs.frozen
class Copy:
    """A version that a store holds; without a word, a tombstone."""

    number: int
    word: str | None = None

    def document(self, doc_id: str) -> Document:
        if self.word is None:
            return Document.tombstone(doc_id, number=self.number)
        text = f"{doc_id} says {self.word} in version {self.number}, {_FILLER}"
        digest = ContentDefinition().digest(text, {})
        return Document(doc_id=doc_id, text=text, version=DocumentVersion(number=self.number, digest=digest))


@attrs.frozen(kw_only=True, eq=False)
class Scenario:
    name: str
    before: Mapping[str, Copy]
    goal: Mapping[str, Copy]
    """What each store holds once the repair has come to its end; a store that is not named: nothing."""
    damaged: str | None = None
    """This store's copy has lost a part."""
    choice: Literal["text", "vector", "delete"] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def deletes(self) -> bool:
        return all(copy.word is None for copy in self.goal.values())

    def is_reached(self, doc_id: str, held: Holdings) -> bool:
        return all(
            held[name].holds(self.goal[name].document(doc_id).version if name in self.goal else None) for name in NAMES
        )

    async def ask(
        self, engine: RepairExecutionEngine, doc_id: str, job_id: str, seconds: float, **job: Any
    ) -> RepairResult:
        if self.choice is not None:
            return await engine.resolve(doc_id, self.choice, timeout=seconds, job_id=job_id)
        strategy = SyncStrategy.TEXT_SOURCE_OF_TRUTH
        return await engine.execute_repair_job(
            RepairJob(id=job_id, doc_id=doc_id, strategy=strategy, timeout=seconds, **job)
        )


SCENARIOS = [
    Scenario(
        name="copy",
        before={"text": Copy(2, "new"), "vector": Copy(1, "old"), "cache": Copy(1, "old")},
        goal={"text": Copy(2, "new"), "vector": Copy(2, "new"), "cache": Copy(2, "new")},
    ),
    Scenario(
        name="delete",
        before={"text": Copy(2), "vector": Copy(1, "old"), "cache": Copy(1, "old")},
        goal={"text": Copy(2), "vector": Copy(2)},
    ),
    Scenario(
        name="rebuild",
        before={"text": Copy(1, "one"), "vector": Copy(1, "one"), "cache": Copy(1, "one")},
        goal={"text": Copy(1, "one"), "vector": Copy(1, "one"), "cache": Copy(1, "one")},
        damaged="vector",
    ),
    Scenario(name="cache-only", before={"cache": Copy(1, "old")}, goal={}),
    Scenario(
        name="resolve",
        before={"text": Copy(1, "this"), "vector": Copy(1, "that"), "cache": Copy(1, "that")},
        goal={"text": Copy(1, "that"), "vector": Copy(1, "that"), "cache": Copy(1, "that")},
        choice="vector",
    ),
]


async def put(store: Any, documents: Sequence[Document]) -> None:
    """Write over whatever the store holds; it must land."""
    ids = [document.doc_id for document in documents]
    seen, ready = await store.observe(ids), await store.prepare(documents)
    answers = await store.write([Write(prepared=one, token=held.token) for one, held in zip(ready, seen, strict=True)])
    assert {WriteStatus.LANDED} == {answer.status for answer in answers}


class MemoryWorld:
    """Three stores in memory."""

    def __init__(self) -> None:
        self.stores = {name: MemoryStore(name) for name in NAMES}

    async def set_up(self, scenario: Scenario, doc_id: str) -> None:
        for name, copy in scenario.before.items():
            self.stores[name].put_nowait(copy.document(doc_id))
        if scenario.damaged is not None:
            self.stores[scenario.damaged].damage(doc_id)

    def held(self, doc_id: str) -> dict[str, Held]:
        return {name: held_in_memory(store, doc_id) for name, store in self.stores.items()}


@attrs.define
class SqliteWorld:
    """Three SQLite stores that are open, and their files read directly."""

    stores: Mapping[str, Any]
    files: Files

    async def set_up(self, scenario: Scenario, doc_id: str) -> None:
        for name, copy in scenario.before.items():
            await put(self.stores[name], [copy.document(doc_id)])
        if scenario.damaged is not None:
            assert scenario.damaged == "vector"
            self.damage(doc_id)

    def damage(self, doc_id: str) -> None:
        """A chunk of the vector store is lost."""
        self.files.execute("vector", "DELETE FROM chunks WHERE doc_id = ? AND ordinal = 1", [doc_id])

    def held(self, doc_id: str) -> Holdings:
        return self.files.held([doc_id])[doc_id]
