"""What an engine tells its instruments."""

from __future__ import annotations

import enum

import attrs

from ._model import RepairJob, RepairResult


class EventKind(enum.Enum):
    """What happened."""

    ACCEPTED = "accepted"
    STARTED = "started"
    RETRY = "retry"
    """An attempt failed for a transient reason; the slot is released until the back-off is over."""
    REOBSERVED = "reobserved"
    """The document changed under the repair, which looks again at once."""
    WRITE_SENT = "write-sent"
    WRITE_SETTLED = "write-settled"
    SETTLED = "settled"
    BREAKER_OPENED = "breaker-opened"
    BREAKER_CLOSED = "breaker-closed"
    CALL_OVERDUE = "call-overdue"
    """A store call ran past `store_call_timeout` and was given up."""
    STORE_MISBEHAVED = "store-misbehaved"
    OVERDUE = "overdue"
    """A repair did not stop at its timeout; its document stays locked until it ends."""


@attrs.frozen(kw_only=True)
class EngineEvent:
    """One thing that happened, without document text."""

    kind: EventKind
    at: float
    """Seconds since the engine was opened."""
    doc_id: str | None = None
    job: RepairJob | None = None
    """ACCEPTED, STARTED, RETRY, REOBSERVED, SETTLED, OVERDUE."""
    store: str | None = None
    """WRITE_*, BREAKER_*, CALL_OVERDUE, STORE_MISBEHAVED."""
    token: str | None = None
    """WRITE_*: the token that the write was planned on, and displaces if it lands."""
    detail: str | None = None
    """An error, a verdict, or a delay, in words."""
    result: RepairResult | None = None
    """SETTLED: the result that the handle delivers."""
