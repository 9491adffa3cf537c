"""A demo directory: three new stores, filled, and the configuration file by which every command finds them."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from trio_repair import Document, InvalidValue, Stores
from trio_repair._model import utc_now
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector

from .writing import write_documents

MARKER: Final = ".trio-repair-demo"
"""Says that the demo made a directory, and may make it again."""

DATABASES: Final = {"text": "text.db", "vector": "vector.db", "cache": "cache.db"}
"""The stores' files, by role."""

CONFIGURATION: Final = "trio-repair.toml"

CACHED_SHARE: Final = 1 / 3
"""How many of the documents are in the cache too."""

BATCH: Final = 256

_CONFIGURATION_TEXT: Final = f"""\
# The stores of `trio-repair demo`. Every command finds them by --dir, or here by default.

[repair]
strategy = "most-recent"

[stores.text]
kind = "sqlite-text"
path = "{DATABASES["text"]}"

[stores.vector]
kind = "sqlite-vector"
path = "{DATABASES["vector"]}"

[stores.cache]
kind = "sqlite-cache"
path = "{DATABASES["cache"]}"
"""

_MARKER_TEXT: Final = """\
This directory was made by `trio-repair demo`, which replaces its own files here when it is run again:
the three databases and trio-repair.toml. It leaves every other file alone.
"""


def claim_directory(directory: Path) -> None:
    """Make sure that a directory is there and is the demo's to fill: new, empty, or made by it before.

    Raises:
        InvalidValue: it belongs to somebody else, or cannot be made. Nothing was changed.
    """
    marker = directory / MARKER
    try:
        if directory.exists() and not directory.is_dir():
            raise InvalidValue("directory", f"{directory} is not a directory; name another")
        if directory.exists() and not marker.is_file() and any(directory.iterdir()):
            raise InvalidValue("directory", f"{directory} is not empty and was not made by the demo; name another")
        directory.mkdir(parents=True, exist_ok=True)
        _write_private(marker, _MARKER_TEXT)
    except OSError as error:
        raise InvalidValue("directory", f"{directory} cannot be used: {error.strerror}; name another") from error


def _write_private(path: Path, text: str) -> None:
    """Write a file that nobody else may read, as the stores are."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)


def clear_directory(directory: Path) -> None:
    """Remove what an earlier demo made, and nothing else, and write the configuration file.

    Raises:
        InvalidValue: a file cannot be removed or written.
    """
    try:
        for database in DATABASES.values():
            for suffix in ("", "-wal", "-shm", "-journal"):
                (directory / f"{database}{suffix}").unlink(missing_ok=True)
        _write_private(directory / CONFIGURATION, _CONFIGURATION_TEXT)
    except OSError as error:
        raise InvalidValue("directory", f"{directory} cannot be cleared: {error.strerror}; name another") from error


@asynccontextmanager
async def create_stores(directory: Path) -> AsyncIterator[Stores]:
    """Make the three empty stores that the configuration file names, and open them.

    Commits are not pushed to the disk one by one: after a power cut, the demo is run again.

    Raises:
        StoreFileError: a file cannot be made.
    """
    async with (
        open_sqlite_text(directory / DATABASES["text"], create=True, synchronous="normal") as text,
        open_sqlite_vector(
            directory / DATABASES["vector"],
            embedder=HashingEmbedder(),
            chunker=WindowChunker(),
            create=True,
            synchronous="normal",
        ) as vector,
        open_sqlite_cache(directory / DATABASES["cache"], create=True, synchronous="normal") as cache,
    ):
        yield Stores(text=text, vector=vector, cache=cache)


@attrs.define
class Filled:
    """What has been written so far."""

    documents: int = 0
    cached: int = 0


async def fill_stores(
    stores: Stores, documents: Iterator[Document], *, seed: int, progress: Callable[[int], None]
) -> Filled:
    """Write documents to text and vector store, and a seeded third of them to the cache.

    Args:
        stores: empty stores, one of them a cache.
        documents: pulled in a worker thread, `BATCH` at a time, while the batch before is written.
        seed: which third.
        progress: told after each batch how many documents were written.

    Raises:
        StoreError: a store took not every document.

    **If cancelled:** the batches so far are written, the last one perhaps to some of the stores only.
    """
    rng = random.Random(seed)
    filled = Filled()
    send, receive = trio.open_memory_channel[list[Document]](1)

    def take() -> list[Document]:
        return list(itertools.islice(documents, BATCH))

    async def feed() -> None:
        async with send:
            while batch := await trio.to_thread.run_sync(take):
                await send.send(batch)

    async def write(role: str, share: list[Document]) -> None:
        await write_documents(stores.by_name[role], share, role=role)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        async for batch in receive:
            now = utc_now()
            stamped = [attrs.evolve(one, version=attrs.evolve(one.version, updated_at=now)) for one in batch]
            cached = [one for one in stamped if rng.random() < CACHED_SHARE]
            async with trio.open_nursery() as writers:
                writers.start_soon(write, "text", stamped)
                writers.start_soon(write, "vector", stamped)
                writers.start_soon(write, "cache", cached)
            filled.documents += len(stamped)
            filled.cached += len(cached)
            progress(filled.documents)
    return filled
