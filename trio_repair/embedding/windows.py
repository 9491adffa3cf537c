"""Cut texts into overlapping windows, and put them together again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from trio_repair import InvalidValue
from trio_repair.abc import Chunk

from ._function import check_positive

_SPACE: Final = re.compile(r"\s")


class WindowChunker:
    """Windows of at most `size` characters that overlap by about `overlap`, cut after whitespace where there is any.

    Every character is in a chunk, and each chunk says where it starts, so that `rebuild_text` gives the text back.
    The same text always gives the same chunks. An empty text gives one empty chunk.

    Args:
        size: the most characters a chunk has, at least 1.
        overlap: the most characters it shares with the one before; less than `size`.

    Raises:
        InvalidValue: an argument is not usable.
    """

    def __init__(self, size: int = 1000, overlap: int = 150) -> None:
        self._size = check_positive("size", size)
        if isinstance(overlap, bool) or not isinstance(overlap, int) or not 0 <= overlap < size:
            raise InvalidValue("overlap", f"must be an int from 0 to size - 1 ({size - 1}), not {overlap!r}")
        self._overlap = overlap

    def __repr__(self) -> str:
        return f"WindowChunker(size={self._size}, overlap={self._overlap})"

    @property
    def identity(self) -> str:
        """Names the method and its parameters."""
        return f"windows-v1(size={self._size},overlap={self._overlap})"

    def chunk(self, text: str) -> Sequence[Chunk]:
        """The pieces, by ascending start."""
        chunks: list[Chunk] = []
        start = 0
        while True:
            end = self._end(text, start)
            chunks.append(Chunk(start, text[start:end]))
            if end == len(text):
                return chunks
            start = self._next_start(text, start, end)

    def _end(self, text: str, start: int) -> int:
        """Where a window that starts at `start` ends: after the last whitespace that leaves progress, if any."""
        limit = start + self._size
        if limit >= len(text):
            return len(text)
        # The next window begins at most `overlap` before the end, and must begin after this one does.
        least = start + self._overlap + 1
        for end in range(limit, least - 1, -1):
            if text[end - 1].isspace():
                return end
        return limit

    def _next_start(self, text: str, start: int, end: int) -> int:
        """Where the next window starts: at the first word within the overlap, if one begins there."""
        earliest = max(end - self._overlap, start + 1)
        if text[earliest - 1].isspace():
            return earliest
        space = _SPACE.search(text, earliest, end)
        return earliest if space is None else space.end()


def rebuild_text(chunks: Iterable[tuple[int, str]]) -> str | None:
    """The text that chunks were cut from; None if they leave a gap or contradict each other.

    Args:
        chunks: start and text of each, by ascending start.
    """
    pieces: list[str] = []
    length = 0
    tail = ""  # the end of what was rebuilt, as long as the chunk that it came from
    for start, text in chunks:
        shared = length - start
        if shared < 0:
            return None
        if shared > len(tail) or not text.startswith(tail[len(tail) - shared :][: len(text)]):
            return None
        if shared < len(text):
            pieces.append(text[shared:])
            length += len(text) - shared
            tail = text
    return "".join(pieces)
