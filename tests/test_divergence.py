"""What is called equal, and what is called wrong with which store."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import pytest
from decision_states import (
    MODEL,
    POLICY,
    TRAITS,
    all_states,
    describe_findings,
    digest,
    see,
    traits_of,
    views_of,
)

from trio_repair import _divergence
from trio_repair._divergence import CRITICAL_STORES, Divergence, DivergenceKind, diagnose, is_equal
from trio_repair._errors import InvalidValue
from trio_repair._model import DocumentVersion, SyncStrategy
from trio_repair._planning import CacheStep, PlanAction, plan_repair
from trio_repair._views import Observation, Presence


@pytest.mark.parametrize(
    ("text", "vector", "cache", "expected"),
    [
        # Nothing is wrong.
        ("L1a", "L1a", None, ""),
        ("L1a", "L1a", "-", ""),
        ("L1a", "L1a", "L1a", ""),
        ("L?a", "L?a", "L?a", ""),
        ("T1", "T1", "-", ""),
        ("T?", "T?", "T1", ""),
        ("-", "-", "-", ""),
        ("-", "-", "T1", ""),
        # Held by one.
        ("L1a", "-", None, "missing vector"),
        ("L1a", "-", "L1a", "missing vector"),
        ("-", "L1a", None, "orphan vector"),
        ("-", "L1a", "L1a", "orphan vector"),
        ("-", "L1a!", None, "orphan vector"),
        ("-", "-", "L1a", "orphan cache"),
        ("L1a!", "-", None, "missing vector, incomplete text"),
        # Deleted in one.
        ("L1a", "T1", None, "undeleted text"),
        ("L1a", "T2", None, "undeleted text"),
        ("T2", "L2a", None, "undeleted vector"),
        ("T2", "L1a!", None, "undeleted vector"),
        ("L?a", "T2", None, "undeleted text"),
        ("T?", "L2a", None, "undeleted vector"),
        ("T1", "-", None, "undeleted vector"),
        ("-", "T1", None, "undeleted text"),
        ("L2a", "T1", None, "stale vector"),
        ("T1", "L2a", None, "stale text"),
        ("T1", "L2a!", None, "stale text, incomplete vector"),
        ("T1", "T2", None, "stale text"),
        ("T2", "T?", None, "stale vector"),
        ("T2!", "T2", None, "incomplete text"),
        # Two versions.
        ("L2a", "L1b", None, "stale vector"),
        ("L1a", "L2a", None, "stale text"),
        ("L?a", "L1b", None, "stale text"),
        ("L1a", "L?a", None, "stale vector"),
        ("L1a", "L1b", None, "conflict vector"),
        ("L?a", "L?b", None, "conflict vector"),
        # Damage and other models, where no other finding explains them.
        ("L1a", "L1a!", None, "incomplete vector"),
        ("L1a!", "L1a", None, "incomplete text"),
        ("L1a!", "L1a!", None, "incomplete text, incomplete vector"),
        ("L1a", "L1a~", None, "stale-embedding vector"),
        ("L1a", "L1a!~", None, "incomplete vector"),
        ("L1a!", "L1a~", None, "incomplete text, stale-embedding vector"),
        ("L2a", "L1b!", None, "stale vector"),
        ("L1a", "L2b!", None, "stale text, incomplete vector"),
        ("L1a", "L2b~", None, "stale text, stale-embedding vector"),
        ("L1a", "L1b~", None, "conflict vector"),
        # The cache is judged by the copy that wins.
        ("L1a", "L1a", "L1b", "stale-cache cache"),
        ("L1a", "L1a", "L2a", "stale-cache cache"),
        ("L1a", "L1a", "L1a!", "stale-cache cache"),
        ("L1a", "L1a", "T1", "stale-cache cache"),
        ("T1", "T1", "L1a", "stale-cache cache"),
        ("T2", "L1a", "L1a", "undeleted vector, stale-cache cache"),
        ("T2", "L1a", "-", "undeleted vector"),
        ("L2a", "T1", "L2a", "stale vector"),
        ("L?a", "T1", "L?a", "undeleted text"),
        ("L2a", "L1b", "L2a", "stale vector"),
        ("L2a", "L1b", "L1b", "stale vector, stale-cache cache"),
        ("L1a", "L1b", "L1b", "conflict vector"),
        ("L1a", "L1b", "L1a", "conflict vector"),
        ("L1a", "L1b", "L1c", "conflict vector, stale-cache cache"),
        ("L?a", "L1b", "L?a", "stale text"),
        ("L?a", "L1a", "L?a", "stale text, stale-cache cache"),
        ("L1a", "-", "L2b", "missing vector, stale-cache cache"),
        ("-", "L1a", "L2b", "orphan vector, stale-cache cache"),
        ("-", "T1", "L1a", "undeleted text, stale-cache cache"),
    ],
)
def test_findings_table(text: str, vector: str, cache: str | None, expected: str) -> None:
    """What is found for each state: at most one finding for a store, and independent ones for each."""
    divergence = diagnose("doc", views_of(text, vector, cache), TRAITS)

    found = set(filter(None, describe_findings(divergence).split(", ")))
    assert set(filter(None, expected.split(", "))) == found


def test_store_without_tombstones_does_not_lack_one() -> None:
    """Absence is all that a store without tombstones can show of a delete."""
    traits = {**TRAITS, "vector": traits_of("vector", keeps_tombstones=False)}

    assert diagnose("doc", views_of("T1", "-"), traits) is None
    assert "undeleted text" == describe_findings(diagnose("doc", views_of("-", "T1"), traits))


def test_divergence_carries_views_and_kinds() -> None:
    """A divergence says what was seen, and cannot be changed by whoever gets it."""
    views = views_of("L2a", "L1b", "L1b")

    divergence = diagnose("doc", views, TRAITS)

    assert divergence is not None
    assert "doc" == divergence.doc_id
    assert {DivergenceKind.STALE, DivergenceKind.STALE_CACHE} == divergence.kinds
    assert views == divergence.views
    with pytest.raises(TypeError):
        divergence.views["text"] = views["vector"]  # type: ignore[index]  # wrong on purpose


def test_unknown_is_never_absent() -> None:
    """A critical store that was not observed cannot be diagnosed as lacking the document."""
    with pytest.raises(
        InvalidValue, match=r"^views: lacks the vector store; what was not observed is unknown, never absent$"
    ):
        diagnose("doc", {"text": see("text", "L1a")}, TRAITS)


@pytest.mark.parametrize(
    ("store", "notation", "version", "expected"),
    [
        ("text", "L1a", (1, "a"), True),
        ("text", "L1a", (2, "a"), False),
        ("text", "L1a", (None, "a"), False),
        ("text", "L1a", (1, "b"), False),
        ("text", "L1a!", (1, "a"), False),
        ("text", "L1a", (1, ""), False),
        ("text", "T1", (1, "a"), False),
        ("text", "-", (1, "a"), False),
        ("vector", "L1a", (1, "a"), True),
        ("vector", "L1a~", (1, "a"), False),
        ("vector", "T1", (1, ""), True),
        ("vector", "T1!", (1, ""), False),
        ("vector", "T2", (1, ""), False),
        ("vector", "-", (1, ""), False),
        ("cache", "-", (1, ""), True),
        ("cache", "L1a", (1, ""), False),
        ("text", "-", None, True),
        ("text", "T1", None, False),
        ("text", "L1a", None, False),
    ],
)
def test_is_equal(store: str, notation: str, version: tuple[int | None, str] | None, expected: bool) -> None:
    """Equal means the same number, content and deletion, whole, and under the embedding in use."""
    wanted = version and DocumentVersion(number=version[0], digest=digest(version[1]), deleted=not version[1])

    assert expected is is_equal(see(store, notation), wanted, TRAITS[store])


def test_embedding_matters_only_where_the_store_has_one() -> None:
    """A store without vectors is equal whatever it says about embeddings."""
    odd = attrs.evolve(see("text", "L1a"), embedding=MODEL)

    assert is_equal(odd, odd.version, TRAITS["text"])


def disagreements() -> list[str]:
    """States for which `diagnose` and the plans do not agree on whether anything is wrong."""
    wrong = []
    for views in all_states():
        divergence = diagnose("doc", views, TRAITS)
        by_text = plan_repair("doc", views, SyncStrategy.TEXT_SOURCE_OF_TRUTH, POLICY, now=0.0)
        idle = by_text.action is PlanAction.NOTHING and not by_text.writes and by_text.cache_step is CacheStep.NONE
        nowhere = by_text.action is PlanAction.NOWHERE
        if (divergence is None) != (idle or nowhere):
            wrong.append(f"{views}: {describe_findings(divergence)}")
        for strategy in (SyncStrategy.VECTOR_SOURCE_OF_TRUTH, SyncStrategy.MOST_RECENT):
            plan = plan_repair("doc", views, strategy, POLICY, now=0.0)
            if divergence is None and (plan.writes or plan.cache_step is not CacheStep.NONE):
                wrong.append(f"{views}: {strategy}")
    return wrong


def test_diagnosis_agrees_with_the_plans() -> None:
    """Nothing is found exactly where there is nothing to do, and no strategy touches what is not divergent."""
    assert [] == disagreements()


def test_disagreement_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a diagnosis that takes an incomplete cache entry for a good one disagrees with the plans."""

    def careless(observation: Observation, version: DocumentVersion | None, traits: object) -> bool:
        return observation.version == version

    monkeypatch.setattr(_divergence, "is_equal", careless)

    assert [] != disagreements()


def test_every_kind_is_found_and_one_finding_per_store() -> None:
    """The small states show all eight kinds; no store is named twice, and each that is named was observed."""
    kinds: set[DivergenceKind] = set()
    for views in all_states():
        divergence = diagnose("doc", views, TRAITS)
        if divergence is None:
            continue
        stores = [finding.store for finding in divergence.findings]
        assert len(set(stores)) == len(stores)
        assert set(stores) <= set(views)
        kinds |= divergence.kinds
        assert [] == misnamed(divergence, views)

    assert set(DivergenceKind) == kinds


def misnamed(divergence: Divergence, views: Mapping[str, Observation]) -> list[DivergenceKind]:
    """Kinds that contradict what was seen in the store they are filed under."""
    anywhere = {views[name].presence for name in CRITICAL_STORES}
    wrong = []
    for finding in divergence.findings:
        view = views[finding.store]
        fits = {
            DivergenceKind.MISSING: view.presence is Presence.ABSENT,
            DivergenceKind.STALE: view.presence is not Presence.ABSENT,
            DivergenceKind.ORPHAN: view.presence is Presence.LIVE
            and Presence.TOMBSTONE not in anywhere
            and views["text"].presence is Presence.ABSENT,
            DivergenceKind.UNDELETED: Presence.TOMBSTONE in anywhere and view.presence is not Presence.TOMBSTONE,
            DivergenceKind.CONFLICT: {Presence.LIVE} == anywhere,
            DivergenceKind.INCOMPLETE: not view.intact,
            DivergenceKind.STALE_EMBEDDING: view.presence is Presence.LIVE and view.embedding != MODEL,
            DivergenceKind.STALE_CACHE: finding.store == "cache" and view.presence is not Presence.ABSENT,
        }
        if not fits[finding.kind]:
            wrong.append(finding.kind)
    return wrong
