"""The log told attempt by attempt: what each one saw, asked for and brought about."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import attrs

from trio_repair import (
    DocumentVersion,
    EventKind,
    Observation,
    RepairJob,
    RepairPlan,
    RepairResult,
    SyncStrategy,
)

from .oracle import Verdict, judge
from .recording import AttemptBegan, AttemptEnded, Began, Call, Effect, Ended, Happened
from .trace import Trace


@attrs.frozen
class Look:
    index: int
    asked_at: int
    """Where in the log the call began."""
    store: str
    view: Observation


@attrs.frozen
class Sent:
    index: int
    store: str
    operation: str
    token: str
    version: DocumentVersion | None
    call: Call


@attrs.define
class Attempt:
    """From its beginning to that of the next one of its document: what its writes do late is still its own."""

    doc_id: str
    jobs: tuple[RepairJob, ...]
    began: int
    began_at: float
    ended: int | None = None
    ended_at: float = 0.0
    timed_out: bool = False
    looks: list[Look] = attrs.field(factory=list)
    sent: list[Sent] = attrs.field(factory=list)
    ended_calls: dict[Call, int] = attrs.field(factory=dict)
    effects: list[tuple[int, Effect]] = attrs.field(factory=list)
    cache_reads: int = 0

    @property
    def strategy(self) -> SyncStrategy:
        return self.jobs[0].strategy

    @property
    def resolves(self) -> bool:
        return not self.jobs[0].id.startswith("job-")

    def looks_at(self, store: str, *, before: int | None = None) -> list[Observation]:
        return [look.view for look in self.looks if look.store == store and (before is None or look.index < before)]

    def plan(self, trace: Trace) -> RepairPlan | None:
        return trace.plans.get(self.jobs[0].id)

    def follows_strategy(self, trace: Trace) -> bool:
        return not self.resolves and self.plan(trace) is None

    def verdicts(
        self, trace: Trace, *, before: int | None = None
    ) -> Iterator[tuple[Observation, Observation, Verdict]]:
        """What the table says of each two things that it saw."""
        texts = {view.token: view for view in self.looks_at("text", before=before)}
        vectors = {view.token: view for view in self.looks_at("vector", before=before)}
        for text, vector in itertools.product(texts.values(), vectors.values()):
            yield text, vector, verdict_on(trace, text, vector, self.strategy)


def verdict_on(trace: Trace, text: Observation, vector: Observation, strategy: SyncStrategy) -> Verdict:
    absent = {name: store.traits.absent for name, store in trace.stores.items()}
    return judge(text, vector, strategy, absent=absent, missing_source=trace.scenario.config.missing_source)


def attempts(trace: Trace) -> list[Attempt]:
    told: list[Attempt] = []
    current: dict[str, Attempt] = {}
    starting: dict[str, list[RepairJob]] = {}
    began: dict[Call, int] = {}
    for index, entry in enumerate(trace.first()):
        match entry:
            case Happened() if entry.event.kind is EventKind.STARTED:
                assert entry.event.doc_id is not None and entry.event.job is not None
                starting.setdefault(entry.event.doc_id, []).append(entry.event.job)
            case AttemptBegan():
                jobs = tuple(starting.pop(entry.doc_id))
                attempt = Attempt(entry.doc_id, jobs, index, entry.at)
                current[entry.doc_id] = attempt
                told.append(attempt)
            case AttemptEnded():
                attempt = current[entry.doc_id]
                attempt.ended, attempt.ended_at, attempt.timed_out = index, entry.at, entry.timed_out
            case Began():
                call = entry.call
                began[call] = index
                for doc_id, token, version in zip(call.doc_ids, call.tokens, call.versions, strict=True):
                    if call.operation in ("write", "remove") and token is not None:
                        sent = Sent(index, call.store, call.operation, token, version, call)
                        current[doc_id].sent.append(sent)
                    elif call.operation == "read" and call.store == "cache":
                        current[doc_id].cache_reads += 1
            case Ended():
                call = entry.call
                for position, doc_id in enumerate(call.doc_ids):
                    attempt = current[doc_id]
                    attempt.ended_calls[call] = index
                    if (
                        call.operation == "observe"
                        and entry.answers is not None
                        and len(entry.answers) == len(call.doc_ids)
                    ):
                        answer = entry.answers[position]
                        if isinstance(answer, Observation) and began[call] > attempt.began:
                            attempt.looks.append(Look(index, began[call], call.store, answer))
            case Effect() if entry.author == "engine":
                current[entry.doc_id].effects.append((index, entry))
    return told


@attrs.define
class JobStory:
    job: RepairJob
    accepted: int
    results: list[RepairResult] = attrs.field(factory=list)
    settled: int | None = None
    settled_at: float = 0.0
    attempts: list[Attempt] = attrs.field(factory=list)

    @property
    def result(self) -> RepairResult:
        return self.results[0]

    @property
    def ended_with_its_attempt(self) -> bool:
        """It was not withdrawn from a repair that others go on waiting for."""
        last = self.attempts[-1].ended if self.attempts else None
        return last is not None and self.settled is not None and last < self.settled


def job_stories(trace: Trace) -> dict[str, JobStory]:
    stories: dict[str, JobStory] = {}
    for index, entry in enumerate(trace.first()):
        if not isinstance(entry, Happened) or entry.event.job is None:
            continue
        job = entry.event.job
        if entry.event.kind is EventKind.ACCEPTED:
            assert job.id not in stories, f"{job.id} was accepted twice"
            stories[job.id] = JobStory(job, index)
        elif entry.event.kind is EventKind.SETTLED:
            assert entry.event.result is not None
            stories[job.id].results.append(entry.event.result)
            stories[job.id].settled, stories[job.id].settled_at = index, entry.at
    for attempt in attempts(trace):
        for job in attempt.jobs:
            stories[job.id].attempts.append(attempt)
    return stories
