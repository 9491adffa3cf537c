"""Whether a receipt is true of the stores, and whether a document was lost. Nobody but the job wrote in between."""

from __future__ import annotations

from collections.abc import Collection

from trio_repair import ReceiptStep, RepairResult, StepState

from .held import Held, Holdings

S = StepState
CRITICAL = ("text", "vector")
LANDED = (S.VERIFIED, S.APPLIED, S.INVALIDATED)


def differences(
    result: RepairResult, before: Holdings, after: Holdings, sent: Collection[str] | None = None
) -> list[str]:
    """Where a receipt and the stores differ.

    Args:
        before: what the stores held when the job was accepted.
        after: what they hold now that no call is under way any more.
        sent: the stores that were asked to write for this job; None: not known.
    """
    found = [
        f"{result.doc_id}: {step.store} is told as {step.state.value}, but {problem}: {before[step.store]}"
        f" became {after[step.store]}; {result.outcome.value}, {step}"
        for step in result.receipt
        for problem in _step(result, step, before[step.store], after[step.store], sent)
    ]
    told = {step.store for step in result.receipt if step.state in LANDED}
    if told != set(result.updated_systems):
        found.append(f"{result.doc_id}: updated_systems is {result.updated_systems}, the receipt says {sorted(told)}")
    if result.success:
        found += [
            f"{result.doc_id}: {result.outcome.value}, but {name} does not hold the decision: {after[name]}"
            for name in CRITICAL
            if not after[name].holds(result.version)
        ]
    return found


def _step(
    result: RepairResult, step: ReceiptStep, before: Held, after: Held, sent: Collection[str] | None
) -> list[str]:
    changed = before.stamp != after.stamp
    asked = sent is not None and step.store in sent
    found = []
    if step.state is S.UNTOUCHED and asked:
        found.append("a write was sent")
    if step.state in (*LANDED, S.UNKNOWN, S.REFUSED) and sent is not None and not asked:
        found.append("no write was sent")
    match step.state:
        case S.VERIFIED | S.APPLIED:
            if not changed:
                found.append("nothing was written")
            if not after.holds(result.version):
                found.append("it does not hold the decision")
        case S.INVALIDATED:
            if after.present or not before.present:
                found.append("no entry was removed")
        case S.UNKNOWN:
            removed = step.store == "cache" and not after.present
            if changed and not removed and not after.holds(result.version):
                found.append("it holds neither what it held nor the decision")
        case S.CONSISTENT | S.REFUSED | S.FAILED | S.UNTOUCHED:
            if changed or before != after:
                found.append("it was written")
    if step.state in (S.VERIFIED, S.CONSISTENT):
        if not after.holds(step.after):
            found.append(f"it does not hold {step.after}")
        if step.token is None or step.token.partition(".")[0] != after.stamp:
            found.append(f"the token {step.token} is not that of what it holds")
    return found


def losses(doc_id: str, before: Holdings, after: Holdings, *, deletes: bool) -> list[str]:
    """Where one readable copy became none, or more than one."""
    found = []
    for name, held in after.items():
        if held.copies > 1:
            found.append(f"{doc_id}: {name} has {held.copies} readable copies")
        if name in CRITICAL and not deletes and before[name].copies == 1 and held.copies != 1:
            found.append(f"{doc_id}: {name} had a readable copy and has none: {held}")
        found += [f"{doc_id}: {name}: {problem}" for problem in held.problems if problem not in before[name].problems]
    return found
