"""The simulation's own table of decisions agrees with the engine's, on every pair of small states."""

from __future__ import annotations

import itertools

import attrs
import pytest
from decision_states import MODEL, TEXT_STATES, TRAITS, VECTOR_STATES, see

from trio_repair import AbsentMeans, DocumentVersion, Observation, PlanAction, Policy, SyncStrategy, plan_repair
from trio_repair.testing.simulation._oracle import CRITICAL, Rules

DECIDING = (SyncStrategy.MOST_RECENT, SyncStrategy.TEXT_SOURCE_OF_TRUTH, SyncStrategy.VECTOR_SOURCE_OF_TRUTH)


def _disagreements(strategy: SyncStrategy, absent: AbsentMeans, missing_source: str) -> list[str]:
    traits = {name: attrs.evolve(TRAITS[name], absent=absent) for name in CRITICAL}
    policy = Policy(traits=traits, missing_source=missing_source)  # type: ignore[arg-type]  # one of its two words
    rules = Rules(
        absent=dict.fromkeys(CRITICAL, absent), missing_source=missing_source, hlc=False, skew=1.0, embedding=MODEL
    )
    found = []
    for text, vector in itertools.product(TEXT_STATES, VECTOR_STATES):
        views = {"text": see("text", text), "vector": see("vector", vector)}
        judgement = rules.judge(views["text"], views["vector"], strategy, now=0.0)
        plan = plan_repair("d", views, strategy, policy, now=0.0)
        if not _agree(judgement.action, judgement.version, judgement.lagging, plan, views):
            found.append(f"{text} {vector}: {judgement} {plan}")
    return found


def _agree(action, version, lagging, plan, views: dict[str, Observation]) -> bool:
    if plan.action is PlanAction.NOTHING:
        return action in ("copy", "delete") and lagging == ()
    if plan.writes:
        unread = not _readable(plan, views)
        if plan.action is PlanAction.COPY and unread:
            # The engine plans to read a damaged copy as a last resort; stores here refuse, and a person decides.
            return action == "manual"
        same = isinstance(version, DocumentVersion) and version == plan.version
        return action == plan.action.value and same and lagging == tuple(write.store for write in plan.writes)
    return action == plan.action.value


def _readable(plan, views: dict[str, Observation]) -> bool:
    return any(views[source].intact and views[source].version == plan.version for source in plan.sources)


@pytest.mark.parametrize("strategy", DECIDING)
@pytest.mark.parametrize("absent", tuple(AbsentMeans))
@pytest.mark.parametrize("missing_source", ["refuse", "delete"])
def test_the_two_tables_agree(strategy: SyncStrategy, absent: AbsentMeans, missing_source: str) -> None:
    """Written apart, from the same text: where they differ, one of them is wrong."""
    assert [] == _disagreements(strategy, absent, missing_source)


def test_control_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tie between copy and tombstone that is judged otherwise shows."""
    monkeypatch.setattr("trio_repair.testing.simulation._oracle._rank", lambda number: number == 2)
    assert _disagreements(SyncStrategy.MOST_RECENT, AbsentMeans.MISSING, "refuse")
