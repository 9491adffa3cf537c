"""Ranges of a SQLite store: the entries of each come out of SQLite as one value.

SQLite joins them without a Python object for a document and without the interpreter lock, so that the threads of
several stores work side by side.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import apsw
import attrs

from trio_repair import Observation, RangeDigest, RangeListing, StoreUnavailable

from ._layout import ALL, Layout, Wholeness
from ._sqlite import Session

_PAGE_DOCUMENTS: Final = 1000
_KEPT_BYTES: Final = 9 * 2**18
"""How many bytes of entries are kept for listings: 2.25 MiB, some 27,000 documents with short ids, as many as a check
has under way. Where ids are so long that they do not fit, ranges that differ are read twice."""

# Where ranges end: the places of the documents that are `:nth` further each time, from the index alone. With that, the
# other statement needs no LIMIT and so no subquery for it, which would cost half as much again.
_ENDS: Final = (
    "WITH RECURSIVE ends (place, doc_id) AS (SELECT 0, :after UNION ALL SELECT place + 1, ("
    "SELECT d.doc_id FROM documents AS d WHERE d.doc_id > ends.doc_id AND d.doc_id <= ifnull(:bound, x'')"
    " AND {visible} ORDER BY d.doc_id LIMIT 1 OFFSET :nth - 1"
    ") FROM ends WHERE place < :count AND doc_id IS NOT NULL)"
    " SELECT json_group_array(doc_id) FROM ends WHERE place > 0"
)
# A row for each range, by one statement: for each further one, the interpreter lock would have to be had again, and a
# busy event loop may keep it for a millisecond. A blob is greater than any text. The order is that of the index, which
# is asked for by name. `note_odd()` counts and gives "": it is called for copies that are not whole, while another
# aggregate would find out about each document twice.
_ENTRIES: Final = (
    "SELECT CASE WHEN {too_many} THEN NULL ELSE (SELECT CAST("
    "count(*) || ' ' || ifnull({proof}, '') || char(0) || ifnull(group_concat("
    "d.doc_id || char(0) || CASE WHEN {deleted} THEN 't' || ifnull(d.number, '')"
    " WHEN d.digest > '' AND {whole} THEN d.digest || ' ' || ifnull(d.number, '') ELSE note_odd() END, char(0)"
    ") || char(0), '') AS BLOB) FROM documents AS d INDEXED BY sqlite_autoindex_documents_1 {join}"
    " WHERE d.doc_id > r.after AND d.doc_id <= r.bound AND {visible}) END"
    " FROM (SELECT value ->> 0 AS after, ifnull(value ->> 1, x'') AS bound FROM json_each(:ranges)) AS r"
)
_TOO_MANY: Final = (
    ":most >= 0 AND EXISTS (SELECT 1 FROM documents AS d WHERE d.doc_id > r.after AND d.doc_id <= r.bound"
    "{visible} LIMIT 1 OFFSET :most)"
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


def _between(after: str | None, bounds: Sequence[str | None]) -> list[tuple[str | None, str | None]]:
    """Consecutive ranges, from where they end."""
    return list(zip([after, *bounds[:-1]], bounds, strict=True))


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
        listing = self.at_hand(after, bound)
        if listing is None:
            listing = await self._run(self._list, after, bound)
        return listing

    def at_hand(self, after: str | None, bound: str | None) -> RangeListing | None:
        """The entries of a range, if they are kept."""
        kept = self._kept.get((after, bound))
        return RangeListing(entries=kept.entries, more=False) if kept is not None and kept.is_plain else None

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
        ends = self._ends(session, after, None, size, count)
        found: list[tuple[str, _Held]] = []
        for end, held in zip(ends, self._read(session, _between(after, ends)), strict=True):
            assert held is not None  # any number is allowed
            if held.digest.count:
                told = held
                if end is None and not held.is_plain:  # its last entry may not tell the last id
                    (read,) = self._read(session, [(found[-1][0] if found else after, None)], doubtful=True)
                    assert read is not None
                    told = read
                found.append((told.last if end is None else end, held))
        return found

    def _measure(
        self, session: Session, after: str | None, bounds: Sequence[str | None], most: int
    ) -> list[_Held | None]:
        return self._read(session, _between(after, bounds), most)

    def _list(self, session: Session, after: str | None, bound: str | None) -> RangeListing:
        (end,) = self._ends(session, after, bound, _PAGE_DOCUMENTS, 1)
        page = [(after, bound if end is None else end)]
        (held,) = self._read(session, page)
        if held is not None and not held.is_plain:
            (held,) = self._read(session, page, doubtful=True)
        assert held is not None  # any number is allowed
        return RangeListing(entries=held.entries, more=end is not None)

    def _ends(self, session: Session, after: str | None, bound: str | None, size: int, count: int) -> list[str | None]:
        """The ids of every `size`th document, `count` of them; the last one is None where there are no more."""
        session.raise_if_abandoned()
        session.use_reader(self._reader)
        sql = _ENDS.format(visible=self._layout.visible())
        bindings = {"after": after or "", "bound": bound, "nth": size, "count": count, "now": self._layout.clock()}
        try:
            ends: list[str | None] = json.loads(self._reader.execute(sql, bindings).get)
        except UnicodeDecodeError:
            raise self._not_utf8() from None
        return ends

    def _read(
        self,
        session: Session,
        ranges: Sequence[tuple[str | None, str | None]],
        most: int = -1,
        *,
        doubtful: bool = False,
    ) -> list[_Held | None]:
        """What is held of some ranges; None for one with more than `most` documents, if that is not negative."""
        session.use_reader(self._reader)
        if not self._ways:
            self._reader.create_scalar_function("note_odd", self._note_odd, 0)
            self._ways = self._layout.whole(self._reader)
        found: dict[int, _Held | None] = {}
        left = list(range(len(ranges)))
        for way in self._ways:
            edges = [(ranges[index][0] or "", ranges[index][1]) for index in left]
            bindings = {"ranges": json.dumps(edges, ensure_ascii=False), "most": most, "now": self._layout.clock()}
            again = []
            self._odd = 0  # before the first row is made, which is now
            rows = self._reader.execute(self._sql(way, doubtful=doubtful), bindings)
            for index, (answer,) in zip(left, rows, strict=True):
                session.raise_if_abandoned()
                odd, self._odd = self._odd, 0
                if answer is None:
                    found[index] = None
                    continue
                head, entries = answer.split(b"\0", 1)
                count, proven = head.split(b" ")
                if way.proof is not None and (odd or proven != b"1"):
                    again.append(index)
                    continue
                self._check_ids(entries)
                digest = RangeDigest(count=int(count), odd=odd, digest=hashlib.sha256(entries).digest())
                found[index] = _Held(digest, entries)
            left = again
            if not left:
                break
        return [found[index] for index in range(len(ranges))]

    def _sql(self, way: Wholeness, *, doubtful: bool) -> str:
        layout = self._layout
        # That all are not too many can be told from the index alone.
        too_many = _TOO_MANY.format(visible="")
        if layout.visible() != ALL:
            too_many += " AND " + _TOO_MANY.format(visible=f" AND {layout.visible()}")
        return _ENTRIES.format(
            too_many=too_many,
            proof="NULL" if way.proof is None else way.proof,
            deleted="d.deleted" if layout.keeps_tombstones else "FALSE",
            whole=f"{_PLAIN} AND {way.condition}" if doubtful else way.condition,
            join=way.join,
            visible=layout.visible(),
        )

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
