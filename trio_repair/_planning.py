"""What is to be done about one document: pure decisions, and the only place where they are taken.

An undecidable case is never decided; absence is never guessed from a store that was not observed; no version number
is made up. `tests/test_planning.py` spells the cases out as a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from ._clock import number_time
from ._divergence import CRITICAL_STORES, critical_views, is_equal, rank
from ._errors import InvalidValue
from ._model import DocumentVersion, SyncStrategy
from ._plan import (
    MANUAL_REASON,
    CacheStep,
    PlanAction,
    PlannedWrite,
    Policy,
    RepairPlan,
    new_plan,
    new_planned_write,
)
from ._views import AbsentMeans, Observation, Presence, StoreTraits

# By names of their own: see `plain_members`.
_BY_A_PERSON: Final = SyncStrategy.MANUAL_RESOLUTION
_MOST_RECENT: Final = SyncStrategy.MOST_RECENT
_TEXT_SOURCE: Final = SyncStrategy.TEXT_SOURCE_OF_TRUTH
_ABSENT: Final = Presence.ABSENT
_TOMBSTONE: Final = Presence.TOMBSTONE
_LIVE: Final = Presence.LIVE
_COPY: Final = PlanAction.COPY
_DELETE: Final = PlanAction.DELETE
_MANUAL: Final = PlanAction.MANUAL
_NOWHERE: Final = PlanAction.NOWHERE
_NONE: Final = CacheStep.NONE
_REFRESH: Final = CacheStep.REFRESH

__all__ = [
    "MANUAL_REASON",
    "CacheStep",
    "PlanAction",
    "PlannedWrite",
    "Policy",
    "RepairPlan",
    "cache_step",
    "plan_repair",
    "plan_resolution",
]


class _Decision(NamedTuple):
    """COPY or DELETE with a version (whoever holds it already needs no write), or MANUAL or NOWHERE with a reason."""

    action: PlanAction
    version: DocumentVersion | None = None
    reason: str | None = None
    from_absence: bool = False
    """A delete that only the absence of a copy speaks for."""


def _copy(version: DocumentVersion | None) -> _Decision:
    return _Decision(_COPY, version)


def _version_of(store: str, views: Mapping[str, Observation], policy: Policy) -> DocumentVersion | None:
    """The version of a store's live copy. A store without numbers has the number that the other has for its content."""
    held, other = views[store].version, views["vector" if store == "text" else "text"].version
    return other if not policy.traits[store].numbered and _same_content(held, other) else held


def _same_content(one: DocumentVersion | None, other: DocumentVersion | None) -> bool:
    """Whether both are live copies of the same content, whatever their numbers."""
    return not (one is None or other is None or one.deleted or other.deleted) and one.digest == other.digest


def _delete(version: DocumentVersion | None, *, from_absence: bool = False) -> _Decision:
    """Delete at the number of `version`, which a store holds, live or as a tombstone."""
    if version is None or not version.deleted:
        version = DocumentVersion(number=None if version is None else version.number, deleted=True)
    return _Decision(_DELETE, version, from_absence=from_absence)


def _describe(name: str, view: Observation) -> str:
    if view.presence is _ABSENT:
        return f"the {name} store does not hold it"
    number = None if view.version is None else view.version.number
    which = "without a number" if number is None else f"version {number}"
    if view.presence is _TOMBSTONE:
        return f"the {name} store holds a tombstone {'without a number' if number is None else f'at {number}'}"
    damage = "" if view.intact else " (damaged)"
    return f"the {name} store holds {'a copy ' if number is None else ''}{which}{damage}"


def _manual(views: Mapping[str, Observation], why: str) -> _Decision:
    held = " and ".join(_describe(name, views[name]) for name in CRITICAL_STORES)
    return _Decision(_MANUAL, reason=f"{MANUAL_REASON}: {held}; {why}")


def _number(view: Observation) -> int | None:
    return None if view.version is None else view.version.number


def _latest_tombstone(first: Observation, second: Observation) -> _Decision:
    return _delete(first.version if rank(_number(first)) >= rank(_number(second)) else second.version)


def _trust(source: str, views: Mapping[str, Observation], policy: Policy, now: float) -> _Decision:
    """The named store is the source of truth, whatever the numbers say, except that no tombstone is overridden."""
    target = "vector" if source == "text" else "text"
    theirs, ours = views[target], views[source]
    if ours.presence is _LIVE and theirs.presence is not _TOMBSTONE:
        return _copy(_version_of(source, views, policy))
    match ours.presence, theirs.presence:
        case Presence.LIVE, _:
            live, deleted = _number(ours), _number(theirs)
            if live is None or deleted is None:
                return _manual(views, "they cannot be ordered, and only resolve overrides a tombstone")
            if deleted >= live:
                return _manual(views, "only resolve overrides a tombstone")
            # The one place where a source of truth needs its number.
            doubt = _untrusted_time(views, policy, now)
            return _copy(ours.version) if doubt is None else _manual(views, doubt)
        case Presence.TOMBSTONE, Presence.TOMBSTONE:
            return _latest_tombstone(ours, theirs)
        case Presence.TOMBSTONE, _:
            return _delete(ours.version)
        case _, Presence.TOMBSTONE:
            return _delete(theirs.version)
        case _:
            if policy.missing_source == "delete":
                return _delete(theirs.version, from_absence=True)
            return _manual(views, f'the {source} store is the source of truth; use resolve, or missing_source="delete"')


def _most_recent(views: Mapping[str, Observation], policy: Policy) -> _Decision:
    text, vector = views["text"], views["vector"]
    present = [name for name in CRITICAL_STORES if views[name].presence is not _ABSENT]
    if len(present) == 1:
        held = views[present[0]]
        if held.presence is _TOMBSTONE:
            return _delete(held.version)
        lacking = "vector" if present == ["text"] else "text"
        match policy.traits[lacking].absent:
            case AbsentMeans.MISSING:
                return _copy(held.version)
            case AbsentMeans.DELETED:
                return _delete(held.version, from_absence=True)
            case AbsentMeans.MANUAL:
                return _manual(views, f"what is absent from the {lacking} store may be missing or deleted")

    if text.presence is not vector.presence:
        live, deleted = (text, vector) if vector.presence is _TOMBSTONE else (vector, text)
        live_number, deleted_number = _number(live), _number(deleted)
        if live_number is None or deleted_number is None:
            return _manual(views, "they cannot be ordered")
        return _copy(live.version) if live_number > deleted_number else _delete(deleted.version)

    if text.presence is _TOMBSTONE:
        return _latest_tombstone(text, vector)
    return _later_copy(views)


def _later_copy(views: Mapping[str, Observation]) -> _Decision:
    """The later one of two live copies."""
    text, vector = views["text"].version, views["vector"].version
    if text is None or vector is None or text == vector:
        return _copy(text)
    if text.number == vector.number:
        return _manual(views, "the same version with different content")
    if None in (text.number, vector.number) and text.digest != vector.digest:
        return _manual(views, "different content that cannot be ordered")
    return _copy(text if rank(text.number) > rank(vector.number) else vector)


def _untrusted_time(views: Mapping[str, Observation], policy: Policy, now: float) -> str | None:
    """Why the clocks behind the version numbers cannot decide; None if they can, or if no clock made the numbers."""
    if policy.numbers != "hlc":
        return None
    versions = [view.version for name in CRITICAL_STORES if (view := views[name]).version is not None]
    moments = [(version.number, version) for version in versions if version is not None and version.number is not None]
    for number, _ in moments:
        if number_time(number) > now + policy.skew:
            return f"number {number} lies more than {policy.skew:g} s in the future"
    if len(moments) == 2:
        (one, first), (other, second) = moments
        apart = abs(number_time(one) - number_time(other))
        if one != other and apart <= policy.skew and (first.digest, first.deleted) != (second.digest, second.deleted):
            return f"their times are within {policy.skew:g} s of each other"
    return None


def _holds(view: Observation, version: DocumentVersion, traits: StoreTraits) -> bool:
    return view.version == version if traits.numbered else _same_content(view.version, version)


def _most_recent_sources(views: Mapping[str, Observation], version: DocumentVersion, policy: Policy) -> tuple[str, ...]:
    """Whole copies first, the text store before the vector store.

    A damaged text copy is the last resort, for its text may still be readable; a damaged vector copy is none, and
    neither is one of another model unless the text store names the same version, which says that it is the right one.
    """
    text, vector = views["text"], views["vector"]
    traits = policy.traits
    from_text = [name for name in ("text",) if traits[name].holds_text and _holds(text, version, traits[name])]
    from_vector = [
        name
        for name in ("vector",)
        if traits[name].holds_text
        and _holds(vector, version, traits[name])
        and vector.intact
        and (is_equal(vector, version, traits[name]) or _holds(text, version, traits["text"]))
    ]
    return tuple(from_text + from_vector if text.intact else from_vector + from_text)


def cache_step(view: Observation, version: DocumentVersion | None, policy: Policy) -> CacheStep:
    """What a cache that holds `view` needs once every critical store holds `version`; the text store is the source."""
    return _cache_step(view, version, policy.traits["text"].holds_text, policy)


def _cache_step(
    cache: Observation | None,
    version: DocumentVersion | None,
    has_source: bool,
    policy: Policy,
) -> CacheStep:
    if cache is None:
        return _NONE
    if version is None or version.deleted:
        # A cache that remembers the delete serves nothing that is wrong.
        return CacheStep.INVALIDATE if cache.presence is _LIVE else _NONE
    if is_equal(cache, version, policy.traits["cache"]):
        return _NONE
    if cache.presence is _ABSENT:
        return _REFRESH if policy.cache == "fill" and has_source else _NONE
    if policy.cache == "invalidate" or not has_source:
        return CacheStep.INVALIDATE
    return _REFRESH


def _plan(
    doc_id: str,
    views: Mapping[str, Observation],
    strategy: SyncStrategy | None,
    decision: _Decision,
    policy: Policy,
    *,
    sources: tuple[str, ...] = (),
) -> RepairPlan:
    """Turn a decision into the writes that it takes."""
    tokens = {name: view.token for name, view in views.items()}
    version, traits = decision.version, policy.traits
    lagging = []
    if decision.action is _COPY or decision.action is _DELETE:
        lagging = [name for name in CRITICAL_STORES if not is_equal(views[name], version, traits[name])]
    if decision.action is _COPY and lagging and not sources:
        decision = _manual(views, "no store can give the text of the version that wins")
    if decision.action is _MANUAL or decision.action is _NOWHERE:
        return RepairPlan(
            doc_id=doc_id,
            strategy=strategy,
            action=decision.action,
            version=None,
            sources=(),
            writes=(),
            cache_step=_NONE,
            tokens=tokens,
            reason=decision.reason,
            settle_first=False,
        )
    step = _cache_step(views.get("cache"), version, bool(sources), policy)
    needs_content = (decision.action is _COPY and lagging) or step is _REFRESH
    # A writer that goes from store to store may be between two of them: a person who resolves has seen to that.
    settle_first = False
    if strategy is not None and lagging:
        settle_first = decision.from_absence or _is_outranked(version, [views[name] for name in lagging])
    return new_plan(
        doc_id,
        strategy,
        decision.action if lagging else PlanAction.NOTHING,
        version,
        sources if needs_content else (),
        tuple([new_planned_write(name, tokens[name]) for name in lagging]),
        step,
        MappingProxyType(tokens),
        None,
        settle_first,
    )


def _is_outranked(version: DocumentVersion | None, views: list[Observation]) -> bool:
    """Whether one of these is at a higher number than what was decided."""
    if version is not None:
        for view in views:
            if rank(_number(view)) > rank(version.number):
                return True
    return False


def _absent_everywhere(views: Mapping[str, Observation]) -> _Decision:
    cache = views.get("cache")
    if cache is not None and cache.presence is _LIVE:
        return _Decision(PlanAction.NOTHING)
    return _Decision(_NOWHERE, reason="in no store: neither the text store nor the vector store holds it")


def plan_repair(
    doc_id: str,
    views: Mapping[str, Observation],
    strategy: SyncStrategy,
    policy: Policy,
    *,
    now: float,
) -> RepairPlan:
    """Decide what is to be done about a document.

    Args:
        doc_id: the document.
        views: what each store was seen to hold. Both critical stores are among them; "cache" may be left out if there
            is none or it could not be observed, and is then left alone.
        strategy: which copy to believe.
        policy: the settings and what the stores promise.
        now: Unix time in seconds. It matters for hybrid-logical-clock numbers only.

    Raises:
        InvalidValue: a critical store is not among the views.
    """
    text, vector = critical_views(views)
    if strategy is _BY_A_PERSON:
        return _plan(doc_id, views, strategy, _Decision(_MANUAL, reason=MANUAL_REASON), policy)
    if text.presence is _ABSENT and vector.presence is _ABSENT:
        return _plan(doc_id, views, strategy, _absent_everywhere(views), policy)
    if strategy is _MOST_RECENT:
        return _plan_most_recent(doc_id, views, policy, now)
    source = "text" if strategy is _TEXT_SOURCE else "vector"
    sources = (source,) if policy.traits[source].holds_text else ()
    return _plan(doc_id, views, strategy, _trust(source, views, policy, now), policy, sources=sources)


def _plan_most_recent(doc_id: str, views: Mapping[str, Observation], policy: Policy, now: float) -> RepairPlan:
    strategy = _MOST_RECENT
    decision = _most_recent(views, policy)
    sources: tuple[str, ...] = ()
    if decision.action is _COPY and decision.version is not None:
        sources = _most_recent_sources(views, decision.version, policy)
    plan = _plan(doc_id, views, strategy, decision, policy, sources=sources)
    doubt = _untrusted_time(views, policy, now) if plan.writes else None
    return plan if doubt is None else _plan(doc_id, views, strategy, _manual(views, doubt), policy)


def plan_resolution(
    doc_id: str,
    views: Mapping[str, Observation],
    choice: Literal["text", "vector", "delete"],
    policy: Policy,
) -> RepairPlan:
    """Carry out a person's choice. It overrides tombstones and numbers, and uses a version that a store holds.

    "text" and "vector" take that store's copy; "delete" writes a tombstone at the highest number that a critical
    store holds.

    Args:
        doc_id: the document.
        views: as in `plan_repair`.
        choice: the store whose copy is right, or "delete".
        policy: the settings and what the stores promise.

    Raises:
        InvalidValue: a critical store is not among the views, or the choice is none of the three.
    """
    critical = critical_views(views)
    if choice not in ("text", "vector", "delete"):
        raise InvalidValue("choice", f"must be one of 'text', 'vector', 'delete', not {choice!r}")
    sources: tuple[str, ...] = ()
    if all(view.presence is _ABSENT for view in critical):
        decision = _absent_everywhere(views)
    elif choice == "delete":
        decision = _latest_tombstone(*critical)
    elif views[choice].presence is not _LIVE:
        decision = _manual(views, f"the {choice} store holds no copy that could be taken")
    else:
        version = _version_of(choice, views, policy)
        decision = _copy(version)
        same = [
            name
            for name in CRITICAL_STORES
            if name != choice and version is not None and _holds(views[name], version, policy.traits[name])
        ]
        sources = tuple(name for name in (choice, *same) if policy.traits[name].holds_text)
    return _plan(doc_id, views, None, decision, policy, sources=sources)
