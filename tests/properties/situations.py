"""Kinds of scenario, each made to put some invariant under strain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import hypothesis.strategies as st

from trio_repair import AbsentMeans, SyncStrategy
from trio_repair.testing import Fault, FaultKind
from trio_repair.testing._samples import HOSTILE_IDS

from .drawing import DECIDING, IDS, KINDS, choose, job_spec, one_job_each, scenarios
from .scenario import CRITICAL, STORES, Latency, MakePlan, Scenario, Submit, Write
from .trace import PATIENT

ALL_STEPS = ("submit", "stream", "plan", "cancel", "limit", "write", "resolve", "pause", "resume", "cleanup", "heal")


def wild(**changes: Any) -> st.SearchStrategy[Scenario]:
    """Everything at once."""
    options: dict[str, Any] = {
        "steps": ALL_STEPS,
        "kinds": KINDS,
        "for_ever": True,
        "endings": ("drain", "drain", "drain", "raise", "cancel"),
        "max_steps": 10,
    }
    return scenarios(**{**options, **changes})


MOSTLY_RECENT = (SyncStrategy.MOST_RECENT, *DECIDING)


@st.composite
def calm(draw: st.DrawFn, *, strategies: Sequence[SyncStrategy] = MOSTLY_RECENT, **changes: Any) -> Scenario:
    """One job for each of five documents, in one go: many decisions, and little else."""
    options: dict[str, Any] = {"min_docs": 5, "max_steps": 1, "slow": False, "config": PATIENT}
    drawn = draw(scenarios(**{**options, **changes}))
    return one_job_each(drawn, choose(draw, strategies)[0], max_retries=0)


@st.composite
def racing(draw: st.DrawFn) -> Scenario:
    """The application writes while a repair is between looking and writing."""
    drawn = draw(calm(ids=IDS[:3], min_docs=3, kinds=(FaultKind.CONCURRENT_WRITE,)))
    waits = choose(draw, *([(0.03, 0.06, 0.12, 0.0)] * 3))
    writes = [
        Write(doc_id=doc_id, wait=wait, stores=stores, delete=delete)
        for (doc_id, wait), (stores, delete) in zip(
            zip(drawn.doc_ids, waits, strict=True),
            [choose(draw, (CRITICAL, ("text",), ("vector",)), (False, False, True)) for _ in drawn.doc_ids],
            strict=True,
        )
    ]
    latencies = {
        name: Latency(before=before, after=0.01)
        for name, before in zip(STORES, choose(draw, *([(0.05, 0.01)] * 3)), strict=True)
    }
    return attrs.evolve(drawn, program=(*drawn.program, *writes), latencies=latencies)


def deleting(**changes: Any) -> st.SearchStrategy[Scenario]:
    """Settings under which absence deletes, and stores that cannot be reached for a while."""
    absent = dict.fromkeys(CRITICAL, AbsentMeans.DELETED)
    return calm(absent=absent, config={**PATIENT, "missing_source": "delete"}, **changes)


@st.composite
def unanswered(draw: st.DrawFn) -> Scenario:
    """Writes whose verdict is lost or late, and a second job for each document when the first one gives up."""
    kinds = (FaultKind.HANG, FaultKind.HANG_AFTER, FaultKind.ACK_LOST, FaultKind.REQUEST_LOST)
    drawn = draw(calm(ids=IDS[:3], min_docs=3, kinds=kinds, operations=("write", "remove"), for_ever=True))
    hasty = [attrs.evolve(step, job=attrs.evolve(step.job, timeout=0.1)) for step in drawn.program]  # type: ignore[attr-defined]  # calm programs only submit
    return attrs.evolve(
        drawn,
        program=(*hasty, *hasty),
        ending=choose(draw, ("drain", "drain", "cancel", "raise"))[0],
        config=attrs.evolve(drawn.config, store_call_timeout=0.5, unavailable_timeout=2.0),
    )


def contended(**changes: Any) -> st.SearchStrategy[Scenario]:
    """An application and a rival write what is being repaired; nothing ends for lack of time."""
    options: dict[str, Any] = {
        "ids": ("a", "b"),
        "steps": ("submit", "write"),
        "kinds": (FaultKind.CONCURRENT_WRITE, FaultKind.LATENCY, FaultKind.ACK_LOST, FaultKind.DOCUMENT_UNAVAILABLE),
        "config": PATIENT,
    }
    return scenarios(**{**options, **changes})


@st.composite
def blocked(draw: st.DrawFn) -> Scenario:
    """Something that repairs need before their first write always fails, or never ends."""
    drawn = draw(calm(max_batch=1) | deleting(max_batch=1))
    kind, (operation, stores) = choose(
        draw,
        (
            FaultKind.UNAVAILABLE,
            FaultKind.DRIVER_ERROR,
            FaultKind.REJECTED,
            FaultKind.HANG,
            FaultKind.LATE_ERROR,
            FaultKind.WRONG_LENGTH,
        ),
        (
            ("observe", ("text",)),
            ("observe", ("vector",)),
            ("read", CRITICAL),
            ("prepare", ("text",)),
            ("prepare", ("vector",)),
        ),
    )
    config = attrs.evolve(drawn.config, store_call_timeout=0.2, unavailable_timeout=0.3, job_timeout_seconds=5.0)
    return attrs.evolve(drawn, config=config, faults={name: (Fault(kind, operation),) for name in stores})


@st.composite
def with_plans(draw: st.DrawFn) -> Scenario:
    """Every document is planned, then some move, then the plans are carried out."""
    drawn = draw(
        scenarios(
            ids=IDS[:3],
            steps=("write", "submit"),
            kinds=(
                FaultKind.CONCURRENT_WRITE,
                FaultKind.ACK_LOST,
                FaultKind.REQUEST_LOST,
                FaultKind.DOCUMENT_UNAVAILABLE,
            ),
            max_steps=6,
            config=PATIENT,
        )
    )
    plans = [
        MakePlan(doc_id=doc_id, strategy=strategy)
        for doc_id, strategy in zip(drawn.doc_ids, choose(draw, *([DECIDING] * len(drawn.doc_ids))), strict=True)
    ]
    program = [
        attrs.evolve(step, planned=True, how="submit") if isinstance(step, Submit) else step for step in drawn.program
    ]
    return attrs.evolve(drawn, program=(*plans, *program))


@st.composite
def poisoned(draw: st.DrawFn) -> Scenario:
    """One job for each document, all at once, and one document that spoils every call of some kind that names it."""
    drawn = draw(scenarios(min_docs=3, config={**PATIENT, "max_concurrent_jobs": 64}, slow=False, max_batch=16))
    strategy, kind, operation, store, poison = choose(
        draw,
        DECIDING,
        (FaultKind.DRIVER_ERROR, FaultKind.WRONG_LENGTH, FaultKind.REJECTED, FaultKind.DOCUMENT_UNAVAILABLE),
        ("write", "prepare", "observe", "read"),
        ("text", "vector", "cache"),
        drawn.doc_ids,
    )
    faults = {store: (Fault(kind, operation, doc_id=poison),)}
    return attrs.evolve(one_job_each(drawn, strategy), faults=faults, raising=frozenset())


@st.composite
def healing(draw: st.DrawFn) -> Scenario:
    """Anything happens, then the faults stop and a few more runs are made."""
    stormy = scenarios(steps=("submit", "write", "resolve"), kinds=KINDS, for_ever=True, max_steps=6, rounds=4)
    drawn = draw(calm(rounds=4) | stormy)
    return attrs.evolve(drawn, rounds_strategy=choose(draw, DECIDING)[0])


@st.composite
def one_stuck(draw: st.DrawFn) -> Scenario:
    """One document's calls never end; the others are only slow."""
    drawn = draw(
        scenarios(min_docs=3, config={**PATIENT, "store_call_timeout": 2.0, "breaker_reset": 0.05}, max_batch=16)
    )
    strategy, kind, operation, store, retries = choose(
        draw,
        DECIDING,
        (FaultKind.HANG, FaultKind.HANG_AFTER),
        ("observe", "read", "prepare", "write"),
        CRITICAL,
        (0, 1, 3),
    )
    stuck = drawn.doc_ids[0]
    faults = {store: (Fault(kind, operation, doc_id=stuck),)}
    first, *others = one_job_each(drawn, strategy, max_retries=3).program
    assert isinstance(first, Submit)
    first = attrs.evolve(first, job=attrs.evolve(first.job, max_retries=retries))
    return attrs.evolve(drawn, program=(first, *others), faults=faults)


@st.composite
def queued_up(draw: st.DrawFn) -> Scenario:
    """One job for each of many documents, of all priorities, for few slots."""
    ids = tuple(f"doc-{index}" for index in range(12))
    config = {**PATIENT, "max_concurrent_jobs": 1}
    drawn = draw(scenarios(ids=ids, min_docs=6, config=config, max_steps=1))
    waits = choose(draw, *([(0.0, 0.01, 0.3, 1.0)] * len(drawn.doc_ids)))
    jobs = [attrs.evolve(job_spec(draw, [doc_id], DECIDING), timeout=None, deadline=None) for doc_id in drawn.doc_ids]
    return attrs.evolve(drawn, program=tuple(Submit(job=job, wait=wait) for job, wait in zip(jobs, waits, strict=True)))


@st.composite
def raising(draw: st.DrawFn) -> Scenario:
    """The code of some repairs raises, at once or beside a cancellation; some take their time to stop."""
    drawn = draw(
        scenarios(
            steps=("submit", "cancel", "cleanup"),
            kinds=(FaultKind.HANG, FaultKind.LATENCY) if draw(st.booleans()) else (),
            endings=("drain", "drain", "raise", "cancel"),
            max_steps=10,
            config={"max_queued_jobs": 100},
        )
    )
    now, late, slow = choose(draw, *([[*drawn.doc_ids, None]] * 3))
    return attrs.evolve(
        drawn,
        raising=frozenset({now} - {None}),
        raising_late=frozenset({late} - {None}),
        stubborn={} if slow is None else {slow: 0.7},
    )


@st.composite
def hostile(draw: st.DrawFn) -> Scenario:
    """Ids that careless stores trip over, some of them repaired, their neighbours not."""
    ids = draw(st.lists(st.sampled_from(HOSTILE_IDS), min_size=3, max_size=6, unique=True))
    return draw(scenarios(ids=ids, min_docs=3, config=PATIENT, max_batch=16, slow=False))


@st.composite
def telling(draw: st.DrawFn) -> Scenario:
    """Everything that happens is logged, and drivers' errors quote the documents."""
    drawn = draw(wild(ids=IDS[:3], max_steps=6, config={"store_call_timeout": 0.5}))
    return attrs.evolve(drawn, leaking=frozenset(choose(draw, drawn.doc_ids)), logged=True)
