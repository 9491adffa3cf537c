"""Planted bugs by name: what each one breaks, and which check must find it within how many seeds or examples.

A mutant is the engine's own source with one place changed, for as long as a `with` block lasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
from properties.planted import Bug, planted

HOURS = 4.0
"""Simulated hours of each run."""


@attrs.frozen(kw_only=True)
class Mutant:
    name: str
    breaks: str
    """What users would see."""
    invariants: tuple[str, ...]
    """By which of these a checker must find it; a wrong engine often breaks several promises at once."""
    where: str
    """``module:function`` or ``module:Class.method``, within trio_repair."""
    old: str
    """What stands there exactly once."""
    new: str
    seeds: int = 40
    """So many simulated runs of `HOURS` are enough to find it, wherever they begin."""
    first_seed: int = 1
    """Where the search begins; chosen so that it does not take long."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        with planted(Bug(self.name, self.where, self.old, self.new)):
            yield


_EXECUTION = "_execution:Repairer"
_ENGINE = "_supervisor:Supervisor"


def _mutants() -> Iterator[Mutant]:
    yield Mutant(
        name="fence-ignored",
        breaks="a repair overwrites what the application wrote meanwhile",
        invariants=("I1", "I2", "I3"),
        where="stores.memory:MemoryStore._change",
        old="if expected != (current.token if held is None else held[doc_id]):",
        new="if False:",
        first_seed=4,
    )
    yield Mutant(
        name="lower-number-wins",
        breaks="MOST_RECENT restores the older text",
        invariants=("I1",),
        where="_planning:_later_copy",
        old="rank(text.number) > rank(vector.number)",
        new="rank(text.number) < rank(vector.number)",
    )
    yield Mutant(
        name="delete-then-insert",
        breaks="between the two nobody can find the document, and for good if the second one fails",
        invariants=("I1", "I2", "I12"),
        where=f"{_EXECUTION}._write_critical",
        old="progress.phase = _WRITE",
        new="[self._batchers[write.store].remove(plan.doc_id, write.token, Gather(1)) for write in plan.writes]",
    )
    yield Mutant(
        name="tombstone-tie-lost",
        breaks="MOST_RECENT brings a deleted document back, where copy and tombstone have one number",
        invariants=("I3",),
        where="_planning:_most_recent",
        old="live_number > deleted_number",
        new="live_number >= deleted_number",
    )
    yield Mutant(
        name="tombstone-tie-overridden",
        breaks="a source of truth overrides a tombstone of the same number, which only a person may do",
        invariants=("I3",),
        where="_planning:_trust",
        old="if deleted >= live:",
        new="if deleted > live:",
        first_seed=11,
        seeds=80,
    )
    yield Mutant(
        name="unreachable-is-absent",
        breaks="a store that does not answer is taken for an empty one",
        invariants=("I1", "I4", "I6"),
        where=f"{_EXECUTION}._observe_critical",
        old="failures.append(answer)",
        new="views[name] = Observation(presence=plan_repair.__globals__['Presence'].ABSENT, token='absent')",
    )
    yield Mutant(
        name="absence-deletes",
        breaks="a document that the source of truth lacks is deleted without anybody having asked for that",
        invariants=("I4", "I6"),
        where="_planning:_trust",
        old='if policy.missing_source == "delete":',
        new="if True:",
    )
    yield Mutant(
        name="conflict-decided",
        breaks="of two texts with one number, one is thrown away without a person",
        invariants=("I6",),
        where="_planning:_later_copy",
        old='return _manual(views, "the same version with different content")',
        new="return _copy(text)",
        first_seed=4,
    )
    yield Mutant(
        name="skew-ignored",
        breaks="clocks that are seconds apart decide which text is newer",
        invariants=("I6",),
        where="_planning:_untrusted_time",
        old='if policy.numbers != "hlc":',
        new="if True:",
    )
    yield Mutant(
        name="plan-made-anew",
        breaks="a plan that somebody has read and approved is not what is done",
        invariants=("I7",),
        where=f"{_EXECUTION}._decide",
        old="plan = mission.plan\n",
        new="plan = plan_repair(doc_id, views, mission.strategy, self._policy, now=0.0)\n",
        first_seed=16,
        seeds=80,
    )
    yield Mutant(
        name="verification-skipped",
        breaks="success is reported without a look at what the stores hold",
        invariants=("I8",),
        where=f"{_EXECUTION}._look_and_repair",
        old="views = await self._read_back(doc_id, plan, progress)",
        new="pass",
    )
    yield Mutant(
        name="unknown-is-untouched",
        breaks="a receipt denies a write that was sent and may have landed",
        invariants=("I8",),
        where="_progress:StoreProgress.state",
        old="return StepState.UNKNOWN",
        new="return StepState.UNTOUCHED",
        first_seed=10,
    )
    yield Mutant(
        name="disproved-too-soon",
        breaks="a write that a driver still works on is said to have failed, and lands afterwards",
        invariants=("I8",),
        where=f"{_EXECUTION}._read_back",
        old="last.disproved = last.ended",
        new="last.disproved = True",
        first_seed=52,
        seeds=80,
    )
    yield Mutant(
        name="given-up-is-failed",
        breaks="a write that was given up is said to have had no effect",
        invariants=("I8",),
        where="_batching:Batcher._fail",
        old="WriteAnswer(status=WriteStatus.UNKNOWN, error=error) if effect else error",
        new="error",
    )
    yield Mutant(
        name="found-and-not-owned",
        breaks="a write that got no verdict and is found to have landed is told as nobody's",
        invariants=("I8",),
        where="_progress:StoreProgress.confirm",
        old="self.landed = True",
        new="pass",
    )
    yield Mutant(
        name="cache-is-a-source",
        breaks="a stale cache entry is copied over the stores",
        invariants=("I8",),
        where=f"{_EXECUTION}._content",
        old="for source in plan.sources:",
        new="for source in ('cache', *plan.sources):",
    )
    yield Mutant(
        name="settled-twice",
        breaks="instruments count a job twice",
        invariants=("I9",),
        where=f"{_ENGINE}._settle",
        old="            self._emit(EventKind.SETTLED, doc_id=job.doc_id, job=job, result=result)\n",
        new="            self._emit(EventKind.SETTLED, doc_id=job.doc_id, job=job, result=result)\n"
        "            self._emit(EventKind.SETTLED, doc_id=job.doc_id, job=job, result=result)\n",
    )
    yield Mutant(
        name="outcome-not-counted",
        breaks="the totals of statistics() do not add up",
        invariants=("I9",),
        where=f"{_ENGINE}._settle",
        old="self.outcomes[verdict.outcome] += 1",
        new="self.outcomes[verdict.outcome] += verdict.outcome.success",
    )
    yield Mutant(
        name="withdrawn-job-forgotten",
        breaks="whoever waits for a job that was withdrawn from the queue waits for ever",
        invariants=("I9", "I14", "I15", "I16"),
        where=f"{_ENGINE}.withdraw",
        old="            self.queue.discard(ticket)\n            self._settle(ticket, verdict)\n",
        new="            self.queue.discard(ticket)\n",
    )
    yield Mutant(
        name="endless-retries",
        breaks="a job goes on for ever against a store that is down",
        invariants=("decision 10",),
        where=f"{_ENGINE}._delay_before_next_attempt",
        old="job.retry_count + entry.retries >= job.max_retries",
        new="job.retry_count + entry.retries >= 50",
    )
    yield Mutant(
        name="endless-looks",
        breaks="a document that never rests keeps a slot for itself",
        invariants=("decision 10",),
        where=f"{_EXECUTION}._attempt",
        old="self._config.max_reobserve if entry",
        new="50 if entry",
        first_seed=17,
        seeds=80,
    )
    yield Mutant(
        name="timeout-retried",
        breaks="a repair that hangs is tried again and again, each time to its timeout",
        invariants=("decision 5",),
        where=f"{_ENGINE}._verdict_without_one",
        old="return Verdict(RepairOutcome.TIMED_OUT, error)",
        new="return Verdict(RepairOutcome.TIMED_OUT, error, transient=True)",
    )
    yield Mutant(
        name="timeout-not-enforced",
        breaks="a repair outlasts the time that it was given",
        invariants=("I15",),
        where=f"{_ENGINE}._supervise",
        old="trio.move_on_after(max(0.0, entry.timeout_at -",
        new="trio.move_on_after(max(0.0, entry.timeout_at + 1.0 -",
    )
    yield Mutant(
        name="damage-counts-as-equal",
        breaks="a copy that has lost rows is left as it is, and called consistent",
        invariants=("I8", "I11"),
        where="_divergence:is_equal",
        old="if not observation.intact:",
        new="if False:",
        first_seed=7,
    )
    yield Mutant(
        name="old-embedding-counts-as-equal",
        breaks="vectors of two models are mixed in one index",
        invariants=("I8", "I11"),
        where="_divergence:is_equal",
        old="(traits.embedding is None or observation.embedding == traits.embedding)",
        new="True",
        first_seed=20,
        seeds=80,
    )
    yield Mutant(
        name="cache-written-for-ever",
        breaks="each run writes every cache entry again",
        invariants=("I11",),
        where="_planning:_cache_step",
        old='if is_equal(cache, version, policy.traits["cache"]):',
        new="if False:",
        first_seed=4,
    )
    yield Mutant(
        name="lock-dropped",
        breaks="a second repair starts while a store still works on a write of the first",
        invariants=("I12", "I16"),
        where="_queue:WorkQueue.lock",
        old="slot.locked_by += tuple(stores)",
        new="pass",
        first_seed=19,
        seeds=80,
    )
    yield Mutant(
        name="document-runs-twice",
        breaks="two repairs of one document race each other",
        invariants=("I9", "I12", "I16"),
        where="_queue:WorkQueue.pop",
        old="slot.running = entry",
        new="slot.running = None",
    )
    yield Mutant(
        name="permit-too-many",
        breaks="one repair more runs than the limit allows",
        invariants=("I13",),
        where=f"{_ENGINE}.dispatch",
        old="len(self.active) < self.limits.max_concurrent_jobs",
        new="len(self.active) <= self.limits.max_concurrent_jobs",
    )
    yield Mutant(
        name="permit-leaked",
        breaks="slots are lost one by one, until nothing starts any more",
        invariants=("I9", "I14", "I15"),
        where="_active:ActiveTable.remove",
        old="self._entries.pop(entry, None)",
        new="self._entries.pop(None, None)",
    )
    yield Mutant(
        name="pause-ignored",
        breaks="repairs start while an operator has paused them",
        invariants=("I13",),
        where=f"{_ENGINE}.dispatch",
        old="while not self.paused and not self._aborted",
        new="while not self._aborted",
        first_seed=9,
    )
    yield Mutant(
        name="unlike-jobs-share",
        breaks="a job gets the result of a repair under another strategy",
        invariants=("decision 8",),
        where="_queue:WorkQueue.add",
        old="last.share_key == share_key",
        new="True",
    )
    yield Mutant(
        name="deadline-ignored-while-waiting",
        breaks="a job that waits is not given up at its deadline",
        invariants=("I15",),
        where=f"{_ENGINE}.accept",
        old="ticket.timer = self.timetable.at(deadline, self._deadline_passed, ticket)",
        new="pass",
        first_seed=4,
    )
    yield Mutant(
        name="breaker-stays-open",
        breaks="a store that was down once is never asked again",
        invariants=("I11", "I14"),
        where="_batching:Batcher._probe",
        old="self.breaker.half_open()",
        new="pass",
    )
    yield Mutant(
        name="cancelled-is-swallowed",
        breaks="a caller that is cancelled goes on as if it were not",
        invariants=("I16",),
        where="_engine:RepairExecutionEngine._wait_or_withdraw",
        old="handle.cancel()\n            raise",
        new="handle.cancel()\n            return handle.result",
    )


MUTANTS: dict[str, Mutant] = {mutant.name: mutant for mutant in _mutants()}

HELD: dict[Bug, tuple[str, str]] = {
    Bug(
        "lock-of-one-store",
        f"{_ENGINE}._ended",
        "[name for name, _request in outstanding]",
        "[outstanding[0][0]]",
    ): ("test_engine", "test_i12_writes_left_in_two_stores_lock_the_document_until_both_have_ended"),
    Bug(
        "seconds-of-the-last-attempt",
        f"{_ENGINE}._ended",
        "entry.running_seconds += now",
        "entry.running_seconds = now",
    ): ("test_engine", "test_running_seconds_are_those_of_all_attempts"),
    Bug(
        "verdict-not-told",
        "_progress:Progress._learn",
        "store.learn()",
        "pass",
    ): ("test_engine", "test_i8_a_companion_that_leaves_between_two_verdicts_is_told_of_the_first"),
    Bug(
        "last-companion-decides",
        "_queue:WorkQueue.add",
        "entry.key = min(entry.key, key)",
        "entry.key = key",
    ): ("test_queue", "test_a_companion_that_is_in_no_hurry_takes_no_urgency_away"),
}
"""Planted bugs that a simulation meets too seldom: the module and the name of the test that finds each."""
