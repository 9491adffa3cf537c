"""The text store on PostgreSQL: documents in a plain table, with a full-text index on a column that the server makes.

The table is an ordinary one. Applications may read and write it with plain SQL: ``doc_id``, ``text`` and, if they
like, ``metadata`` (a JSON object) and ``number`` are enough. A trigger gives the row a new revision and, where the
content is the text alone, computes the digest, so that neither is ever out of step with the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    Fence,
    InvalidValue,
    Prepared,
    StoreError,
    StoreTraits,
)

from ._encoding import check_limit
from ._jsonb import check_jsonb
from ._postgres import Server, Session, check_schema, literal
from ._postgres_layout import Looking, Put, View, iso_moment, sent_moment
from ._postgres_mapped import MappedTextStore, open_mapped, refuse_beside, text_finder
from ._postgres_mapping import text_mapping
from ._postgres_settings import (
    LOCK_TIMEOUT,
    SERVER_SETTINGS,
    STATEMENT_TIMEOUT,
    make_server,
    schema_setting,
    server_setting,
)
from ._postgres_store import MAX_BATCH
from ._postgres_tables import (
    DOC_ID_COLUMN,
    IS_OWN,
    METADATA_COLUMN,
    NUMBER_COLUMN,
    OwnTablesStore,
    Tables,
    next_revision,
    trigger_function,
    unnest,
)
from ._search_hit import SearchHit
from ._settings import refuse_unknown
from ._threaded_store import opened

__all__ = [
    "MappedTextStore",
    "PostgresTextStore",
    "SearchHit",
    "open_postgres_table",
    "open_postgres_text",
    "postgres_text_from_settings",
]

SCHEMA: Final = "trio_repair_text"
LANGUAGE: Final = "simple"

_COLUMNS: Final[Mapping[str, str]] = {
    "doc_id": "text",
    "text": "text",
    "metadata": "text",
    "number": "bigint",
    "digest": "text",
    "deleted": "boolean",
    "updated_at": "text",
}
_VALUES: Final = (
    "s.doc_id, s.text, s.metadata::jsonb AS metadata, s.number, s.digest, s.deleted,"
    " s.updated_at::timestamptz AS updated_at"
)
_HEADLINE: Final = 'StartSel="[", StopSel="]", MaxWords=24, MinWords=8, ShortWord=0'
_SHOWN_FROM: Final = 100_000
"""Characters of a text in which a snippet is looked for."""


def _statements(prefix: str, content: ContentDefinition, language: str) -> list[str]:
    if content.metadata_keys:  # the digest is of canonical JSON, which the server cannot write
        digest = (
            f"  IF NEW.deleted THEN NEW.digest := '';\n"
            f"  ELSIF TG_OP = 'UPDATE' AND NOT {IS_OWN} AND NEW.digest IS NOT DISTINCT FROM OLD.digest\n"
            "    AND (NEW.text, NEW.metadata) IS DISTINCT FROM (OLD.text, OLD.metadata) THEN NEW.digest := NULL;\n"
            "  END IF;"
        )
    else:
        digest = (
            "  NEW.digest := CASE WHEN NEW.deleted THEN ''"
            " ELSE encode(sha256(convert_to(NEW.text, 'UTF8')), 'hex') END;"
        )
    written = f"  NEW.rev := {next_revision(prefix)};\n{digest}\n  NEW.written_at := clock_timestamp();\n  RETURN NEW;"
    return [
        # A tsvector ends at 1 MB. A longer text is found by the words that it begins with, rather than not held at all.
        f"""CREATE FUNCTION {prefix}words_of(content text) RETURNS tsvector LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $trio_repair$
DECLARE size integer := char_length(content);
BEGIN
  LOOP
    BEGIN
      RETURN to_tsvector({literal(language)}::regconfig, left(content, size));
    EXCEPTION WHEN program_limit_exceeded THEN
      size := size / 2;
    END;
  END LOOP;
END $trio_repair$""",
        f"""CREATE TABLE {prefix}documents (
  {DOC_ID_COLUMN},
  {NUMBER_COLUMN},
  digest text,
  deleted boolean NOT NULL DEFAULT false,
  updated_at timestamptz,
  written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  rev bigint NOT NULL DEFAULT 0,
  text text CHECK (deleted OR text IS NOT NULL),
  {METADATA_COLUMN},
  words tsvector GENERATED ALWAYS AS (CASE WHEN deleted THEN NULL ELSE {prefix}words_of(text) END) STORED
)""",
        f"CREATE INDEX documents_words ON {prefix}documents USING gin (words)",
        f"CREATE INDEX documents_deleted ON {prefix}documents (doc_id) WHERE deleted",
        trigger_function(prefix, "documents_written", written),
        f"""CREATE TRIGGER documents_written BEFORE INSERT OR UPDATE ON {prefix}documents
FOR EACH ROW EXECUTE FUNCTION {prefix}documents_written()""",
        f"ALTER TABLE {prefix}documents ENABLE ALWAYS TRIGGER documents_written",
    ]


def _looking(prefix: str) -> Looking:
    return Looking(
        table=f"{prefix}documents AS d",
        doc_id="d.doc_id",
        number="d.number",
        digest="d.digest",
        deleted="d.deleted",
        updated_at=iso_moment("d.updated_at"),
        # xmin besides: it changes even where somebody has disabled the trigger.
        token="d.rev::text || '.' || d.xmin::text",  # noqa: S106 - a fence token
        text="d.text",
        metadata="d.metadata::text",
        order="d.doc_id",
    )


class _TextWriter:
    """A row for each document and tombstone."""

    keeps_tombstones = True

    def __init__(self, prefix: str) -> None:
        table = f"{prefix}documents"
        self._lock = f"SELECT 1 FROM {table} WHERE doc_id = ANY(%s) ORDER BY doc_id FOR UPDATE"
        self._erase = f"DELETE FROM {table} WHERE doc_id = ANY(%s)"
        rows = f"(SELECT {_VALUES} FROM {unnest(_COLUMNS)})"
        names = ", ".join(_COLUMNS)
        others = [name for name in _COLUMNS if name != "doc_id"]
        self._insert = (
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {rows} AS n"
            ' ORDER BY n.doc_id COLLATE "C" ON CONFLICT (doc_id) DO NOTHING RETURNING doc_id'
        )
        self._update = (
            f"UPDATE {table} AS d SET {', '.join(f'{name} = n.{name}' for name in others)}"
            f" FROM {rows} AS n WHERE d.doc_id = n.doc_id"
        )

    def lock(self, session: Session, doc_ids: Sequence[str]) -> None:
        session.execute(self._lock, (list(doc_ids),))

    def put(self, session: Session, puts: Sequence[Put]) -> set[str]:
        held = [put for put in puts if put.existed]
        new = [put for put in puts if not put.existed]
        if held:
            session.execute(self._update, _bound(held))
        if not new:
            return set()
        made = {row[0] for row in session.execute(self._insert, _bound(new)).fetchall()}
        return {put.document.doc_id for put in new} - made

    def erase(self, session: Session, doc_ids: Sequence[str]) -> None:
        session.execute(self._erase, (list(doc_ids),))


def _bound(puts: Sequence[Put]) -> dict[str, list[Any]]:
    versions = [put.document.version for put in puts]
    return {
        "doc_id": [put.document.doc_id for put in puts],
        "text": [put.document.text for put in puts],
        "metadata": [put.payload for put in puts],
        "number": [version.number for version in versions],
        "digest": [version.digest for version in versions],
        "deleted": [version.deleted for version in versions],
        "updated_at": [sent_moment(version.updated_at) for version in versions],
    }


class PostgresTextStore(OwnTablesStore):
    """A text store in one schema of a PostgreSQL database; made by `open_postgres_text`."""

    def __init__(self, server: Server, traits: StoreTraits, tables: Tables, *, create: bool, language: str) -> None:
        view = View(server.store, tables.content, _looking(tables.prefix))
        super().__init__(server, traits, view, _TextWriter(tables.prefix))
        self._tables = tables
        self._create = create
        self._language = language

    async def search(
        self, query: str, limit: int = 10, *, syntax: Literal["words", "websearch"] = "words"
    ) -> Sequence[SearchHit]:
        """Find live documents by words, best first.

        Args:
            query: "words": text as people type it; a document must hold all of its words. "websearch": with "quoted
                phrases", or, and -word.
            limit: at most so many hits, at least 1.
            syntax: how to read `query`.

        Raises:
            InvalidValue: `limit` or `syntax` is not usable.
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        check_limit(limit)
        if syntax not in {"words", "websearch"}:
            raise InvalidValue("syntax", f"must be 'words' or 'websearch', not {syntax!r}")
        function = "websearch_to_tsquery" if syntax == "websearch" else "plainto_tsquery"
        words = query.replace("\0", " ").encode(errors="replace").decode()
        return await self._run(self._search_call, function, words, limit)

    def _search_call(self, session: Session, function: str, words: str, limit: int) -> list[SearchHit]:
        table = f"{self._tables.prefix}documents"
        language = f"{literal(self._language)}::regconfig"
        sql = (
            f"WITH asked AS (SELECT {function}({language}, %s) AS query), hits AS MATERIALIZED ("
            f"SELECT d.doc_id, ts_rank_cd(d.words, asked.query, 1) AS score FROM {table} AS d, asked"
            " WHERE d.words @@ asked.query AND NOT d.deleted ORDER BY score DESC, d.doc_id LIMIT %s)"
            f" SELECT d.doc_id, hits.score, ts_headline({language}, left(d.text, {_SHOWN_FROM}), asked.query, %s)"
            f" FROM hits JOIN {table} AS d ON d.doc_id = hits.doc_id, asked ORDER BY hits.score DESC, d.doc_id"
        )
        rows = session.execute(sql, (words, min(limit, 2**31 - 1), _HEADLINE)).fetchall()
        return [SearchHit(doc_id, float(score), snippet) for doc_id, score, snippet in rows]

    def _prepare(self, document: Document) -> Prepared | StoreError:
        answer = super()._prepare(document)
        if isinstance(answer, StoreError):
            return answer
        refused = check_jsonb(self._name, self._tables.content, document)
        return answer if refused is None else refused

    def _open_call(self, session: Session) -> None:
        sql = "SELECT cfgname FROM pg_ts_config ORDER BY cfgname"
        known = [row[0] for row in session.execute(sql).fetchall()]
        if self._language not in known:
            raise InvalidValue(
                "language", f"is no text search configuration of the server; there are {', '.join(known)}"
            )
        super()._open_call(session)

    def _check_made(self, made: Mapping[str, Any]) -> None:
        language = made.get("language")
        if language != self._language:
            raise InvalidValue("language", f"the store was made for {language!r}, not for {self._language!r}")


def open_postgres_text(
    dsn: str,
    *,
    schema: str = SCHEMA,
    content: ContentDefinition | None = None,
    create: bool = False,
    language: str = LANGUAGE,
    statement_timeout: float = STATEMENT_TIMEOUT,
    lock_timeout: float = LOCK_TIMEOUT,
    name: str = "text",
) -> AbstractAsyncContextManager[PostgresTextStore]:
    """Open a text store in one schema of a PostgreSQL database, and close it on the way out.

    Args:
        dsn: the database, as libpq is told it: a URI, or ``key=value`` pairs. What it leaves out, libpq's environment
            variables and files say, such as the password.
        schema: where the store's tables are.
        content: what a document's digest covers; None: the text alone. A store remembers what it was made for.
        create: make the schema and its tables if they are not there.
        language: a text search configuration of the server, such as "english", for stems and stop words. A store
            remembers what it was made for.
        statement_timeout: seconds after which the server stops a statement of this store.
        lock_timeout: seconds that a lock which another transaction holds is waited for.
        name: the store's name in errors.

    Raises (at once, or on entering):
        InvalidValue: an argument is not usable; `schema` too, if it holds no store, or one of another kind.
        StoreUnavailable: the server cannot be reached, does not let us in, or has no such database.

    **If cancelled:** the connections are closed. The tables may have been made; never in part.
    """
    server = make_server(name, dsn, statement_timeout=statement_timeout, lock_timeout=lock_timeout)
    return _open(server, schema=schema, content=content, create=create, language=language)


def open_postgres_table(
    dsn: str,
    table: Mapping[str, Any],
    *,
    content: ContentDefinition | None = None,
    statement_timeout: float = STATEMENT_TIMEOUT,
    lock_timeout: float = LOCK_TIMEOUT,
    name: str = "text",
) -> AbstractAsyncContextManager[MappedTextStore]:
    """Open a table that an application has made as a text store, and close it on the way out. Nothing is added to it.

    Args:
        dsn: the database, as `open_postgres_text` is told it.
        table: which table and which columns are what: `name`, `id`, `text` and more, as in a configuration file; see
            docs/servers.md.
        content: what a document's digest covers; None: the text alone, which the server digests.
        statement_timeout: seconds after which the server stops a statement of this store.
        lock_timeout: seconds that a lock which another transaction holds is waited for.
        name: the store's name in errors.

    Raises (at once, or on entering):
        InvalidValue: an argument is not usable, or the table is not what `table` says; the key is named.
        StoreUnavailable: the server cannot be reached, does not let us in, or lets us not look at the table.

    **If cancelled:** the connections are closed.
    """
    server = make_server(name, dsn, statement_timeout=statement_timeout, lock_timeout=lock_timeout)
    definition = ContentDefinition() if content is None else content
    return open_mapped(server, text_finder(server, text_mapping(table), definition))


def _open(
    server: Server, *, schema: str, content: ContentDefinition | None, create: bool, language: str
) -> AbstractAsyncContextManager[PostgresTextStore]:
    definition = ContentDefinition() if content is None else content
    tables = Tables(
        schema=check_schema(schema),
        kind="postgres-text",
        content=definition,
        meta={"language": language},
        statements=(),
    )
    tables = attrs.evolve(tables, statements=_statements(tables.prefix, definition, language))
    traits = StoreTraits(
        fence=Fence.STRONG,
        holds_text=True,
        keeps_tombstones=True,
        absent=AbsentMeans.MISSING,
        max_batch=MAX_BATCH,
    )
    return opened(PostgresTextStore(server, traits, tables, create=create, language=language))


def postgres_text_from_settings(
    settings: Mapping[str, Any], *, name: str, directory: Path, content: ContentDefinition, create: bool
) -> AbstractAsyncContextManager[PostgresTextStore | MappedTextStore]:
    """The kind "postgres-text" of a configuration file: which server, and perhaps `schema` and `language`, or `table`.

    The server is named by `dsn`, or by `host`, `port`, `dbname`, `user`, `password` and further settings of libpq; see
    docs/servers.md.

    Raises:
        InvalidValue: a setting is unknown, missing or wrong; its key is named.
    """
    del directory  # no setting is a path of ours
    refuse_unknown(settings, (*SERVER_SETTINGS, "schema", "language", "table"))
    if "table" in settings:
        refuse_beside(settings, "schema", "language")
        mapping = text_mapping(settings["table"])
        server = server_setting(settings, name)
        return open_mapped(server, text_finder(server, mapping, content))
    language = settings.get("language", LANGUAGE)
    if not isinstance(language, str):
        raise InvalidValue("language", "must be a string")
    return _open(
        server_setting(settings, name),
        schema=schema_setting(settings, SCHEMA),
        content=content,
        create=create,
        language=language,
    )
