"""Hold a result against what its repair was seen to do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from trio_repair import DocumentVersion, EngineEvent, ReceiptStep, RepairOutcome, RepairResult, StepState

from ._trace_state import CRITICAL, Repair, Sent, TraceViolation, is_same

_READ_BACK: Final = frozenset({StepState.CONSISTENT, StepState.VERIFIED})
_LANDED: Final = frozenset({StepState.VERIFIED, StepState.APPLIED, StepState.INVALIDATED})


def check_receipt(event: EngineEvent, result: RepairResult, repair: Repair | None, locks: Collection[str]) -> None:
    """Hold the result of one job against the trace.

    Args:
        event: its SETTLED.
        result: what it was given.
        repair: what is known of its repair; None: it never started.
        locks: the stores that still work on a write of it.

    Raises:
        TraceViolation: the result claims or denies what the trace shows to be otherwise.
    """
    steps = {step.store: step for step in result.receipt}
    if len(steps) != len(result.receipt):
        raise TraceViolation("I8", event, "the receipt has two steps for one store")
    for name in (*({} if repair is None else repair.sent), *result.updated_systems):
        if name not in steps:
            raise TraceViolation(
                "I8", event, f"the receipt has no step for {name}, which was sent a write or is updated"
            )
    for step in result.receipt:
        problem = _step_problem(result, step, repair, locked=step.store in locks)
        if problem is not None:
            raise TraceViolation("I8", event, f"{step.store} {problem}")
    _check_outcome(event, result, steps, repair)


def _step_problem(result: RepairResult, step: ReceiptStep, repair: Repair | None, *, locked: bool) -> str | None:
    """What contradicts this step."""
    state, updated = step.state, step.store in result.updated_systems
    if repair is None:
        return None if state is StepState.UNTOUCHED and not updated else f"is {state.value}, and the job never started"
    sent: Sequence[Sent] = repair.sent.get(step.store, ())
    possible = _possible(sent, result.version, critical=step.store in CRITICAL, locked=locked)
    if state not in possible:
        return f"is {state.value}, {_story(sent, locked=locked)}"
    if state in _READ_BACK and not _looked_at_last(repair, step.store):
        return f"is {state.value}, and was not looked at after the last write"
    known = state in _LANDED or any(one.landed for one in sent)
    if updated != known:
        return f"is {state.value}, and is {'' if updated else 'not '}among the updated systems"
    return None


def _possible(sent: Sequence[Sent], decided: DocumentVersion | None, *, critical: bool, locked: bool) -> set[StepState]:
    """The states that can be true of a store to which this was sent."""
    if not sent:
        return {StepState.UNTOUCHED, StepState.FAILED, StepState.CONSISTENT}
    landed = [one for one in sent if one.landed]
    if critical:
        # What was decided was found there, and a write that may have landed was to bring it: it did.
        explained = any(one.may_have_landed and one.version == decided for one in sent)
    else:
        explained = any(one.may_have_landed for one in sent)
    possible = {StepState.VERIFIED} if landed or explained else {StepState.CONSISTENT}
    if explained and not landed and not critical:
        possible.add(StepState.CONSISTENT)
    if any(one.doubtful for one in sent):
        possible.add(StepState.VERIFIED)
    # The fence of what landed held: whatever was sent before it is over.
    after = sent[sent.index(landed[-1]) + 1 :] if landed else sent
    unknown = [one for one in after if one.unknown]
    if unknown or any(one.doubtful for one in after):
        possible.add(StepState.UNKNOWN)
    # What is still on its way may land after any look.
    on_its_way = locked and critical
    if not on_its_way and all(one.seen_unchanged for one in unknown):
        if landed:
            possible.add(StepState.APPLIED if landed[-1].version is not None else StepState.INVALIDATED)
        else:
            possible.add(StepState.REFUSED if sent[-1].verdict == "refused" else StepState.FAILED)
    return possible


def _story(sent: Sequence[Sent], *, locked: bool) -> str:
    if not sent:
        return "and was never sent a write"
    verdicts = ", ".join(one.verdict or "none" for one in sent)
    return f"and the verdicts on what it was sent are: {verdicts}{'; it still works on it' if locked else ''}"


def _looked_at_last(repair: Repair, store: str) -> bool:
    look, sent = repair.last.get(store), repair.sent_now.get(store)
    return look is not None and (sent is None or look.at > sent.at)


def _check_outcome(
    event: EngineEvent, result: RepairResult, steps: dict[str, ReceiptStep], repair: Repair | None
) -> None:
    said = result.outcome.value
    read_back = all(name in steps and steps[name].state in _READ_BACK for name in CRITICAL)
    if not result.success:
        # One of several jobs may be withdrawn from a repair that has come so far.
        if read_back and result.outcome is not RepairOutcome.CANCELLED:
            raise TraceViolation("I8", event, f"{said}, and the critical stores were read back equal")
        return
    if not read_back or repair is None:
        raise TraceViolation("I8", event, f"{said}, and no critical store's step says so")
    if result.error is not None:
        raise TraceViolation("I8", event, f"{said} with an error")
    if (result.outcome is RepairOutcome.REPAIRED) != bool(result.updated_systems):
        names = ", ".join(result.updated_systems) or "nothing"
        raise TraceViolation("I8", event, f"{said}, and {names} was updated")
    for name in CRITICAL:
        if not is_same(repair.last[name].version, result.version):
            raise TraceViolation("I8", event, f"{said}, and {name} was read back as something else")
