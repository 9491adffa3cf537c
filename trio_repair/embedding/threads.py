"""Make an embedder of a function that blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from trio_repair import InvalidValue


class InThread:
    """Runs a synchronous embedding function in worker threads, so that it never blocks the event loop.

    ::

        model = SentenceTransformer("all-MiniLM-L6-v2")
        embedder = InThread("all-MiniLM-L6-v2", 384, lambda texts: model.encode(texts, normalize_embeddings=True))

    Args:
        model: names what makes the vectors; change it when they change, and stored vectors count as stale.
        dimension: how many numbers one vector has.
        function: takes a list of texts and gives a vector for each, in order.
        max_threads: how many calls of `function` may be under way at once; 1 if it is not thread-safe.

    Raises:
        InvalidValue: an argument is not usable.
    """

    def __init__(
        self,
        model: str,
        dimension: int,
        function: Callable[[list[str]], Sequence[Sequence[float]]],
        *,
        max_threads: int = 1,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise InvalidValue("model", "must be a str that is not empty")
        check_positive("dimension", dimension)
        check_positive("max_threads", max_threads)
        self._model = model
        self._dimension = dimension
        self._function = function
        self._limiter = trio.CapacityLimiter(max_threads)

    def __repr__(self) -> str:
        return f"InThread({self._model!r}, {self._dimension})"

    @property
    def model(self) -> str:
        """Names what makes the vectors."""
        return self._model

    @property
    def dimension(self) -> int:
        """How many numbers one vector has."""
        return self._dimension

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector for each text, in order.

        Raises:
            Exception: whatever the function raises.

        **If cancelled:** it returns at once; the function runs to its end in its thread, and the result is dropped.
        """
        return await trio.to_thread.run_sync(self._function, list(texts), abandon_on_cancel=True, limiter=self._limiter)


def check_positive(field: str, value: object) -> int:
    """Return `value` if it is an int of at least 1.

    Raises:
        InvalidValue: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidValue(field, f"must be an int of at least 1, not {value!r}")
    return value
