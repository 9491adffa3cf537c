"""Strategies for what stores hold together: consistent, damaged in one way, or in any state."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import hypothesis.strategies as st

from trio_repair import (
    ContentDefinition,
    DivergenceKind,
    Document,
)

from ._contents import HeldCopy, HeldDocument, StoreContents
from ._doubles import make_document
from ._strategies_values import MAX_NUMBER, doc_ids, texts, version_numbers


def consistent_documents(doc_id: str, *, content: ContentDefinition | None = None) -> st.SearchStrategy[HeldDocument]:
    """One document whose copies agree: live or deleted in both critical stores; the cache has it or not."""
    return _held(doc_id, None, _draw_consistent, content)


def damaged_documents(
    doc_id: str, kind: DivergenceKind, *, content: ContentDefinition | None = None
) -> st.SearchStrategy[HeldDocument]:
    """One document with exactly one thing wrong: `diagnose` finds `kind` in it and no other."""
    return _held(doc_id, kind, _DRAW_DAMAGED[kind], content)


def arbitrary_documents(doc_id: str, *, content: ContentDefinition | None = None) -> st.SearchStrategy[HeldDocument]:
    """One document in any state that stores can be in, reachable by accident or not."""
    return _held(doc_id, None, _draw_arbitrary, content)


@st.composite
def store_contents(
    draw: st.DrawFn,
    *,
    kinds: Collection[DivergenceKind] = tuple(DivergenceKind),
    arbitrary: bool = False,
    ids: st.SearchStrategy[str] | None = None,
    min_size: int = 0,
    max_size: int = 8,
    content: ContentDefinition | None = None,
) -> StoreContents:
    """What three stores hold: documents that are consistent, or damaged in one of `kinds`.

    Args:
        kinds: the damage to draw from; () for consistent stores.
        arbitrary: draw any states instead, also those that no single kind describes.
        ids: None: `doc_ids()`.
        min_size: the least number of documents.
        max_size: the largest number of documents.
        content: what digests cover; None: the text alone.
    """
    held = []
    choices = [None, *sorted(kinds, key=lambda kind: kind.value)]
    for doc_id in draw(st.lists(doc_ids() if ids is None else ids, min_size=min_size, max_size=max_size, unique=True)):
        if arbitrary:
            held.append(draw(arbitrary_documents(doc_id, content=content)))
            continue
        kind = draw(st.sampled_from(choices))
        if kind is None:
            held.append(draw(consistent_documents(doc_id, content=content)))
        else:
            held.append(draw(damaged_documents(doc_id, kind, content=content)))
    return StoreContents(documents=tuple(held), content=ContentDefinition() if content is None else content)


class _Versions:
    """Makes versions of one document: the same index always means the same text, another one another text."""

    def __init__(self, draw: st.DrawFn, doc_id: str, content: ContentDefinition | None) -> None:
        self.draw = draw
        self._doc_id = doc_id
        self._content = content
        # One drawn text and two that differ from it in their last character: drawing is what takes the time.
        text = draw(texts(max_size=30))
        self._texts = (text, f"{text}2", f"{text}3")
        self._metadata: dict[str, Any] = draw(
            st.sampled_from([{}, {"title": "a title"}, {"title": "a title", "tags": ["é", 1, None]}])
        )

    def live(self, number: int | None, text: int = 0) -> HeldCopy:
        return HeldCopy(
            document=make_document(
                self._doc_id, self._texts[text], number=number, metadata=self._metadata, content=self._content
            )
        )

    def deleted(self, number: int | None) -> HeldCopy:
        return HeldCopy(document=Document.tombstone(self._doc_id, number=number))

    def flip(self) -> bool:
        return self.draw(st.booleans())

    def pair(self) -> tuple[int, int]:
        """Two numbers, the lower one first."""
        low = self.draw(st.integers(0, 5))
        return low, self.draw(st.integers(low + 1, low + 5) | st.just(MAX_NUMBER))

    def sides(self) -> tuple[str, str]:
        """The critical stores in either order."""
        return ("text", "vector") if self.flip() else ("vector", "text")

    def with_cache(self, copies: dict[str, HeldCopy], entry: HeldCopy) -> dict[str, HeldCopy]:
        """Add a cache entry, or do not."""
        return {**copies, "cache": entry} if self.flip() else copies


_Draw = Callable[[_Versions], dict[str, HeldCopy]]


@st.composite
def _held(
    draw: st.DrawFn, doc_id: str, kind: DivergenceKind | None, copies: _Draw, content: ContentDefinition | None
) -> HeldDocument:
    return HeldDocument(doc_id=doc_id, kind=kind, copies=copies(_Versions(draw, doc_id, content)))


def _draw_consistent(make: _Versions) -> dict[str, HeldCopy]:
    number = make.draw(version_numbers())
    if make.draw(st.integers(0, 3)) == 0:
        return {"text": make.deleted(number), "vector": make.deleted(number)}
    copy = make.live(number)
    return make.with_cache({"text": copy, "vector": copy}, copy)


def _draw_missing(make: _Versions) -> dict[str, HeldCopy]:
    copy = make.live(make.draw(version_numbers()))
    return make.with_cache({"text": copy}, copy)


def _draw_stale(make: _Versions) -> dict[str, HeldCopy]:
    (newer, older), (low, high) = make.sides(), make.pair()
    winner = make.live(high)
    copies = {
        newer: winner,
        older: make.draw(
            st.sampled_from([make.live(low, 1), make.live(low), make.live(None, 1), make.live(None), make.deleted(low)])
        ),
    }
    return make.with_cache(copies, winner)


def _draw_orphan(make: _Versions) -> dict[str, HeldCopy]:
    copy = make.live(make.draw(version_numbers()))
    return {"cache": copy} if make.flip() else make.with_cache({"vector": copy}, copy)


def _draw_undeleted(make: _Versions) -> dict[str, HeldCopy]:
    (deleted, other), (low, high) = make.sides(), make.pair()
    tombstone = make.deleted(high)
    return make.draw(
        st.sampled_from(
            [
                {deleted: tombstone},
                {deleted: tombstone, other: make.live(low)},
                {deleted: tombstone, other: make.live(high)},
                {deleted: make.deleted(None), other: make.live(low)},
                {deleted: tombstone, other: make.live(None)},
            ]
        )
    )


def _draw_conflict(make: _Versions) -> dict[str, HeldCopy]:
    number = make.draw(version_numbers())
    one, another = make.live(number), make.live(number, 1)
    return make.with_cache({"text": one, "vector": another}, one if make.flip() else another)


def _draw_incomplete(make: _Versions) -> dict[str, HeldCopy]:
    copy = make.live(make.draw(version_numbers()))
    torn = HeldCopy(document=copy.document, intact=False)
    text, vector = make.draw(st.sampled_from([(torn, copy), (copy, torn), (torn, torn)]))
    return make.with_cache({"text": text, "vector": vector}, copy)


def _draw_stale_embedding(make: _Versions) -> dict[str, HeldCopy]:
    copy = make.live(make.draw(version_numbers()))
    return make.with_cache({"text": copy, "vector": HeldCopy(document=copy.document, stale_embedding=True)}, copy)


def _draw_stale_cache(make: _Versions) -> dict[str, HeldCopy]:
    low, high = make.pair()
    if make.draw(st.integers(0, 3)) == 0:
        return {
            "text": make.deleted(low),
            "vector": make.deleted(low),
            "cache": make.live(make.draw(version_numbers())),
        }
    copy = make.live(low)
    torn = HeldCopy(document=copy.document, intact=False)
    entry = make.draw(st.sampled_from([make.live(high, 1), make.live(low, 1), make.live(None), make.live(high), torn]))
    return {"text": copy, "vector": copy, "cache": entry}


_DRAW_DAMAGED: Final[dict[DivergenceKind, _Draw]] = {
    DivergenceKind.MISSING: _draw_missing,
    DivergenceKind.STALE: _draw_stale,
    DivergenceKind.ORPHAN: _draw_orphan,
    DivergenceKind.UNDELETED: _draw_undeleted,
    DivergenceKind.CONFLICT: _draw_conflict,
    DivergenceKind.INCOMPLETE: _draw_incomplete,
    DivergenceKind.STALE_EMBEDDING: _draw_stale_embedding,
    DivergenceKind.STALE_CACHE: _draw_stale_cache,
}


def _draw_arbitrary(make: _Versions) -> dict[str, HeldCopy]:
    low, high = make.pair()
    # Few versions, so that stores often hold the same one and damage is then all that is wrong.
    live = st.sampled_from([make.live(low), make.live(high, 1), make.live(high, 2), make.live(None)])
    deleted = st.sampled_from([make.deleted(low), make.deleted(high), make.deleted(None)])
    copies: dict[str, HeldCopy] = {}
    for name in ("text", "vector", "cache"):
        state = make.draw(st.sampled_from(["live", "live", "deleted", "absent"]))
        if state == "deleted" and name != "cache":
            copies[name] = make.draw(deleted)
        elif state == "live":
            copies[name] = HeldCopy(
                document=make.draw(live).document,
                intact=make.draw(st.sampled_from([True, True, False])),
                stale_embedding=name == "vector" and make.draw(st.sampled_from([False, False, True])),
            )
    return copies
