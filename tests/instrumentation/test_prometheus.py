"""The Prometheus instrument: what a scrape shows is what the engine says of itself."""

from __future__ import annotations

import random
import urllib.request
from pathlib import Path

import pytest
import trio
import trio.testing
from engine_world import Stubborn, World, config, job
from instrument_support import SECRET, missing, sqlite_stores
from instrument_support import job as sqlite_job

if reason := missing("prometheus_client", "prometheus"):
    pytest.skip(reason, allow_module_level=True)

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from trio_repair import InvalidValue, RepairExecutionEngine, RepairOutcome, RepairPriority, Stores, open_repair_engine
from trio_repair.instrumentation.prometheus import PrometheusInstrument
from trio_repair.testing import Fault, FaultKind

STORES = ("text", "vector", "cache")
OPERATIONS = ("observe", "read", "prepare", "write", "remove")


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(f"trio_repair_{name}", labels)
    return 0.0 if found is None else found


async def test_a_scrape_of_an_engine_on_sqlite_stores(tmp_path: Path) -> None:
    """Served over HTTP while the engine runs: results, jobs, calls and documents are those of `statistics()`."""
    instrument = PrometheusInstrument()
    server, thread = start_http_server(0, addr="127.0.0.1", registry=instrument.registry)
    names = [f"note-{number}" for number in range(30)]
    try:
        async with (
            sqlite_stores(tmp_path, *names) as stores,
            open_repair_engine(stores, instruments=[instrument]) as engine,
        ):
            async with engine.run([sqlite_job(name) for name in [*names, *names[:5], "nowhere"]]) as results:
                async for _ in results:
                    pass
            url = f"http://127.0.0.1:{server.server_port}/metrics"
            text = (await trio.to_thread.run_sync(lambda: urllib.request.urlopen(url, timeout=30).read())).decode()
            statistics = engine.statistics()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    def read(name: str, **labels: str) -> float:
        return samples.get((f"trio_repair_{name}", tuple(sorted(labels.items()))), 0.0)

    assert {RepairOutcome.REPAIRED: 30, RepairOutcome.FAILED: 1}.items() <= statistics.outcomes.items()
    for outcome in RepairOutcome:
        assert statistics.outcomes[outcome] == read("results_total", outcome=outcome.value)
    assert statistics.accepted == read("jobs_accepted_total", priority="medium")
    for store, of in statistics.stores.items():
        calls = sum(read("store_call_seconds_count", store=store, operation=one) for one in OPERATIONS)
        documents = sum(read("store_call_documents_sum", store=store, operation=one) for one in OPERATIONS)
        assert (of.calls, of.documents) == (calls, documents)
    assert 0 < read("store_call_seconds_sum", store="vector", operation="write") < 60
    assert 30 == read("store_writes_total", store="vector", verdict="landed")
    assert 36 == read("running_seconds_count") == read("queued_seconds_count")
    assert 0 == read("active_repairs") == sum(read("queued_jobs", priority=one.name.lower()) for one in RepairPriority)
    assert "note-1" not in text
    assert SECRET not in text


def gauges(instrument: PrometheusInstrument) -> dict[str, float]:
    registry = instrument.registry
    return {
        "queued": sum(value(registry, "queued_jobs", priority=one.name.lower()) for one in RepairPriority),
        "running": value(registry, "active_repairs"),
        "overdue": value(registry, "overdue_repairs"),
        "locked": value(registry, "locked_documents"),
        "retries": value(registry, "retries_total"),
        "reobserved": value(registry, "reobserved_total"),
        "accepted": sum(value(registry, "jobs_accepted_total", priority=one.name.lower()) for one in RepairPriority),
        "abandoned": sum(
            value(registry, "store_calls_abandoned_total", store=store, operation=operation)
            for store in STORES
            for operation in OPERATIONS
        ),
        "open": sum(value(registry, "store_breaker_open", store=store) for store in STORES),
    }


def truth(engine: RepairExecutionEngine) -> dict[str, float]:
    of = engine.statistics()
    return {
        "queued": of.queued,
        "running": of.running,
        "overdue": of.overdue,
        "locked": of.locked,
        "retries": of.retries,
        "reobserved": of.reobserved,
        "accepted": of.accepted,
        "abandoned": sum(store.abandoned for store in of.stores.values()),
        "open": sum(store.breaker != "closed" for store in of.stores.values()),
    }


def test_gauges_agree_with_the_engine_all_the_time():
    """Through retries, shared jobs, withdrawals, hung calls, locks and open breakers; each gauge was seen to move."""
    moved: dict[str, float] = {}

    async def main() -> None:
        world = World({name: {"observe": 0.03, "write": 0.05} for name in STORES})
        names = [f"d{number}" for number in range(24)]
        world.drift(*names)
        world.faulty["vector"].add(Fault(FaultKind.UNAVAILABLE, "prepare", times=3))
        hung = Stubborn(world.faulty["vector"], "write", doc_id="d3", times=1)
        stores = Stores(text=world.faulty["text"], vector=hung, cache=world.faulty["cache"])
        instrument = PrometheusInstrument(clock=trio.current_time)
        settings = config(
            max_concurrent_jobs=4, store_call_timeout=0.7, breaker_reset=0.5, unavailable_timeout=5.0, grace=0.2
        )
        async with open_repair_engine(stores, settings, instruments=[instrument], rng=random.Random(3)) as engine:
            handles = [
                engine.submit_nowait(
                    job(name, max_retries=3, timeout=2.0, priority=list(RepairPriority)[number % len(RepairPriority)])
                )
                for number, name in enumerate([*names, *names[10:14]])
            ]
            for step in range(100):
                if step == 3:
                    for handle in handles[1:30:7]:
                        handle.cancel()
                if step == 5:
                    world.put("text", "d5", number=9)
                if step == 45:
                    hung.release.set()
                seen = gauges(instrument)
                assert truth(engine) == seen, step
                for name, number in seen.items():
                    moved[name] = max(moved.get(name, 0), number)
                await trio.sleep(0.1002)
            assert not instrument._waiting
            assert not instrument._attempts
            assert not instrument._attempt_of

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert {"queued", "running", "locked", "retries", "accepted", "abandoned", "open"} <= {
        name for name, most in moved.items() if most > 0
    }


async def test_a_repair_that_does_not_stop_is_overdue(autojump_clock):
    """From the moment its time is up until it ends."""
    world = World()
    world.drift()

    async def stubborn(_entry: object) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(5.0)

    instrument = PrometheusInstrument(clock=trio.current_time)
    async with open_repair_engine(world.stores, instruments=[instrument], executor=stubborn) as engine:
        engine.submit_nowait(job(timeout=1.0))
        await trio.sleep(0.9)
        assert 0 == gauges(instrument)["overdue"]
        await trio.sleep(0.2)
        assert 1 == gauges(instrument)["overdue"] == engine.statistics().overdue
    assert 0 == gauges(instrument)["overdue"]


async def test_the_number_of_series_does_not_grow(autojump_clock):
    """Ten times the documents, no series more."""
    series = []
    instrument = PrometheusInstrument()
    for count in (4, 40):
        world = World()
        names = [f"d{number}" for number in range(count)]
        world.drift(*names)
        async with open_repair_engine(world.stores, instruments=[instrument]) as engine:
            async with engine.run([job(name) for name in names]) as results:
                assert count == len([result async for result in results])
        series.append(
            {
                (sample.name, tuple(sample.labels.items()))
                for family in instrument.registry.collect()
                for sample in family.samples
            }
        )
    assert series[0] == series[1]
    assert len(series[0]) > 100


def test_one_registry_for_one_instrument():
    """A second one is refused in a line that says what to do."""
    first = PrometheusInstrument()
    with pytest.raises(InvalidValue, match="registry: has metrics of these names already; give each"):
        PrometheusInstrument(first.registry)
