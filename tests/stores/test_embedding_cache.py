"""Vectors of texts that were embedded lately are kept, within a bound, and failures are not."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

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
