"""The stores that a `RepairMachine` drives an engine over: what they hold, who writes, what they must become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import trio

from trio_repair import (
    AutoRepairConfig,
    ContentDefinition,
    Document,
    Observation,
    Prepared,
    Presence,
    RepairResult,
    StoreError,
    Stores,
    SyncStrategy,
    Write,
    WriteStatus,
)

from ._doubles import make_document
from ._faulty_store import FaultyStore
from ._ground import Ground, grounded
from .simulation._oracle import CRITICAL, Judgement, Rules


class World:
    """Stores under watch, by name."""

    def __init__(self, stores: Stores, config: AutoRepairConfig) -> None:
        self.faulty: dict[str, FaultyStore] = {}
        self.grounds: dict[str, Ground] = {}
        fronts: dict[str, Any] = {}
        for name, store in stores.by_name.items():
            if isinstance(store, FaultyStore):
                # Under the faults, where it sees what becomes of a call.
                store.inner = self.grounds[name] = grounded(name, store.inner)
                self.faulty[name] = fronts[name] = store
            else:
                fronts[name] = self.grounds[name] = grounded(name, store)
        self.stores = Stores(**fronts)
        self._content: ContentDefinition = config.content
        traits = {name: ground.traits for name, ground in self.grounds.items()}
        embedding: Any = traits["vector"].embedding
        self.rules = Rules(
            absent={name: traits[name].absent for name in CRITICAL},
            missing_source=config.missing_source,
            hlc=config.numbers == "hlc",
            skew=config.skew,
            embedding=embedding,
        )

    @property
    def broken(self) -> list[str]:
        """Promises that a store broke."""
        return [line for ground in self.grounds.values() for line in ground.broken]

    def heal(self) -> None:
        """No more faults."""
        for store in self.faulty.values():
            store.heal()

    async def look(self, doc_id: str) -> dict[str, Observation]:
        """What each store holds, faults aside; a store that cannot say now is left out."""
        views = {name: await ground.look(doc_id) for name, ground in self.grounds.items()}
        return {name: view for name, view in views.items() if isinstance(view, Observation)}

    async def snapshot(self, doc_ids: Sequence[str]) -> dict[str, dict[str, Observation]]:
        """What each store holds of each document, faults aside."""
        return {doc_id: await self.look(doc_id) for doc_id in doc_ids}

    async def highest(self, doc_id: str) -> int:
        """The highest number that a store holds; 0 if none does."""
        versions = [view.version for view in (await self.look(doc_id)).values()]
        return max([0, *(v.number for v in versions if v is not None and v.number is not None)])

    def document(self, doc_id: str, text: str | None, number: int) -> Document:
        """A version of a document; without a text, a tombstone."""
        if text is None:
            return Document.tombstone(doc_id, number=number)
        return make_document(doc_id, text, number=number, content=self._content)

    async def write(self, name: str, document: Document) -> None:
        """Write as the application does: over whatever is held, through the store's fence, faults aside."""
        ground = self.grounds[name]
        try:
            (prepared,) = await ground.prepare([document])
            while isinstance(prepared, Prepared):
                held = await ground.look(document.doc_id)
                if isinstance(held, StoreError):
                    return
                (answer,) = await ground.write([Write(prepared=prepared, token=held.token)])
                if answer.status is not WriteStatus.REFUSED:
                    return
                await trio.lowlevel.checkpoint()
        except StoreError:
            # The application gives up; that is how stores come to differ.
            return

    async def wait_for_late_landings(self) -> None:
        """Return when nothing is on its way to a store any more."""
        for store in self.faulty.values():
            await store.wait_for_late_landings()

    def holds(self, name: str, view: Observation, result_version: Any) -> bool:
        """Whether a store holds a version; nothing, where it is a tombstone and the store keeps none."""
        deleted = result_version is not None and result_version.deleted
        if deleted and view.presence is Presence.ABSENT and not self.grounds[name].traits.keeps_tombstones:
            return True
        return self.rules.right(name, view, result_version)

    def judge(self, views: Mapping[str, Observation], now: float) -> Judgement:
        """What MOST_RECENT shall make of a document that the stores hold so."""
        verdict = self.rules.judge(views["text"], views["vector"], SyncStrategy.MOST_RECENT, now=now)
        if verdict.action == "copy" and verdict.lagging:
            sources = [name for name in CRITICAL if views[name].version == verdict.version]
            if not any(self.grounds[name].traits.holds_text for name in sources):
                return Judgement(action="manual")
        return verdict


async def check_claim(result: RepairResult, world: World) -> None:
    """Ask the stores themselves about a job that succeeded.

    Raises:
        AssertionError: a critical store holds something else, and nobody has written to it since.
    """
    said = f"{result.doc_id!r} is said to be {result.outcome.value} as {result.version}"
    for name in CRITICAL:
        ground, token = world.grounds[name], result.step(name).token
        if token is None:
            raise AssertionError(f"I8: {said}; the {name} store was never looked at")
        view = await ground.look(result.doc_id)
        if isinstance(view, StoreError):
            continue
        if view.token == token:
            if not world.holds(name, view, result.version):
                raise AssertionError(f"I8: {said}; the {name} store holds {view.version}")
        elif not ground.may_have_left(result.doc_id, token):
            raise AssertionError(f"I8: {said}; nobody wrote, and the {name} store holds {view.version}")
