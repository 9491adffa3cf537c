"""What is remembered of jobs and repairs while they are witnessed, and how it is said in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs

from trio_repair import (
    DocumentVersion,
    EngineEvent,
    Observation,
    Presence,
    RepairJob,
    RepairPlan,
    SyncStrategy,
)


@attrs.frozen(kw_only=True)
class Violation:
    """A promise that was broken."""

    invariant: str
    """"I1" to "I19", or "contract", "decision 5" and the like, as the design numbers them."""
    at: float
    """Simulated seconds since the beginning."""
    doc_id: str | None
    detail: str
    trace: tuple[str, ...] = ()
    """The last lines of the trace that concern the document."""


@attrs.define(eq=False)
class Look:
    """What a store told a repair."""

    asked: int
    """Where in the run the question was asked."""
    view: Observation
    wall: float
    """What the engine's wall clock showed when the answer came."""


@attrs.define(eq=False)
class Send:
    """One document's part in a call that writes."""

    seq: int
    store: str
    doc_id: str
    token: str
    version: DocumentVersion | None
    """None: the entry is to be removed."""
    story: Story
    deletes: bool = False
    """The decision behind it is to delete."""
    ended: int | None = None


@attrs.define(eq=False)
class Attempt:
    """From its STARTED until the next attempt of its document."""

    number: int
    started_at: float
    timeout: float
    story: Story
    began: int
    """Where in the run."""
    looks: dict[str, list[Look]] = attrs.field(factory=dict)
    sends: list[Send] = attrs.field(factory=list)
    reobserved: int = 0
    ended: bool = False

    def views(self, store: str) -> list[Look]:
        """What the store told, the latest first."""
        return self.looks.get(store, [])[::-1]


@attrs.define(eq=False)
class Story:
    """A repair with all its attempts, for the jobs that share it."""

    doc_id: str
    job: RepairJob
    """The first of them."""
    plan: RepairPlan | None
    resolves: bool
    attempts: list[Attempt] = attrs.field(factory=list)
    sends: list[Send] = attrs.field(factory=list)
    effects: Counter[str] = attrs.field(factory=Counter)
    last_effect: dict[str, Observation] = attrs.field(factory=dict)
    retries: int = 0

    @property
    def strategy(self) -> SyncStrategy:
        """What they ask for."""
        return self.job.strategy


@attrs.define(eq=False)
class Job:
    """An accepted job."""

    job: RepairJob
    deadline: float | None
    story: Story | None = None


def is_readable(view: Observation) -> bool:
    """Somebody who searches finds it, whole."""
    return view.presence is Presence.LIVE and view.intact


def rank(version: DocumentVersion | None) -> int:
    """Its number; nothing and no number rank below all."""
    return -1 if version is None or version.number is None else version.number


def is_above(version: DocumentVersion | None, tombstone: DocumentVersion | None) -> bool:
    """Whether it may be put over the tombstone."""
    if version is None or version.number is None or tombstone is None or tombstone.number is None:
        return False
    return version.number > tombstone.number


def is_same(one: DocumentVersion | None, other: DocumentVersion | None) -> bool:
    """Whether both are the same number, content and state."""
    if one is None or other is None:
        return one is other
    alike = one.number == other.number and one.deleted == other.deleted
    return alike and (one.deleted or one.digest == other.digest)


def said_version(version: DocumentVersion | None) -> str:
    """In a few characters."""
    if version is None:
        return "nothing"
    return f"{'tombstone' if version.deleted else 'version'} {version.number} {version.digest[:6]}".rstrip()


def said_view(view: Observation) -> str:
    """With its token."""
    damage = "" if view.intact else " damaged"
    return f"{said_version(view.version)}{damage} [{view.token}]"


def said_event(event: EngineEvent) -> str:
    """As a line of the trace."""
    parts = [event.kind.value]
    for name, value in _shown(event).items():
        if value is not None:
            parts.append(f"{name}={value}")
    return " ".join(parts)


def _shown(event: EngineEvent) -> Mapping[str, Any]:
    result = event.result
    return {
        "doc": None if event.doc_id is None else ascii(event.doc_id[:24]),
        "job": None if event.job is None else f"{event.job.id}({event.job.strategy.value})",
        "store": event.store,
        "token": event.token,
        "version": None if event.version is None else said_version(event.version),
        "attempt": event.attempt,
        "limit": event.limit,
        "timeout": event.timeout,
        "detail": event.detail,
        "outcome": None if result is None else result.outcome.value,
        "receipt": None if result is None else ",".join(f"{step.store}:{step.state.value}" for step in result.receipt),
        "updated": None if result is None or not result.updated_systems else ",".join(result.updated_systems),
        "error": None if result is None else result.error,
    }
