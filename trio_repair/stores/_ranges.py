"""Ranges of a SQLite store: the entries of each come out of SQLite as one value.

SQLite joins them without a Python object for a document and without the interpreter lock, so that the threads of
several stores work side by side.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import apsw
import attrs

from trio_repair import Observation, RangeDigest, RangeListing, StoreUnavailable

from ._layout import Layout, Wholeness
from ._sqlite import Session

_PAGE_DOCUMENTS: Final = 1000
_KEPT_BYTES: Final = 5 * 2**18
"""How many bytes of entries are kept for listings: 1.25 MiB, some 30,000 documents with short ids. A check needs half
of that; where ids are so long that it does not fit, ranges that differ are read twice."""

# The place of the nth document, from the index alone. With that, the other statement needs no LIMIT and so no subquery,
# which would cost half as much again.
_NTH: Final = (
    "SELECT d.doc_id FROM documents AS d WHERE d.doc_id > :after{bound} AND {visible}"
    " ORDER BY d.doc_id LIMIT 1 OFFSET :nth"
)
# The order is that of the index, which is asked for by name. `note_odd()` counts and gives '': it is called for copies
# that are not whole only, while a second aggregate would find out about each document twice.
_ENTRIES: Final = (
    "SELECT count(*), {proof}, CAST(group_concat("
    "d.doc_id || char(0) || CASE WHEN {deleted} THEN 't' || ifnull(d.number, '')"
    " WHEN d.digest > '' AND {whole} THEN d.digest || ' ' || ifnull(d.number, '') ELSE note_odd() END, char(0))"
    " || char(0) AS BLOB) FROM documents AS d INDEXED BY sqlite_autoindex_documents_1 {join}"
    " WHERE d.doc_id > :after{bound} AND {visible}"
)
_PLAIN: Final = "instr(d.digest, char(0)) = 0"


@attrs.frozen
class _Held:
    """What a range holds."""

    digest: RangeDigest
    entries: bytes

    @property
    def last(self) -> str:
        """The last id."""
        return self.entries[:-1].rsplit(b"\0", 2)[-2].decode()

    @property
    def is_plain(self) -> bool:
        """Whether no digest of a document holds NUL, which foreign SQL can put there.

        With NULs, the digest of the range equals no other store's, since the count is not that of the NULs. So it is
        enough to look for them in listings, which are few.
        """
        return self.entries.count(0) == 2 * self.digest.count


def _bound(bound: str | None, table: str = "d") -> str:
    return "" if bound is None else f" AND {table}.doc_id <= :bound"


class SqliteRanges:
    """`trio_repair.abc.Ranges` of one snapshot; made by `SqliteStore.open_ranges`."""

    def __init__(self, run: Callable[..., Awaitable[Any]], layout: Layout, reader: apsw.Connection) -> None:
        self._run = run
        self._layout = layout
        self._reader = reader
        # The entries of the last ranges, by their bounds, since a listing is asked for soon or never.
        self._kept: OrderedDict[tuple[str | None, str | None], _Held] = OrderedDict()
        self._kept_bytes = 0
        self._ways: Sequence[Wholeness] = ()
        self._odd = 0

    async def ranges(self, after: str | None, size: int, count: int) -> Sequence[tuple[str, RangeDigest]]:
        """Some ranges, each by one statement, all in one call.

        Raises:
            StoreUnavailable: the file cannot be read now, or holds an id that is not UTF-8.

        **If cancelled:** nothing has changed.
        """
        found: list[tuple[str, _Held]] = await self._run(self._cut, after, size, count)
        for last, held in found:
            self._keep(after, last, held)
            after = last
        return [(last, held.digest) for last, held in found]

    async def digests(self, after: str | None, bounds: Sequence[str | None], most: int) -> Sequence[RangeDigest | None]:
        """What is held of some ranges; None for one with more than `most` documents.

        Raises:
            StoreUnavailable: the file cannot be read now, or holds an id that is not UTF-8.

        **If cancelled:** nothing has changed.
        """
        found: list[_Held | None] = await self._run(self._measure, after, bounds, most)
        for bound, held in zip(bounds, found, strict=True):
            if held is not None:
                self._keep(after, bound, held)
            after = bound
        return [None if held is None else held.digest for held in found]

    async def listing(self, after: str | None, bound: str | None) -> RangeListing:
        """The entries of a range; if they are not kept, 1,000 documents to a page.

        Raises:
            StoreUnavailable: the file cannot be read now, or holds an id that is not UTF-8.

        **If cancelled:** nothing has changed.
        """
        kept = self._kept.get((after, bound))
        if kept is not None and kept.is_plain:
            return RangeListing(entries=kept.entries, more=False)
        listing: RangeListing = await self._run(self._list, after, bound)
        return listing

    async def look(self, doc_ids: Sequence[str]) -> Sequence[Observation]:
        """What the snapshot holds of some documents, in order.

        Raises:
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed.
        """
        answers: Sequence[Observation] = await self._run(self._layout.look, self._reader, doc_ids)
        return answers

    def _keep(self, after: str | None, bound: str | None, held: _Held) -> None:
        replaced = self._kept.pop((after, bound), None)
        self._kept[after, bound] = held
        self._kept_bytes += len(held.entries) - (0 if replaced is None else len(replaced.entries))
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1].entries)

    # In the store's thread.

    def _cut(self, session: Session, after: str | None, size: int, count: int) -> list[tuple[str, _Held]]:
        found: list[tuple[str, _Held]] = []
        while len(found) < count:
            held = self._read(after, self._nth(session, after, None, size))
            if not held.digest.count:
                break
            after = held.last
            found.append((after, held))
        return found

    def _measure(
        self, session: Session, after: str | None, bounds: Sequence[str | None], most: int
    ) -> list[_Held | None]:
        found: list[_Held | None] = []
        for bound in bounds:
            too_many = self._nth(session, after, bound, most + 1) is not None
            found.append(None if too_many else self._read(after, bound))
            after = bound
        return found

    def _list(self, session: Session, after: str | None, bound: str | None) -> RangeListing:
        end = self._nth(session, after, bound, _PAGE_DOCUMENTS)
        held = self._read(after, bound if end is None else end)
        if not held.is_plain:
            held = self._read(after, bound if end is None else end, doubtful=True)
        return RangeListing(entries=held.entries, more=end is not None)

    def _nth(self, session: Session, after: str | None, bound: str | None, nth: int) -> str | None:
        """The id of the nth document of a range; None if it has fewer."""
        session.raise_if_abandoned()
        session.use_reader(self._reader)
        sql = _NTH.format(bound=_bound(bound), visible=self._layout.visible())
        try:
            found = self._reader.execute(sql, {**self._bindings(after, bound), "nth": nth - 1}).get
        except UnicodeDecodeError:
            raise self._not_utf8() from None
        return found if isinstance(found, str) else None

    def _read(self, after: str | None, bound: str | None, *, doubtful: bool = False) -> _Held:
        """All documents of a range that has so few of them."""
        if not self._ways:
            self._reader.create_scalar_function("note_odd", self._note_odd, 0)
            self._ways = self._layout.whole(self._reader)
        for way in self._ways:
            self._odd = 0
            sql = self._sql(way, bound, doubtful=doubtful)
            count, proven, entries = self._reader.execute(sql, self._bindings(after, bound)).get
            if way.proof is None or (proven and not self._odd):
                break
        entries = b"" if entries is None else entries
        self._check_ids(entries)
        return _Held(RangeDigest(count=count, odd=self._odd, digest=hashlib.sha256(entries).digest()), entries)

    def _sql(self, way: Wholeness, bound: str | None, *, doubtful: bool) -> str:
        layout = self._layout
        return _ENTRIES.format(
            proof="NULL" if way.proof is None else way.proof.format(bound=_bound(bound, "x")),
            deleted="d.deleted" if layout.keeps_tombstones else "FALSE",
            whole=f"{_PLAIN} AND {way.condition}" if doubtful else way.condition,
            join=way.join,
            bound=_bound(bound),
            visible=layout.visible(),
        )

    def _bindings(self, after: str | None, bound: str | None) -> dict[str, Any]:
        return {"after": "" if after is None else after, "bound": bound, "now": self._layout.clock()}

    def _note_odd(self, *_: object) -> str:
        self._odd += 1
        return ""

    def _check_ids(self, entries: bytes) -> None:
        try:
            entries.decode()
        except UnicodeDecodeError:
            try:
                b"".join(entries.split(b"\0")[:-1:2]).decode()
            except UnicodeDecodeError:
                raise self._not_utf8() from None
            # It is a digest that is none: it equals no other store's.

    def _not_utf8(self) -> StoreUnavailable:
        return StoreUnavailable(self._layout.store, "holds a doc_id that is not UTF-8; remove that row")
