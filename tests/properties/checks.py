"""The invariants of safety, each as a function that reads a trace and raises AssertionError."""

from __future__ import annotations

from trio_repair import (
    DocumentVersion,
    Observation,
    PlanAction,
    Presence,
    RepairOutcome,
    StepState,
    SyncStrategy,
)

from .oracle import is_right, number_of
from .recording import Effect
from .scenario import CRITICAL
from .story import Attempt, JobStory, Sent, attempts, job_stories
from .trace import Trace, injected


def rank(view: Observation) -> int:
    number = number_of(view)
    return -1 if number is None else number


def is_readable(view: Observation) -> bool:
    return view.presence is Presence.LIVE and view.intact


def _same(view: Observation, version: DocumentVersion | None) -> bool:
    """A store that holds this after a write was told to write that."""
    return (
        version is not None
        and view.version is not None
        and (
            view.version.number == version.number
            and view.version.deleted == version.deleted
            and (version.deleted or view.version.digest == version.digest)
        )
    )


def check_i01(trace: Trace) -> None:
    """No write lands on a state other than the one observed, and each follows from what was seen."""
    for attempt in attempts(trace):
        for index, effect in attempt.effects:
            assert effect.asked == effect.before.token, f"the fence of {effect.store} let through {effect}"
            seen = [view.token for view in attempt.looks_at(effect.store, before=index)]
            assert effect.asked in seen, f"displaced what was never observed: {effect}"
            if effect.store not in CRITICAL or not attempt.follows_strategy(trace):
                continue
            assert any(
                verdict.decidable
                and _same(effect.after, verdict.version)
                and effect.store in verdict.lagging
                and effect.asked == (text if effect.store == "text" else vector).token
                for text, vector, verdict in attempt.verdicts(trace, before=index)
            ), f"does not follow from what was seen: {effect}"
            if attempt.strategy is SyncStrategy.MOST_RECENT:
                assert rank(effect.after) >= rank(effect.before), f"a number decreased: {effect}"


def _decided_delete(trace: Trace, attempt: Attempt, index: int) -> bool:
    plan = attempt.plan(trace)
    if plan is not None:
        return plan.action is PlanAction.DELETE
    if attempt.resolves:
        return True
    return any(verdict.action == "delete" for _, _, verdict in attempt.verdicts(trace, before=index))


def check_i02(trace: Trace) -> None:
    """A critical store that had a readable copy keeps one, unless the decision is a delete."""
    for attempt in attempts(trace):
        for index, effect in attempt.effects:
            if effect.store in CRITICAL and is_readable(effect.before) and not is_readable(effect.after):
                assert effect.after.presence is Presence.TOMBSTONE, f"a copy vanished without a trace: {effect}"
                assert _decided_delete(trace, attempt, index), f"a copy was lost without a decision: {effect}"


def check_i03(trace: Trace) -> None:
    """Nothing at or below a tombstone's number is written over it, nor beside it in the other store."""
    for attempt in attempts(trace):
        if attempt.resolves:
            continue
        for _, effect in attempt.effects:
            revives = effect.before.presence is Presence.TOMBSTONE and effect.after.presence is Presence.LIVE
            if effect.store in CRITICAL and revives:
                assert None not in (number_of(effect.before), number_of(effect.after)), f"unordered: {effect}"
                assert rank(effect.after) > rank(effect.before), f"resurrected: {effect}"
        for sent in attempt.sent:
            if sent.store not in CRITICAL or sent.version is None or sent.version.deleted:
                continue
            for store in CRITICAL:
                latest = attempt.looks_at(store, before=sent.index)[-1]
                if latest.presence is Presence.TOMBSTONE:
                    assert sent.version.number is not None
                    assert sent.version.number > rank(latest), f"resurrected beside {latest}: {sent}"


def check_i04(trace: Trace) -> None:
    """Deletes happen only on a tombstone that was seen, or on an explicit setting for an absence that was seen."""
    source = {SyncStrategy.TEXT_SOURCE_OF_TRUTH: "text", SyncStrategy.VECTOR_SOURCE_OF_TRUTH: "vector"}
    for attempt in attempts(trace):
        if not attempt.follows_strategy(trace):
            continue
        for index, effect in attempt.effects:
            if effect.store not in CRITICAL or effect.after.presence is Presence.LIVE:
                continue
            seen = {name: attempt.looks_at(name, before=index) for name in CRITICAL}
            tombstone = any(view.presence is Presence.TOMBSTONE for views in seen.values() for view in views)
            absent = {name for name in CRITICAL if any(view.presence is Presence.ABSENT for view in seen[name])}
            if attempt.strategy is SyncStrategy.MOST_RECENT:
                allowed = any(trace.stores[name].traits.absent.value == "deleted" for name in absent)
            else:
                allowed = trace.scenario.config.missing_source == "delete" and source[attempt.strategy] in absent
            assert tombstone or allowed, f"deleted without a reason: {effect}"


def check_i05(trace: Trace) -> None:
    """Until the first write is sent nothing changes; a repair that never sends one leaves the stores as they were."""
    assert trace.scenario.undisturbed
    touched = {(sent.store, attempt.doc_id) for attempt in attempts(trace) for sent in attempt.sent}
    for name, before in trace.before.items():
        for doc_id in {*before, *trace.after[name]}:
            if (name, doc_id) not in touched:
                assert before.get(doc_id) == trace.after[name].get(doc_id)


def check_i05_before_any_write(trace: Trace) -> None:
    """The scenario lets no repair come as far as its first write: the stores are identical, tokens included."""
    check_i05(trace)
    assert trace.before == trace.after
    assert not [sent for attempt in attempts(trace) for sent in attempt.sent]


def check_i06(trace: Trace) -> None:
    """What the table does not decide is not decided: no effect anywhere, and no success."""
    for attempt in attempts(trace):
        if not attempt.follows_strategy(trace):
            continue
        for index, effect in attempt.effects:
            verdicts = [verdict for _, _, verdict in attempt.verdicts(trace, before=index)]
            assert any(verdict.action != "manual" for verdict in verdicts), f"decided what is undecidable: {effect}"
    for story in job_stories(trace).values():
        if story.attempts and story.attempts[-1].follows_strategy(trace) and story.ended_with_its_attempt:
            verdicts = [verdict for _, _, verdict in story.attempts[-1].verdicts(trace)]
            if verdicts and all(verdict.action == "manual" for verdict in verdicts):
                assert not story.result.success
            elif story.result.outcome is RepairOutcome.NEEDS_MANUAL and not injected(trace):
                assert any(verdict.action == "manual" for verdict in verdicts), f"gave up: {story.result}"


def check_i07(trace: Trace) -> None:
    """Operations done are among the operations planned, on the states that were planned on."""
    for attempt in attempts(trace):
        plan = attempt.plan(trace)
        if plan is None:
            continue
        planned = {write.store: write.token for write in plan.writes}
        for _, effect in attempt.effects:
            if effect.store in CRITICAL:
                assert planned.get(effect.store) == effect.asked, f"not planned: {effect}"
                assert _same(effect.after, plan.version), f"planned otherwise: {effect}"
    for story in job_stories(trace).values():
        plan = trace.plans.get(story.job.id)
        if plan is None or not story.attempts:
            continue
        moved = [
            look
            for look in story.attempts[0].looks
            if look.store in CRITICAL
            and look.view.token != plan.tokens[look.store]
            and not is_right(look.store, look.view, plan.version)
        ]
        if moved and not story.attempts[0].sent:
            assert not story.result.success, f"carried out although {moved[0]} had moved"


def check_i08(trace: Trace) -> None:
    """Success if and only if the critical stores read back equal; and each word of a receipt is true."""
    for story in job_stories(trace).values():
        if story.attempts and story.results:
            _check_success(trace, story)
            for step in story.result.receipt:
                _check_step(story, step.store, step.state)
            assert story.result.source in (None, *CRITICAL), "the cache is never a source"
            assert all(attempt.cache_reads == 0 for attempt in story.attempts), "the cache is never read"
        elif story.results:
            assert {step.state for step in story.result.receipt} == {StepState.UNTOUCHED}
            assert not story.result.success


def _check_success(trace: Trace, story: JobStory) -> None:
    last, settled = story.attempts[-1], story.settled
    assert settled is not None
    looks = {name: [look for look in last.looks if look.store == name and look.index < settled] for name in CRITICAL}
    if story.result.success:
        for name in CRITICAL:
            assert looks[name], f"{name} was not looked at: {story.result}"
            look = looks[name][-1]
            assert is_right(name, look.view, story.result.version), f"{name} held {look.view}: {story.result}"
            writes = [sent.index for sent in last.sent if sent.store == name]
            assert not writes or writes[-1] < look.asked_at, f"{name} was not read back: {story.result}"
        return
    if not story.ended_with_its_attempt or story.result.outcome is RepairOutcome.NEEDS_MANUAL:
        return
    if story.job.doc_id in trace.scenario.stubborn:
        # Answers that come while it takes its time to stop come too late for it.
        return
    writes = [sent for sent in last.sent if sent.store in CRITICAL]
    if not writes or any(sent.call not in last.ended_calls for sent in writes):
        return
    ended = max(last.ended_calls[sent.call] for sent in writes)
    after = {name: [look for look in looks[name] if look.asked_at > ended] for name in CRITICAL}
    if len(after["text"]) == len(after["vector"]) > 0:
        equal = all(is_right(name, after[name][-1].view, writes[-1].version) for name in CRITICAL)
        assert not equal, f"it was read back equal: {story.result}"


def _check_step(story: JobStory, store: str, state: StepState) -> None:
    settled = story.settled
    assert settled is not None
    sent: list[Sent] = []
    effects: list[Effect] = []
    for attempt in story.attempts:
        sent += [write for write in attempt.sent if write.store == store and write.index < settled]
        effects += [effect for index, effect in attempt.effects if effect.store == store and index < settled]
    said = f"{store} {state}: {story.result}"
    if state is StepState.UNTOUCHED:
        assert not sent, said
    if state is StepState.CONSISTENT:
        assert not effects, said
    if state in (StepState.VERIFIED, StepState.UNKNOWN):
        assert sent, said
    if state in (StepState.APPLIED, StepState.INVALIDATED):
        assert effects, said
    if state is StepState.INVALIDATED:
        assert effects[-1].after.presence is Presence.ABSENT, said
    if store in story.result.updated_systems:
        assert state in (StepState.VERIFIED, StepState.APPLIED, StepState.INVALIDATED, StepState.UNKNOWN), said
        assert sent, said
    elif store in CRITICAL and state is StepState.VERIFIED:
        raise AssertionError(said)
