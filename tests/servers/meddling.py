"""What others do to a server that is in use: lock rows, make it read-only, change passwords, migrate tables.

Each is an `Inject` of `running`: it happens while repairs run, lasts until the run is over, and is taken back.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import threading
import time
from typing import Any

import psycopg.errors
import trio

from .ground import OWN, World, in_thread, some_writes

_IGNORED: Any = trio.TASK_STATUS_IGNORED
_FOUND = "deadlock detected"
"""What the server's log says of it."""


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
    before = world.pair.postgres.log.count(_FOUND)
    over = threading.Event()
    holds = threading.Event()
    worker = functools.partial(_provoke, world, OWN[-1 - round_number % 2], holds, over)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, worker)
        await in_thread(holds.wait)
        task_status.started()
        await world.progress.over.wait()
        over.set()
    world.injected += world.pair.postgres.log.count(_FOUND) - before


def _provoke(world: World, last: str, holds: threading.Event, over: threading.Event) -> None:
    table = f"{world.vector}.documents"
    found = world.pair.postgres.log.count(_FOUND)
    with world.connect() as ours, world.connect() as watch:
        # Who finds the ring is ended: this one does not look for it.
        ours.execute("SET deadlock_timeout = '60s'; SET lock_timeout = '3s'")
        # Once more if what waited for us had nothing that we could wait for.
        while not over.is_set() and world.pair.postgres.log.count(_FOUND) == found:
            with contextlib.suppress(psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                ours.execute("BEGIN")
                ours.execute(f"SELECT 1 FROM {table} WHERE doc_id = %s FOR UPDATE", (last,))
                holds.set()
                waiting = "SELECT 1 FROM pg_stat_activity WHERE usename = %s AND wait_event_type = 'Lock'"
                while not over.is_set() and not watch.execute(waiting, (world.name,)).fetchone():
                    time.sleep(0.002)
                ours.execute(f"SELECT 1 FROM {table} WHERE doc_id < %s ORDER BY doc_id DESC FOR UPDATE", (last,))
            ours.execute("ROLLBACK")


# Servers that take no writes.


def _reload(world: World, setting: str) -> None:
    world.sql(f"ALTER SYSTEM {setting}", "SELECT pg_reload_conf()")


async def read_only_setting(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """An operator, or a provider whose disk runs full, makes the server read-only."""
    task_status.started()
    await some_writes(world, "text", round_number)
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
            while world.sql("SHOW default_transaction_read_only") != [("off",)]:  # noqa: ASYNC110 - the server has no way to tell us
                await trio.sleep(0.01)


async def standby(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """What listens there now is a standby, which follows nobody; later it is promoted."""
    task_status.started()
    await some_writes(world, "text", round_number)
    server = world.pair.postgres
    await in_thread(server.stop)
    signal = server.data / "standby.signal"
    signal.touch()
    shutil.chown(signal, server.data.owner())
    await in_thread(server.start)
    world.injected += 1
    try:
        await world.progress.over.wait()
    finally:
        with server.connect() as connection:
            connection.execute("SELECT pg_promote(true, 30)")


async def replica(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    """What listens there now is a read-only replica, whose primary is gone."""
    task_status.started()
    await some_writes(world, "cache", round_number)
    world.pair.redis.command("REPLICAOF", "127.0.0.1", "1")
    world.injected += 1
    try:
        await world.progress.over.wait()
    finally:
        world.pair.redis.command("REPLICAOF", "NO", "ONE")


# Passwords.


async def postgres_password(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    task_status.started()
    await some_writes(world, "vector", round_number)
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
    await some_writes(world, "cache", round_number)
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
    await some_writes(world, store, round_number)
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
    await some_writes(world, "vector", round_number)
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
