"""Opening the three SQLite stores of a directory, alike in every process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector


@asynccontextmanager
async def open_stores(directory: Path, *, create: bool = False) -> AsyncIterator[dict[str, Any]]:
    """By name. `synchronous="normal"` loses nothing when only the process dies."""
    embedder, chunker = HashingEmbedder(8), WindowChunker(40, 10)
    async with (
        open_sqlite_text(directory / "text.db", create=create, synchronous="normal") as text,
        open_sqlite_vector(
            directory / "vector.db", embedder=embedder, chunker=chunker, create=create, synchronous="normal"
        ) as vector,
        open_sqlite_cache(directory / "cache.db", create=create, synchronous="normal") as cache,
    ):
        yield {"text": text, "vector": vector, "cache": cache}
