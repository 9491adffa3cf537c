"""Between a store and all who call it: remembers which states writes displaced, and which they made.

A state is named by its token. Whoever keeps the contract of `trio_repair.abc.Store` lets a state be displaced once for
each time that it came about; a store without a fence lets two writers displace the same one, and loses an update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from trio_repair import (
    Document,
    DocumentVersion,
    Observation,
    Prepared,
    Presence,
    Removal,
    StoredDocument,
    StoreError,
    StoreTraits,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.abc import ScanPage, Store

from ._ailments import Crashable


class Ground:
    """A store as it is, watched. Put it inside a `FaultyStore`, so that it sees what really happens."""

    def __init__(self, name: str, inner: Store) -> None:
        self.name = name
        self.inner = inner
        self.crashes = 0
        self.broken: list[str] = []
        """What no store that keeps its contract does."""
        self._made: Counter[tuple[str, str]] = Counter()
        """By document and token: how often the state came about."""
        self._displaced: Counter[tuple[str, str]] = Counter()
        """By document and token: how often a write that landed displaced it."""
        self._doubtful: Counter[str] = Counter()
        """By document: writes without a verdict, those under way included."""
        self._since_crash: set[tuple[str, str]] = set()
        """Documents and tokens that were seen, or made, after the last crash: what was seen before may be undone."""
        self._said: dict[str, tuple[str, DocumentVersion | None]] = {}
        """By document: the state in which the store said that the last write left it, and what that write wrote."""

    @property
    def traits(self) -> StoreTraits:
        """Those of the store inside."""
        return self.inner.traits

    async def look(self, doc_id: str) -> Observation | StoreError:
        """What the store holds now; an error if it crashes meanwhile. **If cancelled:** as the store inside."""
        try:
            return (await self.inner.observe([doc_id]))[0]
        except StoreError as error:
            return error

    async def begin(self, doc_ids: Sequence[str]) -> None:
        """Remember the states that the documents begin in. **If cancelled:** as the store inside."""
        for doc_id, seen in zip(doc_ids, await self.inner.observe(doc_ids), strict=True):
            if isinstance(seen, Observation):
                self._made[doc_id, seen.token] += 1

    def may_have_left(self, doc_id: str, token: str) -> bool:
        """Whether the document can be in another state than this one, in which it once was."""
        undone = self.crashes > 0 and (doc_id, token) not in self._since_crash
        return undone or self._displaced[doc_id, token] > 0 or self._doubtful[doc_id] > 0

    def crashed(self) -> None:
        """States may have come back, and gone."""
        self.crashes += 1
        self._made.clear()
        self._displaced.clear()
        self._said.clear()
        self._since_crash.clear()

    async def verify(self) -> None:
        """Look whether writes that are said to have landed have. **If cancelled:** nothing has changed."""
        for doc_id, (token, version) in list(self._said.items()):
            view = await self.look(doc_id)
            if isinstance(view, StoreError) or self._said.get(doc_id) != (token, version):
                continue
            if view.token == token:
                deleted = version is None or version.deleted
                right = view.presence is not Presence.LIVE if deleted else view.version == version
                if not right:
                    self.broken.append(
                        f"I8: the {self.name} store said that a write of {doc_id!r} had landed; it had not"
                    )
            elif not self.may_have_left(doc_id, token):
                self.broken.append(f"I8: the {self.name} store lost what it held of {doc_id!r}, and nobody wrote")

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """As the store inside, watched. **If cancelled:** as the store inside."""
        crashes = self.crashes
        answers = await self.inner.observe(doc_ids)
        if crashes == self.crashes and len(answers) == len(doc_ids):
            for doc_id, seen in zip(doc_ids, answers, strict=True):
                if isinstance(seen, Observation):
                    self._since_crash.add((doc_id, seen.token))
        return answers

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """As the store inside. **If cancelled:** as the store inside."""
        return await self.inner.read(doc_ids)

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """As the store inside. **If cancelled:** as the store inside."""
        return await self.inner.prepare(documents)

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """As the store inside, watched. **If cancelled:** as the store inside."""
        documents = [write.prepared.document for write in writes]
        asked = [(write.prepared.document.doc_id, write.token) for write in writes]
        return await self._watched(asked, [document.version for document in documents], self.inner.write, writes)

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """As the store inside, watched. **If cancelled:** as the store inside."""
        asked = [(removal.doc_id, removal.token) for removal in removals]
        return await self._watched(asked, [None] * len(asked), self.inner.remove, removals)

    def open_scan(self, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[ScanPage]]:
        """As the store inside."""
        return self.inner.open_scan(after)

    async def count(self) -> int:
        """As the store inside. **If cancelled:** as the store inside."""
        return await self.inner.count()

    async def aclose(self) -> None:
        """Close the store inside. **If cancelled:** as the store inside."""
        await self.inner.aclose()

    async def _watched(
        self,
        asked: Sequence[tuple[str, str]],
        versions: Sequence[DocumentVersion | None],
        act: Callable[[Sequence[Any]], Awaitable[Sequence[WriteAnswer]]],
        items: Sequence[Any],
    ) -> Sequence[WriteAnswer]:
        crashes = self.crashes
        for doc_id, _ in asked:
            self._doubtful[doc_id] += 1
        try:
            answers = await act(items)
        except StoreError:
            # The contract: then nothing was written.
            for doc_id, _ in asked:
                self._doubtful[doc_id] -= 1
            raise
        if len(answers) != len(asked):
            return answers
        for (doc_id, token), version, answer in zip(asked, versions, answers, strict=True):
            if answer.status is not WriteStatus.UNKNOWN:
                self._doubtful[doc_id] -= 1
            if answer.status is WriteStatus.LANDED and crashes == self.crashes:
                self._displaced[doc_id, token] += 1
                if answer.observation is not None:
                    self._made[doc_id, answer.observation.token] += 1
                    self._since_crash.add((doc_id, answer.observation.token))
                    self._said[doc_id] = answer.observation.token, version
        for doc_id, token in asked:
            self._judge(doc_id, token)
        return answers

    def _judge(self, doc_id: str, token: str) -> None:
        """A state whose making was not seen came about once, before anybody looked."""
        came_about = max(1, self._made[doc_id, token])
        times = self._displaced[doc_id, token]
        if times > came_about + self._doubtful[doc_id]:
            self.broken.append(
                f"I1: the {self.name} store let {times} writes of {doc_id!r} displace a state that it had held "
                f"{came_about} times; its fence does not hold"
            )


class CrashableGround(Ground):
    """The same, over a store that can crash."""

    inner: Any

    def crash(self) -> None:
        """See `Crashable`."""
        self.inner.crash()
        self.crashed()


def grounded(name: str, store: Store) -> Ground:
    """Watch `store`."""
    return CrashableGround(name, store) if isinstance(store, Crashable) else Ground(name, store)
