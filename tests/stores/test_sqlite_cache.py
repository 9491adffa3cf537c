"""The cache: entries that expire are absent to every look, and their rows go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlite_support import prepared, scan, sql
from store_calls import look, put, take_away

from trio_repair import AbsentMeans, Document, InvalidValue, Presence, StoredDocument, Write, WriteStatus
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.testing import make_document


class Clock:
    """A wall clock that tests turn."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_get(tmp_path: Path) -> None:
    """A cached document is given back whole; what is absent, deleted or forged is not given."""
    path = tmp_path / "s.db"
    document = make_document("a", "text", metadata={"title": "t"})
    async with open_sqlite_cache(path, create=True) as cache:
        assert await cache.get("a") is None
        await put(cache, document)
        assert document == await cache.get("a")
        sql(path, f"UPDATE documents SET text = 'forged', digest = '{'f' * 64}'")
        assert await cache.get("a") is None
        await put(cache, Document.tombstone("a", number=2))
        assert await cache.get("a") is None
        assert [(0,)] == sql(path, "SELECT count(*) FROM documents")


async def test_traits(tmp_path: Path) -> None:
    """A cache keeps no tombstones, and an entry that is absent is merely missing."""
    async with open_sqlite_cache(tmp_path / "s.db", create=True) as cache:
        assert (False, AbsentMeans.MISSING) == (cache.traits.keeps_tombstones, cache.traits.absent)


async def test_expired_entries_are_absent(tmp_path: Path) -> None:
    """From the moment it expires, an entry is absent to get, observe, read, scan and count, its row there or not."""
    clock = Clock()
    path = tmp_path / "s.db"
    async with open_sqlite_cache(path, create=True, ttl=10, clock=clock) as cache:
        await put(cache, make_document("a", "text"))
        clock.now += 5
        await put(cache, make_document("b", "text"))
        clock.now += 4.9
        assert ["a", "b"] == [doc_id for doc_id, _ in await scan(cache)]
        clock.now += 0.1
        assert ["b"] == [doc_id for doc_id, _ in await scan(cache)]
        assert (await look(cache, "a")).presence is Presence.ABSENT
        assert await cache.get("a") is None
        (answer,) = await cache.read(["a"])
        assert isinstance(answer, StoredDocument)
        assert answer.document is None
        assert 1 == await cache.count()
        assert [(2,)] == sql(path, "SELECT count(*) FROM documents")


async def test_the_fence_takes_expired_for_absent(tmp_path: Path) -> None:
    """A write planned on an entry is refused once that expired; one planned on absence lands over its row."""
    clock = Clock()
    async with open_sqlite_cache(tmp_path / "s.db", create=True, ttl=10, clock=clock) as cache:
        (seen,) = await put(cache, make_document("a", "text"))
        clock.now += 10
        (ready,) = await prepared(cache, [make_document("a", "new", number=2)])
        (refused,) = await cache.write([Write(prepared=ready, token=seen.token)])
        assert refused.status is WriteStatus.REFUSED
        (landed,) = await cache.write([Write(prepared=ready, token=(await look(cache, "a")).token)])
        assert landed.status is WriteStatus.LANDED
        assert await cache.get("a") is not None
        clock.now += 10
        await take_away(cache, "a")


async def test_writes_take_some_expired_rows_along(tmp_path: Path) -> None:
    """Each write deletes rows of expired entries, so that a cache in use does not grow for ever."""
    clock = Clock()
    path = tmp_path / "s.db"
    async with open_sqlite_cache(path, create=True, ttl=10, clock=clock) as cache:
        await put(cache, *(make_document(f"{index}", "text") for index in range(50)))
        clock.now += 10
        await put(cache, make_document("new", "text"))
        assert [("new",)] == sql(path, "SELECT doc_id FROM documents")


async def test_evict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All expired rows go, in bounded transactions, and no others; how many is told."""
    monkeypatch.setattr("trio_repair.stores.sqlite_cache._EVICTED_PER_CALL", 20)
    monkeypatch.setattr("trio_repair.stores.sqlite_cache._EVICTED_PER_WRITE", 0)
    clock = Clock()
    path = tmp_path / "s.db"
    async with open_sqlite_cache(path, create=True, ttl=10, clock=clock) as cache:
        await put(cache, *(make_document(f"{index}", "text") for index in range(50)))
        clock.now += 10
        await put(cache, make_document("new", "text"))
        assert 50 == await cache.evict()
        assert 0 == await cache.evict()
        assert [("new",)] == sql(path, "SELECT doc_id FROM documents")
    async with open_sqlite_cache(path, clock=clock) as cache:
        await put(cache, make_document("kept", "text"))
        clock.now += 1e9
        assert 1 == await cache.evict()
        assert await cache.get("kept") is not None


@pytest.mark.parametrize(
    "ttl", [0, -1, float("nan"), float("inf"), True, "10", 10**400, pytest.param(-(10**5000), id="-long")]
)
def test_wrong_ttl(ttl: Any, tmp_path: Path) -> None:
    """A time to live that means nothing is refused before a file is looked at."""
    with pytest.raises(InvalidValue, match=r"ttl: must be (a number|a finite number|more than)"):
        open_sqlite_cache(tmp_path / "s.db", ttl=ttl)
