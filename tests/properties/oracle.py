"""The table of DESIGN written down a second time, naively: what shall become of a document that two stores hold so.

It shares no code with `_planning`; where the two disagree, one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from trio_repair import AbsentMeans, DocumentVersion, Observation, Presence, SyncStrategy
from trio_repair.testing import EMBEDDING

from .scenario import CRITICAL

ABSENT, TOMBSTONE, LIVE = Presence.ABSENT, Presence.TOMBSTONE, Presence.LIVE


@attrs.frozen(kw_only=True)
class Verdict:
    action: Literal["copy", "delete", "manual", "nowhere"]
    version: DocumentVersion | None = None
    sources: tuple[str, ...] = ()
    """Stores that can give the text."""
    lagging: tuple[str, ...] = ()
    """Stores that are not as they shall be."""

    @property
    def decidable(self) -> bool:
        return self.action in ("copy", "delete")


def number_of(view: Observation) -> int | None:
    return None if view.version is None else view.version.number


def is_right(store: str, view: Observation, version: DocumentVersion | None) -> bool:
    """The store holds the version, whole, and by today's model. (Critical stores here keep tombstones.)"""
    if version is None:
        return view.presence is ABSENT
    if view.version is None or view.version.number != version.number:
        return False
    if version.deleted:
        return view.presence is TOMBSTONE
    if view.presence is not LIVE or view.version.digest != version.digest or not view.intact:
        return False
    return store != "vector" or view.embedding == EMBEDDING


def judge(
    text: Observation,
    vector: Observation,
    strategy: SyncStrategy,
    *,
    absent: Mapping[str, AbsentMeans],
    missing_source: str,
) -> Verdict:
    """What the table says."""
    views = {"text": text, "vector": vector}
    if strategy is SyncStrategy.MANUAL_RESOLUTION:
        return Verdict(action="manual")
    if text.presence is ABSENT and vector.presence is ABSENT:
        return Verdict(action="nowhere")
    if strategy is SyncStrategy.MOST_RECENT:
        choice = _most_recent(views, absent)
    else:
        source = "text" if strategy is SyncStrategy.TEXT_SOURCE_OF_TRUTH else "vector"
        choice = _trusted(source, views, missing_source)
    if choice == "manual":
        return Verdict(action="manual")
    kind, name = choice
    held = views[name].version
    if kind == "delete":
        version = DocumentVersion(number=number_of(views[name]), deleted=True)
        return Verdict(action="delete", version=version, lagging=_lagging(views, version))
    lagging = _lagging(views, held)
    sources = _readable(views, held, strategy)
    if lagging and not sources:
        return Verdict(action="manual")
    return Verdict(action="copy", version=held, sources=sources, lagging=lagging)


def _lagging(views: Mapping[str, Observation], version: DocumentVersion | None) -> tuple[str, ...]:
    return tuple(name for name in CRITICAL if not is_right(name, views[name], version))


def _readable(
    views: Mapping[str, Observation], version: DocumentVersion | None, strategy: SyncStrategy
) -> tuple[str, ...]:
    """The stores of this test refuse to read a damaged copy, and prove every other one."""
    holding = [name for name in CRITICAL if views[name].version == version and views[name].intact]
    if strategy is SyncStrategy.TEXT_SOURCE_OF_TRUTH:
        return ("text",) if "text" in holding else ()
    if strategy is SyncStrategy.VECTOR_SOURCE_OF_TRUTH:
        return ("vector",) if "vector" in holding else ()
    if views["vector"].embedding != EMBEDDING and views["text"].version != version and "vector" in holding:
        holding.remove("vector")
    return tuple(holding)


def _most_recent(
    views: Mapping[str, Observation], absent: Mapping[str, AbsentMeans]
) -> tuple[str, str] | Literal["manual"]:
    for here, there in (CRITICAL, CRITICAL[::-1]):
        if views[there].presence is ABSENT:
            if views[here].presence is TOMBSTONE:
                return ("delete", here)
            return {
                AbsentMeans.MISSING: ("copy", here),
                AbsentMeans.DELETED: ("delete", here),
                AbsentMeans.MANUAL: "manual",
            }[absent[there]]
    numbers = {name: number_of(views[name]) for name in CRITICAL}
    presences = {name: views[name].presence for name in CRITICAL}
    if set(presences.values()) == {LIVE, TOMBSTONE}:
        live = "text" if presences["text"] is LIVE else "vector"
        dead = "vector" if live == "text" else "text"
        if numbers[live] is None or numbers[dead] is None:
            return "manual"
        return ("delete", dead) if numbers[dead] >= numbers[live] else ("copy", live)
    if presences["text"] is TOMBSTONE:
        return ("delete", _higher(numbers))
    if views["text"].version == views["vector"].version:
        return ("copy", "text")
    same_text = views["text"].version.digest == views["vector"].version.digest
    if numbers["text"] == numbers["vector"] or (None in numbers.values() and not same_text):
        return "manual"
    return ("copy", _higher(numbers))


def _higher(numbers: Mapping[str, int | None]) -> str:
    text, vector = (-1 if numbers[name] is None else numbers[name] for name in CRITICAL)
    return "text" if text >= vector else "vector"


def _trusted(source: str, views: Mapping[str, Observation], missing_source: str) -> tuple[str, str] | Literal["manual"]:
    target = "vector" if source == "text" else "text"
    ours, theirs = views[source], views[target]
    if ours.presence is ABSENT:
        if theirs.presence is TOMBSTONE or missing_source == "delete":
            return ("delete", target)
        return "manual"
    if ours.presence is TOMBSTONE:
        if theirs.presence is TOMBSTONE:
            return ("delete", _higher({source: number_of(ours), target: number_of(theirs)}))
        return ("delete", source)
    if theirs.presence is TOMBSTONE:
        live, dead = number_of(ours), number_of(theirs)
        if live is None or dead is None or dead >= live:
            return "manual"
    return ("copy", source)
