"""The world of one run: its stores, its clocks, its documents and the application that writes them."""

from __future__ import annotations

import datetime as dt
import random
from collections import deque
from collections.abc import Iterable
from typing import Final

import trio

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    DocumentVersion,
    Fence,
    Presence,
    StoreTraits,
)
from trio_repair.abc import Stores
from trio_repair.stores.memory import MemoryCopy, MemoryStore

from .._contents import EMBEDDING, OTHER_EMBEDDING
from .._samples import HOSTILE_IDS
from ._oracle import Rules
from ._profiles import Mishap, Profile
from ._store import Front, SimStore
from ._witness import MARKER, Witness

EPOCH: Final = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
_HLC_EPOCH: Final = dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)
STORES: Final = ("text", "vector", "cache")
SKEW: Final = 1.0
_CONTENT: Final = ContentDefinition()


class World:
    """What is there, whether an engine runs or not."""

    def __init__(self, seed: int, profile: Profile, stop: trio.CancelScope) -> None:
        self.rng = random.Random(f"{seed} world")
        self.profile = profile
        self.nursery: trio.Nursery
        self.ending = False
        """The application writes no more."""
        self._clock_offset = 0.0
        self.recent: deque[str] = deque(maxlen=3)
        """The documents that were written last."""
        self._numbers: dict[str, int] = {}
        self._texts = 0
        self._host_offsets = [0.0, 0.0]
        rng = self.rng
        self.hlc = rng.random() < 0.3
        hostile = rng.sample(HOSTILE_IDS, 2)
        self.doc_ids = [*(f"doc-{index}" for index in range(rng.randint(3, 7))), *hostile]
        absent = {"text": self._absent(), "vector": self._absent(), "cache": AbsentMeans.MANUAL}
        self.rules = Rules(absent=absent, missing_source="refuse", hlc=self.hlc, skew=SKEW, embedding=EMBEDDING)
        self.witness = Witness(self.rules, lambda: self.wall().timestamp(), stop.cancel)
        self.witness.write_as_rival = self._write_as_rival
        self.stores = {name: self._store(name, absent[name], seed) for name in STORES}
        self.fronts = {name: Front(store, self.witness) for name, store in self.stores.items()}

    def _absent(self) -> AbsentMeans:
        return self.rng.choice((AbsentMeans.MISSING, AbsentMeans.MISSING, AbsentMeans.DELETED, AbsentMeans.MANUAL))

    def _store(self, name: str, absent: AbsentMeans, seed: int) -> SimStore:
        rng = self.rng
        keeps = name != "cache"
        traits = StoreTraits(
            fence=Fence.STRONG,
            holds_text=True,
            keeps_tombstones=keeps,
            absent=absent,
            max_calls=rng.choice((1, 1, 2, 4)),
            max_batch=rng.choice((1, 2, 4, 16)),
        )
        store = SimStore(
            name,
            self.witness,
            random.Random(f"{seed} {name}"),
            traits=traits,
            embedding=EMBEDDING if name == "vector" else None,
            latency=rng.choice((0.005, 0.02, 0.1)),
        )
        store.faults = self.profile.faults
        return store

    def open(self, nursery: trio.Nursery) -> None:
        """From now on things may happen."""
        self.nursery = nursery
        for store in self.stores.values():
            store.nursery = nursery

    @property
    def engine_stores(self) -> Stores:
        """What an engine is given."""
        return Stores(text=self.fronts["text"], vector=self.fronts["vector"], cache=self.fronts["cache"])

    @property
    def check_stores(self) -> Stores:
        """What a check is given."""
        return Stores(text=self.stores["text"], vector=self.stores["vector"], cache=self.stores["cache"])

    def snapshot(self) -> dict[str, dict[str, MemoryCopy]]:
        """All that the stores hold."""
        return {name: store.snapshot() for name, store in self.stores.items()}

    def differing(self) -> list[str]:
        """The documents on which the critical stores do not agree at this moment."""
        text, vector = self.stores["text"], self.stores["vector"]
        return [
            doc_id
            for doc_id in self.doc_ids
            if text.observe_nowait(doc_id).version != vector.observe_nowait(doc_id).version
        ]

    # Clocks

    def wall(self) -> dt.datetime:
        """The wall clock of the engine's host."""
        return EPOCH + dt.timedelta(seconds=trio.current_time() + self._clock_offset)

    def step_clock(self) -> None:
        """Set that clock forward or back, by up to an hour."""
        self._clock_offset += self.rng.uniform(-3600, 3600)
        self.witness.count(Mishap.CLOCK_STEP)
        self.witness.note(None, f"the wall clock of the host now is off by {self._clock_offset:.3f} s")

    def set_clock(self) -> None:
        """Set it right."""
        self._clock_offset = 0.0

    def seconds_until_past(self) -> float:
        """How long it takes until no version number lies in the future any more."""
        latest = 0.0
        for store in self.stores.values() if self.hlc else ():
            for copy in store.snapshot().values():
                number = copy.document.version.number
                if number is not None:
                    latest = max(latest, (number >> 12) / 1000)
        now = (self.wall() - _HLC_EPOCH).total_seconds()
        return max(0.0, latest - now) + 2 * SKEW

    # The application

    def next_number(self, doc_id: str) -> int:
        """A number above all before it, as far as the writing host's clock allows."""
        if not self.hlc:
            number = self._numbers.get(doc_id, 0) + 1
        else:
            host = self.rng.randrange(2)
            if self._host_offsets[host]:
                self.witness.count(Mishap.SKEWED_CLOCK)
            moment = EPOCH + dt.timedelta(seconds=trio.current_time() + self._host_offsets[host]) - _HLC_EPOCH
            physical = int(moment.total_seconds() * 1000) << 12
            # A host that has seen the last number stays above it; one that has not may fall below.
            seen = self._numbers.get(doc_id, 0) if self.rng.random() < 0.7 else 0
            number = max(physical, seen + 1)
        self._numbers[doc_id] = max(number, self._numbers.get(doc_id, 0))
        return number

    def skew_hosts(self) -> None:
        """Let the clocks of the application's hosts be off."""
        self._host_offsets = [self.rng.uniform(-5, 5), self.rng.choice((0.0, self.rng.uniform(-600, 600)))]

    def document(self, doc_id: str, number: int | None) -> Document:
        """A text that nobody wrote before."""
        self._texts += 1
        text = f"{MARKER} {self._texts}"
        version = DocumentVersion(number=number, digest=_CONTENT.digest(text, {}))
        return Document(doc_id=doc_id, text=text, version=version)

    async def write(self, doc_id: str, *, delete: bool, gap: float) -> None:
        """Write to one store after the other, as applications do, and perhaps die on the way."""
        rng, witness = self.rng, self.witness
        self.recent.append(doc_id)
        order = list(STORES if rng.random() < 0.7 else ("vector", "text", "cache"))
        dies_after = rng.randint(1, 2) if rng.random() < 0.4 else 3
        number = self.next_number(doc_id)
        numbered: int | None = None if rng.random() < 0.02 else number
        document = self.document(doc_id, numbered)
        for index, name in enumerate(order):
            if index == dies_after:
                witness.count(Mishap.HALF_WRITE)
                witness.note(doc_id, f"the application dies before it writes to {name}")
                return
            if index and gap:
                await trio.sleep(gap)
            if self.ending:
                return
            store = self.stores[name]
            if store.mood in (Mishap.STORE_REFUSING, Mishap.STORE_HANGING):
                continue
            if name == "cache" and rng.random() < 0.3:
                store.remove_nowait(doc_id)
            elif delete:
                store.delete_nowait(doc_id, number=numbered)
            else:
                store.put_nowait(document)

    def lose_writes(self, doc_ids: Iterable[str]) -> None:
        """What the application writes reaches the text store alone, for several documents in a row."""
        if self.stores["text"].mood in (Mishap.STORE_REFUSING, Mishap.STORE_HANGING):
            return
        for doc_id in doc_ids:
            self.recent.append(doc_id)
            self.witness.count(Mishap.HALF_WRITE)
            self.stores["text"].put_nowait(self.document(doc_id, self.next_number(doc_id)))

    def damage(self, doc_id: str) -> None:
        """Spoil one copy, or lose it."""
        rng = self.rng
        self.recent.append(doc_id)
        store = self.stores[rng.choice(STORES)]
        if store.observe_nowait(doc_id).presence is not Presence.LIVE:
            return
        self.witness.count(Mishap.DAMAGE)
        kind = rng.random()
        if kind < 0.3:
            store.remove_nowait(doc_id)
        elif kind < 0.6 and store.name == "vector":
            store.damage(doc_id, intact=True, embedding=OTHER_EMBEDDING)
        else:
            store.damage(doc_id)

    def conflict(self, doc_id: str) -> None:
        """Two writers that know nothing of each other give one number to different texts, or one of them deletes."""
        self.witness.count(Mishap.CONFLICT)
        number = self.next_number(doc_id)
        self.recent.append(doc_id)
        deleted = self.rng.choice(("text", "vector", None))
        for name in ("text", "vector"):
            if name == deleted:
                self.stores[name].delete_nowait(doc_id, number=number)
            else:
                self.stores[name].put_nowait(self.document(doc_id, number))

    def _write_as_rival(self, store: MemoryStore, doc_id: str) -> None:
        if self.rng.random() < 0.2:
            store.delete_nowait(doc_id, number=self.next_number(doc_id))
        else:
            store.put_nowait(self.document(doc_id, self.next_number(doc_id)))
