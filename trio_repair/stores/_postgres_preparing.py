"""What an existing table could be given to be checked faster or judged better. Nothing of it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from ._postgres import Session, literal, quoted_name
from ._postgres_catalog import IdColumn, Relation
from ._postgres_table import TextTable

if TYPE_CHECKING:
    from ._pgvector_table import ChunkTable

_COLUMN = "repair_version"
_LOCKS = "It locks out writers while it is made; to avoid that, run it by hand with CREATE INDEX CONCURRENTLY."


@attrs.frozen(kw_only=True)
class Preparation:
    """Something that could be added to a database."""

    name: str
    """Unique among those of a store."""
    why: str
    """What it helps with, and what it costs."""
    statements: Sequence[str]
    """SQL, without a semicolon at the end."""


def text_preparations(store: str, table: TextTable, *, served: bool) -> list[Preparation]:
    """What would help with a table of documents."""
    found = []
    if not served:
        found.append(_order(table.relation, table.id))
    # The column that is there already lacks nothing but to be named in the settings.
    if not table.numbered and _COLUMN not in table.relation.columns:
        found.append(_version(store, table))
    return found


def chunk_preparations(table: ChunkTable) -> list[Preparation]:
    """What would help with a table of chunks."""
    if table.mapping.document in table.relation.indexed:
        return []
    sql = f"CREATE INDEX ON {table.relation.sql} ({table.id.column.quoted})"
    why = f"Without an index, each look at a document reads all chunks. {_LOCKS}"
    return [Preparation(name="document-index", why=why, statements=(_plain(sql),))]


def apply(session: Session, preparations: Sequence[Preparation]) -> None:
    """Do it, all in one transaction.

    Raises:
        psycopg.Error: it could not be done, and nothing was.
    """
    session.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    session.execute("SET LOCAL statement_timeout = 0")  # an index takes as long as it takes
    for preparation in preparations:
        for statement in preparation.statements:
            session.execute(statement.replace("%", "%%"))
    session.commit()


def _order(relation: Relation, column: IdColumn) -> Preparation:
    name = column.column.quoted
    key = f'{name} COLLATE "C"' if column.column.kind == "text" else f'({name}::text) COLLATE "C"'
    sql = f"CREATE INDEX ON {relation.sql} ({key})"
    why = (
        f"Without ids in byte order, each scan sorts them all, and ranges cannot be compared by their digests. {_LOCKS}"
    )
    return Preparation(name="id-order", why=why, statements=(_plain(sql),))


def _version(store: str, table: TextTable) -> Preparation:
    """A column that counts the writes of everybody but ourselves, who bring a number along."""
    relation = table.relation
    column = quoted_name(_COLUMN)
    function = f"{quoted_name(relation.schema)}.{quoted_name(f'{relation.name[:40]}_{_COLUMN}')}"
    trigger = quoted_name(_COLUMN)
    body = f"""BEGIN
  IF current_setting('trio_repair.own', true) IS DISTINCT FROM 'on' THEN
    NEW.{column} := CASE WHEN TG_OP = 'INSERT' THEN 1
      ELSE coalesce(OLD.{column}, 0) + 1 END;
  END IF;
  RETURN NEW;
END"""
    each = f"FOR EACH ROW EXECUTE FUNCTION {function}()"
    statements = (
        f"ALTER TABLE {relation.sql}\nADD COLUMN {column} bigint DEFAULT 1",
        f"CREATE FUNCTION {function}()\nRETURNS trigger LANGUAGE plpgsql AS $trio_repair$\n{body} $trio_repair$",
        f"CREATE TRIGGER {trigger}\nBEFORE INSERT OR UPDATE ON {relation.sql}\n{each}",
    )
    why = (
        "Without versions most-recent cannot tell which of two copies is later. This column counts the writes of all"
        f" others; then say version = {literal(_COLUMN)} in [stores.{store}.table], and keep a version in the other"
        " stores too."
    )
    return Preparation(name="version", why=why, statements=tuple(map(_plain, statements)))


def _plain(sql: str) -> str:
    """A statement as people read it; `quoted_name` doubles each "%" for statements with bound values."""
    return sql.replace("%%", "%")
