"""What is remembered while a trace is checked, and how a contradiction is said."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import attrs

from trio_repair import DocumentVersion, EngineEvent, SyncStrategy

CRITICAL: Final = ("text", "vector")
EPSILON: Final = 1e-6
"""Seconds. Times of events are differences of floats."""
_DOCUMENTS_REMEMBERED: Final = 4096
_TOKENS_REMEMBERED: Final = 8


class TraceViolation(AssertionError):
    """A trace that no engine that keeps its promises can leave.

    Attributes:
        invariant: "I1", "I3", "I8", "I9", "I12", "I13" or "I15".
        event: the event at which it shows; None at the end of the trace.
        detail: what is wrong, without document text.
        doc_ids: the documents that it is about, if not only that of the event.
    """

    def __init__(
        self, invariant: str, event: EngineEvent | None, detail: str, *, doc_ids: tuple[str, ...] = ()
    ) -> None:
        where = "at the end" if event is None else f"at {event.at:.6f} s, {event.kind.value}"
        super().__init__(f"{invariant}, {where}: {detail}")
        self.invariant = invariant
        self.event = event
        self.detail = detail
        self.doc_ids = doc_ids


@attrs.define
class Look:
    """What a store told an attempt."""

    at: int
    """Where in the trace."""
    token: str
    version: DocumentVersion | None


@attrs.define(eq=False)
class Sent:
    """A write or removal, from its first sending on."""

    at: int
    """Where in the trace it was last sent."""
    token: str
    version: DocumentVersion | None
    """What is to be held; None to remove the entry."""
    displaces: DocumentVersion | None
    """What the token stands for."""
    again: bool = False
    """It was sent more than once before it got a verdict."""
    in_company: bool = False
    """It went out beside another one, perhaps in one call. If that call breaks, it may be taken back without a verdict:
    it is to be sent again, and then nobody waits for it any more."""
    verdict: str | None = None
    seen_unchanged: bool = False
    """Its attempt looked again after the verdict, and found the state that it was to displace."""

    @property
    def landed(self) -> bool:
        """The store said so."""
        return self.verdict == "landed"

    @property
    def unknown(self) -> bool:
        """Nobody said whether it landed. What was sent twice and then refused may have been refused for itself."""
        return self.verdict in (None, "unknown") or (self.verdict == "refused" and self.again)

    @property
    def doubtful(self) -> bool:
        """It was sent twice and failed in the end. If it was sent again because its call broke, the first one may have
        landed, and nobody knows; if that call only failed, nothing was written. The events do not tell which.
        """
        return self.again and self.verdict in ("rejected", "failed")

    @property
    def may_have_landed(self) -> bool:
        """A store that failed promises that nothing was written; what is found there is the stronger evidence."""
        return self.landed or self.unknown or self.verdict == "failed"


@attrs.define(eq=False)
class Attempt:
    """One that is running."""

    number: int
    at: int
    """Where in the trace it began."""
    ends_by: float
    excused: bool = False
    """It was reported overdue when it was."""


@attrs.define(eq=False)
class Repair:
    """What jobs that joined each other share, through all its attempts."""

    strategy: SyncStrategy | None
    """None: a person's choice, which may override anything."""
    seen_whole: bool
    """Its jobs were accepted within the trace, so nothing that it did is missing."""
    jobs: dict[str, None] = attrs.field(factory=dict)
    """By id: those that have started and are not settled."""
    attempts: int = 0
    looks: dict[str, dict[str, DocumentVersion | None]] = attrs.field(factory=dict)
    """By store: what each token that the last attempt saw stands for."""
    last: dict[str, Look] = attrs.field(factory=dict)
    """By store: the last look of the last attempt."""
    sent: dict[str, list[Sent]] = attrs.field(factory=dict)
    """By store: what all its attempts have sent."""
    sent_now: dict[str, Sent] = attrs.field(factory=dict)
    """By store: what the last attempt sent last."""

    def open(self, store: str) -> Sent | None:
        """What was sent there last, if it has no verdict."""
        sent = self.sent.get(store)
        return sent[-1] if sent and sent[-1].verdict is None else None

    def begin_attempt(self) -> None:
        """What earlier attempts saw is no ground for writes any more."""
        self.attempts += 1
        self.looks, self.last, self.sent_now = {}, {}, {}


@attrs.define(eq=False)
class Document:
    """A document that is not done: it runs, waits to run again, or is locked."""

    repair: Repair
    attempt: Attempt | None = None
    """The one that is running."""
    locks: list[str] = attrs.field(factory=list)
    unlocked: dict[str, None] = attrs.field(factory=dict)
    """Stores that must be told to hold a lock before anything else is told of the repair that has just ended."""

    @property
    def done(self) -> bool:
        """Nothing more can come of its last repair."""
        return self.attempt is None and not self.locks and not self.unlocked and not self.repair.jobs


class Displaced:
    """The states that landed writes have put an end to.

    Those of the copies that were written last, and of each the last few: memory does not grow with the trace.
    """

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, str], deque[str]] = {}
        self._distrusted: dict[str, None] = {}

    def add(self, store: str, doc_id: str, token: str) -> None:
        """A write that landed has displaced it."""
        tokens = self._tokens.pop((store, doc_id), None)
        if tokens is None:
            tokens = deque(maxlen=_TOKENS_REMEMBERED)
            if len(self._tokens) >= _DOCUMENTS_REMEMBERED:
                del self._tokens[next(iter(self._tokens))]
        self._tokens[store, doc_id] = tokens
        tokens.append(token)

    def holds(self, store: str, doc_id: str, token: str) -> bool:
        """Whether it was displaced."""
        return store not in self._distrusted and token in self._tokens.get((store, doc_id), ())

    def distrust(self, store: str) -> None:
        """Nothing is known of its states any more."""
        self._distrusted[store] = None


def rank(version: DocumentVersion | None) -> int:
    """Its number; nothing, and what has no number, rank below all."""
    return -1 if version is None or version.number is None else version.number


def ends_by(event: EngineEvent) -> float:
    """When an attempt that starts with this event is to have ended."""
    return math.inf if event.timeout is None else event.at + event.timeout


def is_same(held: DocumentVersion | None, decided: DocumentVersion | None) -> bool:
    """Whether a store that holds the one holds what was decided."""
    if held is None or decided is None:
        # A store that keeps no tombstones equals one by holding nothing.
        return held is decided or (held is None and decided is not None and decided.deleted)
    if held.deleted or decided.deleted:
        return held.deleted == decided.deleted and held.number == decided.number
    return held == decided
