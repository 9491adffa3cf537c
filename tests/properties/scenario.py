"""Everything that is drawn before a play begins, as values that print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import attrs

from trio_repair import AbsentMeans, AutoRepairConfig, RepairPriority, SyncStrategy
from trio_repair.testing import Fault, StoreContents

STORES = ("text", "vector", "cache")
CRITICAL = ("text", "vector")


@attrs.frozen(kw_only=True)
class JobSpec:
    doc_id: str
    strategy: SyncStrategy = SyncStrategy.MOST_RECENT
    priority: RepairPriority = RepairPriority.MEDIUM
    timeout: float | None = None
    deadline: float | None = None
    """Seconds after the beginning of the play."""
    max_retries: int = 1


@attrs.frozen(kw_only=True)
class Step:
    wait: float = 0.0
    """Virtual seconds before it is taken."""


@attrs.frozen(kw_only=True)
class Submit(Step):
    job: JobSpec
    how: Literal["nowait", "submit", "execute"] = "submit"
    withdraw_after: float | None = None
    """"execute": the caller is cancelled after so many seconds."""
    planned: bool = False
    """Carry out the plan that the last `MakePlan` of this document made, if there is one."""


@attrs.frozen(kw_only=True)
class Stream(Step):
    """`engine.run`, left after `take` results (None: after all)."""

    jobs: tuple[JobSpec, ...]
    take: int | None = None


@attrs.frozen(kw_only=True)
class MakePlan(Step):
    doc_id: str
    strategy: SyncStrategy = SyncStrategy.MOST_RECENT


@attrs.frozen(kw_only=True)
class Cancel(Step):
    job: int
    """By order of submission."""


@attrs.frozen(kw_only=True)
class Pause(Step):
    pass


@attrs.frozen(kw_only=True)
class Resume(Step):
    pass


@attrs.frozen(kw_only=True)
class Cleanup(Step):
    pass


@attrs.frozen(kw_only=True)
class SetLimit(Step):
    value: int


@attrs.frozen(kw_only=True)
class AddFault(Step):
    store: str
    fault: Fault


@attrs.frozen(kw_only=True)
class Heal(Step):
    pass


@attrs.frozen(kw_only=True)
class Write(Step):
    """The application writes a new version from store to store, and may die on the way."""

    doc_id: str
    delete: bool = False
    stores: tuple[str, ...] = STORES
    gap: float = 0.0


@attrs.frozen(kw_only=True)
class Resolve(Step):
    doc_id: str
    choice: Literal["text", "vector", "delete"]
    fenced: bool = False
    """Hand over the tokens that the stores hold at this moment."""


AnyStep: TypeAlias = (
    Submit | Stream | MakePlan | Cancel | Pause | Resume | Cleanup | SetLimit | AddFault | Heal | Write | Resolve
)


@attrs.frozen(kw_only=True)
class Latency:
    before: float = 0.0
    """Seconds until a call reaches the store."""
    after: float = 0.0
    """Seconds until its answer reaches the engine."""


@attrs.frozen(kw_only=True)
class Scenario:
    contents: StoreContents
    config: AutoRepairConfig
    program: tuple[AnyStep, ...]
    faults: Mapping[str, tuple[Fault, ...]] = attrs.field(factory=dict)
    latencies: Mapping[str, Latency] = attrs.field(factory=dict)
    absent: Mapping[str, AbsentMeans] = attrs.field(factory=dict)
    max_calls: int = 4
    max_batch: int = 8
    with_cache: bool = True
    ending: Literal["drain", "raise", "cancel"] = "drain"
    raising: frozenset[str] = frozenset()
    """Documents whose repair hits a bug in the engine: its code raises."""
    raising_late: frozenset[str] = frozenset()
    """Documents whose repair raises beside a cancellation."""
    stubborn: Mapping[str, float] = attrs.field(factory=dict)
    """Documents whose repair, told to stop, takes so many seconds more."""
    leaking: frozenset[str] = frozenset()
    """Documents whose reading, preparing or writing fails with a driver's error that quotes their text."""
    logged: bool = False
    rounds: int = 0
    """How many further engines run over the healed stores, one after the other."""
    rounds_strategy: SyncStrategy = SyncStrategy.MOST_RECENT
    seed: int = 0

    @property
    def doc_ids(self) -> tuple[str, ...]:
        return tuple(document.doc_id for document in self.contents.documents)

    @property
    def undisturbed(self) -> bool:
        """Nobody but the engine writes."""
        return not any(isinstance(step, Write) for step in self.program)
