"""Receipts held against what was sent and what the stores answered: true ones hold, every lie is named."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from trio_repair import (
    EngineEvent,
    EventKind,
    ReceiptStep,
    RepairJob,
    RepairOutcome,
    RepairResult,
    StepState,
    SyncStrategy,
)
from trio_repair.testing import TraceViolation, assert_trace, make_document

K, S, Outcome = EventKind, StepState, RepairOutcome
OLD, NEW = (make_document("d", text, number=number).version for text, number in (("old", 1), ("new", 2)))
JOB = RepairJob(id="one", doc_id="d", strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH)


def _event(kind: EventKind, at: float, **given: Any) -> EngineEvent:
    return EngineEvent(kind=kind, at=at, doc_id="d", **given)


def _look(at: float, token: str, version: Any, store: str = "vector") -> EngineEvent:
    return _event(K.OBSERVED, at, store=store, token=token, version=version)


def _sent(at: float, *, token: str = "v1", store: str = "vector", version: Any = NEW) -> EngineEvent:
    return _event(K.WRITE_SENT, at, store=store, token=token, version=version)


def _verdict(at: float, said: str, *, token: str = "v1", store: str = "vector") -> EngineEvent:
    return _event(K.WRITE_SETTLED, at, store=store, token=token, detail=said)


def _trace(
    *middle: EngineEvent,
    vector: StepState,
    text: StepState = S.UNTOUCHED,
    updated: tuple[str, ...] = (),
    outcome: RepairOutcome = Outcome.FAILED,
    cache: StepState | None = None,
    locked: bool = False,
    **changes: Any,
) -> list[EngineEvent]:
    """One job: a look at both stores, then `middle`, then this result."""
    states = {"text": text, "vector": vector} | ({} if cache is None else {"cache": cache})
    result: dict[str, Any] = {
        "doc_id": "d",
        "job_id": "one",
        "outcome": outcome,
        "error": None if outcome.success else "why",
        "version": NEW,
        "receipt": tuple(ReceiptStep(store=name, state=state) for name, state in states.items()),
        "updated_systems": updated,
        **changes,
    }
    lock = [_event(K.LOCKED, 1.0, store="vector")] if locked else []
    return [
        _event(K.ACCEPTED, 0.0, job=JOB),
        _event(K.STARTED, 0.0, job=JOB, attempt=1, limit=1, timeout=30.0),
        _look(0.1, "t1", NEW, "text"),
        _look(0.1, "v1", OLD),
        *middle,
        _event(K.ENDED, 1.0, attempt=1),
        *lock,
        _event(K.SETTLED, 1.0, job=JOB, result=RepairResult(**result)),
        *([_event(K.UNLOCKED, 2.0, store="vector")] if locked else []),
    ]


def _read_back(at: float = 0.5) -> tuple[EngineEvent, EngineEvent]:
    return _look(at, "t1", NEW, "text"), _look(at, "v2", NEW)


SUCCESS: dict[str, Any] = {"outcome": Outcome.REPAIRED, "text": S.CONSISTENT}
ONCE = (_sent(0.2),)
UNCHANGED = (_look(0.5, "t1", NEW, "text"), _look(0.5, "v1", OLD))

TRUE = {
    "landed, read back": _trace(
        *ONCE, _verdict(0.3, "landed"), *_read_back(), vector=S.VERIFIED, updated=("vector",), **SUCCESS
    ),
    "landed, not read back": _trace(*ONCE, _verdict(0.3, "landed"), vector=S.APPLIED, updated=("vector",)),
    "no verdict": _trace(*ONCE, vector=S.UNKNOWN, locked=True),
    "given up": _trace(*ONCE, _verdict(0.3, "unknown"), vector=S.UNKNOWN),
    "given up, and found to have landed": _trace(
        *ONCE, _verdict(0.3, "unknown"), *_read_back(), vector=S.VERIFIED, updated=("vector",), **SUCCESS
    ),
    "failed, and found to have landed": _trace(
        *ONCE, _verdict(0.3, "failed"), *_read_back(), vector=S.VERIFIED, updated=("vector",), **SUCCESS
    ),
    "given up, and found not to have landed": _trace(*ONCE, _verdict(0.3, "unknown"), *UNCHANGED, vector=S.FAILED),
    "the same, but it may still land": _trace(
        *ONCE, _verdict(0.3, "unknown"), *UNCHANGED, vector=S.UNKNOWN, locked=True
    ),
    "refused": _trace(*ONCE, _verdict(0.3, "refused"), vector=S.REFUSED),
    "rejected": _trace(*ONCE, _verdict(0.3, "rejected"), vector=S.FAILED),
    "sent twice, then refused": _trace(*ONCE, _sent(0.25), _verdict(0.3, "refused"), vector=S.UNKNOWN),
    **{
        f"sent twice, then {verdict}, told as {state.value}": _trace(
            *ONCE, _sent(0.25), _verdict(0.3, verdict), vector=state
        )
        for verdict in ("rejected", "failed")
        for state in (S.UNKNOWN, S.FAILED)
    },
    "refused in favour of the decision": _trace(
        *ONCE,
        _verdict(0.3, "refused"),
        *_read_back(),
        vector=S.CONSISTENT,
        text=S.CONSISTENT,
        outcome=Outcome.ALREADY_CONSISTENT,
    ),
    "sent again after another look, and landed": _trace(
        *ONCE,
        _verdict(0.3, "refused"),
        _look(0.4, "v2", OLD),
        _sent(0.4, token="v2"),
        _verdict(0.45, "landed", token="v2"),
        _look(0.5, "t1", NEW, "text"),
        _look(0.5, "v3", NEW),
        vector=S.VERIFIED,
        updated=("vector",),
        **SUCCESS,
    ),
    "landed, then given up": _trace(
        *ONCE,
        _verdict(0.3, "landed"),
        _look(0.4, "v2", OLD),
        _sent(0.4, token="v2"),
        _verdict(0.45, "unknown", token="v2"),
        vector=S.UNKNOWN,
        updated=("vector",),
    ),
    "could not be asked": _trace(vector=S.FAILED),
}

LIES = {
    "updated, and nothing was sent": _trace(vector=S.FAILED, updated=("vector",)),
    "updated, and another store was written": _trace(
        *ONCE, _verdict(0.3, "landed"), *_read_back(), vector=S.VERIFIED, updated=("text", "vector"), **SUCCESS
    ),
    "updated, and there is no such step": _trace(vector=S.FAILED, updated=("cache",)),
    "verified, and not updated": _trace(*ONCE, _verdict(0.3, "landed"), *_read_back(), vector=S.VERIFIED, **SUCCESS),
    "applied, and not updated": _trace(*ONCE, _verdict(0.3, "landed"), vector=S.APPLIED),
    "refused, and nothing was sent": _trace(vector=S.REFUSED),
    "repaired, and nothing was sent": _trace(*_read_back(), vector=S.CONSISTENT, **SUCCESS),
    "consistent already, and written": _trace(
        *ONCE,
        _verdict(0.3, "landed"),
        *_read_back(),
        vector=S.VERIFIED,
        text=S.CONSISTENT,
        updated=("vector",),
        outcome=Outcome.ALREADY_CONSISTENT,
    ),
    "sent, and no step": _trace(
        *ONCE, _verdict(0.3, "refused"), vector=S.REFUSED, receipt=(ReceiptStep(store="text", state=S.UNTOUCHED),)
    ),
    "two steps for one store": _trace(
        vector=S.FAILED,
        receipt=(ReceiptStep(store="text", state=S.FAILED), ReceiptStep(store="text", state=S.UNTOUCHED)),
    ),
    "landed, told as refused": _trace(*ONCE, _verdict(0.3, "landed"), vector=S.REFUSED),
    "landed, told as failed": _trace(*ONCE, _verdict(0.3, "landed"), vector=S.FAILED),
    "landed, told as unknown": _trace(*ONCE, _verdict(0.3, "landed"), vector=S.UNKNOWN),
    "refused, told as applied": _trace(*ONCE, _verdict(0.3, "refused"), vector=S.APPLIED, updated=("vector",)),
    "refused, told as verified": _trace(
        *ONCE, _verdict(0.3, "refused"), *_read_back(), vector=S.VERIFIED, updated=("vector",), **SUCCESS
    ),
    "given up, told as refused": _trace(*ONCE, _verdict(0.3, "unknown"), vector=S.REFUSED),
    "given up, told as failed": _trace(*ONCE, _verdict(0.3, "unknown"), vector=S.FAILED),
    "no verdict, told as failed": _trace(*ONCE, vector=S.FAILED, locked=True),
    "given up, may still land, told as failed": _trace(
        *ONCE, _verdict(0.3, "unknown"), *UNCHANGED, vector=S.FAILED, locked=True
    ),
    "sent twice, then refused, told as refused": _trace(*ONCE, _sent(0.25), _verdict(0.3, "refused"), vector=S.REFUSED),
    "sent twice, then rejected, told as refused": _trace(
        *ONCE, _sent(0.25), _verdict(0.3, "rejected"), vector=S.REFUSED
    ),
    "sent once and rejected, told as unknown": _trace(*ONCE, _verdict(0.3, "rejected"), vector=S.UNKNOWN),
    "found to have landed, told as consistent": _trace(
        *ONCE,
        _verdict(0.3, "unknown"),
        *_read_back(),
        vector=S.CONSISTENT,
        text=S.CONSISTENT,
        outcome=Outcome.ALREADY_CONSISTENT,
    ),
    "verified, and not looked at since": _trace(*ONCE, _verdict(0.3, "landed"), vector=S.VERIFIED, updated=("vector",)),
    "removed, told as applied": _trace(
        _look(0.2, "c1", OLD, "cache"),
        _sent(0.2, store="cache", token="c1", version=None),
        _verdict(0.3, "landed", store="cache", token="c1"),
        vector=S.UNTOUCHED,
        cache=S.APPLIED,
        updated=("cache",),
    ),
}


@pytest.mark.parametrize("name", TRUE)
def test_a_true_receipt_holds(name: str) -> None:
    """What an engine may find out about a write, each with the receipt that says so."""
    assert_trace(TRUE[name])


@pytest.mark.parametrize("name", LIES)
def test_control_a_false_receipt_is_rejected(name: str) -> None:
    """The same stories, told otherwise: each breaks I8 where the job settles."""
    with pytest.raises(TraceViolation) as caught:
        assert_trace(LIES[name])
    event = caught.value.event
    assert ("I8", K.SETTLED) == (caught.value.invariant, None if event is None else event.kind)


def test_a_job_that_never_started_has_touched_nothing() -> None:
    """Its receipt is UNTOUCHED throughout. Control: any other state is a lie."""
    trace = _trace(vector=S.UNTOUCHED, outcome=Outcome.CANCELLED)
    waited = [trace[0], trace[-1]]
    assert_trace(waited)
    result = waited[1].result
    assert result is not None
    steps = tuple(attrs.evolve(step, state=S.FAILED) for step in result.receipt)
    with pytest.raises(TraceViolation, match=r"I8.*never started"):
        assert_trace([waited[0], attrs.evolve(waited[1], result=attrs.evolve(result, receipt=steps))])


def test_a_verdict_on_nothing_is_rejected() -> None:
    """No write awaits it: it was never sent, or has its verdict."""
    for events in ([_verdict(0.3, "landed")], [*ONCE, _verdict(0.3, "landed"), _verdict(0.4, "landed")]):
        trace = _trace(*events, vector=S.APPLIED, updated=("vector",))
        with pytest.raises(TraceViolation, match=r"I8.*awaits none"):
            assert_trace(trace)
