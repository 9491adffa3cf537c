"""One repair: what is written, what is not, and what the receipt says, at every phase and for every verdict."""

from __future__ import annotations

import gc
import random
from typing import Any

import attrs
import pytest
import trio
import trio.lowlevel
from engine_world import Stubborn, World, config, job, states

from trio_repair import (
    AbsentMeans,
    CacheStep,
    Document,
    EmbeddingIdentity,
    Fence,
    InvalidValue,
    Observation,
    PlanAction,
    Policy,
    RepairOutcome,
    StepState,
    StoreRejected,
    Stores,
    StoreTraits,
    StoreUnavailable,
    SyncStrategy,
    WriteAnswer,
    WriteStatus,
    open_repair_engine,
    plan_repair,
)
from trio_repair._progress import Progress
from trio_repair._requests import Request
from trio_repair._stepping import Gather
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import Fault, FaultKind, RecordingInstrument, assert_trace, make_document

State, Outcome = StepState, RepairOutcome


async def _repair(world: World, repair=None, *, settings=None, instruments=(), stores=None, **given):
    """Run one job on an engine of its own."""
    async with open_repair_engine(
        world.stores if stores is None else stores,
        config(**({} if settings is None else settings)),
        instruments=instruments,
        rng=random.Random(1),
    ) as engine:
        return await engine.execute_repair_job(job(**given) if repair is None else repair)


# The straight way


async def test_a_stale_copy_is_written_and_read_back_and_the_cache_refreshed(autojump_clock):
    """Text holds 2, the others 1: afterwards all hold 2, and the receipt tells before and after."""
    world = World()
    world.drift()
    result = await _repair(world)
    assert {"text": 2, "vector": 2, "cache": 2} == world.numbers()
    assert (Outcome.REPAIRED, ("vector", "cache"), None, "text") == (
        result.outcome,
        result.updated_systems,
        result.error,
        result.source,
    )
    assert {"text": State.CONSISTENT, "vector": State.VERIFIED, "cache": State.APPLIED} == states(result)
    step = result.step("vector")
    assert (1, 2, "strong") == (step.before.number, step.after.number, step.fence)
    assert step.token == world.memory["vector"].observe_nowait("d").token
    assert result.version == world.version("text")


async def test_what_is_consistent_is_not_written(autojump_clock):
    """I11: nothing to do, nothing done, not even to tokens."""
    world = World()
    world.put_all()
    before = world.snapshot()
    result = await _repair(world)
    assert (Outcome.ALREADY_CONSISTENT, ()) == (result.outcome, result.updated_systems)
    assert before == world.snapshot()
    assert {State.CONSISTENT} == set(states(result).values())


async def test_i11_a_second_repair_writes_nothing(autojump_clock):
    """Idempotence, by snapshot."""
    world = World()
    world.drift()
    await _repair(world)
    before = world.snapshot()
    assert Outcome.ALREADY_CONSISTENT is (await _repair(world)).outcome
    assert before == world.snapshot()


async def test_nowhere(autojump_clock):
    """A document that no store holds fails, and says so."""
    result = await _repair(World())
    assert Outcome.FAILED is result.outcome
    assert "in no store" in result.error


async def test_cache_only_entries_are_invalidated(autojump_clock):
    """An entry that outlived its document is removed; that is a repair."""
    world = World()
    world.put("cache")
    result = await _repair(world)
    assert (Outcome.REPAIRED, ("cache",), State.INVALIDATED) == (
        result.outcome,
        result.updated_systems,
        result.step("cache").state,
    )
    assert world.version("cache") is None


async def test_a_tombstone_is_carried_to_the_others(autojump_clock):
    """Deleted in the text store: a tombstone of the same number in the vector store, and no cache entry."""
    world = World()
    world.put_all(number=3)
    world.memory["text"].delete_nowait("d", number=4)
    result = await _repair(world)
    assert (Outcome.REPAIRED, 4, True, None) == (
        result.outcome,
        world.number("vector"),
        world.version("vector").deleted,
        world.version("cache"),
    )
    assert {"text": State.CONSISTENT, "vector": State.VERIFIED, "cache": State.INVALIDATED} == states(result)


async def test_manual_resolution_writes_nothing_and_shows_what_each_store_holds(autojump_clock):
    """Every store's version and token are in the receipt, the cache's too."""
    world = World()
    world.drift()
    before = world.snapshot()
    result = await _repair(world, strategy=SyncStrategy.MANUAL_RESOLUTION)
    assert (Outcome.NEEDS_MANUAL, "Manual resolution required") == (result.outcome, result.error)
    assert before == world.snapshot()
    assert {"text": 2, "vector": 1, "cache": 1} == {step.store: step.after.number for step in result.receipt}
    assert all(step.token for step in result.receipt)
    assert {State.UNTOUCHED} == set(states(result).values())


async def test_an_engine_without_a_cache(autojump_clock):
    """Two stores are enough, through every path that asks for the third."""
    world = World(cache=False)
    world.drift("d")
    assert ("text", "vector") == tuple(states(await _repair(world)))
    assert Outcome.NEEDS_MANUAL is (await _repair(world, strategy=SyncStrategy.MANUAL_RESOLUTION)).outcome
    assert Outcome.FAILED is (await _repair(world, doc_id="nowhere")).outcome


# Sources


async def test_a_text_that_does_not_match_its_digest_is_never_copied(autojump_clock):
    """A lying source gives NEEDS_MANUAL naming it, and nothing is written."""
    world = World()
    world.drift()

    class Lying:
        traits = world.memory["text"].traits

        def __getattr__(self, name):
            return getattr(world.faulty["text"], name)

        async def read(self, doc_ids):
            (answer,) = await world.faulty["text"].read(doc_ids)
            return [attrs.evolve(answer, document=attrs.evolve(answer.document, text="MARKER something else"))]

    before = world.snapshot()
    result = await _repair(world, stores=attrs.evolve(world.stores, text=Lying()))
    assert Outcome.NEEDS_MANUAL is result.outcome
    assert "text store's text does not match its digest" in result.error
    assert "MARKER" not in repr(result)
    assert before == world.snapshot()


async def test_a_text_that_cannot_be_encoded_proves_nothing(autojump_clock):
    """A lone surrogate in what a store gives is a text without a digest."""
    world = World()
    world.drift()

    class Odd:
        traits = world.memory["text"].traits

        def __getattr__(self, name):
            return getattr(world.faulty["text"], name)

        async def read(self, doc_ids):
            (answer,) = await world.faulty["text"].read(doc_ids)
            return [attrs.evolve(answer, document=attrs.evolve(answer.document, text="\ud800"))]

    assert Outcome.NEEDS_MANUAL is (await _repair(world, stores=attrs.evolve(world.stores, text=Odd()))).outcome


async def test_a_source_that_changes_between_look_and_read_is_looked_at_again(autojump_clock):
    """The read's token is not the look's: what is copied is what the second look saw."""
    world = World()
    world.drift()
    world.faulty["text"].add(Fault(FaultKind.CONCURRENT_WRITE, "read", times=1))
    result = await _repair(world)
    assert (Outcome.REPAIRED, 3, 3) == (result.outcome, world.number("vector"), result.version.number)


async def test_the_other_copy_is_read_if_the_first_cannot_give_its_text(autojump_clock):
    """MOST_RECENT: the text copy names the version but is damaged; the vector store's whole copy heals it."""
    world = World()
    world.put_all()
    world.memory["text"].damage("d")
    result = await _repair(world, strategy=SyncStrategy.MOST_RECENT)
    assert (Outcome.REPAIRED, "vector", True) == (
        result.outcome,
        result.source,
        world.memory["text"].observe_nowait("d").intact,
    )


async def test_no_source_can_give_the_text(autojump_clock):
    """Each source's reason is in the error; a person is needed."""
    world = World()
    world.drift()
    world.faulty["text"].add(Fault(FaultKind.REJECTED, "read"))
    result = await _repair(world)
    assert Outcome.NEEDS_MANUAL is result.outcome
    assert "the text store cannot give the text (injected: never)" in result.error


async def test_i6_a_source_whose_adapter_breaks_is_no_question_for_a_person(autojump_clock):
    """It may hold the text: FAILED, not NEEDS_MANUAL. If another store has a whole copy, that one is taken."""
    world = World()
    world.drift()
    world.faulty["text"].add(Fault(FaultKind.DRIVER_ERROR, "read"))
    result = await _repair(world)
    assert (Outcome.FAILED, "text store, document 'd': read raised DriverFault") == (result.outcome, result.error)
    world = World()
    world.put_all()
    world.memory["text"].damage("d")
    world.faulty["vector"].add(Fault(FaultKind.DRIVER_ERROR, "read"))
    assert Outcome.FAILED is (await _repair(world, strategy=SyncStrategy.MOST_RECENT)).outcome
    world.faulty["vector"].heal()
    world.faulty["text"].add(Fault(FaultKind.DRIVER_ERROR, "read"))
    assert Outcome.REPAIRED is (await _repair(world, strategy=SyncStrategy.MOST_RECENT)).outcome


async def test_a_source_that_gives_another_version_than_it_showed(autojump_clock):
    """Token as observed, content not: the store contradicts itself, nothing is copied."""
    world = World()
    world.drift()

    class Contradicting:
        traits = world.memory["text"].traits

        def __getattr__(self, name):
            return getattr(world.faulty["text"], name)

        async def read(self, doc_ids):
            (answer,) = await world.faulty["text"].read(doc_ids)
            return [attrs.evolve(answer, document=make_document("d", "other", number=9))]

    result = await _repair(world, stores=attrs.evolve(world.stores, text=Contradicting()))
    assert Outcome.NEEDS_MANUAL is result.outcome
    assert "did not give the decided version" in result.error


async def test_a_source_that_is_away_while_it_is_read_is_tried_again(autojump_clock):
    """Unavailable is not unable: transient, and the retry copies."""
    world = World()
    world.drift()
    world.faulty["text"].add(Fault(FaultKind.UNAVAILABLE, "read", times=1))
    result = await _repair(world)
    assert (Outcome.REPAIRED, 2) == (result.outcome, result.attempts)


# Fences


async def test_i1_a_write_that_meets_another_state_is_refused_and_the_document_looked_at_again(autojump_clock):
    """Somebody wrote 2 -> 3 into the target just before our write: no overwrite, a new look, and a wait before it."""
    world = World()
    world.drift()
    events = RecordingInstrument()
    world.faulty["vector"].add(Fault(FaultKind.CONCURRENT_WRITE, "write", times=1))
    result = await _repair(world, instruments=[events], strategy=SyncStrategy.MOST_RECENT)
    # The rival's number (2) has other content than the text store's 2: only a person can decide.
    assert Outcome.NEEDS_MANUAL is result.outcome
    assert State.REFUSED is result.step("vector").state
    assert "written meanwhile, number 2" == world.memory["vector"].get_nowait("d").text


@pytest.mark.parametrize("max_reobserve", [0, 1, 3])
async def test_a_document_that_changes_each_time_fails_after_so_many_looks(autojump_clock, max_reobserve: int):
    """1 + max_reobserve looks, then FAILED "changed while being repaired"; not a retry."""
    world = World()
    world.drift()
    numbers = iter(range(1, 100))

    def rival(doc_id, _held):
        return make_document(doc_id, f"rival {next(numbers)}", number=0)

    world.faulty["vector"]._rival = rival
    world.faulty["vector"].add(Fault(FaultKind.CONCURRENT_WRITE, "write"))
    result = await _repair(world, settings={"max_reobserve": max_reobserve})
    assert (Outcome.FAILED, 1) == (result.outcome, result.attempts)
    assert "vector store: document 'd' changed while being repaired" in result.error
    assert 1 + max_reobserve == world.faulty["vector"].calls["write"]


async def test_a_store_that_is_found_changed_after_our_write_is_looked_at_again(autojump_clock):
    """Landed, and overwritten before it was read back: the read-back sees it, and the second round wins."""
    world = World()
    world.drift()

    async def meddle() -> None:
        while world.number("vector") != 2:  # noqa: ASYNC110 - the store tells nobody
            await trio.sleep(0.0001)
        world.memory["vector"].put_nowait(make_document("d", "older", number=0))

    world.slow["vector"].latencies["observe"] = 0.01
    async with trio.open_nursery() as nursery:
        nursery.start_soon(meddle)
        result = await _repair(world)
    assert (Outcome.REPAIRED, 2, State.VERIFIED) == (
        result.outcome,
        world.number("vector"),
        result.step("vector").state,
    )
    assert 2 == world.faulty["vector"].calls["write"]


async def test_receipts_show_the_last_look_even_if_an_earlier_write_landed(autojump_clock):
    """Landed, overwritten by somebody, given up: `after` is what was seen last, not what we once wrote."""
    world = World()
    world.drift()
    world.slow["vector"].latencies["observe"] = 0.01

    async def meddle() -> None:
        for _ in range(2):
            while world.number("vector") != 2:  # noqa: ASYNC110 - the store tells nobody
                await trio.sleep(0.001)
            world.memory["vector"].put_nowait(make_document("d", f"older {trio.current_time()}", number=0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(meddle)
        result = await _repair(world, settings={"max_reobserve": 0})
        nursery.cancel_scope.cancel()
    assert (Outcome.FAILED, State.APPLIED, 0) == (
        result.outcome,
        result.step("vector").state,
        result.step("vector").after.number,
    )


@pytest.mark.parametrize("guarded", [True, False])
async def test_i12_two_writes_of_one_document_are_never_under_way_at_once(autojump_clock, monkeypatch, guarded: bool):
    """A write is given up and goes on, and somebody changed the document: no second one beside it. Control: two."""
    world = World()
    world.drift()
    if not guarded:
        monkeypatch.setattr(Progress, "outstanding", lambda _self: [])
    vector = Stubborn(world.faulty["vector"], "write", times=1)

    async def rival() -> None:
        await trio.sleep(0.5)
        world.put("vector", number=0)
        await trio.sleep(9.5)
        vector.release.set()

    async with open_repair_engine(
        attrs.evolve(world.stores, vector=vector),
        config(store_call_timeout=1.0, breaker_reset=0.1, unavailable_timeout=50.0),
    ) as engine:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rival)
            result = await engine.execute_repair_job(job(max_retries=9))
    assert (Outcome.REPAIRED, 2) == (result.outcome, world.number("vector"))
    assert (1 if guarded else 2) == vector.peak_calls


@pytest.mark.parametrize("guarded", [True, False])
async def test_i12_a_cache_entry_is_not_removed_beside_a_write_that_goes_on(autojump_clock, monkeypatch, guarded: bool):
    """Its write is given up, and for once the breaker is not opened for it: no removal beside it. Control: both."""
    world = World()
    world.drift()
    if not guarded:
        monkeypatch.setattr(Progress, "outstanding", lambda _self: [])
    hangs = Fault(FaultKind.HANG, "write", times=1)
    goes_on = Fault(FaultKind.STUCK, "write", times=1, delay=50.0)
    async with open_repair_engine(world.stores, config(store_call_timeout=1.0, breaker_reset=1.0)) as engine:
        world.faulty["cache"].add(hangs)
        await engine.execute_repair_job(job())
        # From here on it is the document that is suspected, and the breaker stays closed.
        world.faulty["cache"].add(goes_on)
        await trio.sleep(5.0)
        result = await engine.execute_repair_job(job())
        await trio.sleep(5.0)
        told = result.step("cache").state
        assert ((State.UNKNOWN, 1) if guarded else (State.INVALIDATED, None)) == (told, world.number("cache"))
        if guarded:
            why = "write did not answer within 1 s"
            assert (f"Cache update warning: cache store: document 'd': {why}",) == result.warnings


# Settle first


async def test_a_higher_number_is_overwritten_only_after_it_stood_still(autojump_clock):
    """TEXT is the source and VECTOR holds more: wait `settle`, look again, then overwrite."""
    world = World()
    world.put("text", number=1)
    world.put("vector", number=7)
    result = await _repair(world, settings={"settle": 3.0})
    assert (Outcome.REPAIRED, 1, 2, 3.0) == (
        result.outcome,
        world.number("vector"),
        result.attempts,
        trio.current_time(),
    )


async def test_a_writer_that_goes_from_store_to_store_is_not_overwritten(autojump_clock):
    """It had written the vector store first and the text store half a second later: nothing is overwritten."""
    world = World()
    world.put("text", number=1)
    world.put("vector", number=7)

    async def writer() -> None:
        await trio.sleep(0.5)
        world.put("text", number=7)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        result = await _repair(world, settings={"settle": 1.0})
    assert (Outcome.ALREADY_CONSISTENT, 7, 0) == (
        result.outcome,
        world.number("vector"),
        world.faulty["vector"].calls["write"],
    )


async def test_a_document_that_never_stands_still_is_given_up(autojump_clock):
    """It moves during each wait: after 1 + max_reobserve waits it FAILED; the job does not wait for ever."""
    world = World()
    world.put("text", number=1)
    world.put("vector", number=7)

    async def writer() -> None:
        for number in range(8, 10_000):
            await trio.sleep(0.4)
            world.put("vector", number=number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        result = await _repair(world, settings={"settle": 1.0, "max_reobserve": 2})
        nursery.cancel_scope.cancel()
    assert (Outcome.FAILED, 4, 3.0) == (result.outcome, result.attempts, pytest.approx(trio.current_time()))
    assert "changed while being repaired" in result.error
    assert 0 == world.faulty["vector"].calls["write"]


# Partial failures


async def test_one_store_lands_and_the_other_rejects(autojump_clock):
    """A tombstone goes nowhere but to the one that takes it: the receipt tells them apart, the error is the seed's."""
    world = World()
    world.put("cache", number=1)
    world.put("text", number=1)
    world.put("vector", number=2)
    # MOST_RECENT copies 2 to the text store; the vector store is damaged, so that both are written.
    world.memory["vector"].damage("d", intact=True)
    world.put("vector", number=2)
    world.faulty["text"].add(Fault(FaultKind.REJECTED, "write"))
    result = await _repair(world, strategy=SyncStrategy.MOST_RECENT)
    assert (Outcome.FAILED, "Text search update failed: injected: never") == (result.outcome, result.error)
    assert (State.FAILED, ()) == (result.step("text").state, result.updated_systems)
    assert 1 == result.attempts


def _both_lag(world: World) -> None:
    """A tombstone at 9 in neither store, wanted in both: `resolve(..., "delete")` writes both critical stores."""
    world.put_all(number=3)


@pytest.mark.parametrize(
    ("kind", "state", "outcome"),
    [
        (FaultKind.REJECTED, State.FAILED, Outcome.FAILED),
        (FaultKind.UNAVAILABLE, State.FAILED, Outcome.FAILED),
        (FaultKind.REQUEST_LOST, State.FAILED, Outcome.FAILED),
        (FaultKind.DRIVER_ERROR, State.FAILED, Outcome.FAILED),
        (FaultKind.ACK_LOST, State.VERIFIED, Outcome.REPAIRED),
    ],
)
async def test_two_writes_one_of_which_fails(autojump_clock, kind: FaultKind, state: StepState, outcome: RepairOutcome):
    """The text store takes the delete, the vector store does not: the receipt says so, and the cache is left alone."""
    world = World()
    _both_lag(world)
    world.faulty["vector"].add(Fault(kind, "write"))
    async with open_repair_engine(world.stores, config(breaker_failures=100), rng=random.Random(1)) as engine:
        result = await engine.resolve("d", "delete")
    assert (outcome, state) == (result.outcome, result.step("vector").state)
    assert world.version("text").deleted
    assert "text" in result.updated_systems
    if outcome is Outcome.FAILED:
        assert result.error.startswith("Vector store update failed: ")
        assert (State.APPLIED, State.UNTOUCHED) == (result.step("text").state, result.step("cache").state)
        assert ("text",) == result.updated_systems
        assert world.is_live("cache")
    else:
        assert world.version("vector").deleted


async def test_i11_a_retry_does_not_write_again_what_landed(autojump_clock):
    """The vector store fails twice; the text store is written once."""
    world = World()
    _both_lag(world)
    world.faulty["vector"].add(Fault(FaultKind.UNAVAILABLE, "write", times=2))
    async with open_repair_engine(world.stores, config(), rng=random.Random(1)) as engine:
        result = await engine.resolve("d", "delete")
    assert (Outcome.REPAIRED, 3) == (result.outcome, result.attempts)
    assert (1, 3) == (world.faulty["text"].calls["write"], world.faulty["vector"].calls["write"])
    assert ("text", "vector", "cache") == result.updated_systems
    assert {"text": State.VERIFIED, "vector": State.VERIFIED, "cache": State.INVALIDATED} == states(result)


@pytest.mark.parametrize(
    "kind", [FaultKind.ACK_LOST, FaultKind.LATE_ERROR, FaultKind.HANG_AFTER, FaultKind.WRONG_LENGTH]
)
async def test_a_lost_acknowledgement_is_found_out(autojump_clock, kind: FaultKind):
    """The write had its effect and the answer was lost, in each way: found by reading back, and known to be ours."""
    world = World()
    world.drift("d", "e")
    world.faulty["vector"].add(Fault(kind, "write", times=1))
    async with open_repair_engine(world.stores, config(store_call_timeout=1.0), rng=random.Random(1)) as engine:
        handles = [await engine.submit(job(doc_id)) for doc_id in "de"]
        results = [await handle.wait() for handle in handles]
    for result in results:
        assert (Outcome.REPAIRED, State.VERIFIED) == (result.outcome, result.step("vector").state)
        assert "vector" in result.updated_systems
        assert result.step("vector").detail is None
        assert 2 == world.number("vector", result.doc_id)


async def test_a_lost_request_is_sent_again(autojump_clock):
    """UNKNOWN and nothing there: the read-back proves that it had no effect, and the retry writes."""
    world = World()
    world.drift()
    world.faulty["vector"].add(Fault(FaultKind.REQUEST_LOST, "write", times=1))
    result = await _repair(world)
    assert (Outcome.REPAIRED, 2, State.VERIFIED) == (result.outcome, result.attempts, result.step("vector").state)


async def test_a_write_without_a_verdict_is_not_claimed_when_somebody_else_wrote(autojump_clock):
    """Our write was lost; a rival then brought both stores to 8. Consistent, but nothing is known to be ours."""
    world = World()
    world.drift()
    world.faulty["vector"].add(Fault(FaultKind.REQUEST_LOST, "write", times=1))

    async def rival() -> None:
        while not world.faulty["vector"].calls["write"]:
            await trio.lowlevel.checkpoint()
        world.put("text", number=8)
        world.put("vector", number=8)
        world.put("cache", number=8)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rival)
        result = await _repair(world)
    assert (Outcome.ALREADY_CONSISTENT, ()) == (result.outcome, result.updated_systems)
    assert State.CONSISTENT is result.step("vector").state


# The cache


async def test_the_cache_is_refreshed_only_where_it_has_an_entry(autojump_clock):
    """ "refresh" leaves absent entries absent, "fill" writes them, "invalidate" removes what differs."""
    for cache, held, expected, state in (
        ("refresh", None, None, State.CONSISTENT),
        ("refresh", 1, 2, State.APPLIED),
        ("refresh", 9, 2, State.APPLIED),
        ("fill", None, 2, State.APPLIED),
        ("invalidate", 1, None, State.INVALIDATED),
        ("invalidate", None, None, State.CONSISTENT),
    ):
        world = World()
        world.drift()
        world.memory["cache"].remove_nowait("d")
        if held is not None:
            world.put("cache", number=held)
        result = await _repair(world, settings={"cache": cache})
        assert (Outcome.REPAIRED, expected, state) == (
            result.outcome,
            world.number("cache"),
            result.step("cache").state,
        )


@pytest.mark.parametrize("operation", ["observe", "prepare", "write", "remove"])
@pytest.mark.parametrize("kind", [FaultKind.UNAVAILABLE, FaultKind.DRIVER_ERROR, FaultKind.REJECTED])
async def test_a_cache_that_fails_is_a_warning(autojump_clock, operation: str, kind: FaultKind):
    """Whatever the cache does, the critical stores decide: REPAIRED, with a warning that names the cache."""
    world = World()
    world.drift()
    world.faulty["cache"].add(Fault(kind, operation))
    result = await _repair(world, settings={} if operation != "remove" else {"cache": "invalidate"})
    assert (Outcome.REPAIRED, None, 2) == (result.outcome, result.error, world.number("vector"))
    assert 1 == len(result.warnings)
    assert result.warnings[0].startswith("Cache update warning: cache store: ") or "cache store" in result.warnings[0]
    if operation in ("prepare", "write"):
        # Not refreshed, then removed: better no entry than a stale one.
        assert (None, State.INVALIDATED) == (world.number("cache"), result.step("cache").state)
        assert "entry removed, not refreshed" in result.warnings[0]
    else:
        assert 1 == world.number("cache")


async def test_a_cache_that_cannot_even_remove_keeps_its_entry_and_is_named(autojump_clock):
    """Neither refreshed nor removed: a warning, and the receipt says FAILED."""
    world = World()
    world.drift()
    world.faulty["cache"].add(Fault(FaultKind.UNAVAILABLE, "write"), Fault(FaultKind.UNAVAILABLE, "remove"))
    result = await _repair(world)
    assert (Outcome.REPAIRED, State.FAILED, 1) == (result.outcome, result.step("cache").state, len(result.warnings))
    assert "document 'd'" in result.warnings[0]


async def test_a_cache_that_cannot_be_filled_is_named(autojump_clock):
    """There is no entry, so there is nothing to remove: a warning."""
    world = World()
    world.drift()
    world.memory["cache"].remove_nowait("d")
    world.faulty["cache"].add(Fault(FaultKind.REJECTED, "prepare"))
    result = await _repair(world, settings={"cache": "fill"})
    assert (Outcome.REPAIRED, ("Cache update warning: cache store: injected: never",)) == (
        result.outcome,
        result.warnings,
    )


async def test_a_cache_entry_that_changes_meanwhile_is_looked_at_again(autojump_clock):
    """Refused once: looked at again and refreshed. Refused always: a warning, at most max_reobserve looks."""
    for times, outcome, number in ((1, Outcome.REPAIRED, 2), (None, Outcome.REPAIRED, 5)):
        world = World()
        world.drift()
        world.faulty["cache"].add(Fault(FaultKind.CONCURRENT_WRITE, "write", times=times))
        result = await _repair(world, settings={"max_reobserve": 3})
        assert (outcome, number) == (result.outcome, world.number("cache"))
        assert bool(result.warnings) == (times is None)
        if times is None:
            assert 4 == world.faulty["cache"].calls["write"]


async def test_a_lost_acknowledgement_of_the_cache_is_found_out(autojump_clock):
    """Refresh UNKNOWN, removal refused by the entry that landed: the look finds it equal, no warning is left."""
    world = World()
    world.drift()
    world.faulty["cache"].add(Fault(FaultKind.ACK_LOST, "write", times=1))
    result = await _repair(world)
    assert (Outcome.REPAIRED, 2, State.VERIFIED, ()) == (
        result.outcome,
        world.number("cache"),
        result.step("cache").state,
        result.warnings,
    )


async def test_a_lost_refresh_is_followed_by_a_removal(autojump_clock):
    """Refresh UNKNOWN without effect, removal lands: INVALIDATED, not UNKNOWN."""
    world = World()
    world.drift()
    world.faulty["cache"].add(Fault(FaultKind.REQUEST_LOST, "write", times=1))
    result = await _repair(world)
    assert (Outcome.REPAIRED, None, State.INVALIDATED) == (
        result.outcome,
        world.number("cache"),
        result.step("cache").state,
    )


async def test_a_stale_cache_beside_consistent_stores_is_refreshed_from_the_text_store(autojump_clock):
    """Nothing to write but the cache: the content is read for it, and that is a repair."""
    world = World()
    world.put_all(number=2)
    world.put("cache", number=1)
    result = await _repair(world, strategy=SyncStrategy.MOST_RECENT)
    assert (Outcome.REPAIRED, ("cache",), 2, "text") == (
        result.outcome,
        result.updated_systems,
        world.number("cache"),
        result.source,
    )


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Fault(FaultKind.UNAVAILABLE, "read"), "injected: not now"),
        (Fault(FaultKind.REJECTED, "read"), "cannot give the text"),
        (Fault(FaultKind.CONCURRENT_WRITE, "read"), "the source changed meanwhile"),
    ],
)
async def test_a_cache_whose_refresh_cannot_be_read_is_invalidated(autojump_clock, fault: Fault, why: str):
    """The source fails us after the critical stores were verified: the entry is removed, the outcome stays good."""
    world = World()
    world.put_all(number=2)
    world.put("cache", number=1)
    world.faulty["text"].add(fault)
    result = await _repair(world)
    assert (Outcome.REPAIRED, None) == (result.outcome, world.number("cache"))
    assert why in result.warnings[0]


async def test_a_cache_that_cannot_be_seen_for_a_document_that_is_nowhere(autojump_clock):
    """Nowhere in the critical stores and the cache away: FAILED "in no store", with a warning."""
    world = World()
    world.faulty["cache"].add(Fault(FaultKind.UNAVAILABLE, "observe"))
    result = await _repair(world)
    assert (Outcome.FAILED, 1, State.FAILED) == (result.outcome, len(result.warnings), result.step("cache").state)


# Plans and persons' choices


async def _plan(
    world: World, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH, settings=None, *, names=("text", "vector", "cache")
):
    views = {name: world.memory[name].observe_nowait("d") for name in names}
    return plan_repair("d", views, strategy, Policy.of(world.stores, config(**(settings or {}))), now=0.0)


@pytest.mark.parametrize("writes", ["none", "text"])
async def test_i08_a_plan_that_leaves_a_store_behind_is_no_success(autojump_clock, writes: str):
    """It plans nothing, or a write where it is not needed, while the vector store holds version 1 of 2."""
    world = World()
    world.drift()
    plan = await _plan(world)
    kept = () if writes == "none" else (attrs.evolve(plan.writes[0], store="text", token=plan.tokens["text"]),)
    mistaken = attrs.evolve(plan, action=PlanAction.NOTHING if writes == "none" else plan.action, writes=kept)
    before = world.snapshot()
    async with open_repair_engine(world.stores, config()) as engine:
        result = await (await engine.submit(job(), plan=mistaken)).wait()
    assert (Outcome.FAILED, before) == (result.outcome, world.snapshot())
    assert "vector store: document 'd' changed" in result.error
    assert "does not hold what the plan leaves as it is" == result.step("vector").detail


async def test_i08_a_plan_made_for_another_model_is_no_success(autojump_clock):
    """All was well under the model in use when it was planned; the one in use now has embedded nothing yet."""
    first, second = (EmbeddingIdentity(model=name, dimension=3, chunking="c") for name in ("first", "second"))
    text, vector = MemoryStore("text"), MemoryStore("vector", embedding=first)
    for store in (text, vector):
        store.put_nowait(make_document("d", "hello"))
    views = {"text": text.observe_nowait("d"), "vector": vector.observe_nowait("d")}
    policy = Policy.of(Stores(text=text, vector=vector), config())
    plan = plan_repair("d", views, SyncStrategy.TEXT_SOURCE_OF_TRUTH, policy, now=0.0)
    assert PlanAction.NOTHING is plan.action
    for model, outcome in ((first, Outcome.ALREADY_CONSISTENT), (second, Outcome.FAILED)):
        vector._traits = attrs.evolve(vector.traits, embedding=model)
        async with open_repair_engine(Stores(text=text, vector=vector), config()) as engine:
            assert outcome is (await (await engine.submit(job(), plan=plan)).wait()).outcome


async def test_i7_a_plan_is_carried_out(autojump_clock):
    """What was planned is done, and nothing else."""
    world = World()
    world.drift()
    plan = await _plan(world)
    async with open_repair_engine(world.stores, config()) as engine:
        result = await (await engine.submit(job(), plan=plan)).wait()
    assert (Outcome.REPAIRED, {"text": 2, "vector": 2, "cache": 2}) == (result.outcome, world.numbers())


@pytest.mark.parametrize("name", ["text", "vector"])
async def test_i7_a_document_that_moved_since_the_plan_is_refused(autojump_clock, name: str):
    """Any critical store that changed: FAILED, nothing written; the control without a plan repairs it."""
    world = World()
    world.drift()
    plan = await _plan(world)
    world.put(name, number=5)
    before = world.snapshot()
    async with open_repair_engine(world.stores, config(settle=0.0)) as engine:
        result = await (await engine.submit(job(), plan=plan)).wait()
        assert Outcome.FAILED is result.outcome
        assert f"{name} store: document 'd' changed while being repaired" in result.error
        assert "changed since it was looked at" == result.step(name).detail
        assert before == world.snapshot()
        assert 0 == engine.statistics().reobserved
        assert Outcome.REPAIRED is (await engine.execute_repair_job(job())).outcome


async def test_i7_a_plan_that_was_carried_out_already_is_consistent(autojump_clock):
    """The same plan twice: the second time every store has moved, to just what the plan wants."""
    world = World()
    world.drift()
    plan = await _plan(world)
    async with open_repair_engine(world.stores, config()) as engine:
        await (await engine.submit(job(), plan=plan)).wait()
        before = world.snapshot()
        result = await (await engine.submit(job(), plan=plan)).wait()
    assert Outcome.ALREADY_CONSISTENT is result.outcome
    assert before == world.snapshot()
    assert 1 == world.faulty["vector"].calls["write"]


async def test_i7_a_cache_step_that_was_not_planned_is_not_done(autojump_clock):
    """The cache got a stale entry after the plan: it is named in a warning; the control without a plan refreshes it."""
    world = World()
    world.drift()
    world.memory["cache"].remove_nowait("d")
    plan = await _plan(world)
    assert CacheStep.NONE is plan.cache_step
    stale = world.put("cache", number=1)
    async with open_repair_engine(world.stores, config()) as engine:
        result = await (await engine.submit(job(), plan=plan)).wait()
        assert (Outcome.REPAIRED, stale) == (result.outcome, world.memory["cache"].get_nowait("d"))
        assert "outside the plan" in result.warnings[0]
        await engine.execute_repair_job(job())
        assert 2 == world.number("cache")


async def test_i7_a_planned_invalidation_does_not_become_a_refresh(autojump_clock):
    """Planned with cache="invalidate", carried out by an engine with "refresh": removed, as planned."""
    world = World()
    world.drift()
    plan = await _plan(world, settings={"cache": "invalidate"})
    async with open_repair_engine(world.stores, config()) as engine:
        result = await (await engine.submit(job(), plan=plan)).wait()
    assert (Outcome.REPAIRED, None, State.INVALIDATED) == (
        result.outcome,
        world.number("cache"),
        result.step("cache").state,
    )


async def test_i7_a_planned_write_that_was_sent_twice_is_recognised(autojump_clock):
    """Bisection sent it again and the fence refused our own first landing: done, not "changed while being repaired"."""
    world = World()
    world.put_all("e", number=1)
    world.put("text", "e", number=2)
    world.drift()
    plan = await _plan(world)
    world.faulty["vector"].add(Fault(FaultKind.WRONG_LENGTH, "write", times=1))
    async with open_repair_engine(world.stores, config()) as engine:
        other = await engine.submit(job("e"))
        result = await (await engine.submit(job(), plan=plan)).wait()
        assert Outcome.REPAIRED is (await other.wait()).outcome
    assert (Outcome.REPAIRED, State.VERIFIED) == (result.outcome, result.step("vector").state)


async def test_a_plan_for_a_person_writes_nothing(autojump_clock):
    """A MANUAL plan is carried out by saying so."""
    world = World()
    world.drift()
    plan = await _plan(world, SyncStrategy.MANUAL_RESOLUTION)
    assert PlanAction.MANUAL is plan.action
    async with open_repair_engine(world.stores, config()) as engine:
        assert Outcome.NEEDS_MANUAL is (await (await engine.submit(job(), plan=plan)).wait()).outcome


@pytest.mark.parametrize(("choice", "expected"), [("text", 2), ("vector", 1)])
async def test_resolve_takes_the_copy_that_a_person_chose(autojump_clock, choice, expected: int):
    """Whatever the numbers say, and without the wait before overwriting a higher one."""
    world = World()
    world.drift()
    async with open_repair_engine(world.stores, config(settle=500.0)) as engine:
        result = await engine.resolve("d", choice)
    assert (Outcome.REPAIRED, {"text": expected, "vector": expected, "cache": expected}) == (
        result.outcome,
        world.numbers(),
    )
    assert 0.0 == trio.current_time()


async def test_resolve_overrides_a_tombstone(autojump_clock):
    """Only a person may: the control, a repair, does not."""
    world = World()
    world.put("text", number=1)
    world.memory["vector"].delete_nowait("d", number=5)
    async with open_repair_engine(world.stores, config()) as engine:
        assert Outcome.NEEDS_MANUAL is (await engine.execute_repair_job(job())).outcome
        assert Outcome.REPAIRED is (await engine.resolve("d", "text")).outcome
    assert world.is_live("vector")


async def test_resolve_deletes_at_the_highest_number(autojump_clock):
    """ "delete" writes tombstones in both critical stores and takes the cache entry away."""
    world = World()
    world.drift()
    async with open_repair_engine(world.stores, config()) as engine:
        result = await engine.resolve("d", "delete")
    assert Outcome.REPAIRED is result.outcome
    assert [(2, True), (2, True)] == [(world.number(name), world.version(name).deleted) for name in ("text", "vector")]
    assert world.version("cache") is None


async def test_resolve_with_the_tokens_that_a_person_saw(autojump_clock):
    """They match: done. One is stale: refused, nothing written. A store's own earlier landing is no movement."""
    world = World()
    world.drift()
    async with open_repair_engine(world.stores, config()) as engine:
        shown = await engine.execute_repair_job(job(strategy=SyncStrategy.MANUAL_RESOLUTION))
        tokens = {step.store: step.token for step in shown.receipt}
        world.put("vector", number=4)
        before = world.snapshot()
        refused = await engine.resolve("d", "text", expected=tokens)
        assert Outcome.FAILED is refused.outcome
        assert "vector store: document 'd' changed while being repaired" in refused.error
        assert before == world.snapshot()
        tokens["vector"] = refused.step("vector").token
        assert Outcome.REPAIRED is (await engine.resolve("d", "text", expected=tokens)).outcome
        assert Outcome.ALREADY_CONSISTENT is (await engine.resolve("d", "text", expected=tokens)).outcome


async def test_resolve_checks_what_it_is_given(autojump_clock):
    """Unknown choice, unknown store, impossible id, impossible timeout: refused before anything is accepted."""
    world = World(cache=False)
    async with open_repair_engine(world.stores, config()) as engine:
        for arguments, problem in (
            ({"doc_id": "d", "choice": "cache"}, "choice"),
            ({"doc_id": "", "choice": "text"}, "doc_id"),
            ({"doc_id": "d", "choice": "text", "expected": {"cache": "t"}}, "names a store 'cache'"),
            ({"doc_id": "d", "choice": "text", "timeout": -1.0}, "timeout"),
        ):
            with pytest.raises(InvalidValue, match=problem):
                await engine.resolve(**arguments)
        assert 0 == engine.statistics().accepted


async def test_a_plan_for_another_document_is_refused(autojump_clock):
    """Before anything is accepted."""
    world = World()
    world.drift()
    plan = await _plan(world)
    async with open_repair_engine(world.stores, config()) as engine:
        with pytest.raises(InvalidValue, match="is for document 'd', the job for 'other'"):
            engine.submit_nowait(job("other"), plan=plan)


# Timeouts, phase by phase


PHASES = {
    # operation that hangs, in which store: outcome states of text, vector, cache
    "observe": ("text", "observe", State.UNTOUCHED, State.UNTOUCHED, State.UNTOUCHED),
    "read": ("text", "read", State.UNTOUCHED, State.UNTOUCHED, State.UNTOUCHED),
    "prepare": ("vector", "prepare", State.UNTOUCHED, State.UNTOUCHED, State.UNTOUCHED),
    "write": ("vector", "write", State.UNTOUCHED, State.UNKNOWN, State.UNTOUCHED),
}


@pytest.mark.parametrize("phase", PHASES)
async def test_i5_i8_a_timeout_in_each_phase(autojump_clock, phase: str):
    """Our own scope ends it at its timeout; the receipt tells what was sent; before the first write nothing changed."""
    store, operation, text, vector, cache = PHASES[phase]
    world = World()
    world.drift()
    world.faulty[store].add(Fault(FaultKind.HANG, operation))
    before = world.snapshot()
    async with open_repair_engine(world.stores, config(job_timeout_seconds=2.0, store_call_timeout=50.0)) as engine:
        result = await engine.execute_repair_job(job())
        assert 2.0 == trio.current_time()
        assert (Outcome.TIMED_OUT, "Repair operation timed out", 1) == (result.outcome, result.error, result.attempts)
        assert {"text": text, "vector": vector, "cache": cache} == states(result)
        assert ((), 2.0) == (result.updated_systems, result.running_seconds)
        assert {} == engine.active_operations
        assert (1 if phase == "write" else 0) == engine.statistics().locked
        world.faulty[store].heal()
    if phase != "write":
        assert before == world.snapshot()


async def test_i8_a_timeout_while_a_write_waits_to_be_sent(autojump_clock):
    """The store is busy with another document's write: ours was never sent. UNTOUCHED, and it never lands."""
    world = World({"vector": {"write": 10.0}}, max_calls=1)
    world.drift("a", "d")
    async with open_repair_engine(world.stores, config(store_call_timeout=50.0)) as engine:
        first = await engine.submit(job("a"))
        await trio.sleep(1.0)
        world.memory["vector"].put_nowait(make_document("z", "unrelated"))
        result = await engine.execute_repair_job(job("d", timeout=2.0))
        # With one call at a time even the look waits.
        assert (Outcome.TIMED_OUT, State.UNTOUCHED) == (result.outcome, result.step("vector").state)
        assert Outcome.REPAIRED is (await first.wait()).outcome
    assert 1 == world.number("vector", "d")


async def test_i8_a_timeout_while_the_write_itself_waits_to_be_sent(autojump_clock):
    """As before, with the look already done: the write is taken back from the queue."""
    world = World(only=("vector",), max_calls=1)
    world.drift("a", "d")
    world.faulty["vector"].add(Fault(FaultKind.LATENCY, "write", doc_id="a", delay=10.0))
    async with open_repair_engine(world.stores, config(store_call_timeout=50.0)) as engine:
        world.faulty["text"].add(Fault(FaultKind.LATENCY, "read", doc_id="d", delay=0.5, times=1))
        late = await engine.submit(job("d", timeout=2.0))
        await trio.sleep(0.1)
        first = await engine.submit(job("a"))
        result = await late.wait()
        assert (Outcome.TIMED_OUT, State.UNTOUCHED, 0) == (
            result.outcome,
            result.step("vector").state,
            engine.statistics().locked,
        )
        await first.wait()
    assert 1 == world.number("vector", "d")


async def test_a_timeout_after_the_writes_landed(autojump_clock):
    """The read-back hangs: APPLIED, named in updated_systems, and TIMED_OUT, since success is what was read back."""
    world = World()
    world.drift()
    looks = world.faulty["vector"]

    class Spoiling:
        """Its looks hang from the moment on in which the write has landed."""

        def __getattr__(self, name: str):
            return getattr(looks, name)

        async def write(self, writes):
            answers = await looks.write(writes)
            looks.add(Fault(FaultKind.HANG, "observe"))
            return answers

    stores = attrs.evolve(world.stores, vector=Spoiling())
    async with open_repair_engine(stores, config(job_timeout_seconds=2.0, store_call_timeout=50.0)) as engine:
        result = await engine.execute_repair_job(job())
        assert (Outcome.TIMED_OUT, State.APPLIED, ("vector",)) == (
            result.outcome,
            result.step("vector").state,
            result.updated_systems,
        )
        looks.heal()


@pytest.mark.parametrize("operation", ["observe", "prepare", "write"])
async def test_a_hung_cache_gives_a_warning_and_repaired(autojump_clock, operation: str):
    """The critical stores were read back; the timeout that the cache causes is a warning."""
    world = World()
    world.drift()
    world.faulty["cache"].add(Fault(FaultKind.HANG, operation))
    async with open_repair_engine(world.stores, config(job_timeout_seconds=2.0, store_call_timeout=50.0)) as engine:
        result = await engine.execute_repair_job(job())
        assert (Outcome.REPAIRED, 2.0, None) == (result.outcome, trio.current_time(), result.error)
        assert ("Cache update warning: not finished",) == result.warnings
        assert (State.UNKNOWN if operation == "write" else State.UNTOUCHED) is result.step("cache").state
        world.faulty["cache"].heal()


async def test_a_cache_that_hangs_past_its_call_timeout(autojump_clock):
    """The call is given up, the cache's breaker opens, and later jobs do not wait for it at all."""
    world = World()
    world.drift("a", "b")
    world.faulty["cache"].add(Fault(FaultKind.HANG))
    async with open_repair_engine(world.stores, config(store_call_timeout=1.0, breaker_reset=100.0)) as engine:
        first = await engine.execute_repair_job(job("a"))
        assert (Outcome.REPAIRED, 1.0) == (first.outcome, trio.current_time())
        second = await engine.execute_repair_job(job("b"))
        assert (Outcome.REPAIRED, 1.0) == (second.outcome, trio.current_time())
        assert "cache store, document 'b': is unreachable" in second.warnings[0]


async def test_a_store_that_cannot_be_cancelled_does_not_hold_up_the_timeout(autojump_clock):
    """The repair ends at its timeout although the write goes on; only the document stays locked."""
    world = World()
    world.drift()

    vector = Stubborn(world.faulty["vector"], "write")
    async with open_repair_engine(
        attrs.evolve(world.stores, vector=vector), config(job_timeout_seconds=1.0, store_call_timeout=50.0)
    ) as engine:
        result = await engine.execute_repair_job(job())
        assert (Outcome.TIMED_OUT, 1.0) == (result.outcome, trio.current_time())
        assert 1 == engine.statistics().locked
        vector.release.set()


# What a store may promise


async def test_weak_fences_must_be_allowed_and_are_named(autojump_clock):
    """Refused unless the settings accept it; receipts say so."""
    weak = StoreTraits(
        fence=Fence.WEAK, holds_text=True, keeps_tombstones=True, absent=AbsentMeans.MISSING, max_calls=4
    )
    world = World()
    stores = Stores(text=world.faulty["text"], vector=MemoryStore("vector", traits=weak))
    with pytest.raises(InvalidValue, match="the vector store's fence is weak"):
        async with open_repair_engine(stores):
            pass
    world.put("text")
    async with open_repair_engine(stores, config(allow_weak_fence=True)) as engine:
        result = await engine.execute_repair_job(job())
    assert (Outcome.REPAIRED, "strong", "weak") == (
        result.outcome,
        result.step("text").fence,
        result.step("vector").fence,
    )


async def test_a_text_store_that_gives_no_text_is_no_source(autojump_clock):
    """Nothing can be copied from it: a person is needed. Its own copy is not touched."""
    world = World(holds_text=False)
    world.drift()
    result = await _repair(world)
    assert Outcome.NEEDS_MANUAL is result.outcome
    assert "no store can give the text" in result.error


@pytest.mark.parametrize("taken_in", [True, False], ids=["engine", "control"])
async def test_i8_a_read_back_that_comes_in_as_the_job_is_cancelled_counts(autojump_clock, monkeypatch, taken_in: bool):
    """The last answer and the cancellation come in one step: the stores are equal, and the result says so."""
    cancel: list[object] = []

    class Late(MemoryStore):
        looks = 0

        async def observe(self, doc_ids):
            answers = await super().observe(doc_ids)
            self.looks += 1
            if self.looks == 2:
                await trio.sleep(1)
                cancel.append(engine.cancel("it"))
            return answers

    if not taken_in:
        monkeypatch.setattr("trio_repair._execution.Repairer.take_in_read_back", lambda *_: None)
    text = MemoryStore("text")
    text.put_nowait(make_document("d", "hello"))
    async with open_repair_engine(Stores(text=text, vector=Late("vector")), config()) as engine:
        result = await engine.execute_repair_job(job(id="it"))
    assert [True] == cancel
    assert taken_in == (result.outcome is RepairOutcome.REPAIRED)
    assert (("vector",), StepState.VERIFIED if taken_in else StepState.APPLIED) == (
        result.updated_systems,
        result.step("vector").state,
    )


@pytest.mark.parametrize("edited", ["text", "vector"])
async def test_a_choice_is_refused_if_either_store_is_not_what_the_person_saw(autojump_clock, edited: str):
    """Also the store whose copy is taken: an edit that nobody looked at is not committed in a person's name."""
    world = World(cache=False)
    world.put("text", number=2, text="one writer")
    world.put("vector", number=2, text="another writer")
    tokens = {name: world.memory[name].observe_nowait("d").token for name in ("text", "vector")}
    world.put(edited, number=3, text="edited since")
    before = world.snapshot()
    async with open_repair_engine(world.stores, config()) as engine:
        result = await engine.resolve("d", "text", expected=tokens)
    assert (RepairOutcome.FAILED, ()) == (result.outcome, result.updated_systems)
    assert "changed" in str(result.error)
    assert before == world.snapshot()


@pytest.mark.parametrize(("delay", "told"), [(50.0, State.UNKNOWN), (0.5, State.FAILED)])
async def test_i8_a_write_that_is_still_on_its_way_is_not_said_to_have_failed(
    autojump_clock, delay: float, told: State
):
    """Given up, and a look finds nothing new: while its call has not ended it may land all the same, and here it does.

    Control: a call that has ended by then without an effect has failed. `disproved-too-soon` in `tests/mutants`.
    """
    world = World(cache=False)
    world.put("text")
    kind = FaultKind.STUCK if told is State.UNKNOWN else FaultKind.HANG
    fault = Fault(kind, "write", times=1, delay=delay) if kind is FaultKind.STUCK else Fault(kind, "write", times=1)
    world.faulty["vector"].add(fault)
    recording = RecordingInstrument()
    async with open_repair_engine(world.stores, config(store_call_timeout=0.5), instruments=[recording]) as engine:
        result = await engine.execute_repair_job(job(timeout=20.0, max_retries=0))
        assert (Outcome.FAILED, told, ()) == (result.outcome, result.step("vector").state, result.updated_systems)
        assert not world.is_live("vector")
        await trio.sleep(100.0)
        assert (told is State.UNKNOWN) == world.is_live("vector")
    assert_trace(recording.events)


class Breaking:
    """A vector store whose first write lands and breaks its contract; the further ones answer as they are told."""

    def __init__(self, inner, further) -> None:
        self.inner = inner
        self.further = further
        self.writes = 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    async def write(self, writes):
        self.writes += 1
        if self.writes == 1:
            await self.inner.write(writes)
            return []
        return await self.further(writes)


async def _unavailable(_writes):
    raise StoreUnavailable("vector", "not now")


async def _rejected(writes):
    error = StoreRejected("vector", "never")
    return [WriteAnswer(status=WriteStatus.REJECTED, error=error) for _ in writes]


@pytest.mark.parametrize("further", [_unavailable, _rejected], ids=["unavailable", "rejected"])
async def test_i08_what_the_second_sending_says_does_not_hold_for_the_first(autojump_clock, further):
    """A bulk write landed and its call broke; sent again one by one, it fails: whether it landed is not known.

    The control is a call of which the store said that nothing was written: then that is known.
    """
    for broke, expected in ((True, State.UNKNOWN), (False, State.FAILED)):
        world = World(max_calls=1)
        world.drift("d", "e")
        vector = Breaking(world.memory["vector"], further)
        if not broke:

            async def write(writes, vector=vector):
                vector.writes += 1
                if vector.writes == 1:
                    raise StoreRejected("vector", "one of them is poison")
                return await vector.further(writes)

            vector.write = write
        async with open_repair_engine(attrs.evolve(world.stores, vector=vector), config()) as engine:
            handles = [engine.submit_nowait(job(doc_id, max_retries=0)) for doc_id in "de"]
            results = [await handle.wait() for handle in handles]
        assert {Outcome.FAILED} == {result.outcome for result in results}
        assert {expected} == {result.step("vector").state for result in results}


@pytest.mark.parametrize("cycles", [False, True], ids=["as it is", "a gather that keeps its requests"])
async def test_what_a_repair_has_done_with_is_freed_at_once(autojump_clock, monkeypatch, cycles: bool):
    """No request, answer or document of a repair that is over is left to the garbage collector."""
    if cycles:  # the planted bug
        real = Progress.answers

        def kept(progress: Progress, gather: Gather, requests: Any) -> Any:
            gather.keeper = requests  # type: ignore[attr-defined]  # the planted bug makes a cycle
            return real(progress, gather, requests)

        monkeypatch.setattr(Progress, "answers", kept)
        monkeypatch.setattr("trio_repair._execution.Gather", type("Keeping", (Gather,), {"__slots__": ("keeper",)}))
    world = World()
    names = [f"d{number}" for number in range(20)]
    world.drift(*names)
    async with open_repair_engine(world.stores, config()) as engine:
        gc.collect()
        gc.disable()
        try:
            async with engine.run([job(name) for name in names]) as results:
                async for result in results:
                    assert "vector" in result.updated_systems
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = [type(one).__name__ for one in gc.garbage if isinstance(one, (Request, Observation, Document))]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert cycles == bool(left), left
