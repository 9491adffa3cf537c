"""Checks: every divergence and nothing else, under live writers, in bounded memory, and honest about what was not seen."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from decision_states import LIVE, TOMBSTONES, TRAITS, VECTOR_STATES, all_states, see
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_repair import _check, _lanes, _ranges
from trio_repair._check import ChangeCounts, Checking, check, count_changes
from trio_repair._config import AutoRepairConfig
from trio_repair._divergence import Divergence, DivergenceKind, diagnose
from trio_repair._errors import (
    CheckIncomplete,
    InvalidDocumentId,
    MassChangeRefused,
    StoreError,
    StoreMisbehaved,
    StoreRejected,
    StoreUnavailable,
)
from trio_repair._lanes import StoreReader
from trio_repair._model import Document, DocumentVersion, SyncStrategy
from trio_repair._views import EmbeddingIdentity, Observation, Presence, RangeDigest, StoreTraits
from trio_repair.abc import ScanPage, Stores
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import make_document

MODEL = EmbeddingIdentity(model="new", dimension=8, chunking="windows")
OTHER_MODEL = EmbeddingIdentity(model="old", dimension=8, chunking="windows")
TEXT = SyncStrategy.TEXT_SOURCE_OF_TRUTH
RECENT = SyncStrategy.MOST_RECENT


def in_virtual_time(run: Callable[[], Awaitable[None]]) -> None:
    """Run in a Trio of its own, whose clock jumps when all tasks wait."""

    async def main() -> None:
        await run()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def document(doc_id: str, number: int | None = 1, content: str = "content") -> Document:
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Document(doc_id=doc_id, text=content, version=DocumentVersion(number=number, digest=digest))


class Trio:
    """Three memory stores, and shorthands to fill them as an application would."""

    def __init__(self, *, max_batch: int = 256, max_calls: int = 64) -> None:
        self.text, self.vector, self.cache = (
            MemoryStore(
                name,
                traits=attrs.evolve(MemoryStore(name).traits, max_batch=max_batch, max_calls=max_calls),
                embedding=MODEL if name == "vector" else None,
            )
            for name in ("text", "vector", "cache")
        )

    @property
    def stores(self) -> Stores:
        return Stores(text=self.text, vector=self.vector, cache=self.cache)

    def put(self, doc_id: str, number: int | None = 1, content: str = "content", *, into: str = "tvc") -> None:
        for letter, store in (("t", self.text), ("v", self.vector), ("c", self.cache)):
            if letter in into:
                store.put_nowait(document(doc_id, number, content))

    def fill(self, count: int) -> None:
        for index in range(count):
            self.put(f"ok-{index:05}")

    def snapshot(self) -> list[object]:
        return [store.snapshot() for store in (self.text, self.vector, self.cache)]


class Wrapped:
    """A store that another one stands behind, with hooks before scans, pages and looks."""

    def __init__(self, inner: MemoryStore) -> None:
        self.inner = inner
        self.open_scans = 0
        self.pages = 0
        self.looks: list[tuple[float, list[str]]] = []
        self.calls = 0
        self.most_calls = 0

    @property
    def traits(self) -> StoreTraits:
        return self.inner.traits

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    async def before_scan(self) -> None: ...

    async def before_page(self) -> None: ...

    async def before_look(self) -> None: ...

    async def after_scan(self) -> None:
        await trio.sleep(0.5)

    def change_page(self, page: ScanPage) -> ScanPage:
        return page

    def change_answers(self, answers: list[Observation | StoreError]) -> list[Observation | StoreError]:
        return answers

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        assert len(doc_ids) <= self.traits.max_batch
        self.looks.append((trio.current_time(), list(doc_ids)))
        with self._called():
            await self.before_look()
            return self.change_answers(list(await self.inner.observe(doc_ids)))

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        with self._called():
            await self.before_scan()
        async with self.inner.open_scan(after) as pages:
            self.open_scans += 1
            try:
                async with aclosing(self._pages(pages)) as wrapped:
                    yield wrapped
                await self.after_scan()
            finally:
                self.open_scans -= 1

    async def _pages(self, pages: AsyncIterator[ScanPage]) -> AsyncGenerator[ScanPage, None]:
        while True:
            with self._called():
                await self.before_page()
                page = await anext(pages, None)
            if page is None:
                return
            self.pages += 1
            yield self.change_page(page)

    def _called(self) -> Wrapped:
        return self

    def __enter__(self) -> None:
        self.calls += 1
        self.most_calls = max(self.most_calls, self.calls)

    def __exit__(self, *_: object) -> None:
        self.calls -= 1


async def found(stores: Stores, config: AutoRepairConfig | None = None) -> dict[str, set[str]]:
    """What a check hands out: document → kinds. It fails if a document is handed out twice."""
    findings: dict[str, set[str]] = {}
    async with check(stores, config) as checking:
        async for divergence in checking:
            assert divergence.doc_id not in findings
            findings[divergence.doc_id] = {kind.value for kind in divergence.kinds}
    return findings


def damaged_world(max_batch: int) -> tuple[Trio, dict[str, set[str]]]:
    """Sound documents and one of each kind of damage, with what should be found."""
    world = Trio(max_batch=max_batch)
    world.fill(40)
    world.put("nn-not-cached", into="tv")
    world.put("nn-unnumbered", None)
    for store in (world.text, world.vector):
        store.delete_nowait("nn-deleted", number=4)
    world.put("missing", into="t")
    world.put("stale", 1, "old", into="v")
    world.put("stale", 2, "new", into="tc")
    world.put("orphan", into="v")
    world.put("orphan-in-cache", into="c")
    world.put("undeleted", 1, into="v")
    world.text.delete_nowait("undeleted", number=2)
    world.text.delete_nowait("untold", number=2)
    world.put("conflict", 1, "mine", into="t")
    world.put("conflict", 1, "yours", into="v")
    world.put("incomplete")
    world.vector.damage("incomplete")
    world.put("embedding")
    world.vector.damage("embedding", intact=True, embedding=OTHER_MODEL)
    world.put("cached", 1, "old", into="c")
    world.put("cached", 2, "new", into="tv")
    world.put("outlived", into="c")
    for store in (world.text, world.vector):
        store.delete_nowait("outlived", number=4)
    return world, {
        "missing": {"missing"},
        "stale": {"stale"},
        "orphan": {"orphan"},
        "orphan-in-cache": {"orphan"},
        "undeleted": {"undeleted"},
        "untold": {"undeleted"},
        "conflict": {"conflict"},
        "incomplete": {"incomplete"},
        "embedding": {"stale-embedding"},
        "cached": {"stale-cache"},
        "outlived": {"stale-cache"},
    }


@pytest.mark.parametrize("max_batch", [1, 3, 256])
def test_every_kind_is_found_and_nothing_else(max_batch: int) -> None:
    """All eight kinds are told apart, whatever the page size; sound documents are not reported; nothing is written."""
    world, expected = damaged_world(max_batch)
    before = world.snapshot()

    async def run() -> None:
        async with check(world.stores) as checking:
            findings = {divergence.doc_id: {k.value for k in divergence.kinds} async for divergence in checking}
            statistics = checking.statistics()

        assert expected == findings
        assert set(DivergenceKind) == set(statistics.by_kind)
        assert Counter(DivergenceKind(kind) for kinds in expected.values() for kind in kinds) == statistics.by_kind
        assert 43 + len(expected) == statistics.documents
        assert len(expected) == statistics.divergent
        assert 0 == statistics.unsettled
        assert "untold" == statistics.last_id
        assert statistics.complete

    in_virtual_time(run)
    assert before == world.snapshot()


def test_two_stores_without_a_cache() -> None:
    """A check needs no cache."""
    world, expected = damaged_world(256)
    stores = Stores(text=world.text, vector=world.vector)

    async def run() -> None:
        in_cache = {"orphan-in-cache", "cached", "outlived"}
        assert {i: kinds for i, kinds in expected.items() if i not in in_cache} == await found(stores)

    in_virtual_time(run)


def test_empty_stores() -> None:
    """Stores without documents are consistent, and the check of them is complete."""

    async def run() -> None:
        async with check(Trio().stores) as checking:
            assert [] == [divergence async for divergence in checking]
        statistics = checking.statistics()
        assert (0, None, True) == (statistics.documents, statistics.last_id, statistics.complete)

    in_virtual_time(run)


contents = st.dictionaries(
    st.sampled_from([f"{letter}{number}" for letter in "aé𝄞" for number in range(5)]),
    st.tuples(
        st.sampled_from(("-", *TOMBSTONES, *LIVE)), st.sampled_from(VECTOR_STATES), st.sampled_from(("-", *LIVE))
    ),
)


def fill_from(world: Trio, states: Mapping[str, tuple[str, str, str]]) -> None:
    """Make the stores hold what the notation says."""
    for doc_id, held in states.items():
        for store, notation in zip((world.text, world.vector, world.cache), held, strict=True):
            if notation == "-":
                continue
            version = see("vector", notation).version
            assert version is not None
            if version.deleted:
                store.delete_nowait(doc_id, number=version.number)
                continue
            store.put_nowait(document(doc_id, version.number, notation[2]))
            if notation[3:]:
                store.damage(doc_id, intact="!" not in notation, embedding=OTHER_MODEL if "~" in notation else None)


@settings(max_examples=60)
@given(contents, st.integers(1, 4), st.random_module())
def test_check_finds_what_diagnose_finds(
    states: dict[str, tuple[str, str, str]], max_batch: int, _seed: object
) -> None:
    """For any contents and page sizes, a check hands out exactly the documents that are divergent one by one."""
    world = Trio(max_batch=max_batch)
    fill_from(world, states)
    traits = {name: store.traits for name, store in world.stores.by_name.items()}
    expected = {}
    for doc_id in states:
        views = {name: world.__dict__[name].observe_nowait(doc_id) for name in traits}
        divergence = diagnose(doc_id, views, traits)
        if divergence is not None:
            expected[doc_id] = {kind.value for kind in divergence.kinds}

    async def run() -> None:
        assert expected == await found(world.stores)

    in_virtual_time(run)


def compared(views: Mapping[str, Observation], traits: Mapping[str, StoreTraits]) -> Sequence[str]:
    """What the comparison of a range with one document suspects: of its digests first, and then of its entries."""
    entries = {
        name: b"" if view.presence is Presence.ABSENT else _ranges.entry("doc", view, traits[name])
        for name, view in views.items()
    }
    suspects = _ranges.compare(entries, None, None).suspects
    if _ranges.agree({name: RangeDigest.of(held) for name, held in entries.items()}):
        assert not suspects
    return suspects


def errors_of_the_comparison(traits: Mapping[str, StoreTraits] = TRAITS) -> int:
    """How many divergent small states the comparison of summaries lets pass as plainly equal."""
    return sum(
        diagnose("doc", views, traits) is not None and not compared(views, traits)
        for views in all_states()
        if any(view.presence is not Presence.ABSENT for view in views.values())
    )


def test_comparing_summaries_stops_all_that_is_divergent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fast comparison lets through, diagnose calls consistent. Control: one that only looks at numbers."""
    assert 0 == errors_of_the_comparison()
    for name in TRAITS:
        assert 0 == errors_of_the_comparison({**TRAITS, name: attrs.evolve(TRAITS[name], embedding=OTHER_MODEL)})

    monkeypatch.setattr(_ranges, "summarize", lambda view, traits: str(view.version.number))
    assert 0 < errors_of_the_comparison()


def test_comparing_summaries_passes_plainly_equal_documents() -> None:
    """The fast path is taken: copies that agree need no diagnosis, whether cached or not."""
    for cache in ("-", "L1a"):
        views = {"text": see("text", "L1a"), "vector": see("vector", "L1a"), "cache": see("cache", cache)}
        assert [] == compared(views, TRAITS)
        del views["cache"]
        assert [] == compared(views, TRAITS)


# Live writers.


async def write_for_ever(world: Trio, pause: float) -> None:
    """An application that writes store by store, so that at any moment some document is half-way."""
    for number in itertools.count(2):
        for index in range(0, 200, 7):
            changed = document(f"ok-{index:05}", number, f"content {number}")
            for store in (world.text, world.vector):
                store.put_nowait(changed)
                await trio.sleep(pause)
            world.cache.remove_nowait(changed.doc_id)


def check_beside_a_writer(settle: float) -> dict[str, set[str]]:
    """What a check with this `settle` finds beside a writer that takes 50 ms from store to store."""
    world = Trio(max_batch=16)
    world.fill(200)
    world.put("really-missing", into="t")
    seen: dict[str, set[str]] = {}

    class Slow(Wrapped):
        async def before_page(self) -> None:
            await trio.sleep(0.013)

    stores = Stores(text=Slow(world.text), vector=Slow(world.vector), cache=Slow(world.cache))

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_for_ever, world, 0.05)
            seen.update(await found(stores, AutoRepairConfig(settle=settle)))
            nursery.cancel_scope.cancel()

    in_virtual_time(run)
    return seen


def test_live_writers_cause_no_false_alarm() -> None:
    """Beside a live writer exactly the lasting divergence is found. Control: looking twice without a pause finds more."""
    assert {"really-missing": {"missing"}} == check_beside_a_writer(settle=1.0)

    hasty = check_beside_a_writer(settle=0.0)
    assert {"really-missing"} < set(hasty)


def test_a_suspect_that_heals_is_dropped() -> None:
    """What is consistent at the second look is not reported."""
    world = Trio()
    world.put("late", into="t")

    async def heal() -> None:
        await trio.sleep(0.5)
        world.put("late", into="v")

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heal)
            async with check(world.stores) as checking:
                assert [] == [divergence async for divergence in checking]
            assert checking.statistics().complete

    in_virtual_time(run)


def test_the_second_look_is_what_is_reported() -> None:
    """A suspect waits `settle` at least; the views handed out are those of the confirming look, fit for fencing."""
    world = Trio()
    world.put("gone", into="t")
    times: list[float] = []

    async def run() -> None:
        start = trio.current_time()
        async with check(world.stores, AutoRepairConfig(settle=4.0)) as checking:
            async for divergence in checking:
                times.append(trio.current_time() - start)
                assert world.vector.observe_nowait("gone") == divergence.views["vector"]
                assert world.text.observe_nowait("gone") == divergence.views["text"]

    in_virtual_time(run)
    assert 4.0 <= times[0] <= 5.0


@pytest.mark.parametrize(("moves", "reported", "unsettled"), [(1, 1, 0), (3, 1, 0), (9, 0, 1)])
def test_a_moving_suspect_is_looked_at_again(moves: int, reported: int, unsettled: int) -> None:
    """A divergence that changed between looks gets up to three more; then it counts as unsettled, not as found."""
    world = Trio()
    world.put("moving", 1, into="t")

    async def move() -> None:
        for number in range(2, 2 + moves):
            await trio.sleep(1.0)
            world.put("moving", number, into="t")

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move)
            async with check(world.stores) as checking:
                assert reported == len([divergence async for divergence in checking])
            statistics = checking.statistics()
            assert (unsettled, True) == (statistics.unsettled, statistics.complete)
            nursery.cancel_scope.cancel()

    in_virtual_time(run)


def test_nothing_polls() -> None:
    """However long suspects age, each store is asked once for all of them."""
    world = Trio()
    world.fill(10)
    for index in range(100):
        world.put(f"missing-{index}", into="t")
    text = Wrapped(world.text)

    async def run() -> None:
        await found(Stores(text=text, vector=world.vector), AutoRepairConfig(settle=1000.0))

    in_virtual_time(run)
    assert 1 == len(text.looks)


def test_the_scan_goes_on_while_suspects_age() -> None:
    """A suspect on the first page does not hold up the pages after it."""
    world = Trio(max_batch=2)
    world.put("aaa", into="t")
    world.fill(100)

    async def run() -> None:
        async with check(world.stores, AutoRepairConfig(settle=60.0)) as checking:
            await trio.sleep(1.0)
            statistics = checking.statistics()
            assert (101, False) == (statistics.documents, statistics.complete)
            assert statistics.last_id is None

    in_virtual_time(run)


def test_suspects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the buffer is full the scan waits for the oldest suspect, and everything is found all the same."""
    monkeypatch.setattr(_check, "MAX_SUSPECTS", 5)
    world = Trio(max_batch=3)
    for index in range(40):
        world.put(f"missing-{index:02}", into="t")
    text = Wrapped(world.text)
    most = 0

    async def watch(checking: Checking) -> None:
        nonlocal most
        while True:
            most = max(most, len(checking._suspects))
            await trio.sleep(0.1)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            async with check(Stores(text=text, vector=world.vector)) as checking:
                nursery.start_soon(watch, checking)
                assert 40 == len([divergence async for divergence in checking])
            nursery.cancel_scope.cancel()

    in_virtual_time(run)
    assert 5 == most
    assert 3 >= max(len(doc_ids) for _, doc_ids in text.looks)


def test_suspects_that_are_not_reported_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full buffer empties by suspects that heal or stay unsettled too, not only by those that are handed out."""
    monkeypatch.setattr(_check, "MAX_SUSPECTS", 2)
    world = Trio()
    for index in range(20):
        world.put(f"missing-{index:02}", into="t")

    class Healing(Wrapped):
        async def before_look(self) -> None:
            for doc_id in self.looks[-1][1]:
                world.put(doc_id, into="v")

    class Unsteady(Wrapped):
        def change_answers(self, answers: list[Observation | StoreError]) -> list[Observation | StoreError]:
            return [StoreUnavailable("text", "is busy", doc_id) for doc_id in self.looks[-1][1]]

    async def run() -> None:
        for text, unsettled in ((Unsteady(world.text), 20), (Healing(world.text), 0)):
            async with check(Stores(text=text, vector=world.vector)) as checking:
                assert [] == [divergence async for divergence in checking]
            assert (unsettled, True) == (checking.statistics().unsettled, checking.statistics().complete)

    in_virtual_time(run)


def test_a_slow_consumer_holds_up_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing piles up behind a slow consumer, and its time is not held against the stores."""
    monkeypatch.setattr(_check, "MAX_SUSPECTS", 4)
    monkeypatch.setattr(_check, "_DELIVERIES", 2)
    world = Trio(max_batch=2)
    for index in range(60):
        world.put(f"missing-{index:02}", into="t")
    text = Wrapped(world.text)

    async def run() -> None:
        seen = 0
        async with check(Stores(text=text, vector=world.vector)) as checking:
            async for _ in checking:
                seen += 1
                if seen == 1:
                    # Far longer than store_call_timeout.
                    await trio.sleep(1000.0)
                    assert text.pages <= 8
                    assert checking.statistics().documents <= 16
        assert 60 == seen

    in_virtual_time(run)


def test_calls_stay_within_what_stores_allow() -> None:
    """Scans and looks together make no more calls at once than `max_calls`. Control: without the gate they do."""

    class Slow(Wrapped):
        async def before_page(self) -> None:
            await trio.sleep(0.1)

        async def before_look(self) -> None:
            await trio.sleep(0.1)

    def most_calls(max_calls: int) -> int:
        world = Trio(max_batch=1, max_calls=max_calls)
        for index in range(20):
            world.put(f"missing-{index:02}", into="t")
        text = Slow(world.text)

        async def run() -> None:
            await found(Stores(text=text, vector=world.vector), AutoRepairConfig(settle=0.15))

        in_virtual_time(run)
        return text.most_calls

    assert 1 == most_calls(1)
    assert 2 == most_calls(64)


# Stores that fail.


class Boom(Exception):
    """Not one of ours."""


class FailingScan(Wrapped):
    error: Exception = StoreUnavailable("text", "is down")

    async def before_scan(self) -> None:
        raise self.error


class FailingPage(Wrapped):
    error: Exception = StoreUnavailable("text", "went away")

    async def before_page(self) -> None:
        if self.pages == 3:
            raise self.error


class ForeignFailure(FailingPage):
    error = Boom("the text of a document, perhaps")


class FailingLook(Wrapped):
    async def before_look(self) -> None:
        raise StoreUnavailable("text", "is down")


class HangingScan(Wrapped):
    async def before_scan(self) -> None:
        await trio.sleep_forever()


class HangingPage(Wrapped):
    async def before_page(self) -> None:
        if self.pages == 3:
            await trio.sleep_forever()


class HangingLook(Wrapped):
    async def before_look(self) -> None:
        await trio.sleep_forever()


class HangingClose(Wrapped):
    async def after_scan(self) -> None:
        await trio.sleep_forever()


class FailingClose(Wrapped):
    async def after_scan(self) -> None:
        raise StoreUnavailable("text", "is down")


class FailingInANursery(Wrapped):
    async def before_page(self) -> None:
        async with trio.open_nursery():
            raise StoreUnavailable("text", "is down")


@pytest.mark.parametrize("role", ["text", "vector", "cache"])
@pytest.mark.parametrize(
    ("failing", "message"),
    [
        (FailingScan, "is down"),
        (FailingPage, "went away"),
        (ForeignFailure, "failed with Boom"),
        (FailingLook, "is down"),
        (HangingScan, "did not answer within 3 s"),
        (HangingPage, "did not answer within 3 s"),
        (HangingLook, "did not answer within 3 s"),
        (HangingClose, "did not answer within 3 s"),
        (FailingClose, "is down"),
        (FailingInANursery, "failed with ExceptionGroup"),
    ],
)
def test_a_store_that_cannot_be_read_makes_the_check_incomplete(
    failing: type[Wrapped], message: str, role: str
) -> None:
    """The check ends soon with an error that names the store; what it says of others is no false alarm; scans close."""
    world = Trio(max_batch=2)
    world.fill(20)
    world.put("aaa-missing", into="t")
    wrapped = {name: Wrapped(store) for name, store in world.stores.by_name.items()}  # type: ignore[arg-type]  # all are in-memory stores
    wrapped[role] = failing(wrapped[role].inner)
    stores = Stores(**wrapped)

    async def run() -> None:
        start = trio.current_time()
        seen: dict[str, Divergence] = {}
        async with check(stores, AutoRepairConfig(store_call_timeout=3.0, settle=0.5)) as checking:
            with pytest.raises(CheckIncomplete, match=message) as caught:
                async for divergence in checking:
                    seen[divergence.doc_id] = divergence
            assert {0} == {store.open_scans for store in wrapped.values()}
            # It stays so.
            with pytest.raises(CheckIncomplete):
                await anext(checking)
        assert trio.current_time() - start <= 5.0
        assert (role,) == caught.value.stores
        assert f"{role} store: " in str(caught.value)
        assert "perhaps" not in str(caught.value)
        assert {"aaa-missing"} >= set(seen)
        assert not checking.statistics().complete

    in_virtual_time(run)


@pytest.mark.parametrize("failing", [FailingScan, FailingPage, HangingPage])
def test_counting_does_not_take_a_failing_store_for_an_empty_one(failing: type[Wrapped]) -> None:
    """A count that could not read a store to its end is no count."""
    world = Trio(max_batch=2)
    world.fill(20)

    async def run() -> None:
        with pytest.raises(CheckIncomplete, match="vector"):
            await count_changes(Stores(text=world.text, vector=failing(world.vector)), TEXT)

    in_virtual_time(run)


def test_two_failing_stores_are_both_named() -> None:
    """An error names every store that failed, and is caused by what the first one raised."""
    world = Trio()

    async def run() -> None:
        stores = Stores(text=FailingScan(world.text), vector=FailingScan(world.vector))
        with pytest.raises(CheckIncomplete) as caught:
            await found(stores)
        assert {"text", "vector"} == set(caught.value.stores)
        assert isinstance(caught.value.__cause__, StoreUnavailable)

    in_virtual_time(run)


class Unsorted(Wrapped):
    def change_page(self, page: ScanPage) -> ScanPage:
        return list(reversed(page))


class Repeating(Wrapped):
    def change_page(self, page: ScanPage) -> ScanPage:
        return [page[0], *page]


class GoingBack(Wrapped):
    first: ScanPage | None = None

    def change_page(self, page: ScanPage) -> ScanPage:
        self.first = self.first or page
        return self.first


class Overlapping(Wrapped):
    last: tuple[str, Observation] | None = None

    def change_page(self, page: ScanPage) -> ScanPage:
        before, self.last = self.last, page[-1]
        return page if before is None else [before, *page]


@pytest.mark.parametrize("unsorted", [Unsorted, Repeating, GoingBack, Overlapping])
def test_an_unsorted_scan_is_refused(unsorted: type[Wrapped]) -> None:
    """Merging needs order: a scan out of order would pass for missing documents."""
    world = Trio(max_batch=2)
    world.fill(10)

    async def run() -> None:
        with pytest.raises(StoreMisbehaved, match=r"vector store: .*ascending"):
            await found(Stores(text=world.text, vector=unsorted(world.vector)))

    in_virtual_time(run)


def test_a_scan_that_ignores_after_is_refused() -> None:
    """Documents at or before `after` are out of order too."""
    world = Trio()
    world.fill(10)

    class Ignoring(Wrapped):
        @asynccontextmanager
        async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
            async with self.inner.open_scan(None) as pages:
                yield pages

    async def run() -> None:
        async with check(Stores(text=Ignoring(world.text), vector=world.vector), after="ok-00003") as checking:
            with pytest.raises(StoreMisbehaved, match="ascending"):
                await anext(checking)

    in_virtual_time(run)


def test_too_few_answers_are_refused() -> None:
    """Answers are matched to documents by position, so their number must be right."""
    world = Trio()
    world.put("missing", into="t")
    world.put("missing-2", into="t")

    class Forgetful(Wrapped):
        def change_answers(self, answers: list[Observation | StoreError]) -> list[Observation | StoreError]:
            return answers[:-1]

    async def run() -> None:
        with pytest.raises(StoreMisbehaved, match="1 answers for 2 documents"):
            await found(Stores(text=Forgetful(world.text), vector=world.vector))

    in_virtual_time(run)


def test_empty_pages_are_harmless() -> None:
    """A store may give a page without documents; it is not taken for the end."""
    world = Trio(max_batch=2)
    world.fill(10)
    world.put("zzz", into="t")

    class Pausing(Wrapped):
        def change_page(self, page: ScanPage) -> ScanPage:
            return page

        async def _pages(self, pages: AsyncIterator[ScanPage]) -> AsyncGenerator[ScanPage, None]:
            yield []
            async for page in pages:
                yield page
                yield []

    async def run() -> None:
        stores = Stores(text=Pausing(world.text), vector=Pausing(world.vector))
        assert {"zzz": {"missing"}} == await found(stores)

    in_virtual_time(run)


@pytest.mark.parametrize(("role", "reported", "unsettled"), [("text", 1, 1), ("vector", 1, 1), ("cache", 2, 0)])
def test_one_document_that_cannot_be_looked_at(role: str, reported: int, unsettled: int) -> None:
    """A poison document concerns itself alone: unsettled in a critical store; in the cache it hides nothing else."""
    world = Trio()
    world.put("poison", into="t")
    world.put("other", into="t")

    class Poisoned(Wrapped):
        def change_answers(self, answers: list[Observation | StoreError]) -> list[Observation | StoreError]:
            _, doc_ids = self.looks[-1]
            return [
                StoreRejected(role, "cannot be decoded", doc_id) if doc_id == "poison" else answer
                for doc_id, answer in zip(doc_ids, answers, strict=True)
            ]

    stores = attrs.evolve(world.stores, **{role: Poisoned(world.__dict__[role])})

    async def run() -> None:
        async with check(stores) as checking:
            assert reported == len([divergence async for divergence in checking])
        assert (unsettled, True) == (checking.statistics().unsettled, checking.statistics().complete)

    in_virtual_time(run)


# Leaving and going on.


@pytest.mark.parametrize("deliveries", [0, 1, 256])
def test_leaving_early_closes_the_scans(monkeypatch: pytest.MonkeyPatch, deliveries: int) -> None:
    """Breaking out of the loop ends everything at once, deliveries that wait for room too; statistics stay readable."""
    monkeypatch.setattr(_check, "_DELIVERIES", deliveries)
    world = Trio(max_batch=2)
    for index in range(100):
        world.put(f"missing-{index:03}", into="t")
    wrapped = {name: Wrapped(store) for name, store in world.stores.by_name.items()}  # type: ignore[arg-type]  # all are in-memory stores

    async def run() -> None:
        async with check(Stores(**wrapped), AutoRepairConfig(settle=0.0)) as checking:
            async for _ in checking:
                # Let deliveries pile up.
                await trio.sleep(1.0)
                break
        left_at = trio.current_time()
        assert {0} == {store.open_scans for store in wrapped.values()}
        assert (1, False) == (checking.statistics().divergent, checking.statistics().complete)
        assert "Checking" in repr(checking)
        with pytest.raises(trio.ClosedResourceError):
            await anext(checking)
        assert trio.current_time() == left_at

    in_virtual_time(run)


def test_the_callers_exception_comes_back_naked() -> None:
    """An exception in the block is not wrapped in a group."""

    async def run() -> None:
        with pytest.raises(Boom):
            async with check(Trio().stores):
                raise Boom

    in_virtual_time(run)


def test_cancelling_the_caller_ends_the_check() -> None:
    """A cancelled caller leaves no scan open and is told that it was cancelled."""
    world = Trio(max_batch=2)
    world.put("missing", into="t")
    text = Wrapped(world.text)

    async def run() -> None:
        with trio.move_on_after(5.0) as scope:
            async with check(Stores(text=text, vector=world.vector), AutoRepairConfig(settle=100.0)) as checking:
                await anext(checking)
        assert scope.cancelled_caught
        assert 0 == text.open_scans

    in_virtual_time(run)


@settings(max_examples=40)
@given(
    st.sets(st.integers(0, 30), min_size=1),
    st.integers(1, 3),
    st.integers(0, 12),
    st.floats(0, 0.3),
    st.random_module(),
)
def test_a_check_left_early_can_be_taken_up(
    missing: set[int], max_batch: int, taken: int, pause: float, _seed: object
) -> None:
    """Whatever was taken before leaving, a check after `last_id` finds all the rest."""
    world = Trio(max_batch=max_batch)
    for index in range(31):
        world.put(f"d{index:02}", into="t" if index in missing else "tv")

    async def run() -> None:
        seen: set[str] = set()
        async with check(world.stores, AutoRepairConfig(settle=0.1)) as checking:
            await trio.sleep(pause)
            while len(seen) < taken:
                divergence = await anext(checking, None)
                if divergence is None:
                    break
                seen.add(divergence.doc_id)
        last_id = checking.statistics().last_id
        async with check(world.stores, AutoRepairConfig(settle=0.1), after=last_id) as rest:
            async for divergence in rest:
                assert last_id is None or divergence.doc_id > last_id
                seen.add(divergence.doc_id)
        assert {f"d{index:02}" for index in missing} == seen
        assert "d30" == rest.statistics().last_id

    in_virtual_time(run)


def test_after_must_be_a_document_id() -> None:
    """What can be no id is refused before any store is asked."""

    async def run() -> None:
        with pytest.raises(InvalidDocumentId):
            async with check(Trio().stores, after="a\0b"):
                pass

    in_virtual_time(run)


# Counting changes.


def counts(world: Trio, strategy: SyncStrategy, **options: object) -> ChangeCounts:
    result: list[ChangeCounts] = []

    async def run() -> None:
        result.append(await count_changes(world.stores, strategy, AutoRepairConfig(**options)))  # type: ignore[arg-type]  # options of any kind

    in_virtual_time(run)
    return result[0]


def test_counts_are_what_the_plans_say() -> None:
    """Changes are writes to critical stores, deletes are live copies lost; so is the only copy, in the cache; no more of it."""
    world, expected = damaged_world(3)

    assert ChangeCounts(documents=54, divergent=len(expected), changes=8, deletes=2, manual=1) == counts(world, RECENT)
    assert ChangeCounts(documents=54, divergent=len(expected), changes=8, deletes=2, manual=1) == counts(world, TEXT)
    assert ChangeCounts(documents=54, divergent=len(expected), changes=9, deletes=3, manual=0) == counts(
        world, TEXT, missing_source="delete"
    )
    assert ChangeCounts(documents=54, divergent=len(expected), changes=0, deletes=0, manual=len(expected)) == counts(
        world, SyncStrategy.MANUAL_RESOLUTION
    )


def test_counting_tells_how_far_it_is() -> None:
    """The number of documents counted so far goes up to that of all of them, page by page."""
    world = Trio(max_batch=10)
    world.fill(95)
    told: list[int] = []

    async def run() -> None:
        result = await count_changes(world.stores, TEXT, on_progress=told.append)
        assert 95 == result.documents

    in_virtual_time(run)
    assert [*range(10, 100, 10), 95, 95] == told


def test_an_emptied_text_store_is_no_mass_delete() -> None:
    """With missing_source="delete", an emptied source of truth trips max_deletes. Control: refused documents do not."""
    world = Trio()
    world.fill(200)
    for index in range(200):
        world.text.remove_nowait(f"ok-{index:05}")

    deleting = counts(world, TEXT, missing_source="delete")
    assert (200, 200) == (deleting.changes, deleting.deletes)
    with pytest.raises(
        MassChangeRefused, match=r"delete 200 of 200 documents .*max_deletes is 0.01.*allow_mass"
    ) as caught:
        deleting.guard(AutoRepairConfig(missing_source="delete"))
    assert (200, 200, 200) == (caught.value.documents, caught.value.changes, caught.value.deletes)
    deleting.guard(AutoRepairConfig(missing_source="delete", allow_mass=True))

    refusing = counts(world, TEXT)
    assert (0, 0, 200) == (refusing.changes, refusing.deletes, refusing.manual)
    refusing.guard(AutoRepairConfig())


def test_an_emptied_vector_store_is_no_mass_change() -> None:
    """An emptied target trips max_changed; a few missing documents do not."""
    world = Trio()
    world.fill(200)
    for index in range(20):
        world.vector.remove_nowait(f"ok-{index:05}")

    counts(world, RECENT).guard(AutoRepairConfig())

    world.vector.remove_nowait("ok-00020")
    with pytest.raises(MassChangeRefused, match=r"change 21 of 200 documents .*max_changed is 0.1"):
        counts(world, RECENT).guard(AutoRepairConfig())
    for index in range(200):
        world.vector.remove_nowait(f"ok-{index:05}")
    with pytest.raises(MassChangeRefused, match="change 200 of 200"):
        counts(world, RECENT).guard(AutoRepairConfig())


def test_guard_of_nothing() -> None:
    """Empty stores, and stores that agree, pass even the strictest limits."""
    strict = AutoRepairConfig(max_changed=0.0, max_deletes=0.0)
    world = Trio()

    counts(world, RECENT).guard(strict)
    world.fill(5)
    counts(world, RECENT).guard(strict)
    world.put("missing", into="t")
    with pytest.raises(MassChangeRefused):
        counts(world, RECENT).guard(strict)


def test_reader_keeps_a_late_answer_out() -> None:
    """An answer that comes after the time-out counts as none: the store is reported, by its role."""

    class Late(Wrapped):
        async def before_look(self) -> None:
            await trio.sleep(5.0)

    async def run() -> None:
        reader = StoreReader("vector", Late(MemoryStore("vector")), 3.0)
        with pytest.raises(_lanes.StoreFailed, match="vector store: did not answer within 3 s"):
            await reader.observe(["doc"])

    in_virtual_time(run)


def test_the_last_copies_of_a_cache_are_counted_as_deletes():
    """Two emptied stores beside a full cache: removing what is left is a mass deletion like any other."""
    stores = Stores(text=MemoryStore("text"), vector=MemoryStore("vector"), cache=MemoryStore("cache"))
    for number in range(10):
        stores.cache.put_nowait(make_document(f"d{number}", "cached"))
    counts = trio.run(count_changes, stores, SyncStrategy.MOST_RECENT)
    assert (10, 10, 10) == (counts.documents, counts.changes, counts.deletes)
    with pytest.raises(MassChangeRefused, match="delete 10 of 10"):
        counts.guard(AutoRepairConfig())
