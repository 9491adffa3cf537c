"""The settings of the cache on Redis: each mistake is one line that names the key, and quotes no password."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis_support import SECRET, exceptions, fresh, server
from servers.redis_server import RedisServer
from store_calls import put

from trio_repair import ContentDefinition, InvalidValue
from trio_repair.stores._redis_errors import connecting, is_reply, meaning
from trio_repair.stores._redis_keys import Keys
from trio_repair.stores._redis_settings import endpoint
from trio_repair.stores.redis import open_redis_cache, redis_cache_from_settings
from trio_repair.testing import make_document

__all__ = ["server"]

URL = "redis://localhost"
KEY = {"url": URL, "key": "article:{id}"}


def opening(settings: dict[str, Any], content: ContentDefinition | None = None) -> Any:
    definition = ContentDefinition() if content is None else content
    return redis_cache_from_settings(settings, name="cache", directory=Path("/x"), content=definition, create=False)


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"prefix": "p"}, "url", "is missing"),
        ({"url": 5, "prefix": "p"}, "url", "must be a string"),
        ({"url": "http://localhost", "prefix": "p"}, "url", "must begin with redis://"),
        ({"url": "redis://", "prefix": "p"}, "url", "names no host"),
        ({"url": "redis://localhost:99999", "prefix": "p"}, "url", "host or port"),
        ({"url": "redis://localhost:x", "prefix": "p"}, "url", "host or port"),
        ({"url": "redis://localhost/a", "prefix": "p"}, "url", "number of a database"),
        ({"url": "redis://localhost/-1", "prefix": "p"}, "url", "number of a database"),
        ({"url": "redis://localhost?db=1", "prefix": "p"}, "url", "has a query"),
        ({"url": "redis://u:a#b@localhost", "prefix": "p"}, "url", "%23"),
        ({"url": "unix://localhost", "prefix": "p"}, "url", "whole path"),
        ({"url": URL}, "prefix", "is missing"),
        ({"url": URL, "prefix": ""}, "prefix", "not empty"),
        ({"url": URL, "prefix": "\ud800"}, "prefix", "lone surrogate"),
        ({"url": URL, "prefix": "p", "key": "a{id}"}, "prefix", "Give one of them"),
        ({"url": URL, "prefix": "p", "format": "json"}, "format", "for existing keys"),
        ({"url": URL, "prefix": "p", "text": "body"}, "text", "for existing keys"),
        ({"url": URL, "prefix": "p", "prefx": "q"}, "prefx", "is not a setting here"),
        ({"url": URL, "prefix": "p", "ttl": 0}, "ttl", "more than"),
        ({"url": URL, "prefix": "p", "ttl": "1h"}, "ttl", "number of seconds"),
        ({"url": URL, "prefix": "p", "timeout": 0}, "timeout", "more than"),
        ({"url": URL, "prefix": "p", "connect_timeout": True}, "connect_timeout", "number of seconds"),
        ({"url": URL, "prefix": "p", "connections": 0}, "connections", "from 1 to 128"),
        ({"url": URL, "prefix": "p", "connections": 2.0}, "connections", "from 1 to 128"),
        ({"url": URL, "prefix": "p", "password": ""}, "password", "not empty"),
        ({"url": URL, "prefix": "p", "username": 3}, "username", "must be a string"),
        ({"url": f"redis://:{SECRET}@localhost", "prefix": "p", "password": SECRET}, "password", "given twice"),
        ({"url": URL, "prefix": "p", "tls_ca": "gone.pem"}, "tls_ca", "cannot be read"),
        ({"url": URL, "prefix": "p", "tls_key": "key.pem"}, "tls_certificate", "is missing"),
        ({"url": URL, "prefix": "p", "tls_ca": 1}, "tls_ca", "must be a string"),
        ({"url": URL, "key": "article", "format": "json"}, "key", "must hold {id} once"),
        ({"url": URL, "key": "{id}{id}", "format": "json"}, "key", "must hold {id} once"),
        ({"url": URL, "key": 5, "format": "json"}, "key", "must be a string"),
        (KEY, "format", "is missing"),
        ({**KEY, "format": "xml"}, "format", "'xml'"),
        ({**KEY, "format": "json", "id_pattern": "("}, "id_pattern", "no regular expression"),
        ({**KEY, "format": "json", "id_pattern": 1}, "id_pattern", "must be a string"),
        ({**KEY, "format": "string", "version": "v"}, "version", "is the text alone"),
        ({**KEY, "format": "json", "version": ""}, "version", "name of a field"),
        ({**KEY, "format": "json", "version": "text"}, "version", "same field as text"),
        ({**KEY, "format": "hash", "digest": "d", "text": "d"}, "text", "same field as digest"),
        ({**KEY, "format": "json", "write_digest": True}, "digest", "is missing"),
        ({**KEY, "format": "json", "write_digest": "yes"}, "write_digest", "true or false"),
    ],
)
def test_mistakes(settings: dict[str, Any], key: str, words: str) -> None:
    """Refused before anything is connected, with the key named."""
    with pytest.raises(InvalidValue) as caught:
        opening(settings)
    assert key == caught.value.field
    assert words in caught.value.problem
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("form", "key"), [("string", "format"), ("json", "metadata"), ("hash", "metadata")])
def test_metadata_needs_a_place(form: str, key: str) -> None:
    """Where metadata is part of the content, a mapping without a place for it is refused."""
    with pytest.raises(InvalidValue) as caught:
        opening({**KEY, "format": form}, ContentDefinition(metadata_keys=("title",)))
    assert key == caught.value.field


def test_endpoints() -> None:
    """What a URL says, and what it leaves out."""
    one = endpoint("redis://us%40er:p%23w@host:7000/3")
    assert ("host", 7000, 3, "us@er", "p#w") == (one.host, one.port, one.db, one.username, one.password)
    assert "p#w" not in repr(one)
    assert ("host", 6379, 0, None) == ((two := endpoint("redis://host")).host, two.port, two.db, two.tls)
    assert endpoint("rediss://host").tls is not None
    three = endpoint("unix:///run/my%20redis.sock?db=2", password="x")
    assert ("/run/my redis.sock", 2, "x", "/run/my redis.sock") == (three.path, three.db, three.password, three.where)
    assert "[::1]:6379" == endpoint("redis://[::1]").where


@pytest.mark.parametrize("settings", [{"prefix": "p:"}, {"key": "a{id}", "format": "string", "id_pattern": "x+"}])
def test_good_settings(settings: dict[str, Any]) -> None:
    """All of it, in the types of a configuration file."""
    common = {
        "url": URL,
        "username": "u",
        "password": "p",
        "ttl": 60,
        "connections": 2,
        "timeout": 1,
        "connect_timeout": 1,
    }
    opening({**common, **settings})


async def test_unix_socket(tmp_path: Path) -> None:
    """A socket in the file system is as good as a port; so is another database than the first."""
    with RedisServer(tmp_path, unixsocket=str(tmp_path / "s")):
        async with open_redis_cache(f"unix://{tmp_path / 's'}?db=3", prefix="p:") as cache:
            await put(cache, make_document("a", "text"))
            assert 1 == await cache.count()
        async with open_redis_cache(f"unix://{tmp_path / 's'}", prefix="p:") as cache:
            assert 0 == await cache.count()


def test_keys() -> None:
    """A key and its id belong together, whatever stands around; what is no id of the model is no document."""
    keys = Keys.of_pattern("a[1]*:{id}:?", None)
    assert rb"a\[1\]\*:*:\?" == keys.glob
    for doc_id in ("x", ":", "é", "*"):
        assert doc_id == keys.doc_id(keys.key(doc_id))
    for key in (b"a[1]*::?", b"a[1]*:\xff:?", b"a[1]*:x", b"x", b"a[1]*:" + b"k" * 2049 + b":?", b"a[1]*:a\0b:?"):
        assert keys.doc_id(key) is None
    assert Keys.of_pattern("aa{id}aa", None).doc_id(b"aaa") is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "still loads its data"),
        (exceptions.ResponseError("OOM command not allowed when used memory > 'maxmemory'."), "out of memory"),
        (exceptions.ResponseError("Error running script (call to f): @user_script:1: -OOM command"), "out of memory"),
        (exceptions.ResponseError("MISCONF Redis is configured to save"), "cannot save"),
        (exceptions.ResponseError("MASTERDOWN Link with MASTER is down"), "lost its primary"),
        (exceptions.ResponseError("NOREPLICAS Not enough good replicas"), "too few replicas"),
        (exceptions.ResponseError("BUSY Redis is busy running a script"), "busy with a script"),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), "read-only replica"),
        (exceptions.MovedError("3999 127.0.0.1:6381"), "part of a cluster"),
        (exceptions.AuthorizationError("this user has no permissions"), "does not let this user"),
        (exceptions.AuthenticationRequiredError("HELLO must be called with"), "wants a password"),
        (exceptions.AuthenticationFailureError("invalid username-password pair"), "does not accept"),
        (exceptions.UnknownCommandError("unknown command 'HELLO'"), "Redis 6.0 or newer"),
        (exceptions.ResponseError("DB index is out of range"), "no database of this number"),
        (exceptions.ResponseError("something new that quotes a text"), "refused a command (ResponseError)"),
    ],
)
def test_meanings(error: Exception, words: str) -> None:
    """Each error of a server has a sentence, which quotes nothing of it."""
    assert is_reply(error)
    assert words in meaning(error)
    assert words in connecting(error)
    assert "quotes" not in meaning(error)


def test_a_lost_connection_is_no_reply() -> None:
    """Only what the server said tells that nothing was done."""
    assert not is_reply(exceptions.ConnectionError("Connection lost!"))
    assert not is_reply(TimeoutError())


def test_command_line(server: RedisServer, tmp_path: Path) -> None:
    """The installed command opens the kind by its name; a mistake is one line with the place, a password is not told."""
    configuration = tmp_path / "trio-repair.toml"
    environment = {**os.environ, "CACHE_PASSWORD": SECRET, "PYTHONPATH": str(Path(__file__).parents[2])}

    def run(settings: str) -> subprocess.CompletedProcess[str]:
        configuration.write_text(
            '[stores.text]\nkind = "sqlite-text"\npath = "text.db"\n'
            '[stores.vector]\nkind = "sqlite-vector"\npath = "vector.db"\n'
            f'[stores.cache]\nkind = "redis-cache"\n{settings}\n'
        )
        command = [sys.executable, "-m", "trio_repair", "check", "--config", str(configuration)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60
        )

    script = (
        "import sys, trio\n"
        "from trio_repair.stores.sqlite_text import open_sqlite_text\n"
        "from trio_repair.stores.sqlite_vector import open_sqlite_vector\n"
        "from trio_repair.embedding import HashingEmbedder, WindowChunker\n"
        "async def main():\n"
        "    async with open_sqlite_text('text.db', create=True): pass\n"
        "    async with open_sqlite_vector('vector.db', embedder=HashingEmbedder(), chunker=WindowChunker(), create=True): pass\n"
        "trio.run(main)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)
    good = run(f'url = "{server.url}"\nprefix = "{fresh()}"')
    assert 0 == good.returncode, good.stderr
    bad = run(f'url = "{server.url}"\nprefix = "p:"\nttl = "soon"')
    assert 2 == bad.returncode
    assert "stores.cache.ttl" in bad.stderr
    assert "Traceback" not in bad.stderr
    with RedisServer(tmp_path / "guarded", requirepass="another") as guarded:
        wrong = run(f'url = "{guarded.url}"\nprefix = "p:"\npassword = {{ env = "CACHE_PASSWORD" }}')
    assert 0 != wrong.returncode
    assert "Traceback" not in wrong.stderr + wrong.stdout
    assert SECRET not in wrong.stderr + wrong.stdout
    assert f"127.0.0.1:{guarded.port} does not accept this username and password" in wrong.stderr
