"""How rows of PostgreSQL become observations and documents. How they are written is apart, in a `Writer`.

Everything here runs in the store's thread. A `Looking` is SQL and nothing else, so that tables which somebody else
made are looked at by the same code as our own: only the expressions differ.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, Protocol, TypeAlias

import attrs

from trio_repair import (
    ContentDefinition,
    Document,
    DocumentVersion,
    EmbeddingIdentity,
    InvalidValue,
    Observation,
    Presence,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreUnavailable,
)

from ._encoding import load_metadata, parse_moment
from ._fence import ABSENT, ABSENT_TOKEN
from ._postgres import Connection, Session

PAGE_ROWS: Final = 1000
_EXACT_BELOW: Final = 5_000_000
"""Rows that are still counted, which takes some 0.1 s for each million."""

Row: TypeAlias = tuple[Any, ...]
"""doc_id, number, digest, deleted, updated_at, token, intact, embedding, text, metadata; see `Looking`."""


@attrs.frozen(kw_only=True)
class Looking:
    """SQL expressions for what a row says of its document. Constants in them are quoted, and each "%" is doubled."""

    table: str
    """What stands after FROM; ``d`` is the table that the others speak of, with one row for each document."""
    join: str = ""
    """What the others speak of besides; it neither adds nor drops rows."""
    doc_id: str
    """text."""
    number: str
    """bigint, or NULL."""
    digest: str
    """text; NULL or '' if it has to be computed here from the content."""
    deleted: str
    """boolean."""
    updated_at: str
    """text in ISO 8601, or NULL."""
    token: str
    """text; changes whenever anything that an observation shows changes, whoever changed it."""
    intact: str = "TRUE"
    """boolean: all parts of a live copy are there."""
    embedding: str = "NULL"
    """JSON as text: model, dimension, chunking; NULL for stores without vectors."""
    current: str = "TRUE"
    """boolean: a live copy has the embedding that is in use."""
    text: str
    """text, from which `rebuild` makes the document's."""
    metadata: str
    """A JSON object as text."""
    held: str = "TRUE"
    """boolean: the row counts as held."""
    order: str
    """doc_id such that it is ordered by bytes and an index can be used."""
    key: str | None = None
    """boolean: the row is of a document in the bound list ``%(ids)s``; None: `order` is compared with it."""
    undigested: str | None = None
    """boolean: the digest has to be computed here; None: `digest` says so."""
    rebuild: Callable[[str], str | None] = str
    """Makes a document's text of what `text` gives; None if it cannot be had."""

    @property
    def relation(self) -> str:
        """What stands after FROM where the expressions stand after SELECT."""
        return f"{self.table} {self.join}"

    def columns(self, content: str) -> str:
        """The expressions of a `Row`; text and metadata where the condition `content` holds, and where the digest must
        be computed from them.
        """
        undigested = f"nullif({self.digest}, '') IS NULL" if self.undigested is None else self.undigested
        needed = f"CASE WHEN NOT ({self.deleted}) AND ({content} OR {undigested})"
        return (
            f"{self.doc_id} AS doc_id, {self.number} AS number, nullif({self.digest}, '') AS digest,"
            f" {self.deleted} AS deleted, {self.updated_at} AS updated_at, {self.token} AS token,"
            f" {self.intact} AS intact, CASE WHEN NOT ({self.deleted}) THEN {self.embedding} END AS embedding,"
            f" {needed} THEN {self.text} END AS text, {needed} THEN {self.metadata} END AS metadata"
        )

    @property
    def summary(self) -> str:
        """What `trio_repair.summarize` makes of a row; '' for one that has to be looked at."""
        number = f"coalesce(({self.number})::text, '')"
        digest = f"({self.digest})"
        return (
            f"CASE WHEN {self.deleted} THEN 't' || {number}"
            # All of it ASCII: as many bytes as characters.
            f" WHEN {digest} <> '' AND octet_length({digest}) = char_length({digest})"
            f" AND ({self.intact}) AND ({self.current}) THEN {digest} || ' ' || {number} ELSE '' END"
        )


@attrs.frozen
class Put:
    """A write that passed the fence."""

    document: Document
    payload: Any
    existed: bool
    """Whether there is a row, which is locked."""


class Writer(Protocol):
    """How the rows of one kind of store are written, in a transaction that is open."""

    @property
    def keeps_tombstones(self) -> bool:
        """Whether a tombstone is a row; if not, writing one takes the rows away."""
        ...

    def lock(self, session: Session, doc_ids: Sequence[str]) -> None:
        """Keep others from changing these documents, in byte order of doc_id; absent ones cannot be locked."""
        ...

    def put(self, session: Session, puts: Sequence[Put]) -> set[str]:
        """Write these documents; the ids of those that were to be new and that somebody else has made meanwhile."""
        ...

    def erase(self, session: Session, doc_ids: Sequence[str]) -> None:
        """Take away all rows of these documents, which are locked."""
        ...


class View:
    """Looks at rows.

    Args:
        store: the store's name in errors.
        content: what a document's digest covers.
        looking: the expressions.
    """

    def __init__(self, store: str, content: ContentDefinition, looking: Looking) -> None:
        self.store = store
        self.content = content
        self.looking = looking

    def check(self, session: Session) -> None:
        """See that the tables can be read."""
        session.execute(f"SELECT {self.looking.columns('FALSE')} FROM {self.looking.relation} LIMIT 0")

    def rows(
        self, session: Session, doc_ids: Sequence[str], *, content: str = "FALSE", connection: Connection | None = None
    ) -> dict[str, Row]:
        """The rows of these documents, by doc_id.

        Raises:
            StoreUnavailable: a document has two rows, as only tables of somebody else's can have it.
        """
        looking = self.looking
        sql = (
            f"SELECT {looking.columns(content)} FROM {looking.relation}"
            f" WHERE {looking.key or f'{looking.order} = ANY(%(ids)s)'} AND ({looking.held})"
        )
        rows = session.execute(sql, {"ids": list(doc_ids)}, connection=connection).fetchall()
        found = {row[0]: row for row in rows}
        if len(found) < len(rows):
            self._refuse_twice([row[0] for row in rows])
        return found

    def _refuse_twice(self, doc_ids: Sequence[str]) -> NoReturn:
        """Of a document in two rows nothing can be said, and a write would make one of them of both."""
        twice, _ = Counter(doc_ids).most_common(1)[0]
        problem = (
            f"two rows have the id {twice!r}; let table.where name one of them, or remove the other, which may be in"
            " a table that inherits from this one"
        )
        raise StoreUnavailable(self.store, problem)

    def observations(self, session: Session, doc_ids: Sequence[str]) -> list[Observation]:
        """What is held of each document, in order."""
        rows = self.rows(session, doc_ids)
        return [self.observation(rows.get(doc_id)) for doc_id in doc_ids]

    def documents(self, session: Session, doc_ids: Sequence[str]) -> list[StoredDocument | StoreError]:
        """What is stored of each document, in order."""
        rows = self.rows(session, doc_ids, content="TRUE")
        return [self._stored(doc_id, rows.get(doc_id)) for doc_id in doc_ids]

    def count(self, session: Session) -> int:
        """How many documents and tombstones are held; for millions of them, what the planner thinks."""
        looking = self.looking
        counted = f"FROM {looking.table} WHERE {looking.held}"
        (plan,) = session.execute(f"EXPLAIN (FORMAT JSON) SELECT 1 {counted}").fetchone() or (None,)
        guess = int(plan[0]["Plan"]["Plan Rows"]) if plan else 0
        if guess > _EXACT_BELOW:
            return guess
        found = session.execute(f"SELECT count(*) {counted}").fetchone()
        return int(found[0]) if found else 0

    def page(self, session: Session, reader: Connection, after: str) -> list[tuple[str, Observation]]:
        """Some documents of a snapshot, from the first doc_id > `after` on; none at the end."""
        session.use_reader(reader)
        looking = self.looking
        sql = (
            f"SELECT {looking.columns('FALSE')} FROM {looking.relation} WHERE {looking.order} > %s AND ({looking.held})"
            f" ORDER BY {looking.order} LIMIT {PAGE_ROWS}"
        )
        rows = session.execute(sql, (after,), connection=reader).fetchall()
        if len({row[0] for row in rows}) < len(rows):
            self._refuse_twice([row[0] for row in rows])
        return [(row[0], self.observation(row)) for row in rows]

    def look(self, session: Session, reader: Connection, doc_ids: Sequence[str]) -> list[Observation]:
        """What a snapshot holds of each document, in order."""
        session.use_reader(reader)
        rows = self.rows(session, doc_ids, connection=reader)
        return [self.observation(rows.get(doc_id)) for doc_id in doc_ids]

    def observation(self, row: Row | None) -> Observation:
        """What a row says; None: there is none."""
        if row is None:
            return ABSENT
        _, number, digest, deleted, updated_at, token, intact, embedding, _, _ = row
        if deleted:
            version = _version(number, "", True, updated_at)  # noqa: FBT003 - a cached function is faster so
            return Observation(presence=Presence.TOMBSTONE, token=token, version=version)
        if digest is None:
            digest = self._digest(row)
        return Observation(
            presence=Presence.LIVE,
            token=token,
            version=_version(number, digest, False, updated_at),  # noqa: FBT003
            intact=bool(intact) and digest != "",
            embedding=None if embedding is None else _identity(embedding),
        )

    def _content_of(self, row: Row) -> tuple[str, Mapping[str, Any]] | None:
        text = None if row[8] is None else self.looking.rebuild(row[8])
        metadata = load_metadata(row[9])
        return None if text is None or metadata is None else (text, metadata)

    def _digest(self, row: Row) -> str:
        """The digest of the content in a row; "" if there is no content that could have one."""
        held = self._content_of(row)
        if held is None:
            return ""
        try:
            return self.content.digest(*held)
        except InvalidValue:
            return ""

    def _stored(self, doc_id: str, row: Row | None) -> StoredDocument | StoreError:
        if row is None:
            return StoredDocument(document=None, token=ABSENT_TOKEN)
        _, number, digest, deleted, updated_at, token, *_ = row
        moment = parse_moment(updated_at)
        if deleted:
            grave = Document.tombstone(doc_id, number=number, updated_at=moment)
            return StoredDocument(document=grave, token=token)
        proven = self._digest(row)
        held = self._content_of(row)
        if held is None or not proven or (digest is not None and proven != digest):
            problem = "its content does not have the digest that is stored with it; repair it from another store"
            return StoreRejected(self.store, problem, doc_id)
        text, metadata = held
        version = DocumentVersion(number=number, digest=proven, updated_at=moment)
        document = Document(doc_id=doc_id, text=text, metadata=metadata, version=version)
        return StoredDocument(document=document, token=token)


@functools.lru_cache(maxsize=4096)
def _version(number: int | None, digest: str, deleted: bool, updated_at: str | None) -> DocumentVersion:
    """A repair looks at the same version of a document some seven times."""
    return DocumentVersion(number=number, digest=digest, deleted=deleted, updated_at=parse_moment(updated_at))


@functools.lru_cache(maxsize=64)
def _identity(fields: str) -> EmbeddingIdentity:
    return EmbeddingIdentity(**json.loads(fields))


def iso_moment(expression: str) -> str:
    """SQL that writes a timestamptz as text in ISO 8601, as `parse_moment` reads it."""
    return f"""to_char({expression} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')"""


def row_token(row: Row | None) -> str:
    """The token of a row, or that of its absence."""
    return ABSENT_TOKEN if row is None else str(row[5])


def sent_moment(moment: dt.datetime | None) -> str | None:
    """A moment for a bound timestamptz. As text: the driver has no words for one within hours of year 1 or 9999."""
    return None if moment is None else moment.isoformat()
