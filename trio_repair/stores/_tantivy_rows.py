"""How the rows of a tantivy index become observations and documents, and how changes are made to them."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import attrs
import tantivy

from trio_repair import (
    ContentDefinition,
    Document,
    DocumentVersion,
    InvalidValue,
    Observation,
    Prepared,
    Presence,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    WriteAnswer,
    WriteStatus,
)

from ._directory_errors import CommitInDoubt, DriverFailed
from ._encoding import load_metadata
from ._fence import ABSENT, ABSENT_TOKEN, Change
from ._tantivy import Columns, Session, Snapshot, columns_of, id_key
from ._tantivy_directory import DIGEST_FIELDS
from ._tantivy_errors import driver_errors

_ROWS_PER_LOOK: Final = 1000
_NAIVE_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - moments are stored as wall time and offset
_MICROSECOND: Final = dt.timedelta(microseconds=1)


@attrs.frozen
class Row:
    """What is held of one document, and where."""

    observation: Observation
    address: tantivy.DocAddress


def find_rows(session: Session, doc_ids: Sequence[str]) -> dict[str, Row]:
    """The rows of these documents by id, in the present moment."""
    searcher = session.searcher
    if not doc_ids:
        return {}
    query = tantivy.Query.term_set_query(session.schema, "doc_id", doc_ids)
    limit = len(doc_ids) + _ROWS_PER_LOOK
    hits = searcher.search(query, limit=limit, count=False).hits
    if len(hits) == limit:  # rows that somebody else wrote twice
        hits = searcher.search(query, limit=max(1, searcher.num_docs), count=False).hits
    addresses = [address for _, address in hits]
    by_key = {id_key(doc_id): doc_id for doc_id in doc_ids}
    found: dict[str, list[tuple[Columns, tantivy.DocAddress]]] = {}
    for columns, address in zip(columns_of(searcher, addresses), addresses, strict=True):
        doc_id = by_key.get((columns.id_high or 0, columns.id_low or 0))
        if doc_id is None:  # written by somebody else, without the key
            doc_id = str(searcher.doc(address).get_first("doc_id"))
        found.setdefault(doc_id, []).append((columns, address))
    return {doc_id: Row(observe_rows([columns for columns, _ in rows]), rows[0][1]) for doc_id, rows in found.items()}


def observe_rows(rows: Sequence[Columns]) -> Observation:
    """What the rows of one document say. Of several, or of one that lacks columns, that the copy is damaged."""
    (columns, *others) = rows
    presence = Presence.TOMBSTONE if columns.deleted else Presence.LIVE
    digest = "" if columns.deleted else _digest(columns)
    whole = not others and columns.deleted is not None and columns.revision is not None and columns.session is not None
    if whole and digest is not None:
        moment = _moment(columns)
        version = _version(columns.number, digest, bool(columns.deleted), moment)
        if version is not None:
            return Observation(presence=presence, token=f"{columns.revision}.{columns.session:016x}", version=version)
    # This store writes no such thing, so it has no revision that could be trusted: the token is what is seen.
    seen = hashlib.sha256(repr(sorted(map(repr, rows))).encode()).hexdigest()
    return Observation(presence=Presence.LIVE, token=f"damaged.{seen}", version=DocumentVersion(), intact=False)


def read_documents(
    session: Session, content: ContentDefinition, doc_ids: Sequence[str]
) -> list[StoredDocument | StoreError]:
    """Each document with its content, proven by its digest, in order."""
    rows = find_rows(session, doc_ids)
    answers: list[StoredDocument | StoreError] = []
    for doc_id in doc_ids:
        session.raise_if_abandoned()
        row = rows.get(doc_id)
        if row is None:
            answers.append(StoredDocument(document=None, token=ABSENT_TOKEN))
        else:
            answers.append(_read(session, content, doc_id, row))
    return answers


def _read(session: Session, content: ContentDefinition, doc_id: str, row: Row) -> StoredDocument | StoreError:
    view = row.observation
    assert view.version is not None
    if view.presence is Presence.TOMBSTONE:
        grave = Document.tombstone(doc_id, number=view.version.number, updated_at=view.version.updated_at)
        return StoredDocument(document=grave, token=view.token)
    problem = "its content does not have the digest that is stored with it; repair it from another store"
    try:
        with driver_errors():
            held = session.searcher.doc(row.address)
            text, raw = held.get_first("text"), held.get_first("metadata")
            metadata = load_metadata(raw.decode() if isinstance(raw, bytes) else None)
            proven = (
                view.intact
                and held.get_first("doc_id") == doc_id
                and isinstance(text, str)
                and metadata is not None
                and content.digest(text, metadata) == view.version.digest
            )
    except (DriverFailed, InvalidValue):
        # This one row cannot be unpacked; others, in other blocks, may well.
        return StoreRejected(session.store, problem, doc_id)
    if not proven:
        return StoreRejected(session.store, problem, doc_id)
    assert metadata is not None
    document = Document(doc_id=doc_id, text=text, metadata=metadata, version=view.version)
    return StoredDocument(document=document, token=view.token)


def make_changes(session: Session, changes: Sequence[Change]) -> list[WriteAnswer]:
    """Make these changes in one commit; each that still holds its token, or the answer why not.

    Raises:
        StoreUnavailable: nothing was written.
        CallAbandoned: the caller has gone, and nothing was written.
    """
    rows = find_rows(session, [change.doc_id for change in changes])
    answers: list[WriteAnswer | None] = []
    added: list[tantivy.Document] = []
    erased: list[str] = []
    revision = session.next_revision
    for change in changes:
        row = rows.get(change.doc_id)
        held = ABSENT if row is None else row.observation
        if change.token != held.token:
            answers.append(WriteAnswer(status=WriteStatus.REFUSED, observation=held))
            continue
        session.raise_if_abandoned()
        answers.append(None)
        erased.append(change.doc_id)
        if change.prepared is not None:
            added.append(_make_row(change.prepared, revision + len(added), session.salt))
    if erased:
        landed = _commit(session, erased, added)
        answers = [landed.pop(0) if answer is None else answer for answer in answers]
    return [answer for answer in answers if answer is not None]


def _commit(session: Session, erased: list[str], added: list[tantivy.Document]) -> list[WriteAnswer]:
    try:
        session.commit(erased, added)
        with driver_errors():
            rows = find_rows(session, erased)
    except CommitInDoubt as error:
        return [WriteAnswer(status=WriteStatus.UNKNOWN, error=error.error)] * len(erased)
    except DriverFailed as error:
        problem = StoreUnavailable(session.store, f"committed, and then could not be looked at: {error.problem}")
        return [WriteAnswer(status=WriteStatus.UNKNOWN, error=problem)] * len(erased)
    views = [rows[doc_id].observation if doc_id in rows else ABSENT for doc_id in erased]
    return [WriteAnswer(status=WriteStatus.LANDED, observation=view) for view in views]


def _make_row(prepared: Prepared, revision: int, salt: int) -> tantivy.Document:
    document, version = prepared.document, prepared.document.version
    row = tantivy.Document()
    row.add_text("doc_id", document.doc_id)
    high, low = id_key(document.doc_id)
    numbers: dict[str, int] = {"id_high": high, "id_low": low, "revision": revision, "session": salt}
    if version.number is not None:
        numbers["number"] = version.number
    if document.text is not None:
        digest = bytes.fromhex(version.digest)
        for index, name in enumerate(DIGEST_FIELDS):
            numbers[name] = int.from_bytes(digest[8 * index : 8 * index + 8], "big")
        row.add_text("text", document.text)
        row.add_bytes("metadata", prepared.payload.encode())
    for name, value in numbers.items():
        row.add_unsigned(name, value)
    if version.updated_at is not None:
        wall, offset = _wall_and_offset(version.updated_at)
        row.add_integer("updated_at", wall)
        row.add_integer("updated_offset", offset)
    row.add_boolean("deleted", version.deleted)
    return row


def fill_snapshot(session: Session, snapshot: Snapshot) -> None:
    """Move some rows into the spool, those of the lowest revisions that do not lie there.

    Raises:
        StoreUnavailable: there are rows that this store did not write, under revisions that are not their own.
    """
    session.use_snapshot(snapshot)
    searcher, schema = snapshot.searcher, session.schema
    query = tantivy.Query.range_query(schema, "revision", tantivy.FieldType.Unsigned, lower_bound=snapshot.lowest)
    hits = searcher.search(
        query, limit=_ROWS_PER_LOOK, count=False, order_by_field="revision", order=tantivy.Order.Asc
    ).hits
    _spool(snapshot, [address for _, address in hits])
    if len(hits) == _ROWS_PER_LOOK:
        snapshot.lowest = int(hits[-1][0]) + 1
        return
    left = searcher.num_docs - snapshot.spooled
    if left > 0:  # rows without a revision: somebody else wrote them
        without = tantivy.Query.boolean_query(
            [
                (tantivy.Occur.Must, tantivy.Query.all_query()),
                (tantivy.Occur.MustNot, tantivy.Query.exists_query("revision")),
            ]
        )
        _spool(snapshot, [address for _, address in searcher.search(without, limit=left, count=False).hits])
    if snapshot.spooled != searcher.num_docs:
        raise StoreUnavailable(
            session.store, "holds rows with revisions of others; it was written to by something else"
        )
    snapshot.lowest = None


def _spool(snapshot: Snapshot, addresses: list[tantivy.DocAddress]) -> None:
    searcher = snapshot.searcher
    snapshot.spool.add(
        (str(searcher.doc(address).get_first("doc_id")), json.dumps(attrs.astuple(columns)).encode())
        for columns, address in zip(columns_of(searcher, addresses), addresses, strict=True)
    )
    snapshot.spooled += len(addresses)


def next_page(session: Session, snapshot: Snapshot) -> list[tuple[str, Observation]]:
    """Some documents of a snapshot that is spooled, in byte order; none at the end."""
    session.use_snapshot(snapshot)
    return [
        (doc_id, observe_rows([_columns(row) for row in rows]))
        for doc_id, rows in snapshot.spool.next_page(_ROWS_PER_LOOK)
    ]


_COLUMN_NAMES: Final = tuple(field.name for field in attrs.fields(Columns))


def _columns(row: bytes) -> Columns:
    values: dict[str, Any] = dict(zip(_COLUMN_NAMES, json.loads(row), strict=True))
    return Columns(**values | {"digest": tuple(values["digest"])})


def _digest(columns: Columns) -> str | None:
    parts = [part for part in columns.digest if part is not None]
    return "".join(f"{part:016x}" for part in parts) if len(parts) == len(DIGEST_FIELDS) else None


def _version(number: int | None, digest: str, deleted: bool, moment: dt.datetime | None) -> DocumentVersion | None:
    try:
        return DocumentVersion(number=number, digest=digest, deleted=deleted, updated_at=moment)
    except InvalidValue:  # a number that no version has
        return None


def _wall_and_offset(moment: dt.datetime) -> tuple[int, int]:
    """A moment as microseconds of wall time since 1970, and of the offset: exact for every datetime."""
    with suppress(OverflowError):  # within hours of year 1 or 9999 its own offset says the same moment
        moment = moment.astimezone(dt.timezone.utc)
    offset = moment.utcoffset()
    assert offset is not None  # the model takes no other
    return (moment.replace(tzinfo=None) - _NAIVE_EPOCH) // _MICROSECOND, offset // _MICROSECOND


def _moment(columns: Columns) -> dt.datetime | None:
    if columns.updated_at is None:
        return None
    try:
        offset = dt.timezone(dt.timedelta(microseconds=columns.updated_offset or 0))
        return (_NAIVE_EPOCH + dt.timedelta(microseconds=columns.updated_at)).replace(tzinfo=offset)
    except (OverflowError, ValueError):
        return None
