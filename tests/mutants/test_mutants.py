"""Each planted bug is found by the simulation, under the promise that it breaks, within its stated number of seeds."""

from __future__ import annotations

import functools
import importlib
import inspect

import pytest
import trio
from properties.planted import Bug, planted
from trio.testing import MockClock

from trio_repair.testing.simulation import simulate

from . import HELD, HOURS, MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=list(MUTANTS))
def test_the_simulation_finds_the_planted_bug(mutant: Mutant) -> None:
    """The control of the simulation: the same seeds hold for the engine as it is."""
    with mutant.planted():
        report = simulate(mutant.first_seed, hours=HOURS, runs=mutant.seeds)
    assert report.violation is not None, f"{mutant.name} survived {mutant.seeds} seeds"
    assert report.violation.invariant in mutant.invariants, report.violation


def _run_test(module: str, name: str) -> None:
    """Run a test of another module as pytest does, under its first parameters."""
    test = getattr(importlib.import_module(module), name)
    arguments = {"autojump_clock": None} if "autojump_clock" in inspect.signature(test).parameters else {}
    for mark in getattr(test, "pytestmark", ()):
        assert "parametrize" == mark.name
        arguments[mark.args[0]] = mark.args[1][0]
    if inspect.iscoroutinefunction(test):
        trio.run(functools.partial(test, **arguments), clock=MockClock(autojump_threshold=0))
    else:
        test(**arguments)


@pytest.mark.parametrize("bug", HELD, ids=str)
def test_a_named_test_finds_the_planted_bug(bug: Bug) -> None:
    """What the simulation meets too seldom. Control: the same test, in the same way, without the bug."""
    _run_test(*HELD[bug])
    with planted(bug), pytest.raises((AssertionError, BaseExceptionGroup, KeyError)):
        _run_test(*HELD[bug])


def test_control_the_same_seeds_hold_without_a_planted_bug() -> None:
    """What is found above is the bug: the seeds at which the search begins find nothing in the engine as it is."""
    for seed in sorted({mutant.first_seed for mutant in MUTANTS.values()}):
        report = simulate(seed, hours=HOURS)
        assert report.violation is None, report.violation


def test_each_mutant_is_named_after_what_it_plants() -> None:
    """Names are unique, and every mutant says what users would see of it."""
    assert all(name == mutant.name and mutant.breaks for name, mutant in MUTANTS.items())
    assert len(MUTANTS) >= 25
