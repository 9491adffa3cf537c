"""How the copies of one document differ: pure comparison of what the stores were seen to hold."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from ._errors import InvalidValue
from ._model import DocumentVersion
from ._views import Observation, Presence, StoreTraits

CRITICAL_STORES: Final = ("text", "vector")
"""The stores that must agree. The cache is judged by them and never judges."""


class DivergenceKind(enum.Enum):
    """What is wrong with one store's copy of a document."""

    MISSING = "missing"
    """The vector store lacks a document that the text store holds."""
    STALE = "stale"
    """It holds a lower version (or tombstone), or an unnumbered one where the other is numbered."""
    ORPHAN = "orphan"
    """It alone holds the document, the text store does not, and there is no tombstone anywhere."""
    UNDELETED = "undeleted"
    """A tombstone did not reach it: it holds the document still, or lacks the tombstone that it would keep."""
    CONFLICT = "conflict"
    """Both critical stores name the same version and hold different content."""
    INCOMPLETE = "incomplete"
    """Part of its copy is missing or damaged."""
    STALE_EMBEDDING = "stale-embedding"
    """Its vectors were made by another model, dimension or chunking than the store uses now."""
    STALE_CACHE = "stale-cache"
    """The cache entry differs from the copy that wins, or outlived a delete."""


@attrs.frozen(kw_only=True)
class Finding:
    """One thing that is wrong, and where."""

    kind: DivergenceKind
    store: str
    """The store that is wrong. A CONFLICT lies between the critical stores and is filed under "vector"."""


def _frozen_views(views: Mapping[str, Observation]) -> Mapping[str, Observation]:
    return MappingProxyType(dict(views))


@attrs.frozen(kw_only=True)
class Divergence:
    """A document whose copies do not agree, and what each store was seen to hold."""

    doc_id: str
    findings: tuple[Finding, ...]
    """At most one for each store, the one that explains the most; in the order text, vector, cache."""
    views: Mapping[str, Observation] = attrs.field(converter=_frozen_views)

    @property
    def kinds(self) -> frozenset[DivergenceKind]:
        """The kinds of all findings."""
        return frozenset(finding.kind for finding in self.findings)


def is_equal(observation: Observation, version: DocumentVersion | None, traits: StoreTraits) -> bool:
    """Whether a store holds exactly what was decided: the version, whole, under the embedding in use now.

    `version` None means that nothing at all should be there. A tombstone has neither content nor vectors to compare,
    and a store that keeps no tombstones equals one by holding nothing.
    """
    if version is None:
        return observation.presence is Presence.ABSENT
    if not observation.intact:
        return False
    held = observation.version
    if held is None:
        return version.deleted and not traits.keeps_tombstones
    if held.number != version.number or (observation.presence is Presence.TOMBSTONE) != version.deleted:
        return False
    if version.deleted:
        return True
    return held.digest == version.digest and (traits.embedding is None or observation.embedding == traits.embedding)


def critical_views(views: Mapping[str, Observation]) -> tuple[Observation, Observation]:
    """The observations of the text and the vector store.

    Raises:
        InvalidValue: one is not there. A store that could not be observed is unknown, never absent.
    """
    for name in CRITICAL_STORES:
        if name not in views:
            raise InvalidValue("views", f"lacks the {name} store; what was not observed is unknown, never absent")
    return views["text"], views["vector"]


def rank(number: int | None) -> int:
    """Orders numbers for the sole question which of two may be given up: a missing number below every number."""
    return -1 if number is None else number


def _compare_deleted(live: Observation, tombstone: Observation) -> tuple[DivergenceKind, bool, bool]:
    """How a live copy and a tombstone differ: the kind, whether the tombstone is at fault, whether the copy wins."""
    live_number = live.version.number if live.version else None
    tombstone_number = tombstone.version.number if tombstone.version else None
    if live_number is None or tombstone_number is None:
        # Not ordered: a person decides, so a cache entry equal to the live copy cannot be called stale.
        return DivergenceKind.UNDELETED, False, True
    if tombstone_number >= live_number:
        return DivergenceKind.UNDELETED, False, False
    return DivergenceKind.STALE, True, True


def _compare_critical(
    views: Mapping[str, Observation], traits: Mapping[str, StoreTraits]
) -> tuple[dict[str, DivergenceKind], tuple[DocumentVersion | None, ...]]:
    """What is wrong between the critical stores, and the versions that a cache entry may rightly hold.

    Several versions where a person must choose, none where the document is deleted or nowhere.
    """
    text, vector = critical_views(views)
    found: dict[str, DivergenceKind] = {}
    absent = [name for name in CRITICAL_STORES if views[name].presence is Presence.ABSENT]
    deleted = [name for name in CRITICAL_STORES if views[name].presence is Presence.TOMBSTONE]
    live = [name for name in CRITICAL_STORES if views[name].presence is Presence.LIVE]

    if len(absent) == 2:
        return found, ()
    if absent and live:
        if live == ["vector"]:
            found["vector"] = DivergenceKind.ORPHAN
        else:
            found["vector"] = DivergenceKind.MISSING
        return found, (views[live[0]].version,)
    if absent:
        if traits[absent[0]].keeps_tombstones:
            found[absent[0]] = DivergenceKind.UNDELETED
        return found, ()
    if deleted and live:
        kind, tombstone_is_wrong, live_wins = _compare_deleted(views[live[0]], views[deleted[0]])
        found[deleted[0] if tombstone_is_wrong else live[0]] = kind
        return found, (views[live[0]].version,) if live_wins else ()

    if text.version is None or vector.version is None:  # pragma: no cover - absent was handled above
        return found, ()
    if text.version.number != vector.version.number:
        text_rank, vector_rank = rank(text.version.number), rank(vector.version.number)
        found["text" if text_rank < vector_rank else "vector"] = DivergenceKind.STALE
        if deleted:
            return found, ()
        if -1 in (text_rank, vector_rank) and text.version.digest != vector.version.digest:
            return found, (text.version, vector.version)
        return found, (text.version if text_rank > vector_rank else vector.version,)
    if deleted:
        return found, ()
    if text.version.digest != vector.version.digest:
        found["vector"] = DivergenceKind.CONFLICT
    return found, (text.version, vector.version)


def _is_cache_stale(
    cache: Observation, rightful: tuple[DocumentVersion | None, ...], traits: Mapping[str, StoreTraits]
) -> bool:
    if not rightful:
        # Deleted: a cache that remembers the delete serves nothing that is wrong.
        return cache.presence is Presence.LIVE
    if cache.presence is Presence.ABSENT:
        return False
    return not any(is_equal(cache, version, traits["cache"]) for version in rightful)


def diagnose(doc_id: str, views: Mapping[str, Observation], traits: Mapping[str, StoreTraits]) -> Divergence | None:
    """What is wrong with a document's copies; None if nothing is.

    Args:
        doc_id: the document.
        views: what each store holds; "cache" may be left out if there is none or it could not be observed.
        traits: of the same stores, at least.

    Raises:
        InvalidValue: a critical store is not among the views.
    """
    found, rightful = _compare_critical(views, traits)
    nowhere = all(views[name].presence is Presence.ABSENT for name in CRITICAL_STORES)
    for name in CRITICAL_STORES:
        view = views[name]
        if name in found or nowhere:
            continue
        if not view.intact:
            found[name] = DivergenceKind.INCOMPLETE
        elif (
            view.presence is Presence.LIVE
            and traits[name].embedding is not None
            and view.embedding != traits[name].embedding
        ):
            found[name] = DivergenceKind.STALE_EMBEDDING
    cache = views.get("cache")
    if cache is not None and _is_cache_stale(cache, rightful, traits):
        found["cache"] = DivergenceKind.ORPHAN if nowhere else DivergenceKind.STALE_CACHE
    if not found:
        return None
    findings = tuple(Finding(kind=found[name], store=name) for name in (*CRITICAL_STORES, "cache") if name in found)
    return Divergence(doc_id=doc_id, findings=findings, views=views)
