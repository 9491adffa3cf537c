"""Judges a run while it goes on, by what the stores really did and held, and keeps its trace.

It hears of every call that the engine makes, of every change of a store and who made it, and of the engine's events.
It never raises: the first violation is kept, and the run is stopped.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import attrs
import trio

from trio_repair import (
    AutoRepairConfig,
    DocumentVersion,
    EngineEvent,
    EngineStatistics,
    EventKind,
    Observation,
    Presence,
    ReceiptStep,
    Removal,
    RepairExecutionEngine,
    RepairJob,
    RepairOutcome,
    RepairPlan,
    RepairResult,
    StepState,
    SyncStrategy,
    Write,
)
from trio_repair.stores.memory import MemoryStore

from .._faults import FaultKind
from .._trace import TraceChecker
from .._trace_state import TraceViolation
from ._oracle import CRITICAL, Judgement, Rules
from ._profiles import Mishap
from ._story import (
    Attempt,
    Job,
    Look,
    Send,
    Story,
    Violation,
    is_above,
    is_readable,
    is_same,
    rank,
    said_event,
    said_version,
    said_view,
)

EPSILON: Final = 1e-6
MARKER: Final = "classified"
"""Every text of every document holds it; nothing that the engine says may."""
_REMEMBERED: Final = 20_000
"""So many lines of the trace are kept to show the way to a violation."""
_SHOWN: Final = 40
_SHOWN_OF_EACH: Final = 20
"""Where several documents are concerned; so that the start of each repair is among them."""


class Witness:
    """Everything that is known about one run."""

    def __init__(self, rules: Rules, wall: Callable[[], float], stop: Callable[[], None]) -> None:
        self.rules = rules
        self.config: AutoRepairConfig
        self.engine: RepairExecutionEngine | None = None
        self.plans: dict[str, RepairPlan] = {}
        """By job id; put here before the job is submitted."""
        self.resolutions: dict[str, None] = {}
        """Jobs that carry out a person's choice; put here before they are submitted."""
        self.write_as_rival: Callable[[MemoryStore, str], None]
        self.violation: Violation | None = None
        self.outcomes: Counter[RepairOutcome] = Counter()
        self.states: Counter[StepState] = Counter()
        self.faults: Counter[FaultKind] = Counter()
        self.mishaps: Counter[Mishap] = Counter()
        self.jobs = 0
        self.paused = False
        """The engine was told to start nothing."""
        self.restless = True
        """False while the last round of a calm is under way, in which nothing may change."""
        self._wall = wall
        self._stop = stop
        self._start = trio.current_time()
        self._seq = 0
        self._hash = hashlib.sha256()
        self._lines: deque[tuple[str | None, str]] = deque(maxlen=_REMEMBERED)
        self._live: dict[str, Job] = {}
        self._attempts: dict[str, Attempt] = {}
        """By document: the last attempt."""
        self._writing: dict[tuple[str, str], int] = {}
        """By store and document: writes of the engine that are under way."""
        self._calls = 0
        self._checker = TraceChecker(tolerance=EPSILON)
        self._settled: Counter[RepairOutcome] = Counter()
        self._accepted = 0

    # The trace

    def now(self) -> float:
        """Simulated seconds since the beginning."""
        return trio.current_time() - self._start

    def note(self, doc_id: str | None, line: str) -> None:
        """Add a line to the trace."""
        line = f"{self.now():.6f} {line}"
        self._hash.update(line.encode("utf-8", "surrogatepass"))
        self._hash.update(b"\n")
        self._lines.append((doc_id, line))

    @property
    def trace_hash(self) -> str:
        """SHA-256 of the trace so far, in hexadecimal."""
        return self._hash.hexdigest()

    def fail(self, invariant: str, doc_id: str | None, detail: str, *, also: Sequence[str] = ()) -> None:
        """Keep the first violation, and stop the run.

        Args:
            invariant: the promise that was broken.
            doc_id: the document at which it shows; None: it concerns them all.
            detail: what is wrong.
            also: other documents that it is about.
        """
        if self.violation is None:
            trace = self._about(None if doc_id is None else {doc_id: None, **dict.fromkeys(also)})
            self.violation = Violation(
                invariant=invariant, at=self.now(), doc_id=doc_id, detail=detail, trace=tuple(trace)
            )
            self._stop()

    def _about(self, doc_ids: Collection[str] | None) -> list[str]:
        """The last lines of these documents, in order; None: of all."""
        about = [(of, line) for of, line in self._lines if doc_ids is None or of is None or of in doc_ids]
        if doc_ids is None or len(doc_ids) == 1:
            return [line for _, line in about[-_SHOWN:]]
        of_each: Counter[str | None] = Counter()
        lines: list[str] = []
        for of, line in reversed(about):
            of_each[of] += 1
            if of_each[of] <= _SHOWN_OF_EACH:
                lines.append(line)
        return lines[::-1]

    def count(self, what: FaultKind | Mishap) -> None:
        """It has had its effect."""
        if isinstance(what, Mishap):
            self.mishaps[what] += 1
        else:
            self.faults[what] += 1

    def is_repairing(self, doc_id: str) -> bool:
        """A repair of the document runs now."""
        attempt = self._attempts.get(doc_id)
        return attempt is not None and not attempt.ended

    def live_jobs(self) -> list[str]:
        """The ids of jobs that are accepted and not settled, in order of acceptance."""
        return list(self._live)

    # Engines come and go

    def engine_opened(self, engine: RepairExecutionEngine, config: AutoRepairConfig) -> None:
        """A host has opened an engine."""
        self.engine, self.config = engine, config
        self.rules = attrs.evolve(self.rules, missing_source=config.missing_source)
        self._checker = TraceChecker(tolerance=EPSILON)
        self._settled = Counter()
        self._accepted = 0
        self.paused = False
        self.note(None, f"engine opened, {engine.limits.max_concurrent_jobs} slots")

    def engine_closed(self, engine: RepairExecutionEngine) -> None:
        """It has closed, in whatever way."""
        self.note(None, "engine closed")
        self.engine = None
        try:
            self._checker.end()
        except TraceViolation as violation:
            first, *others = violation.doc_ids or (None,)
            self.fail(violation.invariant, first, violation.detail, also=[other for other in others if other])
        if self._calls:
            self.fail("I15", None, f"{self._calls} calls of stores outlived the engine")
        said = engine.statistics()
        if (said.queued, said.active, said.running, said.overdue, said.locked) != (0, 0, 0, 0, 0):
            self.fail("I15", None, f"something is left in a closed engine: {said}")
        self._check_totals(said)

    def sample(self) -> None:
        """Look at what the engine says of itself."""
        engine = self.engine
        if engine is None:
            return
        self._check_totals(engine.statistics())
        now = trio.current_time()
        for job_id, row in engine.active_operations.items():
            if now > row.timeout_at + EPSILON:
                self.fail("I15", row.job.doc_id, f"job {job_id} is shown as active, past its timeout")

    def _check_totals(self, said: EngineStatistics) -> None:
        if said.accepted != sum(said.outcomes.values()) + said.queued + said.active or said.accepted != self._accepted:
            self.fail("I9", None, f"the totals do not add up: {said}")
        for outcome, number in said.outcomes.items():
            if self._settled[outcome] != number:
                self.fail("I9", None, f"{number} jobs are said to be {outcome.value}, {self._settled[outcome]} were")

    # What the engine says

    def on_event(self, event: EngineEvent) -> None:
        """Called by the engine for each event; see `trio_repair.abc.Instrument`."""
        self.note(event.doc_id, said_event(event))
        try:
            self._checker.see(event)
        except TraceViolation as violation:
            self.fail(violation.invariant, event.doc_id, violation.detail, also=violation.doc_ids)
        match event.kind:
            case EventKind.ACCEPTED:
                self._job_accepted(event)
            case EventKind.STARTED:
                self._attempt_started(event)
            case EventKind.ENDED if event.doc_id in self._attempts:
                self._attempts[event.doc_id].ended = True
            case EventKind.RETRY:
                self._attempt_repeated(event)
            case EventKind.REOBSERVED:
                self._looked_again(event)
            case EventKind.SETTLED:
                self._job_settled(event)
            case _:
                pass

    def _job_accepted(self, event: EngineEvent) -> None:
        assert event.job is not None
        job = event.job
        self.jobs += 1
        self._accepted += 1
        deadline = None
        if job.deadline is not None:
            # It may have passed while the job waited to be accepted.
            deadline = self.now() + max(0.0, job.deadline.timestamp() - self._wall())
        self._live[job.id] = Job(job, deadline)

    def _attempt_started(self, event: EngineEvent) -> None:
        assert event.job is not None
        assert event.attempt is not None
        assert event.timeout is not None
        job, doc_id = self._live.get(event.job.id), event.job.doc_id
        if job is None:
            return  # the checker has said so
        before = self._attempts.get(doc_id)
        if before is not None and before.number == event.attempt and not before.ended:
            job.story = before.story
            if (job.job.strategy, job.job.timeout) != (before.story.job.strategy, before.story.job.timeout):
                self.fail("decision 8", doc_id, f"{job.job.id} shares a repair that it has not asked for")
            return
        if self.paused:
            self.fail("I13", doc_id, "a repair starts although the engine is paused")
        for store in self._stores_writing(doc_id):
            self.fail("I12", doc_id, f"a repair starts while the {store} store works on an earlier write")
        if job.story is None:
            job_id = event.job.id
            job.story = Story(doc_id, event.job, self.plans.get(job_id), resolves=job_id in self.resolutions)
        attempt = Attempt(event.attempt, self.now(), event.timeout, job.story, self._seq)
        job.story.attempts.append(attempt)
        self._attempts[doc_id] = attempt

    def _stores_writing(self, doc_id: str) -> list[str]:
        return [store for store in ("text", "vector", "cache") if self._writing.get((store, doc_id))]

    def _attempt_repeated(self, event: EngineEvent) -> None:
        attempt = self._attempts.get(str(event.doc_id))
        if attempt is None:
            return
        attempt.story.retries += 1
        if self.now() - attempt.started_at >= attempt.timeout - EPSILON:
            self.fail("decision 5", event.doc_id, "an attempt that had timed out is retried")
        allowed = attempt.story.job.max_retries - attempt.story.job.retry_count
        if attempt.story.retries > allowed:
            self.fail("decision 10", event.doc_id, f"retried more than {allowed} times")

    def _looked_again(self, event: EngineEvent) -> None:
        attempt = self._attempts.get(str(event.doc_id))
        if attempt is None:
            return
        attempt.reobserved += 1
        if attempt.reobserved > self.config.max_reobserve:
            self.fail("decision 10", event.doc_id, f"looked again more than {self.config.max_reobserve} times")

    def _job_settled(self, event: EngineEvent) -> None:
        assert event.job is not None
        assert event.result is not None
        result = event.result
        self.outcomes[result.outcome] += 1
        self._settled[result.outcome] += 1
        self.states.update(step.state for step in result.receipt)
        job = self._live.pop(event.job.id, None)
        self.plans.pop(event.job.id, None)
        self.resolutions.pop(event.job.id, None)
        if job is None:
            self.fail("I9", event.doc_id, f"job {event.job.id} settled twice")
            return
        if job.deadline is not None and self.now() > job.deadline + 0.001:  # datetimes count microseconds
            self.fail("I15", event.doc_id, f"job {event.job.id} settled after its deadline")
        said = [result.error, *result.warnings, *(step.detail for step in result.receipt)]
        if any(MARKER in text for text in said if text is not None):
            self.fail("I19", event.doc_id, "the result quotes the document")
        self._judge_result(result, job)

    # What the engine does

    def call_began(self, store: str, operation: str, items: Sequence[Any]) -> Sequence[Any]:
        """The engine makes a call."""
        self._seq += 1
        self._calls += 1
        if operation == "read" and store == "cache":
            self.fail("I8", None, "the cache is read, which is never a source")
        if operation not in ("write", "remove"):
            return [(self._seq, item) for item in items]
        sends = [self._sent(store, item) for item in items]
        for send in sends:
            key = (store, send.doc_id)
            self._writing[key] = self._writing.get(key, 0) + 1
            if self._writing[key] > 1:
                self.fail("I12", send.doc_id, f"two writes are under way at the {store} store")
        return sends

    def call_ended(self, store: str, operation: str, records: Sequence[Any], answers: Sequence[Any] | None) -> None:
        """The call has ended."""
        self._seq += 1
        self._calls -= 1
        if operation in ("write", "remove"):
            for send in records:
                send.ended = self._seq
                self._writing[store, send.doc_id] -= 1
        elif operation == "observe" and answers is not None and len(answers) == len(records):
            wall = self._wall()
            for (asked, doc_id), answer in zip(records, answers, strict=True):
                attempt = self._attempts.get(doc_id)
                # What an earlier attempt asked, and a call that would not stop answers now, is nobody's look any more.
                if attempt is not None and asked > attempt.began and isinstance(answer, Observation):
                    attempt.looks.setdefault(store, []).append(Look(asked, answer, wall))

    def _sent(self, store: str, item: Write | Removal) -> Send:
        if isinstance(item, Removal):
            doc_id, version = item.doc_id, None
        else:
            doc_id, version = item.prepared.document.doc_id, item.prepared.document.version
        attempt = self._attempts.get(doc_id)
        if attempt is None or attempt.ended:
            self.fail("I12", doc_id, f"a write is sent to the {store} store although no repair runs")
            job = RepairJob(id="none", doc_id=doc_id, strategy=SyncStrategy.MANUAL_RESOLUTION)
            attempt = Attempt(0, 0, 0, Story(doc_id, job, None, resolves=False), self._seq)
        send = Send(self._seq, store, doc_id, item.token, version, attempt.story)
        attempt.sends.append(send)
        attempt.story.sends.append(send)
        if not any(look.view.token == send.token for look in attempt.views(store)):
            self.fail("I1", doc_id, f"a write names a state of the {store} store that this attempt has not seen")
        if store in CRITICAL:
            self._judge_send(send, attempt)
        elif version is not None and not any(
            is_same(look.view.version, version) for name in CRITICAL for look in attempt.views(name)
        ):
            self.fail(
                "I1", doc_id, f"the cache is to hold {said_version(version)}, which no critical store was seen to hold"
            )
        return send

    def _judge_send(self, send: Send, attempt: Attempt) -> None:
        story = attempt.story
        if send.version is None:
            self.fail("I2", send.doc_id, f"the copy in the {send.store} store is to be removed without a trace")
        elif story.plan is not None:
            send.deletes = send.version.deleted
            if not any(write.store == send.store and write.token == send.token for write in story.plan.writes):
                self.fail("I7", send.doc_id, f"the plan has no such write of the {send.store} store")
            elif not is_same(story.plan.version, send.version):
                self.fail(
                    "I7",
                    send.doc_id,
                    f"the plan says {said_version(story.plan.version)}, not {said_version(send.version)}",
                )
        elif story.resolves:
            send.deletes = send.version.deleted
        else:
            self._judge_strategy(send, attempt, send.version)

    def _judge_strategy(self, send: Send, attempt: Attempt, version: DocumentVersion) -> None:
        if not version.deleted:
            for store in CRITICAL:
                latest = attempt.views(store)[:1]
                for look in latest:
                    if look.view.presence is Presence.TOMBSTONE and not is_above(version, look.view.version):
                        self.fail("I3", send.doc_id, f"{said_version(version)} would override the tombstone in {store}")
        judgements: list[Judgement] = []
        for text in attempt.views("text"):
            for vector in attempt.views("vector"):
                seen = text if send.store == "text" else vector
                for now in {text.wall: None, vector.wall: None, self._wall(): None}:
                    judgement = self.rules.judge(text.view, vector.view, attempt.story.strategy, now=now)
                    judgements.append(judgement)
                    if (
                        judgement.decidable
                        and send.store in judgement.lagging
                        and is_same(judgement.version, version)
                        and seen.view.token == send.token
                    ):
                        send.deletes = judgement.action == "delete"
                        return
        if not any(judgement.decidable for judgement in judgements):
            self.fail("I6", send.doc_id, f"nobody can decide this, and {send.store} is to hold {said_version(version)}")
        elif version.deleted and not any(judgement.action == "delete" for judgement in judgements):
            self.fail("I4", send.doc_id, f"there is no reason to delete the copy in the {send.store} store")
        else:
            self.fail(
                "I1", send.doc_id, f"that {send.store} is to hold {said_version(version)} follows from nothing seen"
            )

    # What the stores do

    def changed(
        self, store: str, doc_id: str, author: str, record: Any, before: Observation, after: Observation
    ) -> None:
        """What a store holds has changed."""
        self.note(doc_id, f"{store}: {author} puts {said_view(after)} over {said_view(before)}")
        if author == "crash":
            self._checker.may_go_back(store)
        if author == "app" and self.is_repairing(doc_id):
            self.count(Mishap.WRITE_DURING_REPAIR)
        if author != "engine":
            return
        if not self.restless:
            self.fail("I11", doc_id, f"a run over consistent stores wrote to {store}")
        send: Send = record
        send.story.effects[store] += 1
        send.story.last_effect[store] = after
        if send.token != before.token:
            self.fail("I1", doc_id, f"a write displaced a state of the {store} store that it did not name")
        if store not in CRITICAL:
            return
        resolves = send.story.resolves or (send.story.plan is not None and send.story.plan.strategy is None)
        if (
            is_readable(before)
            and not is_readable(after)
            and not (send.deletes and after.presence is Presence.TOMBSTONE)
        ):
            self.fail("I2", doc_id, f"the {store} store lost its readable copy, and no delete was decided")
        tombstone = before.presence is Presence.TOMBSTONE and after.presence is Presence.LIVE
        if tombstone and not resolves and not is_above(after.version, before.version):
            self.fail("I3", doc_id, f"the tombstone in the {store} store was overridden by {said_view(after)}")
        ordered = send.story.plan is None and not resolves and send.story.strategy is SyncStrategy.MOST_RECENT
        if ordered and rank(after.version) < rank(before.version):
            self.fail("I1", doc_id, f"the number in the {store} store went down under MOST_RECENT")

    def rival(self, store: MemoryStore, doc_id: str) -> None:
        """The application writes just now."""
        self.write_as_rival(store, doc_id)

    # What is claimed

    def _judge_result(self, result: RepairResult, job: Job) -> None:
        story = job.story
        if story is None:
            if result.success or any(step.state is not StepState.UNTOUCHED for step in result.receipt):
                self.fail("I8", result.doc_id, f"{result.outcome.value} or touched, and never started")
            return
        attempt = story.attempts[-1]
        if result.success:
            self._judge_success(result, attempt)
        elif attempt.ended and result.outcome is not RepairOutcome.NEEDS_MANUAL:
            self._judge_failure(result, attempt)
        if result.outcome is RepairOutcome.NEEDS_MANUAL:
            self._judge_manual(result, attempt)
        if result.source not in (None, *CRITICAL):
            self.fail("I8", result.doc_id, f"the {result.source} is given as the source")
        for step in result.receipt:
            self._judge_step(result, step, story)

    def _judge_success(self, result: RepairResult, attempt: Attempt) -> None:
        for store in CRITICAL:
            look = next(iter(attempt.views(store)), None)
            writes = [send.seq for send in attempt.sends if send.store == store]
            if look is None or (writes and look.asked < writes[-1]):
                self.fail("I8", result.doc_id, f"{result.outcome.value}, and {store} was not read back")
            elif not any(
                self.rules.right(store, seen.view, result.version) and (not writes or seen.asked > writes[-1])
                for seen in attempt.views(store)
            ):
                self.fail(
                    "I8", result.doc_id, f"{result.outcome.value}, and {store} was seen with {said_view(look.view)}"
                )

    def _judge_failure(self, result: RepairResult, attempt: Attempt) -> None:
        """It did not succeed, so it was not read back equal after all its writes had ended."""
        writes = [send for send in attempt.sends if send.store in CRITICAL]
        if not writes or any(send.ended is None for send in writes):
            return
        ended = max(send.ended for send in writes if send.ended is not None)
        after = {store: [look for look in attempt.views(store) if look.asked > ended] for store in CRITICAL}
        if not all(after.values()) or len(after["text"]) != len(after["vector"]):
            return
        if all(self.rules.right(store, after[store][0].view, writes[-1].version) for store in CRITICAL):
            self.fail("I8", result.doc_id, f"{result.outcome.value}, although the stores were read back equal")

    def _judge_manual(self, result: RepairResult, attempt: Attempt) -> None:
        """Left to a person only what the table leaves to a person, or what a source could not give."""
        story = attempt.story
        if story.plan is not None or story.resolves or self.faults:
            return
        for text in attempt.views("text"):
            for vector in attempt.views("vector"):
                for now in {text.wall: None, vector.wall: None, self._wall(): None}:
                    if not self.rules.judge(text.view, vector.view, story.strategy, now=now).decidable:
                        return
        self.fail("I6", result.doc_id, "left to a person, and the table decides it")

    def _judge_step(self, result: RepairResult, step: ReceiptStep, story: Story) -> None:
        store, state = step.store, step.state
        sent = any(send.store == store for send in story.sends)
        said = f"{store} is said to be {state.value}"
        if state is StepState.UNTOUCHED and sent:
            self.fail("I8", result.doc_id, f"{said}, and was sent a write")
        if state is StepState.CONSISTENT and story.effects[store] and step.detail is None:
            self.fail("I8", result.doc_id, f"{said}, and was changed by this job")
        if state in (StepState.VERIFIED, StepState.UNKNOWN) and not sent:
            self.fail("I8", result.doc_id, f"{said}, and was never sent a write")
        if state in (StepState.APPLIED, StepState.INVALIDATED) and not story.effects[store]:
            self.fail("I8", result.doc_id, f"{said}, and was not changed by this job")
        left = story.last_effect.get(store)
        if state is StepState.INVALIDATED and left is not None and left.presence is not Presence.ABSENT:
            self.fail("I8", result.doc_id, f"{said}, and the job left {said_view(left)} there")
        if store in result.updated_systems and not sent:
            self.fail("I8", result.doc_id, f"{store} is among the updated systems, and was never sent a write")
