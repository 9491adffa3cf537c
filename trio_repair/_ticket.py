"""What travels through the engine: an accepted job (ticket), and a repair that one or more jobs wait for (entry)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Literal, TypeAlias

import attrs
import trio

from ._model import RepairJob, RepairPhase, RepairResult, SyncStrategy
from ._planning import RepairPlan
from ._progress import Progress
from ._timetable import Timer

Choice: TypeAlias = Literal["text", "vector", "delete"]


@attrs.frozen
class Mission:
    """What a repair is to do: follow a strategy, or carry out a plan, or a person's choice."""

    strategy: SyncStrategy
    plan: RepairPlan | None = None
    choice: Choice | None = None
    expected: Mapping[str, str] | None = None
    """The tokens that a person or a plan saw; a store that holds neither them nor the decision has moved."""

    @property
    def moves_with_the_document(self) -> bool:
        """True if a document that changes meanwhile may be looked at again and decided anew."""
        return self.plan is None and self.choice is None

    @property
    def follows(self) -> str | None:
        """Whose decision is carried out, if it is not that of the job's own strategy."""
        if self.moves_with_the_document:
            return None
        strategy = None if self.plan is None else self.plan.strategy
        return "resolution" if strategy is None else strategy.value


class Ticket:
    """An accepted job, until it is settled."""

    __slots__ = ("accepted_at", "deadline", "entry", "event", "job", "lock_timer", "on_settled", "result", "timer")

    def __init__(
        self,
        job: RepairJob,
        accepted_at: float,
        deadline: float | None,
        on_settled: Callable[[Ticket], None] | None,
    ) -> None:
        self.job = job
        self.accepted_at = accepted_at
        self.deadline = deadline
        self.on_settled = on_settled
        self.entry: Entry
        self.result: RepairResult | None = None
        self.event: trio.Event | None = None
        self.timer: Timer | None = None
        self.lock_timer: Timer | None = None


class Entry:
    """One repair to be made, and the tickets that wait for it."""

    __slots__ = (
        "attempt",
        "attempts",
        "cancelled",
        "cut_off",
        "doc_id",
        "first_started_at",
        "key",
        "mission",
        "over",
        "overdue",
        "progress",
        "ready_at",
        "retries",
        "running_seconds",
        "scope",
        "share_key",
        "started_at",
        "tickets",
        "timeout_at",
    )

    def __init__(self, doc_id: str, key: float, share_key: Hashable, mission: Mission) -> None:
        self.doc_id = doc_id
        self.key = key
        """Its place in the queue; see `WorkQueue`."""
        self.share_key = share_key
        """Jobs with equal keys may share this repair."""
        self.mission = mission
        self.tickets: list[Ticket] = []
        self.ready_at: float | None = None
        """While it backs off: when it may run again."""
        self.attempt = 0
        """Names the attempt that is running among all of the engine."""
        self.attempts = 0
        """How often it was started."""
        self.retries = 0
        """How many of these starts were retries of a transient failure; the others waited or looked again."""
        self.progress: Progress | None = None
        self.scope: trio.CancelScope | None = None
        self.started_at = 0.0
        self.timeout_at = 0.0
        """On the Trio clock: when the attempt that is running will be told to stop."""
        self.first_started_at: float | None = None
        self.running_seconds = 0.0
        self.cancelled = False
        """Nobody waits for it any more: its end is CANCELLED, not TIMED_OUT."""
        self.cut_off = False
        """It has ended where it waited, and its task is still to end."""
        self.over = False
        """Its verdict is known, and its tickets are being settled."""
        self.overdue = False
        """It was told to stop and has not."""

    @property
    def phase(self) -> RepairPhase:
        """Where it is."""
        return RepairPhase.OBSERVE if self.progress is None else self.progress.phase
