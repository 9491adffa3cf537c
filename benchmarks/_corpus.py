"""What several benchmarks build on: the three embedded stores in a folder, filled, and damaged in a known way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from trio_repair import ContentDefinition, Document, DocumentVersion, StoreError, Stores, Write, WriteStatus
from trio_repair.abc import Store
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector

CONTENT = ContentDefinition()
NAMES = ("text", "vector", "cache")
BATCH = 256
SHORT = HashingEmbedder(8)
"""Vectors that cost next to nothing, for benchmarks that are not about vectors."""


async def open_stores(
    stack: AsyncExitStack,
    folder: Path,
    *,
    embedder: HashingEmbedder = SHORT,
    synchronous: str = "normal",
    create: bool = False,
) -> Stores:
    """The three embedded stores in a folder."""
    options: dict[str, Any] = {"synchronous": synchronous, "create": create}
    return Stores(
        text=await stack.enter_async_context(open_sqlite_text(folder / "text.db", **options)),
        vector=await stack.enter_async_context(
            open_sqlite_vector(folder / "vector.db", embedder=embedder, chunker=WindowChunker(), **options)
        ),
        cache=await stack.enter_async_context(open_sqlite_cache(folder / "cache.db", **options)),
    )


async def put(store: Store, documents: Sequence[Document]) -> None:
    """Write a batch over whatever the store holds."""
    views = await store.observe([document.doc_id for document in documents])
    writes = []
    for view, prepared in zip(views, await store.prepare(documents), strict=True):
        assert not isinstance(view, StoreError)
        assert not isinstance(prepared, StoreError)
        writes.append(Write(prepared=prepared, token=view.token))
    assert {answer.status for answer in await store.write(writes)} <= {WriteStatus.LANDED}


def short_document(number: int, version: int) -> Document:
    """A text of a few words."""
    text = f"document {number} at version {version}"
    return Document(
        doc_id=f"document-{number:09}",
        text=text,
        version=DocumentVersion(number=version, digest=CONTENT.digest(text, {})),
    )


async def build_damaged(folder: Path, count: int, damaged: float) -> list[str]:
    """Fill the three stores with short documents; the ids of those that a check has to find.

    `damaged` of 1 documents (at least one) are missing in the vector store, newer in the text store, or stale in the
    cache. The same count and the same part always give the same stores.
    """
    rng = random.Random(count)
    chosen = set(rng.sample(range(count), max(1, round(count * damaged))))
    found: list[str] = []
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, folder, create=True)
        for start in range(0, count, BATCH):
            batches: dict[str, list[Document]] = {name: [] for name in NAMES}
            for number in range(start, min(count, start + BATCH)):
                versions: dict[str, int | None] = dict.fromkeys(NAMES, 1)
                if number in chosen:
                    kind = rng.choice(("missing", "newer", "stale cache"))
                    if kind == "missing":
                        versions["vector"] = None
                    elif kind == "newer":
                        versions["text"] = 2
                    else:
                        versions["cache"] = 0
                    found.append(short_document(number, 1).doc_id)
                for name, version in versions.items():
                    if version is not None:
                        batches[name].append(short_document(number, version))
            for name, batch in batches.items():
                await put(stores.by_name[name], batch)
    return found


def prepared(root: Path, count: int, damaged: float) -> Path:
    """A folder with stores as `build_damaged` makes them; built now unless it is there, whole."""
    folder = root / f"{count}-{damaged:g}"
    whole = folder / "damaged.txt"  # written last
    if not whole.exists():
        print(f"building {count} documents in {folder}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        for half_built in folder.glob("*.db*"):
            half_built.unlink()
        found = trio.run(build_damaged, folder, count, damaged)
        part = folder / "damaged.part"
        part.write_text("".join(f"{doc_id}\n" for doc_id in found))
        part.replace(whole)
    return folder


def damaged_ids(folder: Path) -> Iterator[str]:
    """One by one, so that the list of them is no part of what is measured."""
    with (folder / "damaged.txt").open() as lines:
        for line in lines:
            yield line.rstrip("\n")
