"""The benchmarks run, count everything that they claim to have run, and write what their docs say.

Sizes are tiny: what is tested is that the figures are there and agree with each other, never how good they are.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_repair._batching
import trio_repair.embedding.hashing
import trio_repair.stores.memory
import trio_repair.stores.sqlite_text
import trio_repair.testing
from benchmarks import (
    __main__,
    _harness,
    deadline_lateness,
    growth,
    limits,
    peers,
    simulated_latencies,
    slow_commits,
)

LARGE = 96 * 2**20


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Figures go to a folder of the test's own; gives what a benchmark saved."""
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)

    def read(name: str, benchmark: str | None = None) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
        assert name == figures["benchmark"]
        module = importlib.import_module(f"benchmarks.{benchmark or name}")
        assert module.shown(figures).panels
        assert figures["command"].startswith(f"python -m benchmarks {benchmark or name} --")
        return figures

    return read


def is_spread(value: dict[str, float]) -> bool:
    """Median, minimum and maximum, in order, and more than nothing."""
    return {"median", "min", "max"} == set(value) and 0 < value["min"] <= value["median"] <= value["max"]


def test_every_benchmark_states_its_claim() -> None:
    """The first line of each docstring is the claim, which the list of benchmarks shows."""
    names = __main__.names()
    assert {"deadline_lateness", "growth", "peers", "simulated_latencies", "slow_commits"} <= set(names)
    for name in names:
        assert (importlib.import_module(f"benchmarks.{name}").__doc__ or "").startswith("Claim: "), name


def test_rounds_rotate_and_the_first_is_not_counted() -> None:
    """Each contender comes first in turn; what the first round gave is thrown away."""
    order: list[str] = []

    def contender(name: str) -> Any:
        def once() -> int:
            order.append(name)
            return len(order)

        return once

    values = _harness.run_rounds({name: contender(name) for name in "ab"}, rounds=2)
    assert ["a", "b", "b", "a", "a", "b"] == order
    assert {"a": [4, 5], "b": [3, 6]} == values


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 50), (99, 99), (100, 100)])
def test_percentiles_are_values_that_were_measured(percent: float, expected: float) -> None:
    """Nearest rank, whatever the order."""
    assert expected == _harness.percentile([float(value) for value in range(100, 0, -1)], percent)


def test_the_peak_of_work_apart_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows with what the work holds, and does not show the memory of the process that started it."""
    (tmp_path / "ballast_apart.py").write_text("def hold(size):\n    return len(b'x' * size)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    hold = importlib.import_module("ballast_apart").hold
    ballast = b"x" * (2 * LARGE)  # in this process, which starts the others
    small, large = _harness.peak_apart(hold, 1), _harness.peak_apart(hold, LARGE)
    assert (1, LARGE) == (small.value, large.value)
    assert small.peak_rss < len(ballast)
    assert LARGE * 0.9 < large.peak_rss - small.peak_rss < LARGE * 1.1


def test_work_apart_has_the_collector_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of the machine beside the figures is true of the process that they were taken in."""
    (tmp_path / "set_apart.py").write_text("import gc\ndef told():\n    return gc.get_threshold()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    told = importlib.import_module("set_apart").told
    before = gc.get_threshold()
    gc.set_threshold(701, 11, 12)
    try:
        assert [701, 11, 12] == _harness.peak_apart(told).value == _harness.machine()["collector"]
    finally:
        gc.set_threshold(*before)


def test_work_apart_that_fails_is_an_error() -> None:
    """Nothing is measured of work that raised."""
    with pytest.raises(subprocess.CalledProcessError):
        _harness.peak_apart(growth.check_once, "there is no such folder", 0)


def test_growth_finds_and_repairs_what_was_damaged(saved: Any, tmp_path: Path) -> None:
    """Every damaged document is found by the check, and repaired, as far as asked for; the stores stay damaged."""
    stores = tmp_path / "stores"
    arguments = ["--documents", "200", "--against", "200", "--damaged", "0.05", "--repairs", "9", "--rounds", "1"]
    growth.main([*arguments, "--dir", str(stores)])
    figures = saved("growth")
    for work, handled, found in [("check", 200, 10), ("repair", 9, 9)]:
        (row,) = figures[work]
        assert (200, handled, found) == (row["documents"], row["handled"], row["found"])
        assert is_spread(row["microseconds_per_document"])
        assert is_spread(row["peak_rss_bytes"])
        assert row["peak_rss_bytes"]["min"] > 2**23  # no interpreter is smaller
    built = (stores / "200-0.05" / "damaged.txt").stat().st_mtime_ns
    folder = growth.prepared(stores, 200, 0.05)
    assert built == (folder / "damaged.txt").stat().st_mtime_ns
    assert 10 == growth.check_once(str(folder), 0)[0]


def test_growth_compares_time_with_the_reference_and_memory_with_the_smallest() -> None:
    """Round by round: seconds a document over those of the reference, bytes over those of the smallest size."""
    folder = Path()
    runs = {
        "check 10": [_harness.Apart(value=[1, 1.0], peak_rss=100), _harness.Apart(value=[1, 2.0], peak_rss=100)],
        "check 20": [_harness.Apart(value=[2, 4.0], peak_rss=150), _harness.Apart(value=[2, 4.0], peak_rss=200)],
        "repair 10": [_harness.Apart(value=[1, 0.5], peak_rss=100)],
        "repair 20": [_harness.Apart(value=[2, 0.5], peak_rss=100)],
    }
    small, large = growth.figures_of("check", {10: folder, 20: folder}, runs, 20)
    assert {"median": 0.75, "min": 0.5, "max": 1.0} == small["time_over_reference"]
    assert {"median": 1.0, "min": 1.0, "max": 1.0} == large["time_over_reference"]
    assert {"median": 1.0, "min": 1.0, "max": 1.0} == small["peak_rss_over_smallest"]
    assert {"median": 1.75, "min": 1.5, "max": 2.0} == large["peak_rss_over_smallest"]
    small, large = growth.figures_of("repair", {10: folder, 20: folder}, runs, 10)
    assert 0.5e6 == small["microseconds_per_document"]["median"]
    assert 0.5 == large["time_over_reference"]["median"]


def test_growth_wants_a_size_to_compare_with(saved: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A reference that is not measured is refused before anything is built."""
    with pytest.raises(SystemExit):
        growth.main(["--documents", "100", "--against", "200"])
    assert "--against 200" in capsys.readouterr().err


def test_lateness_counts_every_repair(saved: Any) -> None:
    """Each of them hung, timed out, and gave its result after the deadline."""
    deadline_lateness.main(["--repairs", "40", "--lead", "0.3", "--rounds", "1"])
    figures = saved("deadline_lateness")
    contenders = {"trio", "stream", "settled", "handles"}
    assert dict.fromkeys(contenders, 40) == figures["counted"]
    assert contenders - {"trio"} == set(figures["p99_over_trio"])
    for name in contenders:
        late = figures["lateness_milliseconds"][name]
        assert all(is_spread(late[each]) for each in ("min", "p50", "p99", "max"))
        assert late["min"]["max"] <= late["p50"]["max"] <= late["p99"]["max"] <= late["max"]["max"]


@pytest.mark.parametrize("contender", deadline_lateness.CONTENDERS.values())
def test_control_a_deadline_that_comes_before_all_hang_is_refused(contender: Any) -> None:
    """Otherwise jobs that time out while they wait would count as hung repairs."""
    with pytest.raises((SystemExit, AssertionError)):
        trio.run(contender, 40, 0.0)


def test_limits_are_profiles_of_all_three(saved: Any) -> None:
    """Each has its samples, whose shares make up the whole; the loop both works and waits."""
    sizes = ["--documents", "600", "--concurrency", "128", "--repairs", "800", "--lead", "1", "--waiting", "20"]
    limits.main([*sizes, "--waves", "2"])
    profiles = saved("limits")["profiles"]
    assert ["repair", "deadline", "latencies"] == list(profiles)
    for profile in profiles.values():
        assert 1.0 == pytest.approx(sum(profile["shares"].values()))
        assert set(profile["shares"]) <= set(limits.PARTS)
        assert profile["samples"] > 0
    assert profiles["latencies"]["shares"][limits.WAITING] > 0.5
    assert limits.TRIO in profiles["deadline"]["shares"]


@pytest.mark.parametrize(
    ("file", "function", "expected"),
    [
        (trio_repair._supervisor.__file__, "dispatch", limits.SETTLING),
        (trio_repair._planning.__file__, "plan_repair", limits.STEPS),
        (trio_repair._batching.__file__, "_submit", limits.CALLS),
        (trio_repair.embedding.hashing.__file__, "embed", limits.PREPARING),
        (trio_repair._model.__file__, "check_doc_id", None),
        (trio_repair.testing.__file__, "make_document", limits.BESIDE),
        (trio_repair.stores.memory.__file__, "observe", limits.BESIDE),
        (trio_repair.stores.sqlite_text.__file__, "prepare", limits.PREPARING),
        ("/somewhere/trio_repair/_queue.py", "pop", None),
        (trio._core._run.__file__, "unrolled_run", limits.TRIO),
        (trio._core._run.__file__.replace("_run", "_io_epoll"), "get_events", limits.WAITING),
        (limits.__file__, "main", limits.BESIDE),
        (limits.__file__, "_sample", None),
        ("<attrs generated methods trio_repair._model.RepairJob>", "__init__", None),
        (os.__file__, "urandom", None),
    ],
)
def test_whose_work_a_frame_is(file: str, function: str, expected: str | None) -> None:
    """By the module that it is of; values and the standard library work for whoever called them."""
    assert expected == limits.part_of(file, function)


def test_a_profile_finds_what_takes_the_time() -> None:
    """Two thirds of the time in one part and a third in another are found as that, roughly, and no others."""

    def spin(seconds: float) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass

    parts = {}
    for module, seconds in (("_queue", 0.4), ("_planning", 0.2)):
        code = spin.__code__.replace(co_filename=str(Path(trio_repair.__file__).with_name(f"{module}.py")))
        parts[module] = functools.partial(type(spin)(code, {"time": time}), seconds)

    async def work() -> None:
        for part in parts.values():
            part()

    profile = limits.profiled(work)
    assert {limits.SETTLING, limits.STEPS} == set(profile["shares"]) - {limits.BESIDE}
    assert 0.55 < profile["shares"][limits.SETTLING] < 0.78


def test_time_without_samples_counts_and_a_timer_goes_on() -> None:
    """What lets no signal in for long is noticed when it ends; a timer and its handler are there again afterwards."""
    code = compile("sum(range(20_000_000))", str(Path(trio_repair.__file__).with_name("_queue.py")), "eval")
    heard: list[int] = []

    async def work() -> None:
        eval(code)

    before = signal.signal(signal.SIGALRM, lambda number, _frame: heard.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 30.0)
        profile = limits.profiled(work)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30.0
        signal.raise_signal(signal.SIGALRM)
        assert [signal.SIGALRM] == heard
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert profile["shares"][limits.SETTLING] > 0.9


def test_no_signal_comes_when_trio_has_closed_what_signals_are_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer is on within the loop alone. Control: around it, it is on when the loop begins and ends."""
    ticking: list[bool] = []

    def run(main: Any) -> None:
        ticking.append(signal.getitimer(signal.ITIMER_REAL)[1] > 0)
        original(main)
        ticking.append(signal.getitimer(signal.ITIMER_REAL)[1] > 0)

    async def work() -> None:
        ticking.append(signal.getitimer(signal.ITIMER_REAL)[1] > 0)
        time.sleep(0.01)  # noqa: ASYNC251 - time for samples

    original = trio.run
    monkeypatch.setattr(trio, "run", run)
    limits.profiled(work)
    with limits.Sampler().running():
        trio.run(work)
    assert [False, True, False, True, True, True] == ticking


@pytest.mark.parametrize("contender", simulated_latencies.CONTENDERS.values())
def test_a_lone_repair_takes_the_ideal_time(contender: Any) -> None:
    """On a virtual clock, where only the stores take time: the stages are those that the ideal is made of."""

    async def main() -> float:
        started = trio.current_time()
        await contender(drifted)
        return trio.current_time() - started

    drifted = simulated_latencies.Drifted.of(1, 1)
    assert 0.6 == pytest.approx(simulated_latencies.IDEAL)
    assert simulated_latencies.IDEAL == pytest.approx(trio.run(main, clock=MockClock(autojump_threshold=0)))
    drifted.check()


def test_simulated_latencies_compares_with_the_ideal(saved: Any) -> None:
    """Nothing is faster than the waiting alone, and all documents of all waves were mended."""
    simulated_latencies.main(["--concurrency", "4", "--waves", "1", "--rounds", "1"])
    figures = saved("simulated_latencies")
    assert [(4, 4)] == [(row["concurrency"], row["documents"]) for row in figures["measured"]]
    for row in figures["measured"]:
        assert 0.6 == pytest.approx(row["ideal_seconds"])
        for name in simulated_latencies.CONTENDERS:
            assert is_spread(row[name]["ideal_over_wall"])
            assert row[name]["ideal_over_wall"]["max"] <= 1
            assert row[name]["seconds"]["min"] >= 0.6


def test_control_other_calls_than_the_stages_are_noticed() -> None:
    """One look too many makes a run of simulated latencies an error."""
    drifted = simulated_latencies.Drifted.of(1, 1)
    trio.run(simulated_latencies.script, drifted, clock=MockClock(autojump_threshold=0))
    drifted.check()
    trio.run(drifted.stores.text.observe, drifted.ids, clock=MockClock(autojump_threshold=0))
    with pytest.raises(AssertionError):
        drifted.check()


SLOW_STORES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None and os.environ.get("CI") != "true",
            reason=f"{name} is not installed; pip install -e '.[{name}]'",
        ),
    )
    for name in slow_commits.STORES
]


@pytest.mark.parametrize("name", SLOW_STORES)
def test_slow_commits_mends_every_document(saved: Any, name: str) -> None:
    """Each contender mended all of its documents, in as many commits as its size says, or fewer than documents."""
    sizes = ["--documents", "300", "--chunk", "100", "--single", "3", "--rounds", "1", "--concurrency", "20", "300"]
    slow_commits.main([*sizes, "--stores", name])
    figures = saved(f"slow_commits_{name}", "slow_commits")
    engines = {"engine 20", "engine 300"}
    assert {"script", "single"} | engines == set(figures["microseconds_per_document"]) == set(figures["commits"])
    assert all(is_spread(value) for value in figures["microseconds_per_document"].values())
    assert (3, 3) == tuple(figures["commits"][one]["median"] for one in ("script", "single"))
    for one in engines:
        assert 300 / int(one.split()[1]) <= figures["commits"][one]["min"] < 100  # shared, and within the limit
        assert all(is_spread(figures["throughput_over"][other][one]) for other in ("script", "single"))


@pytest.mark.parametrize("name", SLOW_STORES)
def test_control_a_script_whose_writes_do_not_land_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What was not mended is seen by the script's own read-back."""
    bulk = importlib.import_module(f"benchmarks._bulk_{name}")
    trio.run(slow_commits.build, slow_commits.STORES[name], tmp_path, 10)
    monkeypatch.setattr(bulk.Target, "write", lambda *_: None)
    with pytest.raises(AssertionError):
        bulk.script(tmp_path, [f"document-{number:07}" for number in range(10)], 10)


def test_slow_commits_are_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the drivers nothing is measured, nothing fails, and figures that are there stay."""
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    for name in slow_commits.STORES:
        monkeypatch.setitem(sys.modules, name, None)
    slow_commits.main([])
    assert [] == list(tmp_path.iterdir())
    told = capsys.readouterr().out
    for name in slow_commits.STORES:
        assert f"slow_commits on {name} is left out: {name} is not installed" in told


# dramatiq's and Celery's threads, and what their libraries warn of on import, are theirs.
@pytest.mark.filterwarnings("default")
def test_peers_run_every_job_or_are_left_out(saved: Any) -> None:
    """Each peer that is installed ran all its jobs; each other one is named with its reason."""
    peers.main(["--jobs", "70", "--queue-jobs", "20", "--rounds", "1"])
    figures = saved("peers")
    ran, left_out = figures["peers"], figures["left_out"]
    assert set(peers.PEERS) == ran.keys() | left_out.keys()
    assert not ran.keys() & left_out.keys()
    assert {"floor", "engine", "trio nursery", "asyncio"} <= ran.keys()
    for name, row in ran.items():
        assert (20 if peers.PEERS[name].queue else 70) == row["jobs"]
        assert all(is_spread(row[each]) for each in ("microseconds_per_job", "over_floor", "over_engine"))
    assert 1 == ran["floor"]["over_floor"]["median"] == ran["engine"]["over_engine"]["median"]
    for name, module in [("taskiq", "taskiq"), ("dramatiq", "dramatiq"), ("celery eager", "celery")]:
        assert (importlib.util.find_spec(module) is None) == (name in left_out)
    redis = importlib.util.find_spec("arq") is not None and shutil.which("redis-server") is not None
    assert redis == ("arq" in ran)


def test_a_peer_that_is_not_installed_is_told_and_not_fatal(
    saved: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library that is missing is named, on the screen and in the figures."""
    find = importlib.import_module

    def without_taskiq(name: str) -> Any:
        if name == "benchmarks._peers.with_taskiq":
            raise ModuleNotFoundError("No module named 'taskiq'", name="taskiq")
        return find(name)

    monkeypatch.setattr(peers.importlib, "import_module", without_taskiq)
    peers.main(["--jobs", "70", "--rounds", "1", "--only", "taskiq"])
    assert {"taskiq": "taskiq is not installed"} == saved("peers")["left_out"]
    assert {"floor", "engine"} == saved("peers")["peers"].keys()
    assert "taskiq is left out: taskiq is not installed" in capsys.readouterr().out


def test_control_a_peer_that_loses_a_job_is_an_error() -> None:
    """Every job counts: one that was not done makes the figures worthless."""

    @contextmanager
    def loses_one(count: int) -> Any:
        yield lambda: count - 1

    with pytest.raises(AssertionError, match="of 5 jobs"):
        peers.once(loses_one, 5)
