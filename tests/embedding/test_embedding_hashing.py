"""HashingEmbedder and InThread."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_repair import InvalidValue
from trio_repair.abc import Embedder
from trio_repair.embedding import HashingEmbedder, InThread


def distance(one: Any, other: Any) -> float:
    return math.dist(list(one), list(other))


async def test_texts_that_share_words_are_near() -> None:
    """A text is nearest to itself, then to one that shares words and their order, then to a stranger."""
    embedder = HashingEmbedder(256)
    query, same, shuffled, stranger = await embedder.embed(
        ["the store hangs for ever", "The store hangs, for ever!", "ever the for hangs store", "vectors of bread"]
    )
    assert 0 == pytest.approx(distance(query, same), abs=1e-6)
    assert 0 < distance(query, shuffled) < distance(query, stranger)


@given(st.lists(st.text(), max_size=4), st.integers(1, 64))
def test_vectors_have_length_one(texts: list[str], dimension: int) -> None:
    """Each vector has `dimension` finite numbers and length 1, or is zero (no words, or words that cancel out)."""
    embedder = HashingEmbedder(dimension)
    vectors = embedder.embed_all(texts)
    assert len(texts) == len(vectors)
    for vector in vectors:
        assert dimension == len(vector)
        length = math.sqrt(sum(value * value for value in vector))
        assert length == 0 or length == pytest.approx(1, abs=1e-5)


async def test_a_batch_gives_what_single_texts_give() -> None:
    """What else is in the batch does not matter."""
    texts = ["one two", "two one", "", "one"]
    embedder = HashingEmbedder(32)
    together = await embedder.embed(texts)
    assert [list(vector) for vector in together] == [list((await embedder.embed([text]))[0]) for text in texts]


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_the_same_in_every_process(seed: str) -> None:
    """Vectors do not depend on the process or PYTHONHASHSEED; this is the digest of the method of that name."""
    program = (
        "import hashlib; from trio_repair.embedding import HashingEmbedder as E;"
        "print(E(64).model, hashlib.sha256(E(64).embed_all(['Hello wörld, hello 世界'])[0].tobytes()).hexdigest())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
    )
    assert f"feature-hashing-v1 {DIGEST}" == ended.stdout.strip()


DIGEST = "20244d7df26fa7bece550f6eba5b6b088f8867a33b6db0156b48a9ab945c908b"


def test_what_it_says_of_itself() -> None:
    """It keeps the seam and names its method."""
    assert isinstance(HashingEmbedder(), Embedder)
    assert ("feature-hashing-v1", 256) == (HashingEmbedder().model, HashingEmbedder().dimension)
    assert "HashingEmbedder(256)" == repr(HashingEmbedder())
    for dimension in (0, -1, True, 2.0):
        with pytest.raises(InvalidValue, match="dimension"):
            HashingEmbedder(dimension)  # type: ignore[arg-type]  # wrong on purpose


async def test_function_in_a_thread() -> None:
    """A blocking function runs in a worker thread, one call at a time unless told otherwise."""
    threads: list[threading.Thread] = []

    def embed(texts: list[str]) -> list[list[float]]:
        threads.append(threading.current_thread())
        return [[float(len(text))] for text in texts]

    embedder = InThread("lengths", 1, embed)
    assert isinstance(embedder, Embedder)
    assert ("lengths", 1) == (embedder.model, embedder.dimension)
    assert [[1.0], [2.0]] == await embedder.embed(("a", "bb"))
    assert threading.main_thread() not in threads
    assert "InThread('lengths', 1)" == repr(embedder)
    assert 1 == embedder._limiter.total_tokens


async def test_a_function_that_hangs_is_left() -> None:
    """A hanging function does not hold up its caller's deadline."""
    gate, started = threading.Event(), threading.Event()

    def embed(_texts: list[str]) -> list[list[float]]:
        started.set()
        gate.wait()
        return []

    embedder = InThread("hangs", 1, embed)
    try:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(embedder.embed, ["a"])
                await trio.to_thread.run_sync(started.wait, abandon_on_cancel=True)
                nursery.cancel_scope.cancel()
    finally:
        gate.set()


@pytest.mark.parametrize(
    ("model", "dimension", "threads"), [("", 1, 1), (None, 1, 1), ("m", 0, 1), ("m", 1, 0), ("m", True, 1)]
)
def test_arguments_that_mean_nothing(model: Any, dimension: Any, threads: Any) -> None:
    """A nameless model, no numbers and no threads are refused."""
    with pytest.raises(InvalidValue):
        InThread(model, dimension, lambda _texts: [], max_threads=threads)
