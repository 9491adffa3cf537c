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

from ._layout import Layout
from ._sqlite import Session

_PAGE_DOCUMENTS: Final = 1000
_KEPT_BYTES: Final = 2 * 2**20
"""How many bytes of entries are kept for listings, some 24,000 documents with short ids; a check needs half of that."""

_ENTRIES: Final = (
    "SELECT count(*), count(summary),"
    " CAST(group_concat(doc_id || char(0) || ifnull(summary, ''), char(0)) || char(0) AS BLOB)"
    " FROM (SELECT d.doc_id AS doc_id, CASE WHEN {deleted} THEN 't' || ifnull(d.number, '')"
    " WHEN d.digest > '' AND {whole} THEN d.digest || ' ' || ifnull(d.number, '') END AS summary"
    " FROM documents AS d WHERE d.doc_id > :after{bound} AND {visible} ORDER BY d.doc_id LIMIT :most)"
)
_PLAIN: Final = "instr(d.digest, char(0)) = 0"


@attrs.frozen
class _Held:
    """What a range holds."""

    digest: RangeDigest
    entries: bytes


def _is_plain(held: _Held) -> bool:
    """Whether no digest holds NUL, which foreign SQL can put there.

    Then the digest of the range equals no other store's, since the count is not that of the NULs. So it is enough to
    look for it in listings, which are few.
    """
    return held.entries.count(0) == 2 * held.digest.count


class SqliteRanges:
    """`trio_repair.abc.Ranges` of one snapshot; made by `SqliteStore.open_ranges`."""

    def __init__(self, run: Callable[..., Awaitable[Any]], layout: Layout, reader: apsw.Connection) -> None:
        self._run = run
        self._layout = layout
        self._reader = reader
        # The entries of the last ranges, by their bounds, since a listing is asked for soon or never.
        self._kept: OrderedDict[tuple[str | None, str | None], _Held] = OrderedDict()
        self._kept_bytes = 0
        self._statements: dict[tuple[bool, bool], str] = {}

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
        if kept is not None and _is_plain(kept):
            return RangeListing(entries=kept.entries, more=False)
        held: _Held = await self._run(self._list, after, bound)
        return RangeListing(entries=held.entries, more=held.digest.count == _PAGE_DOCUMENTS)

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
            session.raise_if_abandoned()
            held = self._read(session, after, None, size)
            if held.digest.count == 0:
                break
            after = held.entries[:-1].rsplit(b"\0", 2)[-2].decode()
            found.append((after, held))
        return found

    def _measure(
        self, session: Session, after: str | None, bounds: Sequence[str | None], most: int
    ) -> list[_Held | None]:
        found: list[_Held | None] = []
        for bound in bounds:
            session.raise_if_abandoned()
            held = self._read(session, after, bound, most + 1)
            found.append(None if held.digest.count > most else held)
            after = bound
        return found

    def _list(self, session: Session, after: str | None, bound: str | None) -> _Held:
        held = self._read(session, after, bound, _PAGE_DOCUMENTS)
        return held if _is_plain(held) else self._read(session, after, bound, _PAGE_DOCUMENTS, doubtful=True)

    def _read(
        self, session: Session, after: str | None, bound: str | None, most: int, *, doubtful: bool = False
    ) -> _Held:
        session.use_reader(self._reader)
        bindings = {
            "after": "" if after is None else after,
            "bound": bound,
            "most": most,
            "now": self._layout.clock(),
        }
        sql = self._sql(bounded=bound is not None, doubtful=doubtful)
        count, plain, entries = self._reader.execute(sql, bindings).get
        entries = b"" if entries is None else entries
        self._check_ids(entries)
        digest = hashlib.sha256(entries).digest()
        return _Held(RangeDigest(count=count, odd=count - plain, digest=digest), entries)

    def _check_ids(self, entries: bytes) -> None:
        try:
            entries.decode()
        except UnicodeDecodeError:
            ids = entries.split(b"\0")[:-1:2]
            try:
                b"".join(ids).decode()
            except UnicodeDecodeError:
                problem = "holds a doc_id that is not UTF-8; remove that row"
                raise StoreUnavailable(self._layout.store, problem) from None
            # It is a digest that is none: it equals no other store's.

    def _sql(self, *, bounded: bool, doubtful: bool = False) -> str:
        found = self._statements.get((bounded, doubtful))
        if found is None:
            layout = self._layout
            whole = layout.whole(self._reader)
            found = self._statements[bounded, doubtful] = _ENTRIES.format(
                deleted="d.deleted" if layout.keeps_tombstones else "FALSE",
                whole=f"{_PLAIN} AND {whole}" if doubtful else whole,
                bound=" AND d.doc_id <= :bound" if bounded else "",
                visible=layout.visible(),
            )
        return found
