"""What a vector store does before it writes: it cuts documents into chunks and embeds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, cast

from trio_repair import Document, EmbeddingIdentity, Prepared, StoreError, StoreRejected, StoreUnavailable
from trio_repair._views import new_prepared
from trio_repair.abc import Chunk, Chunker, Embedder

from ._embedding import Embeddings, Failure, Vector, check_chunker, check_embedder, cut


class Payload(NamedTuple):
    """A document made ready: its metadata as JSON, its chunks, and a vector for each."""

    metadata: str
    chunks: Sequence[Chunk]
    vectors: Sequence[Vector]


TOMBSTONE: Final = Payload("{}", (), ())


class VectorPreparing:
    """Embedder and chunker of one store.

    Raises:
        InvalidValue: embedder or chunker is not usable.
    """

    def __init__(self, store: str, embedder: Embedder, chunker: Chunker) -> None:
        check_embedder(embedder)
        check_chunker(chunker)
        self.identity = EmbeddingIdentity(model=embedder.model, dimension=embedder.dimension, chunking=chunker.identity)
        self._store = store
        self._embeddings = Embeddings(embedder)
        self.chunker = chunker

    async def prepare(self, checked: Sequence[Prepared | StoreError]) -> list[Prepared | StoreError]:
        """Chunk and embed what is prepared so far, with metadata as its payload; errors are passed on.

        **If cancelled:** nothing has changed.
        """
        answers = list(checked)
        pieces: dict[int, Sequence[Chunk]] = {}
        for index, answer in enumerate(answers):
            if isinstance(answer, StoreError):
                continue
            if answer.document.text is None:
                answers[index] = Prepared(document=answer.document, payload=TOMBSTONE)
                continue
            chunks = cut(self.chunker, answer.document.text)
            if isinstance(chunks, Failure):
                answers[index] = self._failed(chunks, answer.document)
            else:
                pieces[index] = chunks
        vectors = await self._embeddings.embed([chunk.text for chunks in pieces.values() for chunk in chunks])
        end = 0
        for index, chunks in pieces.items():
            start, end = end, end + len(chunks)
            own = vectors[start:end]
            answer = answers[index]
            assert isinstance(answer, Prepared)
            failures = [one for one in own if isinstance(one, Failure)]
            if failures:
                answers[index] = self._failed(failures[0], answer.document)
            else:
                payload = Payload(answer.payload, chunks, cast("list[Vector]", own))
                answers[index] = new_prepared(answer.document, payload)
        return answers

    async def embed_query(self, text: str) -> Vector:
        """The vector of a text that is asked for.

        Raises:
            StoreRejected: the embedder cannot take it.
            StoreUnavailable: the embedder failed in a way that may pass.

        **If cancelled:** nothing has changed.
        """
        (vector,) = await self._embeddings.embed([text])
        if isinstance(vector, Failure):
            raise self._failed(vector, None)
        return vector

    def _failed(self, failure: Failure, document: Document | None) -> StoreError:
        kind = StoreUnavailable if failure.transient else StoreRejected
        return kind(self._store, failure.problem, None if document is None else document.doc_id)
