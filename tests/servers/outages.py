"""Faults that nobody means: servers that die, stop or run full, and networks that lose things.

Each is an `Inject` of `running`: it makes the fault happen while repairs run, and takes it back.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import psycopg.errors
import trio

from trio_repair.stores import _redis_scripts

from .ground import World, in_thread, some_writes
from .proxy import Strike

PAUSE = 1.2
"""Longer than a call may take."""
# With the end of the statement: "READ COMMITTED" stands in each BEGIN.
_WRITE_MARKS = {"postgres": b"COMMIT\0", "redis": _redis_scripts.HASH_SCRIPTS.write.sha}
_IGNORED: Any = trio.TASK_STATUS_IGNORED


# Servers that die or stop.


async def kill_postgres(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    task_status.started()
    await some_writes(world, "text", round_number)
    await trio.sleep(0.002 * round_number)
    world.pair.postgres.kill()
    world.injected += 1
    await trio.sleep(0.1)
    await in_thread(world.pair.postgres.start)


async def kill_redis(world: World, round_number: int, task_status: Any = _IGNORED) -> None:
    task_status.started()
    await some_writes(world, "cache", round_number)
    world.pair.redis.kill()
    world.injected += 1
    await trio.sleep(0.1)
    await in_thread(world.pair.redis.start)


async def pause(world: World, round_number: int, task_status: Any = _IGNORED, *, server: str) -> None:
    task_status.started()
    await some_writes(world, "cache" if server == "redis" else "vector", round_number)
    paused: Any = getattr(world.pair, server)
    paused.pause()
    world.injected += 1
    try:
        await trio.sleep(PAUSE)
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
    proxy.held_for = PAUSE
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
    await some_writes(world, "vector", round_number)
    world.sql(f"ALTER ROLE {world.name} CONNECTION LIMIT 3")
    world.end_connections()
    taken: list[psycopg.Connection[Any]] = []
    try:
        for _ in range(3):
            with contextlib.suppress(psycopg.OperationalError):  # the stores were faster, and are ended below
                taken.append(await in_thread(psycopg.connect, world.dsn()))
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
    await some_writes(world, "vector", round_number)
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
