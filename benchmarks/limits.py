"""Claim: what limits the engine is work in the event loop, its own and Trio's; here is where that time goes.

A timer signal comes with every millisecond, and the frame in which it finds the main thread says whose work the time
since the signal before was: from the innermost outwards, the first one that belongs to a part of this project, or to
Trio. While the loop has nothing to do, that is its wait for events. A wait for the interpreter lock counts for whoever
waits, and so for the wait for events where the loop is about to go on. Three pieces of work:

    repair      documents that are stale in the vector store and the cache, repaired as in `repair_throughput` with the
                embedder in a process of its own
    deadline    hung repairs that meet one deadline, as in `deadline_lateness`, from the deadline on
    latencies   stores that take their time for each document, as in `simulated_latencies`

Shares are of the wall time. The signals take some of it themselves, most where the loop has nothing to do. A profile is
one run: it says what is large, and not by how much to the last percent.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final

import attrs
import outcome
import trio
import trio_parallel

import trio_repair
from benchmarks import _harness, deadline_lateness, repair_throughput, simulated_latencies
from benchmarks._figures import Finding, Panel, Shown, Spread, bars
from trio_repair.embedding.processes import InProcess

INTERVAL: Final = 0.001
"""Seconds between two samples."""

WAITING: Final = "waiting for stores"
TRIO: Final = "Trio: tasks, scopes, scheduling"
SETTLING: Final = "taking jobs in, starting repairs, settling"
STEPS: Final = "steps of repairs: deciding, noting, checking"
CALLS: Final = "requests and calls"
PREPARING: Final = "preparing documents, handing over to threads and processes"
BESIDE: Final = "the benchmark's own, and its simulated stores"
PARTS: Final = (WAITING, TRIO, SETTLING, STEPS, CALLS, PREPARING, BESIDE)

_MODULES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("_supervisor", "_queue", "_ticket", "_active", "_streaming", "_engine", "_limits", "_timetable"), SETTLING
    ),
    **dict.fromkeys(
        ("_execution", "_cache_repair", "_planning", "_plan", "_progress", "_divergence", "_stepping", "_verdict"),
        STEPS,
    ),
    **dict.fromkeys(("_batching", "_waiting", "_requests", "_store_call", "_suspects", "_breaker"), CALLS),
}


def _folder(package: ModuleType) -> Path:
    assert package.__file__ is not None
    return Path(package.__file__).parent


_HERE: Final = Path(__file__).parent
_OURS: Final = _folder(trio_repair)
_TRIOS: Final = (_folder(trio), _folder(outcome))
_SAMPLING: Final = {"_sample", "part_of", "<genexpr>"}
_HANDING_OVER: Final = (_folder(trio_parallel), _folder(multiprocessing))


@functools.cache
def part_of(file: str, function: str) -> str | None:
    """Whose work a frame is; None: of whoever called it."""
    path = Path(file)
    if path.is_relative_to(_OURS):
        where = path.relative_to(_OURS).parts
        if where[0] == "testing" or where == ("stores", "memory.py"):
            return BESIDE
        return PREPARING if where[0] in {"stores", "embedding"} else _MODULES.get(path.stem)
    if any(path.is_relative_to(folder) for folder in _TRIOS):
        return WAITING if function == "get_events" else TRIO
    if any(path.is_relative_to(folder) for folder in _HANDING_OVER):
        return PREPARING
    if file == __file__ and function in _SAMPLING:
        # A signal that came while the one before was handled is a sample of what that one interrupted.
        return None
    return BESIDE if path.is_relative_to(_HERE) else None


@attrs.define
class Sampler:
    """Notes, every millisecond, what the main thread is at."""

    samples: list[tuple[float, float, str]] = attrs.field(factory=list)
    """When, on the clock of `time.perf_counter`; for how many seconds since the one before; and whose work it was."""
    _last: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample in here."""
        handler = signal.signal(signal.SIGALRM, self._sample)
        self._last = time.perf_counter()
        timer = signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
            signal.setitimer(signal.ITIMER_REAL, *timer)

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        part = None
        while frame is not None and part is None:
            part = part_of(frame.f_code.co_filename, frame.f_code.co_name)
            frame = frame.f_back
        self.samples.append((now, seconds, BESIDE if part is None else part))

    def shares(self, since: float) -> dict[str, float]:
        """Each part's share of the time since that moment, largest first."""
        spent: Counter[str] = Counter()
        for at, seconds, part in self.samples:
            if at >= since:
                spent[part] += seconds  # type: ignore[assignment] # a counter counts what can be added up
        if not spent:
            raise SystemExit("it was over before the first sample; give it more to do")
        return {part: seconds / spent.total() for part, seconds in spent.most_common()}


def profiled(work: Callable[..., Awaitable[object]], *args: object, skip: float = 0.0) -> dict[str, Any]:
    """Shares of a piece of work, from `skip` seconds after its start on."""
    sampler = Sampler()

    async def sampled() -> None:
        # In here: Trio has Python write to a socket at each signal, and closes that before it tells Python so.
        with sampler.running():
            await work(*args)

    began = time.perf_counter()
    trio.run(sampled)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds - skip,
        "samples": sum(at >= began + skip for at, _seconds, _part in sampler.samples),
        "shares": sampler.shares(began + skip),
    }


def repair(documents: int, concurrency: int) -> dict[str, Any]:
    """`repair_throughput`'s contender "apart"."""
    embedder = repair_throughput.EMBEDDER
    apart = InProcess(embedder.model, embedder.dimension, embedder.embed_all)
    ids = [f"document-{number:07}" for number in range(documents)]
    with tempfile.TemporaryDirectory(prefix="trio-repair-") as directory:
        trio.run(repair_throughput.build, Path(directory), documents)
        files = repair_throughput.Files(Path(directory), "full")
        return profiled(repair_throughput.engine, files, ids, concurrency, apart)


def deadline(repairs: int, lead: float) -> dict[str, Any]:
    """`deadline_lateness`'s contender "stream", from the deadline on."""
    return profiled(deadline_lateness.by_stream, repairs, lead, skip=lead)


def latencies(concurrency: int, waves: int) -> dict[str, Any]:
    """`simulated_latencies`'s contender "engine"."""
    drifted = simulated_latencies.Drifted.of(waves * concurrency, concurrency)
    return profiled(simulated_latencies.engine, drifted)


def main(arguments: list[str]) -> None:
    """Profile, print, and save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks limits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--documents", type=int, default=20_000, help="of repair")
    parser.add_argument("--concurrency", type=int, default=2_048, help="of repair")
    parser.add_argument("--repairs", type=int, default=10_000, help="of deadline")
    parser.add_argument("--lead", type=float, default=6.0, help="seconds until the deadline")
    parser.add_argument("--waiting", type=int, default=1_000, help="repairs at a time, of latencies")
    parser.add_argument("--waves", type=int, default=4, help="documents for each of these")
    options = parser.parse_args(arguments)
    profiles = {
        "repair": repair(options.documents, options.concurrency),
        "deadline": deadline(options.repairs, options.lead),
        "latencies": latencies(options.waiting, options.waves),
    }
    for name, profile in profiles.items():
        print(f"{name}: {profile['seconds']:.2f} s, {profile['samples']} samples")
        for part, share in profile["shares"].items():
            print(f"  {share:5.1%}  {part}")
    figures = {"interval": INTERVAL, "profiles": profiles}
    print(f"written to {_harness.save('limits', figures, prog=parser.prog, options=options)}")


def shown(saved: Mapping[str, Any]) -> Shown:
    """A row for each profile: what of the time neither waits nor is Trio's."""
    profiles = saved["profiles"]

    def panel(name: str, shares: Mapping[str, float]) -> Panel:
        one = {part: attrs.asdict(Spread.only(shares.get(part, 0.0) * 100)) for part in PARTS}
        return bars(f"Where the time of {name} goes", "% of wall time", one)

    return Shown(
        findings=[
            Finding(
                what=f"the engine's own work in the event loop, of {name}",
                against="wall time (the rest waits, is Trio's, or the benchmark's)",
                ratio=Spread.only(
                    sum(profile["shares"].get(part, 0.0) for part in (SETTLING, STEPS, CALLS, PREPARING))
                ),
            )
            for name, profile in profiles.items()
        ],
        panels=[panel(name, profile["shares"]) for name, profile in profiles.items()],
        notes=[
            f"{name}: {profile['samples']:,} samples, {profile['seconds']:.2f} s" for name, profile in profiles.items()
        ],
    )
