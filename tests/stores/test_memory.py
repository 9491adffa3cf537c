"""`MemoryStore` beyond the contract: when it checkpoints, its helpers for tests, what it refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trio_repair import (
    AbsentMeans,
    Document,
    DocumentVersion,
    EmbeddingIdentity,
    Fence,
    InvalidValue,
    Observation,
    Prepared,
    Presence,
    Removal,
    StoredDocument,
    StoreRejected,
    StoreUnavailable,
    Write,
    WriteStatus,
)
from trio_repair.abc import Store
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import make_document

MODEL = EmbeddingIdentity(model="new", dimension=3, chunking="whole")
OLD_MODEL = EmbeddingIdentity(model="old", dimension=3, chunking="whole")


async def test_default_traits_follow_the_role() -> None:
    """Text and vector keep tombstones; a cache keeps none, and its absence says nothing."""
    for name in ("text", "vector"):
        traits = MemoryStore(name).traits
        assert (traits.keeps_tombstones, traits.absent) == (True, AbsentMeans.MISSING)
        assert traits.fence is Fence.STRONG
    cache = MemoryStore("cache").traits
    assert (cache.keeps_tombstones, cache.absent) == (False, AbsentMeans.MANUAL)
    assert MemoryStore("vector", embedding=MODEL).traits.embedding == MODEL
    given = attrs.evolve(cache, max_batch=3)
    assert MemoryStore("cache", traits=given).traits == given
    assert isinstance(MemoryStore(), Store)


class CountSteps(trio.abc.Instrument):
    """Counts how often a task is scheduled: once more than it checkpointed."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task = task
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += task is self.task


async def test_each_call_checkpoints_exactly_once() -> None:
    """Every call lets other tasks in once, and a scan once when it is opened and once for each page."""
    store = MemoryStore()
    counter = CountSteps(trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(counter)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.observe(["a"]),
        lambda: store.read(["a"]),
        lambda: store.prepare([make_document("a")]),
        lambda: store.write([]),
        lambda: store.remove([]),
        store.count,
    ]
    for call in calls:
        before = counter.steps
        await call()
        assert counter.steps - before == 1
    store.put_nowait(make_document("a"))
    before = counter.steps
    async with store.open_scan() as pages:
        assert counter.steps - before == 1
        await anext(pages)
        assert counter.steps - before == 2
    trio.lowlevel.remove_instrument(counter)


async def test_strong_fence_lands_one_of_two_at_once_and_weak_lands_both() -> None:
    """The weak fence has a real window between look and write: the control of the strong one."""
    landed = {}
    for fence in (Fence.STRONG, Fence.WEAK):
        store = MemoryStore(traits=attrs.evolve(MemoryStore().traits, fence=fence))
        prepared = await store.prepare([make_document("a", "one"), make_document("a", "two")])
        statuses: list[WriteStatus] = []

        async def write(one: Any, store: MemoryStore = store, statuses: list[WriteStatus] = statuses) -> None:
            (answer,) = await store.write([Write(prepared=one, token="absent")])
            statuses.append(answer.status)

        async with trio.open_nursery() as nursery:
            for one in prepared:
                nursery.start_soon(write, one)
        landed[fence] = statuses.count(WriteStatus.LANDED)
    assert landed == {Fence.STRONG: 1, Fence.WEAK: 2}


async def test_cancelled_write_has_not_landed() -> None:
    """A call cancelled at its checkpoint has had no effect."""
    store = MemoryStore()
    (prepared,) = await store.prepare([make_document("a", "text")])
    assert isinstance(prepared, Prepared)
    before = store.snapshot()
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.write([Write(prepared=prepared, token="absent")])
    assert scope.cancelled_caught
    assert store.snapshot() == before


async def test_snapshot_sees_every_change_and_documents_only_content() -> None:
    """`snapshot` tells apart a store that was rewritten with the same content; `documents` does not."""
    store = MemoryStore()
    document = make_document("a", "text")
    store.put_nowait(document)
    snapshot, documents = store.snapshot(), store.documents()
    store.put_nowait(document)
    assert store.documents() == documents
    assert store.snapshot() != snapshot
    assert documents == {"a": document}
    # Both are copies: they do not follow the store.
    store.remove_nowait("a")
    assert documents == {"a": document}
    assert list(snapshot) == ["a"]


async def test_damage_keeps_the_version_and_moves_the_token() -> None:
    """A damaged copy is not intact, or of another embedding; it cannot be read whole; a rewrite heals it."""
    store = MemoryStore("vector", embedding=MODEL)
    document = make_document("a", "text")
    whole = store.put_nowait(document)
    torn = store.damage("a")
    assert torn == attrs.evolve(whole, token=torn.token, intact=False)
    assert torn.token != whole.token
    (answer,) = await store.read(["a"])
    assert isinstance(answer, StoreRejected)
    stale = store.damage("a", intact=True, embedding=OLD_MODEL)
    assert (stale.intact, stale.embedding) == (True, OLD_MODEL)
    (held,) = await store.read(["a"])
    assert isinstance(held, StoredDocument)
    assert held.document == document
    healed = store.put_nowait(document)
    assert (healed.intact, healed.embedding) == (True, MODEL)


async def test_only_live_copies_can_be_damaged() -> None:
    """Damage to what is not there is an error in the test that asked for it."""
    store = MemoryStore()
    store.delete_nowait("dead", number=1)
    for doc_id in ("dead", "never"):
        with pytest.raises(KeyError):
            store.damage(doc_id)


async def test_helpers_act_without_a_fence() -> None:
    """put, delete and remove act at once, as the application does, and show what is held then."""
    store, cache = MemoryStore(), MemoryStore("cache")
    for each in (store, cache):
        assert each.get_nowait("a") is None
        each.put_nowait(make_document("a", "text"))
    assert store.delete_nowait("a", number=2).presence is Presence.TOMBSTONE
    assert store.get_nowait("a") == Document.tombstone("a", number=2)
    assert cache.delete_nowait("a", number=2).presence is Presence.ABSENT
    assert store.remove_nowait("a") == store.observe_nowait("a")
    assert store.documents() == cache.documents() == {}
    false = Document(doc_id="a", text="text", version=DocumentVersion(digest="0" * 64))
    with pytest.raises(StoreRejected, match="digest"):
        store.put_nowait(false)


async def test_held_content_is_not_shared_with_the_caller() -> None:
    """Changing a list in the metadata after the write does not change what the store holds."""
    store = MemoryStore()
    tags = ["one"]
    store.put_nowait(make_document("a", metadata={"tags": tags}))
    tags.append("two")
    held = store.get_nowait("a")
    assert held is not None
    assert held.metadata["tags"] == ["one"]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
async def test_metadata_that_is_not_json_is_rejected(value: object) -> None:
    """What no store could keep is rejected in prepare, for that document alone."""
    store = MemoryStore()
    answers = await store.prepare([make_document("a", metadata={"key": value}), make_document("b")])
    assert isinstance(answers[0], StoreRejected)
    assert answers[0].doc_id == "a"
    assert isinstance(answers[1], Prepared)


async def test_store_without_text_gives_none() -> None:
    """A store that holds no text rejects reading live documents, and gives tombstones and absence."""
    store = MemoryStore(traits=attrs.evolve(MemoryStore().traits, holds_text=False))
    store.put_nowait(make_document("a", "text"))
    store.delete_nowait("b", number=1)
    live, dead, never = await store.read(["a", "b", "c"])
    assert isinstance(live, StoreRejected)
    assert isinstance(dead, StoredDocument)
    assert isinstance(never, StoredDocument)
    assert (dead.document, never.document) == (Document.tombstone("b", number=1), None)


async def test_too_large_a_batch_is_refused() -> None:
    """A caller that ignores `max_batch` learns it, before anything is done."""
    store = MemoryStore(traits=attrs.evolve(MemoryStore().traits, max_batch=2))
    with pytest.raises(InvalidValue, match="names 3 documents"):
        await store.observe(["a", "b", "c"])


async def test_closed_store_answers_nothing() -> None:
    """Every call after `aclose` raises `StoreUnavailable`; an open scan ends the same way."""
    store = MemoryStore()
    store.put_nowait(make_document("a"))
    async with store.open_scan() as pages:
        await store.aclose()
        with pytest.raises(StoreUnavailable):
            await anext(pages)
    for call in (store.observe(["a"]), store.read(["a"]), store.prepare([]), store.write([]), store.count()):
        with pytest.raises(StoreUnavailable, match="closed"):
            await call
    with pytest.raises(StoreUnavailable):
        await store.remove([Removal(doc_id="a", token="absent")])
    assert store.get_nowait("a") is not None
    assert repr(store) == "<MemoryStore 'text': 1 documents, closed>"


async def test_nothing_shows_document_text() -> None:
    """No repr of the store or of what it answers carries the text."""
    store = MemoryStore()
    secret = "text that nobody may log"
    store.put_nowait(make_document("a", secret, metadata={"key": secret}))
    (held,) = await store.read(["a"])
    (prepared,) = await store.prepare([make_document("a", secret)])
    assert secret not in f"{store!r}{held!r}{prepared!r}{store.snapshot()!r}"


async def test_observation_is_of_the_copy() -> None:
    """Absent, live and tombstone are told apart, with version, and one token for all absent documents."""
    store = MemoryStore()
    store.put_nowait(make_document("live", "text", number=3))
    store.delete_nowait("dead", number=4)
    live, dead, never, neither = await store.observe(["live", "dead", "never", "neither"])
    assert isinstance(live, Observation)
    assert isinstance(dead, Observation)
    assert (live.presence, dead.presence) == (Presence.LIVE, Presence.TOMBSTONE)
    assert dead.version == DocumentVersion(number=4, deleted=True)
    assert never == neither == Observation(presence=Presence.ABSENT, token="absent")
