"""Small real stores, damaged as dual writes damage them, and the installed command run on them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import apsw
import attrs
import sqlite_vec
import trio

from trio_repair import (
    AutoRepairConfig,
    ContentDefinition,
    Document,
    DocumentVersion,
    Removal,
    Stores,
    Write,
    WriteAnswer,
    WriteStatus,
    check,
)
from trio_repair.abc import Store
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector

DOCUMENTS = 40

CONFIGURATION = """\
[repair]
settle = 0.05
store_call_timeout = 5.0
max_changed = 0.5
max_deletes = 0.1

[stores.text]
kind = "sqlite-text"
path = "text.db"

[stores.vector]
kind = "sqlite-vector"
path = "vector.db"

[stores.vector.embedder]
kind = "hashing"
dimension = 32

[stores.cache]
kind = "sqlite-cache"
path = "cache.db"
"""


def doc_id(number: int) -> str:
    """The id of one of the documents."""
    return f"doc-{number:02}"


def document(number: int, version: int = 1, text: str | None = None) -> Document:
    """One of the documents, in some version."""
    content = f"document {number} speaks of topic{number % 7} in version {version}" if text is None else text
    digest = ContentDefinition().digest(content, {})
    return Document(doc_id=doc_id(number), text=content, version=DocumentVersion(number=version, digest=digest))


@attrs.frozen
class Application:
    """Writes as an application does: one store after the other, without the engine."""

    stores: Stores

    async def put(self, store: Store, *documents: Document) -> None:
        """Write documents over whatever the store holds."""
        observations = await store.observe([one.doc_id for one in documents])
        prepared = await store.prepare(documents)
        answers = await store.write(
            [Write(prepared=ready, token=seen.token) for ready, seen in zip(prepared, observations, strict=True)]
        )
        self._landed(answers)

    async def forget(self, store: Store, *doc_ids: str) -> None:
        """Take rows away, without a tombstone."""
        observations = await store.observe(doc_ids)
        self._landed(
            await store.remove(
                [Removal(doc_id=one, token=seen.token) for one, seen in zip(doc_ids, observations, strict=True)]
            )
        )

    @staticmethod
    def _landed(answers: Sequence[WriteAnswer]) -> None:
        assert {WriteStatus.LANDED} == {answer.status for answer in answers}


def with_stores(directory: Path, work: Callable[[Application], Any], *, create: bool = False) -> Any:
    """Do something with the stores of a directory, which are closed afterwards."""

    async def main() -> Any:
        async with AsyncExitStack() as stack:
            text = await stack.enter_async_context(open_sqlite_text(directory / "text.db", create=create))
            vector = await stack.enter_async_context(
                open_sqlite_vector(
                    directory / "vector.db",
                    embedder=HashingEmbedder(dimension=32),
                    chunker=WindowChunker(),
                    create=create,
                )
            )
            cache = await stack.enter_async_context(open_sqlite_cache(directory / "cache.db", create=create))
            return await work(Application(Stores(text=text, vector=vector, cache=cache)))

    return trio.run(main)


async def fill(application: Application) -> None:
    documents = [document(number) for number in range(DOCUMENTS)]
    stores = application.stores
    await application.put(stores.text, *documents)
    await application.put(stores.vector, *documents)
    assert stores.cache is not None
    await application.put(stores.cache, *documents[::2])


DAMAGE = {
    doc_id(1): {"vector missing"},
    doc_id(3): {"vector stale"},
    doc_id(5): {"text stale"},
    doc_id(7): {"vector orphan"},
    doc_id(9): {"vector undeleted"},
    doc_id(11): {"vector conflict"},
    doc_id(12): {"cache stale-cache"},
}
"""What `damage` does, in the words of `check`."""


async def damage(application: Application) -> None:
    text, vector, cache = application.stores.text, application.stores.vector, application.stores.cache
    assert cache is not None
    await application.forget(vector, doc_id(1))
    await application.put(text, document(3, 2))
    await application.put(vector, document(5, 2))
    await application.forget(text, doc_id(7))
    await application.put(text, Document.tombstone(doc_id(9), number=2))
    await application.put(vector, document(11, 1, "the same version, but something else"))
    await application.put(text, document(12, 2))
    await application.put(vector, document(12, 2))


def with_database(path: Path, work: Callable[[apsw.Connection], Any]) -> Any:
    """Do something with a database file behind its store's back, by the library that the stores use."""
    connection = apsw.Connection(str(path))
    try:
        connection.enable_load_extension(enable=True)
        connection.load_extension(sqlite_vec.loadable_path())
        return work(connection)
    finally:
        connection.close()


def configure(directory: Path, old: str, new: str) -> None:
    """Change the configuration of a directory."""
    path = directory / "trio-repair.toml"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


@attrs.frozen
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def record(self) -> dict[str, Any]:
        """Stdout as one JSON line."""
        (record,) = self.records
        return record

    @property
    def complaint(self) -> str:
        """The one line on stderr of a command that could not be done."""
        (line,) = self.err.splitlines()
        assert line.startswith("trio-repair: ")
        assert self.out == ""
        return line.removeprefix("trio-repair: ")


def environment(**extra: str) -> dict[str, str]:
    """A plain environment: no colour, no terminal width."""
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "FORCE_COLOR"}}
    return kept | extra


def run(*arguments: str | bytes | Path, **options: Any) -> Done:
    """Run the installed command in a process of its own."""
    options.setdefault("env", environment())
    stdin = options.pop("input", b"")
    done = subprocess.run(
        [sys.executable, "-m", "trio_repair", *arguments],
        input=stdin,
        capture_output=True,
        timeout=50,
        check=False,
        **options,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def findings(directory: Path) -> dict[str, set[str]]:
    """What is wrong with the stores of a directory, in the form of `DAMAGE`; found by the library, not the command."""

    async def look(application: Application) -> dict[str, set[str]]:
        async with check(application.stores, AutoRepairConfig(settle=0.0)) as checking:
            return {
                divergence.doc_id: {f"{finding.store} {finding.kind.value}" for finding in divergence.findings}
                async for divergence in checking
            }

    found: dict[str, set[str]] = with_stores(directory, look)
    return found


def contents(directory: Path) -> dict[str, Any]:
    """Everything that the stores of a directory hold, tokens included: equal only if nothing was written."""

    async def look(application: Application) -> dict[str, Any]:
        held = {}
        for name, store in application.stores.by_name.items():
            async with store.open_scan() as pages:
                held[name] = [pair async for page in pages for pair in page]
        return held

    held: dict[str, Any] = with_stores(directory, look)
    return held


PLUGIN = '''\
"""A store that makes trouble around one of the real ones: for tests only."""
import os
import select
import threading
from contextlib import asynccontextmanager
from importlib.metadata import entry_points

import trio

from trio_repair import StoreUnavailable


class Troubled:
    def __init__(self, store, settings, name, directory):
        self._store = store
        self._settings = settings
        self._name = name
        self._directory = directory

    def __getattr__(self, name):
        found = getattr(self._store, name)
        if name != self._settings["method"]:
            return found

        async def troubled(*args, **kwargs):
            await self._trouble(name)
            return await found(*args, **kwargs)

        return troubled

    async def _trouble(self, method):
        settings = self._settings
        if settings["method"] != method:
            return
        if "reached" in settings:
            fifo = os.open(self._directory / settings["reached"], os.O_WRONLY | os.O_NONBLOCK)
            os.write(fifo, b".")
            os.close(fifo)
        if settings.get("exits"):
            raise SystemExit("the text of a document")
        if settings.get("hangs") == "in its thread":
            await self._store._run(lambda *_: threading.Event().wait())
        elif settings.get("hangs"):
            await trio.to_thread.run_sync(threading.Event().wait, abandon_on_cancel=True)
        if "release" in settings:
            fifo = os.open(self._directory / settings["release"], os.O_RDONLY | os.O_NONBLOCK)
            try:
                await trio.lowlevel.wait_readable(fifo)
            finally:
                os.close(fifo)
        await trio.sleep(settings.get("delay", 0.0))
        if settings.get("fails"):
            raise StoreUnavailable(self._name, "the network is down")

    @asynccontextmanager
    async def open_scan(self, after=None):
        await self._trouble("open_scan")
        async with self._store.open_scan(after) as pages:
            yield pages

    @asynccontextmanager
    async def open_ranges(self, after=None):
        await self._trouble("open_scan")
        async with self._store.open_ranges(after) as ranges:
            yield ranges


@asynccontextmanager
async def troubled(settings, *, name, directory, content, create):
    (entry,) = entry_points(group="trio_repair.stores", name=settings["around"])
    if settings["method"] == "make":
        raise RuntimeError("the text of a document")
    async with entry.load()(settings["inner"], name=name, directory=directory, content=content, create=create) as store:
        troubled = Troubled(store, settings, name, directory)
        await troubled._trouble("open")
        try:
            yield troubled
        finally:
            await troubled._trouble("close")
'''


@attrs.frozen
class Fifo:
    """Two processes meet here, so that no test sleeps."""

    path: Path
    _descriptor: int

    @classmethod
    def make(cls, path: Path) -> Fifo:
        """Make one, open at this end."""
        os.mkfifo(path)
        return cls(path, os.open(path, os.O_RDWR | os.O_NONBLOCK))

    def wait(self) -> None:
        """Wait until the other process has come here."""
        ready, _, _ = select.select([self._descriptor], [], [], 30)
        assert ready, f"nobody came to {self.path}"
        assert os.read(self._descriptor, 1)

    def release(self) -> None:
        """Let everybody pass who waits here, now and later."""
        os.write(self._descriptor, b".")

    def close(self) -> None:
        """Close this end."""
        os.close(self._descriptor)
