"""How much goes wrong in a simulation, and of what kinds."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from trio_repair import StepState

from .._faults import FaultKind


class Mishap(enum.Enum):
    """What happens in a simulation beside the faults of single calls."""

    STORE_REFUSING = "store-refusing"
    """For a while every call of a store fails."""
    STORE_HANGING = "store-hanging"
    """For a while no call of a store ends, unless it is cancelled."""
    STORE_SLOW = "store-slow"
    """For a while a store's calls take up to 60 times as long."""
    SWIZZLE = "swizzle"
    """Several stores are down at once, and come back in another order."""
    STORE_CRASH = "store-crash"
    """Calls under way fail, and what the store had not committed is gone."""
    LOST_COMMIT = "lost-commit"
    """A crash took back a write that the store had confirmed, but not yet put on disk."""
    LATE_LANDING = "late-landing"
    """A write whose call has ended without a verdict lands after that."""
    REORDERING = "reordering"
    """A call takes effect before one of the same store that was made earlier."""
    CLOCK_STEP = "clock-step"
    """The wall clock of the engine's host jumps."""
    SKEWED_CLOCK = "skewed-clock"
    """A version number comes from a host whose clock is off."""
    HALF_WRITE = "half-write"
    """The application dies between two stores."""
    WRITE_DURING_REPAIR = "write-during-repair"
    """The application writes a document while its repair runs."""
    DAMAGE = "damage"
    """A copy loses a part, or its vectors turn out to be of another model."""
    CONFLICT = "conflict"
    """Two writers give one number to different texts."""
    LEFT_CALLER = "left-caller"
    """Whoever waits in `execute_repair_job` is cancelled."""
    CANCEL_STORM = "cancel-storm"
    """Half of all jobs are withdrawn at once."""
    PAUSE = "pause"
    LIMIT_CHANGE = "limit-change"
    CLEANUP = "cleanup"
    RESOLVE = "resolve"
    PLANNED_JOB = "planned-job"
    STREAM = "stream"
    CHECK = "check"
    HOST_RESTART = "host-restart"
    """The engine's host is cancelled in the midst of things, or fails, and another opens on the same stores."""


@attrs.frozen(kw_only=True)
class Profile:
    """How often what goes wrong."""

    name: str
    faults: tuple[FaultKind, ...] = ()
    """What may strike a single call."""
    fault_rate: float = 0.0
    """How likely a call is struck while its store is troubled, at most."""
    trouble: float = 0.0
    """How likely a store is troubled during an episode."""
    down: float = 0.0
    """How likely a store refuses, hangs, slows down or crashes for a part of an episode."""
    host: float = 0.0
    """How likely an episode sees a restart of the host, and a step of its clock."""
    mishaps: tuple[Mishap, ...] = ()
    """What a batch of seeds must see."""
    states: tuple[StepState, ...] = tuple(StepState)
    """What receipts of a batch must show."""
    hours_to_judge: float = 500.0
    """A batch of fewer simulated hours is too short to expect that it has seen everything."""


_ALWAYS: Final = (
    Mishap.HALF_WRITE,
    Mishap.WRITE_DURING_REPAIR,
    Mishap.DAMAGE,
    Mishap.CONFLICT,
    Mishap.SKEWED_CLOCK,
    Mishap.REORDERING,
    Mishap.LEFT_CALLER,
    Mishap.CANCEL_STORM,
    Mishap.PAUSE,
    Mishap.LIMIT_CHANGE,
    Mishap.CLEANUP,
    Mishap.RESOLVE,
    Mishap.PLANNED_JOB,
    Mishap.STREAM,
    Mishap.CHECK,
)

_HONEST: Final = (
    FaultKind.UNAVAILABLE,
    FaultKind.ACK_LOST,
    FaultKind.REQUEST_LOST,
    FaultKind.REJECTED,
    FaultKind.DOCUMENT_UNAVAILABLE,
    FaultKind.LATENCY,
    FaultKind.HANG,
    FaultKind.HANG_AFTER,
    FaultKind.CONCURRENT_WRITE,
)

_LYING: Final = (
    FaultKind.LATE_ERROR,
    FaultKind.DRIVER_ERROR,
    FaultKind.SWALLOWED_CANCEL,
    FaultKind.STUCK,
    FaultKind.WRONG_LENGTH,
    FaultKind.PARTIAL_BULK,
    FaultKind.SHUFFLED_ANSWERS,
)
"""Those that break the contract of `Store`."""

AS_MISHAPS: Final[Mapping[FaultKind, Mishap]] = MappingProxyType(
    {
        FaultKind.LATE_LANDING: Mishap.LATE_LANDING,
        FaultKind.OVERTAKEN: Mishap.REORDERING,
        FaultKind.CLOCK_SKEW: Mishap.SKEWED_CLOCK,
        FaultKind.CRASH: Mishap.STORE_CRASH,
    }
)
"""Kinds of faults that befall whole stores and hosts here, or come about by themselves, and what they count as."""

LEFT_OUT: Final[Mapping[FaultKind, str]] = MappingProxyType(
    {
        FaultKind.BLOCKED_LOOP: "it takes wall time, and here there is none",
        FaultKind.SHUFFLED_ANSWERS: "looks and verdicts only (reads and preparations are shuffled): they name no "
        "document, so that no engine can tell, and what it then reports is the store's lie",
    }
)
"""What no profile brings about, wholly or in part, and why."""

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        "none": Profile(
            name="none",
            mishaps=_ALWAYS,
            states=tuple(state for state in StepState if state not in (StepState.UNKNOWN, StepState.REFUSED)),
        ),
        "mild": Profile(
            name="mild",
            faults=_HONEST,
            hours_to_judge=1000.0,
            fault_rate=0.2,
            trouble=0.4,
            down=0.1,
            host=0.02,
            mishaps=(
                *_ALWAYS,
                Mishap.STORE_REFUSING,
                Mishap.STORE_HANGING,
                Mishap.STORE_SLOW,
                Mishap.STORE_CRASH,
                Mishap.LATE_LANDING,
                Mishap.HOST_RESTART,
                Mishap.CLOCK_STEP,
            ),
        ),
        "harsh": Profile(
            name="harsh",
            faults=_HONEST + _LYING,
            fault_rate=0.4,
            trouble=0.6,
            down=0.35,
            host=0.12,
            mishaps=tuple(Mishap),
        ),
    }
)
"""By name: "none" (writers that fail half-way, but no store ever does), "mild" (faults that honest stores have) and
"harsh" (all but `LEFT_OUT`)."""
