"""`trio-repair simulate`: hold the engine to its promises in virtual time. Touches no store of yours."""

from __future__ import annotations

import enum
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from ..testing.simulation import PROFILES, SimulationReport, SimulationUnsupported, simulate
from ._output import Output
from ._status import ExitStatus, UsageError

_WIDTH: Final = 80


def run_simulate(output: Output, *, seed: int, hours: float, profile: str, runs: int) -> ExitStatus:
    """Simulate and say what it has shown.

    Raises:
        InvalidValue: an argument is out of range.
        UsageError: this version of Trio cannot be simulated.
        KeyboardInterrupt: interrupted.
    """
    try:
        report = simulate(seed, hours=hours, profile=profile, runs=runs, on_run=_progress(runs))
    except SimulationUnsupported as error:
        raise UsageError(str(error)) from error
    except BaseExceptionGroup as group:
        # Trio hands an interrupt on in the groups of the nurseries that it ended.
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from None
        raise
    if output.json:
        output.record(_record(report))
    else:
        for line in _lines(report):
            output.show(line)
    return ExitStatus.OK if report.ok else ExitStatus.ATTENTION


def _progress(runs: int) -> Any:
    if runs == 1 or not sys.stderr.isatty():
        return None

    def show(done: int, jobs: int) -> None:
        with suppress(OSError, ValueError):
            end = "\r" if done < runs else "\n"
            print(f"trio-repair: {done} of {runs} runs, {jobs} jobs", end=end, file=sys.stderr, flush=True)

    return show


def _lines(report: SimulationReport) -> Iterator[str]:
    yield f"{report.runs} runs of {report.hours:g} simulated hours from seed {report.seed}, faults: {report.profile}"
    yield f"{report.jobs} jobs, trace {report.trace_hash}"
    for name, counts in _counted(report).items():
        yield from _wrapped(f"{name}: " + ", ".join(f"{what} {number}" for what, number in counts.items() if number))
    if report.violation is not None:
        violation = report.violation
        yield ""
        of = "" if violation.doc_id is None else f", document {violation.doc_id!r}"
        yield from _wrapped(f"{violation.invariant} is violated at {violation.at:.3f} s{of}: {violation.detail}")
        for line in violation.trace:
            yield from _wrapped(f"  {line}", indent="    ")
        yield f"replay: {report.replay}"
    elif report.missing and report.judged:
        yield from _wrapped(f"no violation, but it shows nothing: never reached {', '.join(report.missing)}")
    elif report.judged:
        yield from _wrapped("no violation; every outcome, receipt state, fault and mishap of this profile was reached")
    else:
        enough = PROFILES[report.profile].hours_to_judge
        yield f"no violation; too short to judge what was reached (under {enough:g} hours)"
    yield from _left_out(report)


def _left_out(report: SimulationReport) -> Iterator[str]:
    """What it says nothing about: kinds with a reason in common on one line."""
    kinds: dict[str, list[str]] = {}
    for kind, reason in report.left_out.items():
        kinds.setdefault(reason, []).append(kind)
    for reason, names in kinds.items():
        yield from _wrapped(f"left out: {', '.join(names)}: {reason}")


def _wrapped(line: str, indent: str = "  ") -> list[str]:
    return (
        textwrap.wrap(line, _WIDTH, subsequent_indent=indent, break_on_hyphens=False) if len(line) > _WIDTH else [line]
    )


def _counted(report: SimulationReport) -> dict[str, dict[str, int]]:
    return {
        "outcomes": _by_value(report.outcomes),
        "receipts": _by_value(report.states),
        "faults": _by_value(report.faults),
        "mishaps": _by_value(report.mishaps),
    }


def _by_value(counts: Mapping[Any, int]) -> dict[str, int]:
    named: Mapping[enum.Enum, int] = counts
    return {str(what.value): number for what, number in named.items()}


def _record(report: SimulationReport) -> dict[str, Any]:
    violation = report.violation
    return {
        "type": "simulation",
        "seed": report.seed,
        "runs": report.runs,
        "hours": report.hours,
        "profile": report.profile,
        "trace_hash": report.trace_hash,
        "jobs": report.jobs,
        **_counted(report),
        "judged": report.judged,
        "missing": list(report.missing),
        "left_out": dict(report.left_out),
        "ok": report.ok,
        "replay": report.replay,
        "violation": None
        if violation is None
        else {
            "invariant": violation.invariant,
            "at": violation.at,
            "doc_id": violation.doc_id,
            "detail": violation.detail,
            "trace": list(violation.trace),
        },
    }
