"""Every law can fail: each finds the bugs that are planted for it, one line of the engine at a time."""

from __future__ import annotations

import pytest

from .laws import LAWS, finds
from .planted import Bug, planted

_EXECUTION = "_execution:Repairer"
_ENGINE = "_supervisor:Supervisor"
_BATCHER = "_batching:Batcher"

BUGS: list[tuple[str, Bug]] = [
    (
        "i01 contended",
        Bug(
            "the batcher ignores the fence",
            f"{_BATCHER}.write",
            "new_write(prepared, token)",
            "new_write(prepared, self.store.held_token(doc_id))",
        ),
    ),
    (
        "i01",
        Bug(
            "the lower number wins",
            "_planning:_later_copy",
            "rank(text.number) > rank(vector.number)",
            "rank(text.number) < rank(vector.number)",
        ),
    ),
    (
        "i02",
        Bug(
            "what cannot be read is deleted",
            f"{_EXECUTION}._content",
            'raise Ended(Verdict(RepairOutcome.NEEDS_MANUAL, f"{MANUAL_REASON}: {why}"))',
            "return Document.tombstone(doc_id, number=0)",
        ),
    ),
    (
        "i02",
        Bug(
            "delete, then insert",
            f"{_EXECUTION}._write_critical",
            "progress.phase = _WRITE",
            "[self._batchers[write.store].remove(plan.doc_id, write.token, Gather(1)) for write in plan.writes]",
        ),
    ),
    (
        "i03",
        Bug(
            "a tie is won by the copy",
            "_planning:_most_recent",
            "live_number > deleted_number",
            "live_number >= deleted_number",
        ),
    ),
    ("i03", Bug("> instead of >=", "_planning:_trust", "if deleted >= live:", "if deleted > live:")),
    (
        "i04",
        Bug(
            "unreachable is absent",
            f"{_EXECUTION}._observe_critical",
            "failures.append(answer)",
            "views[name] = Observation(presence=plan_repair.__globals__['Presence'].ABSENT, token='absent')",
        ),
    ),
    (
        "i04",
        Bug("absence deletes", "_planning:_trust", 'if policy.missing_source == "delete":', "if True:"),
    ),
    (
        "i05 blocked",
        Bug(
            "one store is written before the other is ready",
            f"{_EXECUTION}._write_critical",
            """        if failures:
            raise Ended(worst(failures))

        progress.phase""",
            """        plan = attrs.evolve(plan, writes=tuple(write for write in plan.writes if write.store in prepared))
        progress.phase""",
        ),
    ),
    (
        "i06",
        Bug(
            "a conflict is won by the text store",
            "_planning:_later_copy",
            'return _manual(views, "the same version with different content")',
            "return _copy(text)",
        ),
    ),
    (
        "i07",
        Bug(
            "the plan is made anew",
            f"{_EXECUTION}._decide",
            "plan = mission.plan\n",
            "plan = plan_repair(doc_id, views, mission.strategy, self._policy, now=0.0)\n",
        ),
    ),
    (
        "i08",
        Bug(
            "confirmed without being read back",
            f"{_EXECUTION}._look_and_repair",
            "views = await self._read_back(doc_id, plan, progress)",
            "pass",
        ),
    ),
    (
        "i08",
        Bug(
            "unknown is said to be untouched",
            "_progress:StoreProgress.state",
            "return StepState.UNKNOWN",
            "return StepState.UNTOUCHED",
        ),
    ),
    (
        "i08",
        Bug(
            "the cache is a source",
            f"{_EXECUTION}._content",
            "for source in plan.sources:",
            "for source in ('cache', *plan.sources):",
        ),
    ),
    (
        "i09",
        Bug(
            "a result is counted twice",
            f"{_ENGINE}._settle",
            "outcomes[verdict.outcome] += 1",
            "outcomes[verdict.outcome] += 2",
        ),
    ),
    (
        "i09",
        Bug(
            "a withdrawn job gets no result",
            f"{_ENGINE}.withdraw",
            """            self.queue.discard(ticket)
            self._settle(ticket, verdict)""",
            """            self.queue.discard(ticket)""",
        ),
    ),
    ("i10", Bug("no bisection", f"{_BATCHER}._misbehaved", "if len(call.requests) > 1:", "if False:")),
    (
        "i11",
        Bug(
            "an equal cache entry is written again",
            "_planning:_cache_step",
            'if is_equal(cache, version, policy.traits["cache"]):',
            "if False:",
        ),
    ),
    (
        "i11",
        Bug(
            "a damaged copy counts as equal",
            "_divergence:is_equal",
            "if not observation.intact:",
            "if False:",
        ),
    ),
    ("i12", Bug("the document lock is dropped", "_queue:WorkQueue.lock", "slot.locked_by += tuple(stores)", "pass")),
    ("i12", Bug("a document runs twice", "_queue:WorkQueue.pop", "slot.running = entry", "slot.running = None")),
    (
        "i13",
        Bug(
            "a permit too many",
            f"{_ENGINE}.dispatch",
            "len(self.active) < self.limits.max_concurrent_jobs",
            "len(self.active) <= self.limits.max_concurrent_jobs",
        ),
    ),
    (
        "i13",
        Bug("a permit is not counted", "_active:ActiveTable.__len__", "len(self._entries)", "len(self._entries) // 2"),
    ),
    (
        "i14",
        Bug(
            "a call is given up late",
            f"{_BATCHER}._sent",
            "self._now() + self._config.store_call_timeout",
            "self._now() + 20 * self._config.store_call_timeout",
        ),
    ),
    (
        "i14 starvation",
        Bug(
            "priority without aging",
            "_queue:WorkQueue.add",
            "key = now + job.priority * self._aging",
            "key = job.priority",
        ),
    ),
    (
        "i15",
        Bug(
            "the timeout is not enforced",
            f"{_ENGINE}._supervise",
            "max(0.0, entry.timeout_at - self.now())",
            "max(0.0, entry.timeout_at + 1.0 - self.now())",
        ),
    ),
    (
        "i15",
        Bug(
            "a timeout is tried again",
            f"{_ENGINE}._verdict_without_one",
            "return Verdict(RepairOutcome.TIMED_OUT, error)",
            "return Verdict(RepairOutcome.TIMED_OUT, error, transient=True)",
        ),
    ),
    (
        "i15",
        Bug(
            "the grace period has no end", f"{_BATCHER}.close", "min(call.scope.deadline, grace_ends)", "grace_ends + 5"
        ),
    ),
    (
        "i16",
        Bug(
            "an exception leaves its repair",
            f"{_ENGINE}._supervise",
            "        except Exception as error:\n            failure = error",
            "        except ZeroDivisionError as error:\n            failure = error",
        ),
    ),
    (
        "i16",
        Bug(
            "Cancelled is swallowed",
            "_engine:RepairExecutionEngine._wait_or_withdraw",
            "handle.cancel()\n            raise",
            "handle.cancel()\n            return handle.result",
        ),
    ),
    (
        "i16",
        Bug(
            "the error beside a timeout is lost",
            f"{_ENGINE}._verdict_without_one",
            'error = TIMED_OUT_ERROR if beside is None else f"{TIMED_OUT_ERROR}; {beside}"',
            "error = TIMED_OUT_ERROR",
        ),
    ),
    (
        "i18",
        Bug(
            "ids are tidied up",
            f"{_BATCHER}.observe",
            "Request(_OBSERVE, doc_id, doc_id, gather)",
            "Request(_OBSERVE, doc_id, doc_id.strip().lower() or doc_id, gather)",
        ),
    ),
    (
        "i19",
        Bug(
            "a driver's error is told",
            f"{_BATCHER}._finish",
            'f"{call.operation.value} raised {type(failure).__name__}"',
            'f"{call.operation.value} raised {failure}"',
        ),
    ),
]


@pytest.mark.parametrize(("law", "bug"), BUGS, ids=[f"{law}-{bug}".replace(" ", "-") for law, bug in BUGS])
def test_control_each_law_finds_its_planted_bugs(law: str, bug: Bug) -> None:
    """The same check that passes for the engine fails for the engine with this bug."""
    with planted(bug):
        assert finds(LAWS[law]), f"{law} holds although {bug}"


def test_control_laws_hold_without_a_planted_bug() -> None:
    """The search itself finds nothing in the engine as it is."""
    assert not finds(LAWS["i01 contended"], examples=30)
