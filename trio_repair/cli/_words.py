"""Observations, findings and plans in words, for tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from .. import (
    CacheStep,
    Divergence,
    DocumentVersion,
    Observation,
    PlanAction,
    Presence,
    RepairPlan,
    StoreError,
)

DIGEST_SHOWN: Final = 12
"""Hexadecimal digits of a digest that are shown to people."""

_ORDER: Final = ("text", "vector", "cache")

View = TypeVar("View")


def number_words(version: DocumentVersion | None) -> str:
    """A version's number."""
    if version is None:
        return "-"
    return "unnumbered" if version.number is None else str(version.number)


def held_words(view: Observation | StoreError) -> str:
    """What a store holds, in a word or two: "4", "deleted 5", "-"."""
    if isinstance(view, StoreError):
        return "?"
    if view.presence is Presence.ABSENT:
        return "-"
    deleted = "deleted " if view.presence is Presence.TOMBSTONE else ""
    damage = "" if view.intact else " (damaged)"
    return f"{deleted}{number_words(view.version)}{damage}"


def in_order(views: Mapping[str, View]) -> Sequence[tuple[str, View]]:
    """Views by store, in the order text, vector, cache."""
    return sorted(views.items(), key=lambda pair: _ORDER.index(pair[0]))


def finding_words(divergence: Divergence) -> str:
    """What is wrong: "vector stale, cache stale-cache"."""
    return ", ".join(f"{finding.store} {finding.kind.value}" for finding in divergence.findings)


def holdings_words(divergence: Divergence) -> str:
    """The versions side by side: "text 4, vector 3, cache -"."""
    return ", ".join(f"{name} {held_words(view)}" for name, view in in_order(divergence.views))


def plan_words(plan: RepairPlan) -> str:
    """What a plan does."""
    targets = " and ".join(write.store for write in plan.writes)
    cache = {
        CacheStep.NONE: "",
        CacheStep.REFRESH: "write the cache entry anew",
        CacheStep.INVALIDATE: "remove the cache entry",
    }[plan.cache_step]
    match plan.action:
        case PlanAction.MANUAL | PlanAction.NOWHERE:
            return plan.reason or plan.action.value
        case PlanAction.NOTHING:
            return cache or "nothing"
        case PlanAction.DELETE:
            done = f"delete from {targets} (tombstone {number_words(plan.version)})"
        case PlanAction.COPY:
            done = f"copy version {number_words(plan.version)} to {targets}"
            if plan.sources:
                done += f" from {' or '.join(plan.sources)}"
    return f"{done}; {cache}" if cache else done
