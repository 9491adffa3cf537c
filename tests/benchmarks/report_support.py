"""Figures as benchmarks save them, made by hand, and what tests of the report read tables and pages with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _report, limits
from trio_repair import DivergenceKind


def spread(median: float) -> dict[str, float]:
    """Three numbers that are told apart."""
    return {"median": median, "min": median * 0.7, "max": median * 1.5}


def sized(documents: int, time: float, peak: float) -> dict[str, Any]:
    """A row of `growth`."""
    return {
        "documents": documents,
        "handled": documents,
        "found": 3,
        "microseconds_per_document": spread(12.0 * time),
        "time_over_reference": spread(time),
        "peak_rss_bytes": spread(peak * 2**20),
        "peak_rss_over_smallest": spread(peak / 50),
    }


def waited(concurrency: int, part: float) -> dict[str, Any]:
    """A row of `simulated_latencies`."""
    one = {"seconds": spread(2.0), "ideal_over_wall": spread(part), "documents_per_second": spread(concurrency / 2)}
    return {"concurrency": concurrency, "documents": 4 * concurrency, "engine": one, "script": one}


def peer(over: float, version: str | None = "1.2.3") -> dict[str, Any]:
    """A row of `peers`."""
    return {
        "version": version,
        "jobs": 20_000,
        "microseconds_per_job": spread(40 * over),
        "over_floor": spread(over),
        "over_engine": spread(over),
        "engine_over": spread(1 / over),
    }


def way(repaired: int, embedded: int, *, cache: bool = False) -> dict[str, Any]:
    """A row of `alternatives`: so many repaired of each kind, and one orphan left to a person."""
    kinds = [kind.value for kind in DivergenceKind]
    counts: dict[str, int | None] = dict.fromkeys(kinds, repaired)
    if not cache:
        counts["stale-cache"] = None
    return {
        "how": "some way",
        "repaired": counts,
        "left_to_a_person": dict.fromkeys(kinds, 0) | {"orphan": 1},
        "steady": True,
        "others": 90,
        "others_right": 90,
        "said": {"added": 3},
        "chunks_embedded": embedded,
        "seconds": spread(0.5),
        "over_baseline": spread(1.25),
    }


def on_servers(index: str) -> dict[str, Any]:
    """`server_throughput`, with or without an index over vectors."""
    sizes = {"check": (1.04, 70), "repair": (1.21, 90)}
    return {
        "documents": 100_000,
        "damaged": 5_000,
        "replaced": 6_000,
        "chunk": 1024,
        "concurrency": 1024,
        "index": index,
        "dimension": 64,
        "rounds": 5,
        "throughput_over": {"script": spread(0.83 if index == "hnsw" else 0.61)},
        "check_over_read": spread(1.7),
        "microseconds_per_document": {name: spread(700.0) for name in ("script", "engine", "check", "read")},
        "memory": {
            work: [
                {
                    "documents": documents,
                    "damaged": documents // 20,
                    "peak_rss_bytes": spread(peak * times * 2**20),
                    "peak_rss_over_smallest": spread(times),
                }
                for documents, times in [(10_000, 1.0), (100_000, over)]
            ]
            for work, (over, peak) in sizes.items()
        },
        "memory_concurrency": 256,
        "memory_rounds": 3,
        "servers": {"postgres": "16.14", "pgvector": "0.8.5", "redis": "7.0.15"},
    }


def scans(*measured: tuple[int, float, float]) -> dict[str, Any]:
    """Checks: how many documents, the part of them that is damaged, and the time over that of a read."""
    return {
        "rounds": 5,
        "measured": [
            {
                "documents": documents,
                "damaged": int(documents * part),
                "damaged_part": part,
                "check_over_read": spread(ratio),
                "microseconds_per_document": spread(11.0),
                "peak_python_bytes": 3_000_000,
            }
            for documents, part, ratio in measured
        ],
        "few": {"milliseconds": {"read": spread(1.3), "check": spread(8.1)}},
    }


HAND_MADE: dict[str, dict[str, Any]] = {
    "alternatives": {
        "documents": 1000,
        "chunks": 2000,
        "each": 10,
        "rounds": 5,
        "versions": {"trio": "0.35.0"},
        "left_out": {"llamaindex": "ModuleNotFoundError: no such thing"},
        "settle_seconds_not_waited": 1.0,
        "ways": {
            "trio_repair text": way(9, 40, cache=True),
            "trio_repair anew": way(10, 2000, cache=True),
            "langchain incremental": way(2, 9),
            "langchain full": way(4, 9),
            "langchain anew": way(10, 2000),
        },
    },
    "check_scan": scans((10_000, 0.0, 1.21), (100_000, 0.001, 1.34), (100_000, 0.0, 1.3)),
    "check_scan_large": scans((1_000_000, 0.001, 1.27), (5_000_000, 0.001, 1.29)),
    "deadline_lateness": {
        "repairs": 10_000,
        "rounds": 5,
        "lateness_milliseconds": {
            name: {percent: spread(70.0) for percent in ("min", "p50", "p99", "max")} for name in ("trio", "stream")
        },
        "p99_over_trio": {"stream": spread(2.5), "settled": spread(9.5), "handles": spread(7.0)},
    },
    "engine_cost": {
        "jobs": 20_000,
        "rounds": 9,
        "ratio": spread(1.72),
        "microseconds_per_job": {"floor": spread(40.0), "engine": spread(68.8)},
    },
    "growth": {
        "damaged": 0.001,
        "repairs": 100_000,
        "concurrency": 64,
        "against": 10_000,
        "rounds": 3,
        "check": [sized(1_000, 3.0, 50), sized(10_000, 1.0, 60), sized(1_000_000, 1.3, 62)],
        "repair": [sized(1_000, 5.0, 50), sized(10_000, 1.0, 61), sized(1_000_000, 2.4, 66)],
    },
    "limits": {
        "interval": 0.001,
        "profiles": {
            "repair": {
                "seconds": 10.5,
                "samples": 9_000,
                "shares": {limits.WAITING: 0.3, limits.STEPS: 0.26, limits.CALLS: 0.2, limits.TRIO: 0.24},
            },
        },
    },
    "peers": {
        "concurrency": 64,
        "rounds": 7,
        "peers": {
            "floor": peer(0.6),
            "engine": peer(1.0),
            "asyncio": peer(0.3, None),
            "aiometer": peer(1.9),
            "taskiq": peer(2.3),
            "celery eager": peer(5.0),
        },
        "left_out": {"arq": "arq is not installed"},
    },
    "repair_throughput_full": {
        "documents": 10_000,
        "rounds": 5,
        "concurrency": 1024,
        "synchronous": "full",
        "throughput_over": {"script": spread(0.55), "blind": spread(0.4), "single": spread(6.0)},
        "apart_over": {"script": spread(0.65), "blind": spread(0.5), "single": spread(7.0)},
        "bare_over_script": {"tasks": spread(0.7), "tasks apart": spread(0.9)},
        "microseconds_per_document": {name: spread(900.0) for name in ("script", "engine", "apart", "blind", "single")},
    },
    **{f"server_throughput_{index}": on_servers(index) for index in ("hnsw", "none")},
    "simulated_latencies": {
        "ideal_seconds_a_repair": 0.6,
        "waves": 4,
        "rounds": 3,
        "measured": [waited(10, 0.95), waited(100, 0.81), waited(1_000, 0.2)],
    },
    "slow_commits_lancedb": {
        "documents": 20_000,
        "chunk": 1024,
        "single": 200,
        "driver": "lancedb 0.40.0",
        "rounds": 5,
        "throughput_over": {
            "script": {"engine 256": spread(0.21), "engine 1024": spread(0.45)},
            "single": {"engine 256": spread(15.0), "engine 1024": spread(31.0)},
        },
        "microseconds_per_document": {name: spread(400.0) for name in ("script", "single", "engine 256")},
        "commits": {name: spread(40) for name in ("script", "single", "engine 256", "engine 1024")},
    },
    "slow_commits_tantivy": {
        "documents": 20_000,
        "chunk": 1024,
        "single": 200,
        "driver": "tantivy 0.27.0",
        "rounds": 5,
        "throughput_over": {
            "script": {"engine 256": spread(0.21), "engine 1024": spread(0.37)},
            "single": {"engine 256": spread(15.0), "engine 1024": spread(27.0)},
        },
        "microseconds_per_document": {name: spread(400.0) for name in ("script", "single", "engine 256")},
        "commits": {name: spread(40) for name in ("script", "single", "engine 256", "engine 1024")},
    },
}
"""As each benchmark saves them, as far as that is shown."""

ON = {"machine": "x86_64", "processor": "Some CPU", "cores": 4, "python": "3.11.9", "trio": "0.35.0", "apsw": "3.54.1"}


def write(folder: Path, figures: Mapping[str, Mapping[str, Any]]) -> Path:
    """Files of figures, with what `_harness.save` adds."""
    folder.mkdir(exist_ok=True)
    for name, saved in figures.items():
        made = {"benchmark": name, "date": "2026-01-02T03:04:05+00:00", "command": f"python -m benchmarks {name}"}
        (folder / f"{name}.json").write_text(json.dumps({**made, "on": ON, **saved}))
    return folder


def rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def figures_of(table: str) -> list[tuple[float, float, float]]:
    """Median, minimum and maximum of each row that has them."""
    told = [[row[2], *row[3].split(" to ")] for row in rows(table) if " to " in row[3]]
    return [(float(median), float(low), float(high)) for median, low, high in told]


def has(table: str, value: Mapping[str, float]) -> bool:
    """Whether a row has these figures, to the digits that are told."""
    expected = (value["median"], value["min"], value["max"])
    return any(row == pytest.approx(expected, rel=0.005) for row in figures_of(table))


class Read(HTMLParser):
    """What a browser finds in a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def loads(self, page: str) -> list[str]:
        """Everything that would be fetched from elsewhere, or run."""
        links = [value or "" for name, value in self.attributes if name in {"src", "href", "xlink:href", "srcset"}]
        urls = [*links, *re.findall(r"url\(([^)]*)\)", page)]
        active = [tag for tag in self.tags if tag in {"script", "link", "img", "iframe", "object", "embed"}]
        handlers = [name for name, _value in self.attributes if name.startswith("on")]
        return [*(url for url in urls if not url.startswith("#")), *re.findall("@import", page), *active, *handlers]


def page_of(folder: Path) -> str:
    """The page of a folder."""
    assert 0 == _report.main(["--results", str(folder)])
    return (folder / "report.html").read_text()
