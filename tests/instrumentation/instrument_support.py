"""What the tests of the instruments share: real SQLite stores, some documents of which are behind."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw

from trio_repair import RepairJob, Stores, SyncStrategy
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector

SECRET = "nobody may read this"


def missing(module: str, extra: str) -> str:
    """Why tests that need a library are skipped; "" if they are not: it is there, or this is CI, where they fail."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if found or os.environ.get("CI") == "true":
        return ""
    return f"{module} is not installed; pip install -e '.[{extra}]'"


@asynccontextmanager
async def sqlite_stores(directory: Path, *doc_ids: str, embedder: Any = None) -> AsyncIterator[Stores]:
    """Three empty stores, and `doc_ids` written by an application to the text store alone."""
    async with (
        open_sqlite_text(directory / "text.db", create=True, synchronous="normal") as text,
        open_sqlite_vector(
            directory / "vector.db",
            embedder=HashingEmbedder(8) if embedder is None else embedder,
            chunker=WindowChunker(40, 10),
            create=True,
            synchronous="normal",
        ) as vector,
        open_sqlite_cache(directory / "cache.db", create=True, synchronous="normal") as cache,
    ):
        with apsw.Connection(str(directory / "text.db")) as application:
            for doc_id in doc_ids:
                application.execute(
                    "INSERT INTO documents (doc_id, text, number) VALUES (?, ?, 1)", (doc_id, f"{doc_id}: {SECRET}")
                )
        yield Stores(text=text, vector=vector, cache=cache)


def job(doc_id: str, **given: Any) -> RepairJob:
    """A job that believes the text store, unless told otherwise."""
    return RepairJob(doc_id=doc_id, **{"strategy": SyncStrategy.TEXT_SOURCE_OF_TRUTH, **given})
