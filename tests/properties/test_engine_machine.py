"""An engine driven by rules: they collect a program, which is played, watched and judged when it is complete."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from trio_repair import AutoRepairConfig, RepairPriority, SyncStrategy
from trio_repair.testing import Fault, StoreContents

from . import checks, liveness
from .drawing import _SETTINGS, DECIDING, IDS, KINDS, OPERATIONS, contents
from .planted import Bug, planted
from .play import play
from .scenario import (
    CRITICAL,
    STORES,
    AddFault,
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

CHECKS = (
    checks.check_i01,
    checks.check_i02,
    checks.check_i03,
    checks.check_i04,
    checks.check_i06,
    checks.check_i07,
    checks.check_i08,
    liveness.check_i09,
    liveness.check_i12,
    liveness.check_i13,
    liveness.check_i15,
    liveness.check_i16,
)

_docs = st.sampled_from(IDS[:3])
_strategies = st.sampled_from(DECIDING)


@st.composite
def _contents(draw: st.DrawFn) -> StoreContents:
    return contents(draw, ids=IDS[:3], min_size=3)


class EngineMachine(RuleBasedStateMachine):
    """Rules that act together at one virtual instant race with each other; `advance` lets things happen."""

    def __init__(self) -> None:
        super().__init__()
        self.program: list[AnyStep] = []
        self.wait = 0.0
        self.jobs = 0
        self.paused = False
        self.scenario: Scenario | None = None

    @initialize(
        held=_contents(),
        chosen=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in _SETTINGS.items()}),
        delays=st.tuples(*[st.sampled_from([0.0, 0.01, 0.05])] * 6),
        max_calls=st.sampled_from([4, 1]),
        ending=st.sampled_from(["drain", "drain", "raise", "cancel"]),
        stubborn=st.sampled_from([None, "a"]),
        _order=st.random_module(),
    )
    def open(self, held, chosen, delays, max_calls, ending, stubborn, _order) -> None:
        self.scenario = Scenario(
            contents=held,
            config=AutoRepairConfig(**chosen),
            program=(),
            latencies={
                name: Latency(before=delays[2 * index], after=delays[2 * index + 1])
                for index, name in enumerate(STORES)
            },
            max_calls=max_calls,
            ending=ending,
            stubborn={} if stubborn is None else {stubborn: 0.7},
        )

    def take(self, step: AnyStep) -> None:
        self.program.append(attrs.evolve(step, wait=self.wait))
        self.wait = 0.0

    @rule(
        doc_id=_docs,
        strategy=_strategies,
        priority=st.sampled_from(RepairPriority),
        timeout=st.sampled_from([None, None, 0.02, 0.4]),
        deadline=st.sampled_from([None, None, None, 0.5]),
        retries=st.integers(0, 3),
        how=st.sampled_from(["submit", "nowait", "execute"]),
        withdraw_after=st.sampled_from([None, 0.0, 0.06]),
        planned=st.booleans(),
    )
    def submit(self, doc_id, strategy, priority, timeout, deadline, retries, how, withdraw_after, planned) -> None:
        job = JobSpec(
            doc_id=doc_id,
            strategy=strategy,
            priority=priority,
            timeout=timeout,
            deadline=deadline,
            max_retries=retries,
        )
        self.take(
            Submit(job=job, how=how, withdraw_after=withdraw_after if how == "execute" else None, planned=planned)
        )
        self.jobs += 1

    @rule(docs=st.lists(_docs, min_size=1, max_size=4), take=st.sampled_from([None, 0, 2]))
    def stream(self, docs, take) -> None:
        self.take(Stream(jobs=tuple(JobSpec(doc_id=doc_id) for doc_id in docs), take=take))
        self.jobs += len(docs)

    @rule(seconds=st.sampled_from([0.01, 0.06, 0.5, 3.0]))
    def advance(self, seconds) -> None:
        self.wait += seconds

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data) -> None:
        self.take(Cancel(job=data.draw(st.integers(0, self.jobs - 1))))

    @precondition(lambda self: not self.paused)
    @rule()
    def pause(self) -> None:
        self.paused = True
        self.take(Pause())

    @precondition(lambda self: self.paused)
    @rule()
    def resume(self) -> None:
        self.paused = False
        self.take(Resume())

    @rule()
    def cleanup(self) -> None:
        self.take(Cleanup())

    @rule(value=st.integers(1, 3))
    def change_limit(self, value) -> None:
        self.take(SetLimit(value=value))

    @rule(
        store=st.sampled_from(STORES),
        kind=st.sampled_from(KINDS),
        position=st.integers(0, len(OPERATIONS) - 1),
        doc_id=st.sampled_from([None, "a"]),
        times=st.sampled_from([1, 3, None]),
    )
    def fault(self, store, kind, position, doc_id, times) -> None:
        operations = [operation for operation in OPERATIONS if operation in kind.operations]
        operation = operations[position % len(operations)]
        self.take(AddFault(store=store, fault=Fault(kind, operation, doc_id=doc_id, times=times, delay=0.3)))

    @rule()
    def heal(self) -> None:
        self.take(Heal())

    @rule(
        doc_id=_docs,
        stores=st.sampled_from([STORES, CRITICAL, ("text",), ("vector", "text")]),
        gap=st.sampled_from([0.0, 0.01, 0.06]),
        delete=st.booleans(),
    )
    def application_writes(self, doc_id, stores, gap, delete) -> None:
        self.take(Write(doc_id=doc_id, stores=stores, gap=gap, delete=delete))

    @rule(doc_id=_docs, choice=st.sampled_from(["text", "vector", "delete"]), fenced=st.booleans())
    def resolve(self, doc_id, choice, fenced) -> None:
        self.take(Resolve(doc_id=doc_id, choice=choice, fenced=fenced))

    @rule(doc_id=_docs, strategy=st.sampled_from(SyncStrategy))
    def plan(self, doc_id, strategy) -> None:
        self.take(MakePlan(doc_id=doc_id, strategy=strategy))

    def teardown(self) -> None:
        """Play the program, and hold its trace to every invariant; the counts were sampled after each step."""
        if self.scenario is None:
            return
        trace = play(attrs.evolve(self.scenario, program=tuple(self.program)))
        for check in CHECKS:
            check(trace)


EngineMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestI01ToI16TheEngineUnderAnyProgram(EngineMachine.TestCase):  # type: ignore[misc,name-defined]  # made by Hypothesis when it is asked for
    """Whatever is asked of an engine, in whatever order, no invariant breaks."""


BUGS = [
    Bug(
        "a running job that is cancelled is told twice",
        "_supervisor:Supervisor.withdraw",
        "entry.cancelled = True",
        "entry.cancelled = True; self._settle(ticket, verdict)",
    ),
    Bug(
        "a resumed engine forgets who waits",
        "_engine:RepairExecutionEngine.resume",
        "self._supervisor.paused = False",
        "self._supervisor.paused = False; self._supervisor.queue = type(self._supervisor.queue)(1.0)",
    ),
    Bug(
        "cleanup ends what is in time",
        "_supervisor:Supervisor.stop_overdue",
        "self.active.past_deadline(self.now())",
        "self.active.past_deadline(1e18)",
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_control_the_machine_finds_a_planted_bug(bug: Bug) -> None:
    """Some program that the rules make breaks an invariant of an engine with a planted bug."""
    with planted(bug), pytest.raises(Exception):  # noqa: B017 - whatever breaks first
        run_state_machine_as_test(
            EngineMachine,
            settings=settings(
                max_examples=200,
                stateful_step_count=20,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
