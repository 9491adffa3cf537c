"""A circuit breaker: the decision whether a store may be called now. Synchronous; time is passed in."""

from __future__ import annotations

import enum
from typing import Final

import attrs

from ._enums import plain_members

MAX_RESET_SECONDS: Final = 30.0


@plain_members
class BreakerState(enum.Enum):
    """CLOSED: calls go out. OPEN: none do. HALF_OPEN: one probe of one document does."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


# By names of their own: see `plain_members`.
_CLOSED: Final = BreakerState.CLOSED
_OPEN: Final = BreakerState.OPEN
_HALF_OPEN: Final = BreakerState.HALF_OPEN


@attrs.define
class CircuitBreaker:
    """Counts failed calls in a row.

    Invariant: `state` is CLOSED if and only if fewer than `failures_to_open` calls failed since the last success
    and none of them was given up.
    """

    failures_to_open: int
    base_reset: float
    state: BreakerState = _CLOSED
    failures: int = 0
    reset_seconds: float = attrs.field(init=False)
    """How long it stays open before the next probe."""

    def __attrs_post_init__(self) -> None:
        self.reset_seconds = self.base_reset

    def succeeded(self) -> bool:
        """Note a call that the store answered. True if this closes the breaker."""
        closes = self.state is not _CLOSED
        self.state = _CLOSED
        self.failures = 0
        self.reset_seconds = self.base_reset
        return closes

    def failed(self, *, given_up: bool = False) -> bool:
        """Note a call that failed as a whole, or that was `given_up` for taking too long. True if this opens it."""
        self.failures += 1
        if self.state is _OPEN:
            return False
        if self.state is _HALF_OPEN:
            self.reset_seconds = min(self.reset_seconds * 2, max(MAX_RESET_SECONDS, self.base_reset))
        elif self.failures < self.failures_to_open and not given_up:
            return False
        self.state = _OPEN
        return True

    def half_open(self) -> None:
        """Let one probe through."""
        if self.state is _OPEN:
            self.state = _HALF_OPEN
