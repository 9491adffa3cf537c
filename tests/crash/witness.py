"""A store that notes what it is asked to change, and by how many calls at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import trio

from trio_repair import Removal, StoreTraits, Write


class Witness:
    """Passes every call on to `inner`, with `checkpoints` before it and after it, and `slow` more before a change.

    Between effect and answer an answer gets lost: the store has done what it was asked, and nobody is told.
    """

    def __init__(self, inner: Any, *, checkpoints: int = 1, slow: int = 0) -> None:
        self.inner = inner
        self.sent: Counter[str] = Counter()
        """Writes and removals that were asked for, by document."""
        self.overlaps: list[str] = []
        """Documents for which a change was asked while another one was under way."""
        self._checkpoints = checkpoints
        self._slow = slow
        self._under_way: set[str] = set()

    @property
    def traits(self) -> StoreTraits:
        return self.inner.traits

    async def observe(self, doc_ids: Sequence[str]) -> Any:
        return await self._call("observe", doc_ids)

    async def read(self, doc_ids: Sequence[str]) -> Any:
        return await self._call("read", doc_ids)

    async def prepare(self, documents: Sequence[Any]) -> Any:
        return await self._call("prepare", documents)

    async def write(self, writes: Sequence[Write]) -> Any:
        return await self._change("write", writes, [write.prepared.document.doc_id for write in writes])

    async def remove(self, removals: Sequence[Removal]) -> Any:
        return await self._change("remove", removals, [removal.doc_id for removal in removals])

    async def _change(self, method: str, items: Sequence[Any], doc_ids: list[str]) -> Any:
        self.sent.update(doc_ids)
        self.overlaps += self._under_way & set(doc_ids)
        self._under_way.update(doc_ids)
        try:
            for _ in range(self._slow):
                await trio.lowlevel.checkpoint()
            return await self._call(method, items)
        finally:
            self._under_way.difference_update(doc_ids)

    async def _call(self, method: str, items: Sequence[Any]) -> Any:
        for _ in range(self._checkpoints):
            await trio.lowlevel.checkpoint()
        answers = await getattr(self.inner, method)(items)
        for _ in range(self._checkpoints):
            await trio.lowlevel.checkpoint()
        return answers


class DeleteThenInsert:
    """The planted bug: takes the copy away, and writes the new one in a second step."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def write(self, writes: Sequence[Write]) -> Any:
        removals = [Removal(doc_id=write.prepared.document.doc_id, token=write.token) for write in writes]
        await self.inner.remove(removals)
        seen = await self.inner.observe([removal.doc_id for removal in removals])
        now = [Write(prepared=write.prepared, token=held.token) for write, held in zip(writes, seen, strict=True)]
        return await self.inner.write(now)
