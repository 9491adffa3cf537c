"""The faults: each happens to a real server, or on the way to it, while repairs run, and is taken back.

Those that last, last until the run is over: then the repairs must end without the server.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import psycopg.errors
import trio

from trio_repair import EventKind
from trio_repair.stores import _redis_scripts

from .ground import OWN, World
from .proxy import Strike
from .running import Fault

POSTGRES = frozenset({"text", "vector"})
REDIS = frozenset({"cache"})
_SHORT = {"store_call_timeout": 0.5}
_PAUSE = 1.2
"""Longer than a call may take."""
# With the end of the statement: "READ COMMITTED" stands in each BEGIN.
_WRITE_MARKS = {"postgres": b"COMMIT\0", "redis": _redis_scripts.HASH_SCRIPTS.write.sha}
_IGNORED: Any = trio.TASK_STATUS_IGNORED


async def _in_thread(fn: Callable[..., Any], *args: Any) -> Any:
    return await trio.to_thread.run_sync(fn, *args)


async def _some_writes(world: World, store: str, round_number: int) -> None:
    """The moment at which a fault strikes: another one in each round."""
    # Few documents are written to the text store.
    later = 1 if store == "text" else 3
    await world.progress.until(EventKind.WRITE_SENT, store, 1 + later * (round_number % 5))


# Servers that die or stop.


async def kill_postgres(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    task_status.started()
    await _some_writes(world, "text", round_number)
    await trio.sleep(0.002 * round_number)
    world.pair.postgres.kill()
    world.injected += 1
    await trio.sleep(0.1)
    await _in_thread(world.pair.postgres.start)


async def kill_redis(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    task_status.started()
    await _some_writes(world, "cache", round_number)
    world.pair.redis.kill()
    world.injected += 1
    await trio.sleep(0.1)
    await _in_thread(world.pair.redis.start)


async def pause(world: World, round_number: int, task_status: Any = _IGNORED, *, server: str) -> None:
    task_status.started()
    await _some_writes(world, "cache" if server == "redis" else "vector", round_number)
    paused: Any = getattr(world.pair, server)
    paused.pause()
    world.injected += 1
    try:
        await trio.sleep(_PAUSE)
    finally:
        paused.resume()


# The way to a server.


async def strike(
    world: World,
    round_number: int,
    task_status: Any = _IGNORED,
    *,
    server: str,
    how: Strike,
    lasts: float | None = 0.0,
    times: int = 1,
) -> None:
    """At the nth write. `lasts`: seconds until the network is whole again; None: until the run is over."""
    proxy = world.proxies[server]
    proxy.held_for = _PAUSE
    proxy.on(how, _WRITE_MARKS[server], nth=1 + round_number % 4, times=times)
    task_status.started()
    with trio.move_on_after(30):
        while proxy.struck < times and not world.progress.over.is_set():  # noqa: ASYNC110 - told by the proxy
            await trio.sleep(0.005)
    if lasts is None:
        await world.progress.over.wait()
    else:
        await trio.sleep(lasts)
    proxy.heal()
    world.injected += proxy.struck


# Limits.


async def no_connection_left(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """Somebody else takes all the connections that the stores' role may have."""
    task_status.started()
    await _some_writes(world, "vector", round_number)
    world.sql(f"ALTER ROLE {world.name} CONNECTION LIMIT 3")
    world.end_connections()
    taken: list[psycopg.Connection[Any]] = []
    try:
        for _ in range(3):
            with contextlib.suppress(psycopg.OperationalError):  # the stores were faster, and are ended below
                taken.append(await _in_thread(psycopg.connect, world.dsn()))
        own = ", ".join(str(one.info.backend_pid) for one in taken)
        world.sql(
            f"ALTER ROLE {world.name} CONNECTION LIMIT {len(taken)}",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{world.name}' AND pid NOT IN ({own})",
        )
        world.injected += 1
        await world.progress.over.wait()
    finally:
        for one in taken:
            one.close()
        world.sql(f"ALTER ROLE {world.name} CONNECTION LIMIT -1")


class NotPossibleHere(Exception):
    """This machine, or this user, cannot make the fault happen."""


@contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of 24 MB, in memory. Only root may mount one."""
    directory = Path(tempfile.mkdtemp(prefix="trio-repair-disk-"))
    try:
        if os.geteuid() != 0 or shutil.which("mount") is None:
            raise NotPossibleHere("a small file system can be mounted by root only")
        mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0777", "trio-repair", str(directory)]
        done = subprocess.run(mount, check=False, capture_output=True, text=True)
        if done.returncode:
            raise NotPossibleHere(f"no file system can be mounted here: {done.stderr.strip()}")
        try:
            yield directory
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
    finally:
        directory.rmdir()


_NO_SPACE = "No space left on device"


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


async def disk_full(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """The tables are moved to a small file system, which somebody else fills."""
    with small_disk() as directory:
        space = f"{world.name}_space"
        place = directory / "space"
        place.mkdir(mode=0o777)
        place.chmod(0o777)
        shutil.chown(place, "nobody")
        tables = [f"{world.text}.documents", f"{world.vector}.documents", f"{world.vector}.chunks"]
        world.sql(
            f"CREATE TABLESPACE {space} LOCATION '{place}'",
            *(f"ALTER TABLE {table} SET TABLESPACE {space}" for table in tables),
            f"ALTER INDEX {world.vector}.chunks_pkey SET TABLESPACE {space}",
        )
        ballast = directory / "ballast"
        _fill(ballast)
        # And every page that is there already, with rows smaller than ours.
        for table, values in ((tables[0], "text) VALUES (%s, '')"), (tables[1], "deleted) VALUES (%s, true)")):
            with world.connect() as connection, contextlib.suppress(psycopg.errors.DiskFull):
                for number in range(1000):
                    connection.execute(f"INSERT INTO {table} (doc_id, {values}", (f"z{number}",))
        before = world.pair.postgres.log.count(_NO_SPACE)
        task_status.started()
        try:
            await world.progress.over.wait()
            world.injected += world.pair.postgres.log.count(_NO_SPACE) - before
        finally:
            ballast.unlink()
            world.sql(
                *(f"DELETE FROM {table} WHERE doc_id LIKE 'z%'" for table in tables[:2]),
                *(f"ALTER TABLE {table} SET TABLESPACE pg_default" for table in tables),
                f"ALTER INDEX {world.vector}.chunks_pkey SET TABLESPACE pg_default",
                f"DROP TABLESPACE {space}",
            )


async def redis_evicts(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """Somebody else fills the cache's server, which makes room."""
    redis = world.pair.redis
    for number in range(300):
        redis.command("SET", f"{world.name} filler {number}", "x" * 1000)
    used = int(_figure(redis.command("INFO", "memory"), "used_memory"))
    evicted = int(_figure(redis.command("INFO", "stats"), "evicted_keys"))
    redis.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    redis.command("CONFIG", "SET", "maxmemory", str(used - 50_000))
    task_status.started()
    try:
        await world.progress.over.wait()
    finally:
        world.injected += int(_figure(redis.command("INFO", "stats"), "evicted_keys")) - evicted
        redis.command("CONFIG", "SET", "maxmemory", "0")
        redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")


async def redis_out_of_memory(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """It evicts nothing and takes nothing."""
    task_status.started()
    await _some_writes(world, "vector", round_number)
    world.pair.redis.command("CONFIG", "SET", "maxmemory", "1")
    world.injected += 1
    try:
        await world.progress.over.wait()
    finally:
        world.pair.redis.command("CONFIG", "SET", "maxmemory", "0")


def _figure(said: bytes, name: str) -> str:
    found = re.search(rf"^{name}:(\S+)", said.decode(), re.MULTILINE)
    assert found is not None
    return found[1]


# Other transactions.


async def row_locked(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """Another transaction holds two rows of the vector store for the whole run."""
    locked = OWN[round_number % 3], OWN[6 + round_number % 3]
    with world.connect() as connection:
        connection.execute("BEGIN")
        table = f"{world.vector}.documents"
        connection.execute(f"SELECT 1 FROM {table} WHERE doc_id = ANY(%s) FOR UPDATE", (list(locked),))
        world.injected += len(locked)
        task_status.started()
        try:
            await world.progress.over.wait()
        finally:
            connection.execute("ROLLBACK")


async def deadlock(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """Another transaction has what we wait for, and asks for what we have; the server ends ours."""
    before = world.pair.postgres.log.count("deadlock detected")
    over = threading.Event()
    holds = threading.Event()
    worker = functools.partial(_provoke, world, OWN[-1 - round_number % 2], holds, over)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_in_thread, worker)
        await _in_thread(holds.wait)
        task_status.started()
        await world.progress.over.wait()
        over.set()
    world.injected += world.pair.postgres.log.count("deadlock detected") - before


def _provoke(world: World, last: str, holds: threading.Event, over: threading.Event) -> None:
    table = f"{world.vector}.documents"
    with world.connect() as ours, world.connect() as watch:
        # Who finds the ring is ended: this one does not look for it.
        ours.execute("SET deadlock_timeout = '60s'; SET lock_timeout = '3s'")
        ours.execute("BEGIN")
        ours.execute(f"SELECT 1 FROM {table} WHERE doc_id = %s FOR UPDATE", (last,))
        holds.set()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE usename = %s AND wait_event_type = 'Lock'"
        while not over.is_set() and not watch.execute(waiting, (world.name,)).fetchone():
            time.sleep(0.002)
        with contextlib.suppress(psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            ours.execute(f"SELECT 1 FROM {table} WHERE doc_id < %s ORDER BY doc_id DESC FOR UPDATE", (last,))
        ours.execute("ROLLBACK")


# Servers that take no writes.


def _reload(world: World, setting: str) -> None:
    world.sql(f"ALTER SYSTEM {setting}", "SELECT pg_reload_conf()")


async def read_only_setting(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """An operator, or a provider whose disk runs full, makes the server read-only."""
    task_status.started()
    await _some_writes(world, "text", round_number)
    _reload(world, "SET default_transaction_read_only = on")
    world.injected += 1
    try:
        await world.progress.over.wait()
    finally:
        with world.connect() as connection:  # ALTER SYSTEM is refused in a read-only transaction only
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")
        with trio.fail_after(10):
            while world.sql("SHOW default_transaction_read_only") != [("off",)]:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def standby(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """What listens there now is a standby, which follows nobody; later it is promoted."""
    task_status.started()
    await _some_writes(world, "text", round_number)
    server = world.pair.postgres
    await _in_thread(server.stop)
    signal = server.data / "standby.signal"
    signal.touch()
    shutil.chown(signal, server.data.owner())
    await _in_thread(server.start)
    world.injected += 1
    try:
        await world.progress.over.wait()
    finally:
        with server.connect() as connection:
            connection.execute("SELECT pg_promote(true, 30)")


async def replica(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """What listens there now is a read-only replica, whose primary is gone."""
    task_status.started()
    await _some_writes(world, "cache", round_number)
    world.pair.redis.command("REPLICAOF", "127.0.0.1", "1")
    world.injected += 1
    try:
        await world.progress.over.wait()
    finally:
        world.pair.redis.command("REPLICAOF", "NO", "ONE")


# Passwords.


async def postgres_password(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    task_status.started()
    await _some_writes(world, "vector", round_number)
    (kept,) = world.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{world.name}'")
    world.sql(f"ALTER ROLE {world.name} PASSWORD 'changed under us'")
    world.end_connections()
    world.injected += 1
    try:
        await world.progress.over.wait()
    finally:
        world.sql(f"ALTER ROLE {world.name} PASSWORD '{kept[0]}'")


async def redis_password(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    task_status.started()
    await _some_writes(world, "cache", round_number)
    redis = world.pair.redis
    listed = redis.command("ACL", "GETUSER", world.name).decode()
    (kept,) = re.findall(r"^([0-9a-f]{64})$", listed, re.MULTILINE)
    redis.command("ACL", "SETUSER", world.name, "resetpass", ">changed")
    redis.command("CLIENT", "KILL", "USER", world.name)
    world.injected += 1
    try:
        await world.progress.over.wait()
    finally:
        redis.command("ACL", "SETUSER", world.name, "resetpass", f"#{kept}")


# The schema.


async def alter(
    world: World, round_number: int, task_status: Any = _IGNORED, *, store: str, change: str, back: str
) -> None:
    """Somebody migrates a table of the store, and takes it back."""
    task_status.started()
    await _some_writes(world, store, round_number)
    table = f"ALTER TABLE {world.text if store == 'text' else world.vector}.documents"
    world.sql(f"{table} {change}")
    world.injected += 1
    try:
        await world.progress.over.wait()
    finally:
        world.sql(f"{table} {back}")


async def table_dropped(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """The vector store's tables are dropped; later they are made anew, empty. What they held is kept, to be judged by."""
    task_status.started()
    await _some_writes(world, "vector", round_number)
    tables = [f"{world.vector}.{name}" for name in ("documents", "chunks")]
    keep = f"{world.name}_kept"
    with world.connect() as connection, connection.transaction():
        connection.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
        connection.execute(f"CREATE SCHEMA {keep}")
        for table in tables:
            connection.execute(f"CREATE TABLE {keep}.{table.rpartition('.')[2]} AS TABLE {table}")
        connection.execute(f"DROP TABLE {', '.join(tables)} CASCADE")
    world.injected += 1
    world.kept = keep
    try:
        await world.progress.over.wait()
    finally:
        world.sql(f"DROP SCHEMA {world.vector} CASCADE")
        async with world.open_vector():
            pass


def _on_the_way(server: str, name: str) -> list[Fault]:
    unknown = POSTGRES if server == "postgres" else REDIS
    given: dict[str, Any] = {"proxied": frozenset({server}), "unknown": unknown}
    short = {**given, "config": _SHORT}
    at = functools.partial
    return [
        Fault(name=f"{name}: connection cut", inject=at(strike, server=server, how=Strike.CUT, times=3), **given),
        Fault(name=f"{name}: answer lost", inject=at(strike, server=server, how=Strike.LOSE_ANSWER, times=3), **given),
        Fault(
            name=f"{name}: answer lost, then unreachable",
            inject=at(strike, server=server, how=Strike.LOSE_ALL, lasts=None),
            **given,
        ),
        Fault(name=f"{name}: network delays a write", inject=at(strike, server=server, how=Strike.DELAY), **short),
        Fault(
            name=f"{name}: network swallows all",
            inject=at(strike, server=server, how=Strike.BLACK_HOLE, lasts=_PAUSE),
            **short,
        ),
    ]


FAULTS = [
    Fault(name="PostgreSQL: killed, restarted", inject=kill_postgres, unknown=POSTGRES),
    Fault(name="Redis: killed, restarted", inject=kill_redis, unknown=REDIS),
    Fault(
        name="PostgreSQL: stopped for a while",
        inject=functools.partial(pause, server="postgres"),
        unknown=POSTGRES,
        config=_SHORT,
    ),
    Fault(
        name="Redis: stopped for a while", inject=functools.partial(pause, server="redis"), unknown=REDIS, config=_SHORT
    ),
    *_on_the_way("postgres", "PostgreSQL"),
    *_on_the_way("redis", "Redis"),
    Fault(
        name="PostgreSQL: no connection left",
        inject=no_connection_left,
        unknown=POSTGRES,
        says="has no connection left",
    ),
    Fault(name="PostgreSQL: disk full", inject=disk_full, says="the server's disk is full"),
    Fault(name="PostgreSQL: rows locked", inject=row_locked, says="held a lock for longer than lock_timeout"),
    Fault(
        name="PostgreSQL: deadlock",
        inject=deadlock,
        role={"deadlock_timeout": "100ms"},
        limits={"lock_timeout": 2.0},
        config={"max_concurrent_jobs": 32},
    ),
    Fault(name="PostgreSQL: made read-only", inject=read_only_setting, says="read-only"),
    Fault(
        name="PostgreSQL: became a standby",
        inject=standby,
        unknown=POSTGRES,
        says="read-only",
    ),
    Fault(name="Redis: became a read-only replica", inject=replica, says="read-only replica"),
    Fault(name="Redis: evicts entries", inject=redis_evicts, evicts=True),
    Fault(name="Redis: out of memory", inject=redis_out_of_memory, says="out of memory"),
    Fault(
        name="PostgreSQL: password changed",
        inject=postgres_password,
        unknown=POSTGRES,
        says="the user or the password is wrong",
    ),
    Fault(
        name="Redis: password changed",
        inject=redis_password,
        unknown=REDIS,
        redis_user=True,
        says="does not accept this username and password",
    ),
    Fault(
        name="PostgreSQL: column renamed",
        inject=functools.partial(
            alter, store="text", change="RENAME COLUMN text TO body", back="RENAME COLUMN body TO text"
        ),
        says="a column of the store is gone",
    ),
    Fault(
        name="PostgreSQL: column dropped",
        inject=functools.partial(
            alter, store="vector", change="DROP COLUMN updated_at", back="ADD COLUMN updated_at timestamptz"
        ),
        says="a column of the store is gone",
    ),
    Fault(
        name="PostgreSQL: table dropped", inject=table_dropped, loses_tables=True, says="a table of the store is gone"
    ),
]
