"""The embedded text store: documents in a plain SQLite table, with a full-text index beside it.

The table is an ordinary one. Applications may read and write it with plain SQL: ``doc_id``, ``text`` and, if they
like, ``metadata`` (a JSON object) and ``number`` are enough. Triggers keep the index in step, give the row a new
revision and forget a digest that no longer fits; a digest that is NULL is computed whenever somebody looks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Literal

import apsw

from trio_repair import AbsentMeans, ContentDefinition, Fence, InvalidValue, StoreTraits

from ._encoding import check_limit, load_json, moment_text
from ._layout import (
    DATE_DELETE,
    DIGEST_FITS,
    DOC_ID_COLUMN,
    METADATA_COLUMN,
    NUMBER_COLUMN,
    SQL_NOW,
    Layout,
    Put,
    Wholeness,
    insert_rows,
    plain_columns,
    revision_triggers,
)
from ._search_hit import SearchHit
from ._settings import path_setting, refuse_unknown, synchronous_setting
from ._sqlite import Session, SqliteFile, Synchronous
from ._sqlite_store import MAX_BATCH, TombstoneStore
from ._threaded_store import opened

__all__ = ["SQLiteTextStore", "SearchHit", "open_sqlite_text", "sqlite_text_from_settings"]

_SCHEMA: Final = f"""
CREATE TABLE documents (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  {DOC_ID_COLUMN},
  {NUMBER_COLUMN},
  digest TEXT,
  deleted INTEGER NOT NULL DEFAULT 0 CHECK (deleted IN (0, 1)),
  updated_at TEXT,
  written_at TEXT NOT NULL DEFAULT ({SQL_NOW}),
  rev INTEGER NOT NULL DEFAULT 0,
  text TEXT CHECK (deleted = 1 OR text IS NOT NULL),
  {METADATA_COLUMN}
) STRICT;
CREATE INDEX documents_deleted ON documents (doc_id) WHERE deleted = 1;

CREATE VIRTUAL TABLE documents_fts USING fts5 (text, content = 'documents', content_rowid = 'id');
CREATE TRIGGER documents_fts_insert AFTER INSERT ON documents WHEN NEW.deleted = 0 BEGIN
  INSERT INTO documents_fts (rowid, text) VALUES (NEW.id, NEW.text);
END;
CREATE TRIGGER documents_fts_update AFTER UPDATE OF id, text, deleted ON documents BEGIN
  INSERT INTO documents_fts (documents_fts, rowid, text) SELECT 'delete', OLD.id, OLD.text
    WHERE EXISTS (SELECT 1 FROM documents_fts_docsize WHERE id = OLD.id);
  INSERT INTO documents_fts (rowid, text) SELECT NEW.id, NEW.text WHERE NEW.deleted = 0;
END;
CREATE TRIGGER documents_fts_delete AFTER DELETE ON documents BEGIN
  INSERT INTO documents_fts (documents_fts, rowid, text) SELECT 'delete', OLD.id, OLD.text
    WHERE EXISTS (SELECT 1 FROM documents_fts_docsize WHERE id = OLD.id);
END;
{revision_triggers(f"{DIGEST_FITS}, {DATE_DELETE}")}"""
# FTS5 must never be told to delete what it does not hold, which would corrupt it: hence each EXISTS. AUTOINCREMENT: a
# REPLACE by foreign SQL may leave an index row behind, and no later document may inherit its id. The text stands last,
# so that looking at the other columns of a long document reads no overflow pages.

_INSERT: Final = (
    "INSERT INTO documents (doc_id, text, metadata, number, digest, deleted, updated_at, written_at, rev) VALUES"
)
_UPSERT: Final = (
    "ON CONFLICT (doc_id) DO UPDATE SET text = excluded.text, metadata = excluded.metadata, number = excluded.number,"
    " digest = excluded.digest, deleted = excluded.deleted, updated_at = excluded.updated_at,"
    " written_at = excluded.written_at, rev = excluded.rev"
)


_SNIPPET_BYTES: Final = 10_000
_PASSAGE_CHARACTERS: Final = 160


class _TextLayout(Layout):
    """A row for each document and tombstone."""

    def columns(self, connection: apsw.Connection, content: str) -> str:  # noqa: ARG002 - other kinds need it
        indexed = "EXISTS (SELECT 1 FROM documents_fts_docsize AS f WHERE f.id = d.id)"
        return f"{plain_columns(content)}, d.deleted = 1 OR {indexed} AS parts, 1 AS whole, NULL AS embedding"

    def whole(self, connection: apsw.Connection) -> Sequence[Wholeness]:  # noqa: ARG002 - other kinds need it
        return [Wholeness(join="LEFT JOIN documents_fts_docsize AS f ON f.id = d.id", condition="f.id IS NOT NULL")]

    def put(self, session: Session, puts: Sequence[Put]) -> None:
        now = self.now_text()
        rows = []
        for put in puts:
            document, version = put.document, put.document.version
            updated_at = None if version.updated_at is None else moment_text(version.updated_at)
            rows.append(
                (
                    document.doc_id,
                    document.text,
                    put.payload,
                    version.number,
                    version.digest,
                    int(version.deleted),
                    updated_at,
                    now,
                    put.revision,
                )
            )
        insert_rows(session.main, _INSERT, rows, _UPSERT)

    def erase(self, session: Session, ids: str) -> None:
        session.main.execute("DELETE FROM documents WHERE doc_id IN (SELECT value FROM json_each(?))", (ids,))


class SQLiteTextStore(TombstoneStore):
    """A text store in one SQLite file; made by `open_sqlite_text`."""

    async def search(
        self, query: str, limit: int = 10, *, syntax: Literal["words", "fts5"] = "words"
    ) -> Sequence[SearchHit]:
        """Find live documents by words, best first.

        Args:
            query: "words": text as people type it; a document must hold all of its words. "fts5": an expression of
                SQLite's FTS5 with its operators.
            limit: at most so many hits, at least 1.
            syntax: how to read `query`.

        Raises:
            InvalidValue: `limit` or `syntax` is not usable, or FTS5 cannot read the expression.
            StoreUnavailable: the file cannot be read now.

        A text of more than 10,000 bytes has no snippet made by FTS5, which takes time in the square of the hits in
        it: the passage begins where the first word does, or with the text.

        **If cancelled:** nothing has changed.
        """
        check_limit(limit)
        if syntax not in {"words", "fts5"}:
            raise InvalidValue("syntax", f"must be 'words' or 'fts5', not {syntax!r}")
        expression = query if syntax == "fts5" else quote_words(query)
        if not expression:
            return []
        first = "" if syntax == "fts5" else _words(query)[0]
        return await self._run(self._search_call, expression, limit, first)

    def _search_call(self, session: Session, expression: str, limit: int, first: str) -> list[SearchHit]:
        sql = (
            "SELECT CAST(json_group_array(json_array(doc_id, score, snippet)) AS BLOB) FROM ("
            "SELECT d.doc_id AS doc_id, -bm25(documents_fts) AS score,"
            f" CASE WHEN length(CAST(d.text AS BLOB)) <= {_SNIPPET_BYTES}"  # that of a text ends at a NUL
            " THEN snippet(documents_fts, 0, '[', ']', '…', 24)"
            f" ELSE substr(d.text, max(1, instr(lower(d.text), lower(?3)) - 20), {_PASSAGE_CHARACTERS}) END AS snippet"
            " FROM documents_fts JOIN documents AS d ON d.id = documents_fts.rowid"
            " WHERE documents_fts MATCH ?1 AND d.deleted = 0 ORDER BY rank LIMIT ?2)"
        )
        try:
            hits = load_json(session.main.execute(sql, (expression, limit, first)).get)
        except (apsw.SQLError, UnicodeEncodeError):  # an expression of FTS5, and of UTF-8
            raise InvalidValue("query", "FTS5 cannot read it; see FTS5's query syntax, or use syntax='words'") from None
        return [SearchHit(*hit) for hit in hits]


def quote_words(query: str) -> str:
    """An FTS5 expression for text as people type it: each word quoted, so that none of it is syntax, and only once.

    FTS5 goes along all places of a word for each time that it is asked for: a passage that says one word hundreds of
    times, looked for in a document that says it many thousand times, would take minutes.
    """
    return " ".join(['"' + word.replace('"', '""') + '"' for word in dict.fromkeys(_words(query))])


def _words(query: str) -> list[str]:
    return query.replace("\0", " ").encode(errors="replace").decode().split()


def open_sqlite_text(
    path: str | os.PathLike[str],
    *,
    content: ContentDefinition | None = None,
    create: bool = False,
    synchronous: Synchronous = "full",
    name: str = "text",
    clock: Callable[[], float] = time.time,
) -> AbstractAsyncContextManager[SQLiteTextStore]:
    """Open a text store in one SQLite file, and close it on the way out.

    Args:
        path: the file. On a directory that cannot be written to, the store is opened for reading only.
        content: what a document's digest covers; None: the text alone. A file remembers what it was made for.
        create: make the file (mode 0600) if it is not there.
        synchronous: how hard commits are pushed to the disk; see `Synchronous`.
        name: the store's name in errors.
        clock: Unix seconds, for the time at which a row was written.

    Raises (on entering):
        InvalidValue: an argument is not usable.
        StoreFileError: the file is missing, foreign, damaged, locked, or made for other content.

    **If cancelled:** the file is closed. It may have been made; never in part.
    """
    definition = ContentDefinition() if content is None else content
    file = SqliteFile(
        path=Path(path),
        store=name,
        kind="sqlite-text",
        content=definition,
        schema=_SCHEMA,
        create=create,
        synchronous=synchronous,
    )
    traits = StoreTraits(
        fence=Fence.STRONG,
        holds_text=True,
        keeps_tombstones=True,
        absent=AbsentMeans.MISSING,
        max_batch=MAX_BATCH,
    )
    return opened(SQLiteTextStore(file, traits, _TextLayout(name, definition, clock)))


def sqlite_text_from_settings(
    settings: Mapping[str, Any], *, name: str, directory: Path, content: ContentDefinition, create: bool
) -> AbstractAsyncContextManager[SQLiteTextStore]:
    """The kind "sqlite-text" of a configuration file: `path`, and perhaps `synchronous`.

    Raises:
        InvalidValue: a setting is unknown, missing or wrong; its key is named.
    """
    refuse_unknown(settings, ("path", "synchronous"))
    return open_sqlite_text(
        path_setting(settings, directory),
        content=content,
        create=create,
        synchronous=synchronous_setting(settings),
        name=name,
    )
