"""The cache on Redis when the server, the network or a password fails: what is told, what is held, and what comes next."""

from __future__ import annotations

import logging
import os
import random
import socket
import subprocess
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from redis_support import SECRET, fresh, open_proxy, scan, server, statuses, take_away, until, url_of
from servers.redis_server import RedisServer
from store_calls import look, put, write, writes_over

from trio_repair import Document, InvalidValue, Presence, StoredDocument, StoreUnavailable, WriteStatus
from trio_repair.stores import _redis_entries, _redis_scripts
from trio_repair.stores.redis import RedisCacheStore, open_redis_cache
from trio_repair.testing import make_document

__all__ = ["server"]

UNKNOWN, LANDED, REFUSED = WriteStatus.UNKNOWN, WriteStatus.LANDED, WriteStatus.REFUSED


def told(error: BaseException) -> str:
    """All that a traceback of an error would show."""
    return "".join(traceback.format_exception(error))


@asynccontextmanager
async def refused(*args: Any, **options: Any) -> AsyncIterator[list[str]]:
    """Opening must fail with StoreUnavailable, in one line without the password."""
    lines: list[str] = []
    yield lines
    with pytest.raises(StoreUnavailable) as caught:
        async with open_redis_cache(*args, prefix="p:", **options):
            pass
    lines.append(str(caught.value))
    assert "\n" not in lines[0]
    assert SECRET not in told(caught.value)


async def test_no_server(capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody listens: one line that names the server, and nothing on the terminal."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with refused(f"redis://127.0.0.1:{port}") as lines:
        pass
    assert f"127.0.0.1:{port} cannot be reached" in lines[0]
    assert ("", "") == capfd.readouterr()


async def test_passwords(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No password, a wrong one, an unknown user, or one too many: one line each, and no password anywhere."""
    caplog.set_level(logging.DEBUG)
    with RedisServer(tmp_path, requirepass="another") as guarded:
        for options, words in (
            ({}, "wants a password"),
            ({"password": SECRET}, "does not accept this username and password"),
            ({"password": SECRET, "username": "nobody"}, "does not accept this username and password"),
        ):
            async with refused(guarded.url, **options) as lines:
                pass
            assert words in lines[0]
        async with refused(guarded.url.replace("127", f"user:{SECRET}@127")) as lines:
            pass
        assert "does not accept" in lines[0]
        async with open_redis_cache(guarded.url.replace("127", ":another@127"), prefix="p:") as cache:
            await put(cache, make_document("a", "text"))
            guarded.command("CONFIG", "SET", "requirepass", "changed", password="another")
            guarded.command("CLIENT", "KILL", "TYPE", "normal", password="changed")
            await trio.sleep(0.05)
            with pytest.raises(StoreUnavailable, match="does not accept"):
                await look(cache, "a")
    assert SECRET not in caplog.text


async def test_a_server_that_quotes_the_password(caplog: pytest.LogCaptureFixture) -> None:
    """Redis 5 complains of HELLO with all of its arguments: nobody repeats that."""
    caplog.set_level(logging.DEBUG)

    async def complain(client: trio.SocketStream) -> None:
        async with client:
            said = await client.receive_some()
            assert SECRET.encode() in bytes(said)
            words = f"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `{SECRET}`, \r\n"
            await client.send_all(words.encode())

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, complain, [listener])
        async with refused(f"redis://127.0.0.1:{listener.socket.getsockname()[1]}", password=SECRET) as lines:
            pass
        nursery.cancel_scope.cancel()
    assert "Redis 6.0 or newer" in lines[0]
    assert SECRET not in caplog.text


async def test_permissions(tmp_path: Path) -> None:
    """A user who may only read can look and scan; a write is refused, in words, and writes nothing."""
    with RedisServer(tmp_path) as guarded:
        allowed = ("~p:*", "+@read", "+@scripting", "+@connection")
        guarded.command("ACL", "SETUSER", "reader", "on", f">{SECRET}", *allowed)
        guarded.command("ACL", "SETUSER", "clock", "on", f">{SECRET}", *allowed, "+time")
        guarded.command("ACL", "SETUSER", "writer", "on", f">{SECRET}", *allowed, "+@write", "+time")
        async with open_redis_cache(guarded.url, prefix="p:", username="writer", password=SECRET) as cache:
            (first,) = await put(cache, make_document("a", "text"))
        for name in ("reader", "clock"):
            async with open_redis_cache(guarded.url, prefix="p:", username=name, password=SECRET) as cache:
                assert first == await look(cache, "a")
                assert {"a": first} == await scan(cache)
                assert 1 == await cache.count()
                with pytest.raises(StoreUnavailable, match="does not let this user") as caught:
                    await write(cache, make_document("a", "new", number=2), make_document("b", "new"))
                assert SECRET not in told(caught.value)
                assert {"a": first} == await scan(cache)
        async with refused(guarded.url, username="reader", password="wrong"):
            pass


async def test_too_many_clients(tmp_path: Path) -> None:
    """A server without a place left says so; once there is one, the next call gets it."""
    with RedisServer(tmp_path, maxclients="2") as crowded:
        with (
            socket.create_connection(("127.0.0.1", crowded.port)),
            socket.create_connection(("127.0.0.1", crowded.port)),
        ):
            await trio.sleep(0.05)
            async with refused(crowded.url) as lines:
                pass
            assert "maxclients" in lines[0]
        await trio.sleep(0.05)
        async with open_redis_cache(crowded.url, prefix="p:", connections=1) as cache:
            await put(cache, make_document("a", "text"))


async def test_killed_and_restarted_between_calls(tmp_path: Path) -> None:
    """A dead server is unavailable; once it is back, the next call makes a connection, and all is as the server has it."""
    with RedisServer(tmp_path, appendonly="yes", appendfsync="always") as mortal:
        async with open_redis_cache(mortal.url, prefix="p:") as cache:
            (seen,) = await put(cache, make_document("a", "text"))
            ready = await writes_over(cache, make_document("a", "new", number=2), make_document("b", "new"))
            mortal.kill()
            await trio.sleep(0.05)  # the loop hears of it
            for _ in range(10):  # more often than there are connections
                with pytest.raises(StoreUnavailable, match="cannot be reached"):
                    await cache.write(ready)
            with pytest.raises(StoreUnavailable):
                await scan(cache)
            mortal.start()
            assert seen == await look(cache, "a")
            assert {LANDED} == statuses(await cache.write(ready))
            mortal.restart()
            await trio.sleep(0.05)
            assert {"a", "b"} == set(await scan(cache))


async def test_killed_during_calls(tmp_path: Path) -> None:
    """Killed again and again under load: what is told to have landed is held, and what is not told so may be."""
    with RedisServer(tmp_path, appendonly="yes", appendfsync="always") as mortal:
        for turn in range(4):
            async with open_redis_cache(mortal.url, prefix=f"{turn}:", timeout=2.0) as cache:
                landed: set[str] = set()
                doubtful: set[str] = set()
                unavailable: list[StoreUnavailable] = []

                async def work(
                    worker: int,
                    cache: RedisCacheStore = cache,
                    landed: set[str] = landed,
                    doubtful: set[str] = doubtful,
                    unavailable: list[StoreUnavailable] = unavailable,
                ) -> None:
                    for number in range(1000):
                        ids = [f"{worker} {number} {index}" for index in range(50)]
                        try:
                            answers = await write(cache, *(make_document(doc_id, "text " * 100) for doc_id in ids))
                        except StoreUnavailable as error:
                            unavailable.append(error)
                            return
                        landed |= {one for one, answer in zip(ids, answers, strict=True) if answer.status is LANDED}
                        doubtful |= {one for one, answer in zip(ids, answers, strict=True) if answer.status is UNKNOWN}

                async with trio.open_nursery() as nursery:
                    for worker in range(3):
                        nursery.start_soon(work, worker)
                    await until(lambda landed=landed: bool(landed))  # type: ignore[misc]  # bound at once, as the loop goes on
                    await trio.sleep(0.03 * turn)
                    mortal.kill()
                assert landed
                assert unavailable
                mortal.start()
                held = set(await scan(cache))
                assert landed <= held
                assert held <= landed | doubtful


async def test_lost_acknowledgements(server: RedisServer) -> None:
    """Sent and unanswered is UNKNOWN for every document, never a failure; here all have landed, as a later look shows."""
    async with open_proxy(server) as proxy:
        async with open_redis_cache(url_of(proxy), prefix=fresh(), timeout=0.3) as cache:
            ready = await writes_over(cache, *(make_document(f"{index}", "text") for index in range(30)))
            await put(cache, make_document("before", "text"))  # the server has the script and has told its time
            proxy.lose_answers = True
            answers = await cache.write(ready)
            assert {UNKNOWN} == statuses(answers)
            assert all("did not answer within 0.3 s" in str(answer.error) for answer in answers)
            proxy.lose_answers = False
            assert 31 == len(await scan(cache))
            assert {REFUSED} == statuses(await cache.write(ready))


async def test_lost_commands(server: RedisServer) -> None:
    """A network that swallows what is sent looks the same, UNKNOWN, and nothing has landed; a later try does."""
    async with open_proxy(server) as proxy:
        async with open_redis_cache(url_of(proxy), prefix=fresh(), timeout=0.3, connect_timeout=0.3) as cache:
            ready = await writes_over(cache, make_document("a", "text"), make_document("b", "text"))
            await put(cache, make_document("before", "text"))  # the server has the script and has told its time
            proxy.lose_commands = True
            assert {UNKNOWN} == statuses(await cache.write(ready))
            with pytest.raises(StoreUnavailable):
                await look(cache, "a")
            proxy.lose_commands = False
            assert {"before"} == set(await scan(cache))
            assert {LANDED} == statuses(await cache.write(ready))


async def test_cut_in_the_middle(server: RedisServer) -> None:
    """Cut off after some answers: those are LANDED, the rest UNKNOWN; and a scan that is cut off does not end as if whole."""
    async with open_proxy(server) as proxy:
        async with open_redis_cache(url_of(proxy), prefix=fresh()) as cache:
            ready = await writes_over(cache, *(make_document(f"{index:03}", "text " * 50) for index in range(200)))
            await put(cache, make_document("before", "text"))  # the server has the script and has told its time
            proxy.cut_after = 1000
            answers = await cache.write(ready)
            proxy.cut_after = None
            assert {LANDED, UNKNOWN} == statuses(answers)
            first = [answer.status for answer in answers].index(UNKNOWN)
            assert {UNKNOWN} == statuses(answers[first:])
            held = await scan(cache)
            for one, answer in zip(ready, answers, strict=True):
                if answer.status is LANDED:
                    assert answer.observation == held[one.prepared.document.doc_id]
            proxy.cut_after = 1000
            with pytest.raises(StoreUnavailable):
                await scan(cache)
            proxy.cut_after = None


async def _stopped_for_longer_than_the_timeout(directory: Path) -> Presence:
    """Write to a server that is stopped until the call has ended; what it holds of it later."""
    with RedisServer(directory) as stopped:
        async with open_redis_cache(stopped.url, prefix="p:", timeout=0.3, connect_timeout=0.3) as cache:
            ready = await writes_over(cache, make_document("a", "text"))
            await put(cache, make_document("before", "text"))  # the server has the script and has told its time
            stopped.pause()
            assert {UNKNOWN} == statuses(await cache.write(ready))
            with pytest.raises(StoreUnavailable, match="did not let anybody in"):
                await look(cache, "a")
            stopped.resume()
            await trio.sleep(0.05)
            seen = (await look(cache, "a")).presence
            assert statuses(await cache.write(ready)) <= {LANDED, REFUSED}
            return seen


async def test_stopped_for_longer_than_the_timeout(tmp_path: Path) -> None:
    """A write that was given up does not land when the server goes on: it is told the deadline, and keeps it."""
    assert Presence.ABSENT is await _stopped_for_longer_than_the_timeout(tmp_path)


async def test_control_without_a_deadline_it_lands_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: a script that does not look at the clock writes what nobody waits for any longer."""
    scripts = _redis_scripts.HASH_SCRIPTS
    careless = scripts.write.text.decode().replace("if is_late(deadline)", "if false")
    assert careless != scripts.write.text.decode()
    monkeypatch.setattr(
        _redis_entries.OwnHash,
        "scripts",
        _redis_scripts.Scripts(scripts.look, _redis_scripts.Script.of(careless), scripts.remove),
    )
    assert Presence.LIVE is await _stopped_for_longer_than_the_timeout(tmp_path)


async def test_a_clock_that_was_set(server: RedisServer) -> None:
    """If the server's clock goes forward, one write is refused as too late, and the next knows the new time."""
    async with open_redis_cache(server.url, prefix=fresh()) as cache:
        await put(cache, make_document("a", "text"))
        assert cache._connections._ahead is not None
        cache._connections._ahead -= 3600
        with pytest.raises(StoreUnavailable, match="too late"):
            await put(cache, make_document("a", "new", number=2))
        await put(cache, make_document("a", "new", number=2))


async def _cancel_reads(server: RedisServer, times: int) -> int:
    """Cancel reads in mid-flight; how many calls then got an answer that was not theirs."""
    wrong = 0
    rng = random.Random(7)
    async with open_redis_cache(server.url, prefix=fresh(), connections=2, timeout=1.0) as cache:
        documents = {f"{index}": make_document(f"{index}", f"text {index} " * 200) for index in range(60)}
        await put(cache, *documents.values())
        for turn in range(times):
            ids = rng.sample(sorted(documents), 40)
            mine = f"{turn % 60}"
            try:
                with trio.move_on_after(rng.random() * 0.004):
                    await cache.read(ids)
                (answer,) = await cache.read([mine])
            except Exception:  # what is somebody else's answer may be of any form
                wrong += 1
                continue
            wrong += not (isinstance(answer, StoredDocument) and answer.document == documents[mine])
    return wrong


async def test_cancelled_calls_leave_no_answer_behind(server: RedisServer) -> None:
    """300 calls cancelled in mid-flight: no later call gets what was meant for them."""
    assert 0 == await _cancel_reads(server, 300)


async def test_control_answers_left_behind_are_caught(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: where a cancelled call is merely forgotten, its answers go to others."""

    from coredis.connection._request import RequestBatch

    def forget(self: Any, _reason: str) -> None:
        self._connection._requests.remove(self)

    monkeypatch.setattr(RequestBatch, "_handle_response_cancellation", forget)
    assert await _cancel_reads(server, 60) > 0


async def test_cancelled_writes_are_whole(server: RedisServer) -> None:
    """Writes that are cancelled at random either land or do not, and what a call that returned says is held."""
    rng = random.Random(11)
    async with open_redis_cache(server.url, prefix=fresh(), connections=2) as cache:
        for turn in range(60):
            documents = [make_document(f"{turn} {index}", "text " * 100, number=turn) for index in range(30)]
            ready = await writes_over(cache, *documents)
            answers = None
            with trio.move_on_after(rng.random() * 0.004):
                answers = await cache.write(ready)
            held = [await cache.get(one.doc_id) for one in documents]
            assert all(one is None or one == two for one, two in zip(held, documents, strict=True))
            if answers is not None:
                assert {LANDED} == statuses(answers)
                assert documents == held


async def test_read_only_replica(tmp_path: Path) -> None:
    """After a failover the old primary takes no writes: told so, nothing is written; promoted again, it does."""
    with RedisServer(tmp_path / "a") as primary, RedisServer(tmp_path / "b") as other:
        async with open_redis_cache(primary.url, prefix="p:") as cache:
            (first,) = await put(cache, make_document("a", "text"))
            ready = await writes_over(cache, make_document("a", "new", number=2))
            other.kill()
            primary.command("REPLICAOF", "127.0.0.1", str(other.port))
            with pytest.raises(StoreUnavailable, match="read-only replica"):
                await cache.write(ready)
            with pytest.raises(StoreUnavailable, match="read-only replica"):
                await take_away(cache, "a")
            assert first == await look(cache, "a")
            primary.command("REPLICAOF", "NO", "ONE")
            assert {LANDED} == statuses(await cache.write(ready))


async def test_disk_trouble(tmp_path: Path) -> None:
    """A server that cannot save and so takes no writes says so in words."""
    with RedisServer(tmp_path / "server", save="3600 1") as troubled:
        async with open_redis_cache(troubled.url, prefix="p:") as cache:
            await put(cache, make_document("a", "text"))
            (tmp_path / "server").rename(tmp_path / "gone")
            (tmp_path / "gone" / "log").unlink()
            (tmp_path / "gone").rmdir()
            troubled.command("BGSAVE")
            await until(lambda: b"rdb_last_bgsave_status:err" in troubled.command("INFO", "persistence"))
            with pytest.raises(StoreUnavailable, match="cannot save to its disk"):
                await put(cache, make_document("a", "new", number=2))
            assert (await cache.get("a")) == make_document("a", "text")
        troubled.kill()  # it would not end before it has saved


async def test_more_calls_than_connections_on_a_stopped_server(tmp_path: Path) -> None:
    """Calls that wait for a connection do not wait for ever, and none of the places is lost."""
    with RedisServer(tmp_path) as stopped:
        async with open_redis_cache(stopped.url, prefix="p:", connections=2, timeout=0.2, connect_timeout=0.2) as cache:
            stopped.pause()
            problems: list[StoreUnavailable] = []

            async def ask() -> None:
                try:
                    await look(cache, "a")
                except StoreUnavailable as error:
                    problems.append(error)

            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(ask)
            assert 12 == len(problems)
            stopped.resume()
            async with trio.open_nursery() as nursery:
                for index in range(12):
                    nursery.start_soon(put, cache, make_document(f"{index}", "text"))
            assert 12 == await cache.count()


def certificates(directory: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", directory / "key.pem", "-out", directory / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    return directory / "cert.pem"


async def test_tls(tmp_path: Path) -> None:
    """Over TLS with the right authority it works; with another one, or without TLS, one line says why not."""
    from trio_repair import ContentDefinition
    from trio_repair.stores.redis import redis_cache_from_settings

    certificate = certificates(tmp_path)
    options = {"tls_cert_file": str(certificate), "tls_key_file": str(tmp_path / "key.pem"), "tls_auth_clients": "no"}
    with RedisServer(tmp_path / "server", **options) as secure:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        try:
            secure.command("CONFIG", "SET", "tls-port", str(port))
        except RuntimeError:
            assert os.environ.get("CI") != "true"
            pytest.skip("this redis-server was built without TLS")
        settings = {"url": f"rediss://127.0.0.1:{port}", "prefix": "p:", "tls_ca": certificate.name}
        opening: dict[str, Any] = {
            "name": "cache",
            "directory": tmp_path,
            "content": ContentDefinition(),
            "create": False,
        }
        async with redis_cache_from_settings(settings, **opening) as cache:
            await put(cache, make_document("a", "text"))
        async with refused(f"rediss://127.0.0.1:{port}") as lines:
            pass
        assert "shows a certificate that is not accepted" in lines[0]
        async with refused(secure.url.replace("redis:", "rediss:"), connect_timeout=1.0) as lines:
            pass
        assert "TLS" in lines[0] or "let anybody in" in lines[0]
        with pytest.raises(InvalidValue, match="tls_ca"):
            redis_cache_from_settings({**settings, "tls_ca": "key.pem"}, **opening)


async def test_tombstone_over_nothing(server: RedisServer) -> None:
    """Deleting what is not there lands, and leaves nothing."""
    async with open_redis_cache(server.url, prefix=fresh()) as cache:
        (answer,) = await write(cache, Document.tombstone("a", number=1))
        assert (LANDED, Presence.ABSENT) == (answer.status, answer.observation and answer.observation.presence)
