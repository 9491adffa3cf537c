"""Simulations by the batch, and what they have shown."""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

from trio_repair import InvalidValue, RepairOutcome, StepState

from .._faults import FaultKind
from ._profiles import AS_MISHAPS, LEFT_OUT, PROFILES, Mishap
from ._run import run_once
from ._story import Violation

_MIN_RUNS: Final = 20
_NEED_RUNS: Final = frozenset({Mishap.SKEWED_CLOCK, FaultKind.PARTIAL_BULK, FaultKind.SHUFFLED_ANSWERS})
"""Fewer runs may all have version numbers that are made by no clock, or stores that take one document at a time."""


@attrs.frozen(kw_only=True)
class SimulationReport:
    """What a batch of simulated runs has shown."""

    seed: int
    """Of the first run; the others have the seeds that follow it."""
    runs: int
    """Runs that were made; the batch stops at the first violation."""
    hours: float
    """Simulated hours of each run."""
    profile: str
    trace_hash: str
    """SHA-256 of the one trace, or of the hashes of all traces."""
    jobs: int
    """Jobs that engines accepted."""
    outcomes: Mapping[RepairOutcome, int]
    states: Mapping[StepState, int]
    faults: Mapping[FaultKind, int]
    mishaps: Mapping[Mishap, int]
    failed_seed: int | None = None
    violation: Violation | None = None

    @property
    def judged(self) -> bool:
        """The batch is long enough to expect that it has seen everything."""
        return self.runs * self.hours >= PROFILES[self.profile].hours_to_judge

    @property
    def missing(self) -> tuple[str, ...]:
        """What the profile should bring about and this batch did not, such as "receipt refused" or "fault stuck"."""
        profile = PROFILES[self.profile]
        expected: tuple[tuple[str, Iterable[enum.Enum], Mapping[Any, int]], ...] = (
            ("outcome", RepairOutcome, self.outcomes),
            ("receipt", profile.states, self.states),
            ("fault", profile.faults, self.faults),
            ("mishap", profile.mishaps, self.mishaps),
        )
        return tuple(
            f"{kind} {what.value}"
            for kind, all_of_them, seen in expected
            for what in all_of_them
            if not seen[what] and (self.runs >= _MIN_RUNS or what not in _NEED_RUNS)
        )

    @property
    def left_out(self) -> Mapping[str, str]:
        """The kinds of faults that the profile does not bring about, wholly or in part, each with the reason."""
        profile = PROFILES[self.profile]
        reasons: dict[str, str] = {}
        for kind in FaultKind:
            if kind in profile.faults or AS_MISHAPS.get(kind) in profile.mishaps:
                if kind in LEFT_OUT:
                    reasons[kind.value] = LEFT_OUT[kind]
            elif kind in PROFILES["harsh"].faults or kind in AS_MISHAPS:
                reasons[kind.value] = f"not with faults {self.profile!r}"
            else:
                reasons[kind.value] = LEFT_OUT[kind]
        return MappingProxyType(reasons)

    @property
    def ok(self) -> bool:
        """No promise was broken, and the batch could have shown it."""
        return self.violation is None and not (self.judged and self.missing)

    @property
    def replay(self) -> str | None:
        """The command that shows the violation again."""
        if self.failed_seed is None:
            return None
        return f"trio-repair simulate --seed {self.failed_seed} --hours {self.hours:g} --faults {self.profile}"


def simulate(
    seed: int = 1,
    *,
    hours: float = 2.0,
    profile: str = "harsh",
    runs: int = 1,
    on_run: Callable[[int, int], None] | None = None,
) -> SimulationReport:
    """Simulate the engine for a while, and judge it. Blocks; call it outside Trio.

    Args:
        seed: decides everything. Further runs take the seeds that follow.
        hours: simulated hours of each run.
        profile: what goes wrong: "none", "mild" or "harsh"; see `PROFILES`.
        runs: how many runs; the first violation ends the batch.
        on_run: called after each run with how many are done and how many jobs they had together.

    Raises:
        InvalidValue: an argument is out of range.
        SimulationUnsupported: this version of Trio cannot be seeded.
    """
    if profile not in PROFILES:
        raise InvalidValue("profile", f"must be one of {', '.join(PROFILES)}, not {profile!r}")
    if not 0 < hours <= 100_000:
        raise InvalidValue("hours", f"must be more than 0 and at most 100000, not {hours}")
    if runs < 1:
        raise InvalidValue("runs", f"must be at least 1, not {runs}")
    outcomes: Counter[RepairOutcome] = Counter()
    states: Counter[StepState] = Counter()
    faults: Counter[FaultKind] = Counter()
    mishaps: Counter[Mishap] = Counter()
    hashes: list[str] = []
    jobs = 0
    violation: Violation | None = None
    for number in range(runs):
        witness, _seconds = run_once(seed + number, hours, PROFILES[profile])
        outcomes += witness.outcomes
        states += witness.states
        faults += witness.faults
        mishaps += witness.mishaps
        hashes.append(witness.trace_hash)
        jobs += witness.jobs
        violation = witness.violation
        if on_run is not None:
            on_run(number + 1, jobs)
        if violation is not None:
            break
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return SimulationReport(
        seed=seed,
        runs=len(hashes),
        hours=hours,
        profile=profile,
        trace_hash=whole,
        jobs=jobs,
        outcomes=MappingProxyType({outcome: outcomes[outcome] for outcome in RepairOutcome}),
        states=MappingProxyType({state: states[state] for state in StepState}),
        faults=MappingProxyType({fault: faults[fault] for fault in FaultKind}),
        mishaps=MappingProxyType({mishap: mishaps[mishap] for mishap in Mishap}),
        failed_seed=None if violation is None else seed + len(hashes) - 1,
        violation=violation,
    )
