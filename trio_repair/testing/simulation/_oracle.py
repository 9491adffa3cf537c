"""What shall become of a document, written down once more and naively, to judge the engine's decisions by.

It shares no code with the engine's planning. Where the two disagree, one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import attrs

from trio_repair import AbsentMeans, DocumentVersion, EmbeddingIdentity, Observation, Presence, SyncStrategy

CRITICAL: Final = ("text", "vector")

_HLC_EPOCH: Final = 1_577_836_800.0
_ABSENT, _TOMBSTONE, _LIVE = Presence.ABSENT, Presence.TOMBSTONE, Presence.LIVE


@attrs.frozen(kw_only=True)
class Judgement:
    """What the table says."""

    action: Literal["copy", "delete", "manual", "nowhere"]
    version: DocumentVersion | None = None
    lagging: tuple[str, ...] = ()
    """Critical stores that are not as they shall be."""

    @property
    def decidable(self) -> bool:
        """The engine may act on it."""
        return self.action in ("copy", "delete")


@attrs.frozen(kw_only=True)
class Rules:
    """The settings that the table depends on."""

    absent: Mapping[str, AbsentMeans]
    missing_source: str
    hlc: bool
    skew: float
    embedding: EmbeddingIdentity

    def right(self, store: str, view: Observation, version: DocumentVersion | None) -> bool:
        """Whether a store holds the version, whole, and by today's model. Critical stores here keep tombstones."""
        if version is None:
            return view.presence is _ABSENT
        if view.version is None:
            return store == "cache" and version.deleted
        if view.version.number != version.number or view.version.deleted != version.deleted:
            return False
        if version.deleted:
            return True
        whole = view.version.digest == version.digest and view.intact
        return whole and (store != "vector" or view.embedding == self.embedding)

    def judge(self, text: Observation, vector: Observation, strategy: SyncStrategy, *, now: float) -> Judgement:
        """Decide on a document of which the critical stores hold this."""
        views = {"text": text, "vector": vector}
        if strategy is SyncStrategy.MANUAL_RESOLUTION:
            return Judgement(action="manual")
        if text.presence is _ABSENT and vector.presence is _ABSENT:
            return Judgement(action="nowhere")
        overrides = {text.presence, vector.presence} == {_LIVE, _TOMBSTONE}
        if strategy is SyncStrategy.MOST_RECENT:
            choice = self._most_recent(views)
        else:
            choice = self._trusted("text" if strategy is SyncStrategy.TEXT_SOURCE_OF_TRUTH else "vector", views)
        if choice is None:
            return Judgement(action="manual")
        kind, winner = choice
        version = views[winner].version
        if kind == "delete":
            version = DocumentVersion(number=_number(views[winner]), deleted=True)
        lagging = tuple(name for name in CRITICAL if not self.right(name, views[name], version))
        if not lagging:
            return Judgement(action=kind, version=version)
        if kind == "copy" and not self._readable(views, version, strategy):
            return Judgement(action="manual")
        if self.hlc and self._doubtful(views, now):
            orders = strategy is SyncStrategy.MOST_RECENT or (kind == "copy" and overrides)
            if orders:
                return Judgement(action="manual")
        return Judgement(action=kind, version=version, lagging=lagging)

    def _doubtful(self, views: Mapping[str, Observation], now: float) -> bool:
        held = [views[name].version for name in CRITICAL]
        versions = [version for version in held if version is not None and version.number is not None]
        times = [_time(version) for version in versions]
        if any(time > now + self.skew for time in times):
            return True
        if len(versions) < 2:
            return False
        one, other = versions
        same = (one.digest, one.deleted) == (other.digest, other.deleted)
        return one.number != other.number and abs(times[0] - times[1]) <= self.skew and not same

    def _readable(
        self, views: Mapping[str, Observation], version: DocumentVersion | None, strategy: SyncStrategy
    ) -> bool:
        """Whether a store that may be a source can give the text. Stores here refuse to read a damaged copy."""
        holding = [name for name in CRITICAL if views[name].version == version and views[name].intact]
        if strategy is SyncStrategy.TEXT_SOURCE_OF_TRUTH:
            return "text" in holding
        if strategy is SyncStrategy.VECTOR_SOURCE_OF_TRUTH:
            return "vector" in holding
        if "text" in holding:
            return True
        trusted = views["vector"].embedding == self.embedding or views["text"].version == version
        return "vector" in holding and trusted

    def _most_recent(self, views: Mapping[str, Observation]) -> tuple[Literal["copy", "delete"], str] | None:
        for here, there in (CRITICAL, CRITICAL[::-1]):
            if views[there].presence is _ABSENT:
                if views[here].presence is _TOMBSTONE:
                    return ("delete", here)
                means = self.absent[there]
                if means is AbsentMeans.MANUAL:
                    return None
                return ("copy" if means is AbsentMeans.MISSING else "delete", here)
        text, vector = views["text"], views["vector"]
        numbers = {"text": _number(text), "vector": _number(vector)}
        higher = "text" if _rank(numbers["text"]) >= _rank(numbers["vector"]) else "vector"
        if text.presence is not vector.presence:
            live, dead = ("text", "vector") if text.presence is _LIVE else ("vector", "text")
            if numbers[live] is None or numbers[dead] is None:
                return None
            return ("copy", live) if _rank(numbers[live]) > _rank(numbers[dead]) else ("delete", dead)
        if text.presence is _TOMBSTONE:
            return ("delete", higher)
        if text.version == vector.version:
            return ("copy", "text")
        if numbers["text"] == numbers["vector"]:
            return None
        unordered = None in numbers.values()
        if unordered and text.version is not None and vector.version is not None:
            return ("copy", higher) if text.version.digest == vector.version.digest else None
        return ("copy", higher)

    def _trusted(self, source: str, views: Mapping[str, Observation]) -> tuple[Literal["copy", "delete"], str] | None:
        target = "vector" if source == "text" else "text"
        ours, theirs = views[source], views[target]
        if ours.presence is _ABSENT:
            return ("delete", target) if theirs.presence is _TOMBSTONE or self.missing_source == "delete" else None
        if ours.presence is _TOMBSTONE:
            if theirs.presence is _TOMBSTONE and _rank(_number(theirs)) > _rank(_number(ours)):
                return ("delete", target)
            return ("delete", source)
        if theirs.presence is _TOMBSTONE:
            live, dead = _number(ours), _number(theirs)
            if live is None or dead is None or dead >= live:
                return None
        return ("copy", source)


def _number(view: Observation) -> int | None:
    return None if view.version is None else view.version.number


def _rank(number: int | None) -> int:
    return -1 if number is None else number


def _time(version: DocumentVersion) -> float:
    assert version.number is not None
    return _HLC_EPOCH + (version.number >> 12) / 1000
