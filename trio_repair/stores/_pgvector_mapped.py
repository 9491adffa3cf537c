"""The vector store on a table of chunks that somebody else made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    Fence,
    InvalidValue,
    Prepared,
    StoreError,
    StoreRejected,
    StoreTraits,
)
from trio_repair.abc import Chunker, Embedder

from ._pgvector_layout import check_identity
from ._pgvector_table import ChunkSetView, ChunkTable, ChunkTableWriter, chunk_looking, find_chunk_table
from ._postgres import Server, Session
from ._postgres_layout import View
from ._postgres_mapped import MappedStore, SortedView
from ._postgres_mapping import ChunkMapping
from ._postgres_preparing import Preparation, chunk_preparations
from ._thread import StoreThread
from ._vector_preparing import VectorPreparing

MAX_BATCH = 256
MAX_BATCH_BYTES = 2**20


class _SetView(ChunkSetView, SortedView):
    def __init__(self, store: str, content: ContentDefinition, table: ChunkTable, preparing: VectorPreparing) -> None:
        super().__init__(store, content, chunk_looking(table, preparing.identity))
        self.chunker = preparing.chunker


class MappedVectorStore(MappedStore):
    """Chunks in a table of somebody else's; made by `open_pgvector_table`."""

    def __init__(
        self,
        server: Server,
        traits: StoreTraits,
        view: View,
        table: ChunkTable,
        preparing: VectorPreparing,
        *,
        thread: StoreThread[Session],
    ) -> None:
        super().__init__(server, traits, view, ChunkTableWriter(table, view), thread=thread)
        self._table = table
        self._preparing = preparing
        self.comparison = table.mapping.compare

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check, chunk and embed documents, without any effect. A text that was embedded lately is not embedded again.

        `StoreRejected` for one whose digest is not that of its content, that PostgreSQL cannot hold, or that chunker or
        embedder cannot take; `StoreUnavailable` for one for which the embedder failed in a way that may pass.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        return await self._preparing.prepare(await super().prepare(documents))

    def _prepare(self, document: Document) -> Prepared | StoreError:
        version = document.version
        if self.comparison == "version" and version.number is None and not version.deleted:
            # Written, it would differ from its source as before, and be written again in each run.
            problem = (
                "it has no version number, and its chunks are compared by that; give it one, or let table.compare be"
                " 'chunks'"
            )
            return StoreRejected(self._name, problem, document.doc_id)
        return super()._prepare(document)

    def _suggest(self, session: Session) -> list[Preparation]:
        del session
        return chunk_preparations(self._table)


def chunk_finder(
    server: Server, mapping: ChunkMapping, content: ContentDefinition, embedder: Embedder, chunker: Chunker
) -> Callable[[Session, StoreThread[Session]], MappedVectorStore]:
    """How a table of chunks is found.

    Raises:
        InvalidValue: the embedder is not usable, or metadata is part of the content.
    """
    preparing = VectorPreparing(server.store, embedder, chunker)
    check_identity(preparing.identity)
    if content.metadata_keys:
        raise InvalidValue(mapping.under, "has no place for metadata, which is part of the content here")

    def find(session: Session, thread: StoreThread[Session]) -> MappedVectorStore:
        table = find_chunk_table(session, mapping, preparing.identity.dimension)
        looking = chunk_looking(table, preparing.identity)
        view: View = SortedView(server.store, content, looking)
        if mapping.compare == "chunks":
            view = _SetView(server.store, content, table, preparing)
        traits = StoreTraits(
            numbered=table.numbered,
            keeps_metadata=False,
            fence=Fence.STRONG,
            holds_text=mapping.compare == "text",
            keeps_tombstones=False,
            absent=mapping.absent or AbsentMeans.MANUAL,
            max_batch=MAX_BATCH,
            max_batch_bytes=MAX_BATCH_BYTES,
            embedding=preparing.identity,
        )
        return MappedVectorStore(server, traits, view, table, preparing, thread=thread)

    return find
