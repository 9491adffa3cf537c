"""Strategies for scenarios. Each draws a random module too, so that Trio's scheduler has another order each time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import attrs
import hypothesis.strategies as st

from trio_repair import AbsentMeans, AutoRepairConfig, Document, RepairPriority, SyncStrategy
from trio_repair.testing import Fault, FaultKind, HeldCopy, HeldDocument, StoreContents, make_document

from .scenario import (
    CRITICAL,
    STORES,
    AnyStep,
    Cancel,
    Cleanup,
    Heal,
    JobSpec,
    Latency,
    MakePlan,
    Pause,
    Resolve,
    Resume,
    Scenario,
    SetLimit,
    Stream,
    Submit,
    Write,
)
from .trace import MARKER

DECIDING = (
    SyncStrategy.MOST_RECENT,
    SyncStrategy.TEXT_SOURCE_OF_TRUTH,
    SyncStrategy.VECTOR_SOURCE_OF_TRUTH,
)
_ELSEWHERE = (
    FaultKind.LATE_LANDING,
    FaultKind.PARTIAL_BULK,
    FaultKind.OVERTAKEN,
    FaultKind.SHUFFLED_ANSWERS,
    FaultKind.STUCK,
    FaultKind.CLOCK_SKEW,
    FaultKind.CRASH,
)
KINDS = tuple(kind for kind in FaultKind if kind is not FaultKind.BLOCKED_LOOP and kind not in _ELSEWHERE)
"""All but the one that takes wall time, and those that `RepairMachine` and the simulation let loose on the engine."""
HONEST = tuple(kind for kind in KINDS if kind is not FaultKind.LATE_ERROR)
"""Without the one that says "nothing was written" after writing."""
IDS = ("a", "b", "c", "d", "e")
OPERATIONS = ("observe", "read", "prepare", "write", "remove")

_DELAYS = (0.0, 0.0, 0.0, 0.01, 0.01, 0.05, 0.05, 0.3)
_NUMBERS = (1, 1, 2, 2, 3, None)
_ABSENT = (AbsentMeans.MISSING, AbsentMeans.MISSING, AbsentMeans.DELETED, AbsentMeans.MANUAL)
_WAITS = (0.0, 0.0, 0.0, 0.01, 0.06, 0.5)


@cache
def _index(size: int) -> st.SearchStrategy[int]:
    return st.integers(0, size - 1)


def choose(draw: st.DrawFn, *options: Sequence[Any]) -> list[Any]:
    """One of each of `options`, the first ones being the simplest, at the cost of one draw for several.

    A scenario has hundreds of small choices; drawn one by one they take longer than the play.
    """
    chosen: list[Any] = []
    group: list[Sequence[Any]] = []
    size = 1
    for index, option in enumerate(options):
        group.append(option)
        size *= len(option)
        # Ranges beyond 24 bits are no longer drawn evenly.
        if index + 1 == len(options) or size * len(options[index + 1]) > 2**23:
            rest = draw(_index(size))
            for member in group:
                rest, position = divmod(rest, len(member))
                chosen.append(member[position])
            group, size = [], 1
    return chosen


_COPIES = [
    *(
        (("live", number, color, damage))
        for number in _NUMBERS
        for color in ("red", "blue", "red")
        for damage in ("", "")
    ),
    *((("live", number, "red", damage)) for number in _NUMBERS for damage in ("torn", "old model")),
    *([("absent", None, "", "")] * 10),
    *((("tombstone", number, "", "")) for number in _NUMBERS for _ in range(2)),
]


def held_documents(draw: st.DrawFn, doc_id: str, *, with_cache: bool = True) -> HeldDocument:
    """Any state of three stores, out of few numbers and texts, so that the interesting ones are common."""
    copies = {}
    names = STORES if with_cache else CRITICAL
    for name, (state, number, color, damage) in zip(names, choose(draw, *([_COPIES] * len(names))), strict=True):
        if state == "tombstone" and name != "cache":
            copies[name] = HeldCopy(document=Document.tombstone(doc_id, number=number))
        elif state == "live":
            copies[name] = HeldCopy(
                document=make_document(doc_id, f"{MARKER}{doc_id[:20]} {color} {number}", number=number),
                intact=damage != "torn",
                stale_embedding=damage == "old model" and name == "vector",
            )
    return HeldDocument(doc_id=doc_id, kind=None, copies=copies)


def contents(draw: st.DrawFn, *, ids: Sequence[str] = IDS, min_size: int = 1, with_cache: bool = True) -> StoreContents:
    size = draw(st.integers(min_size, len(ids)))
    return StoreContents(documents=tuple(held_documents(draw, doc_id, with_cache=with_cache) for doc_id in ids[:size]))


_SETTINGS: dict[str, tuple[Any, ...]] = {
    "job_timeout_seconds": (5.0, 5.0, 5.0, 1.0, 0.1),
    "max_concurrent_jobs": (64, 4, 2, 1),
    "max_queued_jobs": (100, 3, 1),
    "aging_seconds": (1.0,),
    "backoff_base": (0.02,),
    "backoff_cap": (0.2,),
    "max_reobserve": (3, 2, 1, 0),
    "store_call_timeout": (2.0, 0.5, 0.2),
    "unavailable_timeout": (1.0, 0.3),
    "breaker_failures": (100, 3, 1),
    "breaker_reset": (0.05, 0.3),
    "grace": (0.5, 0.1, 0.0),
    "drain_timeout": (60.0, 60.0, 1.0),
    "settle": (0.05, 0.0),
    "missing_source": ("refuse", "refuse", "delete"),
    "cache": ("refresh", "invalidate", "fill"),
}


def configs(draw: st.DrawFn, **fixed: Any) -> AutoRepairConfig:
    """Settings with short times, so that each of them matters in a play of a few virtual seconds."""
    settings = dict(zip(_SETTINGS, choose(draw, *_SETTINGS.values()), strict=True))
    return AutoRepairConfig(**{**settings, **fixed})


def some_faults(
    draw: st.DrawFn,
    *,
    ids: Sequence[str] = (),
    kinds: Collection[FaultKind] = KINDS,
    max_size: int = 3,
    for_ever: bool = False,
    operations: Collection[str] = OPERATIONS,
) -> tuple[Fault, ...]:
    times = (1, 1, 2, 5, None) if for_ever else (1, 1, 2, 5)
    faults = []
    for _ in range(choose(draw, (2, 1, max_size, 0))[0]):
        kind, where, doc_id, count, probability, delay = choose(
            draw, tuple(kinds), range(60), (None, None, *ids), times, (1.0, 0.5), (0.02, 0.3, 1.0)
        )
        possible = [operation for operation in operations if operation in kind.operations]
        operation = possible[where % len(possible)]
        faults.append(Fault(kind, operation, doc_id=doc_id, times=count, probability=probability, delay=delay))
    return tuple(faults)


def job_spec(draw: st.DrawFn, ids: Sequence[str], strategies: Sequence[SyncStrategy]) -> JobSpec:
    doc_id, strategy, priority, timeout, deadline, max_retries = choose(
        draw,
        ids,
        strategies,
        tuple(RepairPriority),
        (None, None, None, None, None, None, None, 0.4, 0.02),
        (None, None, None, None, None, None, None, None, 1.0, 0.05),
        (0, 1, 2, 3),
    )
    return JobSpec(
        doc_id=doc_id,
        strategy=strategy,
        priority=priority,
        timeout=timeout,
        deadline=deadline,
        max_retries=max_retries,
    )


def _step(draw: st.DrawFn, kind: str, ids: Sequence[str], strategies: Sequence[SyncStrategy]) -> AnyStep:
    wait, doc_id = choose(draw, _WAITS, ids)
    match kind:
        case "submit":
            how, withdraw, planned = choose(
                draw, ("submit", "submit", "nowait", "execute"), (None, None, 0.3, 0.03, 0.0), (False, True)
            )
            job = job_spec(draw, ids, strategies)
            return Submit(
                wait=wait, job=job, how=how, withdraw_after=withdraw if how == "execute" else None, planned=planned
            )
        case "stream":
            size, take = choose(draw, range(1, 7), (None, None, 3, 1, 0))
            return Stream(wait=wait, jobs=tuple(job_spec(draw, ids, strategies) for _ in range(size)), take=take)
        case "plan":
            return MakePlan(wait=wait, doc_id=doc_id, strategy=choose(draw, strategies)[0])
        case "cancel":
            return Cancel(wait=wait, job=choose(draw, range(9))[0])
        case "limit":
            return SetLimit(wait=wait, value=choose(draw, (1, 2, 3, 4))[0])
        case "write":
            stores, gap, delete = choose(
                draw,
                (STORES, CRITICAL, ("text",), ("vector",), ("vector", "text")),
                _DELAYS,
                (False, False, True),
            )
            return Write(wait=wait, doc_id=doc_id, stores=stores, gap=gap, delete=delete)
        case "resolve":
            choice, fenced = choose(draw, ("text", "vector", "delete"), (False, True))
            return Resolve(wait=wait, doc_id=doc_id, choice=choice, fenced=fenced)
        case "pause":
            return Pause(wait=wait)
        case "resume":
            return Resume(wait=wait)
        case "cleanup":
            return Cleanup(wait=wait)
        case "heal":
            return Heal(wait=wait)
        case _:
            raise AssertionError(kind)


@st.composite
def scenarios(
    draw: st.DrawFn,
    *,
    ids: Sequence[str] = IDS,
    min_docs: int = 1,
    steps: Collection[str] = ("submit",),
    min_steps: int = 1,
    max_steps: int = 8,
    strategies: Sequence[SyncStrategy] = DECIDING,
    kinds: Collection[FaultKind] = (),
    operations: Collection[str] = OPERATIONS,
    faulty: Collection[str] = STORES,
    for_ever: bool = False,
    endings: Sequence[str] = ("drain",),
    slow: bool = True,
    rounds: int = 0,
    config: dict[str, Any] | None = None,
    **fixed: Any,
) -> Scenario:
    """A scenario.

    Args:
        steps: what the program may consist of ("submit" is drawn more often).
        kinds: of faults; () for none.
        for_ever: faults may have no end.
        slow: calls take time.
        config, fixed: settings of the engine and fields of the scenario that are not drawn.
    """
    draw(st.random_module())
    with_cache, absent_text, absent_vector, max_calls, max_batch, ending, seed = choose(
        draw, (True, True, True, False), _ABSENT, _ABSENT, (8, 2, 1), (16, 3, 1), tuple(endings), range(100)
    )
    held = contents(draw, ids=ids, min_size=min_docs, with_cache=with_cache)
    doc_ids = [document.doc_id for document in held.documents]
    names = [*steps, "submit", "submit"] if "submit" in steps else list(steps)
    kinds_of_steps = choose(draw, *([names] * draw(st.integers(min_steps, max_steps))))
    program = [_step(draw, kind, doc_ids, strategies) for kind in kinds_of_steps]
    faults = {}
    if kinds:
        for name in faulty:
            faults[name] = some_faults(draw, ids=doc_ids, kinds=kinds, for_ever=for_ever, operations=operations)
    delays = iter(choose(draw, *([_DELAYS] * 6)) if slow else ())
    latencies = {name: Latency(before=before, after=next(delays)) for name, before in zip(STORES, delays, strict=False)}
    drawn: dict[str, Any] = {
        "contents": held,
        "config": configs(draw, **(config or {})),
        "program": tuple(program),
        "faults": faults,
        "latencies": latencies,
        "absent": {"text": absent_text, "vector": absent_vector},
        "max_calls": max_calls,
        "max_batch": max_batch,
        "with_cache": with_cache,
        "ending": ending,
        "rounds": rounds,
        "seed": seed,
    }
    return Scenario(**{**drawn, **fixed})


def one_job_each(scenario: Scenario, strategy: SyncStrategy, **fields: Any) -> Scenario:
    """Instead of its program: each document is repaired once."""
    jobs = [JobSpec(doc_id=doc_id, strategy=strategy, **fields) for doc_id in scenario.doc_ids]
    return attrs.evolve(scenario, program=tuple(Submit(job=job) for job in jobs))
