"""Order for stores that have none: rows go in as they come, and come out in byte order of their ids.

They lie in a temporary SQLite database without a name, which goes with its connection, also if the process is killed.
SQLite sorts them outside of memory; what is held in memory is one cache, however many rows there are.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Final

_CACHE_KIB: Final = 8 * 1024


class Spool:
    """Rows by id: `add` all of them, then `next_page` until it gives none. For one thread, the one that made it.

    Ids are compared as UTF-8, byte by byte. Rows are the caller's own business; keep texts out of them, because they
    may lie on the disk, readable by the owner of the process alone.

    Every method raises sqlite3.Error, for instance where the disk for temporary files is full.

    Args:
        after: only ids greater than this come out; None: all.
    """

    def __init__(self, after: str | None = None) -> None:
        self._after = after
        self._groups: Iterator[tuple[str, Iterator[tuple[str, bytes]]]] | None = None
        # An empty name: on the disk, deleted as soon as it is open, and not even made while the cache holds it all.
        self._connection = sqlite3.connect("", isolation_level=None)
        try:
            for pragma in (
                f"cache_size = -{_CACHE_KIB}",
                "temp_store = FILE",  # what is sorted, too
                "journal_mode = OFF",
                "synchronous = OFF",
            ):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            self._connection.execute("CREATE TABLE rows (doc_id TEXT NOT NULL, row BLOB NOT NULL)")
        except BaseException:
            self._connection.close()
            raise

    def add(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """Take rows in, in any order; those whose ids are not wanted are passed over.

        Raises:
            RuntimeError: a page was asked for already.
        """
        if self._groups is not None:
            raise RuntimeError("rows cannot be added once they come out")
        after = self._after
        wanted = rows if after is None else (row for row in rows if row[0] > after)  # order of code points: the same
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT INTO rows VALUES (?, ?)", wanted)
        self._connection.execute("COMMIT")

    def next_page(self, size: int) -> list[tuple[str, list[bytes]]]:
        """The next ids, at most `size`, each with all rows that were added for it; none at the end."""
        if self._groups is None:
            cursor: Iterator[tuple[str, bytes]] = self._connection.execute(
                "SELECT doc_id, row FROM rows ORDER BY doc_id, rowid"
            )
            self._groups = itertools.groupby(cursor, itemgetter(0))
        return [(doc_id, [row for _, row in rows]) for doc_id, rows in itertools.islice(self._groups, size)]

    def close(self) -> None:
        """Let everything go. Idempotent."""
        self._groups = iter(())
        self._connection.close()
