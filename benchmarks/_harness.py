"""Interleaved rounds: the only honest way to compare two things on a machine whose speed drifts.

What is measured in rounds is a time, or whatever a contender returns: `run_rounds` takes any value. `peak_apart` runs a
piece of work in a process of its own, so that its peak memory is that of the work and of nothing that ran before it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import gc
import importlib
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

import trio_repair

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Comparison:
    """Seconds for the same work, measured side by side in each round."""

    baseline: str
    seconds: Mapping[str, tuple[float, ...]]

    def ratios(self, name: str, to: str | None = None) -> list[float]:
        """`name` over `to` (None: over the baseline), round by round."""
        return ratios(self.seconds[name], self.seconds[self.baseline if to is None else to])


def run_rounds(contenders: Mapping[str, Callable[[], T]], *, rounds: int) -> dict[str, list[T]]:
    """Run every contender once a round, in an order that rotates, after one round that is not counted."""
    names = list(contenders)
    values: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            gc.collect()
            value = contenders[name]()
            if number > 0:
                values[name].append(value)
    return values


def interleave(contenders: Mapping[str, Callable[[], float]], *, baseline: str, rounds: int) -> Comparison:
    """`run_rounds` for contenders that return seconds, one of which the others are compared with."""
    seconds = run_rounds(contenders, rounds=rounds)
    return Comparison(baseline=baseline, seconds={name: tuple(values) for name, values in seconds.items()})


def stopwatch(work: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """One over the other, round by round."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def scaled(values: Sequence[float], factor: float) -> dict[str, float]:
    """`spread` in another unit."""
    return spread([value * factor for value in values])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of 100 values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def told(figures: Mapping[str, float], digits: int = 2) -> str:
    """A spread for people: the median, and from where to where it went."""
    low, high = figures["min"], figures["max"]
    return f"{figures['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def save(name: str, figures: Mapping[str, Any], *, prog: str, options: argparse.Namespace) -> Path:
    """Write the figures to ``benchmarks/results/NAME.json``, with machine, date and command.

    Args:
        name: of the file.
        figures: whatever the benchmark's ``shown`` understands.
        prog: ``python -m benchmarks`` and the benchmark.
        options: what it was told, and its defaults. Of folders the last part is kept: where one has its disk is
            nobody's business, and says nothing to others.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    given = {name: value.name if isinstance(value, Path) else value for name, value in vars(options).items()}
    made = {
        "benchmark": name,
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": command(prog, given),
        "options": given,
        "on": machine(),
    }
    path.write_text(json.dumps({**made, **figures}, indent=2) + "\n")
    return path


def command(prog: str, options: Mapping[str, Any]) -> str:
    """The command with every option spelled out, so that it means the same when a default has changed."""
    words = prog.split()
    for name, value in options.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        if values:
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def machine() -> dict[str, Any]:
    """What the figures depend on: the machine, and the versions of what runs."""
    try:
        cores = len(os.sched_getaffinity(0))  # those that this process may use
    except AttributeError:
        cores = os.cpu_count() or 1
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": processor(),
        "cores": cores,
        "python": platform.python_version(),
        "collector": list(gc.get_threshold()),
        "trio": trio.__version__,
        "trio_repair": trio_repair.__version__,  # of the code that ran, installed or not
    }
    for package in ("attrs", "apsw"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def processor() -> str:
    """Its name, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Model"} and value.strip():
                return value.strip()
    return platform.processor() or "unknown"


@attrs.frozen(kw_only=True)
class Apart:
    """What a piece of work in a process of its own came to."""

    value: Any
    """What it returned."""
    peak_rss: int
    """Bytes that the process held in memory at most: interpreter, imports and all."""


def peak_apart(function: Callable[..., Any], *arguments: Any) -> Apart:
    """Call a function of a module, with arguments and a result that JSON can carry, in a fresh process, whose collector
    is set as it is here.

    Raises:
        subprocess.CalledProcessError: it raised; what it wrote to stderr was shown.
    """
    called = json.dumps([function.__module__, function.__qualname__, arguments, gc.get_threshold()])
    command = [sys.executable, "-m", "benchmarks._harness"]
    done = subprocess.run(command, input=called, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return Apart(**json.loads(done.stdout.splitlines()[-1]))


def peak_rss() -> int:
    """The most memory, in bytes, that this process has held since its program started."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    # Not ru_maxrss: on Linux it survives exec, so a child would show the memory of the process that started it.
    # tests/benchmarks/test_harness.py has a parent that is larger than its child.
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _serve_one_call() -> None:
    module, name, arguments, thresholds = json.load(sys.stdin)
    gc.set_threshold(*thresholds)
    value = getattr(importlib.import_module(module), name)(*arguments)
    print(json.dumps({"value": value, "peak_rss": peak_rss()}))


if __name__ == "__main__":
    _serve_one_call()
