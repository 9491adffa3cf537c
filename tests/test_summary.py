"""Summaries: equal for two stores if and only if their copies of a document agree."""

from __future__ import annotations

import attrs
import pytest

from trio_repair import (
    AbsentMeans,
    DocumentVersion,
    EmbeddingIdentity,
    Fence,
    Observation,
    Presence,
    StoreTraits,
    summarize,
)
from trio_repair._summary import ODD

TRAITS = StoreTraits(fence=Fence.STRONG, holds_text=True, keeps_tombstones=True, absent=AbsentMeans.MISSING)
EMBEDDING = EmbeddingIdentity(model="m", dimension=8, chunking="c")
DIGEST = "0" * 64
LIVE = Observation(presence=Presence.LIVE, token="1", version=DocumentVersion(number=7, digest=DIGEST))


def test_the_words_of_a_summary():
    """Digest and number for a live copy, "t" and number for a tombstone; a number that is None is left out."""
    assert f"{DIGEST} 7" == summarize(LIVE, TRAITS)
    unnumbered = attrs.evolve(LIVE, version=DocumentVersion(number=None, digest=DIGEST))
    assert f"{DIGEST} " == summarize(unnumbered, TRAITS)
    for number, summary in ((7, "t7"), (0, "t0"), (None, "t")):
        version = DocumentVersion(number=number, deleted=True)
        assert summary == summarize(Observation(presence=Presence.TOMBSTONE, token="1", version=version), TRAITS)
    assert f"{DIGEST} 0" == summarize(attrs.evolve(LIVE, version=DocumentVersion(number=0, digest=DIGEST)), TRAITS)


def test_a_token_or_a_date_is_no_difference():
    """What differs between two stores that agree does not stand in a summary."""
    assert summarize(LIVE, TRAITS) == summarize(attrs.evolve(LIVE, token="2"), TRAITS)


@pytest.mark.parametrize(
    ("view", "embedding"),
    [
        (Observation(presence=Presence.ABSENT, token="1"), None),
        (attrs.evolve(LIVE, intact=False), None),
        (LIVE, EMBEDDING),
        (attrs.evolve(LIVE, embedding=attrs.evolve(EMBEDDING, model="other")), EMBEDDING),
        (attrs.evolve(LIVE, version=DocumentVersion(number=7, digest="")), None),
        (attrs.evolve(LIVE, version=DocumentVersion(number=7, digest="é" * 64)), None),
        (attrs.evolve(LIVE, version=DocumentVersion(number=7, digest="0\0 7\0next")), None),
    ],
    ids=["absent", "damaged", "without vectors", "another model", "no digest", "not ASCII", "NUL"],
)
def test_what_has_to_be_looked_at_has_none(view: Observation, embedding: EmbeddingIdentity | None):
    """A copy that is not plainly there, whole and of the embedding in use agrees with nothing."""
    assert ODD == summarize(view, attrs.evolve(TRAITS, embedding=embedding))


def test_vectors_of_the_embedding_in_use_are_plain():
    """Control: the same copy under the embedding that the store wants, and in a store that wants none."""
    embedded = attrs.evolve(LIVE, embedding=EMBEDDING)
    assert summarize(LIVE, TRAITS) == summarize(embedded, attrs.evolve(TRAITS, embedding=EMBEDDING))
    assert summarize(LIVE, TRAITS) == summarize(embedded, TRAITS)
