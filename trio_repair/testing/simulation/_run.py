"""One simulated run: episodes of trouble with long quiet in between, and calm at the end of each day."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio
from trio.testing import MockClock

from ._calm import calm_down
from ._operator import Host, Operator
from ._profiles import Mishap, Profile
from ._scheduler import seeded_scheduler
from ._witness import Witness
from ._world import STORES, World

_EPISODES_PER_HOUR: Final = 1.0
_HOURS_BETWEEN_CALMS: Final = 24.0
_DOWN: Final = (Mishap.STORE_REFUSING, Mishap.STORE_HANGING, Mishap.STORE_SLOW, Mishap.STORE_CRASH)


@contextmanager
def _quiet_log() -> Iterator[None]:
    """The engine logs what stores do wrong; here they do it on purpose, by the thousand."""
    logger = logging.getLogger("trio_repair")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def run_once(seed: int, hours: float, profile: Profile) -> tuple[Witness, float]:
    """Simulate, and return what was witnessed and for how many seconds it went on."""
    witnesses: list[tuple[Witness, float]] = []

    async def main() -> None:
        run = _Run(seed, hours, profile)
        witnesses.append(await run.run())

    with seeded_scheduler(seed), _quiet_log():
        trio.run(main, clock=MockClock(autojump_threshold=0))
    return witnesses[0]


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


class _Run:
    def __init__(self, seed: int, hours: float, profile: Profile) -> None:
        self.seed = seed
        self.seconds = hours * 3600
        self.profile = profile
        self.rng = random.Random(f"{seed} run")
        self.world: World
        self.host: Host
        self.operator: Operator

    async def run(self) -> tuple[Witness, float]:
        stop = trio.CancelScope()
        self.world = World(self.seed, self.profile, stop)
        self.host = Host(self.world, self.seed)
        self.operator = Operator(self.world, self.host, random.Random(f"{self.seed} operator"))
        try:
            with stop:
                async with trio.open_nursery() as nursery:
                    self.world.open(nursery)
                    await self._live()
                    nursery.cancel_scope.cancel()
        except Exception as error:
            # Nothing that an engine raises is expected here; what comes out first is told.
            self.world.witness.fail("I16", None, f"{_first(error)!r} came out of the engine")
        return self.world.witness, self.world.witness.now()

    async def _live(self) -> None:
        world, rng = self.world, self.rng
        for doc_id in world.doc_ids:
            if rng.random() < 0.9:
                await world.write(doc_id, delete=rng.random() < 0.1, gap=0.0)
        if world.hlc:
            world.skew_hosts()
        await self.host.start()
        calms = 0
        next_calm = _HOURS_BETWEEN_CALMS * 3600
        first = True
        while True:
            # A short run has its episodes all the same, only fewer.
            wait = rng.uniform(0, min(self.seconds, 600)) if first else rng.expovariate(_EPISODES_PER_HOUR / 3600)
            first = False
            begins = trio.current_time() + wait
            if begins > self.seconds:
                break
            if begins > next_calm:
                calms += 1
                next_calm += _HOURS_BETWEEN_CALMS * 3600
                await self._calm(str(calms))
            await trio.sleep_until(max(begins, trio.current_time()))
            await self._episode()
        await self._calm("at the end")
        await self.host.stop("drain")

    async def _calm(self, name: str) -> None:
        self.world.ending = True
        await calm_down(self.world, self.host, name)
        self.world.ending = False

    async def _episode(self) -> None:
        """Half a minute or two in which much happens at once."""
        world, rng = self.world, self.rng
        world.witness.note(None, "episode")
        length = rng.uniform(10, 90)
        begin = trio.current_time()
        moments = sorted(rng.uniform(0, length) for _ in range(rng.randint(4, 16)))
        # In bursts: what comes at the same time meets.
        moments = [moment if rng.random() < 0.5 else moments[index // 4 * 4] for index, moment in enumerate(moments)]
        troubles = self._troubles(length)
        async with trio.open_nursery() as nursery:
            for start, end, name, mood, rate in troubles:
                nursery.start_soon(self._trouble, begin + start, begin + end, name, mood, rate)
            if rng.random() < self.profile.host:
                nursery.start_soon(self._restart, begin + rng.uniform(0, length))
            for moment in moments:
                await trio.sleep_until(begin + moment)
                await self.operator.act()
        for store in world.stores.values():
            store.heal()

    def _troubles(self, length: float) -> list[tuple[float, float, str, Mishap | None, float]]:
        """When which store is how: several at a time, and they recover in another order than they fell ill."""
        rng, profile = self.rng, self.profile
        troubles: list[tuple[float, float, str, Mishap | None, float]] = []
        for name in STORES:
            if rng.random() < profile.trouble:
                rate = profile.fault_rate * rng.uniform(0.1, 1)
                troubles.append((rng.uniform(0, length / 4), rng.uniform(length / 2, length), name, None, rate))
            if rng.random() < profile.down:
                start = rng.uniform(0, length)
                troubles.append((start, start + rng.uniform(0.5, 25), name, rng.choice(_DOWN), 0.0))
        down = [trouble for trouble in troubles if trouble[3] is not None]
        for index, one in enumerate(down):
            for other in down[index + 1 :]:
                meet = one[0] < other[1] and other[0] < one[1]
                if meet and (one[0] < other[0]) != (one[1] < other[1]):
                    self.world.witness.count(Mishap.SWIZZLE)
        return troubles

    async def _trouble(self, start: float, end: float, name: str, mood: Mishap | None, rate: float) -> None:
        store, witness = self.world.stores[name], self.world.witness
        await trio.sleep_until(start)
        if mood is None:
            store.fault_rate = rate
        elif mood is Mishap.STORE_CRASH:
            witness.note(None, f"{name} crashes")
            store.crash(lose=self.rng.choice((0.0, self.rng.uniform(0, 2))))
        else:
            witness.note(None, f"{name} is {mood.value}")
            store.mood = mood
        await trio.sleep_until(end)
        witness.note(None, f"{name} is well again")
        if mood is None:
            store.fault_rate = 0.0
        else:
            store.heal()

    async def _restart(self, moment: float) -> None:
        await trio.sleep_until(moment)
        witness = self.world.witness
        if self.rng.random() < 0.5:
            self.world.step_clock()
        how = self.rng.choice(("cancel", "cancel", "raise", "drain"))
        witness.note(None, f"the host restarts: {how}")
        witness.count(Mishap.HOST_RESTART)
        await self.host.stop(how)
        await trio.sleep(self.rng.choice((0.0, self.rng.uniform(0, 5))))
        await self.host.start()
