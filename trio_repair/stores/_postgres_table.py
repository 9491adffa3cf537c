"""A table of documents that somebody else made: how its rows are looked at, and which columns a repair writes.

Nothing is added to it. A row's token is its ``xmin`` and its place, which move with every write, whoever wrote and
whichever column; a vacuum that freezes the row leaves ``xmin`` as it is, and one that rewrites the table (FULL) moves
tokens without a change, which only costs a second look.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import attrs

from trio_repair import ContentDefinition, Document, InvalidValue

from ._postgres import Session, literal
from ._postgres_catalog import (
    ID_KINDS,
    INTEGERS,
    JSONS,
    MOMENTS,
    TEXTS,
    Column,
    IdColumn,
    Relation,
    check_condition,
    condition,
    find_relation,
    milliseconds_of,
    number_of,
    serves_order,
)
from ._postgres_layout import Looking, Put, View, iso_moment
from ._postgres_mapping import TextMapping
from ._postgres_proving import difference, prove_gone
from ._postgres_writing import RowRefused

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
_DIGEST: Final = "trio_repair_digest"
"""A name that no condition of an operator will take for one of the table's columns."""
_NOT_TAKEN: Final = (
    "PostgreSQL makes no row of it and reports no error; does a trigger or a rule hold it back, or is there a row that"
    " its column's type or collation takes for the same?"
)


@attrs.frozen(kw_only=True)
class TextTable:
    """A mapped table, found in the catalogue."""

    mapping: TextMapping
    relation: Relation
    id: IdColumn
    text: Column
    metadata: Column | Mapping[str, str] | None
    """One JSON column, or the key in the metadata by column."""
    version: Column | None
    updated_at: Column | None
    deleted: Column | None

    @property
    def numbered(self) -> bool:
        """Whether versions have numbers."""
        return self.version is not None or self.mapping.order_by_updated_at

    @property
    def from_(self) -> str:
        """What stands after FROM."""
        return f"{self.relation.sql} AS {self.id.alias}"

    @property
    def held(self) -> str:
        """A condition: the row is a document."""
        return f"{condition(self.mapping.where)} AND {self.id.usable}"

    def of(self, column: Column) -> str:
        """A column in an expression."""
        return f"{self.id.alias}.{column.quoted}"

    @property
    def is_deleted(self) -> str:
        """A condition: the row is a tombstone."""
        if self.deleted is None:
            return "FALSE"
        name = self.of(self.deleted)
        return f"coalesce({name}, FALSE)" if self.deleted.kind == "bool" else f"({name} IS NOT NULL)"

    @property
    def number(self) -> str:
        """The number of the row's version, or NULL."""
        if self.version is not None:
            return number_of(self.of(self.version))
        if self.mapping.order_by_updated_at and self.updated_at is not None:
            return milliseconds_of(self.of(self.updated_at))
        return "NULL::bigint"

    @property
    def digest(self) -> str:
        """SHA-256 of the row's text, or NULL."""
        return f"encode(sha256(convert_to({self.of(self.text)}::text, 'UTF8')), 'hex')"

    @property
    def moment(self) -> str:
        """When the row was written, as text."""
        if self.updated_at is None:
            return "NULL::text"
        name = self.of(self.updated_at)
        return f"CASE WHEN isfinite({name}) THEN {iso_moment(name)} END"

    @property
    def metadata_json(self) -> str:
        """The row's metadata, as JSON in text; a column that is NULL is no part of it."""
        if self.metadata is None:
            return "'{}'"
        if isinstance(self.metadata, Column):
            return f"coalesce({self.of(self.metadata)}::text, '{{}}')"
        pairs = ", ".join(
            f"({literal(key)}, to_jsonb({self.of(self.relation.columns[column])}))"
            for column, key in self.metadata.items()
        )
        listed = f"(VALUES {pairs}) AS m (key, value)"
        return (
            f"coalesce((SELECT jsonb_object_agg(m.key, m.value)::text FROM {listed} WHERE m.value IS NOT NULL), '{{}}')"
        )


def find_text_table(session: Session, mapping: TextMapping, *, alias: str = "d", written: bool = True) -> TextTable:
    """The table that a mapping names.

    Raises:
        InvalidValue: it, or a column, is not there or cannot be used so; the setting is named.
    """
    relation = find_relation(session, mapping.under, mapping.name)

    def column(key: str, name: str | None, kinds: frozenset[str]) -> Column | None:
        return None if name is None else relation.column(name, key, kinds, written=written)

    text = relation.column(mapping.text, "text", TEXTS, written=written)
    metadata: Column | Mapping[str, str] | None = None
    if isinstance(mapping.metadata, str):
        metadata = relation.column(mapping.metadata, "metadata", JSONS)
    elif mapping.metadata is not None:
        for name in mapping.metadata:
            relation.column(name, "metadata")
        metadata = mapping.metadata
    for name in mapping.insert:
        relation.column(name, "insert")
    check_condition(session, relation, mapping.where, alias)
    return TextTable(
        mapping=mapping,
        relation=relation,
        # An identity column is never changed, and new rows override it.
        id=IdColumn(column=relation.column(mapping.id, "id", ID_KINDS, written=False), alias=alias),
        text=text,
        metadata=metadata,
        version=column("version", mapping.version, INTEGERS),
        updated_at=column("updated_at", mapping.updated_at, MOMENTS),
        deleted=column("deleted", mapping.deleted, MOMENTS | {"bool"}),
    )


def unique_columns(table: TextTable) -> Sequence[str]:
    """The columns of the unique index that keeps two rows from having one id.

    Raises:
        InvalidValue: there is none.
    """
    name = table.mapping.id
    for columns in table.relation.unique:  # the shortest first
        if name in columns and (len(columns) == 1 or table.mapping.where is not None):
            return columns
    problem = (
        f"column {name!r} of {table.relation.words} has no unique index without conditions, so that two rows might be"
        " one document; make one, or name the column that is the table's key"
    )
    if any(name in columns for columns in table.relation.unique):
        problem += "; where the key has further columns, table.where must say which of their values is meant"
    raise InvalidValue(f"{table.mapping.under}.id", problem)


def check_content(table: TextTable, content: ContentDefinition) -> None:
    """See that what belongs to the content has a place in the table.

    Raises:
        InvalidValue: metadata does, and has none.
    """
    if isinstance(table.metadata, Column):
        return
    known = () if table.metadata is None else table.metadata.values()
    lacking = [key for key in content.metadata_keys if key not in known]
    if lacking:
        problem = f"names no column for {lacking[0]!r}, which is part of the content here"
        raise InvalidValue(f"{table.mapping.under}.metadata", problem)


def text_looking(table: TextTable, content: ContentDefinition) -> Looking:
    """How the rows are looked at. What the server cannot digest, which is canonical JSON, comes over."""
    by_server = not content.metadata_keys
    name = table.id.alias
    return Looking(
        table=table.from_,
        # Behind OFFSET 0 it is computed once for each row, however often it is spoken of.
        join=(
            f"CROSS JOIN LATERAL (SELECT CASE WHEN NOT {table.is_deleted} THEN {table.digest} END AS {_DIGEST}"
            " OFFSET 0) AS h"
            if by_server
            else ""
        ),
        doc_id=table.id.text,
        number=table.number,
        digest=f"h.{_DIGEST}" if by_server else "NULL::text",
        deleted=table.is_deleted,
        updated_at=table.moment,
        token=f"{name}.xmin::text || '.' || {name}.ctid::text",
        text=f"{table.of(table.text)}::text",
        metadata=table.metadata_json,
        held=table.held,
        order=table.id.order,
        key=table.id.among(),
    )


def is_served(session: Session, table: TextTable) -> bool:
    """Whether an index gives the ids in byte order."""
    return serves_order(session, table.from_, table.id.order, table.held)


class TextTableWriter:
    """Writes mapped columns and no others."""

    def __init__(self, table: TextTable, unique: Sequence[str], view: View) -> None:
        self._table = table
        self._unique = unique
        self._view = view
        self.keeps_tombstones = table.deleted is not None
        named = f"{table.from_} WHERE {table.id.among()}"
        self._lock = f"SELECT 1 FROM {named} AND {table.held} ORDER BY {table.id.order} FOR UPDATE"
        self._erase = f"DELETE FROM {named} AND {table.held}"
        self._elsewhere = f"SELECT 1 FROM {named} AND NOT coalesce({table.held}, FALSE) LIMIT 1"

    def lock(self, session: Session, doc_ids: Sequence[str]) -> None:
        session.execute(self._lock, {"ids": list(doc_ids)})

    def put(self, session: Session, puts: Sequence[Put]) -> set[str]:
        rows = [(put, self._row(put)) for put in puts]
        raced = self._write(session, rows)
        if raced and session.execute(self._elsewhere, {"ids": sorted(raced)}).fetchone() is not None:
            raise RowRefused("another row has its id, which is none of those that table.where names")
        hidden = raced - self._view.rows(session, sorted(raced)).keys() if raced else set()
        if hidden:
            # Whoever was in the way may have gone again; a second time it is no race.
            again = self._write(session, [one for one in rows if one[0].document.doc_id in hidden])
            if again - self._view.rows(session, sorted(hidden)).keys():
                raise RowRefused(_NOT_TAKEN)
            raced -= hidden - again
        self._prove(session, [put.document for put in puts if put.document.doc_id not in raced])
        return raced

    def _write(self, session: Session, rows: list[tuple[Put, dict[str, Any]]]) -> set[str]:
        """The ids of those that were to be new, and of which no row was made."""
        raced: set[str] = set()
        # New ones in byte order, whatever their columns: two batches must not wait for each other in a ring.
        rows.sort(key=lambda one: (one[0].existed, sorted(one[1]) if one[0].existed else [], one[0].document.doc_id))
        for (existed, columns), some in groupby(rows, key=lambda one: (one[0].existed, sorted(one[1]))):
            group = list(some)
            ids = [put.document.doc_id for put, _ in group]
            bound = {"doc_ids": ids, "rows": [json.dumps(row, ensure_ascii=False) for _, row in group]}
            if existed:
                session.execute(self._update(columns), bound)
            else:
                made = {row[0] for row in session.execute(self._insert(columns), bound).fetchall()}
                raced |= {*ids} - made
        return raced

    def erase(self, session: Session, doc_ids: Sequence[str]) -> None:
        session.execute(self._erase, {"ids": list(doc_ids)})
        prove_gone(session, self._view, doc_ids)

    def _row(self, put: Put) -> dict[str, Any]:
        """What is written, by column."""
        table, document = self._table, put.document
        version = document.version
        row: dict[str, Any] = {table.id.column.name: document.doc_id}
        if not put.existed:
            row.update(table.mapping.insert)
        if document.text is not None:
            row[table.text.name] = document.text
            if isinstance(table.metadata, Column):
                row[table.metadata.name] = dict(document.metadata)
            elif table.metadata is not None:
                row.update({column: document.metadata.get(key) for column, key in table.metadata.items()})
        elif not put.existed:
            row[table.text.name] = ""
        if table.version is not None:
            row[table.version.name] = version.number
        if table.updated_at is not None:
            row[table.updated_at.name] = _sent(self._moment(document))
        if table.deleted is not None and table.deleted.kind == "bool":
            row[table.deleted.name] = version.deleted
        elif table.deleted is not None:
            when = (version.updated_at or dt.datetime.now(dt.timezone.utc)) if version.deleted else None
            row[table.deleted.name] = _sent(when)
        # What must have a value and is given none keeps the one that it has, or gets its default.
        return {
            name: value for name, value in row.items() if value is not None or not table.relation.columns[name].required
        }

    def _moment(self, document: Document) -> dt.datetime | None:
        version = document.version
        if not self._table.mapping.order_by_updated_at:
            return version.updated_at
        if version.number is None:
            return None
        moment = version.updated_at
        if moment is not None and (moment - _EPOCH) // dt.timedelta(milliseconds=1) == version.number:
            return moment
        return _EPOCH + dt.timedelta(milliseconds=version.number)

    def _fields(self, columns: Sequence[str]) -> str:
        """A table ``n`` of what is written, under names that are in nobody's way."""
        table = self._table.relation
        named = ", ".join(f"r.{table.columns[name].quoted} AS trio_repair_{nth}" for nth, name in enumerate(columns))
        # These columns and no others: a type of another one may allow no row without a value of it.
        defined = ", ".join(table.columns[name].defined for name in columns)
        return (
            f"(SELECT s.doc_id AS trio_repair_id, {named} FROM unnest(%(doc_ids)b::text[], %(rows)b::text[])"
            f" AS s (doc_id, fields), jsonb_to_record(s.fields::jsonb) AS r ({defined})) AS n"
        )

    def _update(self, columns: Sequence[str]) -> str:
        table = self._table
        key = table.id.column.name
        settings = ", ".join(
            f"{table.relation.columns[name].quoted} = n.trio_repair_{nth}"
            for nth, name in enumerate(columns)
            if name != key
        )
        return (
            f"UPDATE {table.from_} SET {settings} FROM {self._fields(columns)}"
            f" WHERE {table.id.raw} = n.trio_repair_{list(columns).index(key)}"
            f" AND {table.id.order} = n.trio_repair_id AND {table.held}"
        )

    def _insert(self, columns: Sequence[str]) -> str:
        table = self._table
        names = ", ".join(table.relation.columns[name].quoted for name in columns)
        values = ", ".join(f"n.trio_repair_{nth}" for nth in range(len(columns)))
        unique = ", ".join(table.relation.columns[name].quoted for name in self._unique)
        return (
            f"INSERT INTO {table.from_} ({names}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {self._fields(columns)}"
            f' ORDER BY n.trio_repair_id COLLATE "C" ON CONFLICT ({unique}) DO NOTHING RETURNING {table.id.text}'
        )

    def _prove(self, session: Session, documents: Sequence[Document]) -> None:
        """See that what was written is what is there now, whatever triggers and types make of it.

        Raises:
            RowRefused: it is not.
        """
        rows = self._view.rows(session, [document.doc_id for document in documents])
        for document in documents:
            seen = self._view.observation(rows.get(document.doc_id))
            problem = difference(seen, document, numbered=self._table.numbered)
            if problem is not None:
                raise RowRefused(problem)


def _sent(moment: dt.datetime | None) -> str | None:
    """In UTC, for columns without a time zone; where that has no year to be in, as it is."""
    if moment is None:
        return None
    try:
        return moment.astimezone(dt.timezone.utc).isoformat()
    except OverflowError:
        return moment.isoformat()
