"""Chunks and vectors for a batch of documents, such that what is wrong with one document stays with it."""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, TypeAlias, cast

import attrs

from trio_repair import InvalidValue
from trio_repair.abc import CallSize, Chunk, Chunker, Embedder
from trio_repair.embedding import rebuild_text

MAX_DIMENSION: Final = 8192
"""sqlite-vec takes no longer vectors."""

_TEXTS_PER_CALL: Final = 128
_UPPER_BYTE: Final = 3 if sys.byteorder == "little" else 0
"""Where a 32-bit float has its sign and most of its exponent; 2**127 and more, infinity and NaN have ones in all of
the latter."""
_UNSAID: Final = object()
_GIVE_UP_AFTER: Final = 3
_KEPT_BYTES: Final = 8 * 2**20
_ENTRY_BYTES: Final = 256
"""What an entry takes beside the numbers of its vector: two objects of bytes and a place in an ordered dict."""


@attrs.frozen
class Failure:
    """Why a text has no vector."""

    problem: str
    transient: bool
    """True if the embedder may manage another time."""


Vector: TypeAlias = bytes
"""`dimension` 32-bit floats in the machine's byte order, as sqlite-vec stores them."""


def check_embedder(embedder: Embedder) -> Embedder:
    """Return an embedder whose properties are usable.

    Raises:
        InvalidValue: they are not.
    """
    model, dimension = embedder.model, embedder.dimension
    if not isinstance(model, str) or not model:
        raise InvalidValue("embedder", "its model must be a str that is not empty")
    _check_utf8("embedder", "model", model)
    if isinstance(dimension, bool) or not isinstance(dimension, int) or not 1 <= dimension <= MAX_DIMENSION:
        raise InvalidValue("embedder", f"its dimension must be an int from 1 to {MAX_DIMENSION}, not {dimension!r}")
    return embedder


def check_chunker(chunker: Chunker) -> Chunker:
    """Return a chunker whose identity is usable.

    Raises:
        InvalidValue: it is not.
    """
    identity: object = chunker.identity
    if not isinstance(identity, str):
        raise InvalidValue("chunker", f"its identity must be a str, not {type(identity).__name__}")
    _check_utf8("chunker", "identity", identity)
    return chunker


def _check_utf8(field: str, name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValue(field, f"its {name} holds a lone surrogate and is not valid UTF-8") from None


def texts_per_call(embedder: Embedder) -> int:
    """How many texts one of its calls has at most.

    Raises:
        InvalidValue: it says so, and that is no such number.
    """
    # Only what it or its class says: what answers to every name, as a mock does, has said nothing.
    if inspect.getattr_static(embedder, "texts_per_call", _UNSAID) is _UNSAID:
        return _TEXTS_PER_CALL
    texts = cast("CallSize", embedder).texts_per_call
    if isinstance(texts, bool) or not isinstance(texts, int) or texts < 1:
        raise InvalidValue("embedder", f"its texts_per_call must be an int of at least 1, not {texts!r}")
    return texts


def cut(chunker: Chunker, text: str) -> Sequence[Chunk] | Failure:
    """The chunks of a text, proven to give it back."""
    try:
        chunks = chunker.chunk(text)
        if type(chunks) is list and len(chunks) == 1 and _is_all(chunks[0], text):
            return chunks
        rebuilt = rebuild_text((chunk.start, chunk.text) for chunk in chunks)
    except Exception as error:
        return Failure(f"the chunker {chunker.identity!r} raised {type(error).__name__}", transient=False)
    if not chunks or rebuilt != text:
        problem = f"the chunker {chunker.identity!r} gave chunks that do not cover the text"
        return Failure(problem, transient=False)
    return chunks


def _is_all(chunk: Chunk, text: str) -> bool:
    # By type: what only compares equal is something else.
    plain = type(chunk) is Chunk and type(chunk.start) is int and type(chunk.text) is str
    return plain and chunk.start == 0 and chunk.text == text


class Embeddings:
    """An embedder, and the vectors of the texts that it was given last: a repair that is tried again, or a passage that
    stands in many documents, is not embedded twice.

    Raises:
        InvalidValue: what the embedder says of its calls is not usable.

    Invariant: what is kept takes at most `max_bytes`, counted as `_ENTRY_BYTES` and the vector for each text.
    """

    def __init__(self, embedder: Embedder, *, max_bytes: int = _KEPT_BYTES) -> None:
        self._embedder = embedder
        self._texts_per_call = texts_per_call(embedder)
        self._most = max_bytes // (_ENTRY_BYTES + 4 * embedder.dimension)
        self._kept: OrderedDict[bytes, Vector] = OrderedDict()
        """By SHA-256 of the text; the one that was used last stands last."""

    async def embed(self, texts: Sequence[str]) -> list[Vector | Failure]:
        """A vector for each text, or why it has none; see `embed_texts`. Failures are not kept.

        **If cancelled:** nothing has changed.
        """
        keys = [hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in texts]
        kept = self._kept
        found: dict[bytes, Vector | Failure] = {}
        missing: dict[bytes, str] = {}
        for key, text in zip(keys, texts, strict=True):
            vector = kept.get(key)
            if vector is None:
                missing[key] = text
            else:
                found[key] = vector
                kept.move_to_end(key)
        if missing:
            made = await embed_texts(self._embedder, list(missing.values()), self._texts_per_call)
            for key, answer in zip(missing, made, strict=True):
                found[key] = answer
                if not isinstance(answer, Failure):
                    kept[key] = answer
            while len(kept) > self._most:
                kept.popitem(last=False)
        return [found[key] for key in keys]


async def embed_texts(embedder: Embedder, texts: Sequence[str], size: int) -> list[Vector | Failure]:
    """A vector for each text, or why it has none; at most `size` of them to a call.

    A call that fails is tried again in halves, so that a poisonous text fails alone. If the embedder fails for one
    text after the other without a single success, it is taken to be down, and the rest is not tried.

    **If cancelled:** nothing has changed.
    """
    work = _Work(embedder)
    vectors: list[Vector | Failure] = []
    for start in range(0, len(texts), size):
        vectors += await work.embed(texts[start : start + size])
    return vectors


@attrs.define
class _Work:
    embedder: Embedder
    succeeded: bool = False
    down: int = 0
    """Single texts that failed for a reason that has nothing to do with them."""

    async def embed(self, texts: Sequence[str]) -> list[Vector | Failure]:
        failure: Failure
        if self.down >= _GIVE_UP_AFTER and not self.succeeded:
            return [self._failure("failed for every text that was tried", transient=True)] * len(texts)
        try:
            vectors = await self.embedder.embed(texts)
            given = len(vectors)
        except (ValueError, TypeError) as error:
            failure = self._failure(f"raised {type(error).__name__}", transient=False)
        except Exception as error:
            failure = self._failure(f"raised {type(error).__name__}", transient=True)
        else:
            if given == len(texts):
                self.succeeded = True
                return [self._packed(vector) for vector in vectors]
            failure = self._failure(f"gave {given} vectors for {len(texts)} texts", transient=False)
        if len(texts) > 1:
            middle = len(texts) // 2
            return [*await self.embed(texts[:middle]), *await self.embed(texts[middle:])]
        self.down += failure.transient
        return [failure]

    def _packed(self, vector: Sequence[float]) -> Vector | Failure:
        try:
            numbers = _floats(vector)
        except (TypeError, ValueError, OverflowError):
            return self._failure("gave a vector that is not a sequence of numbers", transient=False)
        dimension = self.embedder.dimension
        if len(numbers) != dimension:
            return self._failure(f"gave a vector of {len(numbers)} numbers, not of {dimension}", transient=False)
        packed = numbers.tobytes()
        upper = packed[_UPPER_BYTE::4]
        # The sum is made in doubles, where finite 32-bit floats cannot overflow. It takes its time, and is seldom due.
        if (b"\x7f" in upper or b"\xff" in upper) and not math.isfinite(sum(numbers)):
            return self._failure("gave a vector with NaN or infinity", transient=False)
        return packed

    def _failure(self, problem: str, *, transient: bool) -> Failure:
        return Failure(f"the embedder {self.embedder.model!r} {problem}", transient)


def _floats(vector: Any) -> array[float]:
    """The numbers of a vector, as 32-bit floats: copied as they lie in memory where they lie there like that."""
    if type(vector) is array and vector.typecode == "f":
        return vector
    try:
        view = memoryview(vector)
    except TypeError:
        return array("f", vector)
    if view.ndim != 1:
        raise TypeError("rows of numbers")
    if view.format != "f" or not view.c_contiguous:
        return array("f", vector)
    numbers = array("f")
    numbers.frombytes(view.cast("B"))
    return numbers
