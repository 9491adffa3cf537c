"""Simulations: one seed is one trace, nothing is broken, everything is reached, and the report tells the truth."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import attrs
import pytest
import trio
from mutants import MUTANTS

from trio_repair import InvalidValue, RepairOutcome
from trio_repair.testing import FaultKind
from trio_repair.testing.simulation import PROFILES, Mishap, SimulationReport, SimulationUnsupported, simulate
from trio_repair.testing.simulation._profiles import AS_MISHAPS, LEFT_OUT
from trio_repair.testing.simulation._scheduler import seeded_scheduler


def _elsewhere(code: str, hash_seed: str) -> str:
    """What a program prints in a process of its own."""
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    return done.stdout.strip()


def test_i20_one_seed_is_one_trace_in_every_process() -> None:
    """The same hash here and in two other processes whose dicts and sets are ordered otherwise."""
    code = (
        "from trio_repair.testing.simulation import simulate\n"
        "print(*(simulate(seed, hours=6).trace_hash for seed in (3, 5)))"
    )
    here = " ".join(simulate(seed, hours=6).trace_hash for seed in (3, 5))
    assert {here} == {_elsewhere(code, "0"), _elsewhere(code, "4242")}


def test_i20_control_another_seed_is_another_trace() -> None:
    """The hash depends on what happens."""
    assert 4 == len({simulate(seed, hours=1).trace_hash for seed in range(4)})


def test_i20_control_without_a_seeded_scheduler_traces_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trio's own order of tasks is random: seeding our generators alone would not do."""
    from contextlib import nullcontext

    monkeypatch.setattr("trio_repair.testing.simulation._run.seeded_scheduler", nullcontext)
    assert 1 < len({simulate(3, hours=6).trace_hash for _ in range(5)})


@pytest.mark.parametrize(("profile", "runs"), [("harsh", 12), ("mild", 4), ("none", 4)])
def test_a_batch_of_seeds_breaks_no_promise(profile: str, runs: int) -> None:
    """Safety all along and liveness at the end, of runs of four hours each."""
    report = simulate(1, hours=4, runs=runs, profile=profile)
    assert report.violation is None, f"{report.replay}\n{report.violation}"
    assert (runs, True) == (report.runs, report.ok)


def test_simulating_needs_no_test_framework() -> None:
    """It runs where neither Hypothesis nor pytest, nor any driver, can be imported."""
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(('hypothesis', 'pytest', 'apsw', 'rich', 'cyclopts')))\n"
        "from trio_repair.testing.simulation import simulate\nprint(simulate(1, hours=1).ok)"
    )
    assert "True" == _elsewhere(code, "0")


def _report(**changes: Any) -> SimulationReport:
    everything: dict[str, Any] = {
        "seed": 7,
        "runs": 500,
        "hours": 2.0,
        "profile": "harsh",
        "trace_hash": "",
        "jobs": 1,
        "outcomes": dict.fromkeys(RepairOutcome, 1),
        "states": dict.fromkeys(simulate(1, hours=0.1).states, 1),
        "faults": dict.fromkeys(FaultKind, 1),
        "mishaps": dict.fromkeys(Mishap, 1),
    }
    return SimulationReport(**{**everything, **changes})


def test_a_long_batch_that_has_not_seen_everything_fails() -> None:
    """Non-vacuity: an engine that always fails, or a fault that never strikes, passes every check and not this one."""
    assert _report().ok
    for changes in (
        {"outcomes": {**dict.fromkeys(RepairOutcome, 1), RepairOutcome.REPAIRED: 0}},
        {"faults": {**dict.fromkeys(FaultKind, 1), FaultKind.HANG: 0}},
        {"faults": {**dict.fromkeys(FaultKind, 1), FaultKind.STUCK: 0}},
        {"mishaps": {**dict.fromkeys(Mishap, 1), Mishap.SWIZZLE: 0}},
    ):
        assert not _report(**changes).ok
        (unseen,) = (what for seen in changes.values() for what, number in seen.items() if not number)
        (named,) = _report(**changes).missing
        assert named.endswith(f" {unseen.value}")
        # Too short a batch is not blamed for it.
        assert _report(**changes, runs=1).ok


def test_profiles_expect_only_what_they_bring_about() -> None:
    """Each profile's faults can strike somewhere, and its mishaps exist; only the harsh one expects them all."""
    assert {"none", "mild", "harsh"} == set(PROFILES)
    assert set(Mishap) == set(PROFILES["harsh"].mishaps)
    assert not AS_MISHAPS.keys() & set(PROFILES["harsh"].faults)
    assert set(AS_MISHAPS.values()) <= set(PROFILES["harsh"].mishaps)
    left = {kind for kind in LEFT_OUT if kind not in PROFILES["harsh"].faults}
    assert {FaultKind.BLOCKED_LOOP} == left
    assert set(FaultKind) == set(PROFILES["harsh"].faults) | set(AS_MISHAPS) | left


@pytest.mark.parametrize("profile", ["none", "mild", "harsh"])
def test_what_a_profile_leaves_out_is_told_with_the_reason(profile: str) -> None:
    """Each kind of fault is expected, counted as a mishap, or named as left out; one is both, in part."""
    told = set(_report(profile=profile).left_out)
    chosen = PROFILES[profile]
    brought = set(chosen.faults) | {kind for kind, mishap in AS_MISHAPS.items() if mishap in chosen.mishaps}
    assert {kind.value for kind in FaultKind} == told | {kind.value for kind in brought}
    in_part = {"shuffled-answers"} if profile == "harsh" else set()
    assert in_part == told & {kind.value for kind in brought}


def test_a_long_run_of_one_world_is_not_blamed_for_what_its_stores_cannot_show() -> None:
    """Stores that take one document at a time shuffle nothing; of twenty worlds, some take more."""
    unseen = {**dict.fromkeys(FaultKind, 1), FaultKind.SHUFFLED_ANSWERS: 0, FaultKind.PARTIAL_BULK: 0}
    assert _report(faults=unseen, runs=1, hours=1000.0).ok
    assert ("fault partial-bulk", "fault shuffled-answers") == _report(faults=unseen).missing


def test_a_violation_tells_how_to_see_it_again() -> None:
    """Which promise, when, of which document, the last that happened to it, and a command; and that replays it."""
    with MUTANTS["permit-too-many"].planted():
        report = simulate(1, hours=4, runs=20)
        assert report.violation is not None
        assert "I13" == report.violation.invariant
        assert f"trio-repair simulate --seed {report.failed_seed} --hours 4 --faults harsh" == report.replay
        doc_id = report.violation.doc_id
        assert doc_id is not None
        about = [line for line in report.violation.trace if f"doc={doc_id[:24]!a}" in line]
        assert "started" in about[-1]
        assert report.failed_seed is not None
        again = simulate(report.failed_seed, hours=4)
        assert report.violation == again.violation
    assert simulate(report.failed_seed, hours=4).ok


@pytest.mark.parametrize(("seed", "profile"), [(3, "mild"), (1, "harsh")])
def test_a_violation_of_several_documents_shows_them_all(seed: int, profile: str) -> None:
    """One repair too many: the trace has the start of each that runs, not only of the last one."""
    with MUTANTS["permit-too-many"].planted():
        violation = simulate(seed, hours=2, runs=20, profile=profile).violation
    assert violation is not None
    assert "I13" == violation.invariant
    running: dict[str, None] = {}
    for line in violation.trace:
        words = line.split()
        doc_id = next((word for word in words if word.startswith("doc=")), "")
        if "started" in words:
            running[doc_id] = None
        elif "ended" in words:
            running.pop(doc_id, None)
    assert int(violation.detail.split()[0]) == len(running)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("hours", {"hours": 0}),
        ("hours", {"hours": float("nan")}),
        ("hours", {"hours": -1}),
        ("runs", {"runs": 0}),
        ("profile", {"profile": "gentle"}),
    ],
)
def test_arguments_that_cannot_be_used_are_named(field: str, arguments: dict[str, Any]) -> None:
    """Before anything runs."""
    with pytest.raises(InvalidValue, match=field):
        simulate(1, **arguments)


def test_the_scheduler_is_left_as_it_was() -> None:
    """The switch and the generator are Trio's again after the block, whatever happened in it."""
    run: Any = trio._core._run  # type: ignore[attr-defined]  # private to Trio, and only used here and in the scheduler
    before = (run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate())
    with pytest.raises(ZeroDivisionError), seeded_scheduler(1):
        assert run._ALLOW_DETERMINISTIC_SCHEDULING
        run._r.random()
        raise ZeroDivisionError
    assert before == (run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate())


@pytest.mark.parametrize("name", ["_r", "_ALLOW_DETERMINISTIC_SCHEDULING"])
def test_a_trio_that_cannot_be_seeded_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Rather a clear error than seeds that replay something else."""
    monkeypatch.delattr(trio._core._run, name)  # type: ignore[attr-defined]  # as above
    with pytest.raises(SimulationUnsupported, match=trio.__version__):
        simulate(1, hours=1)


def test_the_global_generator_is_not_touched() -> None:
    """A simulation in a test does not change what the test draws."""
    random.seed(5)
    state = random.getstate()
    simulate(1, hours=1)
    assert state == random.getstate()


def test_reports_are_values() -> None:
    """They compare and print; two runs of one seed are equal in all but the mappings' identity."""
    one, two = simulate(2, hours=1), simulate(2, hours=1)
    assert attrs.astuple(one, recurse=False) == attrs.astuple(two, recurse=False)
