"""What is right in a store, judged from its rows alone: no tool's ledger, answer or version number is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeAlias

import attrs

from trio_repair import DivergenceKind

Chunks: TypeAlias = Counter[tuple[str, bytes | None]]
"""Text and vector of each chunk, however often; None where the vector is not there."""


@attrs.frozen(kw_only=True)
class Copies:
    """What a tool's stores hold."""

    chunks: Mapping[str, Chunks]
    """By document. What belongs to no document is under the empty id, which no document has."""
    cache: Mapping[str, str] | None = None
    """Text by document; None if the tool has no cache."""


@attrs.frozen(kw_only=True)
class Judgement:
    """How much of the damage is repaired, and whether the rest was left alone."""

    repaired: Mapping[DivergenceKind, int | None]
    """None where the tool has nothing of the kind that could be damaged or repaired."""
    left: Mapping[DivergenceKind, int]
    """How many are not repaired but named as a person's to decide."""
    others: int
    """How many documents were not damaged, or have come up since."""
    others_right: int


def judge(
    damaged: Mapping[DivergenceKind, Sequence[str]],
    *,
    synced: Mapping[str, str],
    before: Mapping[str, str],
    source: Mapping[str, str],
    copies: Copies,
    chunked: Callable[[str], Chunks],
    left: AbstractSet[str] = frozenset(),
) -> Judgement:
    """Count what is repaired.

    A document is repaired if the vector store holds exactly the chunks and vectors of the text that the source has, or
    nothing if the source has none; if a cache holds that text or nothing; and if the source is what it was before the
    re-sync. Of an orphan, the source may also have back what was synced: there are two ways to make copies agree.

    Args:
        damaged: the documents of each kind.
        synced: the source when all was well.
        before: the source after the damage, before the re-sync.
        source: the source now.
        copies: what the tool's stores hold now.
        chunked: the right chunks and vectors of a text.
        left: what the tool left to a person.
    """

    def agree(doc_id: str) -> bool:
        text = source.get(doc_id)
        if copies.chunks.get(doc_id, Counter()) != (Counter() if text is None else chunked(text)):
            return False
        return copies.cache is None or copies.cache.get(doc_id, text) == text

    def right(doc_id: str, kind: DivergenceKind | None = None) -> bool:
        text = source.get(doc_id)
        kept = text == before.get(doc_id)
        restored = kind is DivergenceKind.ORPHAN and text == synced.get(doc_id)
        return (kept or restored) and agree(doc_id)

    repaired: dict[DivergenceKind, int | None] = {}
    given_up: dict[DivergenceKind, int] = {}
    for kind, doc_ids in damaged.items():
        wrong = [doc_id for doc_id in doc_ids if not right(doc_id, kind)]
        nothing_there = kind is DivergenceKind.STALE_CACHE and copies.cache is None
        repaired[kind] = None if nothing_there else len(doc_ids) - len(wrong)
        given_up[kind] = len(left & set(wrong))
    touched = {doc_id for doc_ids in damaged.values() for doc_id in doc_ids}
    known = synced.keys() | before.keys() | source.keys() | copies.chunks.keys() | (copies.cache or {}).keys()
    others = known - touched
    return Judgement(
        repaired=repaired,
        left=given_up,
        others=len(others),
        others_right=sum(right(doc_id) for doc_id in others),
    )
