"""How the rows of a LanceDB table become observations and documents, and how changes are made to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, Final

import attrs
import pyarrow as pa

from trio_repair import (
    ContentDefinition,
    Document,
    DocumentVersion,
    EmbeddingIdentity,
    InvalidValue,
    Observation,
    Prepared,
    Presence,
    StoredDocument,
    StoreError,
    StoreRejected,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.embedding import rebuild_text

from ._directory_errors import CommitInDoubt
from ._encoding import load_metadata, moment_text, parse_moment
from ._fence import ABSENT, ABSENT_TOKEN, Change
from ._lancedb import LOOK, Session, Snapshot, columns_of, quoted
from ._lancedb_directory import VECTOR
from ._lancedb_errors import driver_errors
from ._nearest_hit import NearestHit
from ._vector_preparing import Payload

_PAGE: Final = 1000
_CONTENT: Final = ("start", "text", "metadata")


@attrs.frozen
class Row:
    """What one row says beside its content; the fields but the last are columns of this name."""

    chunk_count: int | None
    revision: int | None
    session: int | None
    number: int | None
    digest: str | None
    deleted: bool | None
    updated_at: str | None
    model: str | None
    dimension: int | None
    chunking: str | None
    ordinal: int
    embedded: bool | None
    """Whether it has a vector of its dimension."""


_ROW: Final = tuple(field.name for field in attrs.fields(Row))
_OF_ROWS: Final = frozenset({"ordinal", "embedded"})
_of_document: Final = attrgetter(*(name for name in _ROW if name not in _OF_ROWS))
assert {*_ROW, "doc_id"} == {*LOOK, "embedded"}


@attrs.frozen
class Held:
    """What is held of one document."""

    observation: Observation
    rows: Sequence[Row]
    content: Sequence[tuple[int | None, str | None, str | None]]
    """Start, text and metadata of each row, if they were asked for."""


def find(session: Session, doc_ids: Sequence[str], *, content: bool = False) -> dict[str, Held]:
    """What is held of these documents by id, in the present moment."""
    if not doc_ids:
        return {}
    found = columns_of(session.look(quoted(doc_ids), _CONTENT if content else ()).to_arrow())
    contents = zip(*(found[name] for name in _CONTENT), strict=True) if content else iter(())
    rows: dict[str, list[Row]] = {}
    texts: dict[str, list[Any]] = {}
    for doc_id, row in _rows(found):
        rows.setdefault(doc_id, []).append(row)
        if content:
            texts.setdefault(doc_id, []).append(next(contents))
    return {doc_id: Held(observe_rows(own), own, texts.get(doc_id, ())) for doc_id, own in rows.items()}


def observe_rows(rows: Sequence[Row]) -> Observation:
    """What the rows of one document say. Of rows that do not make one document, that the copy is damaged."""
    first = rows[0]
    same = len(rows) == 1 or len({_of_document(row) for row in rows}) == 1
    version = _version(first) if same else None
    embedding = _embedding(first) if same else None
    if version is not None and first.revision is not None and first.session is not None:
        token = f"{first.revision}.{first.session:016x}"
        if version.deleted and len(rows) == 1 and first.chunk_count == 0:
            return Observation(presence=Presence.TOMBSTONE, token=token, version=version)
        if not version.deleted and embedding is not None and _is_whole(rows, first.chunk_count):
            return Observation(presence=Presence.LIVE, token=token, version=version, embedding=embedding)
    # This store writes no such thing, so it has no revision that could be trusted: the token is what is seen.
    seen = hashlib.sha256(repr(sorted(map(repr, rows))).encode(errors="replace")).hexdigest()
    return Observation(
        presence=Presence.LIVE,
        token=f"damaged.{seen}",
        version=DocumentVersion() if version is None or version.deleted else version,
        intact=False,
        embedding=embedding,
    )


def read_documents(
    session: Session, content: ContentDefinition, doc_ids: Sequence[str]
) -> list[StoredDocument | StoreError]:
    """Each document with its text, rebuilt from the chunks and proven by the digest, in order."""
    found = find(session, doc_ids, content=True)
    answers: list[StoredDocument | StoreError] = []
    for doc_id in doc_ids:
        session.raise_if_abandoned()
        held = found.get(doc_id)
        if held is None:
            answers.append(StoredDocument(document=None, token=ABSENT_TOKEN))
        else:
            answers.append(_read(session, content, doc_id, held))
    return answers


def _read(session: Session, content: ContentDefinition, doc_id: str, held: Held) -> StoredDocument | StoreError:
    view = held.observation
    version = view.version
    assert version is not None
    if view.presence is Presence.TOMBSTONE:
        grave = Document.tombstone(doc_id, number=version.number, updated_at=version.updated_at)
        return StoredDocument(document=grave, token=view.token)
    ordered = sorted(zip((row.ordinal for row in held.rows), held.content, strict=True), key=lambda one: one[0])
    chunks = [(start, text) for _, (start, text, _) in ordered if start is not None and text is not None]
    text = rebuild_text(chunks) if len(chunks) == len(held.rows) else None
    metadata = load_metadata(ordered[0][1][2])
    try:
        if text is not None and metadata is not None and content.digest(text, metadata) == version.digest:
            document = Document(doc_id=doc_id, text=text, metadata=metadata, version=version)
            return StoredDocument(document=document, token=view.token)
    except InvalidValue:
        pass
    problem = "its chunks do not give the text whose digest is stored with them; repair it from another store"
    return StoreRejected(session.store, problem, doc_id)


def make_changes(session: Session, identity: EmbeddingIdentity, changes: Sequence[Change]) -> list[WriteAnswer]:
    """Make these changes in one commit; each that still holds its token, or the answer why not.

    Raises:
        StoreUnavailable: nothing was written.
        CallAbandoned: the caller has gone, and nothing was written.
    """
    found = find(session, [change.doc_id for change in changes])
    answers: dict[str, WriteAnswer] = {}
    puts: list[Prepared] = []
    old: list[str] = []
    covered = True
    for change in changes:
        held = found.get(change.doc_id)
        view = ABSENT if held is None else held.observation
        if change.token != view.token:
            answers[change.doc_id] = WriteAnswer(status=WriteStatus.REFUSED, observation=view)
            continue
        answers[change.doc_id] = WriteAnswer(status=WriteStatus.LANDED, observation=ABSENT)
        if change.prepared is not None:
            puts.append(change.prepared)
        if held is not None:
            old.append(change.doc_id)
            covered = covered and _is_covered(held, change.prepared)
    if puts or old:
        answers |= _commit(session, identity, puts, [] if covered else old)
    return [answers[change.doc_id] for change in changes]


def _is_covered(held: Held, prepared: Prepared | None) -> bool:
    """Whether each row that is held is replaced by one of the same ordinal."""
    if prepared is None or not held.observation.intact:
        return False
    return len(held.rows) <= max(1, len(prepared.payload.chunks))


def _commit(
    session: Session, identity: EmbeddingIdentity, puts: list[Prepared], cleared: list[str]
) -> dict[str, WriteAnswer]:
    """Put documents in one commit, in which the old rows of `cleared` go; the answers of all of them.

    Args:
        cleared: the ids under which something is held, if any of it would not be replaced by a row of the same ordinal.
    """
    made = None
    if puts:
        schema = session.ready(identity.dimension)
        with driver_errors():
            made = _make_rows(session, identity, schema, puts)
    replaced = quoted(cleared) if cleared else None
    try:
        session.commit(made, replaced)
    except CommitInDoubt as error:
        unknown = WriteAnswer(status=WriteStatus.UNKNOWN, error=error.error)
        return dict.fromkeys([*(one.document.doc_id for one in puts), *cleared], unknown)
    if made is None:
        return {}
    # Nobody else writes, so that what was put in is what is held: the very rows are looked at.
    here = columns_of(made.select([*LOOK]).append_column("embedded", pa.array([True] * made.num_rows, pa.bool_())))
    rows: dict[str, list[Row]] = {}
    for doc_id, row in _rows(here):
        rows.setdefault(doc_id, []).append(row)
    return {
        doc_id: WriteAnswer(status=WriteStatus.LANDED, observation=observe_rows(own)) for doc_id, own in rows.items()
    }


def _make_rows(session: Session, identity: EmbeddingIdentity, schema: Any, puts: Sequence[Prepared]) -> Any:
    """An Arrow table of the rows of these documents."""
    revision, salt = session.next_revision, session.salt
    names = [name for name in schema.names if not name.startswith(VECTOR)]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    vectors: list[bytes] = []
    valid: list[bool] = []
    blank = bytes(4 * identity.dimension)
    for prepared in puts:
        session.raise_if_abandoned()
        payload: Payload = prepared.payload
        version = prepared.document.version
        common = {
            "doc_id": prepared.document.doc_id,
            "chunk_count": len(payload.chunks),
            "revision": revision,
            "session": salt,
            "number": version.number,
            "digest": version.digest,
            "deleted": version.deleted,
            "updated_at": None if version.updated_at is None else moment_text(version.updated_at),
        }
        if payload.chunks:
            common |= {"model": identity.model, "dimension": identity.dimension, "chunking": identity.chunking}
        for ordinal in range(max(1, len(payload.chunks))):
            chunk = payload.chunks[ordinal] if payload.chunks else None
            row: dict[str, Any] = common | {"ordinal": ordinal, "metadata": None if ordinal else payload.metadata}
            if chunk is not None:
                row |= {"start": chunk.start, "text": chunk.text}
            for name, column in columns.items():
                column.append(row.get(name))
            valid.append(chunk is not None)
            vectors.append(blank if chunk is None else payload.vectors[ordinal])
    own = f"{VECTOR}{identity.dimension}"
    numbers = pa.Array.from_buffers(
        pa.float32(), len(valid) * identity.dimension, [None, pa.py_buffer(b"".join(vectors))]
    )
    mask = None if all(valid) else pa.array([not one for one in valid], pa.bool_())
    made = {own: pa.FixedSizeListArray.from_arrays(numbers, identity.dimension, mask=mask)}
    return pa.table(
        [
            made[field.name]
            if field.name in made
            else pa.array(columns[field.name], field.type)
            if field.name in columns
            else pa.nulls(len(valid), field.type)
            for field in schema
        ],
        schema=schema,
    )


def fill_snapshot(session: Session, snapshot: Snapshot) -> None:
    """Move some rows into the spool."""
    session.use_snapshot(snapshot)
    batch = None if snapshot.batches is None else next(snapshot.batches, None)
    if batch is None:
        snapshot.batches = None
        return
    snapshot.spool.add((doc_id, json.dumps(attrs.astuple(row)).encode()) for doc_id, row in _rows(columns_of(batch)))


def next_page(session: Session, snapshot: Snapshot) -> list[tuple[str, Observation]]:
    """Some documents of a snapshot that is spooled, in byte order; none at the end."""
    session.use_snapshot(snapshot)
    return [
        (doc_id, observe_rows([Row(*json.loads(row)) for row in rows]))
        for doc_id, rows in snapshot.spool.next_page(_PAGE)
    ]


def count_documents(session: Session) -> int:
    """How many documents and tombstones there are: rows that are the first of theirs."""
    return int(session.table.count_rows("ordinal = 0"))


def nearest(session: Session, identity: EmbeddingIdentity, vector: bytes, limit: int) -> list[NearestHit]:
    """The nearest live documents of this identity, by their nearest chunks."""
    table = session.table
    column = f"{VECTOR}{identity.dimension}"
    if column not in table.schema.names:
        return []
    same = f"deleted = false AND dimension = {identity.dimension}" + "".join(
        f" AND {name} = '{value.replace(chr(39), chr(39) * 2)}'"
        for name, value in (("model", identity.model), ("chunking", identity.chunking))
    )
    query = memoryview(vector).cast("f").tolist()
    asked = limit * 2
    while True:
        session.raise_if_abandoned()
        search = table.search(query, vector_column_name=column).distance_type("l2").where(same, prefilter=True)
        found = columns_of(search.select(["doc_id", "start", "text", "_distance"]).limit(asked).to_arrow())
        best: dict[str, NearestHit] = {}
        for doc_id, start, text, square in zip(*(found[name] for name in found), strict=True):
            best.setdefault(doc_id, NearestHit(doc_id, start, text, max(0.0, square) ** 0.5))
        if len(best) >= limit or len(found["doc_id"]) < asked:
            return list(best.values())[:limit]
        asked *= 4


def _rows(columns: Any) -> Iterable[tuple[str, Row]]:
    rows = map(Row, *(columns[name] for name in _ROW))
    return zip(columns["doc_id"], rows, strict=True)


def _is_whole(rows: Sequence[Row], count: int | None) -> bool:
    if len(rows) != count or not all(row.embedded for row in rows):
        return False
    return {row.ordinal for row in rows} == set(range(len(rows)))


def _version(row: Row) -> DocumentVersion | None:
    if row.deleted is None or (row.digest is None and not row.deleted):
        return None
    try:
        return DocumentVersion(
            number=row.number,
            digest=row.digest or "",
            deleted=row.deleted,
            updated_at=parse_moment(row.updated_at),
        )
    except InvalidValue:  # a number or a digest that no version has
        return None


def _embedding(row: Row) -> EmbeddingIdentity | None:
    if row.model is None or row.dimension is None or row.chunking is None:
        return None
    return EmbeddingIdentity(model=row.model, dimension=row.dimension, chunking=row.chunking)
