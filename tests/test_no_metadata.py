"""A vector store that keeps no metadata, such as a table of chunks: as a source it empties nobody else's."""

from __future__ import annotations

import random

import attrs
import pytest
from engine_world import config, job

from trio_repair import Document, RepairOutcome, StepState, Stores, SyncStrategy, open_repair_engine
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import make_document

HELD = {"title": "a title", "tags": ["x"]}


def world_of(*, said: bool = True) -> dict[str, MemoryStore]:
    """The vector store is ahead and has no metadata; the others are behind and have them."""
    traits = attrs.evolve(MemoryStore("vector").traits, keeps_metadata=not said)
    world = {"text": MemoryStore("text"), "vector": MemoryStore("vector", traits=traits), "cache": MemoryStore("cache")}
    for role in ("text", "cache"):
        world[role].put_nowait(make_document("d", "old", number=1, metadata=HELD))
    world["vector"].put_nowait(make_document("d", "new", number=2))
    return world


async def repair(world: dict[str, MemoryStore], strategy: SyncStrategy):
    async with open_repair_engine(Stores(**world), config(settle=0.0), rng=random.Random(1)) as engine:
        return await engine.execute_repair_job(job(strategy=strategy))


def held(world: dict[str, MemoryStore], role: str) -> Document:
    document = world[role].get_nowait("d")
    assert document is not None
    return document


@pytest.mark.parametrize("strategy", [SyncStrategy.VECTOR_SOURCE_OF_TRUTH, SyncStrategy.MOST_RECENT])
async def test_the_metadata_of_the_text_store_stay(autojump_clock, strategy):
    """Text and number are taken over, in the cache too; the metadata are those that were there."""
    world = world_of()
    result = await repair(world, strategy)
    assert (RepairOutcome.REPAIRED, ("text", "cache")) == (result.outcome, result.updated_systems), result
    for role in ("text", "cache"):
        document = held(world, role)
        assert ("new", 2, HELD) == (document.text, document.version.number, dict(document.metadata))


async def test_without_the_trait_they_would_be_lost(autojump_clock):
    """The control: of a store that does not say so, no metadata means that there are none."""
    world = world_of(said=False)
    await repair(world, SyncStrategy.VECTOR_SOURCE_OF_TRUTH)
    assert {} == dict(held(world, "text").metadata)


async def test_metadata_that_cannot_be_read_are_not_overwritten(autojump_clock):
    """The text store's copy is damaged: a person decides, and it stays as it is."""
    world = world_of()
    world["text"].damage("d")
    before = world["text"].snapshot()
    result = await repair(world, SyncStrategy.VECTOR_SOURCE_OF_TRUTH)
    assert RepairOutcome.NEEDS_MANUAL is result.outcome
    assert "the vector store keeps no metadata, and the text store cannot give its own" in str(result.error)
    assert before == world["text"].snapshot()
    assert {step.store: step.state for step in result.receipt}["text"] is StepState.UNTOUCHED


async def test_a_text_store_that_has_nothing_takes_what_there_is(autojump_clock):
    """A document that is nowhere else comes without metadata."""
    world = world_of()
    world["text"] = MemoryStore("text")
    result = await repair(world, SyncStrategy.VECTOR_SOURCE_OF_TRUTH)
    assert RepairOutcome.REPAIRED is result.outcome
    assert {} == dict(held(world, "text").metadata)
