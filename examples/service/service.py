"""A document service on PostgreSQL, pgvector and Redis, with the repair engine inside.

It writes as most applications do: the text, then the vectors, then the cache, one after the other, and says OK once all
three are written. Nothing holds the three together. When a store fails or this process is killed half-way, they differ
until the engine, which runs in the same nursery as the service, has made them agree.

One request a line, one answer a line:

    PUT note Mind the gap       OK 1                    the version that was written
    GET note                    OK 1 Mind the gap       or: NONE
    FIND mind a gap             OK note                 the ids of the nearest documents
    DELETE note                 OK 2
    STATS                       OK {"rounds": 3, ...}

Start the servers of examples/containers, then: python examples/service/service.py
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator

import attrs
import coredis
import coredis.exceptions
import psycopg
import psycopg.conninfo
import trio
from coredis.retry import NoRetryPolicy
from coredis.tokens import PureToken

from trio_repair import (
    AutoRepairConfig,
    CheckIncomplete,
    ContentDefinition,
    Document,
    DocumentVersion,
    InvalidValue,
    Observation,
    Prepared,
    RepairExecutionEngine,
    RepairJob,
    RepairPriority,
    RepairTrigger,
    StoreUnavailable,
    SyncStrategy,
    TrioRepairError,
    Write,
    WriteStatus,
    check,
    open_repair_engine,
)
from trio_repair.abc import Stores
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.pgvector import PgvectorStore, open_pgvector
from trio_repair.stores.postgres_text import open_postgres_text
from trio_repair.stores.redis import open_redis_cache

KEY = "document:{id}"
TTL = 3600
LONGEST_LINE = 1_000_000

# A document that is new and one that is not, one that lives and one that is deleted: each write makes a version of its
# own. A row is never removed, for it is the row that remembers the delete and its number.
WRITE = """
INSERT INTO trio_repair_text.documents AS held (doc_id, text, deleted, number)
VALUES (%(id)s, %(text)s::text, %(text)s::text IS NULL, 1)
ON CONFLICT (doc_id) DO UPDATE
SET text = excluded.text, deleted = excluded.deleted, number = coalesce(held.number, 0) + 1
RETURNING number, text
"""
READ = "SELECT number, text FROM trio_repair_text.documents WHERE doc_id = %(id)s AND NOT deleted"

log = logging.getLogger("service")


class Texts:
    """The text store by plain SQL. psycopg knows nothing of Trio, so each statement runs in a worker thread."""

    def __init__(self, dsn: str, connections: int = 4) -> None:
        self._dsn = psycopg.conninfo.make_conninfo(
            dsn, application_name=f"service {os.getpid()}", options="-c statement_timeout=5s", connect_timeout=5
        )
        self._limiter = trio.CapacityLimiter(connections)
        self._idle: list[psycopg.Connection[tuple[int, str]]] = []

    async def run(self, sql: str, doc_id: str, text: str | None = None) -> tuple[int, str] | None:
        """Run a statement in a transaction of its own; its row."""
        return await trio.to_thread.run_sync(self._run, sql, {"id": doc_id, "text": text}, limiter=self._limiter)

    def _run(self, sql: str, values: dict[str, str | None]) -> tuple[int, str] | None:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = psycopg.connect(self._dsn, autocommit=True)
        try:
            row = connection.execute(sql.encode(), values).fetchone()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return row

    def close(self) -> None:
        """Close the connections that are open."""
        while self._idle:
            self._idle.pop().close()


async def write_vectors(store: PgvectorStore, document: Document) -> None:
    """Chunk, embed and write a document, unless the store holds this version or a later one by now."""
    (prepared,) = await store.prepare([document])
    (seen,) = await store.observe([document.doc_id])
    if not isinstance(prepared, Prepared):
        raise prepared
    while isinstance(seen, Observation) and _number(seen.version) < _number(document.version):
        (answer,) = await store.write([Write(prepared=prepared, token=seen.token)])
        if answer.status is WriteStatus.LANDED:
            return
        if answer.observation is None:  # neither written nor refused by the fence
            raise StoreUnavailable("vector", "did not take the document") if answer.error is None else answer.error
        seen = answer.observation
    if not isinstance(seen, Observation):
        raise seen


def _number(version: DocumentVersion | None) -> int:
    return -1 if version is None or version.number is None else version.number


@attrs.define
class Rounds:
    """What the checks have come to. A check that could not be finished leaves the last one's figures as they are."""

    rounds: int = 0
    unfinished: int = 0
    repaired: int = 0
    documents: int = 0
    divergent: int = 0
    unsettled: int = 0
    left: int = 0
    """Documents that the last round found divergent and could not repair."""


async def keep_in_sync(
    engine: RepairExecutionEngine, stores: Stores, config: AutoRepairConfig, rounds: Rounds, every: float
) -> None:
    """Check all documents every so many seconds, and repair what diverges while the check goes on.

    `engine.run` pulls a divergence only when there is room for its repair, so a check never runs ahead of the repairs.
    No round is counted beforehand (`count_changes`), because none can destroy anything: an empty text store deletes
    nothing as long as `missing_source` is "refuse".
    """
    while True:
        try:
            async with check(stores, config) as divergences:

                async def jobs() -> AsyncGenerator[RepairJob, None]:
                    async for divergence in divergences:
                        yield _job(divergence.doc_id, RepairTrigger.CONSISTENCY_CHECK)

                left = 0
                async with engine.run(jobs()) as results:
                    async for result in results:
                        rounds.repaired += result.success
                        if not result.success:
                            left += 1
                            log.warning("%r is not repaired: %s", result.doc_id, result.error)
                seen = divergences.statistics()
        except CheckIncomplete as error:  # a store is away; the next round may find it
            rounds.unfinished += 1
            log.warning("a check was not finished: %s", error)
        else:
            rounds.documents, rounds.divergent, rounds.unsettled = seen.documents, seen.divergent, seen.unsettled
            rounds.left = left
            rounds.rounds += 1
        await trio.sleep(every)


def _job(doc_id: str, trigger: RepairTrigger, priority: RepairPriority = RepairPriority.MEDIUM) -> RepairJob:
    # Every write begins with the text, so the text is what holds.
    return RepairJob(
        doc_id=doc_id, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH, trigger=trigger, priority=priority, timeout=10.0
    )


@attrs.frozen
class Service:
    """Answers requests."""

    texts: Texts
    vectors: PgvectorStore
    cache: coredis.Redis[str]
    engine: RepairExecutionEngine
    rounds: Rounds

    async def write(self, doc_id: str, text: str | None) -> str:
        """Write a document to one store after the other, or delete it: `text` is None."""
        row = await self.texts.run(WRITE, doc_id, text)
        assert row is not None
        try:
            if text is None:
                document = Document.tombstone(doc_id, number=row[0])
            else:
                version = DocumentVersion(number=row[0], digest=ContentDefinition().digest(text, {}))
                document = Document(doc_id=doc_id, text=text, version=version)
            await write_vectors(self.vectors, document)
            if text is None:
                await self.cache.delete([KEY.format(id=doc_id)])
            else:  # of two writers of one document, the slower one may leave its older entry here: a check finds that
                await self.cache.set(KEY.format(id=doc_id), _entry(row), ex=TTL)
        except (TrioRepairError, coredis.exceptions.RedisError, OSError):
            # The text is written. Whoever asked is told of the failure; nobody need wait for the next check.
            with contextlib.suppress(trio.WouldBlock):
                self.engine.submit_nowait(_job(doc_id, RepairTrigger.MANUAL, RepairPriority.HIGH))
            raise
        return f"{row[0]}"

    async def get(self, doc_id: str) -> str | None:
        """Version and text, from the cache if it is there."""
        held = await self.cache.get(KEY.format(id=doc_id))
        if held is not None:
            entry = json.loads(held)
            return f"{entry['version']} {entry['text']}"
        row = await self.texts.run(READ, doc_id)
        if row is None:
            return None
        await self.cache.set(KEY.format(id=doc_id), _entry(row), ex=TTL, condition=PureToken.NX)
        return f"{row[0]} {row[1]}"

    async def find(self, words: str) -> str:
        """The nearest documents. One that the text store does not hold is not shown, and looked after."""
        found = []
        for hit in await self.vectors.nearest(words, 5):
            if await self.texts.run(READ, hit.doc_id):
                found.append(hit.doc_id)
            else:
                with contextlib.suppress(trio.WouldBlock):
                    self.engine.submit_nowait(_job(hit.doc_id, RepairTrigger.SEARCH_FAILURE, RepairPriority.HIGH))
        return " ".join(found)

    def statistics(self) -> str:
        """What checks and engine have done, as JSON."""
        engine = self.engine.statistics()
        outcomes = {outcome.value: count for outcome, count in engine.outcomes.items()}
        return json.dumps({**attrs.asdict(self.rounds), "queued": engine.queued, "active": engine.active, **outcomes})

    async def answer(self, line: str) -> str:
        """The answer to one line."""
        word, _, rest = line.partition(" ")
        doc_id, _, text = rest.partition(" ")
        match word:
            case "PUT" if doc_id:
                return f"OK {await self.write(doc_id, text)}"
            case "DELETE" if doc_id:
                return f"OK {await self.write(doc_id, None)}"
            case "GET" if doc_id:
                held = await self.get(doc_id)
                return "NONE" if held is None else f"OK {held}"
            case "FIND" if rest:
                return f"OK {await self.find(rest)}"
            case "STATS":
                return f"OK {self.statistics()}"
            case _:
                return "ERROR this is no request; there are PUT, GET, FIND, DELETE and STATS"

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer the lines of one connection, one after the other."""
        pending = b""
        with contextlib.suppress(trio.BrokenResourceError):  # whoever asked has gone
            async for received in stream:
                *lines, pending = (pending + received).split(b"\n")
                if len(pending) > LONGEST_LINE:
                    return
                for line in lines:
                    try:
                        answer = await self.answer(line.decode().rstrip("\r"))
                    except Exception as error:  # one request's failure is not the end of the others
                        log.warning("a request failed: %s", type(error).__name__)  # its message may quote a document
                        answer = f"ERROR {type(error).__name__}; it may be written in part, send it again"
                    await stream.send_all(answer.encode() + b"\n")


def _entry(row: tuple[int, str]) -> str:
    return json.dumps({"version": row[0], "text": row[1]})


async def main(database: str, cache: str, password: str, port: int, every: float, settle: float) -> None:
    """Serve until cancelled."""
    dsn = psycopg.conninfo.make_conninfo(database, password=password)
    embedder, chunker = HashingEmbedder(), WindowChunker()
    config = AutoRepairConfig(settle=settle)
    with contextlib.closing(Texts(dsn)) as texts:
        async with (
            open_postgres_text(dsn, create=True) as text,
            open_pgvector(dsn, embedder=embedder, chunker=chunker, create=True) as vector,
            # A store takes one call after the other. The service's own do not wait behind those of the engine.
            open_pgvector(dsn, embedder=embedder, chunker=chunker) as vectors,
            open_redis_cache(
                cache, key=KEY, format="json", fields={"text": "text", "version": "version"}, ttl=TTL, password=password
            ) as entries,
            # What was not answered is not sent again behind our back: the engine sees to it.
            coredis.Redis.from_url(
                cache, password=password, decode_responses=True, stream_timeout=5, retry_policy=NoRetryPolicy()
            ) as redis,
            open_repair_engine(stores := Stores(text=text, vector=vector, cache=entries), config) as engine,
            trio.open_nursery() as nursery,
        ):
            rounds = Rounds()
            service = Service(texts, vectors, redis, engine, rounds)
            nursery.start_soon(keep_in_sync, engine, stores, config, rounds, every)
            (listener,) = await nursery.start(functools.partial(trio.serve_tcp, service.serve, port, host="127.0.0.1"))
            print(f"listening on 127.0.0.1:{listener.socket.getsockname()[1]}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A document service; the password is in $SEARCH_PASSWORD.")
    parser.add_argument("--database", default="host=127.0.0.1 port=55432 dbname=search user=search")
    parser.add_argument("--cache", default="redis://127.0.0.1:56379/0")
    parser.add_argument("--port", type=int, default=7411)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two checks")
    parser.add_argument("--settle", type=float, default=1.0, help="seconds for which a divergence must last")
    given = parser.parse_args()
    if not os.environ.get("SEARCH_PASSWORD"):
        parser.error("set SEARCH_PASSWORD")
    logging.basicConfig(level=logging.WARNING)
    failures: tuple[Exception | ExceptionGroup[Exception], ...] = ()
    try:
        trio.run(
            main, given.database, given.cache, os.environ["SEARCH_PASSWORD"], given.port, given.every, given.settle
        )
    except* KeyboardInterrupt:
        pass
    except* (StoreUnavailable, InvalidValue, OSError) as group:  # no server there, no such port
        failures = group.exceptions
    if failures:
        sys.exit("; ".join(map(str, failures)))
