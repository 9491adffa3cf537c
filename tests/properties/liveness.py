"""The invariants of bookkeeping, time and structure, as functions that read a trace and raise AssertionError."""

from __future__ import annotations

from collections import Counter

from trio_repair import RepairOutcome

from .recording import AttemptBegan, AttemptEnded, Began, Call, Ended, Happened, LimitSet, Sampled
from .scenario import Cancel, Cleanup, Pause, Stream
from .story import attempts, job_stories
from .trace import Trace

EPSILON = 1e-6


def check_i09(trace: Trace) -> None:
    """Conservation: the totals add up at every step, and each accepted job gets exactly one result."""
    for entry in trace.first():
        if isinstance(entry, Sampled):
            said = entry.statistics
            assert said.accepted == sum(said.outcomes.values()) + said.queued + said.active, said
    said = trace.statistics
    stories = job_stories(trace)
    assert said.accepted == len(stories) == sum(said.outcomes.values())
    for story in stories.values():
        assert len(story.results) == 1, f"{story.job.id} has {len(story.results)} results"
        assert story.job.id == story.result.job_id
    outcomes = Counter(result.outcome for result in trace.results)
    assert {outcome: outcomes[outcome] for outcome in RepairOutcome} == dict(said.outcomes)
    for job_id, handle in trace.handles.items():
        assert handle.result is stories[job_id].result
    for caller in trace.callers:
        if caller.result is not None:
            assert caller.result is stories[caller.job_id].result
    streamed = Counter(result.job_id for result in trace.streamed)
    assert not streamed or set(streamed.values()) == {1}
    for story in stories.values():
        assert story.result.attempts <= len(story.attempts), story.result
        if story.ended_with_its_attempt and trace.scenario.config.settle == 0:
            assert story.result.attempts <= 1 + story.job.max_retries + trace.scenario.config.max_reobserve + 1


def check_i12(trace: Trace) -> None:
    """Never two running repairs of one document, not even one that only a store still works on."""
    running: set[str] = set()
    writing: dict[Call, None] = {}
    for entry in trace.first():
        match entry:
            case AttemptBegan():
                assert entry.doc_id not in running, f"{entry.doc_id} runs twice"
                running.add(entry.doc_id)
                busy = [call for call in writing if entry.doc_id in call.doc_ids]
                assert not busy, f"{entry.doc_id} runs while {busy[0]} of an earlier repair is under way"
            case AttemptEnded():
                running.remove(entry.doc_id)
            case Began() if entry.call.operation in ("write", "remove"):
                for call in writing:
                    both = set(call.doc_ids) & set(entry.call.doc_ids)
                    assert call.store != entry.call.store or not both, f"two writes of {both} under way"
                writing[entry.call] = None
            case Ended():
                writing.pop(entry.call, None)
    assert not running


def check_i13(trace: Trace) -> None:
    """No repair starts while as many run as the limit in force allows."""
    running, limit, limit_before, changed_at = 0, 0, 0, -1.0
    for entry in trace.first():
        match entry:
            case LimitSet():
                # A slot that was taken in the same instant, under the limit of that moment, is taken.
                limit_before = max(limit, limit_before) if changed_at == entry.at else limit
                limit, changed_at = entry.value, entry.at
            case AttemptBegan():
                running += 1
                allowed = max(limit, limit_before) if changed_at == entry.at else limit
                assert running <= allowed, f"{running} run at {entry.at}, {allowed} may"
            case AttemptEnded():
                running -= 1


def check_i15(trace: Trace) -> None:
    """What is past its timeout is not active; nothing outlives the engine; what timed out does not run again."""
    scenario = trace.scenario
    stubborn = max(scenario.stubborn.values(), default=0.0)
    for entry in trace.first():
        if isinstance(entry, Happened):
            assert not entry.late, f"{entry.late} active at {entry.at}, past their time"
    for attempt in attempts(trace):
        assert attempt.ended is not None
        timeout = attempt.jobs[0].timeout
        allowed = scenario.config.job_timeout_seconds if timeout is None else timeout
        allowed += scenario.stubborn.get(attempt.doc_id, 0.0)
        assert attempt.ended_at - attempt.began_at <= allowed + EPSILON, f"{attempt.doc_id} ran past its timeout"
    for story in job_stories(trace).values():
        for attempt in story.attempts[:-1]:
            assert not attempt.timed_out, f"{story.job.id} ran again after it had timed out"
        if story.result.outcome is RepairOutcome.TIMED_OUT and story.attempts and story.job.deadline is None:
            assert story.attempts[-1].timed_out, f"{story.job.id} is said to have timed out"
    cleaned = [job_id for ids in trace.cleaned for job_id in ids]
    assert sorted(set(cleaned)) == sorted(cleaned), f"cleaned up twice: {cleaned}"
    for story in (job_stories(trace)[job_id] for job_id in cleaned):
        excused = story.result.success or story.result.outcome is RepairOutcome.CANCELLED
        if not excused and story.job.doc_id not in scenario.raising:
            assert story.attempts[-1].timed_out, f"cleaned up in time: {story.result}"
    called: set[Call] = set()
    for entry in trace.first():
        if isinstance(entry, Began):
            called.add(entry.call)
        elif isinstance(entry, Ended):
            called.remove(entry.call)
    assert not called, f"calls outlive the engine: {called}"
    said = trace.statistics
    assert (0, 0, 0, 0, 0) == (said.queued, said.active, said.running, said.overdue, said.locked), said
    assert trace.tasks_left == 0
    took = trace.ended_at - trace.ending_at
    allowed = scenario.config.grace + stubborn
    if scenario.ending == "drain":
        allowed += scenario.config.drain_timeout
    assert took <= allowed + EPSILON, f"closing took {took} s"


def check_i16(trace: Trace) -> None:
    """One repair's exception stays its own; Cancelled is never swallowed; an error beside a timeout is kept."""
    scenario = trace.scenario
    assert trace.escaped is None, repr(trace.escaped)
    if scenario.ending == "cancel":
        assert trace.host_cancelled, "the host's Cancelled did not come out"
    stories = job_stories(trace)
    for caller in trace.callers:
        ways = [caller.result is not None, caller.left, caller.refused]
        assert ways.count(True) == 1, f"{caller} left its call in {ways.count(True)} ways"
        if caller.left and caller.job_id in stories:
            assert stories[caller.job_id].results, f"{caller} left without its job being settled"
    for story in stories.values():
        result = story.result
        raised = story.attempts and scenario.raising & {story.job.doc_id}
        if raised and story.ended_with_its_attempt:
            assert RepairOutcome.FAILED is result.outcome
            assert "internal error: RuntimeError was raised" == result.error
        elif not scenario.raising_late & {story.job.doc_id}:
            assert "internal error" not in str(result.error), f"hit by a sibling's error: {result}"
        hurt = scenario.raising_late & {story.job.doc_id} and story.ended_with_its_attempt
        if hurt and result.outcome is RepairOutcome.TIMED_OUT and story.attempts[-1].timed_out:
            assert "RuntimeError was raised" in str(result.error), f"the error beside the timeout is lost: {result}"
    withdrawing = any(
        isinstance(step, (Cancel, Pause, Cleanup, Stream)) or getattr(step, "withdraw_after", None) is not None
        for step in scenario.program
    )
    if scenario.ending == "drain" and not withdrawing and scenario.config.drain_timeout >= 60 and not scenario.faults:
        for story in stories.values():
            assert RepairOutcome.CANCELLED is not story.result.outcome, f"cancelled by nobody: {story.result}"


def check_i19(trace: Trace, marker: str) -> None:
    """Neither errors nor reprs nor logs hold document text."""
    said = list(trace.said)
    for entry in trace.first():
        if isinstance(entry, Happened):
            said += [str(entry.event), repr(entry.event)]
            result = entry.event.result
            if result is not None:
                said += [str(result.error), *result.warnings, *(str(step.detail) for step in result.receipt)]
        elif isinstance(entry, Ended):
            for answer in entry.answers if entry.answers is not None else ():
                said.append(repr(answer))
    said += [repr(trace.statistics), *(repr(handle.result) for handle in trace.handles.values())]
    said += [repr(trace.plans), repr(list(trace.before.values()))]
    for text in said:
        assert marker not in text, f"document text is told: {text}"
