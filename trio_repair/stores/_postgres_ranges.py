"""Ranges of a PostgreSQL store: the server makes the digests, so that a range costs a few bytes of answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from trio_repair import Observation, RangeDigest, RangeListing

from ._postgres import Connection, Session
from ._postgres_layout import PAGE_ROWS, View

_ENTRY: Final = r"convert_to(doc_id, 'UTF8') || '\x00'::bytea || convert_to(summary, 'UTF8') || '\x00'::bytea"
_ENTRIES: Final = f"""coalesce(string_agg({_ENTRY}, ''::bytea ORDER BY doc_id COLLATE "C"), ''::bytea)"""
_MEASURED: Final = f"count(*), count(*) FILTER (WHERE summary = ''), sha256({_ENTRIES})"


class PostgresRanges:
    """`trio_repair.abc.Ranges` of one snapshot; made by `PostgresStore.open_ranges`."""

    def __init__(self, run: Callable[..., Awaitable[Any]], view: View, reader: Connection) -> None:
        self._run = run
        self._view = view
        self._reader = reader

    async def ranges(self, after: str | None, size: int, count: int) -> Sequence[tuple[str, RangeDigest]]:
        """Some ranges, all by one statement.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed, and the snapshot is lost.
        """
        found: list[tuple[str, RangeDigest]] = await self._run(self._cut, after, size, count)
        return found

    async def digests(self, after: str | None, bounds: Sequence[str | None], most: int) -> Sequence[RangeDigest | None]:
        """What is held of some ranges, by one statement or two; None for one with more than `most` documents.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed, and the snapshot is lost.
        """
        found: list[RangeDigest | None] = await self._run(self._measure, after, bounds, most)
        return found

    async def listing(self, after: str | None, bound: str | None) -> RangeListing:
        """The entries of a range, 1,000 documents to a page.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed, and the snapshot is lost.
        """
        listing: RangeListing = await self._run(self._list, after, bound)
        return listing

    async def look(self, doc_ids: Sequence[str]) -> Sequence[Observation]:
        """What the snapshot holds of some documents, in order.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed, and the snapshot is lost.
        """
        answers: Sequence[Observation] = await self._run(self._view.look, self._reader, doc_ids)
        return answers

    # In the store's thread.

    def _cut(self, session: Session, after: str | None, size: int, count: int) -> list[tuple[str, RangeDigest]]:
        sql = (
            f"""SELECT max(doc_id COLLATE "C"), {_MEASURED} FROM (SELECT doc_id, summary,"""
            ' (row_number() OVER (ORDER BY doc_id COLLATE "C") - 1) / %(size)s::bigint AS nth'
            f" FROM ({self._summaries('> %(after)s', limit='%(most)s')}) AS page) AS cut GROUP BY nth ORDER BY nth"
        )
        rows = self._fetch(session, sql, {"size": size, "after": _floor(after), "most": size * count})
        return [(last, _digest(*measured)) for last, *measured in rows]

    def _measure(
        self, session: Session, after: str | None, bounds: Sequence[str | None], most: int
    ) -> list[RangeDigest | None]:
        lows = [_floor(low) for low in (after, *bounds[:-1])]
        closed = [bound for bound in bounds if bound is not None]
        found: list[RangeDigest | None] = []
        if closed:
            part = self._summaries("> asked.low", bound="asked.high", limit="%(most)s")
            sql = (
                f"SELECT measured.* FROM unnest(%(lows)s::text[], %(highs)s::text[]) WITH ORDINALITY"
                f" AS asked (low, high, nth) CROSS JOIN LATERAL (SELECT {_MEASURED} FROM ({part}) AS page)"
                " AS measured ORDER BY asked.nth"
            )
            asked = {"lows": lows[: len(closed)], "highs": closed, "most": most + 1}
            found += [_unless_many(row, most) for row in self._fetch(session, sql, asked)]
        if len(closed) < len(bounds):  # the last one has no end
            part = self._summaries("> %(low)s", limit="%(most)s")
            sql = f"SELECT {_MEASURED} FROM ({part}) AS page"
            found += [_unless_many(row, most) for row in self._fetch(session, sql, {"low": lows[-1], "most": most + 1})]
        return found

    def _list(self, session: Session, after: str | None, bound: str | None) -> RangeListing:
        part = self._summaries("> %(low)s", bound=None if bound is None else "%(high)s", limit=f"{PAGE_ROWS + 1}")
        first = f"""SELECT * FROM ({part}) AS part ORDER BY doc_id COLLATE "C" LIMIT {PAGE_ROWS}"""
        sql = f"SELECT {_ENTRIES}, (SELECT count(*) FROM ({part}) AS counted) FROM ({first}) AS page"
        ((entries, there),) = self._fetch(session, sql, {"low": _floor(after), "high": bound})
        return RangeListing(entries=bytes(entries), more=there > PAGE_ROWS)

    def _summaries(self, after: str, *, bound: str | None = None, limit: str) -> str:
        """A statement for ids and summaries of a range; its bounds are SQL."""
        looking = self._view.looking
        end = "" if bound is None else f" AND {looking.order} <= {bound}"
        return (
            f"SELECT {looking.doc_id} AS doc_id, {looking.summary} AS summary FROM {looking.relation}"
            f" WHERE {looking.order} {after}{end} AND ({looking.held}) ORDER BY {looking.order} LIMIT {limit}"
        )

    def _fetch(self, session: Session, sql: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        session.use_reader(self._reader)
        return session.execute(sql, parameters, connection=self._reader).fetchall()


def _floor(after: str | None) -> str:
    return "" if after is None else after


def _digest(count: int, odd: int, digest: bytes) -> RangeDigest:
    return RangeDigest(count=count, odd=odd, digest=bytes(digest))


def _unless_many(row: tuple[Any, ...], most: int) -> RangeDigest | None:
    return None if row[0] > most else _digest(*row)
