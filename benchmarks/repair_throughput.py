"""Claim: at least half the throughput of a chunked script, and at least five times as fast as one document at a time.

Every document is newer in the text store than in the vector store and the cache. Seven contenders mend the same three
SQLite files, each on a copy of its own, in every round:

    engine    this project: a task, a deadline, a fence, a read-back and a receipt for each document
    apart     the same, with the embedder in a process of its own (`processes = 1` in a configuration)
    script    plain SQL, 1,024 documents a transaction: read versions, read content, write where the revision is still
              the one that was read, read back
    tasks     bare Trio tasks on plain SQL: `benchmarks/_bare_tasks.py`
    tasks apart   the same, with the embedder in a process of its own
    blind     plain SQL, 1,024 documents a transaction: read content, write; nothing is checked
    single    the script with one commit for each document and store (on fewer documents; times are per document)

The scripts use the very tables, triggers, chunker and embedder of the stores, without threads and without Trio.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import apsw
import attrs
import trio

from benchmarks import _harness
from benchmarks._bare_tasks import Served, lookers, readers, repair, writers
from benchmarks._corpus import NAMES, open_stores, put
from benchmarks._figures import Finding, Limit, Shown, Spread, bars
from trio_repair import (
    AutoRepairConfig,
    ContentDefinition,
    Document,
    DocumentVersion,
    RepairJob,
    SyncStrategy,
    open_repair_engine,
)
from trio_repair.abc import Embedder
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.embedding.processes import InProcess
from trio_repair.stores._sqlite import CACHE_KB
from trio_repair.stores._vector_layout import cache_for_vectors, load_sqlite_vec

FILES: Final = {
    "repair_throughput_full": ("repair_throughput",),
    "repair_throughput_normal": ("repair_throughput", "--synchronous", "normal"),
}
CHUNK = 1024
BARE: Final = ("tasks", "tasks apart")
WORDS = [f"word{number}" for number in range(5_000)]
EMBEDDER, CHUNKER = HashingEmbedder(), WindowChunker()


def documents(count: int, version: int) -> Iterator[Document]:
    """Texts of some 400 characters, other ones for each version."""
    rng, content = random.Random(version), ContentDefinition()
    for number in range(count):
        text = f"document {number} at version {version}: " + " ".join(rng.choices(WORDS, k=45))
        digest = content.digest(text, {})
        yield Document(
            doc_id=f"document-{number:07}", text=text, version=DocumentVersion(number=version, digest=digest)
        )


async def build(folder: Path, count: int) -> None:
    """Version 1 everywhere, and then version 2 in the text store."""
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, folder, embedder=EMBEDDER, create=True)
        for version, named in ((1, NAMES), (2, ("text",))):
            made = list(documents(count, version))
            for start in range(0, count, 256):
                some = made[start : start + 256]
                for name in named:
                    await put(stores.by_name[name], some)


@attrs.define
class Files:
    """A contender's own copies of the three files."""

    folder: Path
    synchronous: str

    def connect(self, name: str) -> apsw.Connection:
        """One of them, for plain SQL."""
        connection = apsw.Connection(str(self.folder / f"{name}.db"))
        if name == "vector":
            load_sqlite_vec(connection)
            # As the store has it: with the default, sqlite-vec takes twice as long to write.
            connection.execute(f"PRAGMA cache_size = -{CACHE_KB + cache_for_vectors(EMBEDDER.dimension)}")
        connection.execute(f"PRAGMA synchronous = {self.synchronous}")
        return connection


def versions(connection: apsw.Connection, ids: str) -> dict[str, tuple[int, str, int]]:
    """Number, digest and revision by document."""
    sql = "SELECT doc_id, number, digest, rev FROM documents WHERE doc_id IN (SELECT value FROM json_each(?))"
    return {doc_id: (number, digest, rev) for doc_id, number, digest, rev in connection.execute(sql, (ids,))}


def contents(connection: apsw.Connection, ids: str) -> list[tuple[str, str, str, int, str]]:
    """Document, text, metadata, number and digest."""
    sql = (
        "SELECT doc_id, text, metadata, number, digest FROM documents WHERE doc_id IN (SELECT value FROM json_each(?))"
    )
    return list(connection.execute(sql, (ids,)))  # type: ignore[arg-type]


def write_vectors(connection: apsw.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Replace chunks and vectors of these documents."""
    pieces = [CHUNKER.chunk(row[1]) for row in rows]
    vectors = iter(EMBEDDER.embed_all([chunk.text for chunks in pieces for chunk in chunks]))
    embedded = [(chunks, [next(vectors) for _ in chunks]) for chunks in pieces]
    write_embedded(connection, [(*row, new) for row, new in zip(rows, embedded, strict=True)])


def write_embedded(connection: apsw.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Replace chunks and vectors of these documents; the last of each row are its new ones."""
    ids = json.dumps([row[0] for row in rows])
    theirs = "(SELECT value FROM json_each(?))"
    size = EMBEDDER.dimension
    partition = f"{EMBEDDER.model} {CHUNKER.identity}"
    chunk_id = connection.execute("SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'chunks'").get
    rev = connection.execute("SELECT value FROM revision").get
    # One by one: for `IN`, sqlite-vec reads the whole table.
    stale = list(connection.execute(f"SELECT chunk_id FROM chunks WHERE doc_id IN {theirs}", (ids,)))
    connection.executemany(f"DELETE FROM vectors_{size} WHERE rowid = ?", stale)
    documents_, chunks_, vectors_ = [], [], []
    for doc_id, _text, metadata, number, digest, (chunks, vectors) in rows:
        rev += 1
        documents_.append((number, digest, rev, chunk_id + 1, len(chunks), metadata, doc_id))
        for ordinal, (chunk, vector) in enumerate(zip(chunks, vectors, strict=True)):
            chunk_id += 1
            chunks_.append((chunk_id, doc_id, ordinal, chunk.start, chunk.text))
            vectors_.append((chunk_id, partition, vector))
    connection.executemany(
        "UPDATE documents SET number = ?, digest = ?, rev = ?, first_chunk = ?, chunk_count = ?, metadata = ?,"
        " proven = 1 WHERE doc_id = ?",
        documents_,
    )
    connection.execute(f"DELETE FROM chunks WHERE doc_id IN {theirs}", (ids,))
    connection.executemany(
        "INSERT INTO chunks (chunk_id, doc_id, ordinal, start, text) VALUES (?, ?, ?, ?, ?)", chunks_
    )
    connection.executemany(f"INSERT INTO vectors_{size} (rowid, identity, embedding) VALUES (?, ?, ?)", vectors_)
    connection.execute("UPDATE revision SET value = ?", (rev,))


def write_cache(connection: apsw.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Replace the entries of these documents."""
    rev = connection.execute("SELECT value FROM revision").get
    connection.executemany(
        "UPDATE documents SET text = ?, metadata = ?, number = ?, digest = ?, rev = ? WHERE doc_id = ?",
        [
            (text, metadata, number, digest, rev + index, doc_id)
            for index, (doc_id, text, metadata, number, digest) in enumerate(rows, 1)
        ],
    )
    connection.execute("UPDATE revision SET value = ?", (rev + len(rows),))


WRITERS: dict[str, Callable[[apsw.Connection, Sequence[tuple[Any, ...]]], None]] = {
    "vector": write_vectors,
    "cache": write_cache,
}


def script(files: Files, ids: Sequence[str], size: int = CHUNK) -> None:
    """The best script that we could write: versions, content, conditional writes, read-back."""
    connections = {name: files.connect(name) for name in NAMES}
    for start in range(0, len(ids), size):
        some = json.dumps(ids[start : start + size])
        held = {name: versions(connection, some) for name, connection in connections.items()}
        wanted = held["text"]
        stale = [doc_id for doc_id in wanted if held["vector"][doc_id][0] < wanted[doc_id][0]]
        rows = contents(connections["text"], json.dumps(stale))
        for name, write in WRITERS.items():
            connection = connections[name]
            connection.execute("BEGIN IMMEDIATE")
            now = versions(connection, json.dumps(stale))
            write(connection, [row for row in rows if now[row[0]][2] == held[name][row[0]][2]])
            connection.execute("COMMIT")
            there = versions(connection, json.dumps(stale))
            assert all(there[doc_id][:2] == wanted[doc_id][:2] for doc_id in stale)
    for connection in connections.values():
        connection.close()


def blind(files: Files, ids: Sequence[str]) -> None:
    """Read and write, and hope."""
    connections = {name: files.connect(name) for name in NAMES}
    for start in range(0, len(ids), CHUNK):
        rows = contents(connections["text"], json.dumps(ids[start : start + CHUNK]))
        for name, write in WRITERS.items():
            connections[name].execute("BEGIN IMMEDIATE")
            write(connections[name], rows)
            connections[name].execute("COMMIT")
    for connection in connections.values():
        connection.close()


async def tasks(files: Files, ids: Iterable[str], concurrency: int, embedder: Embedder) -> None:
    """Bare Trio tasks."""
    connections = {name: files.connect(name) for name in NAMES}
    text, vector, cache = (connections[name] for name in NAMES)

    async def embed(texts: Sequence[str]) -> Sequence[Any]:
        pieces = [CHUNKER.chunk(text) for text in texts]
        vectors = iter(await embedder.embed([chunk.text for chunks in pieces for chunk in chunks]))
        return [(chunks, [next(vectors) for _ in chunks]) for chunks in pieces]

    looks = {name: lookers(connection, versions) for name, connection in connections.items()}
    bulk = {
        "text": looks["text"] | readers(text, contents),
        "vector": looks["vector"] | writers(vector, versions, write_embedded),
        "cache": looks["cache"] | writers(cache, versions, write_cache),
        "embedder": {"embed": embed},
    }

    def serve(nursery: trio.Nursery) -> dict[str, Served]:
        return {name: Served(nursery, calls) for name, calls in bulk.items()}

    ids = list(ids)
    assert await repair(ids, concurrency, serve) == len(ids)
    for connection in connections.values():
        connection.close()


async def engine(files: Files, ids: Iterable[str], concurrency: int, embedder: Embedder) -> None:
    """This project."""
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, files.folder, embedder=embedder, synchronous=files.synchronous)
        config = AutoRepairConfig(max_concurrent_jobs=concurrency)
        jobs = (RepairJob(doc_id=doc_id, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH) for doc_id in ids)
        opened = await stack.enter_async_context(open_repair_engine(stores, config))
        async with opened.run(jobs) as results:
            async for result in results:
                assert result.updated_systems == ("vector", "cache"), result


def main(arguments: list[str]) -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks repair_throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--single", type=int, default=500, help="documents for the script with a commit for each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=1024)
    parser.add_argument("--synchronous", choices=("full", "normal"), default="full")
    options = parser.parse_args(arguments)
    ids = [f"document-{number:07}" for number in range(options.documents)]
    with tempfile.TemporaryDirectory(prefix="trio-repair-") as directory:
        template = Path(directory, "template")
        template.mkdir()
        trio.run(build, template, options.documents)

        processor: dict[str, dict[str, list[float]]] = {}

        def measured(name: str, work: Callable[[Files], object], count: int) -> Callable[[], float]:
            spent = processor[name] = {"main thread": [], "all threads": []}

            def once() -> float:
                folder = Path(directory, "work")
                shutil.copytree(template, folder)
                before = time.thread_time(), time.process_time()
                seconds = _harness.stopwatch(lambda: work(Files(folder, options.synchronous)))
                after = time.thread_time(), time.process_time()
                for threads, start, end in zip(spent, before, after, strict=True):
                    spent[threads].append((end - start) / count * 1e6)
                shutil.rmtree(folder)
                return seconds / count

            return once

        apart = InProcess(EMBEDDER.model, EMBEDDER.dimension, EMBEDDER.embed_all)
        every, few, together = len(ids), ids[: options.single], options.concurrency
        comparison = _harness.interleave(
            {
                "script": measured("script", lambda files: script(files, ids), every),
                "engine": measured("engine", lambda files: trio.run(engine, files, ids, together, EMBEDDER), every),
                "apart": measured("apart", lambda files: trio.run(engine, files, ids, together, apart), every),
                "tasks": measured("tasks", lambda files: trio.run(tasks, files, ids, together, EMBEDDER), every),
                "tasks apart": measured(
                    "tasks apart", lambda files: trio.run(tasks, files, ids, together, apart), every
                ),
                "blind": measured("blind", lambda files: blind(files, ids), every),
                "single": measured("single", lambda files: script(files, few, 1), len(few)),
            },
            baseline="engine",
            rounds=options.rounds,
        )
    # Throughputs: seconds a document of the other over seconds a document of the engine.
    others = ("script", "blind", "single")
    ratios = {name: _harness.spread(comparison.ratios(name)) for name in others}
    seconds = comparison.seconds
    apart_ratios = {name: _harness.spread(_harness.ratios(seconds[name], seconds["apart"])) for name in others}
    limits = {name: _harness.spread(_harness.ratios(seconds["script"], seconds[name])) for name in BARE}
    print(
        f"{options.documents} documents, {options.concurrency} at a time, synchronous={options.synchronous},"
        f" {options.rounds} interleaved rounds"
    )
    per_document = {
        name: _harness.spread([value * 1e6 for value in values]) for name, values in comparison.seconds.items()
    }
    for name, figures in per_document.items():
        print(f"  {name:11} {figures['median']:8.1f} us a document   ({figures['min']:.1f} to {figures['max']:.1f})")
    # The first round is not counted.
    spent = {
        name: {threads: _harness.spread(values[1:]) for threads, values in taken.items()}
        for name, taken in processor.items()
    }
    for name in ("script", "engine", "apart", *BARE):
        said = ", ".join(f"{figures['median']:.0f} us in {threads}" for threads, figures in spent[name].items())
        print(f"  processor time of {name:11} a document: {said}")
    for words, found in (("the engine", ratios), ("the engine with its embedder apart", apart_ratios)):
        for name, figures in found.items():
            print(
                f"  throughput of {words} over {name:7} {figures['median']:6.2f}"
                f"   ({figures['min']:.2f} to {figures['max']:.2f})"
            )
    for name, figures in limits.items():
        print(
            f"  throughput of {name:11} over script {figures['median']:6.2f}"
            f"   ({figures['min']:.2f} to {figures['max']:.2f})"
        )
    figures = {
        "documents": options.documents,
        "rounds": options.rounds,
        "concurrency": options.concurrency,
        "synchronous": options.synchronous,
        "throughput_over": ratios,
        "apart_over": apart_ratios,
        "bare_over_script": limits,
        "microseconds_per_document": per_document,
        "processor_microseconds_per_document": spent,
    }
    name = f"repair_throughput_{options.synchronous}"
    print(f"written to {_harness.save(name, figures, prog=parser.prog, options=options)}")


def shown(saved: Mapping[str, Any]) -> Shown:
    """The claims are against the script that does the same work, and that with a commit for each document."""
    half = Limit(words="at least half the throughput", low=0.5)
    five = Limit(words="at least five times as fast", low=5.0) if saved["synchronous"] == "full" else None
    findings = [
        Finding(
            what=f"documents a second through the engine{how}, synchronous={saved['synchronous']}",
            against=against,
            ratio=Spread.of(saved[key][other]),
            limit=limit,
        )
        for key, how in (("throughput_over", ""), ("apart_over", " with its embedder in a process"))
        for other, against, limit in (
            ("script", f"plain SQL that checks the same, {CHUNK:,} documents a transaction", half),
            ("blind", f"plain SQL that checks nothing, {CHUNK:,} documents a transaction", None),
            ("single", "plain SQL that checks the same, one document a transaction", five),
        )
    ]
    findings += [
        Finding(
            what=f"documents a second through bare Trio tasks{how}, synchronous={saved['synchronous']}",
            against=f"plain SQL that checks the same, {CHUNK:,} documents a transaction",
            ratio=Spread.of(saved["bare_over_script"][name]),
        )
        for name, how in zip(BARE, ("", ", the embedder in a process"), strict=True)
    ]
    return Shown(
        findings=findings,
        panels=[
            bars("Time of a document", "µs", saved["microseconds_per_document"]),
            bars("Throughput of the engine over that of", "times", saved["throughput_over"]),
            bars("With its embedder in a process, over that of", "times", saved["apart_over"]),
        ],
        notes=[
            f"{saved['documents']:,} documents, {saved['concurrency']:,} repairs at a time, {saved['rounds']} rounds",
        ],
    )
