"""Compare what stores hold of a range of ids, as bytes, with as little work for a document as can be.

The entries of a range are ``doc_id NUL summary NUL`` for each document, in order. No id is empty, and neither an id nor
a summary holds NUL. In UTF-8, the order of bytes is that of the ids.
"""

from __future__ import annotations

import operator
import re
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from typing import Final, TypeAlias

import attrs

from ._summary import summarize
from ._views import Observation, RangeDigest, StoreTraits

Record: TypeAlias = tuple[bytes, bytes]
"""The id and the summary of one document."""

_ID: Final = operator.itemgetter(0)
_ODD: Final = re.compile(rb"[^\0]+(?=\0\0)")
_FEW: Final = 32
_FIRST_STEP: Final = 256


def entry(doc_id: str, view: Observation, traits: StoreTraits) -> bytes:
    """What stands in the entries of a range for one document."""
    return f"{doc_id}\0{summarize(view, traits)}\0".encode()


def agree(digests: Mapping[str, RangeDigest | None]) -> bool:
    """Whether the copies of all documents of a range agree, by role; what is missing from the cache is nothing.

    None is a digest that is not known, and agrees with nothing.
    """
    text, vector, cache = digests["text"], digests["vector"], digests.get("cache")
    if text is None or text != vector or text.odd:
        return False
    return "cache" not in digests or (cache is not None and (cache.count == 0 or cache == text))


@attrs.frozen
class Found:
    """What a comparison found."""

    documents: int
    """The distinct ids."""
    suspects: Sequence[str]
    """The documents on which the stores may disagree, in order."""


def compare(
    entries: Mapping[str, bytes], after: str | None, bound: str | None, *, odd: Collection[str] | None = None
) -> Found:
    """Compare what the stores hold of the range (after, bound], by role. What it calls equal, `diagnose` does too.

    Only where entries differ are they taken apart; `test_check.py` holds it against `diagnose`.

    Args:
        entries: by role; the cache may be left out.
        after: where the range begins.
        bound: where it ends.
        odd: the stores of which summaries may be ""; None: all.

    Raises:
        BadEntries: the entries of a store are not what they should be, where they differ from the others.
    """
    text, vector, cache = entries["text"], entries["vector"], entries.get("cache", b"")
    edges = _bytes(after), _bytes(bound)
    suspects: set[bytes] = set()
    elsewhere: set[bytes] = set()
    if text != vector:
        mine, theirs = _apart(("text", text), ("vector", vector), edges)
        suspects.update(map(_ID, set(mine).symmetric_difference(theirs)))
        elsewhere = set(map(_ID, theirs)).difference(map(_ID, mine))
    if cache and cache != text:
        mine, theirs = _apart(("text", text), ("cache", cache), edges)
        differing = set(map(_ID, set(theirs).difference(mine)))
        suspects |= differing
        elsewhere |= differing.difference(map(_ID, mine))
    for role, held in entries.items():
        if (odd is None or role in odd) and b"\0\0" in held:
            suspects.update(_valid(role, _ODD.findall(held)))
    return Found(text.count(0) // 2 + len(elsewhere), [doc_id.decode() for doc_id in sorted(suspects)])


class BadEntries(Exception):
    """A store's entries are malformed, not in strictly ascending order, or out of their range. Internal."""

    def __init__(self, role: str) -> None:
        super().__init__(f"{role} store: bad entries")
        self.role = role


def check_entries(role: str, entries: bytes, after: str | None, bound: str | None) -> list[Record]:
    """The record of each document, once all are seen to be in strictly ascending order and in (after, bound].

    Raises:
        BadEntries: they are not.
    """
    return _checked(role, entries, _bytes(after), _bytes(bound))


def joined(records: Sequence[Record]) -> bytes:
    """The entries that these records are of."""
    return b"".join([b"%b\0%b\0" % record for record in records])


def take(records: Sequence[Record], bound: str) -> int:
    """How many of these records are at or before `bound`."""
    return bisect_right(records, bound.encode(), key=_ID)


def _bytes(doc_id: str | None) -> bytes | None:
    return None if doc_id is None else doc_id.encode()


def _valid(role: str, ids: Sequence[bytes]) -> Sequence[bytes]:
    try:
        b"".join(ids).decode()
    except UnicodeDecodeError:
        raise BadEntries(role) from None
    return ids


def _checked(role: str, entries: bytes, after: bytes | None, bound: bytes | None) -> list[Record]:
    parts = entries.split(b"\0")
    ids, summaries = parts[:-1:2], parts[1::2]
    if parts[-1] or len(parts) % 2 == 0 or not all(map(operator.lt, ids, ids[1:])):
        raise BadEntries(role)
    if ids and not ((after or b"") < ids[0] and (bound is None or ids[-1] <= bound)):
        raise BadEntries(role)
    _valid(role, ids)
    return [*zip(ids, summaries, strict=True)]


def _apart(
    first: tuple[str, bytes], second: tuple[str, bytes], edges: tuple[bytes | None, bytes | None]
) -> tuple[list[Record], list[Record]]:
    """Records of both, among which are all that only one of them has.

    As long as there are few, one goes from each difference to the next in steps that double; a few microseconds for
    each, where taking all entries apart costs half a microsecond for each document.
    """
    one, other = _Cursor(*first, *edges), _Cursor(*second, *edges)
    few = _FEW if abs(len(one.entries) - len(other.entries)) <= len(one.entries) // 16 else 0
    while True:
        length = _common_start(one, other)
        one.place += length
        other.place += length
        if len(one.found) + len(other.found) >= few or one.at_end or other.at_end:
            break
        mine, theirs = one.next_id(), other.next_id()
        if mine <= theirs:
            one.take()
        if theirs <= mine:
            other.take()
    end = _common_end(one, other)
    one.take_all_but(end)
    other.take_all_but(end)
    return one.found, other.found


@attrs.define
class _Cursor:
    """A way through entries, along the places where records begin."""

    role: str
    entries: bytes
    after: bytes | None
    bound: bytes | None
    place: int = 0
    found: list[Record] = attrs.field(factory=list)

    @property
    def at_end(self) -> bool:
        return self.place >= len(self.entries)

    def next_id(self) -> bytes:
        """The id of the record that begins here."""
        return self.entries[self.place : self._nul(self.place)]

    def take(self) -> None:
        """Step over a record, and note it."""
        end = self._nul(self._nul(self.place) + 1) + 1
        self.found += _checked(self.role, self.entries[self.place : end], self._previous(), self.bound)
        self.place = end

    def take_all_but(self, end: int) -> None:
        """Note what is left before the last `end` bytes."""
        rest = self.entries[self.place : len(self.entries) - end]
        self.found += _checked(self.role, rest, self._previous(), self.bound)

    def _nul(self, start: int) -> int:
        found = self.entries.find(0, start)
        if found < 0:
            raise BadEntries(self.role)
        return found

    def _previous(self) -> bytes | None:
        """The id of the record that ends here."""
        if self.place == 0:
            return self.after
        nul = self.entries.rfind(0, 0, self.place - 1)
        return self.entries[self.entries.rfind(0, 0, nul) + 1 : nul]


def _common_start(one: _Cursor, other: _Cursor) -> int:
    """The length of the records that both go on with."""
    a, b, i, j = one.entries, other.entries, one.place, other.place
    longest = min(len(a) - i, len(b) - j)
    low, step = 0, _FIRST_STEP
    while low < longest and a.startswith(b[j + low : j + low + step], i + low):
        low += step
        step *= 2
    low, high = min(low, longest), min(low + step, longest)
    while low < high:
        middle = (low + high + 1) // 2
        if a.startswith(b[j + low : j + middle], i + low):
            low = middle
        else:
            high = middle - 1
    nul = a.rfind(0, i, i + low)
    if a.count(0, i, i + low) % 2:  # it is the one behind an id
        nul = a.rfind(0, i, nul)
    return nul + 1 - i if nul >= 0 else 0


def _common_end(one: _Cursor, other: _Cursor) -> int:
    """The length of the records that both end with, of those that are left."""
    a, b = one.entries[one.place :], other.entries[other.place :]
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[len(a) - middle : len(a) - low] == b[len(b) - middle : len(b) - low]:
            low = middle
        else:
            high = middle - 1
    begin = len(a) - low
    if a.count(0, begin) % 2:  # in a summary
        begin = _behind_nul(a, begin)
    elif low and not (_begins(a, begin) and _begins(b, len(b) - low)):  # in an id
        begin = _behind_nul(a, _behind_nul(a, begin))
    return len(a) - begin


def _begins(entries: bytes, place: int) -> bool:
    return place == 0 or entries[place - 1] == 0


def _behind_nul(entries: bytes, place: int) -> int:
    found = entries.find(0, place)
    return len(entries) if found < 0 else found + 1
