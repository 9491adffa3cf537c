"""Each invariant as a law: which scenarios to draw, and what to check of their traces. Tests and controls share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, given, settings

from trio_repair import EventKind, RepairOutcome, SyncStrategy
from trio_repair.testing import FaultKind

from . import checks, liveness
from .drawing import IDS, KINDS, scenarios
from .oracle import is_right
from .play import play
from .recording import AttemptBegan, Effect, Happened, RoundBegan
from .scenario import CRITICAL, Scenario, Submit
from .situations import (
    MOSTLY_RECENT,
    blocked,
    calm,
    contended,
    deleting,
    healing,
    hostile,
    one_stuck,
    poisoned,
    queued_up,
    racing,
    raising,
    telling,
    unanswered,
    wild,
    with_plans,
)
from .story import attempts, job_stories, verdict_on
from .trace import MARKER, Trace


@attrs.frozen
class Law:
    draw: st.SearchStrategy[Scenario]
    check: Callable[[Trace], None]

    def holds(self, scenario: Scenario) -> None:
        self.check(play(scenario))


class Caught(BaseException):
    """The law was broken. Not an Exception: Hypothesis neither shrinks nor repeats the example."""


def finds(law: Law, examples: int = 2000) -> bool:
    """Whether the law finds something wrong with the engine, as it is now, within so many drawn scenarios."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(law.draw)
    def hunt(scenario: Scenario) -> None:
        try:
            law.holds(scenario)
        except Exception as error:
            raise Caught(str(error)) from error

    try:
        hunt()
    except Caught:
        return True
    return False


# The checks that are about one kind of scenario only


def check_i05_blocked(trace: Trace) -> None:
    """What needs the operation that is blocked leaves every store as it was, tokens included."""
    checks.check_i05(trace)
    ((store, (fault,)), *_) = trace.scenario.faults.items()
    spared: dict[str, bool] = {}
    for attempt in attempts(trace):
        verdicts = [verdict for _, _, verdict in attempt.verdicts(trace)]
        copies = all(verdict.action == "copy" and verdict.lagging for verdict in verdicts)
        needed = {
            "observe": True,
            "read": copies,
            "prepare": all(store in verdict.lagging for verdict in verdicts),
        }[str(fault.operation)]
        if needed:
            assert not attempt.sent, f"wrote before {fault.operation} had succeeded: {attempt.sent}"
        spared[attempt.doc_id] = spared.get(attempt.doc_id, True) and needed
    for doc_id, untouched in spared.items():
        for name in trace.before if untouched else ():
            assert trace.before[name].get(doc_id) == trace.after[name].get(doc_id)


def _expected_success(trace: Trace, doc_id: str, strategy: SyncStrategy) -> bool | None:
    """Whether a repair without any trouble succeeds; None if nobody holds the document."""
    text, vector = (_held(trace, trace.before, name, doc_id) for name in CRITICAL)
    verdict = verdict_on(trace, text, vector, strategy)
    return None if verdict.action == "nowhere" else verdict.decidable


def _held(trace: Trace, snapshot: Any, name: str, doc_id: str) -> Any:
    copy = snapshot[name].get(doc_id)
    if copy is None:
        empty = type(trace.stores[name])(name, trace.log, traits=trace.stores[name].traits)
        return empty.observe_nowait(doc_id)
    return copy.observation()


def check_as_without_trouble(trace: Trace, *, except_for: frozenset[str] = frozenset()) -> None:
    """Each repair ends as the table says, whatever happens to others."""
    for story in job_stories(trace).values():
        expected = _expected_success(trace, story.job.doc_id, story.job.strategy)
        if story.job.doc_id not in except_for and expected is not None:
            assert expected is story.result.success, f"not as without trouble: {story.result}"
            assert expected or story.result.outcome is RepairOutcome.NEEDS_MANUAL, story.result


def check_i10(trace: Trace) -> None:
    """One poison document in a bulk call fails alone."""
    ((fault,),) = trace.scenario.faults.values()
    assert fault.doc_id is not None
    check_as_without_trouble(trace, except_for=frozenset({fault.doc_id}))
    checks.check_i08(trace)


def check_i11(trace: Trace) -> None:
    """Bounded runs make every decidable document equal and leave the rest alone; one more run writes nothing."""
    begins = [index for index, entry in enumerate(trace.entries) if isinstance(entry, RoundBegan)]
    late = [entry for entry in trace.entries[begins[-1] :] if isinstance(entry, Effect)]
    assert not late, f"the last run still wrote: {late[0]}"
    strategy = trace.scenario.rounds_strategy
    assert all(len(results) == len(trace.scenario.doc_ids) for results in trace.final_rounds)
    results = {result.doc_id: result for result in trace.final_rounds[-1]}
    for doc_id in trace.scenario.doc_ids:
        first = verdict_on(trace, *(_held(trace, trace.after, name, doc_id) for name in CRITICAL), strategy)
        views = [trace.stores[name].observe_nowait(doc_id) for name in CRITICAL]
        last = verdict_on(trace, views[0], views[1], strategy)
        if first.decidable:
            assert last.decidable and last.lagging == (), f"{doc_id!r} did not converge: {views}"
            assert RepairOutcome.ALREADY_CONSISTENT is results[doc_id].outcome
            if "cache" in trace.stores:
                entry = trace.stores["cache"].observe_nowait(doc_id)
                absent_is_right = entry.version is None
                wanted = None if last.version is None or last.version.deleted else last.version
                assert absent_is_right or is_right("cache", entry, wanted), f"the cache holds {entry}"
        elif first.action == "manual":
            assert RepairOutcome.NEEDS_MANUAL is results[doc_id].outcome
            for name, store in trace.stores.items():
                assert trace.after[name].get(doc_id) == store.snapshot().get(doc_id), f"{doc_id!r} was changed"
        else:
            assert results[doc_id].outcome in (RepairOutcome.FAILED, RepairOutcome.ALREADY_CONSISTENT)


def check_i14(trace: Trace) -> None:
    """A stuck document delays the others by two calls that are given up, at most, and by the waits for a probe."""
    config, program = trace.scenario.config, trace.scenario.program
    assert isinstance(program[0], Submit)
    # Once in the company of others, once alone; after that the store is not asked about it for a while.
    tries = min(2, 1 + program[0].job.max_retries)
    smooth = play(attrs.evolve(trace.scenario, faults={}))
    expected = {story.job.doc_id: story.settled_at for story in job_stories(smooth).values()}
    probes = sum(config.breaker_reset * 2**number for number in range(tries))
    # Who was in company with it backs off, and then needs its own calls again, after those of the others.
    latencies = trace.scenario.latencies.values()
    again = 8 * len(program) * max(latency.before + latency.after for latency in latencies) + 3 * config.backoff_cap
    allowed = tries * config.store_call_timeout + probes + again
    stuck = program[0].job.doc_id
    for story in job_stories(trace).values():
        if story.job.doc_id != stuck:
            late = story.settled_at - expected[story.job.doc_id]
            assert late <= allowed + 1e-6, f"{story.job.doc_id} waited {late} s for {stuck}, {allowed} are allowed"
    check_as_without_trouble(trace, except_for=frozenset({stuck}))


def check_i14_no_starvation(trace: Trace) -> None:
    """Who starts next is who was accepted first, each step of priority being worth `aging_seconds`."""
    aging = trace.scenario.config.aging_seconds
    waiting: dict[str, tuple[float, float]] = {}
    for entry in trace.first():
        if isinstance(entry, Happened) and entry.event.kind is EventKind.ACCEPTED:
            assert entry.event.job is not None and entry.event.doc_id is not None
            waiting[entry.event.doc_id] = (entry.at + entry.event.job.priority * aging, entry.at)
        elif isinstance(entry, AttemptBegan) and entry.doc_id in waiting:
            key, _ = waiting.pop(entry.doc_id)
            for doc_id, (other, accepted_at) in waiting.items():
                assert accepted_at >= entry.at or key <= other + 1e-9, f"{entry.doc_id} overtook {doc_id}"


def check_i16_raising(trace: Trace) -> None:
    liveness.check_i16(trace)
    liveness.check_i15(trace)
    liveness.check_i09(trace)


def check_i18(trace: Trace) -> None:
    """Each document is repaired as if it were alone, and those that no job names are not touched."""
    check_as_without_trouble_undisturbed(trace)
    named = {step.job.doc_id for step in trace.scenario.program if isinstance(step, Submit)}
    for entry in trace.entries:
        if isinstance(entry, Effect):
            assert entry.doc_id in named, f"touched a document that nobody named: {entry}"
    for name, before in trace.before.items():
        for doc_id in {*before, *trace.after[name]} - named:
            assert before.get(doc_id) == trace.after[name].get(doc_id)


def check_as_without_trouble_undisturbed(trace: Trace) -> None:
    """As above, where several jobs may follow each other on one document: the first one is as the table says."""
    seen: set[str] = set()
    for story in job_stories(trace).values():
        if story.job.doc_id in seen or not story.ended_with_its_attempt or story.job.deadline or story.job.timeout:
            continue
        seen.add(story.job.doc_id)
        if any(other.job.doc_id == story.job.doc_id for other in job_stories(trace).values() if other is not story):
            continue
        expected = _expected_success(trace, story.job.doc_id, story.job.strategy)
        if expected is not None and story.result.outcome is not RepairOutcome.CANCELLED:
            assert expected is story.result.success, f"not as the table says: {story.result}"


def check_i19(trace: Trace) -> None:
    liveness.check_i19(trace, MARKER)


_AWAY = (FaultKind.UNAVAILABLE, FaultKind.DOCUMENT_UNAVAILABLE, FaultKind.DRIVER_ERROR)
_UNRIVALLED = tuple(kind for kind in KINDS if kind is not FaultKind.CONCURRENT_WRITE)

LAWS: dict[str, Law] = {
    "i01": Law(calm() | wild(), checks.check_i01),
    "i01 contended": Law(racing() | contended(), checks.check_i01),
    "i02": Law(calm(kinds=KINDS, for_ever=True) | wild(), checks.check_i02),
    "i03": Law(calm() | contended(steps=("submit", "write", "plan")), checks.check_i03),
    "i04": Law(
        calm() | deleting(kinds=_AWAY, operations=("observe",)) | wild(steps=("submit", "write")), checks.check_i04
    ),
    "i05": Law(
        scenarios(kinds=_UNRIVALLED, steps=("submit", "cancel"), endings=("drain", "cancel", "raise")), checks.check_i05
    ),
    "i05 blocked": Law(blocked(), check_i05_blocked),
    "i06": Law(
        calm(strategies=(*MOSTLY_RECENT, SyncStrategy.MANUAL_RESOLUTION))
        | wild(steps=("submit", "write"), strategies=tuple(SyncStrategy)),
        checks.check_i06,
    ),
    "i07": Law(with_plans(), checks.check_i07),
    "i08": Law(unanswered() | wild(), checks.check_i08),
    "i08 contended": Law(racing() | contended(), checks.check_i08),
    "i09": Law(wild(config={"settle": 0.0}), liveness.check_i09),
    "i10": Law(poisoned(), check_i10),
    "i11": Law(healing(), check_i11),
    "i12": Law(
        unanswered() | wild(ids=IDS[:2], steps=("submit", "stream", "cancel", "cleanup", "write")), liveness.check_i12
    ),
    "i13": Law(wild(steps=("submit", "stream", "limit", "cancel", "pause", "resume")), liveness.check_i13),
    "i14": Law(one_stuck(), check_i14),
    "i14 starvation": Law(queued_up(), check_i14_no_starvation),
    "i15": Law(unanswered() | wild(), liveness.check_i15),
    "i16": Law(raising(), check_i16_raising),
    "i18": Law(hostile(), check_i18),
    "i19": Law(telling(), check_i19),
}


def examples(number: int) -> settings:
    """So many examples: a play is long, and what it draws is large."""
    return settings(
        max_examples=number,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
