"""The tables of our own PostgreSQL stores: how they are made, and how they are known again.

A store has a schema to itself. Triggers give each row that anybody writes a new ``rev`` from a sequence; they run with
the rights of whoever made the tables, so that an application needs no rights but those on the table that it writes,
and they are ENABLE ALWAYS, so that a replication worker's writes are no exception.
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import psycopg

from trio_repair import ContentDefinition, InvalidValue

from ._encoding import check_limit
from ._postgres import Server, Session, literal, quoted_name
from ._postgres_errors import describe, sqlstate, without_content
from ._postgres_store import RangedPostgresStore

SCHEMA_VERSION: Final = 1

DOC_ID_COLUMN: Final = """doc_id text COLLATE "C" PRIMARY KEY CHECK (octet_length(doc_id) BETWEEN 1 AND 2048)"""
NUMBER_COLUMN: Final = "number bigint CHECK (number BETWEEN 0 AND 9007199254740991)"
METADATA_COLUMN: Final = "metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object')"


@attrs.frozen(kw_only=True)
class Tables:
    """Which tables, and what is expected of them."""

    schema: str
    kind: str
    content: ContentDefinition
    meta: Mapping[str, str]
    """What else they were made for, by key."""
    statements: Sequence[str]
    """Make what is in the schema, beside ``store_meta`` and the sequence ``revision``."""

    @property
    def prefix(self) -> str:
        """The schema, quoted, and the point behind it."""
        return f"{quoted_name(self.schema)}."


def trigger_function(prefix: str, name: str, body: str) -> str:
    """A function for triggers, which runs with its owner's rights."""
    return (
        f"CREATE FUNCTION {prefix}{name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        f" SET search_path = pg_catalog, pg_temp AS $trio_repair$\nBEGIN\n{body}\nEND $trio_repair$"
    )


def next_revision(prefix: str) -> str:
    """An expression for use in a trigger."""
    return f"nextval({literal(f'{prefix}revision')})"


IS_OWN: Final = "current_setting('trio_repair.own', true) IS NOT DISTINCT FROM 'on'"
"""Within a trigger: the store itself writes."""


def make_tables(session: Session, tables: Tables) -> None:
    """Make the tables if they are not there; all of them or none.

    Raises:
        InvalidValue: they cannot be made.
    """
    failure: psycopg.Error
    schema = quoted_name(tables.schema)
    try:
        session.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        session.execute("SELECT pg_advisory_xact_lock(hashtext('trio_repair'), hashtext(%s))", (tables.schema,))
        if _is_there(session, tables):
            session.execute("ROLLBACK")
            return
        there = session.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (tables.schema,)).fetchone()
        if there is None:
            session.execute(f"CREATE SCHEMA {schema}")
        session.execute(f"CREATE TABLE {schema}.store_meta (key text PRIMARY KEY, value text NOT NULL)")
        # Starting anywhere keeps a token of one store from meaning anything in another that was made in its place.
        session.execute(f"CREATE SEQUENCE {schema}.revision START WITH {1 + secrets.randbelow(2**40)}")
        for statement in tables.statements:
            session.execute(statement)
        meta = {
            "kind": tables.kind,
            "version": str(SCHEMA_VERSION),
            "metadata_keys": json.dumps(tables.content.metadata_keys),
            **tables.meta,
        }
        for pair in meta.items():
            session.execute(f"INSERT INTO {schema}.store_meta VALUES (%s, %s)", pair)
        session.commit()
    except psycopg.Error as error:
        failure = error
    else:
        return
    raise _cannot_make(tables, failure) from without_content(failure)


def _cannot_make(tables: Tables, failure: psycopg.Error) -> Exception:
    state = sqlstate(failure)
    if state == "42501":
        problem = "the user may not make it; GRANT CREATE ON DATABASE, or let the owner of the database make the store"
    elif state in {"42P07", "42723", "42710"}:
        problem = f"schema {tables.schema!r} holds something of another application under a name that the store needs"
    else:
        return failure
    return InvalidValue("schema", problem)


def check_tables(session: Session, server: Server, tables: Tables) -> Mapping[str, str]:
    """What the tables say that they were made for.

    Raises:
        InvalidValue: there are none, or they are not what is asked for.
    """
    schema = tables.schema
    if not _is_there(session, tables):
        problem = f"{server.place} holds no store in schema {schema!r}; name that of a store, or open with create=True"
        raise InvalidValue("schema", problem)
    rows = session.execute(f"SELECT key, value FROM {tables.prefix}store_meta").fetchall()
    found: dict[str, str] = {key: value for key, value in rows}  # noqa: C416 - the rows are tuples of Any
    if found.get("kind") != tables.kind:
        problem = (
            f"schema {schema!r} holds a {found.get('kind')} store, not {tables.kind}; which belongs to which store?"
        )
        raise InvalidValue("schema", problem)
    if found.get("version") != str(SCHEMA_VERSION):
        problem = f"schema {schema!r} has version {found.get('version')}; this release reads {SCHEMA_VERSION}"
        raise InvalidValue("schema", problem)
    try:
        keys = tuple(json.loads(found["metadata_keys"]))
    except (KeyError, TypeError, ValueError):
        raise InvalidValue("schema", f"schema {schema!r} does not say what it was made for; it is damaged") from None
    if keys != tables.content.metadata_keys:
        problem = (
            f"schema {schema!r} was made for content of {_content_name(keys)}, not of"
            f" {_content_name(tables.content.metadata_keys)}; use the same ContentDefinition, or make a new store"
        )
        raise InvalidValue("schema", problem)
    return found


def _is_there(session: Session, tables: Tables) -> bool:
    sql = (
        "SELECT 1 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = 'store_meta'"
    )
    return session.execute(sql, (tables.schema,)).fetchone() is not None


def _content_name(keys: Sequence[str]) -> str:
    return "text alone" if not keys else f"text and metadata {', '.join(map(repr, keys))}"


class OwnTablesStore(RangedPostgresStore):
    """A store in a schema of its own, which keeps tombstones and can list them for a purge."""

    _tables: Tables
    _create: bool

    async def tombstones(
        self, before: dt.datetime | None = None, *, after: str | None = None, limit: int = 1000
    ) -> Sequence[str]:
        """Ids of tombstones that were written before a moment of the server's clock, in byte order: one page of them.

        For the next page, pass the last id as `after`; an empty page is the end.

        Args:
            before: written earlier than this, timezone-aware; None: all.
            after: ids greater than this; None: from the start.
            limit: ids to a page, at least 1.

        Raises:
            InvalidValue: `before` is naive, or `limit` is less than 1.
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        if before is not None and before.tzinfo is None:
            raise InvalidValue("before", "must be a timezone-aware datetime; use datetime.now(timezone.utc)")
        check_limit(limit)
        bound = None if before is None else before.isoformat()
        sql = (
            f"SELECT doc_id FROM {self._tables.prefix}documents WHERE deleted AND doc_id > %(after)s AND"
            " (%(before)s::timestamptz IS NULL OR written_at < %(before)s::timestamptz) ORDER BY doc_id LIMIT %(limit)s"
        )
        asked = {"after": "" if after is None else after, "before": bound, "limit": limit}
        return await self._run(lambda session: [row[0] for row in session.execute(sql, asked).fetchall()])

    def _open_call(self, session: Session) -> None:
        if self._create:
            make_tables(session, self._tables)
        self._check_made(check_tables(session, self._server, self._tables))
        failure: psycopg.Error
        try:
            super()._open_call(session)
        except psycopg.Error as error:
            failure = error
        else:
            return
        raise self._server.error(describe(failure)) from without_content(failure)

    def _check_made(self, made: Mapping[str, Any]) -> None:
        """See that what the tables were made for is what is asked for."""


def unnest(columns: Mapping[str, str]) -> str:
    """A table ``s`` of bound lists, one for each column of these names and types.

    Binary lists to unnest: for 1,000 documents of 2 kB as fast as COPY to a staging table or faster, without the right
    to make temporary tables; lists as text took 1.6 times as long, executemany 1.3 times.
    """
    lists = ", ".join(f"%({name})b::{kind}[]" for name, kind in columns.items())
    return f"unnest({lists}) AS s ({', '.join(columns)})"
