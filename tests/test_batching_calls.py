"""Sizes, places and counts of a batcher's calls: what the stores see of its promises."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing
from engine_world import Stubborn, World, answered, stepped
from test_batching import serve

from trio_repair import CircuitOpen, Observation, Prepared, StoreUnavailable
from trio_repair._requests import Operation
from trio_repair._stepping import Gather
from trio_repair.testing import Fault, FaultKind, make_document


class Sized:
    """Notes how many documents each look names."""

    def __init__(self, inner: Any) -> None:
        self.traits = inner.traits
        self.inner = inner
        self.sizes: list[int] = []

    async def observe(self, doc_ids: Any) -> Any:
        self.sizes.append(len(doc_ids))
        return await self.inner.observe(doc_ids)


async def test_after_a_failure_as_a_whole_half_as_many_travel_together(autojump_clock):
    """Nine fail together: four at a time are tried next. One that failed alone goes on alone, until it is answered."""
    world = World()
    store = Sized(world.faulty["text"])
    world.faulty["text"].add(Fault(FaultKind.UNAVAILABLE, "observe", times=2))
    async with serve(store) as served:
        names = [f"d{index}" for index in range(9)]
        await served.observe(*names)
        await served.observe("single")
        await served.observe(*names)
        await served.observe("single", "x", "y")
        await served.observe(*names)
    assert [9, 1, 4, 4, 1, 1, 2, 9] == store.sizes


async def test_after_a_broken_call_it_is_halved(autojump_clock):
    """Of five, two travel together next; while they wait they are neither answered nor over."""
    world = World({"text": {"observe": 1.0}}, max_calls=1)
    store = Sized(world.faulty["text"])
    world.faulty["text"].add(Fault(FaultKind.WRONG_LENGTH, "observe", times=1))
    async with serve(store) as served:
        gather = Gather(5)
        requests = [served.batcher.observe(f"d{index}", gather) for index in range(5)]
        await trio.sleep(1.5)
        assert [(None, False)] * 5 == [(request.answer, request.ended) for request in requests]
        await answered(gather)
    assert [5, 2, 2, 1] == store.sizes


async def test_a_document_that_breaks_calls_is_not_one_that_hangs_them(autojump_clock):
    """It travels alone, and the store may be asked about others beside it, and about it again."""
    world = World()
    store = Sized(world.faulty["text"])
    world.faulty["text"].add(Fault(FaultKind.DRIVER_ERROR, "observe", times=1))
    async with serve(store) as served:
        await served.observe("d")
        assert not served.batcher._suspects.may_hang((Operation.OBSERVE, "d"))
        await served.observe("d", "e")
        await served.observe("d", "e")
    assert [1, 1, 1, 2] == store.sizes


async def test_a_probe_is_for_one_document_and_goes_alone(autojump_clock):
    """Three places are free, ten documents wait: until the probe of one has been answered nothing else goes out."""
    world = World(max_calls=3)
    store = Sized(world.faulty["text"])
    world.faulty["text"].add(Fault(FaultKind.UNAVAILABLE, "observe", times=1))
    async with serve(store, breaker_failures=1, breaker_reset=1.0) as served:
        await served.observe("d")
        world.slow["text"].latencies["observe"] = 2.0
        async with trio.open_nursery() as nursery:
            for index in range(5):
                nursery.start_soon(served.observe, f"d{index}")
            await trio.sleep(1.5)
            for index in range(5):
                nursery.start_soon(served.observe, f"e{index}")
            await trio.sleep(1.0)
            assert [1, 1] == store.sizes
        assert [1, 1, 9] == store.sizes


async def test_calls_that_never_end_leave_a_place_for_the_probe(autojump_clock):
    """Two of three places are taken by calls that cannot be stopped; both are counted, and the third one serves."""
    world = World(max_calls=3)
    text = Stubborn(Stubborn(world.faulty["text"], "observe", doc_id="a"), "observe", doc_id="b")
    async with serve(text, store_call_timeout=1.0, grace=0.5, breaker_reset=10.0) as served:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.observe, "a")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(served.observe, "b")
        (answer,) = await served.observe("c")
        assert isinstance(answer, Observation)
        statistics = served.batcher.statistics()
        assert (2, 2) == (statistics.abandoned, statistics.overstayed)
        text.release.set()
        text.inner.release.set()


async def test_one_that_may_hang_goes_out_beside_one_that_may_not(autojump_clock):
    """Only another that may hang keeps it from a free place."""
    world = World(max_calls=2)
    world.faulty["text"].add(Fault(FaultKind.HANG, "observe", times=1))
    async with serve(world.faulty["text"], store_call_timeout=5.0, breaker_reset=1.0) as served:
        await served.observe("d")
        await served.observe("fine")
        world.slow["text"].latencies["observe"] = 1.0
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.observe, "fine")
            await trio.sleep(0.1)
            await served.observe("d")
            assert began + 1.1 == trio.current_time()


async def test_however_short_it_waited_it_is_told_when_the_cache_is_given_up(autojump_clock):
    """A request that came just before is not left to wait for a probe."""
    world = World(max_calls=1)
    world.faulty["text"].add(Fault(FaultKind.HANG))
    async with serve(world.faulty["text"], fail_fast=True, store_call_timeout=2.0, breaker_reset=50.0) as served:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.observe, "a")
            await trio.sleep(1.9)
            (answer,) = await served.observe("b")
            assert (2.0, CircuitOpen) == (trio.current_time(), type(answer))


async def test_every_call_that_closing_cuts_off_is_counted(autojump_clock):
    """Two calls at once, two counts."""
    world = World(max_calls=2)
    world.faulty["text"].add(Fault(FaultKind.HANG))
    async with serve(world.faulty["text"], store_call_timeout=100.0) as served:
        gather = Gather(2)
        requests = [served.batcher.observe("a", gather)]
        await trio.testing.wait_all_tasks_blocked()
        requests.append(served.batcher.observe("b", gather))
        await trio.testing.wait_all_tasks_blocked()
        served.batcher.close(1.0)
        await answered(gather)
        assert [StoreUnavailable] * 2 == [type(request.answer) for request in requests]
        assert 2 == served.batcher.statistics().abandoned


async def test_each_of_those_that_hung_together_is_asked_again(autojump_clock):
    """One after the other, beside nobody; that the first was answered gives its place to the next."""
    world = World(max_calls=2)
    world.faulty["text"].add(Fault(FaultKind.HANG, "observe", times=1))
    async with serve(world.faulty["text"], store_call_timeout=5.0, breaker_reset=1.0) as served:
        await served.observe("a", "b", "c")
        for doc_id in ("fine", "a", "b", "c"):
            with trio.fail_after(3.0):
                (answer,) = await served.observe(doc_id)
            assert isinstance(answer, Observation)


async def test_preparations_that_never_end(autojump_clock):
    """Beside seven of them others are begun; after the eighth who waits and who asks is told what to look at."""
    world = World()
    text = Stubborn(world.faulty["text"], "prepare")
    said = "8 calls of prepare were given up and never ended; look at its embedder"
    async with serve(text, store_call_timeout=1.0, grace=100.0) as served:
        for index in range(7):
            gather = Gather(1)
            served.batcher.prepare(make_document(f"d{index}"), gather)
            await answered(gather)
        gather, other = Gather(1), Gather(1)
        eighth = served.batcher.prepare(make_document("d7"), gather)
        await trio.sleep(0.5)
        waiting = served.batcher.prepare(make_document("d8"), other)
        assert None is waiting.answer
        await answered(gather)
        late = served.batcher.prepare(make_document("d9"), Gather(1))
        assert "text store: prepare did not answer within 1 s" == str(eighth.answer)
        assert [(f"text store, document 'd8': {said}", True), (f"text store, document 'd9': {said}", False)] == [
            (str(request.answer), request.ended) for request in (waiting, late)
        ]
        # What does not prepare goes on.
        assert isinstance((await served.observe("d"))[0], Observation)
        text.release.set()
        await trio.testing.wait_all_tasks_blocked()
        gather = Gather(1)
        again = served.batcher.prepare(make_document("d9"), gather)
        await answered(gather)
        assert isinstance(again.answer, Prepared)


async def test_a_request_is_over_before_its_answer_is_acted_on(autojump_clock):
    """Whoever goes on in the very moment of the answer finds no call of its own under way."""
    world = World()
    async with serve(world.faulty["text"]) as served:
        gather = Gather(2)
        requests = [served.batcher.observe(doc_id, gather) for doc_id in "de"]
        seen: list[bool] = []

        async def repair() -> None:
            await gather
            seen.extend(request.ended for request in requests)

        await stepped(repair()).run()
        assert [True, True] == seen


async def test_reads_are_as_large_as_what_was_read_before_lets_expect(autojump_clock):
    """512 documents of unknown size go into a call; then, of documents as large as these, as many as it carries."""
    sizes: list[int] = []

    class Counting:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        async def read(self, doc_ids: Any) -> Any:
            sizes.append(len(doc_ids))
            return await self.inner.read(doc_ids)

    world = World(max_calls=1, max_batch=10_000, max_batch_bytes=8 * 2**20)
    ids = [f"{number:04}" for number in range(600)]
    for doc_id in ids:
        world.put("text", doc_id, text="x" * 65_536)
    async with serve(Counting(world.memory["text"])) as served:
        for _ in range(6):
            gather = Gather(len(ids))
            for doc_id in ids:
                served.batcher.read(doc_id, gather)
            await answered(gather)
    assert 512 == sizes[0]
    # Half of the rest of the way with each call, to 128 documents of 64 KiB in 8 MiB.
    assert sizes[1] < 512
    assert 128 <= sizes[-2] <= 132
