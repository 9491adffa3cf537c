"""What an engine tells its instruments."""

from __future__ import annotations

import enum
from typing import Final

import attrs

from ._enums import plain_members
from ._model import DocumentVersion, RepairJob, RepairResult


@plain_members
class EventKind(enum.Enum):
    """What happened."""

    ACCEPTED = "accepted"
    STARTED = "started"
    """An attempt took a slot. One event for each job that shares the repair, all with the same `attempt`."""
    OBSERVED = "observed"
    """A store told the repair what it holds."""
    ENDED = "ended"
    """The attempt has ended, whether its jobs settle now or it is to run again. Its slot is free, or will be as soon as
    its task has ended, too, if it was cut off and nobody had to wait for that."""
    LOCKED = "locked"
    """A store still works on a write although the attempt has ended; no other repair of the document starts."""
    UNLOCKED = "unlocked"
    """That write has ended."""
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
    CALL_OVERSTAYED = "call-overstayed"
    """A store call was told to stop and still ran `grace` seconds later."""
    LOOP_BLOCKED = "loop-blocked"
    """A store call kept the event loop to itself for `loop_block_seconds` or longer."""
    STORE_MISBEHAVED = "store-misbehaved"
    """A store broke its contract, as by an answer of the wrong length."""
    OVERDUE = "overdue"
    """A repair did not stop at its timeout; its document stays locked until it ends."""
    PHASE = "phase"
    """The attempt that is running has come to another `RepairPhase`, or to the same one again."""
    CALL_SENT = "call-sent"
    """A bulk call of a store begins. It and the next are `CallEvent`s, told in the task that makes the call."""
    CALL_ENDED = "call-ended"
    """That call has returned or raised; its answers have not been given yet."""


DETAILS: Final = frozenset({EventKind.PHASE, EventKind.CALL_SENT, EventKind.CALL_ENDED})
"""Kinds that are told only to an instrument whose `also_hears` names them: most need none, and each costs time."""


@attrs.frozen(kw_only=True)
class EngineEvent:
    """One thing that happened, without document text."""

    kind: EventKind
    at: float
    """Seconds since the engine was opened."""
    doc_id: str | None = None
    """None where it is about a store alone."""
    job: RepairJob | None = None
    """ACCEPTED, STARTED, RETRY, REOBSERVED, SETTLED, OVERDUE."""
    store: str | None = None
    """OBSERVED, WRITE_*, LOCKED, UNLOCKED, REOBSERVED, BREAKER_*, CALL_*, LOOP_BLOCKED, STORE_MISBEHAVED."""
    token: str | None = None
    """OBSERVED: the state seen. WRITE_*: the state that the write was planned on, and displaces if it lands."""
    version: DocumentVersion | None = None
    """OBSERVED: what the store holds, None if nothing. WRITE_SENT: what is to be held, None to remove the entry."""
    attempt: int | None = None
    """STARTED, ENDED: counts the attempts of this engine, from 1."""
    limit: int | None = None
    """STARTED: how many repairs might run when the slot was taken, this one included."""
    timeout: float | None = None
    """STARTED: seconds that the attempt may take."""
    detail: str | None = None
    """An error, a verdict, or a delay, in words. STARTED: "resolution" for a person's choice, or the strategy of the
    plan that is carried out; None where the job's own strategy is followed. PHASE: the phase's value. CALL_ENDED: None
    where the store answered, else how the call ended."""
    result: RepairResult | None = None
    """SETTLED: the result that the handle delivers."""


@attrs.frozen(kw_only=True)
class CallEvent(EngineEvent):
    """CALL_SENT, CALL_ENDED: one bulk call of a store, which serves as many repairs as it names documents."""

    call: int
    """Names the call among all of the engine."""
    operation: str
    """"observe", "read", "prepare", "write" or "remove"."""
    doc_ids: tuple[str, ...]
    """What it is asked about, each document once."""
    seconds: float | None = None
    """CALL_ENDED: how long it took, on the Trio clock."""
