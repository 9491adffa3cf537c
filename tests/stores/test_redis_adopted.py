"""Entries that an application writes: adopted as they are, and kept as they are but for what is written."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis_support import Caches, fresh, scan, server, take_away
from servers.redis_server import RedisServer
from store_calls import look, put, write, writes_over

from trio_repair import (
    AutoRepairConfig,
    ContentDefinition,
    Presence,
    RepairJob,
    StoredDocument,
    StoreRejected,
    Stores,
    SyncStrategy,
    WriteStatus,
    check,
    open_repair_engine,
)
from trio_repair.stores._redis_adopted import spliced
from trio_repair.stores.memory import MemoryStore
from trio_repair.stores.redis import open_redis_cache
from trio_repair.testing import PROMISES, ContractBroken, check_store, make_document

__all__ = ["server"]

FIELDS = {"text": "body", "metadata": "meta", "version": "rev", "updated_at": "changed", "digest": "sha256"}
RETURNING = {"token-moves", "no-aba", "seen-elsewhere"}
"""What no entry can keep that has no place for a mark: one that returns to the same bytes is the same."""
SLOW = {"scan-complete", "scan-left-early", "cancelled-whole", "cancelled-told", "no-lost-update"}
"""Promises about what is the same for every layout."""


@pytest.mark.parametrize("form", ["json", "hash"])
async def test_contract(server: RedisServer, form: str) -> None:
    """Fully mapped entries keep the contract, all but the tokens of entries that return to what they were."""
    caches = Caches(server, format=form, fields={**FIELDS, "write_digest": True})
    await check_store(caches, again=caches.again, only=set(PROMISES) - RETURNING - SLOW)
    with pytest.raises(ContractBroken) as caught:
        await check_store(caches, again=caches.again, only=RETURNING)
    assert RETURNING == set(caught.value.breaches)


async def test_plain_text(server: RedisServer) -> None:
    """A string is the text: without a number, its digest computed, its TTL kept."""
    base = fresh()
    server.command("SET", f"{base}1:body", "hello", "PX", "60000")
    async with open_redis_cache(server.url, key=f"{base}{{id}}:body", format="string") as cache:
        seen = await look(cache, "1")
        document = make_document("1", "hello", number=None)
        assert (Presence.LIVE, document.version, True) == (seen.presence, seen.version, seen.intact)
        assert {"1": seen} == await scan(cache)
        assert document == await cache.get("1")
        (landed,) = await put(cache, make_document("1", "héllo", number=4))
        assert landed == await look(cache, "1")
        assert landed.version is not None
        assert landed.version.number is None
        assert "héllo".encode() == server.command("GET", f"{base}1:body")
        assert 50_000 < int(server.command("PTTL", f"{base}1:body")[1:]) <= 60_000
        (stale,) = await writes_over(cache, make_document("1", "stale"))
        server.command("SET", f"{base}1:body", "foreign")
        assert WriteStatus.REFUSED is (await cache.write([stale]))[0].status
        server.command("SET", f"{base}1:body", b"\xff")
        assert not (await look(cache, "1")).intact
        assert isinstance((await cache.read(["1"]))[0], StoreRejected)


async def test_plain_text_beside_numbered_copies(server: RedisServer) -> None:
    """A string has no place for a number: it is compared by its text, repaired once, and then nothing is written."""
    base = fresh()
    async with open_redis_cache(server.url, key=f"{base}{{id}}", format="string") as cache:
        world = {"text": MemoryStore("text"), "vector": MemoryStore("vector")}
        stores = Stores(**world, cache=cache)
        for store in world.values():
            for doc_id in ("same", "stale"):
                store.put_nowait(make_document(doc_id, f"new {doc_id}", number=7))
        server.command("SET", f"{base}same", "new same")
        server.command("SET", f"{base}stale", "old stale")
        async with check(stores, AutoRepairConfig(settle=0.0)) as checking:
            assert ["stale"] == [one.doc_id async for one in checking]
        async with open_repair_engine(stores) as engine:
            updated = []
            for doc_id in ("same", "stale", "stale"):
                job = RepairJob(doc_id=doc_id, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH)
                updated.append((await engine.execute_repair_job(job)).updated_systems)
        assert [(), ("cache",), ()] == updated
        assert b"new stale" == server.command("GET", f"{base}stale")


async def test_ttl_of_adopted_entries(server: RedisServer) -> None:
    """With `ttl` each write sets it; without, an entry keeps what it had, and a new one has none."""
    base = fresh()
    for form in ("string", "json", "hash"):
        pattern = f"{base}{form}:{{id}}"
        async with open_redis_cache(server.url, key=pattern, format=form) as cache:
            await put(cache, make_document("a", "text"))
            assert b":-1" == server.command("PTTL", f"{base}{form}:a")
            server.command("PEXPIRE", f"{base}{form}:a", "60000")
            await put(cache, make_document("a", "new", number=2))
            assert 50_000 < int(server.command("PTTL", f"{base}{form}:a")[1:]) <= 60_000
        async with open_redis_cache(server.url, key=pattern, format=form, ttl=900) as cache:
            await put(cache, make_document("a", "newer", number=3))
            assert 890_000 < int(server.command("PTTL", f"{base}{form}:a")[1:]) <= 900_000


async def test_json_keeps_what_it_does_not_know(server: RedisServer) -> None:
    """Members that are not mapped stay to the character: numbers as they are spelled, empty arrays, order, doubles."""
    base = fresh()
    raw = '{ "price": 1.10, "body": "old",\n "tags": [], "n": 12345678901234567890, "n": 1e2, "rev": 1 ,"meta":{"a":1}}'
    server.command("SET", f"{base}7", raw)
    fields = {key: FIELDS[key] for key in ("text", "metadata", "version")}
    async with open_redis_cache(server.url, key=f"{base}{{id}}", format="json", fields=fields) as cache:
        (landed,) = await put(cache, make_document("7", 'new "text"', number=2, metadata={"b": 2}))
        assert (
            b'{ "price": 1.10, "body": "new \\"text\\"",\n "tags": [], "n": 12345678901234567890, "n": 1e2, "rev": 2 ,'
            b'"meta":{"b": 2}}'
        ) == server.command("GET", f"{base}7")
        assert landed == await look(cache, "7")
        await put(cache, make_document("8", "a new one", number=1))
        assert {"body": "a new one", "meta": {}, "rev": 1} == json.loads(server.command("GET", f"{base}8"))


async def test_a_race_for_one_member(server: RedisServer) -> None:
    """An application that changes a member that is none of ours, between look and write, has its change kept."""
    base = fresh()
    server.command("SET", f"{base}1", '{"text": "old", "views": 1}')
    async with open_redis_cache(server.url, key=f"{base}{{id}}", format="json") as cache:
        ready = await writes_over(cache, make_document("1", "new"))
        server.command("SET", f"{base}1", '{"text": "old", "views": 2}')
        assert WriteStatus.REFUSED is (await cache.write(ready))[0].status
        assert WriteStatus.LANDED is (await write(cache, make_document("1", "new")))[0].status
        assert b'{"text": "new", "views": 2}' == server.command("GET", f"{base}1")


async def test_hash_keeps_what_it_does_not_know(server: RedisServer) -> None:
    """Fields that are not mapped stay, and do not move the token; mapped ones without a value go."""
    base = fresh()
    server.command("HSET", f"{base}1", "body", "old", "rev", "1", "views", "5", "changed", "2024-01-02T03:04:05+00:00")
    fields = {key: FIELDS[key] for key in ("text", "version", "updated_at")}
    async with open_redis_cache(server.url, key=f"{base}{{id}}", format="hash", fields=fields) as cache:
        before = await look(cache, "1")
        assert before.version is not None
        assert (1, dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)) == (
            before.version.number,
            before.version.updated_at,
        )
        server.command("HINCRBY", f"{base}1", "views", "1")
        assert before == await look(cache, "1")
        (landed,) = await put(cache, make_document("1", "new", number=2))
        assert landed == await look(cache, "1")
        assert [b"new", b"2", b"6", b""] == [
            server.command("HGET", f"{base}1", name) for name in ("body", "rev", "views", "changed")
        ]
        server.command("HSET", f"{base}other", "views", "1")
        assert (await look(cache, "other")).presence is Presence.ABSENT
        assert WriteStatus.LANDED is (await take_away(cache, "1")).status
        assert b":0" == server.command("EXISTS", f"{base}1")


@pytest.mark.parametrize("form", ["json", "hash"])
async def test_digests(server: RedisServer, form: str) -> None:
    """A digest that is there is kept true, one that is not is added on request only; one that lies is damage."""
    base = fresh()
    key = f"{base}{{id}}"
    fields = {"digest": "sha256"}
    document = make_document("a", "text", number=None)

    def held() -> dict[str, str]:
        if form == "json":
            found: dict[str, str] = json.loads(server.command("GET", f"{base}a"))
            return found
        parts = server.command("HGETALL", f"{base}a").decode().split("\n")
        return dict(zip(parts[::2], parts[1::2], strict=True))

    async with open_redis_cache(server.url, key=key, format=form, fields=fields) as cache:  # type: ignore[arg-type]  # a parameter of the test
        await put(cache, document)
        assert {"text": "text"} == held()
    async with open_redis_cache(server.url, key=key, format=form, fields={**fields, "write_digest": True}) as cache:  # type: ignore[arg-type]  # a parameter of the test
        await put(cache, document)
        assert {"text": "text", "sha256": document.version.digest} == held()
    async with open_redis_cache(server.url, key=key, format=form, fields=fields) as cache:  # type: ignore[arg-type]  # a parameter of the test
        other = make_document("a", "other", number=None)
        (landed,) = await put(cache, other)
        assert {"text": "other", "sha256": other.version.digest} == held()
        assert landed == await look(cache, "a")
        if form == "json":
            server.command("SET", f"{base}a", json.dumps({"text": "forged", "sha256": other.version.digest}))
        else:
            server.command("HSET", f"{base}a", "text", "forged")
        seen = await look(cache, "a")
        assert not seen.intact
        assert {"a": seen} == await scan(cache)
        assert isinstance((await cache.read(["a"]))[0], StoreRejected)
        await put(cache, document)
        assert document == await cache.get("a")


@pytest.mark.parametrize(
    "raw",
    ["", "[]", "{", '{"text": 5}', '{"text": "\\ud800"}', '{"text": "t", "rev": 1.5}', '{"text": "t", "rev": -1}',
     '{"text": "t", "rev": true}', '{"text": "t", "meta": []}', '{"text": "t", "sha256": "x"}', "[" * 50_000],
)  # fmt: skip
async def test_json_that_is_none_of_it(server: RedisServer, raw: str) -> None:
    """What cannot be understood is damaged: told so, never given, and replaced by a write."""
    base = fresh()
    server.command("SET", f"{base}1", raw)
    async with open_redis_cache(server.url, key=f"{base}{{id}}", format="json", fields=FIELDS) as cache:
        seen = await look(cache, "1")
        assert (Presence.LIVE, False) == (seen.presence, seen.intact)
        assert {"1": seen} == await scan(cache)
        assert await cache.get("1") is None
        document = make_document("1", "mended", number=3)
        await put(cache, document)
        assert document == await cache.get("1")


async def test_ids_that_are_documents(server: RedisServer) -> None:
    """With `id_pattern`, keys that only look alike are nobody's documents: not scanned, not written, not removed."""
    base = fresh()
    for name in ("1", "1:comments", "x"):
        server.command("SET", f"{base}{name}", "text")
    async with open_redis_cache(server.url, key=f"{base}{{id}}", format="string", id_pattern="[0-9]+") as cache:
        assert ["1"] == list(await scan(cache))
        assert 1 == await cache.count()
        odd, _ = await cache.observe(["1:comments", "1"])
        assert isinstance(odd, StoreRejected)
        (ready,) = await writes_over(cache, make_document("2", "text"))
        (other,) = await cache.prepare([make_document("x", "text")])
        answers = await cache.write([type(ready)(prepared=other, token=ready.token), ready])  # type: ignore[arg-type]  # no errors here
        assert [WriteStatus.REJECTED, WriteStatus.LANDED] == [answer.status for answer in answers]


async def test_metadata_as_content(server: RedisServer) -> None:
    """Digests that cover metadata are those of what is held."""
    content = ContentDefinition(metadata_keys=("title",))
    base = fresh()
    for form in ("json", "hash"):
        fields = {"metadata": "meta"}
        async with open_redis_cache(
            server.url, key=f"{base}{form}:{{id}}", format=form, fields=fields, content=content
        ) as cache:
            document = make_document("a", "text", number=None, metadata={"title": "t", "more": [1.5]}, content=content)
            await put(cache, document)
            (answer,) = await cache.read(["a"])
            assert isinstance(answer, StoredDocument)
            assert document == answer.document


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["text", "rev", "é", '"', "", "}", "a b"])
BLANKS = st.text(alphabet=" \t\n\r", max_size=2)


@given(st.data())
def test_spliced(data: Any) -> None:
    """Whatever the object looks like: what is set is set, all else is as it was, to the character."""
    members = data.draw(st.lists(st.tuples(NAMES, JSON), max_size=4))
    changes = data.draw(st.dictionaries(NAMES, JSON, min_size=1, max_size=3))

    def blank() -> str:
        return data.draw(BLANKS)  # type: ignore[no-any-return]  # texts are drawn

    def spell(value: Any) -> str:
        return json.dumps(value, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1])))

    parts = [(name, f"{blank()}{spell(name)}{blank()}:{blank()}", spell(value), blank()) for name, value in members]
    text = f"{blank()}{{{','.join(head + value + tail for _, head, value, tail in parts) or blank()}}}{blank()}"
    done = spliced(text, {name: json.dumps(value) for name, value in changes.items()})
    assert {**json.loads(text), **changes} == json.loads(done)
    for name, head, value, tail in parts:
        assert head in done
        assert name in changes or head + value + tail in done
