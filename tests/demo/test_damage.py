"""Damage is exactly what it says: check finds every damaged document, with its kinds, and nothing else."""

from __future__ import annotations

import random

import pytest
from demo_support import damage, find, proof_of

from trio_repair import AutoRepairConfig, DivergenceKind, InvalidValue, SyncStrategy, count_changes
from trio_repair.demo.build import create_stores
from trio_repair.demo.damage import MIN_DOCUMENTS, SHARE, STORIES, cast_stories
from trio_repair.demo.writing import remove_documents


def ids(count: int) -> tuple[list[str], frozenset[str]]:
    """Made-up ids, every third of them in the cache."""
    doc_ids = [f"d{number:05}" for number in range(count)]
    return doc_ids, frozenset(doc_ids[::3])


async def test_check_finds_exactly_the_damage(sound):
    """All eight kinds are planted, and check reports each damaged document with its kinds and no other document."""
    damages = await damage(sound)
    expected = {one.doc_id: one.kinds for one in damages}
    async with create_stores(sound) as stores:
        found = {doc_id: divergence.kinds for doc_id, divergence in (await find(stores)).items()}
        assert expected == found
        assert set(DivergenceKind) == set().union(*expected.values())
        # Control: damage that is not on the list shows.
        other = next(doc_id for doc_id in sorted(proof_of(sound).text) if doc_id not in expected)
        await remove_documents(stores.vector, [other], role="vector")
        assert {other} == (await find(stores)).keys() - expected.keys()


async def test_the_damage_is_no_mass_change(sound):
    """A repair of all the damage stays within the default limits, so that the demo needs no --allow-mass."""
    await damage(sound)
    async with create_stores(sound) as stores:
        counts = await count_changes(stores, SyncStrategy.MOST_RECENT)
        counts.guard(AutoRepairConfig())
        assert counts.deletes > 0
        assert len(STORIES) == counts.divergent


@pytest.mark.parametrize("count", [MIN_DOCUMENTS, 1_000, 7_800])
def test_the_share_is_kept_at_every_size(count):
    """The damaged share is SHARE, or one document for each story, and always within the limits for mass changes."""
    roles = cast_stories(*ids(count), random.Random(1))
    chosen = [doc_id for _, doc_ids in roles for doc_id in doc_ids]
    assert len(chosen) == len(set(chosen))
    assert len(chosen) <= max(len(STORIES), count * SHARE * 1.2)
    assert len(chosen) < count * AutoRepairConfig().max_changed
    deletes = next(len(doc_ids) for story, doc_ids in roles if story.kind is DivergenceKind.UNDELETED)
    assert 0 < deletes <= count * AutoRepairConfig().max_deletes


def test_every_kind_has_a_story():
    """The eight kinds of divergence are all told of, and every story leaves what it is told for."""
    assert set(DivergenceKind) == {story.kind for story in STORIES}
    assert len(STORIES) == len({story.told for story in STORIES})


def test_the_seed_decides():
    """The same seed damages the same documents, another seed others."""
    first, again, other = (cast_stories(*ids(500), random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_stories_keep_to_their_documents():
    """A story about cached documents happens to cached ones only, one about others to others only."""
    doc_ids, cached = ids(3_000)
    for story, chosen in cast_stories(doc_ids, cached, random.Random(3)):
        shares = {doc_id in cached for doc_id in chosen}
        assert ({True, False} if story.cached is None else {story.cached}) == shares


def test_too_few_documents_are_refused():
    """Fewer documents than can be damaged within the limits, or too few in the cache, are refused by name."""
    doc_ids, cached = ids(MIN_DOCUMENTS - 1)
    with pytest.raises(InvalidValue, match=f"199 are too few to be damaged; give at least {MIN_DOCUMENTS}"):
        cast_stories(doc_ids, cached, random.Random(1))
    doc_ids, cached = ids(MIN_DOCUMENTS)
    with pytest.raises(InvalidValue, match="too few of them are in the cache"):
        cast_stories(doc_ids, frozenset(), random.Random(1))
