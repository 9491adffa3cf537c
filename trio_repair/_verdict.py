"""How an attempt ends, in the engine's words."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ._errors import CircuitOpen, StoreError, StoreUnavailable
from ._model import RepairOutcome

TIMED_OUT_ERROR = "Repair operation timed out"
CANCELLED_ERROR = "Repair was cancelled"
MOVED_ERROR = "changed while being repaired"
UPDATE_FAILED = {
    "text": "Text search update failed",
    "vector": "Vector store update failed",
    "cache": "Cache update failed",
}


@attrs.frozen
class Verdict:
    """How an attempt ended."""

    outcome: RepairOutcome
    error: str | None = None
    transient: bool = False
    """It failed for a reason that may pass."""
    park: float | None = None
    """Run again after so many seconds; this was not a failure."""


class Moved(Exception):
    """The document is not what it was when the plan was made."""

    def __init__(self, store: str) -> None:
        super().__init__(store)
        self.store = store


class Ended(Exception):
    """The attempt cannot go on."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict


def store_failure(error: StoreError, prefix: str | None = None) -> Verdict:
    """What a store's error means for the attempt; `prefix` says what was tried."""
    message = str(error) if prefix is None else f"{prefix}: {error.problem}"
    # A store that stayed away for `unavailable_timeout` has had its chance.
    transient = isinstance(error, StoreUnavailable) and not isinstance(error, CircuitOpen)
    return Verdict(RepairOutcome.FAILED, message, transient=transient)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Several failures as one: final if any is."""
    error = "; ".join(verdict.error for verdict in verdicts if verdict.error is not None)
    return Verdict(RepairOutcome.FAILED, error, transient=all(verdict.transient for verdict in verdicts))
