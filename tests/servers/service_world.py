"""The example service, twice, under load, killed and started again; a ledger of what it acknowledged, and a judge of the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from subprocess import PIPE
from typing import Any

import attrs
import psycopg
import trio

from .postgres_server import PostgresServer
from .redis_server import RedisServer

SERVICE = Path(__file__).parents[2] / "examples" / "service" / "service.py"
QUICKLY = ("--port", "0", "--every", "0.1", "--settle", "0.2")
PASSWORD = "a-password-of-the-test"
SERVICES = 2
WRITERS = 8
DOCUMENTS = tuple(f"doc-{number:02}" for number in range(32))
_PATIENCE = 60.0


@attrs.define
class Entry:
    """What one document was asked to be, in order; None is a delete."""

    sent: list[str | None] = attrs.field(factory=list)
    acknowledged: int = -1
    """The index of the last of these that was acknowledged."""
    number: int = -1
    """The version that was acknowledged then."""


@attrs.frozen
class Held:
    """What the three stores hold of one document, by plain SQL and Redis commands; None: nothing."""

    text: tuple[int | None, str | None] | None
    """Number and text; the text None for a tombstone."""
    vector: tuple[int | None, str | None] | None
    """The same, put together of the chunks; "damaged" if they are not whole."""
    cache: tuple[int | None, str | None] | None = None


def judge(ledger: Mapping[str, Entry], held: Mapping[str, Held]) -> list[str]:
    """What is wrong at the end, in a line for each document and fault. An entry may be absent from the cache."""
    complaints = []
    for doc_id, entry in ledger.items():
        one = held.get(doc_id, Held(None, None))
        complaints += [f"{doc_id}: the stores disagree: {one}"] if disagrees(one) else []
        for store, copy in (("text", one.text), ("vector", one.vector), ("cache", one.cache)):
            if entry.acknowledged < 0 or (store == "cache" and copy is None):
                continue
            if copy is None:
                complaints.append(f"{doc_id}: {store}: nothing is left of a document that was acknowledged")
                continue
            number, text = copy
            if text not in entry.sent[entry.acknowledged :]:
                word = "resurrected" if entry.sent[entry.acknowledged] is None else "lost"
                complaints.append(f"{doc_id}: {store}: an acknowledged write is {word}: it holds {text!r}")
            if number is None or number < entry.number:
                complaints.append(f"{doc_id}: {store}: is at version {number}; {entry.number} was acknowledged")
    return complaints


def disagrees(one: Held) -> bool:
    """Whether the stores hold different things of a document."""
    cached = one.cache is not None and one.cache != one.text
    deleted = one.text is not None and one.text[1] is None
    return one.text != one.vector or cached or (deleted and one.cache is not None)


class Servers:
    """The stores of the service, looked at without the library."""

    def __init__(self, postgres: PostgresServer, redis: RedisServer) -> None:
        self._postgres = postgres
        self._redis = redis
        self._name = postgres.new_database()
        self._redis.command("FLUSHALL", password=PASSWORD)
        with self.connect() as connection:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'search'").fetchone():
                connection.execute(f"CREATE ROLE search SUPERUSER LOGIN PASSWORD '{PASSWORD}'")

    @property
    def arguments(self) -> list[str]:
        """How the service is told of them."""
        database = f"host=127.0.0.1 port={self._postgres.port} dbname={self._name} user=search"
        return ["--database", database, "--cache", self._redis.url]

    def connect(self) -> psycopg.Connection[Any]:
        """A plain connection."""
        return self._postgres.connect(self._name)

    def statements_of(self, pid: int) -> int:
        """How many connections for a service's own statements the server has."""
        with self.connect() as connection:
            sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
            (count,) = connection.execute(sql, (f"service {pid}",)).fetchone() or (0,)
        return int(count)

    def look(self) -> dict[str, Held]:
        """What each store holds of every document."""
        with self.connect() as connection:
            texts = connection.execute(
                "SELECT doc_id, number, deleted, text FROM trio_repair_text.documents"
            ).fetchall()
            vectors = connection.execute(
                "SELECT d.doc_id, d.number, d.deleted, d.chunk_count, coalesce(json_agg(json_build_array("
                "c.start, c.text) ORDER BY c.ordinal) FILTER (WHERE c.doc_id IS NOT NULL), '[]')"
                " FROM trio_repair_vector.documents AS d LEFT JOIN trio_repair_vector.chunks AS c USING (doc_id)"
                " GROUP BY d.doc_id"
            ).fetchall()
        keys = [f"document:{doc_id}" for doc_id in DOCUMENTS]
        values = self._redis.command("MGET", *keys, password=PASSWORD).decode().split("\n")
        entries = {doc_id: json.loads(value) for doc_id, value in zip(DOCUMENTS, values, strict=True) if value}
        text = {doc_id: (number, None if deleted else words) for doc_id, number, deleted, words in texts}
        vector = {
            doc_id: (number, None if deleted else _joined(chunks, count))
            for doc_id, number, deleted, count, chunks in vectors
        }
        cache = {doc_id: (entry["version"], entry["text"]) for doc_id, entry in entries.items()}
        return {doc_id: Held(text.get(doc_id), vector.get(doc_id), cache.get(doc_id)) for doc_id in DOCUMENTS}

    def live_vectors(self) -> list[tuple[str, int, str]]:
        """Documents of one chunk that the vector store holds: id, number and text."""
        with self.connect() as connection:
            return connection.execute(
                "SELECT v.doc_id, v.number, c.text FROM trio_repair_vector.documents AS v"
                " JOIN trio_repair_vector.chunks AS c ON c.doc_id = v.doc_id WHERE v.chunk_count = 1"
            ).fetchall()

    def overwrite_text(self, doc_id: str, number: int, text: str) -> None:
        """Write a text over whatever is held."""
        with self.connect() as connection:
            connection.execute(
                "UPDATE trio_repair_text.documents SET text = %s, number = %s, deleted = false WHERE doc_id = %s",
                (text, number, doc_id),
            )


def _joined(chunks: list[tuple[int, str]], count: int) -> str:
    """The text that chunks were cut from."""
    text = ""
    for start, piece in chunks:
        shared = text[start:]
        if start > len(text) or not piece.startswith(shared):
            return "damaged"
        text += piece[len(shared) :]
    return text if len(chunks) == count else "damaged"


class Place:
    """Where one service runs, dies, and runs again."""

    def __init__(self, servers: Servers, log: Path) -> None:
        self._servers = servers
        self._log = log
        self._process: trio.Process | None = None
        self.port = 0
        self.up = trio.Event()
        """Set while it takes requests, and not before the server has done with the statements of the one before."""

    async def start(self) -> None:
        """Start the service, and wait until it listens."""
        with self._log.open("ab") as log:
            self._process = process = await trio.lowlevel.open_process(
                [sys.executable, "-W", "error", str(SERVICE), *self._servers.arguments, *QUICKLY],
                env={**os.environ, "SEARCH_PASSWORD": PASSWORD},
                stdout=PIPE,
                stderr=log,
            )
        assert process.stdout is not None
        said = b""
        with trio.fail_after(_PATIENCE):
            while b"\n" not in said:
                received = await process.stdout.receive_some()
                assert received, self._log.read_text()
                said += received
        self.port = int(said.decode().strip().rpartition(":")[2])
        self.up.set()

    async def kill(self) -> None:
        """Kill it, and wait until the server has done with the statements that it left behind."""
        pid = await self._end(signal.SIGKILL)
        with trio.fail_after(_PATIENCE):
            while self._servers.statements_of(pid):  # noqa: ASYNC110 - the server has no way to tell us
                await trio.sleep(0.01)

    async def stop(self) -> None:
        """End it as an operator would."""
        await self._end(signal.SIGINT)
        assert self._process is not None
        assert self._process.returncode == 0

    async def _end(self, how: signal.Signals) -> int:
        process = self._process
        assert process is not None
        self.up = trio.Event()
        process.send_signal(how)
        with trio.fail_after(_PATIENCE):
            await process.wait()
        assert process.stdout is not None
        await process.stdout.aclose()
        return process.pid

    def destroy(self) -> None:
        """See that nothing runs on after a test that failed."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def statistics(self) -> dict[str, Any]:
        """What the service says of itself."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            answer = await _ask(stream, "STATS")
        found: dict[str, Any] = json.loads(answer.removeprefix("OK "))
        return found

    async def wait_clean(self, *, manual: bool) -> dict[str, Any]:
        """Wait for checks that find nothing any more; what it says of itself then.

        Args:
            manual: it will do if they find nothing but what is left to a person.
        """
        clean: set[int] = set()
        with trio.fail_after(_PATIENCE):
            while True:
                statistics = await self.statistics()
                if statistics["divergent"] > manual * statistics["left"] or statistics["unsettled"]:
                    clean.clear()
                else:
                    clean.add(statistics["rounds"])
                if len(clean) == 3:  # the first may have begun before the load ended
                    return statistics
                await trio.sleep(0.05)


class World:
    """Services on the same stores, their clients and the ledger."""

    def __init__(self, servers: Servers, directory: Path, seed: int) -> None:
        self.servers = servers
        self.ledger = {doc_id: Entry() for doc_id in DOCUMENTS}
        self.acknowledged = 0
        self.wounded = 0
        """How many documents the kills have left different in different stores."""
        self.repaired = 0
        """How many repairs the services have counted shortly before they ended."""
        self.loading = True
        """False once there will be no more kills."""
        self.log = directory / "log"
        self._places = [Place(servers, self.log) for _ in range(SERVICES)]
        self._random = random.Random(seed)
        self._one_more = trio.Event()

    async def run(self, kills: int, beside: Callable[[], Awaitable[None]] | None = None) -> None:
        """Kill each service so many times under load, and let the last ones repair what is left.

        Args:
            kills: how often.
            beside: what else runs meanwhile, until the load ends; it may leave what no repair can decide.
        """
        try:
            async with trio.open_nursery() as births:  # whichever comes first makes the tables
                for place in self._places:
                    births.start_soon(place.start)
            async with trio.open_nursery() as nursery:
                for writer in range(WRITERS):
                    nursery.start_soon(self._write, DOCUMENTS[writer::WRITERS], random.Random(f"{writer} {kills}"))
                if beside is not None:
                    nursery.start_soon(beside)
                async with trio.open_nursery() as lives:
                    for place in self._places:
                        lives.start_soon(self._live_and_die, place, kills)
                self.loading = False
            for place in self._places:
                self.repaired += (await place.wait_clean(manual=beside is not None))["repaired"]
                await place.stop()
        finally:
            for place in self._places:
                place.destroy()
        assert "Traceback" not in self.log.read_text()

    async def _live_and_die(self, place: Place, kills: int) -> None:
        for _ in range(kills):
            await self._live()
            self.repaired += (await place.statistics())["repaired"]
            await place.kill()
            self.wounded += sum(map(disagrees, self.servers.look().values()))
            await place.start()
        await self._live()

    async def _live(self) -> None:
        """Let some time pass, and so many writes be acknowledged: some machines are slow."""
        enough = self.acknowledged + self._random.randrange(5, 40)
        await trio.sleep(self._random.uniform(0.3, 1.5))
        with trio.fail_after(_PATIENCE):
            while self.acknowledged < enough:
                await self._one_more.wait()

    async def _write(self, documents: tuple[str, ...], draw: random.Random) -> None:
        """One client after another, each at one of the services, until that is killed under it.

        The next one begins when that service has come back: a statement that is still on its way when its client has
        gone would land after what the next client writes, which no order of the ledger's would foresee.
        """
        while self.loading:
            place = draw.choice(self._places)
            await place.up.wait()
            with contextlib.suppress(OSError, trio.BrokenResourceError, EOFError):
                async with await trio.open_tcp_stream("127.0.0.1", place.port) as stream:
                    for _ in range(draw.randrange(1, 50)):
                        if not self.loading:
                            return
                        await self._request(stream, draw.choice(documents), draw)
            await place.up.wait()

    async def _request(self, stream: trio.SocketStream, doc_id: str, draw: random.Random) -> None:
        chance = draw.random()
        if chance < 0.25:
            await _ask(stream, f"GET {draw.choice(DOCUMENTS)}")
            return
        entry = self.ledger[doc_id]
        index = len(entry.sent)
        # Some in one chunk, some in several.
        text = None if chance < 0.4 else " ".join([f"{doc_id} is at its version {index}."] * draw.choice([1, 1, 60]))
        entry.sent.append(text)
        answer = await _ask(stream, f"DELETE {doc_id}" if text is None else f"PUT {doc_id} {text}")
        if answer.startswith("OK "):
            entry.acknowledged, entry.number = index, int(answer.removeprefix("OK "))
            self.acknowledged += 1
            self._one_more.set()
            self._one_more = trio.Event()


async def _ask(stream: trio.SocketStream, request: str) -> str:
    """The answer to one request.

    Raises:
        EOFError: there came none.
    """
    answer = b""
    with trio.fail_after(_PATIENCE):
        await stream.send_all(request.encode() + b"\n")
        while not answer.endswith(b"\n"):
            received = await stream.receive_some()
            if not received:
                raise EOFError
            answer += received
    return answer.decode().rstrip("\n")
