"""What faults happen to: an engine's three stores on two servers, an application that writes, and direct readings."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import psycopg
import psycopg.conninfo
import trio
from crash.held import ABSENT, NAMES, Held, Holdings, sha256
from crash.scenarios import Copy, put

from trio_repair import EngineEvent, EventKind
from trio_repair.embedding import HashingEmbedder, WindowChunker, rebuild_text
from trio_repair.stores.pgvector import open_pgvector
from trio_repair.stores.postgres_text import open_postgres_text
from trio_repair.stores.redis import open_redis_cache

from .postgres_server import PostgresServer
from .proxy import Proxy, open_proxy
from .redis_server import RedisServer

PASSWORD = "the stores' own"
PATIENCE = 15.0
OWN = [f"d{number:02}" for number in range(24)]
"""Documents that nobody writes but the engine: of these, receipts can be judged to the letter."""
SHARED = [f"m{number}" for number in range(6)]
"""Documents that the application writes meanwhile."""
_numbers = itertools.count()


class NeverStruck(Exception):
    """The run was over before its fault came: nothing was tested."""


@attrs.frozen
class Pair:
    """Both servers, as they are in use: what they acknowledge is on the disk."""

    postgres: PostgresServer
    redis: RedisServer
    database: str


@contextmanager
def open_pair(directory: Path) -> Iterator[Pair]:
    """Start both servers, and stop them."""
    with (
        PostgresServer(fsync=True) as postgres,
        RedisServer(directory, appendonly="yes", appendfsync="always") as redis,
    ):
        yield Pair(postgres, redis, postgres.new_database())


class Progress:
    """An instrument with which a fault waits for its moment."""

    def __init__(self) -> None:
        self._waiting: list[list[Any]] = []
        self.over = trio.Event()
        """The run has ended."""

    def on_event(self, event: EngineEvent) -> None:
        for one in self._waiting:
            kind, store, _, reached = one
            if event.kind is kind and event.store == store:
                one[2] -= 1
                if one[2] <= 0:
                    reached.set()

    async def until(self, kind: EventKind, store: str | None, times: int = 1) -> None:
        """Wait until something has happened so often from now on."""
        reached = trio.Event()
        one = [kind, store, times, reached]
        self._waiting.append(one)

        async def give_up() -> None:
            await self.over.wait()
            if not reached.is_set():
                raise NeverStruck(f"{kind.value} of {store} did not come {times} times")

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(give_up)
                await reached.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._waiting.remove(one)


class Application:
    """Writes its documents in the text table, again and again, and remembers what was acknowledged."""

    def __init__(self, connect: Any, table: str) -> None:
        self._connect = connect
        self._statement = (
            f"WITH held AS (SELECT doc_id, number FROM {table} WHERE doc_id = %s FOR UPDATE)"
            f" UPDATE {table} AS d SET text = %s, number = %s FROM held WHERE d.doc_id = held.doc_id RETURNING held.number"
        )
        self._displaced: list[str] = []
        self.acknowledged: dict[str, tuple[int, str]] = {}
        """The number and the text of the last write of each document to which the server said yes."""
        self.writes = 0
        self.stopped = False

    async def run(self) -> None:
        """Write until it is stopped. **If cancelled:** it ends all the same, a moment later."""
        await trio.to_thread.run_sync(self._work, abandon_on_cancel=True)

    def _work(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        for number in itertools.count(10):
            for doc_id in SHARED:
                if self.stopped:
                    break
                text = f"{doc_id} as the application has it in version {number}, {'word ' * 20}"
                try:
                    if connection is None:
                        connection = self._connect(connect_timeout=2, options="-c statement_timeout=1000")
                    done = connection.execute(self._statement, (doc_id, text, number)).fetchone()
                except psycopg.Error:
                    if connection is not None:
                        connection.close()
                    connection = None
                    time.sleep(0.02)
                else:
                    if done is not None:
                        self._compare(doc_id, done[0])
                        self.acknowledged[doc_id] = number, text
                        self.writes += 1
                time.sleep(0.003)
            if self.stopped:
                break
        if connection is not None:
            connection.close()

    def _compare(self, doc_id: str, number: int) -> None:
        mine, _ = self.acknowledged.get(doc_id, (0, ""))
        if number < mine:
            self._displaced.append(
                f"{doc_id}: version {mine} was acknowledged to the application; then held was {number}"
            )

    def lost(self, held: Mapping[str, Holdings]) -> list[str]:
        """Which acknowledged writes are neither there nor displaced by a later one of the application."""
        found = list(self._displaced)
        for doc_id, (number, text) in self.acknowledged.items():
            now = held[doc_id]["text"]
            same = now.number == number and now.digest == sha256(text)
            # A later write may have landed without an answer.
            if not now.copies or not (same or (now.number or 0) > number):
                found.append(f"{doc_id}: version {number} was acknowledged to the application; held is {now}")
        return found


@attrs.define(eq=False)
class World:
    """The stores of one scenario: a role and schemas of their own on the servers that scenarios share."""

    pair: Pair
    name: str
    proxies: Mapping[str, Proxy]
    """By server, "postgres" or "redis", where there is one."""
    progress: Progress = attrs.field(factory=Progress)
    stores: dict[str, Any] = attrs.field(factory=dict)
    injected: int = 0
    """How often the fault has struck."""
    kept: str = ""
    """The schema that holds what the vector store held when its tables were dropped; "": they were not."""

    @property
    def text(self) -> str:
        """The schema of the text store."""
        return f"{self.name}_text"

    @property
    def vector(self) -> str:
        """The schema of the vector store."""
        return f"{self.name}_vector"

    @property
    def prefix(self) -> str:
        """What the keys of the cache begin with."""
        return f"{self.name}:"

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A superuser's connection that leads directly to the server."""
        return self.pair.postgres.connect(self.pair.database, **options)

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """What an operator types; the rows of the last statement."""
        rows: list[tuple[Any, ...]] = []
        with self.connect(connect_timeout=5) as connection:
            for statement in statements:
                done = connection.execute(statement)
                rows = done.fetchall() if done.description else []
        return rows

    def end_connections(self) -> None:
        """The server ends the stores' connections."""
        self.sql(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{self.name}'")

    def dsn(self) -> str:
        """The stores' way to PostgreSQL."""
        proxy = self.proxies.get("postgres")
        return psycopg.conninfo.make_conninfo(
            host="127.0.0.1",
            port=self.pair.postgres.port if proxy is None else proxy.port,
            user=self.name,
            password=PASSWORD,
            dbname=self.pair.database,
            connect_timeout=2,
        )

    def open_vector(self, *, create: bool = True, **options: Any) -> Any:
        """The vector store, and its tables."""
        return open_pgvector(
            self.dsn(),
            schema=self.vector,
            create=create,
            embedder=HashingEmbedder(16),
            chunker=WindowChunker(200, 20),
            **options,
        )

    async def settle(self) -> None:
        """Wait until no call is under way on the servers, whoever still waits for it."""
        with trio.fail_after(PATIENCE):
            for proxy in self.proxies.values():
                while not proxy.is_quiet:  # noqa: ASYNC110 - the proxy tells nobody
                    await trio.sleep(0.01)
            at_work = f"SELECT 1 FROM pg_stat_activity WHERE usename = '{self.name}' AND state <> 'idle'"
            while self.sql(at_work):  # noqa: ASYNC110 - the server has no way to tell us
                await trio.sleep(0.01)
            for _ in range(3):  # whatever lay in its sockets when it went on is read before
                self.pair.redis.command("PING")

    def held(self) -> dict[str, Holdings]:
        """What each document is in each store, read directly."""
        stores = {"text": self._text(), "vector": self._vector(), "cache": self._cache()}
        return {doc_id: {name: stores[name].get(doc_id, ABSENT) for name in NAMES} for doc_id in [*OWN, *SHARED]}

    def _text(self) -> dict[str, Held]:
        found: dict[str, Held] = {}
        rows = self.sql(f"SELECT doc_id, number, digest, deleted, rev, text FROM {self.text}.documents")
        for doc_id, number, digest, deleted, rev, text in rows:
            proven = None if text is None else sha256(text)
            found[doc_id] = Held(
                copies=int(not deleted and digest == proven),
                present=True,
                deleted=deleted,
                number=number,
                digest="" if deleted else proven,
                stamp=str(rev),
            )
        return found

    def _vector(self) -> dict[str, Held]:
        prefix = f"{self.kept or self.vector}."
        chunks: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for doc_id, start, text in self.sql(f"SELECT doc_id, start, text FROM {prefix}chunks ORDER BY doc_id, ordinal"):
            chunks[doc_id].append((start, text))
        found: dict[str, Held] = {}
        rows = self.sql(f"SELECT doc_id, number, digest, deleted, rev, chunk_count, proven FROM {prefix}documents")
        for doc_id, number, digest, deleted, rev, count, proven in rows:
            own = chunks.pop(doc_id, [])
            text = rebuild_text(own) if own else None
            whole = proven and len(own) == count and text is not None and sha256(text) == digest
            found[doc_id] = Held(
                copies=int(not deleted and whole),
                present=True,
                deleted=deleted,
                number=number,
                digest=digest,
                stamp=str(rev),
                problems=(f"{len(own)} chunks of a deleted document",) if deleted and own else (),
            )
        assert not chunks, f"chunks of no document: {sorted(chunks)}"
        return found

    def _cache(self) -> dict[str, Held]:
        found: dict[str, Held] = {}
        for doc_id in [*OWN, *SHARED]:
            said = self.pair.redis.command("HMGET", self.prefix + doc_id, "number", "digest", "seal", "text")
            number, digest, seal, text = said.decode().split("\n")
            if seal:
                whole = int(digest == sha256(text))
                found[doc_id] = Held(copies=whole, present=True, number=int(number), digest=digest, stamp=seal)
        return found


def goal(doc_id: str) -> Copy:
    """What a document of the engine's is to be in the end, by MOST_RECENT."""
    kind = int(doc_id[1:]) % 6
    return Copy(3) if kind == 4 else Copy(3, "newest") if kind == 3 else Copy(2, "new")


async def in_thread(fn: Callable[..., Any], *args: Any) -> Any:
    """Run what blocks. **If cancelled:** it is waited for."""
    return await trio.to_thread.run_sync(fn, *args)


async def some_writes(world: World, store: str, round_number: int) -> None:
    """Wait for the moment at which a fault strikes: another one in each round."""
    # Few documents are written to the text store.
    later = 1 if store == "text" else 3
    await world.progress.until(EventKind.WRITE_SENT, store, 1 + later * (round_number % 5))


async def _drift(world: World) -> None:
    """Most documents newer in the text store, some in the vector store, some deleted, some damaged."""
    wanted: dict[str, dict[str, Copy]] = {name: {} for name in NAMES}
    for doc_id in OWN:
        kind = int(doc_id[1:]) % 6
        old, new = Copy(1, "old"), Copy(2, "new")
        copies = {3: (new, Copy(3, "newest"), new), 4: (Copy(3), new, new), 5: (new, new, old)}.get(kind)
        for name, copy in zip(NAMES, copies or (new, old, old), strict=True):
            wanted[name][doc_id] = copy
    for doc_id in SHARED:
        for name, copy in zip(NAMES, (Copy(1, "old"), Copy(2, "new"), Copy(1, "old")), strict=True):
            wanted[name][doc_id] = copy
    for name, copies_of in wanted.items():
        await put(world.stores[name], [copy.document(doc_id) for doc_id, copy in copies_of.items()])
    damaged = ", ".join(f"'{doc_id}'" for doc_id in OWN if int(doc_id[1:]) % 6 == 5)
    world.sql(f"DELETE FROM {world.vector}.chunks WHERE ordinal = 0 AND doc_id IN ({damaged})")


@asynccontextmanager
async def open_world(
    pair: Pair,
    *,
    proxied: frozenset[str] = frozenset(),
    role: Mapping[str, str] | None = None,
    redis_user: bool = False,
    limits: Mapping[str, float] | None = None,
) -> AsyncGenerator[World, None]:
    """Stores that have drifted apart.

    Args:
        proxied: before which servers a proxy stands.
        role: settings of the stores' role in PostgreSQL.
        redis_user: whether the cache comes as a user with a password.
        limits: the stores' own time limits in seconds, where they are to differ.
    """
    seconds = {"statement_timeout": 5.0, "lock_timeout": 0.3, "timeout": 2.0, "connect_timeout": 2.0, **(limits or {})}
    ports = {"postgres": pair.postgres.port, "redis": pair.redis.port}
    async with AsyncExitStack() as stack:
        proxies = {name: await stack.enter_async_context(open_proxy(ports[name])) for name in sorted(proxied)}
        world = World(pair, f"world_{next(_numbers)}", proxies)
        world.sql(
            f"CREATE ROLE {world.name} LOGIN PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'",
            f"GRANT CREATE ON DATABASE {pair.database} TO {world.name}",
            *(f"ALTER ROLE {world.name} SET {name} = '{value}'" for name, value in (role or {}).items()),
        )
        user: dict[str, str] = {}
        if redis_user:
            user = {"username": world.name, "password": PASSWORD}
            pair.redis.command("ACL", "SETUSER", world.name, "on", f">{PASSWORD}", "~*", "+@all")
        limited = {name: seconds[name] for name in ("statement_timeout", "lock_timeout")}
        redis = f"redis://127.0.0.1:{proxies['redis'].port if 'redis' in proxies else pair.redis.port}/0"
        opened = {
            "text": open_postgres_text(world.dsn(), schema=world.text, create=True, **limited),
            "vector": world.open_vector(**limited),
            "cache": open_redis_cache(
                redis,
                prefix=world.prefix,
                timeout=seconds["timeout"],
                connect_timeout=seconds["connect_timeout"],
                **user,
            ),
        }
        try:
            for name, store in opened.items():
                world.stores[name] = await stack.enter_async_context(store)
            await _drift(world)
            yield world
        finally:
            await stack.aclose()
            with contextlib.suppress(psycopg.Error):  # its server may be gone with its fault
                await trio.to_thread.run_sync(
                    functools.partial(
                        world.sql,
                        f"DROP SCHEMA IF EXISTS {world.text}, {world.vector} CASCADE",
                        f"DROP SCHEMA IF EXISTS {world.name}_kept CASCADE",
                        f"DROP OWNED BY {world.name}",
                        f"DROP ROLE {world.name}",
                    )
                )
