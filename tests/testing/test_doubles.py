"""The small doubles: documents with true digests, stores that take time, an instrument that remembers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio

from trio_repair import (
    ContentDefinition,
    EngineEvent,
    EventKind,
    InvalidValue,
    Prepared,
    RepairOutcome,
    RepairResult,
    Write,
    WriteStatus,
)
from trio_repair.abc import Instrument, Store
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import SEED_LATENCIES, RecordingInstrument, SimulatedStore, make_document, seed_stores


def test_made_documents_have_true_digests() -> None:
    """`make_document` computes the digest under the definition it is given."""
    both = ContentDefinition(metadata_keys=("title",))
    document = make_document("a", "text", number=3, metadata={"title": "t"}, content=both)
    assert both.digest("text", {"title": "t"}) == document.version.digest
    assert make_document("a", "text").version.digest != document.version.digest
    assert document.version.number == 3


@pytest.mark.parametrize("name", ["text", "vector", "cache"])
async def test_seed_latencies(name: str, autojump_clock: trio.testing.MockClock) -> None:
    """An update of the text store takes 150 ms, of the vector store 100 ms, of the cache 50 ms; a look takes none."""
    store = seed_stores().by_name[name]
    assert isinstance(store, Store)
    start = trio.current_time()
    (prepared,) = await store.prepare([make_document("a", "text")])
    assert isinstance(prepared, Prepared)
    await store.observe(["a"])
    assert trio.current_time() - start == 0
    (answer,) = await store.write([Write(prepared=prepared, token="absent")])
    assert WriteStatus.LANDED is answer.status
    assert {"text": 0.150, "vector": 0.100, "cache": 0.050}[name] == pytest.approx(trio.current_time() - start)
    assert SEED_LATENCIES[name] == pytest.approx(trio.current_time() - start)


async def test_cancelled_while_time_passes_has_no_effect(autojump_clock: trio.testing.MockClock) -> None:
    """A simulated write that is cancelled on its way has not landed."""
    inner = MemoryStore()
    store = SimulatedStore(inner, {"write": 1.0, "scan": 2.0})
    (prepared,) = await store.prepare([make_document("a", "text")])
    assert isinstance(prepared, Prepared)
    with trio.move_on_after(0.5) as scope:
        await store.write([Write(prepared=prepared, token="absent")])
    assert scope.cancelled_caught
    assert inner.documents() == {}


async def test_scan_pages_take_time(autojump_clock: trio.testing.MockClock) -> None:
    """Each page of a simulated scan, and its end, takes the latency of "scan"; other calls pass through."""
    inner = MemoryStore()
    inner.put_nowait(make_document("a"))
    store = SimulatedStore(inner, {"scan": 2.0})
    start = trio.current_time()
    async with store.open_scan() as pages:
        assert [[doc_id for doc_id, _ in page] async for page in pages] == [["a"]]
    assert trio.current_time() - start == 4.0
    assert await store.count() == 1
    assert len(await store.read(["a"])) == 1
    assert list(await store.remove([])) == []
    await store.aclose()


def test_unknown_operation_is_refused() -> None:
    """A misspelt operation is an error, not a latency that never happens."""
    with pytest.raises(InvalidValue, match="writes"):
        SimulatedStore(MemoryStore(), {"writes": 1.0})
    with pytest.raises(InvalidValue, match="write"):
        SimulatedStore(MemoryStore(), {"write": -1.0})


def test_recording_instrument_remembers() -> None:
    """Events come back in order, by kind, and results by themselves."""
    instrument = RecordingInstrument()
    assert isinstance(instrument, Instrument)
    result = RepairResult(doc_id="a", job_id="j", outcome=RepairOutcome.REPAIRED)
    started = EngineEvent(kind=EventKind.STARTED, at=0.0)
    settled = EngineEvent(kind=EventKind.SETTLED, at=1.0, result=result)
    for event in (started, settled):
        instrument.on_event(event)
    assert [started, settled] == instrument.events
    assert instrument.kinds == [EventKind.STARTED, EventKind.SETTLED]
    assert [result] == instrument.results
    assert [settled] == instrument.of(EventKind.SETTLED, EventKind.RETRY)


def test_testing_does_not_import_hypothesis() -> None:
    """`trio_repair.testing` can be used where no test framework is installed."""
    code = "import sys, trio_repair.testing; sys.exit(bool({'hypothesis', 'pytest'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
