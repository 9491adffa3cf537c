"""What docs and dashboard say of the metrics, against the metrics of a run on real stores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from instrument_support import job, missing, sqlite_stores

if reason := missing("prometheus_client", "prometheus"):
    pytest.skip(reason, allow_module_level=True)

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from trio_repair import EngineEvent, EventKind, open_repair_engine
from trio_repair.instrumentation.prometheus import PrometheusInstrument

ROOT = Path(__file__).parents[2]
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds to whatever it scrapes."""


@attrs.frozen
class Metric:
    """A metric as docs describe it."""

    type: str
    labels: frozenset[str]
    unit: str
    meaning: str


@pytest.fixture(scope="module")
def instrument(tmp_path_factory: pytest.TempPathFactory) -> PrometheusInstrument:
    """After repairs of real stores."""
    found = PrometheusInstrument()
    directory: Path = tmp_path_factory.mktemp("stores")

    async def main() -> None:
        async with (
            sqlite_stores(directory, "a", "b") as stores,
            open_repair_engine(stores, instruments=[found]) as engine,
        ):
            for name in ("a", "b", "nowhere"):
                await engine.execute_repair_job(job(name))

    trio.run(main)
    return found


@pytest.fixture(scope="module")
def metrics(instrument: PrometheusInstrument) -> dict[str, Metric]:
    """By name."""
    return {
        family.name + ("_total" if family.type == "counter" else ""): Metric(
            family.type,
            frozenset(name for sample in family.samples for name in sample.labels) - {"le"},
            family.unit or "-",
            family.documentation,
        )
        for family in instrument.registry.collect()
    }


@pytest.fixture(scope="module")
def samples(instrument: PrometheusInstrument) -> dict[str, set[str]]:
    """The labels of each name that a scrape shows."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(instrument.registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_docs_list_every_metric(metrics: dict[str, Metric]) -> None:
    """Each with its name, type, labels, unit and help text, and none that is not there."""
    page = (ROOT / "docs" / "instruments.md").read_text()
    rows = re.findall(r"^\| `(trio_repair_\w+)` \| (\w+) \| (.*?) \| (\S+) \| (.*) \|$", page, re.MULTILINE)
    told = {
        name: Metric(kind, frozenset(re.findall(r"`(\w+)`", labels)), unit, meaning)
        for name, kind, labels, unit, meaning in rows
    }
    assert metrics == told
    assert len(told) == len(rows)


def test_docs_name_no_other_metric(metrics: dict[str, Metric]) -> None:
    """In the text around the table either."""
    page = (ROOT / "docs" / "instruments.md").read_text()
    assert set(re.findall(r"\btrio_repair_\w+", page)) <= set(metrics)


def queries(dashboard: Any) -> Iterator[str]:
    """Everything in a dashboard that is asked of Prometheus."""
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def problems(query: str, samples: dict[str, set[str]]) -> set[str]:
    """Metrics and labels in a query that a scrape does not show."""
    names = set(re.findall(r"\btrio_repair_\w+", query))
    found = {name for name in names if name not in samples}
    if not names:
        found.add("no metric")
    known = SCRAPED.union(*(samples.get(name, set()) for name in names))
    grouped = ",".join(re.findall(r"\bby \(([^)]*)\)", query)).split(",")
    selected = re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", query)
    listed = re.findall(r"label_values\([^,]*,\s*(\w+)\)", query)
    found |= {name for one in (*grouped, *selected, *listed) if (name := one.strip()) and name not in known}
    return found


def test_every_query_of_the_dashboard_finds_something(samples: dict[str, set[str]]) -> None:
    """Each metric exists, with the labels that the query selects or groups by; each is in a panel of its own place."""
    dashboard = json.loads((ROOT / "examples" / "grafana" / "trio-repair.json").read_text())
    asked = list(queries(dashboard))
    assert len(asked) > 20
    assert {} == {query: wrong for query in asked if (wrong := problems(query, samples))}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    placed = {
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    }
    assert len(placed) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in dashboard["panels"])
    assert all(0 <= x < 24 for x, _ in placed)


def test_the_dashboard_leaves_no_metric_out(metrics: dict[str, Metric]) -> None:
    """What is counted is shown."""
    asked = (ROOT / "examples" / "grafana" / "trio-repair.json").read_text()
    assert [] == [name for name in metrics if name not in asked]


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("sum(trio_repair_result_total)", {"trio_repair_result_total"}),
        ('rate(trio_repair_results_total{outcom="failed"}[5m])', {"outcom"}),
        ("sum by (store) (trio_repair_results_total)", {"store"}),
        ("histogram_quantile(0.9, sum by (le, store) (trio_repair_queued_seconds_bucket))", {"store"}),
        ("label_values(trio_repair_results_total, nothing)", {"nothing"}),
        ("vector(1)", {"no metric"}),
    ],
)
def test_control_a_wrong_query_is_found(samples: dict[str, set[str]], query: str, wrong: set[str]) -> None:
    """A metric that does not exist, and labels that its samples do not have."""
    assert wrong == problems(query, samples)


def test_every_label_value_is_what_docs_say(instrument: PrometheusInstrument) -> None:
    """The values of labels are of the fixed sets that docs name."""
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "instruments.md").read_text())
    for label in ("priority", "store", "operation", "verdict"):
        values = {
            sample.labels[label]
            for family in instrument.registry.collect()
            for sample in family.samples
            if label in sample.labels
        }
        described = re.search(rf"`{label}` is (.*?);|`{label}` is (.*?)\.", page)
        assert described is not None
        assert values
        assert values <= set(re.findall(r"`([\w-]+)`", described.group()))


def test_an_event_of_every_kind_is_counted_or_left_out_on_purpose(instrument: PrometheusInstrument) -> None:
    """What is left out happens for every repair and is a matter of traces."""
    left_out = {EventKind.OBSERVED, EventKind.WRITE_SENT, EventKind.OVERDUE, EventKind.PHASE, EventKind.CALL_SENT}
    assert left_out == set(EventKind) - set(instrument._handlers)
    for kind in left_out:
        instrument.on_event(EngineEvent(kind=kind, at=0.0))
