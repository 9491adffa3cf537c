"""Make an embedder of a function that blocks."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ._function import EmbeddingFunction, FunctionEmbedder, check_positive


class InThread(FunctionEmbedder):
    """Runs a synchronous embedding function in worker threads, so that it never blocks the event loop.

    ::

        model = SentenceTransformer("all-MiniLM-L6-v2")
        embedder = InThread("all-MiniLM-L6-v2", 384, lambda texts: model.encode(texts, normalize_embeddings=True))

    Args:
        model: names what makes the vectors; change it when they change, and stored vectors count as stale.
        dimension: how many numbers one vector has.
        function: takes a list of texts and gives a vector for each, in order.
        texts_per_call: how many texts `function` is given at most.
        max_threads: how many calls of `function` may be under way at once; 1 if it is not thread-safe.

    Raises:
        InvalidValue: an argument is not usable.
    """

    def __init__(
        self,
        model: str,
        dimension: int,
        function: EmbeddingFunction,
        *,
        texts_per_call: int = 128,
        max_threads: int = 1,
    ) -> None:
        super().__init__(model, dimension, function, texts_per_call)
        self._limiter = trio.CapacityLimiter(check_positive("max_threads", max_threads))

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector for each text, in order.

        Raises:
            Exception: whatever the function raises.

        **If cancelled:** it returns at once; the function runs to its end in its thread, and the result is dropped.
        """
        return await trio.to_thread.run_sync(self._function, list(texts), abandon_on_cancel=True, limiter=self._limiter)
