"""What wrong stores for `check_store` are made of: a right one, a factory for each kind, and second handles."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import attrs
import trio
import trio.testing

from trio_repair import Write, WriteAnswer
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import check_store


class Right(MemoryStore):
    """Small batches, so that scans have pages; each wrong store changes one thing of this."""

    changed_traits: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__(traits=attrs.evolve(MemoryStore().traits, **{"max_batch": 16, **self.changed_traits}))

    def change_nowait(self, writes: Sequence[Write]) -> list[WriteAnswer]:
        """What `write` does after its checkpoint."""
        documents = [write.prepared.document for write in writes]
        return [self._change(one.doc_id, write.token, one, None) for one, write in zip(documents, writes, strict=True)]


class Shared(Right):
    """A handle on contents that all handles have in common, as two processes have a file."""

    def __init__(self, first: Shared | None) -> None:
        super().__init__()
        self._counter: list[int] = [0] if first is None else first._counter
        if first is not None:
            self._copies = first._copies

    def _next_token(self) -> str:
        self._counter[0] += 1
        return f"shared {self._counter[0]}"


def factory(kind: type[Right]) -> Callable[[], Any]:
    """Opens an empty store of this kind each time."""

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Right]:
        yield kind()

    return open_store


def check_in_virtual_time(open_store: Callable[[], Any], **options: Any) -> None:
    """`check_store`, in a run of its own."""
    trio.run(functools.partial(check_store, open_store, **options), clock=trio.testing.MockClock(autojump_threshold=0))


def in_virtual_time(kind: type[Right], **options: Any) -> None:
    """`check_store` for stores of this kind, on one handle."""
    check_in_virtual_time(factory(kind), **options)


def two_handles(kind: type[Shared]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A factory, and one for further handles on what it opened last."""
    latest: list[Shared] = []

    @asynccontextmanager
    async def open_new() -> AsyncIterator[Shared]:
        latest[:] = [kind(None)]
        yield latest[0]

    @asynccontextmanager
    async def open_again() -> AsyncIterator[Shared]:
        yield kind(latest[0])

    return open_new, open_again
