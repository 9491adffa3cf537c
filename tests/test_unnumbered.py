"""A store that keeps no version numbers, such as a table that somebody else made: its copies are compared by digest."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

import attrs
import pytest
from engine_world import config, job, states

from trio_repair import (
    AutoRepairConfig,
    Document,
    RepairOutcome,
    StepState,
    Stores,
    SyncStrategy,
    check,
    open_repair_engine,
)
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import ContractBroken, check_store, make_document

ROLES = ("text", "vector", "cache")
LIMITS = {"settle": 0.0}


World = dict[str, MemoryStore]


class Forgetful(MemoryStore):
    """The planted bug: it keeps no numbers, and does not say so."""

    def __init__(self, name: str) -> None:
        said = MemoryStore(name).traits
        super().__init__(name, traits=attrs.evolve(said, numbered=False))
        self.said = said

    @property
    def traits(self):
        return self.said

    def _replace(self, doc_id: str, document: Document | None):
        if document is not None:
            document = attrs.evolve(document, version=attrs.evolve(document.version, number=None))
        return super()._replace(doc_id, document)


def unnumbered_store(role: str) -> MemoryStore:
    return MemoryStore(role, traits=attrs.evolve(MemoryStore(role).traits, numbered=False))


def world_of(*unnumbered: str) -> World:
    return {role: unnumbered_store(role) if role in unnumbered else MemoryStore(role) for role in ROLES}


def stores_of(world: World) -> Stores:
    return Stores(**world)


def put(world: World, role: str, text: str, number: int | None) -> None:
    world[role].put_nowait(make_document("d", text, number=number))


async def divergent(stores: Stores) -> list[str]:
    async with check(stores, AutoRepairConfig(**LIMITS)) as checking:
        return sorted(kind.value for found in [one async for one in checking] for kind in found.kinds)


async def repair(world: World, strategy: SyncStrategy = SyncStrategy.TEXT_SOURCE_OF_TRUTH):
    async with open_repair_engine(stores_of(world), config(**LIMITS), rng=random.Random(1)) as engine:
        return await engine.execute_repair_job(job(strategy=strategy))


@pytest.mark.parametrize("unnumbered", [("text",), ("vector",), ("cache",), ("text", "vector"), ROLES])
@pytest.mark.parametrize("strategy", [SyncStrategy.TEXT_SOURCE_OF_TRUTH, SyncStrategy.MOST_RECENT])
async def test_the_same_content_is_no_difference(autojump_clock, unnumbered, strategy):
    """Where a store keeps no number, nothing is found and nothing is written if the content is the same."""
    world = world_of(*unnumbered)
    for role in ROLES:
        # Where neither of the stores that judge it has a number, an entry that has one differs from them.
        put(world, role, "the same", None if unnumbered == ("text", "vector") else 7)
    assert [] == await divergent(stores_of(world))
    before = [world[role].snapshot() for role in ROLES]
    result = await repair(world, strategy)
    assert RepairOutcome.ALREADY_CONSISTENT is result.outcome, result
    assert before == [world[role].snapshot() for role in ROLES]


@pytest.mark.parametrize("role", ROLES)
async def test_without_the_trait_it_would_be_written_again_and_again(autojump_clock, role):
    """The control: a store that loses numbers and does not say so never agrees."""
    world = world_of() | {role: Forgetful(role)}
    for one in ROLES:
        put(world, one, "the same", 7)
    assert [] != await divergent(stores_of(world))


@pytest.mark.parametrize("unnumbered", [("text",), ("vector",), ("cache",), ("text", "vector"), ROLES])
async def test_other_content_is_repaired_from_the_source_and_then_agrees(autojump_clock, unnumbered):
    """The text store is the source: afterwards every store has its content, and a second run writes nothing."""
    world = world_of(*unnumbered)
    put(world, "text", "new", 8)
    put(world, "vector", "old", 7)
    put(world, "cache", "old", 7)
    assert [] != await divergent(stores_of(world))
    result = await repair(world)
    assert (RepairOutcome.REPAIRED, ("vector", "cache")) == (result.outcome, result.updated_systems), result
    assert {"new"} == {world[role].get_nowait("d").text for role in ROLES}
    assert StepState.VERIFIED is states(result)["vector"]
    assert [] == await divergent(stores_of(world))
    assert RepairOutcome.ALREADY_CONSISTENT is (await repair(world)).outcome


@pytest.mark.parametrize("unnumbered", ["text", "vector"])
async def test_what_cannot_be_ordered_is_left_to_a_person(autojump_clock, unnumbered):
    """Different content, and one of the two without a number: MOST_RECENT does not guess."""
    world = world_of(unnumbered)
    put(world, "text", "one", 8)
    put(world, "vector", "other", 7)
    assert RepairOutcome.NEEDS_MANUAL is (await repair(world, SyncStrategy.MOST_RECENT)).outcome


async def test_a_number_that_another_store_has_for_the_content_is_kept(autojump_clock):
    """The source keeps no numbers, the vector copy is damaged: it is rebuilt from the source, under its own number."""
    world = world_of("text")
    for role in ROLES:
        put(world, role, "the same", 7)
    world["vector"].damage("d")
    result = await repair(world)
    assert RepairOutcome.REPAIRED is result.outcome, result
    assert 7 == world["vector"].get_nowait("d").version.number
    assert 7 == world["cache"].get_nowait("d").version.number


@pytest.mark.parametrize("choice", ["text", "vector"])
async def test_a_choice_is_carried_out(autojump_clock, choice):
    """A person may choose a copy without a number, or beside one."""
    world = world_of("text")
    put(world, "text", "one", None)
    put(world, "vector", "other", 7)
    async with open_repair_engine(stores_of(world), config(**LIMITS), rng=random.Random(1)) as engine:
        result = await engine.resolve("d", choice=choice)
    assert RepairOutcome.REPAIRED is result.outcome, result
    wanted = {"text": "one", "vector": "other"}[choice]
    assert {wanted} == {world[role].get_nowait("d").text for role in ("text", "vector")}


async def test_a_tombstone_is_a_tombstone_without_a_number(autojump_clock):
    """Deleted in both, with a number in one: nothing is wrong."""
    world = world_of("vector")
    world["text"].delete_nowait("d", number=3)
    world["vector"].delete_nowait("d", number=3)
    assert None is world["vector"].get_nowait("d").version.number
    assert [] == await divergent(stores_of(world))
    assert RepairOutcome.ALREADY_CONSISTENT is (await repair(world)).outcome


async def test_such_a_store_keeps_the_contract(autojump_clock):
    """`check_store` asks of it all that does not need numbers; one that keeps them although it says not is named."""
    traits = attrs.evolve(MemoryStore("text").traits, numbered=False)

    @asynccontextmanager
    async def opened():
        yield MemoryStore("text", traits=traits)

    await check_store(opened)

    class Keeps(MemoryStore):
        @property
        def traits(self):
            return traits

    @asynccontextmanager
    async def mistaken():
        yield Keeps("text")

    with pytest.raises(ContractBroken, match="version-round-trip"):
        await check_store(mistaken, only=["version-round-trip"])
