"""Which documents are damaged in which way, and the damage that is done to the source, the same for every tool."""

from __future__ import annotations

import codecs
import itertools
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import apsw
import attrs

from trio_repair import ContentDefinition, DivergenceKind, Document
from trio_repair.demo.corpus import stdlib_documents
from trio_repair.demo.damage import edited, tombstone
from trio_repair.demo.writing import remove_documents, write_documents
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.sqlite_text import open_sqlite_text

from .judge import Copies

SOURCE: Final = "text.db"
"""What every tool reads from. Each has a copy of its own, since a repair may write to it."""


class MeteredEmbedder(HashingEmbedder):
    """Counts what it embeds: here that costs next to nothing, with a real model it is most of what a re-sync costs."""

    def __init__(self) -> None:
        super().__init__()
        # Appended to from several threads.
        self.calls: list[int] = []

    def embed_all(self, texts: list[str]) -> list[array[float]]:
        self.calls.append(len(texts))
        return super().embed_all(texts)


EMBEDDER: Final = MeteredEmbedder()
SIZE, OVERLAP = 200, 30
CHUNKER: Final = WindowChunker(size=SIZE, overlap=OVERLAP)
"""Docstrings are short: in wider windows few of them would have several chunks."""

_MOST_DELETED: Final = 200
"""Two kinds end in a delete. With at most one document in 200 each, the 1 % that a repair may delete unasked holds."""


@attrs.frozen(kw_only=True)
class Scenario:
    """What happens to which documents."""

    documents: Sequence[Document] = attrs.field(repr=False)
    """All of them, as they were synced."""
    damaged: Mapping[DivergenceKind, Sequence[str]]
    """For each kind, as many ids; no id twice."""

    def of(self, kind: DivergenceKind) -> list[Document]:
        """The documents of a kind, as they were synced."""
        wanted = set(self.damaged[kind])
        return [document for document in self.documents if document.doc_id in wanted]

    @property
    def cached(self) -> list[Document]:
        """What a tool that has a cache holds in it: every third document, and those whose cache entry is damaged."""
        chosen = set(self.damaged[DivergenceKind.STALE_CACHE])
        return [one for index, one in enumerate(self.documents) if index % 3 == 0 or one.doc_id in chosen]


@attrs.frozen(kw_only=True)
class Account:
    """What a re-sync says of itself."""

    said: Mapping[str, int]
    """What it counts, in its own words."""
    left: frozenset[str] = frozenset()
    """The documents that it names as a person's to decide."""


@attrs.frozen(kw_only=True)
class Way:
    """One way to re-sync."""

    name: str
    how: str
    """The call that it is."""
    resync: Callable[[Path], Account]


class Tool(Protocol):
    """A tool with stores of its own in a folder, beside its copy of the source."""

    @property
    def ways(self) -> Sequence[Way]:
        """How it can re-sync."""

    def sync(self, folder: Path, scenario: Scenario) -> None:
        """Bring the documents into its stores for the first time."""

    def damage(self, folder: Path, scenario: Scenario) -> None:
        """Do to its stores, behind its back, what the scenario says."""

    def copies(self, folder: Path) -> Copies:
        """What its stores hold, read by plain SQL."""


def make_scenario(count: int, each: int, *, seed: int) -> Scenario:
    """Choose documents, and `each` of them for every kind.

    Raises:
        ValueError: there are not so many documents, or too few for so much damage.
    """
    if each < 1 or each * _MOST_DELETED > count:
        raise ValueError(f"of {count} documents, 1 to {count // _MOST_DELETED} can be damaged in each way, not {each}")
    documents = list(stdlib_documents(documents=count, seed=seed))
    if len(documents) < count:
        raise ValueError(f"this Python's library has {len(documents)} documents, not {count}")
    rng = random.Random(seed)
    several = [one.doc_id for one in documents if len(CHUNKER.chunk(_text(one))) > 1]
    # A document of one chunk that loses a chunk is simply missing.
    incomplete = rng.sample(several, each)
    others = sorted({one.doc_id for one in documents} - set(incomplete))
    rest = iter(rng.sample(others, each * len(DivergenceKind)))
    damaged = {
        kind: incomplete if kind is DivergenceKind.INCOMPLETE else list(itertools.islice(rest, each))
        for kind in DivergenceKind
    }
    return Scenario(documents=documents, damaged=damaged)


def other_content(text: str) -> str:
    """Another text with the same number of chunks: the windows are cut at the same whitespace."""
    return codecs.encode(text, "rot13")


def rewritten(document: Document, *, older: bool = False) -> Document:
    """The same version, or the one before, with other content."""
    text = other_content(_text(document))
    number = document.version.number
    assert number is not None
    version = attrs.evolve(
        document.version,
        number=number - 1 if older else number,
        digest=ContentDefinition().digest(text, document.metadata),
    )
    return attrs.evolve(document, text=text, version=version)


async def make_source(folder: Path, documents: Sequence[Document]) -> None:
    """The source, before anything happened."""
    async with open_sqlite_text(folder / SOURCE, create=True, synchronous="normal") as text:
        await write_documents(text, documents, role="text")


async def damage_source(folder: Path, scenario: Scenario) -> None:
    """What happened to the source since: texts changed, documents deleted, and rows gone without a trace."""
    async with open_sqlite_text(folder / SOURCE, synchronous="normal") as text:
        stale = [edited(one, "Changed at the source since.") for one in scenario.of(DivergenceKind.STALE)]
        await write_documents(text, stale, role="text")
        deleted = [tombstone(one) for one in scenario.of(DivergenceKind.UNDELETED)]
        await write_documents(text, deleted, role="text")
        await remove_documents(text, scenario.damaged[DivergenceKind.ORPHAN], role="text")


def read_source(folder: Path) -> Iterator[tuple[str, str]]:
    """Id and text of every document that the source has, by ascending id."""
    connection = apsw.Connection(str(folder / SOURCE), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        rows = connection.execute("SELECT doc_id, text FROM documents WHERE deleted = 0 ORDER BY doc_id")
        for doc_id, text in rows:
            yield str(doc_id), str(text)
    finally:
        connection.close()


def remove_database(file: Path) -> None:
    """Delete a database file with what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def _text(document: Document) -> str:
    assert document.text is not None
    return document.text
