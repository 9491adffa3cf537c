"""An embedder without a model: feature hashing."""

from __future__ import annotations

import functools
import math
import re
import zlib
from array import array
from collections.abc import Sequence
from typing import Final

import trio

from ._function import check_positive

_WORD: Final = re.compile(r"\w+")
_BIGRAM_WEIGHT: Final = 0.5
_MASK: Final = 2**64 - 1


@functools.lru_cache(maxsize=8192)
def _mixed(word: str) -> int:
    # CRC-32 alone is linear; a multiplication spreads it, so that sign and bucket are independent.
    return (zlib.crc32(word.encode(errors="replace")) + 1) * 0x9E3779B97F4A7C15 & _MASK


class HashingEmbedder:
    """Counts words and pairs of neighbouring words into `dimension` buckets, signed, and scales to length 1.

    It is what it is called: texts that share words are near each other, synonyms are not. It needs no model and no
    network, and gives the same vectors in every process, on every machine. Text without words has the zero vector.

    Feature hashing: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.

    Args:
        dimension: how many numbers one vector has.

    Raises:
        InvalidValue: `dimension` is not an int of at least 1.
    """

    def __init__(self, dimension: int = 256) -> None:
        self._dimension = check_positive("dimension", dimension)

    def __repr__(self) -> str:
        return f"HashingEmbedder({self._dimension})"

    @property
    def model(self) -> str:
        """Names the method; the dimension stands beside it in every identity."""
        return "feature-hashing-v1"

    @property
    def dimension(self) -> int:
        """How many numbers one vector has."""
        return self._dimension

    @property
    def texts_per_call(self) -> int:
        """How many texts one call has at most: its thread takes the interpreter lock as rarely as can be."""
        return 1024

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector for each text, in order; computed in a worker thread.

        **If cancelled:** it returns at once; the thread ends by itself.
        """
        return await trio.to_thread.run_sync(self.embed_all, list(texts), abandon_on_cancel=True)

    def embed_all(self, texts: Sequence[str]) -> list[array[float]]:
        """What `embed` gives, computed here and now; for `trio_repair.embedding.processes.InProcess`."""
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> array[float]:
        size = self._dimension
        buckets = [0.0] * size
        previous = 0
        for word in _WORD.findall(text.lower()):
            mixed = _mixed(word)
            buckets[(mixed >> 32) % size] += 1.0 if mixed & 0x80000000 else -1.0
            pair = (previous * 31 ^ mixed) * 0xBF58476D1CE4E5B9 & _MASK
            if previous:
                buckets[(pair >> 32) % size] += _BIGRAM_WEIGHT if pair & 0x80000000 else -_BIGRAM_WEIGHT
            previous = mixed
        length = math.sqrt(math.fsum(value * value for value in buckets))
        if length:
            buckets = [value / length for value in buckets]
        return array("f", buckets)
