"""Interleaved rounds: the only honest way to compare two things on a machine whose speed drifts."""

from __future__ import annotations

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

RESULTS = Path(__file__).parent / "results"


@attrs.frozen(kw_only=True)
class Comparison:
    """Seconds for the same work, measured side by side in each round."""

    baseline: str
    seconds: Mapping[str, tuple[float, ...]]

    def ratios(self, name: str) -> list[float]:
        """`name` over the baseline, round by round."""
        return [ours / base for ours, base in zip(self.seconds[name], self.seconds[self.baseline], strict=True)]


def interleave(contenders: Mapping[str, Callable[[], float]], *, baseline: str, rounds: int) -> Comparison:
    """Run every contender once a round, in an order that rotates, after one round that is not counted."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            gc.collect()
            taken = contenders[name]()
            if number > 0:
                seconds[name].append(taken)
    return Comparison(baseline=baseline, seconds={name: tuple(values) for name, values in seconds.items()})


def stopwatch(work: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def save(name: str, figures: Mapping[str, Any]) -> Path:
    """Write the figures, with what they were measured on, to ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {"python": platform.python_version(), "trio": trio.__version__, "machine": platform.machine()}
    path.write_text(json.dumps({"benchmark": name, "on": machine, **figures}, indent=2) + "\n")
    return path
