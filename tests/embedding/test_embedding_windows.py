"""WindowChunker and rebuild_text: no character is lost, added or moved, whatever the text."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_repair import InvalidValue
from trio_repair.abc import Chunker
from trio_repair.embedding import WindowChunker, rebuild_text

texts = st.one_of(st.text(), st.text(st.sampled_from("ab \n\té😀"), max_size=300), st.text("x", max_size=200))


@st.composite
def chunkers(draw: st.DrawFn) -> WindowChunker:
    size = draw(st.integers(1, 40))
    return WindowChunker(size, draw(st.integers(0, size - 1)))


@given(chunkers(), texts)
def test_chunks_cover_and_rebuild_any_text(chunker: WindowChunker, text: str) -> None:
    """The chunks stand where they say, without gap or lost end, and give the text back; at least one."""
    chunks = chunker.chunk(text)
    assert chunks
    assert text == rebuild_text((chunk.start, chunk.text) for chunk in chunks)
    covered = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.start + len(chunk.text)] == chunk.text
        assert chunk.start <= covered
        covered = chunk.start + len(chunk.text)
    assert len(text) == covered


@given(st.integers(1, 40), st.data(), texts)
def test_chunks_keep_to_size_and_overlap(size: int, data: st.DataObject, text: str) -> None:
    """No chunk is longer than `size`, neighbours share at most `overlap`, each begins after the one before."""
    overlap = data.draw(st.integers(0, size - 1))
    chunks = WindowChunker(size, overlap).chunk(text)
    assert max(len(chunk.text) for chunk in chunks) <= size
    for one, other in itertools.pairwise(chunks):
        assert one.start < other.start
        assert one.start + len(one.text) - other.start <= overlap


@given(chunkers(), texts)
def test_the_same_text_gives_the_same_chunks(chunker: WindowChunker, text: str) -> None:
    """Chunking is a function of text and parameters."""
    assert chunker.chunk(text) == chunker.chunk(text)


def test_cuts_between_words() -> None:
    """Where there is whitespace, a chunk ends after it and the next begins with a word."""
    text = "the quick brown fox jumps over the lazy dog again"
    chunks = WindowChunker(20, 8).chunk(text)
    assert ["the quick brown fox ", "fox jumps over the ", "the lazy dog again"] == [chunk.text for chunk in chunks]


def test_text_without_whitespace() -> None:
    """Where there is none, it cuts at the size."""
    assert [(0, "x" * 10), (7, "x" * 10), (14, "x" * 6)] == [
        (chunk.start, chunk.text) for chunk in WindowChunker(10, 3).chunk("x" * 20)
    ]


def test_empty_text_is_one_empty_chunk() -> None:
    """An empty document has a chunk too, so that it has rows that can be there or not."""
    assert [(0, "")] == [(chunk.start, chunk.text) for chunk in WindowChunker().chunk("")]


def test_identity_names_the_parameters() -> None:
    """Other parameters are another identity; it keeps the seam."""
    assert "windows-v1(size=10,overlap=3)" == WindowChunker(10, 3).identity
    assert 3 == len({WindowChunker(*sizes).identity for sizes in ((10, 3), (10, 2), (11, 3))})
    assert isinstance(WindowChunker(), Chunker)
    assert "WindowChunker(size=10, overlap=3)" == repr(WindowChunker(10, 3))


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (-1, 0), (5, 5), (5, -1), (True, 0), (5, True), (5.0, 1)])
def test_parameters_that_mean_nothing(size: Any, overlap: Any) -> None:
    """Sizes that no text can be cut by are refused."""
    with pytest.raises(InvalidValue, match=r"size|overlap"):
        WindowChunker(size, overlap)


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([], ""),
        ([(0, "ab"), (2, "cd")], "abcd"),
        ([(0, "abc"), (1, "b"), (2, "cd")], "abcd"),
        ([(0, "abc"), (0, "abcd")], "abcd"),
        ([(1, "ab")], None),
        ([(0, "ab"), (3, "cd")], None),
        ([(0, "abc"), (1, "xcd")], None),
        ([(0, "abc"), (1, "x")], None),
        ([(2, "c"), (0, "ab")], None),
    ],
)
def test_rebuilding(chunks: list[tuple[int, str]], text: str | None) -> None:
    """Chunks that leave a gap or contradict each other give no text; those that agree give all of it."""
    assert text == rebuild_text(chunks)


@given(chunkers(), texts, st.data())
def test_a_lost_chunk_never_gives_another_text(chunker: WindowChunker, text: str, data: st.DataObject) -> None:
    """Without one of its chunks a text is rebuilt exactly (the others cover it), cut at its end, or not at all."""
    chunks = list(chunker.chunk(text))
    lost = data.draw(st.integers(0, len(chunks) - 1))
    del chunks[lost]
    rebuilt = rebuild_text((chunk.start, chunk.text) for chunk in chunks)
    assert rebuilt is None or text.startswith(rebuilt)
