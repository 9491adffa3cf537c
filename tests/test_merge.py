"""Ranges merged: any mixture of stores, whatever is damaged and however small the pages, against looking at each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from test_check import Trio, contents, fill_from, found, in_virtual_time

from trio_repair import (
    AutoRepairConfig,
    CheckIncomplete,
    Observation,
    Presence,
    RangeDigest,
    RangeListing,
    StoreMisbehaved,
    StoreUnavailable,
    _merge,
    check,
    count_changes,
    diagnose,
)
from trio_repair import SyncStrategy as Strategy
from trio_repair._lanes import Scanned
from trio_repair._ranges import entry
from trio_repair.abc import Ranges, Stores
from trio_repair.stores.memory import MemoryStore


class Snapshot:
    """`Ranges` of a memory store, in pages of two documents."""

    def __init__(self, store: RangedMemory) -> None:
        self.store = store
        self.views = {doc_id: store.inner.observe_nowait(doc_id) for doc_id in sorted(store.inner.documents())}

    def entries(self, after: str | None, bound: str | None) -> list[bytes]:
        return [
            entry(doc_id, view, self.store.traits)
            for doc_id, view in self.views.items()
            if (after is None or doc_id > after) and (bound is None or doc_id <= bound)
        ]

    async def ranges(self, after: str | None, size: int, count: int) -> Sequence[tuple[str, RangeDigest]]:
        await self.store.called("ranges", count)
        ids = [doc_id for doc_id in self.views if after is None or doc_id > after]
        cut = []
        for part in [ids[start : start + size] for start in range(0, len(ids), size)][:count]:
            cut.append((part[-1], RangeDigest.of(b"".join(self.entries(after, part[-1])))))
            after = part[-1]
        return cut

    async def digests(self, after: str | None, bounds: Sequence[str | None], most: int) -> Sequence[RangeDigest | None]:
        await self.store.called("digests", len(bounds))
        digests: list[RangeDigest | None] = []
        for bound in bounds:
            held = self.entries(after, bound)
            digests.append(RangeDigest.of(b"".join(held)) if len(held) <= most else None)
            after = bound
        return digests

    async def listing(self, after: str | None, bound: str | None) -> RangeListing:
        await self.store.called("listing", 1)
        held = self.entries(after, bound)
        return RangeListing(entries=b"".join(held[:2]), more=len(held) > 2)

    async def look(self, doc_ids: Sequence[str]) -> Sequence[Observation]:
        await self.store.called("look", len(doc_ids))
        return [self.views.get(i, Observation(presence=Presence.ABSENT, token="absent")) for i in doc_ids]


class RangedMemory:
    """A memory store that has ranges, and never gives a scan."""

    snapshot: type[Snapshot] = Snapshot

    def __init__(self, inner: MemoryStore) -> None:
        self.inner = inner
        self.calls: list[tuple[str, int]] = []
        self.open = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def called(self, name: str, size: int) -> None:
        self.calls.append((name, size))
        await trio.lowlevel.checkpoint()

    def open_scan(self, after: str | None = None) -> Any:
        raise AssertionError("a store with ranges is not scanned")

    @asynccontextmanager
    async def open_ranges(self, after: str | None = None) -> AsyncGenerator[Ranges, None]:
        self.open += 1
        try:
            yield self.snapshot(self)
        finally:
            self.open -= 1


def small_ranges(patch: pytest.MonkeyPatch, size: int) -> None:
    patch.setattr(_merge, "RANGE_SIZE", size)
    patch.setattr(_merge, "RANGES_AT_ONCE", 2)
    patch.setattr(_merge, "LOOKS", 3)


def mixed(world: Trio, ranged: Sequence[bool]) -> Stores:
    names = ("text", "vector", "cache")
    return Stores(
        **{
            name: RangedMemory(getattr(world, name)) if has else getattr(world, name)
            for name, has in zip(names, ranged, strict=True)
        }
    )


def expected_of(world: Trio, states: Mapping[str, Any]) -> dict[str, set[str]]:
    stores = world.stores.by_name
    traits = {name: store.traits for name, store in stores.items()}
    divergent = {}
    for doc_id in states:
        views = {name: getattr(world, name).observe_nowait(doc_id) for name in stores}
        divergence = diagnose(doc_id, views, traits)
        if divergence is not None:
            divergent[doc_id] = {kind.value for kind in divergence.kinds}
    return divergent


@settings(max_examples=150)
@given(
    contents,
    st.integers(1, 4),
    st.integers(1, 5),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.random_module(),
)
def test_any_mixture_of_stores_finds_what_diagnose_finds(
    states: dict[str, tuple[str, str, str]], max_batch: int, size: int, ranged: tuple[bool, ...], _seed: object
) -> None:
    """Stores with ranges and stores with scans, whatever the sizes: exactly what is divergent, and the right count."""
    world = Trio(max_batch=max_batch)
    fill_from(world, states)
    held = {i for store in (world.text, world.vector, world.cache) for i in store.documents()}

    async def run() -> None:
        async with check(mixed(world, ranged)) as checking:
            findings = {one.doc_id: {kind.value for kind in one.kinds} async for one in checking}
        assert expected_of(world, states) == findings
        statistics = checking.statistics()
        assert (len(held), max(held, default=None), True) == (
            statistics.documents,
            statistics.last_id,
            statistics.complete,
        )
        assert len(held) == (await count_changes(mixed(world, ranged), Strategy.MOST_RECENT)).documents

    with pytest.MonkeyPatch.context() as patch:
        small_ranges(patch, size)
        in_virtual_time(run)


@pytest.mark.parametrize("emptied", ["text", "vector", "cache"])
@pytest.mark.parametrize(
    "ranged", [(True, True, True), (False, False, False), (True, False, True), (False, True, False)]
)
def test_an_emptied_store(emptied: str, ranged: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """What no range of the text store covers is found all the same, page by page."""
    small_ranges(monkeypatch, 4)
    world = Trio(max_batch=3)
    world.fill(50)
    for index in range(50):
        getattr(world, emptied).remove_nowait(f"ok-{index:05}")
    kind = {"text": {"orphan"}, "vector": {"missing"}, "cache": None}[emptied]

    async def run() -> None:
        wanted = {} if kind is None else {f"ok-{index:05}": kind for index in range(50)}
        assert wanted == await found(mixed(world, ranged))

    in_virtual_time(run)


def test_equal_ranges_are_neither_listed_nor_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """What agrees costs digests only, several at once; control: one damaged document costs a listing and a look."""
    small_ranges(monkeypatch, 10)
    world = Trio()
    world.fill(100)
    for index in range(0, 100, 3):
        world.cache.remove_nowait(f"ok-{index:05}")

    async def run() -> None:
        for damaged in (False, True):
            stores = mixed(world, (True, True, True))
            await count_changes(stores, Strategy.MOST_RECENT)
            text, vector = stores.text.calls, stores.vector.calls  # type: ignore[attr-defined]  # a test store, which counts
            assert [("ranges", 1)] + [("ranges", 2)] * 6 == [call for call in text if call[0] == "ranges"]
            assert [1, 2, 2, 2, 2, 1, 1] == [size for name, size in vector if name == "digests"]
            assert damaged == any(name in {"listing", "look"} for name, _ in vector)
            world.vector.damage("ok-00050")

    in_virtual_time(run)


def test_a_range_that_is_long_elsewhere_is_read_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that is far longer than its range is not held in memory: what was compared is forgotten."""
    small_ranges(monkeypatch, 5)
    world = Trio(max_batch=4)
    world.put("zzz")
    for index in range(500):
        world.put(f"orphan-{index:03}", into="v")
    most = 0

    class Watched(MemoryStore):
        pass

    from trio_repair._lanes import Scanned

    read = Scanned._read

    async def watched(self: Scanned) -> None:
        nonlocal most
        await read(self)
        most = max(most, len(self._ids), len(self._views))

    monkeypatch.setattr(Scanned, "_read", watched)

    async def run() -> None:
        assert 500 == len(await found(world.stores, AutoRepairConfig(settle=0.0)))

    in_virtual_time(run)
    assert 0 < most <= 30


# Stores that break what they promise of ranges.


class Unsorted(Snapshot):
    def entries(self, after: str | None, bound: str | None) -> list[bytes]:
        return super().entries(after, bound)[::-1]


class Twice(Snapshot):
    def entries(self, after: str | None, bound: str | None) -> list[bytes]:
        held = super().entries(after, bound)
        return [*held[:1], *held]


class OutOfRange(Snapshot):
    async def listing(self, after: str | None, bound: str | None) -> RangeListing:
        return await super().listing(None, bound)


class Malformed(Snapshot):
    async def listing(self, after: str | None, bound: str | None) -> RangeListing:
        return attrs.evolve(await super().listing(after, bound), entries=b"ok", more=False)


class NeverEnding(Snapshot):
    async def listing(self, after: str | None, bound: str | None) -> RangeListing:
        return RangeListing(entries=b"", more=True)


class TooFew(Snapshot):
    async def digests(self, after: str | None, bounds: Sequence[str | None], most: int) -> Sequence[RangeDigest | None]:
        return (await super().digests(after, bounds, most))[1:]


class GoingBack(Snapshot):
    async def ranges(self, after: str | None, size: int, count: int) -> Sequence[tuple[str, RangeDigest]]:
        return await super().ranges(None, size, count)


class LooksAtTooFew(Snapshot):
    async def look(self, doc_ids: Sequence[str]) -> Sequence[Observation]:
        return (await super().look(doc_ids))[1:]


class AtHand(Snapshot):
    """All listings are at hand, and none needs a call."""

    def at_hand(self, after: str | None, bound: str | None) -> RangeListing | None:
        return RangeListing(entries=b"".join(self.entries(after, bound)), more=False)

    async def listing(self, after: str | None, bound: str | None) -> RangeListing:
        raise AssertionError("it is at hand")


class SometimesAtHand(Snapshot):
    """Some listings are at hand, the others are asked for."""

    def at_hand(self, after: str | None, bound: str | None) -> RangeListing | None:
        held = self.entries(after, bound)
        return RangeListing(entries=b"".join(held), more=False) if len(held) <= 2 else None


@pytest.mark.parametrize("snapshot", [AtHand, SometimesAtHand])
def test_listings_at_hand_are_taken(snapshot: type[Snapshot], monkeypatch: pytest.MonkeyPatch) -> None:
    """They need no call, and say what a call would."""
    small_ranges(monkeypatch, 3)
    world = Trio()
    world.fill(40)
    lost = {f"ok-{index:05}" for index in (5, 20, 21, 30)}
    for doc_id in lost:
        world.vector.remove_nowait(doc_id)
    stores = mixed(world, (True, True, True))
    for store in stores.by_name.values():
        store.snapshot = snapshot  # type: ignore[attr-defined]  # a RangedMemory

    async def run() -> None:
        assert lost == set(await found(stores, AutoRepairConfig(settle=0.0)))

    in_virtual_time(run)


def test_a_snapshot_that_fails_at_what_is_at_hand_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that fails in a call."""
    small_ranges(monkeypatch, 3)

    class Failing(Snapshot):
        def at_hand(self, after: str | None, bound: str | None) -> RangeListing | None:
            raise ZeroDivisionError

    world = Trio()
    world.fill(40)
    world.vector.remove_nowait("ok-00020")
    stores = mixed(world, (True, True, True))
    stores.vector.snapshot = Failing  # type: ignore[attr-defined]  # a RangedMemory

    async def run() -> None:
        with pytest.raises(CheckIncomplete, match="vector store: failed with ZeroDivisionError"):
            await found(stores, AutoRepairConfig(settle=0.0))

    in_virtual_time(run)


@pytest.mark.parametrize(
    ("snapshot", "role", "message"),
    [
        (Unsorted, "vector", "ranges are not in strictly ascending byte order"),
        (Twice, "vector", "ranges are not in strictly ascending byte order"),
        (OutOfRange, "vector", "ranges are not in strictly ascending byte order"),
        (Malformed, "vector", "ranges are not in strictly ascending byte order"),
        (Malformed, "text", "ranges are not in strictly ascending byte order"),
        (NeverEnding, "vector", "is empty, and yet not the last"),
        (TooFew, "vector", "a call for digests gave 0 answers for 1 ranges"),
        (GoingBack, "text", "ranges are not in strictly ascending byte order"),
        (LooksAtTooFew, "cache", "a look gave"),
    ],
)
def test_a_store_that_breaks_its_word_is_named(
    snapshot: type[Snapshot], role: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be right is refused under the store's name, and no snapshot stays open."""
    small_ranges(monkeypatch, 7)
    world = Trio()
    world.fill(40)
    for index in (5, 20, 21, 30):
        world.vector.remove_nowait(f"ok-{index:05}")
    stores = mixed(world, (True, True, True))
    getattr(stores, role).snapshot = snapshot

    async def run() -> None:
        with pytest.raises(StoreMisbehaved, match=f"{role} store: .*{message}"):
            await found(stores, AutoRepairConfig(settle=0.0))
        assert [0, 0, 0] == [store.open for store in stores.by_name.values()]  # type: ignore[attr-defined]  # as above

    in_virtual_time(run)


def test_a_comparison_that_fails_ends_the_reading_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads ahead finds nobody to take it, and is not heard beside the reason for that."""
    small_ranges(monkeypatch, 7)
    world = Trio()
    world.fill(40)
    for index in (5, 20, 21, 30):
        world.vector.remove_nowait(f"ok-{index:05}")
    stores = mixed(world, (True, True, True))
    stores.vector.snapshot = Malformed  # type: ignore[attr-defined]  # a RangedMemory

    async def run() -> None:
        with pytest.raises(StoreMisbehaved, match="vector store: its ranges are not in"):
            await found(stores, AutoRepairConfig(settle=0.0))

    for _ in range(50):  # whether one looks for the other just then is chance
        in_virtual_time(run)


@pytest.mark.parametrize("call", ["ranges", "digests", "listing", "look"])
@pytest.mark.parametrize("hangs", [False, True])
def test_a_store_that_fails_or_hangs_is_named(call: str, *, hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call has its time; the check ends soon, with the store's name, and every snapshot is closed."""
    small_ranges(monkeypatch, 7)
    world = Trio()
    world.fill(40)
    world.vector.remove_nowait("ok-00020")
    role = "text" if call == "ranges" else "vector"
    stores = mixed(world, (True, True, True))

    async def called(name: str, _size: int) -> None:
        await trio.lowlevel.checkpoint()
        if name == call:
            if hangs:
                await trio.sleep_forever()
            raise StoreUnavailable(role, "is down")

    getattr(stores, role).called = called

    async def run() -> None:
        start = trio.current_time()
        with pytest.raises(CheckIncomplete, match="did not answer within 3 s" if hangs else "is down") as caught:
            await found(stores, AutoRepairConfig(store_call_timeout=3.0, settle=0.0))
        assert (role,) == caught.value.stores
        assert trio.current_time() - start <= 4.0
        assert [0, 0, 0] == [store.open for store in stores.by_name.values()]  # type: ignore[attr-defined]  # as above

    in_virtual_time(run)
