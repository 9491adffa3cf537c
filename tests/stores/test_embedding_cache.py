"""Vectors of texts that were embedded lately are kept, within a bound, and failures are not."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from trio_repair.stores._embedding import Embeddings, Failure


class Counting:
    """Gives each text its length, and remembers what it was asked; texts with "bad" in them it cannot take."""

    model = "length"
    dimension = 1

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        await trio.lowlevel.checkpoint()
        if any("bad" in text for text in texts):
            raise ValueError
        self.asked += texts
        return [[float(len(text))] for text in texts]


def _vector(number: float) -> bytes:
    return array("f", [number]).tobytes()


async def test_a_text_is_embedded_once() -> None:
    """In one call and in the next; the answers are in the order asked, lone surrogates included."""
    embedder = Counting()
    embeddings = Embeddings(embedder)
    wanted = [_vector(1), _vector(2), _vector(1)]
    assert wanted == await embeddings.embed(["a", "bb", "a"])
    assert ["a", "bb"] == embedder.asked
    assert [_vector(2), _vector(3), _vector(1)] == await embeddings.embed(["bb", "\udc80cc", "a"])
    assert ["a", "bb", "\udc80cc"] == embedder.asked
    assert [] == await embeddings.embed([])


async def test_what_failed_is_tried_again() -> None:
    """A failure is an answer for now only."""
    embedder = Counting()
    embeddings = Embeddings(embedder)
    for _ in range(2):
        good, bad = await embeddings.embed(["good", "bad"])
        assert (_vector(4), True) == (good, isinstance(bad, Failure))
    assert ["good"] == embedder.asked


async def test_the_last_ones_are_kept_within_the_bound() -> None:
    """Room for three vectors of one number: what was used longest ago goes first."""
    embedder = Counting()
    embeddings = Embeddings(embedder, max_bytes=3 * (256 + 4))
    await embeddings.embed(["a", "b", "c"])
    await embeddings.embed(["a", "d"])
    assert 3 == len(embeddings._kept)
    embedder.asked.clear()
    await embeddings.embed(["a", "c", "d"])
    assert [] == embedder.asked
    await embeddings.embed(["b"])
    assert ["b"] == embedder.asked


async def test_no_room_keeps_none() -> None:
    """Vectors larger than the whole bound are made, given, and not kept."""
    embedder = Counting()
    embeddings = Embeddings(embedder, max_bytes=10)
    for _ in range(2):
        assert [_vector(1)] == await embeddings.embed(["a"])
    assert ["a", "a"] == embedder.asked


@pytest.mark.parametrize(
    "vector",
    [
        [0.1, 2.0, -3.5],
        (0.1, 2, -3.5),
        array("f", [0.1, 2.0, -3.5]),
        array("d", [0.1, 2.0, -3.5]),
        memoryview(array("f", [0.1, 9.0, 2.0, 9.0, -3.5, 9.0]))[::2],
        memoryview(array("f", [0.1, 2.0, -3.5])).toreadonly(),
    ],
    ids=["list", "tuple", "floats", "doubles", "every second float", "read-only"],
)
async def test_a_vector_may_come_in_any_sequence_of_numbers(vector: Sequence[float]) -> None:
    """Whether its memory is copied or its numbers are read one by one, what is kept are the same 32-bit floats."""

    class Given:
        model, dimension = "given", 3

        async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
            await trio.lowlevel.checkpoint()
            return [vector for _ in texts]

    assert [array("f", [0.1, 2.0, -3.5]).tobytes()] == await Embeddings(Given()).embed(["a"])


async def test_memory_that_holds_no_vector_is_refused() -> None:
    """Too few numbers, two rows of them, and what is not finite: as it would be refused in a list."""
    for vector, problem in (
        (array("f", [1.0, 2.0]), "gave a vector of 2 numbers, not of 3"),
        (memoryview(bytes(24)).cast("f", [2, 3]), "gave a vector that is not a sequence of numbers"),
        (array("f", [1.0, 2.0, float("nan")]), "gave a vector with NaN or infinity"),
    ):

        class Given:
            model, dimension = "given", 3

            async def embed(self, texts: Sequence[str], vector: Any = vector) -> Any:
                await trio.lowlevel.checkpoint()
                return [vector for _ in texts]

        (answer,) = await Embeddings(Given()).embed(["a"])
        assert isinstance(answer, Failure)
        assert problem in answer.problem
