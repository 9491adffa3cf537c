"""Concurrent actors that take turns in an order that is a value: drawn, printed, and played again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeAlias

import attrs
import trio

Turn: TypeAlias = Callable[[], Awaitable[None]]
"""Awaited by an actor before each of its steps."""


def _as_tuple(choices: Iterable[int]) -> tuple[int, ...]:
    return tuple(choices)


@attrs.frozen
class Interleaving:
    """Which of several waiting actors goes next, again and again."""

    choices: tuple[int, ...] = attrs.field(default=(), converter=_as_tuple)
    """For each turn a number, taken modulo the number of actors that wait. When they are used up, whoever is named
    first goes next."""

    async def play(self, *actors: Callable[[Turn], Awaitable[object]]) -> list[int]:
        """Run `actors` beside each other, one step at a time, and return who took which turn, by position.

        Each is called with a function that it awaits before each of its steps::

            async def writer(turn):
                for number in range(3):
                    await turn()
                    await write(number)

        A turn is given only when all tasks of the program are blocked: every step has come as far as it can without
        time passing, or another actor. One that waits for something else than its turn, an engine for instance, does
        not hold up the others. Use a MockClock, under which "blocked" does not depend on how fast the machine is.

        **If cancelled:** the actors are.
        """
        conductor = _Conductor(self.choices, len(actors))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conductor.run)
            for index, actor in enumerate(actors):
                nursery.start_soon(conductor.perform, index, actor)
        return conductor.turns


class _Conductor:
    def __init__(self, choices: Sequence[int], actors: int) -> None:
        self.turns: list[int] = []
        self._choices = iter(choices)
        self._waiting: dict[int, trio.Event] = {}
        self._acting = actors
        self._changed = trio.Event()

    async def perform(self, index: int, actor: Callable[[Turn], Awaitable[object]]) -> None:
        async def turn() -> None:
            go = self._waiting[index] = trio.Event()
            self._changed.set()
            await go.wait()

        try:
            await actor(turn)
        finally:
            self._acting -= 1
            self._changed.set()

    async def run(self) -> None:
        # Not at the top: with it comes pytest, and importing this package loads no test framework.
        from trio.testing import wait_all_tasks_blocked  # noqa: PLC0415

        while self._acting:
            await wait_all_tasks_blocked()
            if not self._waiting:
                if self._acting:
                    self._changed = trio.Event()
                    await self._changed.wait()
                continue
            ready = sorted(self._waiting)
            index = ready[next(self._choices, 0) % len(ready)]
            self.turns.append(index)
            self._waiting.pop(index).set()
