"""The contract suite, run on every store of this package; each shape of traits that the suite knows is covered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trio_repair import ContentDefinition, EmbeddingIdentity, Fence
from trio_repair.abc import Store
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import PROMISES, FaultyStore, SimulatedStore, check_store

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
async def test_memory(factory: Callable[[], AbstractAsyncContextManager[Store]]) -> None:
    """The reference store keeps the contract, whatever traits it is given."""
    await check_store(factory)


def test_memory_in_virtual_time() -> None:
    """The suite runs on a virtual clock too, with the same verdict."""
    trio.run(check_store, memory(max_batch=16), clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("keys", [("title",), ("title", "changed")])
async def test_memory_with_metadata_as_content(keys: tuple[str, ...]) -> None:
    """A store whose digests cover metadata keeps the contract under that definition."""
    content = ContentDefinition(metadata_keys=keys)

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Store]:
        yield MemoryStore(content=content)

    await check_store(open_store, content=content)


def test_doubles_keep_the_contract() -> None:
    """A store in wrappers without faults keeps the contract: the wrappers add nothing of their own."""

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Store]:
        latencies = {"observe": 0.01, "write": 0.15, "scan": 0.02}
        yield FaultyStore(SimulatedStore(MemoryStore(), latencies))

    trio.run(check_store, open_store, clock=trio.testing.MockClock(autojump_threshold=0))


def test_every_promise_has_a_sentence() -> None:
    """What the suite checks can be read: a sentence for each name."""
    assert len(PROMISES) >= 30
    for name, sentence in PROMISES.items():
        assert name == name.lower()
        assert " " not in name
        assert sentence.endswith(".")
