"""What the strategies draw is what they say, and every kind of it is drawn."""

from __future__ import annotations

import datetime as dt
from typing import Any

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import find, given, settings

from trio_repair import (
    ContentDefinition,
    DivergenceKind,
    Document,
    DocumentVersion,
    InvalidDocumentId,
    RepairJob,
    SyncStrategy,
    diagnose,
)
from trio_repair._model import check_doc_id
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import (
    EMBEDDING,
    Fault,
    FaultKind,
    FaultyStore,
    HeldDocument,
    StoreContents,
    make_document,
    strategies,
)

few = settings(max_examples=40, deadline=None)
# Derandomised, because what these tests claim is that nothing is missing.
reach = settings(max_examples=200, deadline=None, derandomize=True)


def kinds_found(held: HeldDocument) -> frozenset[DivergenceKind]:
    """Put a drawn document into memory stores and diagnose what they then show."""
    stores = StoreContents(documents=(held,)).memory_stores()
    views = {name: store.observe_nowait(held.doc_id) for name, store in stores.items()}
    divergence = diagnose(held.doc_id, views, {name: store.traits for name, store in stores.items()})
    return frozenset() if divergence is None else divergence.kinds


@few
@given(strategies.doc_ids())
def test_doc_ids_are_valid(doc_id: str) -> None:
    """Every id that is drawn passes the model."""
    assert check_doc_id(doc_id) == doc_id


@few
@given(strategies.invalid_doc_ids())
def test_invalid_doc_ids_are_refused(doc_id: Any) -> None:
    """No id that is drawn as invalid passes the model."""
    with pytest.raises(InvalidDocumentId):
        check_doc_id(doc_id)


@few
@given(strategies.documents(content=ContentDefinition(metadata_keys=("a",))))
def test_documents_are_taken_by_stores(document: Document) -> None:
    """Drawn documents have true digests and JSON metadata: a store takes them and holds them as they are."""
    store = MemoryStore(content=ContentDefinition(metadata_keys=("a",)))
    store.put_nowait(document)
    assert store.get_nowait(document.doc_id) == document


@few
@given(strategies.tombstones())
def test_tombstones_are_tombstones(document: Document) -> None:
    """Drawn tombstones are deleted and have no text."""
    assert document.version.deleted
    assert document.text is None


@few
@given(strategies.jobs(strategies=[SyncStrategy.MOST_RECENT]))
def test_jobs_keep_to_the_strategies_asked_for(job: RepairJob) -> None:
    """Drawn jobs have the strategy that was named, and no deadline that the wall clock reaches while tests run."""
    assert job.strategy is SyncStrategy.MOST_RECENT
    assert job.deadline is None or job.deadline.year in (2001, 2200)


def test_jobs_and_versions_reach_every_field() -> None:
    """Non-vacuity: deadlines that are past and to come, attempts that were made elsewhere, and moments of writing."""
    seen: set[tuple[str, bool]] = set()

    @reach
    @given(strategies.jobs(), strategies.versions())
    def look(job: RepairJob, version: DocumentVersion) -> None:
        fields = {"timeout": job.timeout, "deadline": job.deadline, "retried": job.retry_count or None}
        fields["retries left"] = None if job.retry_count >= job.max_retries else 1
        fields["deleted at" if version.deleted else "written at"] = version.updated_at
        seen.update((name, value is not None) for name, value in fields.items())
        if job.deadline is not None:
            seen.add(("past", job.deadline < dt.datetime.now(dt.timezone.utc)))

    look()
    names = ("timeout", "deadline", "retried", "retries left", "deleted at", "written at", "past")
    assert {(name, given) for name in names for given in (True, False)} == seen


def test_the_simplest_job_has_nothing_that_it_need_not_have() -> None:
    """What fails is shrunk towards none: no deadline, no timeout, no retries, no moment of writing."""
    job = find(strategies.jobs(), lambda _: True)
    assert (None, None, 0, 0) == (job.deadline, job.timeout, job.retry_count, job.max_retries)
    assert find(strategies.versions(), lambda _: True).updated_at is None
    # And one that has a deadline has the one that is never reached.
    late = find(strategies.jobs(), lambda job: job.deadline is not None)
    assert late.deadline == dt.datetime(2200, 1, 1, tzinfo=dt.timezone.utc)


def test_jobs_take_deadlines_of_a_clock_of_ones_own() -> None:
    """Moments on a wall clock that the test moves."""
    moment = dt.datetime(1999, 1, 1, tzinfo=dt.timezone.utc)
    assert moment == find(strategies.jobs(deadlines=st.just(moment)), lambda _: True).deadline


@few
@given(strategies.consistent_documents("a"))
def test_consistent_documents_have_nothing_wrong(held: HeldDocument) -> None:
    """`diagnose` finds nothing in a consistent document."""
    assert kinds_found(held) == frozenset()


@pytest.mark.parametrize("kind", DivergenceKind)
def test_damaged_documents_have_exactly_that_wrong(kind: DivergenceKind) -> None:
    """`diagnose` finds the kind that was asked for, and no other."""

    @few
    @given(strategies.damaged_documents("a", kind))
    def check(held: HeldDocument) -> None:
        assert held.kind is kind
        assert kinds_found(held) == {kind}

    check()


@few
@given(strategies.store_contents(arbitrary=True))
def test_arbitrary_contents_can_be_stored(contents: StoreContents) -> None:
    """Any state that is drawn can be put into stores, and is what they then hold."""
    stores = contents.memory_stores()
    for held in contents.documents:
        for name, store in stores.items():
            copy = held.copies.get(name)
            assert store.get_nowait(held.doc_id) == (None if copy is None else copy.document)
            if copy is not None:
                seen = store.observe_nowait(held.doc_id)
                assert seen.intact == copy.intact
                assert (seen.embedding not in {None, EMBEDDING}) == copy.stale_embedding


def test_arbitrary_contents_reach_every_kind() -> None:
    """Non-vacuity: each kind of divergence, and none, turns up alone among arbitrary states."""
    seen = set()

    @reach
    @given(strategies.arbitrary_documents("a"))
    def look(held: HeldDocument) -> None:
        seen.add(kinds_found(held))

    look()
    assert seen >= {frozenset(), *(frozenset({kind}) for kind in DivergenceKind)}


def test_contents_reach_every_kind() -> None:
    """Non-vacuity: consistent documents and every kind of damage are drawn, side by side, under ids of their own."""
    seen: set[DivergenceKind | None] = set()

    @reach
    @given(strategies.store_contents(max_size=4))
    def look(contents: StoreContents) -> None:
        seen.update(contents.kinds.values())
        assert len(contents.kinds) == len(contents.documents)

    look()
    assert seen == {None, *DivergenceKind}


@few
@given(strategies.store_contents(kinds=(), min_size=1, max_size=3))
def test_no_kinds_means_consistent(contents: StoreContents) -> None:
    """`kinds=()` draws consistent stores only."""
    assert set(contents.kinds.values()) == {None}


@few
@given(st.lists(strategies.faults(), max_size=4), st.random_module())
def test_faults_end(faults: list[Fault], _random: Any) -> None:
    """Drawn faults are bounded: after enough calls they have all struck, and the store is itself again."""

    async def main() -> None:
        inner = MemoryStore()
        inner.put_nowait(make_document("a"))
        store = FaultyStore(inner, faults)
        for operation in ("observe", "read", "prepare", "write", "remove", "count"):
            for _ in range(40):
                argument: list[Any] = ["a"] if operation in {"observe", "read"} else []
                with trio.move_on_after(1):
                    try:
                        await (store.count() if operation == "count" else getattr(store, operation)(argument))
                    except Exception:
                        continue
        assert sum(store.injected.values()) <= sum(fault.times or 0 for fault in faults)
        store.heal()
        before = store.injected.copy()
        assert await store.count() == 1
        assert store.injected == before

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_every_kind_of_fault_is_drawn() -> None:
    """Non-vacuity: all kinds but the one that takes wall time, the lie, and the one that not every store can have."""
    seen = set()

    @reach
    @given(strategies.faults())
    def look(fault: Fault) -> None:
        seen.add(fault.kind)

    look()
    assert seen == set(FaultKind) - {FaultKind.BLOCKED_LOOP, FaultKind.SHUFFLED_ANSWERS, FaultKind.CRASH}
