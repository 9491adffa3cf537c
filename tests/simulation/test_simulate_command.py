"""`trio-repair simulate`: what it prints, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import attrs
import pytest
from mutants import MUTANTS

from trio_repair.cli import main
from trio_repair.testing.simulation import PROFILES


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["simulate", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_it_says_what_it_has_reached_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """All held: exit status 0, counts by name, and whether the run was long enough to expect everything."""
    status, out, err = _run(capsys, "--seed", "2", "--hours", "8", "--runs", "3")
    assert (0, "") == (status, err)
    for word in ("3 runs of 8 simulated hours from seed 2", "outcomes: ", "receipts: ", "faults: ", "mishaps: "):
        assert word in out
    assert "no violation; too short to judge" in out
    assert "left out: blocked-loop: it takes wall time" in out
    assert 80 >= max(len(line) for line in out.splitlines())


def test_a_violation_is_shown_with_its_replay(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1, the number of the promise, the last of the trace, and the command."""
    with MUTANTS["lower-number-wins"].planted():
        status, out, _ = _run(capsys, "--hours", "4", "--runs", "20")
        assert 1 == status
        assert "I1 is violated at " in out
        replay = next(line for line in out.splitlines() if line.startswith("replay: "))
        assert 80 >= max(len(line) for line in out.splitlines())
        _, command, *arguments = replay.removeprefix("replay: ").split()
        assert "simulate" == command
        again, out_again, _ = _run(capsys, *arguments)
        assert 1 == again
        assert replay in out_again


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: everything, in one record."""
    status, out, _ = _run(capsys, "--hours", "2", "--json")
    record: dict[str, Any] = json.loads(out)
    assert (0, "simulation", 1, True, None, False) == (
        status,
        record["type"],
        record["seed"],
        record["ok"],
        record["violation"],
        record["judged"],
    )
    assert 64 == len(record["trace_hash"])
    assert {"repaired", "timed-out"} <= set(record["outcomes"])
    assert {"blocked-loop", "shuffled-answers"} == set(record["left_out"])
    # What was not reached is named as it is counted.
    assert all(what.split(" ", 1)[1] == what.split(" ", 1)[1].lower() for what in record["missing"])


def test_json_tells_of_a_violation(capsys: pytest.CaptureFixture[str]) -> None:
    """With its trace, and exit status 1."""
    with MUTANTS["settled-twice"].planted():
        status, out, _ = _run(capsys, "--hours", "4", "--json")
    record = json.loads(out)
    assert (1, False, "I9") == (status, record["ok"], record["violation"]["invariant"])
    assert record["violation"]["trace"]


def test_a_vacuous_batch_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 1 although nothing was violated, and what was not reached is named."""
    soon = {"harsh": attrs.evolve(PROFILES["harsh"], hours_to_judge=0.5)}
    monkeypatch.setattr("trio_repair.testing.simulation._report.PROFILES", soon)
    status, out, _ = _run(capsys, "--hours", "1")
    assert 1 == status
    assert "never reached" in out
    # By the names that the counts above it have.
    assert "StepState" not in out
    assert "receipt refused" in " ".join(out.split())


@pytest.mark.parametrize(
    "arguments",
    [["--hours", "0"], ["--hours", "nan"], ["--runs", "0"], ["--faults", "gentle"], ["--seed", "x"], ["--hours"]],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Exit status 2, one line that names the option, nothing simulated."""
    status, out, err = _run(capsys, *arguments)
    assert (2, "") == (status, out)
    assert arguments[0].lstrip("-") in err


@pytest.mark.parametrize("digits", [19, 20, 5000])
def test_a_number_with_too_many_digits_is_told_the_limit(capsys: pytest.CaptureFixture[str], digits: int) -> None:
    """It is an integer, only too long. Control: as many as are allowed."""
    status, out, err = _run(capsys, "--seed", "9" * digits, "--hours", "0.1")
    assert (2, "") == (status, out)
    assert "at most 18 digits" in err
    assert (0, "") == _run(capsys, "--seed", "9" * 18, "--hours", "0.1")[::2]


def test_it_is_installed() -> None:
    """The command as users type it."""
    done = subprocess.run(
        [sys.executable, "-m", "trio_repair", "simulate", "--hours", "0.5"], capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert "no violation" in done.stdout
