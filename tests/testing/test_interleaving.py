"""Interleavings: actors take turns as drawn, and the order decides who wins a race."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from engine_world import World, config, job
from hypothesis import given, settings
from trio.testing import MockClock

from trio_repair import Observation, Prepared, SyncStrategy, Write, WriteStatus, open_repair_engine
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import Interleaving, Turn, make_document, strategies


async def test_turns_are_taken_as_chosen(autojump_clock: MockClock) -> None:
    """The choices decide whose step is next; when they are used up, whoever is named first goes."""
    log: list[str] = []

    def actor(name: str) -> Any:
        async def act(turn: Turn) -> None:
            for step in range(2):
                await turn()
                log.append(f"{name}{step}")

        return act

    assert [1, 0, 1, 0] == await Interleaving([1, 0, 1]).play(actor("a"), actor("b"))
    assert log == ["b0", "a0", "b1", "a1"]
    assert [0, 0, 1, 1] == await Interleaving().play(actor("a"), actor("b"))


async def test_an_actor_that_waits_for_something_else_holds_up_nobody(autojump_clock: MockClock) -> None:
    """While one sleeps, the other takes all its turns; an actor that fails ends the play."""
    log: list[str] = []

    async def sleeper(turn: Turn) -> None:
        await turn()
        await trio.sleep(5)
        log.append("awake")
        await turn()

    async def busy(turn: Turn) -> None:
        for _ in range(3):
            await turn()
            log.append("busy")

    assert [0, 1, 1, 1, 0] == await Interleaving([0]).play(sleeper, busy)
    assert log == ["busy"] * 3 + ["awake"]

    async def failing(turn: Turn) -> None:
        await turn()
        raise RuntimeError

    with pytest.raises(ExceptionGroup):
        await Interleaving().play(sleeper, failing)


def race(order: Interleaving, *, fenced: bool) -> set[int | None]:
    """Two writers each look, and then write what they have counted up; whose write landed, by number."""
    landed: set[int | None] = set()

    async def main() -> None:
        store = MemoryStore()

        async def writer(turn: Turn) -> None:
            await turn()
            (held,) = await store.observe(["a"])
            assert isinstance(held, Observation)
            number = 1 if held.version is None or held.version.number is None else held.version.number + 1
            (prepared,) = await store.prepare([make_document("a", f"{number}", number=number)])
            assert isinstance(prepared, Prepared)
            await turn()
            if not fenced:
                (held,) = await store.observe(["a"])
                assert isinstance(held, Observation)
            (answer,) = await store.write([Write(prepared=prepared, token=held.token)])
            if answer.status is WriteStatus.LANDED:
                assert number not in landed, "an update is lost"
                landed.add(number)

        await order.play(writer, writer)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return landed


@settings(max_examples=40, deadline=None)
@given(strategies.interleavings(max_turns=4))
def test_no_interleaving_loses_an_update(order: Interleaving) -> None:
    """In no order do two writers that looked at one state both land."""
    assert race(order, fenced=True) in ({1}, {1, 2})


def test_control_some_interleaving_shows_a_missing_fence() -> None:
    """Writers that look again just before they write, and keep what they decided, lose an update in some order."""

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(strategies.interleavings(max_turns=4))
    def search(order: Interleaving) -> None:
        race(order, fenced=False)

    with pytest.raises((AssertionError, ExceptionGroup)):
        search()


@settings(max_examples=30, deadline=None)
@given(strategies.interleavings(max_turns=12))
def test_one_order_is_one_run_against_an_engine(order: Interleaving) -> None:
    """Two writers and an engine, driven by the same order twice, end in the same contents; the newest one wins."""

    def run() -> tuple[list[int], dict[str, int | None]]:
        out: list[Any] = []

        async def main() -> None:
            world = World({"vector": {"write": 0.1}})
            world.drift("d")

            def writer(name: str, numbers: range) -> Any:
                async def act(turn: Turn) -> None:
                    for number in numbers:
                        await turn()
                        world.put(name, number=number)

                return act

            async with open_repair_engine(world.stores, config()) as engine:

                async def caller(turn: Turn) -> None:
                    for _ in range(3):
                        await turn()
                        await engine.execute_repair_job(job(strategy=SyncStrategy.MOST_RECENT))

                out.append(await order.play(writer("text", range(10, 13)), caller, writer("vector", range(20, 23))))
                await engine.execute_repair_job(job(strategy=SyncStrategy.MOST_RECENT))
                out.append(world.numbers())

        trio.run(main, clock=MockClock(autojump_threshold=0))
        return out[0], out[1]

    turns, numbers = run()
    assert (turns, numbers) == run()
    assert numbers["text"] == numbers["vector"] == 22
