"""How the rows of a SQLite store become observations and documents, and where the kinds of stores differ.

Everything here runs in the store's thread. Results come out of SQLite as one JSON value and rows go in by one
statement with many rows, because the driver lets go of the interpreter lock at every step: with a busy event loop
beside it, a thousand steps are a thousand waits for that lock.
"""

from __future__ import annotations

import abc
import datetime as dt
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import apsw
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
from trio_repair._model import MAX_VERSION_NUMBER, new_version
from trio_repair._views import new_observation, new_stored_document

from ._encoding import load_json, load_metadata, moment_text, parse_moment
from ._fence import ABSENT, ABSENT_TOKEN
from ._sqlite import Session
from ._sqlite_errors import describe

_LIVE: Final = Presence.LIVE
"""By a name of its own, which on Python 3.11 costs less than to name it in its enum."""
_PAGE_ROWS: Final = 1000
_ROWS_PER_INSERT: Final = 1024
"""One statement to a batch, of no more values than SQLite can bind."""
ALL: Final = "TRUE"
"""The condition that every row meets."""
DIGEST: Final = "nullif(d.digest, '')"

Row: TypeAlias = list[Any]
"""One document as JSON: doc_id, number, digest, deleted, updated_at, rev; parts, the parts that are there, and whole,
the parts that should be; embedding, an identity's fields, 1 for the layout's own, or null; text and metadata, null
unless they are needed."""

_ROW_NAMES: Final = "doc_id, number, digest, deleted, updated_at, rev, parts, whole, embedding, text, metadata"
_FENCE_NAMES: Final = "doc_id, rev || '.' || parts"
"""The token as `row_token` makes it."""

DOC_ID_COLUMN: Final = """\
doc_id TEXT NOT NULL UNIQUE
    CHECK (length(CAST(doc_id AS BLOB)) BETWEEN 1 AND 2048 AND instr(CAST(doc_id AS BLOB), x'00') = 0)"""
NUMBER_COLUMN: Final = "number INTEGER CHECK (number BETWEEN 0 AND 9007199254740991)"
METADATA_COLUMN: Final = """\
metadata TEXT NOT NULL DEFAULT '{}'
    CHECK (json_valid(metadata) AND json_type(metadata) = 'object')"""
SQL_NOW: Final = "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')"
DIGEST_FITS: Final = (
    "digest = CASE WHEN NEW.digest IS OLD.digest AND (NEW.text IS NOT OLD.text OR NEW.metadata IS NOT OLD.metadata)"
    " THEN NULL ELSE NEW.digest END"
)
"""For `revision_triggers`: a digest that foreign SQL left alone when it changed the content is forgotten."""
DATE_DELETE: Final = f"written_at = CASE WHEN NEW.deleted > OLD.deleted THEN {SQL_NOW} ELSE NEW.written_at END"
"""For `revision_triggers`: a tombstone that foreign SQL makes of a row says when it was made."""


class Put(NamedTuple):
    """A write that passed the fence, and the revision that it gets."""

    document: Document
    payload: Any
    revision: int


@attrs.frozen(kw_only=True)
class Wholeness:
    """A way to find the live copies of a range, in ``documents AS d``, that have all their parts."""

    condition: str
    """Holds for these."""
    join: str = ""
    """What the condition needs besides; it neither adds nor drops rows."""
    proof: str | None = None
    """An aggregate over the range, without which, or if a copy was not found whole, nothing is known of any.

    The range is what is greater than ``r.after`` and not greater than ``r.bound``.
    """


class Layout(abc.ABC):
    """What one kind of store keeps in its tables, and how to look at it. Each statement binds by name.

    Args:
        store: the store's name in errors.
        content: what a document's digest covers.
        clock: Unix seconds.
    """

    keeps_tombstones = True
    identity: EmbeddingIdentity | None = None
    """What the vectors that it writes are made by."""

    def __init__(self, store: str, content: ContentDefinition, clock: Callable[[], float]) -> None:
        self.store = store
        self.content = content
        self.clock = clock

    @abc.abstractmethod
    def columns(self, connection: apsw.Connection, content: str) -> str:
        """The SQL expressions of a `Row`, over ``documents AS d``; `content` is the condition for text and metadata."""

    @abc.abstractmethod
    def put(self, session: Session, puts: Sequence[Put]) -> None:
        """Write these documents with rev = their revision, in the transaction that is open."""

    @abc.abstractmethod
    def erase(self, session: Session, ids: str) -> None:
        """Take away all rows of the documents in a JSON array."""

    @abc.abstractmethod
    def whole(self, connection: apsw.Connection) -> Sequence[Wholeness]:
        """Ways to find the live copies that have all their parts, of the embedding in use; the last one is exact.

        None of them finds a copy whole of which `columns` says anything else.
        """

    def begin(self, connection: apsw.Connection) -> int:
        """A transaction that writes has begun: look at what nobody else can change until `end`. Gives the revision.

        Raises:
            StoreUnavailable: there is none.
        """
        return self._revision(connection.execute("SELECT value FROM revision").get)

    def end(self, connection: apsw.Connection) -> None:  # noqa: B027 - most kinds have nothing to forget
        """The transaction ends; others may change everything."""

    def _revision(self, value: Any) -> int:
        if value is None:
            problem = "has lost the row of its table revision; restore it, or make a new one and repair from the others"
            raise StoreUnavailable(self.store, problem)
        return int(value)

    def visible(self) -> str:
        """The SQL condition for rows that count as held; it may name ``:now``."""
        return ALL

    def text(self, raw: Any) -> str | None:
        """The text from a `Row`'s text column; None if it cannot be had."""
        return raw if isinstance(raw, str) else None

    def now_text(self) -> str:
        """The present moment, for a column."""
        return moment_text(dt.datetime.fromtimestamp(self.clock(), dt.timezone.utc))

    def select(
        self,
        connection: apsw.Connection,
        tail: str,
        *,
        content: str = "FALSE",
        names: str = _ROW_NAMES,
        **bindings: Any,
    ) -> list[Row]:
        """Rows as one value; see the module's docstring. `tail` starts at FROM.

        Text and metadata come along where `content` holds, and where the digest must be computed from them.
        """
        sql = (
            f"SELECT CAST(json_group_array(json_array({names})) AS BLOB)"
            f" FROM (SELECT {self.columns(connection, f'{content} OR {DIGEST} IS NULL')} {tail})"
        )
        rows: list[Row] = load_json(connection.execute(sql, {"now": self.clock(), **bindings}).get)
        return rows

    def rows(
        self,
        session: Session,
        doc_ids: Sequence[str],
        *,
        content: str = "FALSE",
        names: str = _ROW_NAMES,
        connection: apsw.Connection | None = None,
    ) -> dict[str, Row]:
        """The rows of these documents, by doc_id; in several statements if one value cannot hold them."""
        tail = (
            "FROM json_each(:ids) AS wanted CROSS JOIN documents AS d ON d.doc_id = wanted.value"
            f" WHERE {self.visible()}"
        )
        ids = json.dumps(doc_ids, ensure_ascii=False)
        try:
            held = session.main if connection is None else connection
            return {row[0]: row for row in self.select(held, tail, content=content, names=names, ids=ids)}
        except apsw.TooBigError:
            if len(doc_ids) == 1:
                raise
        middle = len(doc_ids) // 2
        first = self.rows(session, doc_ids[:middle], content=content, names=names, connection=connection)
        return first | self.rows(session, doc_ids[middle:], content=content, names=names, connection=connection)

    def tokens(self, session: Session, doc_ids: Sequence[str]) -> dict[str, str]:
        """The token of each document that is held: all that a fence compares, for less than `observations`."""
        return {row[0]: row[1] for row in self.rows(session, doc_ids, names=_FENCE_NAMES).values()}

    def observations(self, session: Session, doc_ids: Sequence[str]) -> list[Observation]:
        """What is held of each document, in order."""
        rows = self.rows(session, doc_ids)
        return [self.observation(rows.get(doc_id)) for doc_id in doc_ids]

    def documents(self, session: Session, doc_ids: Sequence[str]) -> list[StoredDocument | StoreError]:
        """Each document with its content, proven by its digest, in order."""
        try:
            rows = self.rows(session, doc_ids, content="TRUE")
        except apsw.TooBigError as error:
            if len(doc_ids) == 1:
                return [StoreRejected(self.store, f"cannot be read: {describe(error)}", doc_ids[0])]
            return [answer for doc_id in doc_ids for answer in self.documents(session, [doc_id])]
        return [self._stored(doc_id, rows.get(doc_id)) for doc_id in doc_ids]

    def count(self, session: Session) -> int:
        """How many documents and tombstones count as held."""
        sql = f"SELECT count(*) FROM documents AS d WHERE {self.visible()}"
        return int(session.main.execute(sql, {"now": self.clock()}).get)

    def page(
        self, session: Session, reader: apsw.Connection, after: str, size: int = _PAGE_ROWS
    ) -> list[tuple[str, Observation]]:
        """Some documents of a snapshot, from the first doc_id > `after` on; none at the end."""
        session.use_reader(reader)
        tail = f"FROM documents AS d WHERE d.doc_id > :after AND {self.visible()} ORDER BY d.doc_id LIMIT {size}"
        try:
            rows = self.select(reader, tail, after=after)
            "".join([row[0] for row in rows]).encode()
        except apsw.TooBigError:  # so much content of which the digest must be computed
            if size == 1:
                raise
            return self.page(session, reader, after, max(1, size // 10))
        except UnicodeEncodeError:
            raise StoreUnavailable(self.store, "holds a doc_id that is not UTF-8; remove that row") from None
        return [(row[0], self.observation(row)) for row in rows]

    def look(self, session: Session, reader: apsw.Connection, doc_ids: Sequence[str]) -> list[Observation]:
        """What a snapshot holds of each document, in order."""
        session.use_reader(reader)
        rows = self.rows(session, doc_ids, connection=reader)
        return [self.observation(rows.get(doc_id)) for doc_id in doc_ids]

    def observation(self, row: Row | None) -> Observation:
        """What a row says; None: there is none."""
        if row is None:
            return ABSENT
        _, number, digest, deleted, updated_at, rev, parts, whole, embedding, _, _ = row
        token = f"{rev}.{parts}"
        if deleted:
            version = _version(number, "", True, updated_at)  # noqa: FBT003 - a cached function is faster so
            return Observation(presence=Presence.TOMBSTONE, token=token, version=version)
        if digest is None:
            digest = self._digest(row)
        return new_observation(
            _LIVE,
            token,
            _version(number, digest, False, updated_at),  # noqa: FBT003 - as above
            parts == whole and digest != "",
            None if embedding is None else self.identity if embedding == 1 else _identity(embedding),
        )

    def _digest(self, row: Row) -> str:
        """The digest of the content in a row; "" if there is no content that could have one."""
        text = self.text(row[9])
        metadata = load_metadata(row[10])
        if text is None or metadata is None:
            return ""
        try:
            return self.content.digest(text, metadata)
        except InvalidValue:
            return ""

    def _stored(self, doc_id: str, row: Row | None) -> StoredDocument | StoreError:
        if row is None:
            return StoredDocument(document=None, token=ABSENT_TOKEN)
        _, number, digest, deleted, updated_at, _, _, _, _, text, metadata = row
        if deleted:
            grave = Document.tombstone(doc_id, number=number, updated_at=parse_moment(updated_at))
            return StoredDocument(document=grave, token=row_token(row))
        proven = self._digest(row)
        if not proven or (digest is not None and proven != digest):
            problem = "its content does not have the digest that is stored with it; repair it from another store"
            return StoreRejected(self.store, problem, doc_id)
        version = _version(number, proven, False, updated_at)  # noqa: FBT003 - as in `observation`
        held = load_metadata(metadata)
        assert held is not None  # or it would have no digest
        document = Document(doc_id=doc_id, text=self.text(text), metadata=held, version=version)
        return new_stored_document(document, row_token(row))


@functools.lru_cache(maxsize=4096)
def _version(number: int | None, digest: str, deleted: bool, updated_at: str | None) -> DocumentVersion:
    """A repair looks at the same version of a document some seven times."""
    if updated_at is None and (number is None or (type(number) is int and 0 <= number <= MAX_VERSION_NUMBER)):
        return new_version(number, digest, deleted, None)
    return DocumentVersion(number=number, digest=digest, deleted=deleted, updated_at=parse_moment(updated_at))


@functools.lru_cache(maxsize=64)
def _identity(fields: str) -> EmbeddingIdentity:
    return EmbeddingIdentity(**json.loads(fields))


def row_token(row: Row | None) -> str:
    """The revision, and the parts that are there: not all that can be lost is seen by the triggers behind rev."""
    return ABSENT_TOKEN if row is None else f"{row[5]}.{row[6]}"


def revision_triggers(on_update: str) -> str:
    """Triggers that give a new rev to each row of ``documents`` that is not written by the store itself.

    The store's own rows come with a rev above the counter, or, in an update, with another rev than before.

    Args:
        on_update: further assignments to a row that foreign SQL has updated.
    """
    return f"""
CREATE TRIGGER documents_inserted AFTER INSERT ON documents WHEN NEW.rev <= (SELECT value FROM revision) BEGIN
  UPDATE revision SET value = value + 1;
  UPDATE documents SET rev = (SELECT value FROM revision) WHERE id = NEW.id;
END;
CREATE TRIGGER documents_updated AFTER UPDATE ON documents WHEN NEW.rev = OLD.rev BEGIN
  UPDATE revision SET value = value + 1;
  UPDATE documents SET rev = (SELECT value FROM revision), {on_update} WHERE id = NEW.id;
END;
"""


def plain_columns(content: str, *, deleted: str = "d.deleted") -> str:
    """The expressions of a `Row` for a table that has the text in its rows; all but parts, whole and embedding."""
    needed = f"CASE WHEN {deleted} = 0 AND ({content})"
    return (
        f"d.doc_id AS doc_id, d.number AS number, {DIGEST} AS digest, {deleted} AS deleted,"
        " d.updated_at AS updated_at, d.rev AS rev,"
        f" {needed} THEN d.text END AS text, {needed} THEN d.metadata END AS metadata"
    )


def insert_rows(connection: apsw.Connection, head: str, rows: Sequence[Sequence[Any]], tail: str = "") -> None:
    """Insert many rows by few statements; `head` ends in VALUES.

    One statement of many rows is two to three times as fast as executemany (FTS5 flushes once for each statement),
    and ten times beside a busy event loop (see the module's docstring).
    """
    width = len(rows[0])
    one = f"({','.join('?' * width)})"
    for start in range(0, len(rows), _ROWS_PER_INSERT):
        some = rows[start : start + _ROWS_PER_INSERT]
        values = ",".join([one] * len(some))
        connection.execute(f"{head} {values} {tail}", [value for row in some for value in row])
