"""A table of chunks that somebody else made: what is seen of a document in its rows, and how they are replaced.

Whoever inserts chunks of a document that has none cannot be seen before he commits, and no row of his can be locked. So
a write takes a lock on the table that lets readers pass and makes other writers wait; what is seen after that holds.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from typing import Any, Final

import attrs

from trio_repair import EmbeddingIdentity, InvalidValue, Observation
from trio_repair.abc import Chunker
from trio_repair.embedding import rebuild_text

from ._embedding import Failure, cut
from ._pgvector_layout import find_extension
from ._postgres import Session, literal
from ._postgres_catalog import (
    ID_KINDS,
    INTEGERS,
    TEXTS,
    Column,
    IdColumn,
    Relation,
    check_condition,
    condition,
    find_relation,
    number_of,
)
from ._postgres_layout import Looking, Put, Row, View
from ._postgres_mapping import ChunkMapping
from ._postgres_proving import difference, prove_gone
from ._postgres_table import TextTable, find_text_table, unique_columns
from ._postgres_writing import RowRefused
from ._vector_preparing import Payload

_VECTORS: Final = frozenset({"vector", "halfvec", "_float4", "_float8"})
_KEY: Final = "trio_repair_key"


@attrs.frozen(kw_only=True)
class ChunkTable:
    """A mapped table of chunks, found in the catalogue."""

    mapping: ChunkMapping
    relation: Relation
    id: IdColumn
    """Of the document, in a row ``c``."""
    text: Column
    embedding: Column
    ordinal: Column | None
    start: Column | None
    version: Column | None
    digest: Column | None
    source: TextTable | None
    """Its rows are ``a``."""
    dimensions: str
    """An expression: how many numbers a vector in a row ``c`` has."""

    @property
    def numbered(self) -> bool:
        """Whether versions have numbers."""
        return self.version is not None or (self.source is not None and self.source.numbered)

    @property
    def held(self) -> str:
        """A condition: the row is a chunk of a document."""
        return f"{condition(self.mapping.where)} AND {self.id.usable}"

    @property
    def rows(self) -> str:
        """What stands after SELECT of what is made of the chunks of a document ``d``."""
        return f"FROM {self.relation.sql} AS c WHERE {self.id.raw} = d.{_KEY} AND {self.held}"


def find_chunk_table(session: Session, mapping: ChunkMapping, dimension: int) -> ChunkTable:
    """The table that a mapping names, for vectors of this many numbers.

    Raises:
        InvalidValue: it, or a column, is not there or cannot be used so; the setting is named.
    """
    relation = find_relation(session, mapping.under, mapping.name)

    def column(key: str, name: str | None, kinds: frozenset[str]) -> Column | None:
        return None if name is None else relation.column(name, key, kinds)

    document = relation.column(mapping.document, "document", ID_KINDS)
    embedding = relation.column(mapping.embedding, "embedding", _VECTORS)
    if not embedding.kind.startswith("_") and embedding.modifier not in {-1, dimension}:
        problem = (
            f"column {mapping.embedding!r} takes vectors of {embedding.modifier} numbers, and the embedder makes"
            f" {dimension}; name the embedder that the application uses"
        )
        raise InvalidValue(f"{mapping.under}.embedding", problem)
    for name in mapping.insert:
        relation.column(name, "insert")
    check_condition(session, relation, mapping.where, "c")
    source = None
    if mapping.source is not None:
        source = find_text_table(session, mapping.source, alias="a", written=False)
        if _family(source.id.column) != _family(document):
            problem = (
                f"column {mapping.source.id!r} is of type {source.id.column.kind}, and {mapping.under}.document of type"
                f" {document.kind}; name the one that the other refers to"
            )
            raise InvalidValue(f"{mapping.source.under}.id", problem)
        unique_columns(source)
    dimensions = f"cardinality(c.{embedding.quoted})"
    if not embedding.kind.startswith("_"):
        extension = find_extension(session)
        prefix = "" if extension is None else extension.prefix
        dimensions = f"{prefix}vector_dims(c.{embedding.quoted})"
    return ChunkTable(
        mapping=mapping,
        relation=relation,
        id=IdColumn(column=document, alias="c"),
        text=relation.column(mapping.text, "text", TEXTS),
        embedding=embedding,
        ordinal=column("ordinal", mapping.ordinal, INTEGERS),
        start=column("start", mapping.start, INTEGERS),
        version=column("version", mapping.version, INTEGERS),
        digest=column("digest", mapping.digest, TEXTS),
        source=source,
        dimensions=dimensions,
    )


def _family(column: Column) -> str:
    return "text" if column.kind in TEXTS else "integer" if column.kind in INTEGERS else column.kind


def _documents(table: ChunkTable) -> str:
    """A table ``d`` with a row for each document that has chunks."""
    found = {
        _KEY: table.id.raw,
        "doc_id": table.id.text,
        "token": "md5(string_agg(c.xmin::text || '.' || c.tableoid::text || '.' || c.ctid::text, ',' ORDER BY"
        " c.tableoid, c.ctid))",
        "chunks": "count(*)",
        "filled": f"bool_and(c.{table.embedding.quoted} IS NOT NULL)",
        "least": f"min({table.dimensions})",
        "most": f"max({table.dimensions})",
    }
    if table.ordinal is not None:
        name = f"c.{table.ordinal.quoted}"
        found["gapless"] = f"count({name}) = count(*) AND max({name}) - min({name}) + 1 = count(DISTINCT {name})"
        found["gapless"] += f" AND count(DISTINCT {name}) = count(*)"
    if table.start is not None:
        length = f"char_length(c.{table.text.quoted}::text)"
        found["length"] = f"sum({length})"
        found["reach"] = f"max(c.{table.start.quoted} + {length})"
    for key, column in (("version", table.version), ("digest", table.digest)):
        if column is not None:
            name = f"c.{column.quoted}"
            same = f"count({name}) = count(*) AND min({name}) = max({name})"
            found[key] = f"CASE WHEN {same} THEN max({name}) END"
    columns = ", ".join(f"{expression} AS {name}" for name, expression in found.items())
    by = f"{table.id.raw}, {table.id.order}"  # a collation may take different ids for equal ones
    return f"(SELECT {columns} FROM {table.relation.sql} AS c WHERE {table.held} GROUP BY {by}) AS d"


def chunk_looking(table: ChunkTable, identity: EmbeddingIdentity) -> Looking:
    """How documents are seen in their chunks, by what they are compared by."""
    mapping = table.mapping
    declared = {"model": identity.model, "dimension": identity.dimension, "chunking": identity.chunking}
    size = identity.dimension
    odd = f"d.least <> {size} OR d.most <> {size}"
    other = f"CASE WHEN d.least <> {size} THEN d.least ELSE d.most END"
    made = f"json_build_object('model', {literal(identity.model)}, 'dimension', {other}"
    made += f", 'chunking', {literal(identity.chunking)})::text"
    number = "NULL::bigint" if table.version is None else number_of("d.version")
    looking = Looking(
        table=_documents(table),
        doc_id="d.doc_id",
        number=number,
        digest="NULL::text",
        deleted="FALSE",
        updated_at="NULL::text",
        token="d.token",  # noqa: S106 - a fence token
        intact="d.filled" if table.ordinal is None else "d.filled AND d.gapless",
        embedding=f"CASE WHEN {odd} THEN {made} ELSE {literal(json.dumps(declared))} END",
        current=f"d.least = {size} AND d.most = {size}",
        text="NULL::text",
        metadata="'{}'",
        order='d.doc_id COLLATE "C"',
        key=IdColumn(column=attrs.evolve(table.id.column, name=_KEY), alias="d").among(),
        undigested="FALSE",
        rebuild=_never,
    )
    if mapping.compare == "text":
        return _by_text(table, looking)
    if mapping.compare == "digest":
        return attrs.evolve(looking, digest="d.digest")
    assert table.source is not None
    source = table.source
    text = source.of(source.text)
    live = f"CASE WHEN NOT {source.is_deleted} THEN"
    # One row, or none: NULLs. Of two, `View.rows` tells.
    join = (
        f"LEFT JOIN LATERAL (SELECT {source.number} AS number, {live} {source.digest} END AS digest,"
        f" {live} {text}::text END AS text FROM {source.from_}"
        f" WHERE {source.id.raw} = d.{_KEY} AND {source.held}) AS s ON TRUE"
    )
    if mapping.compare == "version":
        digest = f"CASE WHEN {number} = s.number THEN s.digest END"
        return attrs.evolve(looking, join=join, digest=digest)
    if table.version is None:
        looking = attrs.evolve(looking, number="s.number")
    looking = attrs.evolve(looking, join=join, digest="s.digest")
    if mapping.compare == "presence":
        return looking
    digests = f"(SELECT json_agg(encode(sha256(convert_to(c.{table.text.quoted}::text, 'UTF8')), 'hex')) {table.rows})"
    return attrs.evolve(
        looking, undigested="TRUE", text=f"json_build_object('source', s.text, 'chunks', {digests})::text"
    )


def _by_text(table: ChunkTable, looking: Looking) -> Looking:
    """The text is put together again: by the server where chunks lie end to end, else here."""
    text = f"c.{table.text.quoted}::text"
    if table.start is not None:
        start = f"c.{table.start.quoted}"
        joined = f"string_agg({text}, '' ORDER BY {start})"
        known = "CASE WHEN d.length = d.reach THEN "
        looking = attrs.evolve(
            looking,
            text=f"(SELECT json_agg(json_build_array({start}, {text}) ORDER BY {start})::text {table.rows})",
            rebuild=_rebuild,
        )
    else:
        assert table.ordinal is not None
        between = literal(table.mapping.join or "")
        joined = f"string_agg({text}, {between} ORDER BY c.{table.ordinal.quoted})"
        known = "CASE WHEN TRUE THEN "
        looking = attrs.evolve(looking, text=f"(SELECT {joined} {table.rows})", rebuild=str)
    made = f"(SELECT encode(sha256(convert_to({joined}, 'UTF8')), 'hex') {table.rows})"
    return attrs.evolve(
        looking,
        # Behind OFFSET 0 it is computed once for each document, however often it is spoken of.
        join=f"CROSS JOIN LATERAL (SELECT {known} {made} END AS digest OFFSET 0) AS h",
        digest="h.digest",
        undigested="h.digest IS NULL",
    )


def _rebuild(chunks: str) -> str | None:
    pieces = json.loads(chunks)
    if any(start is None or text is None for start, text in pieces):
        return None
    return rebuild_text(pieces)


def _never(_: str) -> str | None:
    return None


def is_set_of(chunker: Chunker, source: str, digests: Sequence[str]) -> bool:
    """Whether chunks with these digests are those that a text is cut into, in whatever order."""
    chunks = cut(chunker, source)
    if isinstance(chunks, Failure):
        return False
    return sorted(digests) == sorted(hashlib.sha256(chunk.text.encode()).hexdigest() for chunk in chunks)


class ChunkSetView:
    """Mixed into a `View`: the chunks of a document are whole if they are those that its source is cut into."""

    chunker: Chunker

    def observation(self, row: Row | None) -> Observation:
        """What a row says; None: there is none."""
        if row is not None and row[8] is not None:
            seen = json.loads(row[8])
            source, digests = seen["source"], seen["chunks"] or ()
            whole = source is not None and None not in digests and is_set_of(self.chunker, source, digests)
            row = (*row[:6], bool(row[6]) and whole, *row[7:])
        return super().observation(row)  # type: ignore[misc, no-any-return]


class ChunkTableWriter:
    """Replaces all chunks of a document by new ones, in the transaction of the batch."""

    keeps_tombstones = False

    def __init__(self, table: ChunkTable, view: View) -> None:
        self._table = table
        self._view = view
        self._lock = f"LOCK TABLE {table.relation.sql} IN SHARE ROW EXCLUSIVE MODE"
        self._erase = f"DELETE FROM {table.relation.sql} AS c WHERE {table.id.among()} AND {table.held}"

    def lock(self, session: Session, doc_ids: Sequence[str]) -> None:
        del doc_ids
        session.execute(self._lock)

    def put(self, session: Session, puts: Sequence[Put]) -> set[str]:
        self.erase(session, [put.document.doc_id for put in puts if put.existed])
        rows = [json.dumps(row, ensure_ascii=False) for put in puts for row in self._rows(put)]
        table = self._table
        columns = [table.relation.columns[name] for name in self._columns()]
        names = ", ".join(column.quoted for column in columns)
        values = ", ".join(f"r.{column.quoted}" for column in columns)
        defined = ", ".join(column.defined for column in columns)
        session.execute(
            f"INSERT INTO {table.relation.sql} ({names}) SELECT {values} FROM unnest(%(rows)b::text[]) AS s (fields),"
            f" jsonb_to_record(s.fields::jsonb) AS r ({defined})",
            {"rows": rows},
        )
        self._prove(session, puts)
        return set()

    def erase(self, session: Session, doc_ids: Sequence[str]) -> None:
        if doc_ids:
            session.execute(self._erase, {"ids": list(doc_ids)})
            prove_gone(session, self._view, doc_ids)

    def _columns(self) -> list[str]:
        return [*self._table.mapping.columns.values(), *self._table.mapping.insert]

    def _rows(self, put: Put) -> list[dict[str, Any]]:
        """What is written for each chunk, by column."""
        mapping, version = self._table.mapping, put.document.version
        payload: Payload = put.payload
        found = []
        for nth, (chunk, vector) in enumerate(zip(payload.chunks, payload.vectors, strict=True)):
            row: dict[str, Any] = {
                **mapping.insert,
                mapping.document: put.document.doc_id,
                mapping.text: chunk.text,
                mapping.embedding: list(array("f", vector)),
            }
            further = {
                mapping.ordinal: mapping.first_ordinal + nth,
                mapping.start: chunk.start,
                mapping.version: version.number,
                mapping.digest: version.digest,
            }
            row.update({name: value for name, value in further.items() if name is not None})
            found.append(row)
        return found

    def _prove(self, session: Session, puts: Sequence[Put]) -> None:
        """See that what was written is what is there now. Where a source has moved on meanwhile, nothing is proved."""
        rows = self._view.rows(session, [put.document.doc_id for put in puts])
        for put in puts:
            seen = self._view.observation(rows.get(put.document.doc_id))
            held, version = seen.version, put.document.version
            if self._table.source is not None and held is not None and held.digest != version.digest:
                continue
            problem = difference(seen, put.document, numbered=self._table.version is not None)
            if problem is not None:
                raise RowRefused(problem)
