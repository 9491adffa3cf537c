"""The OpenTelemetry instrument: whose child a span is, what it is linked to, and what it says."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from engine_world import Stubborn, World, config, job
from instrument_support import SECRET, missing, sqlite_stores
from instrument_support import job as sqlite_job

if reason := missing("opentelemetry.sdk", "test"):
    pytest.skip(reason, allow_module_level=True)

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from trio_repair import EngineEvent, EventKind, RepairPriority, Stores, open_repair_engine
from trio_repair._events import DETAILS
from trio_repair.embedding import HashingEmbedder, InThread
from trio_repair.instrumentation.opentelemetry import OpenTelemetryInstrument
from trio_repair.stores._thread import StoreThread
from trio_repair.testing import Fault, FaultKind

PHASES = ("observe", "read", "prepare", "write", "verify", "cache")


class Traced:
    """A provider of its own, the instrument on it, and the spans that have ended."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("tests")
        self.instrument = OpenTelemetryInstrument(self.provider, **options)

    def spans(self, name: str = "") -> list[ReadableSpan]:
        prefix = f"trio_repair.{name}" if name else ""
        return [span for span in self.exporter.get_finished_spans() if span.name == prefix or not name]

    def calls(self) -> list[ReadableSpan]:
        return [span for span in self.spans() if span.name.startswith("trio_repair.call.")]

    def children(self, span: ReadableSpan) -> list[ReadableSpan]:
        return [one for one in self.spans() if one.parent is not None and one.parent.span_id == span.context.span_id]


@pytest.fixture
def traced() -> Iterator[Traced]:
    """Nothing is current before, and nothing is left current after."""
    assert not trace.get_current_span().get_span_context().is_valid
    yield Traced()
    assert not trace.get_current_span().get_span_context().is_valid


async def test_a_repair_on_sqlite_stores(tmp_path: Path, traced: Traced) -> None:
    """Its parent is the span around `execute_repair_job`; its children are its phases, in order; it says how it ended."""
    async with (
        sqlite_stores(tmp_path, "note") as stores,
        open_repair_engine(stores, instruments=[traced.instrument]) as engine,
    ):
        with traced.tracer.start_as_current_span("request") as request:
            await engine.execute_repair_job(sqlite_job("note", priority=RepairPriority.HIGH))
    (repair,) = traced.spans("repair")
    assert request.get_span_context().span_id == repair.parent.span_id
    phases = [span for span in traced.children(repair) if span.name.removeprefix("trio_repair.") in PHASES]
    assert [f"trio_repair.{phase}" for phase in PHASES] == [span.name for span in phases]
    for before, after in itertools.pairwise(phases):
        assert before.start_time <= before.end_time <= after.start_time
    assert repair.start_time <= phases[0].start_time
    assert phases[-1].end_time <= repair.end_time
    said = dict(repair.attributes)
    assert said.pop("trio_repair.queued_seconds") >= 0
    assert said.pop("trio_repair.running_seconds") > 0
    assert {
        "trio_repair.strategy": "text",
        "trio_repair.priority": "high",
        "trio_repair.trigger": "manual",
        "trio_repair.outcome": "repaired",
        "trio_repair.attempts": 1,
        "trio_repair.updated_systems": ("vector",),
        "trio_repair.warnings": 0,
        "trio_repair.source": "text",
    } == said
    assert StatusCode.UNSET is repair.status.status_code
    told = "".join(span.to_json() for span in traced.spans())
    assert SECRET not in told
    assert "note" not in told
    # Each call was for this repair alone: a child of the phase that it served.
    calls = {
        (span.attributes["trio_repair.store"], span.name.removeprefix("trio_repair.call.")): span
        for span in traced.calls()
    }
    assert ("vector", "write") in calls
    by_id = {span.context.span_id: span.name for span in phases}
    assert "trio_repair.prepare" == by_id[calls["vector", "prepare"].parent.span_id]
    assert "trio_repair.write" == by_id[calls["vector", "write"].parent.span_id]
    assert {request.get_span_context().trace_id} == {span.context.trace_id for span in traced.spans()}


async def test_concurrent_submitters_keep_their_own_context(autojump_clock, traced: Traced):
    """However the engine mixes their repairs, in its tasks and in theirs; also what `run` takes from a source."""
    world = World({name: {"observe": 0.01, "write": 0.01} for name in ("text", "vector", "cache")})
    names = [f"d{number}" for number in range(12)]
    world.drift(*names)
    parents: dict[str, int] = {}

    async def handle(engine: Any, doc_id: str) -> None:
        with traced.tracer.start_as_current_span(f"request {doc_id}") as request:
            parents[doc_id] = request.get_span_context().span_id
            await engine.execute_repair_job(job(doc_id))

    async def source() -> Any:
        for doc_id in names[8:]:
            with traced.tracer.start_as_current_span(f"message {doc_id}") as message:
                parents[doc_id] = message.get_span_context().span_id
                yield job(doc_id)

    instrument = OpenTelemetryInstrument(traced.provider, ids=True)
    async with open_repair_engine(world.stores, config(max_concurrent_jobs=3), instruments=[instrument]) as engine:
        async with trio.open_nursery() as nursery:
            for doc_id in names[:8]:
                nursery.start_soon(handle, engine, doc_id)
            async with engine.run(source()) as results:
                async for _ in results:
                    pass
    repairs = traced.spans("repair")
    assert parents == {span.attributes["trio_repair.doc_id"]: span.parent.span_id for span in repairs}
    assert all(span.attributes["trio_repair.job_id"] for span in repairs)


async def test_a_call_for_many_repairs_is_linked_to_each(autojump_clock, traced: Traced):
    """It is nobody's child, although the tasks that make calls descend from each other and from submitters."""
    world = World({name: {"observe": 0.01, "write": 0.01} for name in ("text", "vector", "cache")})
    names = [f"d{number}" for number in range(8)]
    world.drift(*names)
    with traced.tracer.start_as_current_span("application"):
        async with open_repair_engine(world.stores, instruments=[traced.instrument]) as engine:
            async with engine.run([job(name) for name in names]) as results:
                assert len(names) == len([result async for result in results])
    phases = {span.context.span_id: span for span in traced.spans()}
    shared = [span for span in traced.calls() if span.attributes["trio_repair.documents"] > 1]
    assert {
        "trio_repair.call.observe",
        "trio_repair.call.read",
        "trio_repair.call.prepare",
        "trio_repair.call.write",
    } == {span.name for span in shared}
    for call in shared:
        assert call.parent is None
        assert len(call.links) == call.attributes["trio_repair.documents"]
        linked = [phases[link.context.span_id] for link in call.links]
        wanted = call.name.removeprefix("trio_repair.call.")
        allowed = {
            "observe": {"observe", "verify", "cache"},
            "write": {"write", "cache"},
            "prepare": {"prepare", "cache"},
        }
        assert {span.name.removeprefix("trio_repair.") for span in linked} <= allowed.get(wanted, {wanted})
        assert len({span.parent.span_id for span in linked}) == len(linked)


async def test_nothing_is_current_when_a_call_has_ended(autojump_clock, traced: Traced):
    """What its task does next, such as the next step of a repair and the tasks of the next calls, is not the call's."""
    world = World({"vector": {"write": 0.1}})
    world.drift("a", "b", "c")
    current: dict[EventKind, set[bool]] = {}

    class Looking:
        also_hears = DETAILS

        def on_event(self, event: EngineEvent) -> None:
            current.setdefault(event.kind, set()).add(trace.get_current_span().get_span_context().is_valid)

    async with open_repair_engine(world.stores, instruments=[traced.instrument, Looking()]) as engine:
        async with engine.run([job(name) for name in ("a", "b", "c")]) as results:
            assert 3 == len([result async for result in results])
    assert {True} == current.pop(EventKind.CALL_SENT)
    assert {EventKind.CALL_ENDED, EventKind.WRITE_SETTLED, EventKind.PHASE, EventKind.SETTLED} <= set(current)
    assert {False} == set().union(*current.values())


class Watching:
    """An embedder that notes which span is current in it, and in its thread."""

    def __init__(self) -> None:
        self.inner = HashingEmbedder(8)
        self.model, self.dimension = self.inner.model, self.inner.dimension
        self.seen: list[tuple[str, int, object]] = []
        self._threaded = InThread("watching", 8, self._note_in_thread)

    def _note(self, where: str) -> None:
        self.seen.append((where, trace.get_current_span().get_span_context().span_id, baggage.get_baggage("tenant")))

    def _note_in_thread(self, texts: list[str]) -> list[list[float]]:
        assert threading.current_thread() is not threading.main_thread()
        self._note("thread")
        return [[0.0] * 8 for _ in texts]

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        self._note("task")
        await self._threaded.embed(texts)
        return await self.inner.embed(texts)


@pytest.mark.parametrize("count", [1, 6])
async def test_the_call_is_current_while_the_embedder_works(tmp_path: Path, traced: Traced, count: int) -> None:
    """In its task and in its thread. The submitter's baggage is there only if the call is for that repair alone."""
    embedder = Watching()
    names = [f"note-{number}" for number in range(count)]
    token = context.attach(baggage.set_baggage("tenant", "one"))
    try:
        async with (
            sqlite_stores(tmp_path, *names, embedder=embedder) as stores,
            open_repair_engine(stores, instruments=[traced.instrument]) as engine,
        ):
            async with engine.run([sqlite_job(name) for name in names]) as results:
                assert count == len([result async for result in results])
    finally:
        context.detach(token)
    calls = {span.context.span_id: span for span in traced.spans("call.prepare")}
    assert {"task", "thread"} == {where for where, _, _ in embedder.seen}
    for _, current, tenant in embedder.seen:
        assert "vector" == calls[current].attributes["trio_repair.store"]
        alone = calls[current].attributes["trio_repair.documents"] == 1
        assert ("one" if alone else None) == tenant
        assert alone == (calls[current].parent is not None)
    assert {count} == {calls[current].attributes["trio_repair.documents"] for _, current, _ in embedder.seen}


async def test_a_store_thread_works_in_the_context_of_its_caller(traced: Traced) -> None:
    """What a traced driver does there belongs to the call that asked for it."""
    thread: StoreThread[object] = StoreThread(
        "text", open_resource=object, close_resource=lambda _: None, interrupt=lambda _: None
    )

    def current(_call: object) -> int:
        return trace.get_current_span().get_span_context().span_id

    try:
        for name in ("one", "two"):
            with traced.tracer.start_as_current_span(name) as span:
                assert span.get_span_context().span_id == await thread.run(current)
        assert 0 == await thread.run(current)
    finally:
        await thread.aclose()


async def test_jobs_that_share_a_repair(autojump_clock, traced: Traced):
    """One span has the phases, the others are linked to it; when its job is withdrawn, the next one has the rest."""
    world = World({"text": {"observe": 1.0}, "vector": {"observe": 1.0}})
    world.drift()
    async with open_repair_engine(
        world.stores, config(max_concurrent_jobs=1), instruments=[traced.instrument]
    ) as engine:
        engine.pause()
        handles = [engine.submit_nowait(job()) for _ in range(3)]
        engine.resume()
        await trio.sleep(0.5)
        handles[0].cancel()
        await handles[1].wait()
    cancelled, *repaired = traced.spans("repair")
    assert ["cancelled", "repaired", "repaired"] == [
        span.attributes["trio_repair.outcome"] for span in (cancelled, *repaired)
    ]
    assert StatusCode.UNSET is cancelled.status.status_code
    phases = ["observe", "read", "prepare", "write", "verify", "cache"]
    having = {
        span.context.span_id: [one.name.removeprefix("trio_repair.") for one in traced.children(span)]
        for span in traced.spans("repair")
    }
    in_phases = [[name for name in names if name in phases] for names in having.values()]
    assert [phases[:1], phases[1:], []] == in_phases
    assert [[], [cancelled.context.span_id], [cancelled.context.span_id]] == [
        [link.context.span_id for link in span.links] for span in (cancelled, *repaired)
    ]


@pytest.mark.parametrize("ids", [False, True])
async def test_failures_are_errors_and_hide_ids(autojump_clock, ids: bool):
    """FAILED and TIMED_OUT are errors with the reason; the document's id stands in it only if ids are told."""
    traced = Traced(ids=ids)
    world = World()
    world.drift("ab", "late", "lost")
    world.faulty["vector"].add(Fault(FaultKind.UNAVAILABLE, "write", doc_id="ab"))
    async with open_repair_engine(world.stores, config(), instruments=[traced.instrument]) as engine:
        failed = await engine.execute_repair_job(job("ab", max_retries=1))
        world.slow["text"].latencies["observe"] = 20.0
        late = await engine.execute_repair_job(job("late", timeout=1.0))
    first, second = traced.spans("repair")
    assert (StatusCode.ERROR, StatusCode.ERROR) == (first.status.status_code, second.status.status_code)
    assert late.error == second.status.description
    assert failed.error is not None
    assert ids == ("ab" in first.attributes.values())
    assert "retry" in [event.name for event in first.events]
    assert 2 == [event.name for event in first.events].count("started")
    assert [event.attributes["trio_repair.reason"] for event in first.events if event.name == "retry"]
    if ids:
        assert failed.error == first.status.description


@pytest.mark.parametrize(
    ("text", "doc_id", "told"),
    [
        ("document 'one' moved", "one", "document <doc_id> moved"),
        ("file /srv/one.txt is gone", "one", "failed"),
        ("document 'o\\n' and o\\n", "o\n", "failed"),
        ("the store is full", "one", "the store is full"),
    ],
)
def test_an_id_in_the_text_of_an_error(traced: Traced, text: str, doc_id: str, told: str):
    """It is taken out where it is quoted; where it stands otherwise, nothing is told but the outcome."""
    assert told == traced.instrument._told(text, doc_id, "failed")
    assert text == OpenTelemetryInstrument(traced.provider, ids=True)._told(text, doc_id, "failed")


async def test_a_call_that_is_given_up_is_an_error(autojump_clock, traced: Traced):
    """It ends when the store lets go, later than its repair, and leaves nothing behind."""
    world = World()
    world.drift()
    hung = Stubborn(world.faulty["vector"], "write", times=1)
    stores = Stores(text=world.faulty["text"], vector=hung, cache=world.faulty["cache"])
    settings = config(store_call_timeout=0.5, breaker_reset=0.1, grace=0.1)
    async with open_repair_engine(stores, settings, instruments=[traced.instrument]) as engine:
        await engine.execute_repair_job(job(timeout=1.0, max_retries=0))
        assert not traced.spans("call.write")
        hung.release.set()
        await trio.sleep(1.0)
    assert not traced.instrument._calls
    assert not traced.instrument._attempts
    assert not traced.instrument._repairs
    (write,) = [span for span in traced.spans("call.write") if span.attributes["trio_repair.store"] == "vector"]
    assert write.end_time >= write.start_time


async def test_a_store_that_raises_is_an_error_of_its_call(autojump_clock, traced: Traced):
    """By the type of what was raised, not its message."""
    world = World()
    world.drift()
    world.faulty["vector"].add(Fault(FaultKind.UNAVAILABLE, "write", times=1))
    async with open_repair_engine(world.stores, config(), instruments=[traced.instrument]) as engine:
        await engine.execute_repair_job(job(max_retries=2))
    first, second = [span for span in traced.spans("call.write") if span.attributes["trio_repair.store"] == "vector"]
    assert (StatusCode.ERROR, "raised StoreUnavailable") == (first.status.status_code, first.status.description)
    assert StatusCode.UNSET is second.status.status_code


async def test_spans_that_are_not_sampled(autojump_clock):
    """The instrument goes on, and exports nothing."""
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    world = World()
    world.drift("a", "b")
    instrument = OpenTelemetryInstrument(provider)
    async with open_repair_engine(world.stores, instruments=[instrument]) as engine:
        async with engine.run([job("a"), job("b")]) as results:
            assert 2 == len([result async for result in results])
    assert () == exporter.get_finished_spans()
    assert not instrument._repairs
