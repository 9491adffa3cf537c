"""Make an embedder of a function that computes in Python: in processes, beside this one's interpreter lock."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import trio
import trio_parallel

from trio_repair import InvalidValue

from ._function import EmbeddingFunction, FunctionEmbedder, check_positive


class InProcess(FunctionEmbedder):
    """Runs a synchronous embedding function in worker processes, by trio-parallel (``trio-repair[parallel]``).

    In a thread, a function that is written in Python keeps the interpreter lock to itself, and the event loop and the
    stores' drivers wait for it; in a process it takes another core. A function that lets go of the lock, as models do
    that compute in C, is better off with `InThread`, which starts nothing and copies nothing.

    ::

        embedder = InProcess("our-hashing-2", 256, our_package.embed_all)

    A process starts with the first call, in which it imports the function's module, and ends with this program.
    Programs that are run as a script need ``if __name__ == "__main__":``, as with `multiprocessing`.

    Args:
        model: names what makes the vectors; change it when they change, and stored vectors count as stale.
        dimension: how many numbers one vector has.
        function: takes a list of texts and gives a vector for each, in order. It goes to the process with each call:
            a function of a module, or a method of an object that can be pickled.
        texts_per_call: how many texts a call has at most. Each call waits for some turns of the event loop, beside what
            it computes.
        max_processes: among how many processes the texts of a call are divided.

    Raises:
        InvalidValue: an argument is not usable.
    """

    def __init__(
        self,
        model: str,
        dimension: int,
        function: EmbeddingFunction,
        *,
        texts_per_call: int = 1024,
        max_processes: int = 1,
    ) -> None:
        super().__init__(model, dimension, function, texts_per_call)
        self._processes = check_positive("max_processes", max_processes)
        self._limiter = trio.CapacityLimiter(max_processes)
        try:
            pickle.dumps(function)
        except Exception as error:
            problem = f"cannot be sent to a process ({type(error).__name__}); it must be a function of a module"
            raise InvalidValue("function", problem) from error

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector for each text, in order.

        Raises:
            trio_parallel.BrokenWorkerError: a process died.
            Exception: whatever the function raises.

        **If cancelled:** its processes are killed, and others are started when they are needed.
        """
        texts = list(texts)
        size = -(-len(texts) // self._processes)
        if size == len(texts):
            return await self._embed(texts)
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        made: list[Sequence[Sequence[float]]] = [()] * len(parts)
        failures: list[Exception] = []

        async def embed(index: int) -> None:
            try:
                made[index] = await self._embed(parts[index])
            except Exception as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for index in range(len(parts)):
                nursery.start_soon(embed, index)
        if failures:
            raise failures[0]
        if any(len(vectors) != len(part) for vectors, part in zip(made, parts, strict=True)):
            raise ValueError("not as many vectors as texts")
        return [vector for vectors in made for vector in vectors]

    async def _embed(self, texts: list[str]) -> Sequence[Sequence[float]]:
        run = trio_parallel.run_sync
        made: Sequence[Sequence[float]] = await run(self._function, texts, kill_on_cancel=True, limiter=self._limiter)
        return made
