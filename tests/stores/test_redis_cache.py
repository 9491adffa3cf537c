"""The cache on Redis: the contract against a live server, its fence, and what others do to its keys."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import trio
from redis_support import SECRET, Caches, fresh, scan, server, take_away, until
from servers.redis_server import RedisServer
from store_calls import look, put, write, writes_over

from trio_repair import (
    AbsentMeans,
    Document,
    Fence,
    InvalidValue,
    Observation,
    Presence,
    RepairJob,
    RepairOutcome,
    StoredDocument,
    StoreRejected,
    Stores,
    StoreUnavailable,
    SyncStrategy,
    WriteStatus,
    check,
    open_repair_engine,
)
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores import _redis_entries, _redis_scripts
from trio_repair.stores.redis import open_redis_cache
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector
from trio_repair.testing import ContractBroken, check_store, make_document

__all__ = ["server"]

IDS = ["'", "*", "?", "[a-z]", "\\", "a\n", "a\r\n", "{}", "{id}", "-", "é", "e\u0301", "😀", "\x01", "k" * 2048]


async def test_contract(server: RedisServer) -> None:
    """The cache keeps the contract, between two handles too, with entries that expire."""
    caches = Caches(server, ttl=3600)
    await check_store(caches, again=caches.again)


async def test_control_a_fence_in_two_steps_is_caught(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The races can fail: a script that compares nothing, behind a look that does, loses updates."""
    scripts = _redis_scripts.HASH_SCRIPTS
    loose = _redis_scripts.Script.of(scripts.write.text.decode().replace("if not holds(seen, token)", "if false"))
    assert loose.text != scripts.write.text
    monkeypatch.setattr(_redis_entries.OwnHash, "scripts", _redis_scripts.Scripts(scripts.look, loose, scripts.remove))

    monkeypatch.setattr(_redis_entries.OwnHash, "reads_to_write", True)  # look before, and refuse what has moved
    caches = Caches(server)
    await check_store(caches, again=caches.again, only=["no-aba"])  # alone, it seems to hold
    with pytest.raises(ContractBroken) as caught:
        await check_store(caches, again=caches.again, only=["one-winner", "no-lost-update"])
    assert caught.value.breaches


async def test_traits(server: RedisServer) -> None:
    """A strong fence, no tombstones, and as many calls at once as there are connections."""
    async with open_redis_cache(server.url, prefix=fresh(), connections=3) as cache:
        told = cache.traits
        assert (Fence.STRONG, False, AbsentMeans.MISSING) == (told.fence, told.keeps_tombstones, told.absent)
        assert 3 == told.max_calls


async def test_layout(server: RedisServer) -> None:
    """An entry is one hash under the prefix and the id, which other programs can read."""
    prefix = fresh()
    moment = dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)
    document = make_document("a", "the text", number=7, metadata={"title": "t"}, updated_at=moment)
    async with open_redis_cache(server.url, prefix=prefix) as cache:
        await put(cache, document)
        fields = {name: server.command("HGET", f"{prefix}a", name) for name in ("text", "number", "digest", "metadata")}
        assert {
            "text": b"the text",
            "number": b"7",
            "digest": document.version.digest.encode(),
            "metadata": b'{"title": "t"}',
        } == fields
        assert b"2024-01-02T03:04:05.000000+00:00" == server.command("HGET", f"{prefix}a", "updated_at")
        assert b":-1" == server.command("PTTL", f"{prefix}a")
        assert document == await cache.get("a")
        await put(cache, Document.tombstone("a", number=8))
        assert b":0" == server.command("EXISTS", f"{prefix}a")


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (("HSET", "text", "forged"), False),
        (("HSET", "number", "99"), True),
        (("HSET", "number", "9x"), False),
        (("HSET", "digest", "f" * 64), False),
        (("HSET", "metadata", "[]"), False),
        (("HSET", "text", b"\xff\xfe"), False),
        (("HDEL", "text"), False),
        (("HDEL", "seal"), True),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
async def test_foreign_writer(server: RedisServer, change: tuple[Any, ...], given: bool) -> None:
    """Whatever another program does to an entry is seen at once: another token, damaged, and given only if proven."""
    prefix = fresh()
    async with open_redis_cache(server.url, prefix=prefix) as cache:
        (before,) = await put(cache, make_document("a", "text", metadata={"title": "t"}))
        (stale,) = await writes_over(cache, make_document("a", "stale", number=5))
        command, *rest = change
        server.command(command, f"{prefix}a", *rest)
        seen = await look(cache, "a")
        assert seen.token != before.token
        assert (Presence.LIVE, False) == (seen.presence, seen.intact)
        assert {"a": seen} == await scan(cache)
        (answer,) = await cache.read(["a"])
        assert given == isinstance(answer, StoredDocument)
        (refused,) = await cache.write([stale])
        assert (WriteStatus.REFUSED, seen) == (refused.status, refused.observation)
        await put(cache, make_document("a", "mended", number=6))
        assert (await look(cache, "a")).intact


async def test_foreign_delete_and_return(server: RedisServer) -> None:
    """A key that another program deletes is absent; a field that is none of ours changes nothing and stays."""
    prefix = fresh()
    async with open_redis_cache(server.url, prefix=prefix) as cache:
        (seen,) = await put(cache, make_document("a", "text"))
        server.command("HSET", f"{prefix}a", "views", "12")
        assert seen == await look(cache, "a")
        await put(cache, make_document("a", "new", number=2))
        assert b"12" == server.command("HGET", f"{prefix}a", "views")
        server.command("DEL", f"{prefix}a")
        assert (await look(cache, "a")).presence is Presence.ABSENT
        server.command("HSET", f"{prefix}a", "views", "13")
        assert (await look(cache, "a")).presence is Presence.ABSENT
        assert {} == await scan(cache)
        assert (await take_away(cache, "a")).status is WriteStatus.LANDED
        assert b"13" == server.command("HGET", f"{prefix}a", "views")


async def test_keys_of_another_type_are_left_alone(server: RedisServer) -> None:
    """A list under the prefix is nobody's document: refused by itself, not scanned, not counted, not deleted."""
    prefix = fresh()
    server.command("RPUSH", f"{prefix}list", "x")
    async with open_redis_cache(server.url, prefix=prefix) as cache:
        await put(cache, make_document("a", "text"))
        odd, good = await cache.observe(["list", "a"])
        assert isinstance(odd, StoreRejected)
        assert "holds a list" in odd.problem
        assert isinstance(good, Observation)
        assert isinstance((await cache.read(["list"]))[0], StoreRejected)
        (first, _) = await writes_over(cache, make_document("b", "text"), make_document("a", "text", number=2))
        (listed,) = await cache.prepare([make_document("list", "text")])
        assert not isinstance(listed, StoreRejected)
        answers = await cache.write([first, type(first)(prepared=listed, token=first.token)])  # type: ignore[arg-type]  # no errors here
        assert [WriteStatus.LANDED, WriteStatus.REJECTED] == [answer.status for answer in answers]
        assert ["a", "b"] == list(await scan(cache))
        assert 2 == await cache.count()
    assert b":1" == server.command("EXISTS", f"{prefix}list")


@pytest.mark.parametrize("odd", ["*", "[ab]:", "a?", "\\", "x^-]", "{id}", "ü\n"])
async def test_hostile_prefixes(server: RedisServer, odd: str) -> None:
    """A prefix is taken to the letter, in scans too: what it would match as a glob is somebody else's."""
    base = fresh()
    others = [f"{base}ab", f"{base}b:", f"{base}xx", base]
    for other in others:
        server.command("HSET", f"{other}foreign", "text", "x", "digest", "y")
    async with open_redis_cache(server.url, prefix=f"{base}{odd}") as cache:
        await put(cache, *(make_document(doc_id, "text") for doc_id in IDS))
        mine = await scan(cache)
        assert set(IDS) <= set(mine)
        assert all(view.intact for doc_id, view in mine.items() if doc_id in IDS)
        assert len(mine) == await cache.count()
        assert set(mine) == set(IDS)


async def test_entries_expire(server: RedisServer) -> None:
    """An entry is absent once its time is over, on the server's clock, to every call; a write on its token is refused."""
    async with open_redis_cache(server.url, prefix=fresh(), ttl=0.2) as cache:
        await put(cache, make_document("a", "text"))
        (stale,) = await writes_over(cache, make_document("a", "later", number=2))
        assert ["a"] == list(await scan(cache))
        await trio.sleep(0.25)
        assert (await look(cache, "a")).presence is Presence.ABSENT
        assert await cache.get("a") is None
        assert ({}, 0) == (await scan(cache), await cache.count())
        assert WriteStatus.REFUSED is (await cache.write([stale]))[0].status


async def test_ttl_is_that_of_the_last_write(server: RedisServer) -> None:
    """Each write sets the TTL anew, and without one takes away the one that there was."""
    prefix = fresh()
    async with open_redis_cache(server.url, prefix=prefix, ttl=1000) as cache:
        await put(cache, make_document("a", "text"))
        server.command("PEXPIRE", f"{prefix}a", "5000")
        await put(cache, make_document("a", "text", number=2))
        assert 990_000 < int(server.command("PTTL", f"{prefix}a")[1:]) <= 1_000_000
    async with open_redis_cache(server.url, prefix=prefix) as cache:
        await put(cache, make_document("a", "text", number=3))
        assert b":-1" == server.command("PTTL", f"{prefix}a")


async def test_scripts_that_the_server_forgot(server: RedisServer) -> None:
    """After SCRIPT FLUSH, calls of every kind go on as before."""
    async with open_redis_cache(server.url, prefix=fresh()) as cache:
        documents = [make_document(f"{index}", "text") for index in range(200)]
        server.command("SCRIPT", "FLUSH")
        await put(cache, *documents)
        server.command("SCRIPT", "FLUSH")
        assert len(documents) == len(await scan(cache))
        server.command("SCRIPT", "FLUSH")
        assert WriteStatus.LANDED is (await take_away(cache, "7")).status
        assert 1 == cache.connections_opened


async def test_eviction(tmp_path: Path) -> None:
    """Where the server makes room, entries are absent, and all calls agree on which; none is damaged."""
    with RedisServer(tmp_path, maxmemory_policy="allkeys-lru") as small:
        async with open_redis_cache(small.url, prefix=fresh()) as cache:
            ids = [f"{index:03}" for index in range(400)]
            for start in range(0, len(ids), 100):
                await put(cache, *(make_document(doc_id, f"{doc_id} " * 500) for doc_id in ids[start : start + 100]))
            used = int(small.command("INFO", "memory").split(b"used_memory:")[1].split(b"\r\n")[0])
            small.command("CONFIG", "SET", "maxmemory", str(used - 400_000))
            await until(lambda: int(small.command("DBSIZE")[1:]) < len(ids))
            small.command("CONFIG", "SET", "maxmemory", "0")
            held = await scan(cache)
            assert 0 < len(held) < len(ids)
            seen = await cache.observe(ids)
            live = {doc_id for doc_id, one in zip(ids, seen, strict=True) if one.presence is Presence.LIVE}  # type: ignore[union-attr]  # no errors here
            assert set(held) == live
            assert all(view.intact for view in held.values())
            assert len(held) == await cache.count()


async def test_out_of_memory(tmp_path: Path) -> None:
    """A server that may evict nothing takes nothing: told so, nothing is written, and removing still works."""
    with RedisServer(tmp_path, maxmemory_policy="noeviction") as small:
        async with open_redis_cache(small.url, prefix=fresh()) as cache:
            (first,) = await put(cache, make_document("a", "text"))
            small.command("CONFIG", "SET", "maxmemory", "100kb")
            with pytest.raises(StoreUnavailable, match="is out of memory"):
                await write(cache, make_document("a", "new", number=2), make_document("b", "new"))
            assert first == await look(cache, "a")
            assert WriteStatus.LANDED is (await take_away(cache, "a")).status
            small.command("CONFIG", "SET", "maxmemory", "0")
            await put(cache, make_document("a", "new", number=2))


async def test_misuse(server: RedisServer) -> None:
    """Too large a batch, and one document twice, are refused at once; a text that no server takes, in prepare."""
    async with open_redis_cache(server.url, prefix=fresh()) as cache:
        with pytest.raises(InvalidValue, match="names 513 documents"):
            await cache.observe(["a"] * 513)
        (one,) = await writes_over(cache, make_document("a", "text"))
        with pytest.raises(InvalidValue, match="twice"):
            await cache.write([one, one])


async def test_errors_leave_the_block_as_they_are(server: RedisServer) -> None:
    """An exception in the block is not wrapped in a group; neither is a cancellation swallowed."""
    with pytest.raises(LookupError, match="mine"):
        async with open_redis_cache(server.url, prefix=fresh()):
            raise LookupError("mine")
    with trio.move_on_after(0.05) as scope:
        async with open_redis_cache(server.url, prefix=fresh()):
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_closing_leaves_nothing(server: RedisServer) -> None:
    """Once the block is left, no connection of the store's is there any more."""

    def clients() -> int:
        return server.command("CLIENT", "LIST").count(b"id=")

    before = clients()
    async with open_redis_cache(server.url, prefix=fresh()) as cache:
        async with trio.open_nursery() as nursery:
            for index in range(20):
                nursery.start_soon(put, cache, make_document(f"{index}", "text"))
        assert before < clients() <= before + cache.traits.max_calls
    await until(lambda: clients() <= before)


async def test_bounded_connections(server: RedisServer) -> None:
    """However many calls there are, there are never more connections than were asked for."""
    async with open_redis_cache(server.url, prefix=fresh(), connections=2) as cache:
        async with trio.open_nursery() as nursery:
            for index in range(50):
                nursery.start_soon(put, cache, make_document(f"{index}", "text"))
        assert 50 == len(await scan(cache))
        assert 2 == cache.connections_opened


async def test_reprs_hold_no_secret(tmp_path: Path) -> None:
    """Nothing that can be shown of a store tells its password."""
    with RedisServer(tmp_path, requirepass=SECRET) as guarded:
        async with open_redis_cache(guarded.url, prefix=fresh(), password=SECRET) as cache:
            await put(cache, make_document("a", "text"))
            shown = [repr(one) for one in (cache, *vars(cache).values(), *vars(cache._connections).values())]
            assert SECRET not in "".join(shown)
            assert str(guarded.port) in repr(cache)


async def test_engine_repairs_with_it(server: RedisServer, tmp_path: Path) -> None:
    """With SQLite stores for text and vectors, what is stale, damaged or orphaned in the cache is put right, once."""
    prefix = fresh()
    ids = [f"document {index:02}" for index in range(20)]
    async with (
        open_sqlite_text(tmp_path / "text.db", create=True, synchronous="normal") as text,
        open_sqlite_vector(
            tmp_path / "vector.db",
            embedder=HashingEmbedder(8),
            chunker=WindowChunker(),
            create=True,
            synchronous="normal",
        ) as vector,
        open_redis_cache(server.url, prefix=prefix) as cache,
    ):
        for store in (text, vector, cache):
            await put(store, *(make_document(doc_id, f"old {doc_id}") for doc_id in ids))
        await put(text, *(make_document(doc_id, f"new {doc_id}", number=2) for doc_id in ids[:5]))
        await put(vector, *(make_document(doc_id, f"new {doc_id}", number=2) for doc_id in ids[3:5]))
        server.command("HSET", f"{prefix}{ids[7]}", "text", "forged")
        server.command("DEL", f"{prefix}{ids[8]}")
        await put(cache, make_document("orphan", "nobody else has it"))
        stores = Stores(text=text, vector=vector, cache=cache)
        wrong = {*ids[:5], ids[7], "orphan"}
        async with check(stores) as checking:
            assert wrong == {one.doc_id async for one in checking}
        async with open_repair_engine(stores) as engine:
            jobs = [RepairJob(doc_id=one, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH) for one in ids]
            results = [await engine.execute_repair_job(job) for job in jobs]
            assert {RepairOutcome.REPAIRED, RepairOutcome.ALREADY_CONSISTENT} == {one.outcome for one in results}
            assert [] == [warning for one in results for warning in one.warnings]
        async with check(stores) as checking:
            assert {"orphan"} == {one.doc_id async for one in checking}
        for doc_id in (*ids[:5], ids[7]):
            assert await cache.get(doc_id) == (await text.read([doc_id]))[0].document  # type: ignore[union-attr]  # no errors here
