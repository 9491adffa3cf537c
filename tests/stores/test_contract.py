"""The contract suite, run on every store of this package; each shape of traits that the suite knows is covered."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trio_repair import ContentDefinition, EmbeddingIdentity, Fence
from trio_repair.abc import Store
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.memory import MemoryStore
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector
from trio_repair.testing import PROMISES, FaultyStore, SimulatedStore, check_store


class Files:
    """Opens store files: a new one each time, or `again` the one that was opened last."""

    def __init__(self, open_file: Callable[[Path], AbstractAsyncContextManager[Store]], directory: Path) -> None:
        self._open = open_file
        self._directory = directory
        self._count = 0

    def __call__(self) -> AbstractAsyncContextManager[Store]:
        self._count += 1
        return self.again()

    def again(self) -> AbstractAsyncContextManager[Store]:
        return self._open(self._directory / f"{self._count}.db")


MODEL = EmbeddingIdentity(model="model", dimension=3, chunking="whole")


def memory(name: str = "text", **traits: Any) -> Callable[[], AbstractAsyncContextManager[Store]]:
    """A factory of memory stores with these traits changed."""

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Store]:
        store = MemoryStore(name, traits=attrs.evolve(MemoryStore(name).traits, **traits))
        yield store
        await store.aclose()

    return open_store


@pytest.mark.parametrize(
    "factory",
    [
        memory(),
        memory("cache"),
        memory("vector", embedding=MODEL),
        memory(holds_text=False),
        memory(fence=Fence.WEAK),
        memory(max_batch=1, max_calls=1),
        memory(max_batch=7, max_calls=2),
    ],
    ids=["text", "cache", "vector", "no text", "weak", "one at a time", "small batches"],
)
def test_memory(factory: Callable[[], AbstractAsyncContextManager[Store]]) -> None:
    """The reference store keeps the contract, whatever traits it is given."""
    # It cannot be opened twice, and in one case takes one call at a time.
    in_virtual_time(factory, races=False)


async def test_memory_in_real_time() -> None:
    """The suite runs on the real clock too, with the same verdict."""
    await check_store(memory(max_batch=16))


def in_virtual_time(factory: Callable[[], AbstractAsyncContextManager[Store]], **options: Any) -> None:
    """Check a store without threads."""
    trio.run(functools.partial(check_store, factory, **options), clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("keys", [("title",), ("title", "changed")])
def test_memory_with_metadata_as_content(keys: tuple[str, ...]) -> None:
    """A store whose digests cover metadata keeps the contract under that definition."""
    content = ContentDefinition(metadata_keys=keys)

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Store]:
        yield MemoryStore(content=content)

    in_virtual_time(open_store, content=content)


async def test_sqlite_text(tmp_path: Path) -> None:
    """The SQLite text store keeps the contract, between two connections to one file too."""
    files = Files(functools.partial(open_sqlite_text, create=True, synchronous="normal"), tmp_path)
    await check_store(files, again=files.again)


async def test_sqlite_vector(tmp_path: Path) -> None:
    """The SQLite vector store keeps the contract like any other: chunks and vectors are its own business."""
    open_file = functools.partial(
        open_sqlite_vector,
        embedder=HashingEmbedder(dimension=16),
        chunker=WindowChunker(),
        create=True,
        synchronous="normal",
    )
    files = Files(open_file, tmp_path)
    await check_store(files, again=files.again)


async def test_sqlite_cache(tmp_path: Path) -> None:
    """The SQLite cache keeps the contract, with entries that expire and with entries that do not."""
    for ttl in (None, 3600.0):
        files = Files(
            functools.partial(open_sqlite_cache, ttl=ttl, create=True, synchronous="normal"), tmp_path / f"ttl {ttl}"
        )
        (tmp_path / f"ttl {ttl}").mkdir()
        await check_store(files, again=files.again)


def test_doubles_keep_the_contract() -> None:
    """A store in wrappers without faults keeps the contract: the wrappers add nothing of their own."""

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Store]:
        latencies = {"observe": 0.01, "write": 0.15, "scan": 0.02}
        yield FaultyStore(SimulatedStore(MemoryStore(), latencies))

    in_virtual_time(open_store)


def test_every_promise_has_a_sentence() -> None:
    """What the suite checks can be read: a sentence for each name."""
    assert len(PROMISES) >= 30
    for name, sentence in PROMISES.items():
        assert name == name.lower()
        assert " " not in name
        assert sentence.endswith(".")
