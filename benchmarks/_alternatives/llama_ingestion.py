"""LlamaIndex's `IngestionPipeline` with its document store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import TextSplitter
from llama_index.core.schema import BaseNode, Document, MetadataMode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery, VectorStoreQueryResult
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from .judge import Copies
from .scenario import CHUNKER, EMBEDDER, Account, Scenario, Way, read_source, remove_database
from .vectors import FILE, Row, VectorFile, open_vectors, pack

LEDGER: Final = "docstore.json"


class HashingEmbedding(BaseEmbedding):
    """The same vectors as everywhere."""

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [list(vector) for vector in EMBEDDER.embed_all(texts)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class Windows(TextSplitter):
    """The same chunks as everywhere. The tool's own splitters count tokens, and look for the tables to do so."""

    def split_text(self, text: str) -> list[str]:
        """Overlapping windows."""
        return [chunk.text for chunk in CHUNKER.chunk(text)]


class SQLiteVectors(BasePydanticVectorStore):
    """LlamaIndex's interface over the vector store."""

    stores_text: bool = True
    _file: VectorFile = PrivateAttr()

    def __init__(self, file: VectorFile) -> None:
        super().__init__(stores_text=True)
        self._file = file

    @property
    def client(self) -> VectorFile:
        """The store below."""
        return self._file

    def add(self, nodes: Sequence[BaseNode], **_kwargs: Any) -> list[str]:
        """Add chunks."""
        self._file.put(
            [
                Row(
                    node.node_id,
                    node.ref_doc_id or "",
                    node.get_content(metadata_mode=MetadataMode.NONE),
                    json.dumps(node_to_metadata_dict(node, remove_text=True)),
                    pack(node.get_embedding()),
                )
                for node in nodes
            ]
        )
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **_kwargs: Any) -> None:
        """Delete all chunks of a document."""
        self._file.delete_documents([ref_doc_id])

    def query(self, query: VectorStoreQuery, **_kwargs: Any) -> VectorStoreQueryResult:
        """The nearest chunks."""
        assert query.query_embedding is not None
        hits = self._file.nearest(pack(query.query_embedding), query.similarity_top_k)
        return VectorStoreQueryResult(
            nodes=[metadata_dict_to_node(json.loads(hit.metadata), hit.text) for hit in hits],
            similarities=[1 - hit.distance**2 / 2 for hit in hits],
            ids=[hit.key for hit in hits],
        )


def _ingest(folder: Path, *, strategy: DocstoreStrategy = DocstoreStrategy.UPSERTS_AND_DELETE) -> Account:
    ledger = folder / LEDGER
    docstore = SimpleDocumentStore.from_persist_path(str(ledger)) if ledger.exists() else SimpleDocumentStore()
    documents = [
        # The id as metadata too, as readers of files give the path: equal texts would have equal hashes, and be one.
        Document(
            text=text,
            id_=doc_id,
            metadata={"source": doc_id},
            excluded_embed_metadata_keys=["source"],
            excluded_llm_metadata_keys=["source"],
        )
        for doc_id, text in read_source(folder)
    ]
    with open_vectors(folder) as file:
        pipeline = IngestionPipeline(
            transformations=[Windows(), HashingEmbedding(model_name=EMBEDDER.model, embed_batch_size=1000)],
            vector_store=SQLiteVectors(file),
            docstore=docstore,
            docstore_strategy=strategy,
            # It remembers whole runs by all their texts: here it could only cost time.
            disable_cache=True,
        )
        nodes = pipeline.run(documents=documents)
    docstore.persist(str(ledger))
    return Account(said={"chunks ingested": len(nodes)})


def _anew(folder: Path) -> Account:
    remove_database(folder / FILE)
    (folder / LEDGER).unlink()
    return _ingest(folder)


class LlamaIndex:
    """The ingestion pipeline."""

    @property
    def ways(self) -> Sequence[Way]:
        """The two strategies that update, and everything anew."""
        return (
            Way(
                name="llamaindex upserts",
                how="IngestionPipeline.run, DocstoreStrategy.UPSERTS",
                resync=partial(_ingest, strategy=DocstoreStrategy.UPSERTS),
            ),
            Way(
                name="llamaindex upserts, delete",
                how="IngestionPipeline.run, DocstoreStrategy.UPSERTS_AND_DELETE",
                resync=_ingest,
            ),
            Way(
                name="llamaindex anew",
                how="vectors and docstore removed; DocstoreStrategy.UPSERTS_AND_DELETE",
                resync=_anew,
            ),
        )

    def sync(self, folder: Path, scenario: Scenario) -> None:
        """Ingest everything."""
        del scenario
        _ingest(folder)

    def damage(self, folder: Path, scenario: Scenario) -> None:
        """Past the pipeline and its document store."""
        with open_vectors(folder) as file:
            file.damage(scenario)

    def copies(self, folder: Path) -> Copies:
        """Chunks and vectors."""
        with open_vectors(folder) as file:
            return file.copies()


TOOL: Final = LlamaIndex()
