"""How the copies of one document differ: pure comparison of what the stores were seen to hold."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import attrs

from ._enums import plain_members
from ._errors import InvalidValue
from ._model import DocumentVersion
from ._views import Observation, Presence, StoreTraits

# By names of their own: see `plain_members`.
_TOMBSTONE: Final = Presence.TOMBSTONE
_ABSENT: Final = Presence.ABSENT
_LIVE: Final = Presence.LIVE

CRITICAL_STORES: Final = ("text", "vector")
"""The stores that must agree. The cache is judged by them and never judges."""


@plain_members
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

    A store that keeps no numbers holds a version if it holds its content.
    `version` None means that nothing at all should be there. A tombstone has neither content nor vectors to compare,
    and a store that keeps no tombstones equals one by holding nothing.
    """
    if version is None:
        return observation.presence is _ABSENT
    if not observation.intact:
        return False
    held = observation.version
    if held is None:
        return version.deleted and not traits.keeps_tombstones
    if (observation.presence is _TOMBSTONE) != version.deleted:
        return False
    if held.number != version.number and traits.numbered:
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


class _Comparison(NamedTuple):
    """What is wrong between the critical stores, and the versions that a cache entry may rightly hold."""

    wrong: dict[str, DivergenceKind]
    rightful: tuple[DocumentVersion, ...] = ()
    """Several where a person must choose, none where the document is deleted or nowhere."""


def _other(store: str) -> str:
    return "vector" if store == "text" else "text"


def _compare_critical(views: Mapping[str, Observation], traits: Mapping[str, StoreTraits]) -> _Comparison:
    critical_views(views)
    numbered = all(traits[name].numbered for name in CRITICAL_STORES)
    live = {name: view.version for name in CRITICAL_STORES if (view := views[name]).presence is _LIVE}
    graves = {name: view.version for name in CRITICAL_STORES if (view := views[name]).presence is _TOMBSTONE}
    match [*live.items()], [*graves.items()]:
        case [(_, DocumentVersion() as text), (_, DocumentVersion() as vector)], []:
            return _compare_live(text, vector, numbered=numbered)
        case [(store, DocumentVersion() as version)], [(grave_store, DocumentVersion() as grave)]:
            return _compare_deleted(store, version, grave_store, grave)
        case [(store, DocumentVersion() as version)], []:
            kind = DivergenceKind.MISSING if store == "text" else DivergenceKind.ORPHAN
            return _Comparison({"vector": kind}, (version,))
        case [], [(_, DocumentVersion() as text), (_, DocumentVersion() as vector)]:
            same = text.number == vector.number or not numbered
            return _Comparison({} if same else {_lower(text, vector): DivergenceKind.STALE})
        case [], [(store, _)]:
            lacks = traits[_other(store)].keeps_tombstones
            return _Comparison({_other(store): DivergenceKind.UNDELETED} if lacks else {})
        case _:
            return _Comparison({})


def _lower(text: DocumentVersion, vector: DocumentVersion) -> str:
    return "text" if rank(text.number) < rank(vector.number) else "vector"


def _compare_live(text: DocumentVersion, vector: DocumentVersion, *, numbered: bool) -> _Comparison:
    if text == vector:
        return _Comparison({}, (text,))
    if not numbered and text.digest == vector.digest:
        return _Comparison({}, (text if vector.number is None else vector,))
    if text.number == vector.number:
        return _Comparison({"vector": DivergenceKind.CONFLICT}, (text, vector))
    lower = _lower(text, vector)
    if None in (text.number, vector.number) and text.digest != vector.digest:
        return _Comparison({lower: DivergenceKind.STALE}, (text, vector))
    return _Comparison({lower: DivergenceKind.STALE}, (vector if lower == "text" else text,))


def _compare_deleted(store: str, version: DocumentVersion, grave_store: str, grave: DocumentVersion) -> _Comparison:
    if version.number is None or grave.number is None:
        # Not ordered: a person decides, so a cache entry equal to the live copy cannot be called stale.
        return _Comparison({store: DivergenceKind.UNDELETED}, (version,))
    if grave.number >= version.number:
        return _Comparison({store: DivergenceKind.UNDELETED})
    return _Comparison({grave_store: DivergenceKind.STALE}, (version,))


def _is_cache_stale(
    cache: Observation, rightful: tuple[DocumentVersion, ...], traits: Mapping[str, StoreTraits]
) -> bool:
    if not rightful:
        # Deleted: a cache that remembers the delete serves nothing that is wrong.
        return cache.presence is _LIVE
    if cache.presence is _ABSENT:
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
    nowhere = all(views[name].presence is _ABSENT for name in CRITICAL_STORES)
    for name in CRITICAL_STORES:
        view = views[name]
        if name in found or nowhere:
            continue
        if not view.intact:
            found[name] = DivergenceKind.INCOMPLETE
        elif view.presence is _LIVE and traits[name].embedding is not None and view.embedding != traits[name].embedding:
            found[name] = DivergenceKind.STALE_EMBEDDING
    cache = views.get("cache")
    if cache is not None and _is_cache_stale(cache, rightful, traits):
        found["cache"] = DivergenceKind.ORPHAN if nowhere else DivergenceKind.STALE_CACHE
    if not found:
        return None
    findings = tuple(Finding(kind=found[name], store=name) for name in (*CRITICAL_STORES, "cache") if name in found)
    return Divergence(doc_id=doc_id, findings=findings, views=views)
