"""What can go wrong with a store: faults as values."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Final

import attrs

from trio_repair import InvalidValue

from ._doubles import OPERATIONS


class FaultKind(enum.Enum):
    """What goes wrong. Those marked † break the contract of `Store`, as a bad adapter or driver would."""

    UNAVAILABLE = "unavailable"
    """`StoreUnavailable` is raised before anything is done."""
    LATE_ERROR = "late-error"
    """† The call is done, and then `StoreUnavailable` is raised."""
    DRIVER_ERROR = "driver-error"
    """† `DriverFault`, which is no StoreError, is raised before anything is done."""
    ACK_LOST = "ack-lost"
    """The call is done, and every answer is UNKNOWN. write, remove."""
    REQUEST_LOST = "request-lost"
    """Nothing is done, and every answer is UNKNOWN. write, remove."""
    REJECTED = "rejected"
    """One document is refused for good (`StoreRejected`, or REJECTED); the others are served."""
    DOCUMENT_UNAVAILABLE = "document-unavailable"
    """One document gets `StoreUnavailable`, or UNKNOWN without an effect; the others are served."""
    LATENCY = "latency"
    """The call starts `delay` seconds later."""
    HANG = "hang"
    """The call waits for ever, or until `heal`, before anything is done. It can be cancelled."""
    HANG_AFTER = "hang-after"
    """The call is done, and then waits for ever, or until `heal`. It can be cancelled."""
    CONCURRENT_WRITE = "concurrent-write"
    """Somebody else changes the document just before the call."""
    SWALLOWED_CANCEL = "swallowed-cancel"
    """† The call takes `delay` seconds first. Cancelled in that time, it does its work and returns an answer; only
    HANG_AFTER in the same call can still be cancelled."""
    WRONG_LENGTH = "wrong-length"
    """† The call is done, and its last answer is missing."""
    BLOCKED_LOOP = "blocked-loop"
    """† The call blocks the thread, and with it all of Trio, for `delay` seconds of wall time."""
    LATE_LANDING = "late-landing"
    """Every answer is UNKNOWN, and `delay` seconds after the call began, whatever has become of it by then, it is done:
    what its fence then finds decides. write, remove."""
    PARTIAL_BULK = "partial-bulk"
    """† Some documents of a call that names several are served, and then `StoreUnavailable` is raised."""
    OVERTAKEN = "overtaken"
    """The call waits until one of its operation that was made later has ended, at most `delay` seconds. It can be
    cancelled."""
    SHUFFLED_ANSWERS = "shuffled-answers"
    """† The call is done, and its answers, of several, come in another order than the documents."""
    STUCK = "stuck"
    """† The call ignores cancellation, as a driver's thread does, until `heal`, at most `delay` seconds; then it is
    done. HANG_AFTER in the same call can be cancelled after that."""
    CLOCK_SKEW = "clock-skew"
    """Somebody whose clock is `delay` seconds ahead (behind, if negative) changes the document just before the call:
    number (of a hybrid logical clock) and `updated_at` come from that clock, whatever is held."""
    CRASH = "crash"
    """The store crashes: calls under way fail, what it had not committed is gone, and for `delay` seconds it refuses
    calls. Only over a store that can crash (see `CrashingStore`)."""

    @property
    def operations(self) -> frozenset[str]:
        """Where it can strike."""
        if self in _LOST:
            return _UPDATES
        if self in PER_DOCUMENT or self in _BATCH_ONLY:
            return _BATCHES
        if self in (FaultKind.SWALLOWED_CANCEL, FaultKind.STUCK, FaultKind.OVERTAKEN):
            return _BATCHES | {"count"}
        return frozenset(OPERATIONS)


class DriverFault(Exception):
    """What a database driver might raise, untranslated."""


PER_DOCUMENT: Final = frozenset({FaultKind.REJECTED, FaultKind.DOCUMENT_UNAVAILABLE})
SEVERAL: Final = frozenset({FaultKind.PARTIAL_BULK, FaultKind.SHUFFLED_ANSWERS})
"""What can strike only a call that names several documents."""
_RIVALS: Final = frozenset({FaultKind.CONCURRENT_WRITE, FaultKind.CLOCK_SKEW})

_BATCH_ONLY: Final = SEVERAL | _RIVALS | {FaultKind.WRONG_LENGTH}
_LOST: Final = frozenset({FaultKind.ACK_LOST, FaultKind.REQUEST_LOST, FaultKind.LATE_LANDING})
_DELAYED: Final = frozenset(
    {
        FaultKind.LATENCY,
        FaultKind.SWALLOWED_CANCEL,
        FaultKind.BLOCKED_LOOP,
        FaultKind.LATE_LANDING,
        FaultKind.OVERTAKEN,
        FaultKind.STUCK,
        FaultKind.CLOCK_SKEW,
    }
)
_UPDATES: Final = frozenset({"write", "remove"})
_BATCHES: Final = frozenset({"observe", "read", "prepare", "write", "remove"})


@attrs.frozen
class Fault:
    """One thing that goes wrong, and when.

    Raises:
        InvalidValue: the kind cannot strike that operation, or a number is out of range.
    """

    kind: FaultKind
    operation: str | None = None
    """"observe", "read", "prepare", "write", "remove", "count", or "scan" (opening one, and each page); None: each
    that the kind can strike."""
    doc_id: str | None = attrs.field(default=None, kw_only=True)
    """Strike only calls that name this document; None: any call (one document of it, where the kind concerns one)."""
    times: int | None = attrs.field(default=None, kw_only=True)
    """How many calls it may strike; None: no limit."""
    probability: float = attrs.field(default=1.0, kw_only=True)
    """How likely a matching call is struck, from 0 to 1."""
    delay: float = attrs.field(default=0.0, kw_only=True)
    """Seconds, with the meaning that the kind gives them. LATENCY, SWALLOWED_CANCEL, BLOCKED_LOOP, LATE_LANDING,
    OVERTAKEN, STUCK and CLOCK_SKEW need it; CLOCK_SKEW alone takes less than 0; CRASH may have it."""

    def __attrs_post_init__(self) -> None:
        possible = self.kind.operations
        if self.operation is not None and self.operation not in possible:
            raise InvalidValue("operation", f"{self.kind.value} strikes {', '.join(sorted(possible))} only")
        if self.doc_id is not None and self.operation is not None and self.operation not in _BATCHES:
            raise InvalidValue("doc_id", f"{self.operation} names no documents; leave it out")
        if self.times is not None and self.times < 1:
            raise InvalidValue("times", f"must be None or at least 1, not {self.times}")
        if not 0 <= self.probability <= 1:
            raise InvalidValue("probability", f"must be from 0 to 1, not {self.probability}")
        if not math.isfinite(self.delay) or (self.delay < 0 and self.kind is not FaultKind.CLOCK_SKEW):
            raise InvalidValue("delay", f"must be finite seconds of at least 0, not {self.delay}")
        if self.delay == 0 and self.kind in _DELAYED:
            raise InvalidValue("delay", f"must not be 0 seconds for {self.kind.value}")

    def matches(self, operation: str, doc_ids: Sequence[str]) -> bool:
        """Whether it may strike a call of `operation` on these documents. Pure: neither count nor chance."""
        if operation not in self.kind.operations or self.operation not in (None, operation):
            return False
        if self.kind in SEVERAL and len(doc_ids) < 2:
            return False
        if self.doc_id is None:
            return bool(doc_ids) or operation not in _BATCHES
        return self.doc_id in doc_ids
