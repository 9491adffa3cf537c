"""LangChain's indexing API: `index` with an `SQLRecordManager`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, cast

from langchain_classic.indexes import SQLRecordManager
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import index
from langchain_core.vectorstores import VectorStore
from langchain_text_splitters import TextSplitter

from .judge import Copies
from .scenario import CHUNKER, EMBEDDER, OVERLAP, SIZE, Account, Scenario, Way, read_source, remove_database
from .vectors import FILE, Row, VectorFile, open_vectors, pack

LEDGER: Final = "ledger.db"
_BATCH: Final = 1000
"""The documentation advises a batch as big as possible: sources that span batches are written twice."""


class HashingEmbeddings(Embeddings):
    """The same vectors as everywhere."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One for each text."""
        return [list(vector) for vector in EMBEDDER.embed_all(texts)]

    def embed_query(self, text: str) -> list[float]:
        """The same as for a document."""
        return self.embed_documents([text])[0]


class Windows(TextSplitter):
    """The same chunks as everywhere."""

    def split_text(self, text: str) -> list[str]:
        """Overlapping windows."""
        return [chunk.text for chunk in CHUNKER.chunk(text)]


class SQLiteVectors(VectorStore):
    """LangChain's interface over the vector store."""

    def __init__(self, file: VectorFile, embeddings: Embeddings) -> None:
        self._file = file
        self._embeddings = embeddings

    @property
    def embeddings(self) -> Embeddings:
        """What makes the vectors."""
        return self._embeddings

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **_kwargs: Any,
    ) -> list[str]:
        """Add chunks, in the place of those that have the same ids."""
        some = list(texts)
        assert metadatas is not None
        assert ids is not None
        vectors = self._embeddings.embed_documents(some)
        self._file.put(
            [
                Row(key, metadata["source"], text, json.dumps(metadata), pack(vector))
                for key, text, metadata, vector in zip(ids, some, metadatas, vectors, strict=True)
            ]
        )
        return ids

    def delete(self, ids: list[str] | None = None, **_kwargs: Any) -> bool:
        """Delete chunks."""
        self._file.delete_keys(ids or [])
        return True

    def similarity_search(self, query: str, k: int = 4, **_kwargs: Any) -> list[Document]:
        """The nearest chunks."""
        hits = self._file.nearest(pack(self._embeddings.embed_query(query)), k)
        return [Document(id=hit.key, page_content=hit.text, metadata=json.loads(hit.metadata)) for hit in hits]

    @classmethod
    def from_texts(
        cls, texts: list[str], embedding: Embeddings, metadatas: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> SQLiteVectors:
        """Part of the interface, and of no use here: the file is opened elsewhere."""
        raise NotImplementedError


def _chunks(folder: Path) -> Iterator[Document]:
    splitter = Windows(chunk_size=SIZE, chunk_overlap=OVERLAP, add_start_index=True)
    for doc_id, text in read_source(folder):
        yield from splitter.split_documents([Document(page_content=text, metadata={"source": doc_id})])


def _index(folder: Path, *, cleanup: Literal["incremental", "full"] = "full", force_update: bool = False) -> Account:
    ledger = SQLRecordManager("benchmark", db_url=f"sqlite:///{folder / LEDGER}")
    ledger.create_schema()
    try:
        with open_vectors(folder) as file:
            said = index(
                _chunks(folder),
                ledger,
                SQLiteVectors(file, HashingEmbeddings()),
                batch_size=_BATCH,
                cleanup=cleanup,
                source_id_key="source",
                force_update=force_update,
                key_encoder="sha256",
            )
    finally:
        ledger.engine.dispose()
    counts = cast("dict[str, int]", said)
    return Account(said={name.removeprefix("num_"): count for name, count in counts.items()})


def _anew(folder: Path) -> Account:
    remove_database(folder / FILE)
    remove_database(folder / LEDGER)
    return _index(folder)


class LangChain:
    """The indexing API."""

    @property
    def ways(self) -> Sequence[Way]:
        """The two cleanup modes, the second with `force_update` too, and everything anew."""
        return (
            Way(
                name="langchain incremental",
                how='index(cleanup="incremental")',
                resync=partial(_index, cleanup="incremental"),
            ),
            Way(name="langchain full", how='index(cleanup="full")', resync=_index),
            Way(
                name="langchain full, forced",
                how='index(cleanup="full", force_update=True)',
                resync=partial(_index, force_update=True),
            ),
            Way(name="langchain anew", how='vectors and ledger removed; index(cleanup="full")', resync=_anew),
        )

    def sync(self, folder: Path, scenario: Scenario) -> None:
        """Index everything."""
        del scenario
        _index(folder)

    def damage(self, folder: Path, scenario: Scenario) -> None:
        """Past `index` and its ledger."""
        with open_vectors(folder) as file:
            file.damage(scenario)

    def copies(self, folder: Path) -> Copies:
        """Chunks and vectors."""
        with open_vectors(folder) as file:
            return file.copies()


TOOL: Final = LangChain()
