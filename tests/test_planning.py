"""The decisions: the table, row by row; then the invariants over every small state, and planted bugs that break them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import TypeAlias

import attrs
import pytest
from decision_states import (
    MODEL,
    POLICY,
    TRAITS,
    all_states,
    apply,
    describe,
    see,
    traits_of,
    views_of,
)
from hypothesis import given
from hypothesis import strategies as st

from trio_repair import _planning
from trio_repair._clock import pack
from trio_repair._config import AutoRepairConfig
from trio_repair._divergence import CRITICAL_STORES, diagnose, is_equal
from trio_repair._errors import InvalidValue
from trio_repair._model import DocumentVersion, SyncStrategy
from trio_repair._planning import (
    CacheStep,
    PlanAction,
    PlannedWrite,
    Policy,
    RepairPlan,
    plan_repair,
    plan_resolution,
)
from trio_repair._views import AbsentMeans, Observation, Presence
from trio_repair.abc import Stores
from trio_repair.stores.memory import MemoryStore

TEXT = SyncStrategy.TEXT_SOURCE_OF_TRUTH
VECTOR = SyncStrategy.VECTOR_SOURCE_OF_TRUTH
RECENT = SyncStrategy.MOST_RECENT
DECIDING = (TEXT, VECTOR, RECENT)


def plan_of(
    views: Mapping[str, Observation], strategy: SyncStrategy, policy: Policy = POLICY, now: float = 0.0
) -> RepairPlan:
    return plan_repair("doc", views, strategy, policy, now=now)


def policy_with(*, absent: AbsentMeans | None = None, **settings: object) -> Policy:
    traits = {**TRAITS, **({} if absent is None else {n: traits_of(n, absent=absent) for n in CRITICAL_STORES})}
    return attrs.evolve(POLICY, traits=traits, **settings)


@pytest.mark.parametrize(
    ("text", "vector", "by_text", "by_vector", "by_recent"),
    [
        # One store holds it, the other does not.
        ("L1a", "-", "copy 1a text->vector", "manual", "copy 1a text->vector"),
        ("L?a", "-", "copy ?a text->vector", "manual", "copy ?a text->vector"),
        ("-", "L1a", "manual", "copy 1a vector->text", "copy 1a vector->text"),
        # A tombstone wins a tie, and only `resolve` overrides it.
        ("L1a", "T2", "manual", "delete 2->text", "delete 2->text"),
        ("L2a", "T2", "manual", "delete 2->text", "delete 2->text"),
        ("L2a", "T1", "copy 2a text->vector", "delete 1->text settle", "copy 2a text->vector"),
        ("T2", "L1a", "delete 2->vector", "manual", "delete 2->vector"),
        ("T2", "L2a", "delete 2->vector", "manual", "delete 2->vector"),
        ("T1", "L2a", "delete 1->vector settle", "copy 2a vector->text", "copy 2a vector->text"),
        # Without a number, a copy and a tombstone are not ordered.
        ("L?a", "T2", "manual", "delete 2->text", "manual"),
        ("L2a", "T?", "manual", "delete ?->text settle", "manual"),
        ("L?a", "T?", "manual", "delete ?->text", "manual"),
        ("T?", "L2a", "delete ?->vector settle", "manual", "manual"),
        ("T2", "L?a", "delete 2->vector", "manual", "manual"),
        # A tombstone is written where it is missing, and the higher of two.
        ("T1", "-", "delete 1->vector", "delete 1->vector", "delete 1->vector"),
        ("-", "T1", "delete 1->text", "delete 1->text", "delete 1->text"),
        ("-", "T?", "delete ?->text", "delete ?->text", "delete ?->text"),
        ("T1", "T2", "delete 2->text", "delete 2->text", "delete 2->text"),
        ("T2", "T?", "delete 2->vector", "delete 2->vector", "delete 2->vector"),
        ("T2", "T2", "nothing", "nothing", "nothing"),
        ("T?", "T?", "nothing", "nothing", "nothing"),
        # Two live copies of different versions.
        ("L2a", "L1b", "copy 2a text->vector", "copy 1b vector->text settle", "copy 2a text->vector"),
        ("L1a", "L2b", "copy 1a text->vector settle", "copy 2b vector->text", "copy 2b vector->text"),
        ("L1a", "L2a", "copy 1a text->vector settle", "copy 2a vector->text", "copy 2a vector->text"),
        # The numbers are equal or one is None.
        ("L1a", "L1b", "copy 1a text->vector", "copy 1b vector->text", "manual"),
        ("L?a", "L?b", "copy ?a text->vector", "copy ?b vector->text", "manual"),
        ("L?a", "L1b", "copy ?a text->vector settle", "copy 1b vector->text", "manual"),
        ("L?a", "L1a", "copy ?a text->vector settle", "copy 1a vector->text", "copy 1a vector->text"),
        ("L1a", "L?a", "copy 1a text->vector", "copy ?a vector->text settle", "copy 1a text->vector"),
        ("L1a", "L1a", "nothing", "nothing", "nothing"),
        ("L?a", "L?a", "nothing", "nothing", "nothing"),
        # The vector copy is damaged, or of another model.
        ("L1a", "L1a!", "copy 1a text->vector", "copy 1a vector->vector", "copy 1a text->vector"),
        ("L1a", "L1a~", "copy 1a text->vector", "copy 1a vector->vector", "copy 1a text,vector->vector"),
        ("L?a", "L?a!", "copy ?a text->vector", "copy ?a vector->vector", "copy ?a text->vector"),
        ("L2a", "L1b!", "copy 2a text->vector", "copy 1b vector->text,vector settle", "copy 2a text->vector"),
        ("L1a", "L2b!", "copy 1a text->vector settle", "copy 2b vector->text,vector", "manual"),
        ("L1a", "L2b~", "copy 1a text->vector settle", "copy 2b vector->text,vector", "manual"),
        ("L1a", "L1b!", "copy 1a text->vector", "copy 1b vector->text,vector", "manual"),
        ("L?a", "L1a!", "copy ?a text->vector settle", "copy 1a vector->text,vector", "manual"),
        ("-", "L1a!", "manual", "copy 1a vector->text,vector", "manual"),
        ("-", "L1a~", "manual", "copy 1a vector->text,vector", "manual"),
        ("T1", "L2a!", "delete 1->vector settle", "copy 2a vector->text,vector", "manual"),
        ("T2", "L1a!", "delete 2->vector", "manual", "delete 2->vector"),
        # The text copy is damaged: mended from the vector copy, or from itself if it can still be read.
        ("L1a!", "L1a", "copy 1a text->text", "copy 1a vector->text", "copy 1a vector,text->text"),
        ("L1a!", "L2b", "copy 1a text->text,vector settle", "copy 2b vector->text", "copy 2b vector->text"),
        ("L2a!", "L1b", "copy 2a text->text,vector", "copy 1b vector->text settle", "copy 2a text->text,vector"),
        ("L1a!", "-", "copy 1a text->text,vector", "manual", "copy 1a text->text,vector"),
        ("L1a!", "L1a!", "copy 1a text->text,vector", "copy 1a vector->text,vector", "copy 1a text->text,vector"),
        (
            "L1a!",
            "L1a~",
            "copy 1a text->text,vector",
            "copy 1a vector->text,vector",
            "copy 1a vector,text->text,vector",
        ),
        ("L1a!", "L1b", "copy 1a text->text,vector", "copy 1b vector->text", "manual"),
        ("T2!", "T2", "delete 2->text", "delete 2->text", "delete 2->text"),
        # Nowhere.
        ("-", "-", "nowhere", "nowhere", "nowhere"),
    ],
)
def test_decision_table(text: str, vector: str, by_text: str, by_vector: str, by_recent: str) -> None:
    """What each strategy does about each pair of copies, with the default settings."""
    views = views_of(text, vector)

    assert by_text == describe(plan_of(views, TEXT))
    assert by_vector == describe(plan_of(views, VECTOR))
    assert by_recent == describe(plan_of(views, RECENT))


@pytest.mark.parametrize(
    ("text", "vector", "strategy", "expected"),
    [
        ("-", "L1a", TEXT, "delete 1->text,vector settle"),
        ("-", "L?a", TEXT, "delete ?->text,vector settle"),
        ("-", "L1a!", TEXT, "delete 1->text,vector settle"),
        ("L1a", "-", VECTOR, "delete 1->text,vector settle"),
        ("L1a", "-", TEXT, "copy 1a text->vector"),
        ("-", "-", TEXT, "nowhere"),
        ("-", "T1", TEXT, "delete 1->text"),
    ],
)
def test_missing_source_delete(text: str, vector: str, strategy: SyncStrategy, expected: str) -> None:
    """With missing_source="delete" an absent source deletes at the number that the target holds."""
    policy = policy_with(missing_source="delete")

    assert expected == describe(plan_of(views_of(text, vector), strategy, policy))


@pytest.mark.parametrize(
    ("text", "vector", "absent", "expected"),
    [
        ("L1a", "-", AbsentMeans.MISSING, "copy 1a text->vector"),
        ("L1a", "-", AbsentMeans.DELETED, "delete 1->text,vector settle"),
        ("L1a", "-", AbsentMeans.MANUAL, "manual"),
        ("-", "L1a", AbsentMeans.MISSING, "copy 1a vector->text"),
        ("-", "L1a", AbsentMeans.DELETED, "delete 1->text,vector settle"),
        ("-", "L1a", AbsentMeans.MANUAL, "manual"),
        ("-", "L1a!", AbsentMeans.DELETED, "delete 1->text,vector settle"),
        ("-", "T1", AbsentMeans.MANUAL, "delete 1->text"),
        ("L?a", "-", AbsentMeans.DELETED, "delete ?->text,vector settle"),
    ],
)
def test_most_recent_reads_absence_as_the_store_says(
    text: str, vector: str, absent: AbsentMeans, expected: str
) -> None:
    """MOST_RECENT asks the store that lacks the document what that means."""
    assert expected == describe(plan_of(views_of(text, vector), RECENT, policy_with(absent=absent)))


@pytest.mark.parametrize(
    ("text", "vector", "cache", "refresh", "invalidate", "fill"),
    [
        # The critical stores agree.
        ("L1a", "L1a", "-", "nothing", "nothing", "nothing refresh"),
        ("L1a", "L1a", "L1a", "nothing", "nothing", "nothing"),
        ("L1a", "L1a", "L1b", "nothing refresh", "nothing invalidate", "nothing refresh"),
        ("L1a", "L1a", "L2b", "nothing refresh", "nothing invalidate", "nothing refresh"),
        ("L1a", "L1a", "L?a", "nothing refresh", "nothing invalidate", "nothing refresh"),
        ("L1a", "L1a", "L1a!", "nothing refresh", "nothing invalidate", "nothing refresh"),
        ("L1a", "L1a", "T1", "nothing refresh", "nothing invalidate", "nothing refresh"),
        ("L1a", "L1a", None, "nothing", "nothing", "nothing"),
        # Deleted: whatever the cache serves goes.
        ("T2", "T2", "L2a", "nothing invalidate", "nothing invalidate", "nothing invalidate"),
        ("T2", "T2", "-", "nothing", "nothing", "nothing"),
        ("T2", "T2", "T1", "nothing", "nothing", "nothing"),
        (
            "T2",
            "L1a",
            "L1a",
            "delete 2->vector invalidate",
            "delete 2->vector invalidate",
            "delete 2->vector invalidate",
        ),
        # A copy is decided on.
        (
            "L2a",
            "L1b",
            "L1b",
            "copy 2a text->vector refresh",
            "copy 2a text->vector invalidate",
            "copy 2a text->vector refresh",
        ),
        ("L2a", "L1b", "L2a", "copy 2a text->vector", "copy 2a text->vector", "copy 2a text->vector"),
        ("L2a", "L1b", "-", "copy 2a text->vector", "copy 2a text->vector", "copy 2a text->vector refresh"),
        # Held by the cache alone; and what only a person can decide leaves the cache alone.
        ("-", "-", "L1a", "nothing invalidate", "nothing invalidate", "nothing invalidate"),
        ("-", "-", "-", "nowhere", "nowhere", "nowhere"),
        ("-", "-", "T1", "nowhere", "nowhere", "nowhere"),
        ("L1a", "L1b", "L1c", "manual", "manual", "manual"),
    ],
)
def test_cache_step(text: str, vector: str, cache: str | None, refresh: str, invalidate: str, fill: str) -> None:
    """What happens to a cache entry under each setting; a higher number in the cache counts for nothing."""
    views = views_of(text, vector, cache)

    assert refresh == describe(plan_of(views, RECENT, policy_with(cache="refresh")))
    assert invalidate == describe(plan_of(views, RECENT, policy_with(cache="invalidate")))
    assert fill == describe(plan_of(views, RECENT, policy_with(cache="fill")))


NOW = 1_800_000_000.0


def at(seconds: float, counter: int = 0) -> int:
    return pack(round((NOW - 1_577_836_800 + seconds) * 1000), counter)


@pytest.mark.parametrize(
    ("text", "vector", "expected"),
    [
        ((at(-10), "a"), (at(-5), "b"), PlanAction.COPY),
        ((at(-10), "a"), (at(-9.5), "b"), PlanAction.MANUAL),
        ((at(-10), "a"), (at(-9.0), "b"), PlanAction.MANUAL),
        ((at(-10), "a"), (at(-8.999), "b"), PlanAction.COPY),
        ((at(-10, 1), "a"), (at(-10, 2), "b"), PlanAction.MANUAL),
        ((at(-10), "a"), (at(-9.5), "a"), PlanAction.COPY),
        ((at(-10), "a"), (at(0.9), "b"), PlanAction.COPY),
        ((at(-10), "a"), (at(1.0), "b"), PlanAction.COPY),
        ((at(-10), "a"), (at(1.1), "b"), PlanAction.MANUAL),
        ((at(1.1), "a"), None, PlanAction.MANUAL),
        ((at(-10), "a"), None, PlanAction.COPY),
        ((at(1.1), "a"), (at(1.1), "a"), PlanAction.NOTHING),
        ((at(-10), "a"), (at(-9.5), ""), PlanAction.MANUAL),
        ((at(-10), "a"), (at(-5), ""), PlanAction.DELETE),
        ((at(-10), ""), (at(-9.5), ""), PlanAction.DELETE),
        ((None, "a"), (at(-5), "a"), PlanAction.COPY),
    ],
)
def test_hlc_numbers_within_skew_or_from_the_future_are_undecidable(
    text: tuple[int | None, str], vector: tuple[int | None, str] | None, expected: PlanAction
) -> None:
    """With numbers="hlc", MOST_RECENT leaves to a person what the clocks cannot order. Control: counters can."""

    def view(store: str, held: tuple[int | None, str] | None) -> Observation:
        if held is None:
            return see(store, "-")
        number, letter = held
        return Observation(
            presence=Presence.LIVE if letter else Presence.TOMBSTONE,
            token=store,
            version=DocumentVersion(number=number, digest=letter * 64, deleted=not letter),
            embedding=MODEL if store == "vector" and letter else None,
        )

    views = {"text": view("text", text), "vector": view("vector", vector)}

    assert expected is plan_of(views, RECENT, policy_with(numbers="hlc", skew=1.0), NOW).action
    assert PlanAction.MANUAL is not plan_of(views, RECENT, policy_with(numbers="counter"), NOW).action


@pytest.mark.parametrize(
    ("live", "tombstone", "expected"),
    [
        (at(-5), at(-10), PlanAction.COPY),
        (at(-9.5), at(-10), PlanAction.MANUAL),
        (at(1.1), at(-10), PlanAction.MANUAL),
        (at(-10), at(-5), PlanAction.MANUAL),
    ],
)
def test_hlc_numbers_guard_tombstones_from_a_source_of_truth(live: int, tombstone: int, expected: PlanAction) -> None:
    """With numbers="hlc", a source of truth is not copied over a tombstone that may be the later one."""
    for strategy, source, target in ((TEXT, "text", "vector"), (VECTOR, "vector", "text")):
        views = {
            source: attrs.evolve(see(source, "L1a"), version=DocumentVersion(number=live, digest="a" * 64)),
            target: attrs.evolve(see(target, "T1"), version=DocumentVersion(number=tombstone, deleted=True)),
        }

        assert expected is plan_of(views, strategy, policy_with(numbers="hlc", skew=1.0), NOW).action


@pytest.mark.parametrize(
    ("text", "vector", "cache", "choice", "expected"),
    [
        ("L1a", "L1b", None, "text", "copy 1a text->vector"),
        ("L1a", "L1b", None, "vector", "copy 1b vector->text"),
        ("L1a", "L1b", "L1c", "vector", "copy 1b vector->text refresh"),
        ("L1a", "L1b", "L1c", "delete", "delete 1->text,vector invalidate"),
        ("L1a", "T5", None, "text", "copy 1a text->vector"),
        ("L?a", "T5", None, "text", "copy ?a text->vector"),
        ("L1a", "T5", None, "delete", "delete 5->text"),
        ("T5", "L1a", None, "vector", "copy 1a vector->text"),
        ("L7a", "T5", None, "delete", "delete 7->text,vector"),
        ("L?a", "L?b", None, "delete", "delete ?->text,vector"),
        ("L?a", "L3b", None, "delete", "delete 3->text,vector"),
        ("L1a", "-", None, "text", "copy 1a text->vector"),
        ("L1a", "-", None, "vector", "manual"),
        ("T1", "L1a", None, "text", "manual"),
        ("L1a", "L1a", None, "text", "nothing"),
        ("L1a!", "L1a", None, "text", "copy 1a text,vector->text"),
        ("T5", "T5", None, "delete", "nothing"),
        ("-", "-", None, "text", "nowhere"),
        ("-", "-", None, "delete", "nowhere"),
        ("-", "-", "L1a", "delete", "nothing invalidate"),
    ],
)
def test_resolution_table(text: str, vector: str, cache: str | None, choice: str, expected: str) -> None:
    """A person's choice overrides tombstones and numbers, waits for nothing, and uses a number that is held."""
    plan = plan_resolution("doc", views_of(text, vector, cache), choice, POLICY)  # type: ignore[arg-type]  # choices are drawn as strings

    assert expected == describe(plan)
    assert plan.strategy is None


def test_manual_resolution_writes_nothing() -> None:
    """MANUAL_RESOLUTION is manual in the seed's words for every state, equal copies included."""
    for text, vector in (("L1a", "L2b"), ("L1a", "L1a"), ("-", "-"), ("T1", "L2a")):
        plan = plan_of(views_of(text, vector, "L9c"), SyncStrategy.MANUAL_RESOLUTION)

        assert "manual" == describe(plan)
        assert "Manual resolution required" == plan.reason
        assert () == plan.sources


@pytest.mark.parametrize(
    ("text", "vector", "strategy", "held", "why"),
    [
        (
            "L1a!",
            "T2",
            TEXT,
            "the text store holds version 1 (damaged) and the vector store holds a tombstone at 2",
            "only resolve overrides a tombstone",
        ),
        (
            "L?a",
            "T2",
            TEXT,
            "the text store holds a copy without a number and the vector store holds a tombstone at 2",
            "they cannot be ordered, and only resolve overrides a tombstone",
        ),
        (
            "T?",
            "L1a",
            VECTOR,
            "the text store holds a tombstone without a number and the vector store holds version 1",
            "they cannot be ordered, and only resolve overrides a tombstone",
        ),
        (
            "-",
            "L1a",
            TEXT,
            "the text store does not hold it and the vector store holds version 1",
            'the text store is the source of truth; use resolve, or missing_source="delete"',
        ),
        (
            "L?a",
            "T1",
            RECENT,
            "the text store holds a copy without a number and the vector store holds a tombstone at 1",
            "they cannot be ordered",
        ),
        (
            "L1a",
            "L1b",
            RECENT,
            "the text store holds version 1 and the vector store holds version 1",
            "the same version with different content",
        ),
        (
            "L?a",
            "L1b!",
            RECENT,
            "the text store holds a copy without a number and the vector store holds version 1 (damaged)",
            "different content that cannot be ordered",
        ),
    ],
)
def test_reasons_say_what_is_held_and_why_that_does_not_decide(
    text: str, vector: str, strategy: SyncStrategy, held: str, why: str
) -> None:
    """A person can act on the reason of a manual plan: it says what each store holds, and what stands in the way."""
    assert f"Manual resolution required: {held}; {why}" == plan_of(views_of(text, vector), strategy).reason


def test_reasons_that_come_from_settings_clocks_and_choices() -> None:
    """What a setting leaves open, what clocks cannot order, and what a person chose in vain is said in so many words."""
    one = "Manual resolution required: the text store holds version 1 and the vector store does not hold it; "
    absent = policy_with(absent=AbsentMeans.MANUAL)
    mute = attrs.evolve(POLICY, traits={**TRAITS, "text": traits_of("text", holds_text=False)})
    ahead = at(1.1)
    late, soon = at(-10), at(-9.5)
    hlc = policy_with(numbers="hlc", skew=1.0)

    def views(text: int, vector: int, *, deleted: bool) -> dict[str, Observation]:
        version = DocumentVersion(number=vector, digest="" if deleted else "b" * 64, deleted=deleted)
        return {
            "text": attrs.evolve(see("text", "L1a"), version=DocumentVersion(number=text, digest="a" * 64)),
            "vector": attrs.evolve(see("vector", "T1" if deleted else "L1a"), version=version),
        }

    assert one + "what is absent from the vector store may be missing or deleted" == (
        plan_of(views_of("L1a", "-"), RECENT, absent).reason
    )
    other = "Manual resolution required: the text store does not hold it and the vector store holds version 1; "
    assert other + "what is absent from the text store may be missing or deleted" == (
        plan_of(views_of("-", "L1a"), RECENT, absent).reason
    )
    assert one + "no store can give the text of the version that wins" == (
        plan_of(views_of("L1a", "-"), TEXT, mute).reason
    )
    assert one + "the vector store holds no copy that could be taken" == (
        plan_resolution("doc", views_of("L1a", "-"), "vector", POLICY).reason
    )
    assert "in no store: neither the text store nor the vector store holds it" == (
        plan_of(views_of("-", "-"), TEXT).reason
    )
    future = plan_of(views(late, ahead, deleted=False), RECENT, hlc, NOW).reason
    assert f"the vector store holds version {ahead}; number {ahead} lies more than 1 s in the future" in future
    for plan in (
        plan_of(views(late, soon, deleted=False), RECENT, hlc, NOW),
        plan_of(views(soon, late, deleted=True), TEXT, hlc, NOW),
    ):
        assert plan.reason.endswith("; their times are within 1 s of each other")


def test_reasons_name_stores_and_numbers_and_no_digest() -> None:
    """In every small state a plan has a reason exactly if nothing is decided, and it quotes no content."""
    for views in all_states():
        for strategy in DECIDING:
            plan = plan_of(views, strategy)
            assert (plan.reason is not None) == (plan.action in (PlanAction.MANUAL, PlanAction.NOWHERE))
            assert "aaaa" not in (plan.reason or "")


@pytest.mark.parametrize(
    ("text", "vector", "cache"),
    [
        ("L2a", "L1b", None),
        ("T2", "L1a", None),
        ("L1a", "L1a", "L1b"),
        ("L1a", "L1b", None),
        ("-", "-", None),
        ("-", "-", "L1a"),
        ("L?a", "T1", None),
    ],
)
def test_every_plan_says_what_it_is_about(text: str, vector: str, cache: str | None) -> None:
    """Document and strategy are in every plan; one that writes nothing has nothing to read, to write or to wait for."""
    views = views_of(text, vector, cache)
    doubtful = policy_with(numbers="hlc", skew=1.0)
    for policy in (POLICY, doubtful):
        plans = [(strategy, plan_of(views, strategy, policy)) for strategy in SyncStrategy]
        plans += [(None, plan_resolution("doc", views, choice, policy)) for choice in ("text", "vector", "delete")]
        for strategy, plan in plans:
            assert ("doc", strategy) == (plan.doc_id, plan.strategy)
            if plan.action in (PlanAction.MANUAL, PlanAction.NOWHERE):
                assert (None, (), (), CacheStep.NONE, False) == (
                    plan.version,
                    plan.sources,
                    plan.writes,
                    plan.cache_step,
                    plan.settle_first,
                )
            assert isinstance(plan.sources, tuple)
            assert set(views) == set(plan.tokens)


def test_a_tombstone_is_copied_as_it_is() -> None:
    """A delete that a store already remembers reaches the other one with the time that people see."""
    when = dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)
    views = views_of("T2", "L1a")
    views["text"] = attrs.evolve(views["text"], version=DocumentVersion(number=2, deleted=True, updated_at=when))

    for strategy in (TEXT, RECENT):
        plan = plan_of(views, strategy)
        assert ("delete 2->vector", when) == (describe(plan), plan.version and plan.version.updated_at)


def test_no_text_anywhere_is_manual() -> None:
    """A version that no store can give the text of is left to a person, and a stale cache entry is removed."""
    vector_only = {
        **TRAITS,
        "text": traits_of("text", holds_text=False),
        "vector": traits_of("vector", holds_text=False),
    }
    policy = attrs.evolve(POLICY, traits=vector_only)

    for strategy in DECIDING:
        assert "manual" == describe(plan_of(views_of("L2a", "L1b"), strategy, policy))
        assert "nothing invalidate" == describe(plan_of(views_of("L1a", "L1a", "L1b"), strategy, policy))
    assert "manual" == describe(plan_resolution("doc", views_of("L1a", "L1b"), "text", policy))


def test_store_without_tombstones_equals_a_delete_by_absence() -> None:
    """A store that keeps no tombstones needs no write to hold one, and is emptied by a delete."""
    policy = attrs.evolve(POLICY, traits={**TRAITS, "vector": traits_of("vector", keeps_tombstones=False)})

    assert "nothing" == describe(plan_of(views_of("T1", "-"), TEXT, policy))
    assert "delete 2->vector" == describe(plan_of(views_of("T2", "L1a"), TEXT, policy))


def test_unknown_is_never_absent() -> None:
    """Without an observation of a critical store there is no decision."""
    for missing in CRITICAL_STORES:
        views = views_of("L1a", "-")
        del views[missing]
        with pytest.raises(InvalidValue, match=f"lacks the {missing} store"):
            plan_of(views, TEXT)
        with pytest.raises(InvalidValue, match=f"lacks the {missing} store"):
            plan_resolution("doc", views, "text", POLICY)


def test_unknown_choice_is_refused() -> None:
    """A choice is one of three words."""
    with pytest.raises(InvalidValue) as caught:
        plan_resolution("doc", views_of("L1a", "L1b"), "cache", POLICY)  # type: ignore[arg-type]  # wrong on purpose
    assert "choice: must be one of 'text', 'vector', 'delete', not 'cache'" == str(caught.value)


def test_plan_carries_tokens() -> None:
    """Every observed token is in the plan, and each write is fenced by the one of its store."""
    plan = plan_of(views_of("L2a", "L1b", "L1b"), TEXT)

    assert {"text": "text:L2a", "vector": "vector:L1b", "cache": "cache:L1b"} == plan.tokens
    assert (PlannedWrite(store="vector", token="vector:L1b"),) == plan.writes
    with pytest.raises(TypeError):
        plan.tokens["text"] = "other"  # type: ignore[index]  # wrong on purpose


def test_policy_of_stores_and_config() -> None:
    """A policy takes the traits of the stores there are, and the settings that decide."""
    stores = Stores(text=MemoryStore("text"), vector=MemoryStore("vector"))
    config = AutoRepairConfig(missing_source="delete", cache="fill", numbers="hlc", skew=3)

    policy = Policy.of(stores, config)

    assert {"text", "vector"} == set(policy.traits)
    assert ("delete", "fill", "hlc", 3) == (policy.missing_source, policy.cache, policy.numbers, policy.skew)


# The invariants. Each function says what is wrong with one plan; the names are those of the design.


def number_of(view: Observation) -> int | None:
    return None if view.version is None else view.version.number


Rule: TypeAlias = Callable[[Mapping[str, Observation], RepairPlan, Policy], bool]


def i1_number_decreases(views: Mapping[str, Observation], plan: RepairPlan, policy: Policy) -> bool:
    """Under MOST_RECENT a critical store would go to a lower number, or lose its number."""
    if plan.strategy is not RECENT or plan.version is None:
        return False
    held = [number for write in plan.writes if (number := number_of(views[write.store])) is not None]
    return any(plan.version.number is None or plan.version.number < number for number in held)


def i3_resurrection(views: Mapping[str, Observation], plan: RepairPlan, policy: Policy) -> bool:
    """A live version would be written although a critical store holds a tombstone that it is not above."""
    if plan.action is not PlanAction.COPY or plan.version is None:
        return False
    graves = [view for name in CRITICAL_STORES if (view := views[name]).presence is Presence.TOMBSTONE]
    return any(
        (buried := number_of(grave)) is None or plan.version.number is None or plan.version.number <= buried
        for grave in graves
    )


def i4_unfounded_delete(views: Mapping[str, Observation], plan: RepairPlan, policy: Policy) -> bool:
    """A delete without a tombstone, and without a setting that reads absence as a delete."""
    if plan.action is not PlanAction.DELETE:
        return False
    if any(views[name].presence is Presence.TOMBSTONE for name in CRITICAL_STORES):
        return False
    absent = [name for name in CRITICAL_STORES if views[name].presence is Presence.ABSENT]
    if plan.strategy is RECENT:
        return not any(policy.traits[name].absent is AbsentMeans.DELETED for name in absent)
    source = "text" if plan.strategy is TEXT else "vector"
    return not (policy.missing_source == "delete" and source in absent)


def i6_decided_undecidable(views: Mapping[str, Observation], plan: RepairPlan, policy: Policy) -> bool:
    """MOST_RECENT would write although the versions of the critical stores cannot be ordered."""
    if plan.strategy is not RECENT or not plan.writes:
        return False
    text, vector = (views[name].version for name in CRITICAL_STORES)
    if text is None or vector is None or text == vector:
        return False
    if text.deleted and vector.deleted:
        return False
    if text.digest == vector.digest:
        return False
    if text.deleted != vector.deleted and None not in (text.number, vector.number):
        return False
    return None in (text.number, vector.number) or text.number == vector.number


def invented(views: Mapping[str, Observation], plan: RepairPlan, policy: Policy) -> bool:
    """The version or its number is one that no critical store holds."""
    if plan.version is None:
        return False
    held = [view.version for name in CRITICAL_STORES if (view := views[name]).version is not None]
    if plan.version.deleted:
        return plan.version.number not in {version.number for version in held if version is not None}
    return plan.version not in held


def unfaithful(views: Mapping[str, Observation], plan: RepairPlan, policy: Policy) -> bool:
    """Writes other than to every critical store that differs; sources that do not hold the version; needless ones."""
    if plan.action in (PlanAction.MANUAL, PlanAction.NOWHERE):
        return (
            bool(plan.writes or plan.sources or plan.version or plan.settle_first)
            or plan.cache_step is not CacheStep.NONE
        )
    differing = (
        ()
        if plan.version is None
        else tuple(name for name in CRITICAL_STORES if not is_equal(views[name], plan.version, policy.traits[name]))
    )
    needs_text = plan.action is PlanAction.COPY or plan.cache_step is CacheStep.REFRESH
    return (
        tuple(write.store for write in plan.writes) != differing
        or any(write.token != views[write.store].token for write in plan.writes)
        or (plan.action is PlanAction.NOTHING) != (not differing)
        or bool(plan.sources) != needs_text
        or any(views[name].version != plan.version or not policy.traits[name].holds_text for name in plan.sources)
        or "cache" in plan.sources
    )


def i11_not_idempotent(views: Mapping[str, Observation], plan: RepairPlan, policy: Policy) -> bool:
    """After the plan was carried out there is something left to do, or to find."""
    if plan.action in (PlanAction.MANUAL, PlanAction.NOWHERE):
        return False
    after = apply(plan, views, policy.traits)
    again = plan_of(after, plan.strategy or RECENT, policy)
    return (
        again.action not in (PlanAction.NOTHING, PlanAction.NOWHERE)
        or again.cache_step is not CacheStep.NONE
        or diagnose("doc", after, policy.traits) is not None
    )


def overtakes(views: Mapping[str, Observation], plan: RepairPlan, policy: Policy) -> bool:
    """A store that is numbered above the decision would be overwritten at once."""
    if plan.version is None or plan.settle_first:
        return False
    decided = -1 if plan.version.number is None else plan.version.number
    return any((number_of(views[write.store]) or -1) > decided for write in plan.writes)


RULES: tuple[Rule, ...] = (
    i1_number_decreases,
    i3_resurrection,
    i4_unfounded_delete,
    i6_decided_undecidable,
    invented,
    unfaithful,
    i11_not_idempotent,
    overtakes,
)


def broken_rules(policy: Policy = POLICY, rules: tuple[Rule, ...] = RULES) -> set[str]:
    """The rules that some plan for some small state breaks; it stops looking once that is all of them."""
    broken: set[str] = set()
    for views in all_states():
        for strategy in DECIDING:
            plan = plan_of(views, strategy, policy)
            broken.update(rule.__name__ for rule in rules if rule.__name__ not in broken and rule(views, plan, policy))
        if len(broken) == len(rules):
            break
    return broken


@pytest.mark.parametrize(
    "policy",
    [
        POLICY,
        policy_with(missing_source="delete", absent=AbsentMeans.DELETED, cache="invalidate"),
        policy_with(absent=AbsentMeans.MANUAL, cache="fill"),
    ],
    ids=["default", "deleting", "manual"],
)
def test_i1_i3_i4_i6_i11_hold_for_every_small_state(policy: Policy) -> None:
    """No plan for any combination of small states breaks a rule; `test_planted_bug…` shows that each can be broken."""
    assert set() == broken_rules(policy)


def test_every_action_and_cache_step_is_reached() -> None:
    """The states are not vacuous: each strategy does everything that it can do."""
    for strategy in DECIDING:
        plans = [plan_of(views, strategy) for views in all_states()]

        assert set(PlanAction) == {plan.action for plan in plans}
        assert set(CacheStep) == {plan.cache_step for plan in plans}
    assert {True, False} == {plan_of(views, TEXT).settle_first for views in all_states()}


def lower_wins(views: Mapping[str, Observation]) -> object:
    """Planted: the lower of two live copies."""
    text, vector = views["text"].version, views["vector"].version
    assert text is not None
    assert vector is not None
    return _planning._copy(min(text, vector, key=lambda version: _planning.rank(version.number)))


def text_wins_ties(views: Mapping[str, Observation]) -> object:
    """Planted: a conflict is decided for the text store."""
    text, vector = views["text"].version, views["vector"].version
    assert text is not None
    assert vector is not None
    return _planning._copy(max(text, vector, key=lambda version: _planning.rank(version.number)))


def copies_over_tombstones(source: str, views: Mapping[str, Observation], policy: Policy, now: float) -> object:
    """Planted: the source of truth overrides tombstones."""
    ours = views[source]
    return _planning._copy(ours.version) if ours.presence is Presence.LIVE else _planning._delete(ours.version)


def absence_deletes(source: str, views: Mapping[str, Observation], policy: Policy, now: float) -> object:
    """Planted: an absent source means a delete, whatever the setting."""
    return _trust(source, views, attrs.evolve(policy, missing_source="delete"), now)


def invents_a_number(version: DocumentVersion | None, *, from_absence: bool = False) -> object:
    """Planted: a delete takes the next number."""
    number = None if version is None or version.number is None else version.number + 1
    return _planning._Decision(PlanAction.DELETE, DocumentVersion(number=number, deleted=True), None, from_absence)


def ignores_damage(observation: Observation, version: DocumentVersion | None, traits: object) -> bool:
    """Planted: only the version is compared."""
    return observation.version == version


_trust = _planning._trust


@pytest.mark.parametrize(
    ("target", "bug", "caught_by"),
    [
        ("_later_copy", lower_wins, i1_number_decreases),
        ("_later_copy", text_wins_ties, i6_decided_undecidable),
        ("_trust", copies_over_tombstones, i3_resurrection),
        ("_trust", absence_deletes, i4_unfounded_delete),
        ("_delete", invents_a_number, invented),
        ("is_equal", ignores_damage, unfaithful),
        ("is_equal", ignores_damage, i11_not_idempotent),
        ("rank", lambda _number: 0, overtakes),
    ],
)
def test_planted_bugs_break_the_rules(
    monkeypatch: pytest.MonkeyPatch, target: str, bug: Callable[..., object], caught_by: Rule
) -> None:
    """The control of the invariants: each rule notices a bug of its kind."""
    monkeypatch.setattr(_planning, target, bug)

    assert {caught_by.__name__} == broken_rules(rules=(caught_by,))


# The same rules for settings, traits and numbers that are drawn.

numbers = st.none() | st.integers(0, 4) | st.integers(0, 2**53 - 1)


@st.composite
def drawn_observation(draw: st.DrawFn, store: str) -> Observation:
    presence = draw(st.sampled_from(Presence))
    token = draw(st.text("xyz", min_size=1, max_size=3))
    if presence is Presence.ABSENT:
        return Observation(presence=presence, token=token)
    deleted = presence is Presence.TOMBSTONE
    version = DocumentVersion(
        number=draw(numbers), digest="" if deleted else draw(st.sampled_from(("a" * 64, "b" * 64))), deleted=deleted
    )
    embedding = draw(st.sampled_from((MODEL, see("vector", "L1a~").embedding)))
    return Observation(
        presence=presence,
        token=token,
        version=version,
        intact=draw(st.booleans()),
        embedding=embedding if store == "vector" and not deleted else None,
    )


@st.composite
def drawn_case(draw: st.DrawFn) -> tuple[dict[str, Observation], Policy]:
    views = {store: draw(drawn_observation(store)) for store in CRITICAL_STORES}
    if draw(st.booleans()):
        views["cache"] = draw(drawn_observation("cache"))
    traits = {
        store: traits_of(
            store,
            absent=draw(st.sampled_from(AbsentMeans)),
            # A store that was seen to hold a tombstone keeps them.
            keeps_tombstones=draw(st.booleans()) or (store in views and views[store].presence is Presence.TOMBSTONE),
            holds_text=draw(st.booleans()),
        )
        for store in ("text", "vector", "cache")
    }
    policy = Policy(
        traits=traits,
        missing_source=draw(st.sampled_from(("refuse", "delete"))),
        cache=draw(st.sampled_from(("refresh", "invalidate", "fill"))),
    )
    return views, policy


@given(drawn_case(), st.sampled_from(DECIDING))
def test_i1_i3_i4_i6_i11_hold_for_drawn_cases(
    case: tuple[dict[str, Observation], Policy], strategy: SyncStrategy
) -> None:
    """No rule is broken whatever the stores promise, hold, and the settings say."""
    views, policy = case

    plan = plan_of(views, strategy, policy)

    assert [] == [rule.__name__ for rule in RULES if rule(views, plan, policy)]


@given(drawn_case(), st.sampled_from(("text", "vector", "delete")))
def test_a_resolution_converges(case: tuple[dict[str, Observation], Policy], choice: str) -> None:
    """After a person's choice was carried out, every strategy but MANUAL_RESOLUTION finds nothing left to do."""
    views, policy = case

    plan = plan_resolution("doc", views, choice, policy)  # type: ignore[arg-type]  # choices are drawn as strings

    assert not invented(views, plan, policy)
    assert not plan.settle_first
    if plan.action in (PlanAction.COPY, PlanAction.DELETE, PlanAction.NOTHING):
        after = apply(plan, views, policy.traits)
        for strategy in DECIDING:
            assert () == plan_of(after, strategy, policy).writes


@given(drawn_case(), st.sampled_from(DECIDING), st.floats(0, 5), st.floats(1.6e9, 2.2e9))
def test_hlc_decides_no_more_than_counters(
    case: tuple[dict[str, Observation], Policy], strategy: SyncStrategy, skew: float, now: float
) -> None:
    """Doubt about clocks only ever turns a write into a manual case; it never changes what would be written."""
    views, policy = case
    plain = plan_of(views, strategy, policy)

    doubting = plan_of(views, strategy, attrs.evolve(policy, numbers="hlc", skew=skew), now)

    # Where a person decides anyway, doubt may be what is named as the reason.
    person = doubting.action is PlanAction.MANUAL and (bool(plain.writes) or plain.action is PlanAction.MANUAL)
    assert doubting == plain or person
