"""A text store on tantivy: a full-text index in a directory of its own, for batches.

A commit costs many milliseconds however little is in it, so documents should come many to a call: one call is one
commit, of up to 4,096 documents. There are no triggers and no tables that others could write to: **everything that
writes does it through the one handle**, which holds tantivy's writer lock for as long as it is open.

That lock makes the fence strong: tokens are compared and documents written under it, in one thread, and nobody else can
come between. A second handle, in this process or another, waits two seconds for the lock and is then refused:
`StoreFileError` where it is opened, `StoreUnavailable` where an open one had to lock anew (after its thread hung, or
the index failed). On file systems that do not honour ``flock`` there is no lock, and so no fence: use local disks.

The directory is made with mode 0700, because tantivy gives its files the modes that it likes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import tantivy
import trio

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    Fence,
    InvalidValue,
    Observation,
    Prepared,
    Removal,
    StoredDocument,
    StoreError,
    StoreFileError,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
)
from trio_repair.abc import ScanPage

from ._directory import StoreDirectory, open_directory
from ._encoding import check_limit
from ._preparing import prepare_document
from ._search_hit import SearchHit
from ._settings import path_setting, refuse_unknown
from ._tantivy import Session, Snapshot
from ._tantivy_directory import INDEX
from ._tantivy_errors import DriverFailed, driver_errors
from ._tantivy_rows import ABSENT, Change, fill_snapshot, find_rows, make_changes, next_page, read_documents
from ._thread import Call, CallAbandoned, StoreThread

__all__ = ["SearchHit", "TantivyTextStore", "open_tantivy_text", "tantivy_text_from_settings"]

T = TypeVar("T")

_PATIENCE: Final = 1.5
"""Seconds that a cancelled call gets to come back. tantivy cannot be interrupted, and a thread that is left behind
keeps the lock: more than a commit takes."""
_CLOSE_GRACE: Final = 10.0
"""Seconds that merges get to end when the store is closed."""
_PASSAGE_CHARACTERS: Final = 160


class TantivyTextStore:
    """A text store in one tantivy index; made by `open_tantivy_text`."""

    def __init__(self, directory: StoreDirectory) -> None:
        self._directory = directory
        self._name = directory.store
        self._traits = StoreTraits(
            fence=Fence.STRONG,
            holds_text=True,
            keeps_tombstones=True,
            absent=AbsentMeans.MISSING,
            max_batch=4096,
            max_batch_bytes=32 * 2**20,
        )
        self._thread: StoreThread[Session] = StoreThread(
            directory.store,
            open_resource=lambda: Session(directory),
            close_resource=Session.close,
            interrupt=_cannot_interrupt,
            patience=_PATIENCE,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self._directory.path)!r}>"

    @property
    def traits(self) -> StoreTraits:
        """What this store promises; constant while it is open."""
        return self._traits

    @property
    def abandoned_threads(self) -> int:
        """How many driver threads hung and were left behind."""
        return self._thread.abandoned

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """Look at documents without their content.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the index cannot be read now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        rows = await self._run(find_rows, list(doc_ids))
        return [rows[doc_id].observation if doc_id in rows else ABSENT for doc_id in doc_ids]

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """Read documents. `StoreRejected` for one whose content is not what its digest says.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the index cannot be read now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        return await self._run(read_documents, self._directory.content, list(doc_ids))

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check that digest and content agree and that the metadata is JSON; `StoreRejected` otherwise.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(documents))
        await trio.lowlevel.checkpoint()
        return [prepare_document(self._name, self._directory.content, document) for document in documents]

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds, all in one commit.

        Raises:
            InvalidValue: more documents than `traits.max_batch`, or one twice.
            StoreUnavailable: nothing was written.

        **If cancelled:** all of it may have landed, or nothing; never after Cancelled was raised, unless a commit that
        had begun takes longer than 1.5 s.
        """
        self._check_batch(len(writes))
        changes = [Change(one.prepared.document.doc_id, one.token, one.prepared) for one in writes]
        return await self._change(changes)

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """Take each document's row away, tombstones too, where the expected token still holds, in one commit.

        Raises:
            InvalidValue: more documents than `traits.max_batch`, or one twice.
            StoreUnavailable: nothing was removed.

        **If cancelled:** as `write`.
        """
        self._check_batch(len(removals))
        return await self._change([Change(one.doc_id, one.token, None) for one in removals])

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """One snapshot of all documents and tombstones with doc_id > `after`, in byte order, 1,000 to a page.

        tantivy has no order of ids: before the first page comes, ids and versions of the whole snapshot are spooled
        to a temporary file. Memory is bounded. The ids lie beside the texts, so that each scan unpacks all of them.

        Raises:
            StoreUnavailable: the index cannot be read now.

        **If cancelled:** nothing has changed, and the snapshot is let go.
        """
        snapshot = await self._run(Session.open_snapshot, after)
        try:
            yield _Pages(self, snapshot)
        finally:
            self._thread.post(lambda call: call.resource.close_snapshot(snapshot))

    async def count(self) -> int:
        """How many documents and tombstones the store holds.

        Raises:
            StoreUnavailable: the index cannot be read now.

        **If cancelled:** nothing has changed.
        """
        return await self._run(lambda session: int(session.searcher.num_docs))

    async def search(
        self, query: str, limit: int = 10, *, syntax: Literal["words", "tantivy"] = "words"
    ) -> Sequence[SearchHit]:
        """Find live documents by words, best first.

        Args:
            query: "words": text as people type it; a document must hold all of its words. "tantivy": an expression of
                tantivy's query parser with its operators.
            limit: at most so many hits, at least 1.
            syntax: how to read `query`.

        Raises:
            InvalidValue: `limit` or `syntax` is not usable, or tantivy cannot read the expression.
            StoreUnavailable: the index cannot be read now.

        **If cancelled:** nothing has changed.
        """
        check_limit(limit)
        if syntax not in {"words", "tantivy"}:
            raise InvalidValue("syntax", f"must be 'words' or 'tantivy', not {syntax!r}")
        try:
            query.encode()
        except UnicodeEncodeError:
            raise InvalidValue("query", "holds a lone surrogate, which is not UTF-8") from None
        return await self._run(_search, query, limit, syntax)

    async def aclose(self) -> None:
        """Wait for merges, at most 10 s, let the lock go and end the thread. Idempotent.

        A merge that takes longer keeps the lock until it ends, or the process does.

        **If cancelled:** the store is closed all the same.
        """
        await self._thread.aclose(grace=_CLOSE_GRACE)

    async def _open(self) -> None:
        await self._thread.run(self._call, _open_call, (self._directory,))

    # In the Trio thread.

    def _check_batch(self, size: int) -> None:
        if size > self._traits.max_batch:
            raise InvalidValue(
                "batch", f"names {size} documents; the {self._name} store takes {self._traits.max_batch}"
            )

    async def _change(self, changes: list[Change]) -> Sequence[WriteAnswer]:
        if len({change.doc_id for change in changes}) < len(changes):
            raise InvalidValue("batch", "names a document twice; one call writes each document once")
        return await self._run(make_changes, changes)

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await self._thread.run(self._call, work, args)

    # In the store's thread.

    def _call(self, call: Call[Session], work: Callable[..., T], args: tuple[Any, ...]) -> T:
        session = call.resource
        try:
            session.begin(call)
            with driver_errors():
                return work(session, *args)
        except StoreFileError as error:
            if work is _open_call:
                raise
            raise StoreUnavailable(self._name, error.problem) from error
        except CallAbandoned as error:
            raise StoreUnavailable(self._name, "the call was given up") from error
        except sqlite3.Error as error:
            raise StoreUnavailable(self._name, f"the spool of a scan failed ({type(error).__name__})") from error
        except DriverFailed as error:
            raise StoreUnavailable(self._name, error.problem) from error
        finally:
            session.call = None  # an idle thread must not keep the last call's documents alive


class _Pages:
    """The pages of one scan; each call takes a part of it, so that other calls come in between."""

    def __init__(self, store: TantivyTextStore, snapshot: Snapshot) -> None:
        self._store = store
        self._snapshot = snapshot
        self._spooled: int | None = 0

    def __aiter__(self) -> _Pages:
        return self

    async def __anext__(self) -> ScanPage:
        while self._spooled is not None:
            self._spooled = await self._store._run(fill_snapshot, self._snapshot, self._spooled)
        page = await self._store._run(next_page, self._snapshot)
        if not page:
            raise StopAsyncIteration
        return page


def _cannot_interrupt(_session: Session) -> None:
    """The driver goes on until it is done; calls look between its steps whether they were abandoned."""


def _open_call(session: Session, directory: StoreDirectory) -> None:
    open_directory(directory)
    session.open()


def _search(session: Session, query: str, limit: int, syntax: str) -> list[SearchHit]:
    searcher, schema = session.searcher, session.schema
    if syntax == "words":
        words = _ANALYZER.analyze(query)
        if not words:
            return []
        asked = tantivy.Query.boolean_query(
            [(tantivy.Occur.Must, tantivy.Query.term_query(schema, "text", word)) for word in dict.fromkeys(words)]
        )
    else:
        try:
            asked = session.index.parse_query(query, ["text"])
        except ValueError:
            problem = "tantivy cannot read it; see its query syntax, or use syntax='words'"
            raise InvalidValue("query", problem) from None
    deleted = tantivy.Query.term_query(schema, "deleted", field_value=True)
    living = tantivy.Query.boolean_query([(tantivy.Occur.Must, asked), (tantivy.Occur.MustNot, deleted)])
    hits = searcher.search(living, limit=max(1, min(limit, searcher.num_docs)), count=False).hits
    generator = tantivy.SnippetGenerator.create(searcher, asked, schema, "text")
    generator.set_max_num_chars(_PASSAGE_CHARACTERS)
    found = []
    for score, address in hits:
        row = searcher.doc(address)
        found.append(SearchHit(str(row.get_first("doc_id")), float(score), _passage(generator.snippet_from_doc(row))))
    return found


_ANALYZER: Final = (
    # What the index does to texts ("default").
    tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    .filter(tantivy.Filter.remove_long(40))
    .filter(tantivy.Filter.lowercase())
    .build()
)


def _passage(snippet: tantivy.Snippet) -> str:
    """The fragment with its finds in brackets. Ranges are in bytes."""
    raw = snippet.fragment().encode()
    parts, at = [], 0
    for found in snippet.highlighted():
        parts += [raw[at : found.start], b"[", raw[found.start : found.end], b"]"]
        at = found.end
    return b"".join([*parts, raw[at:]]).decode(errors="replace")


@asynccontextmanager
async def _opened(store: TantivyTextStore) -> AsyncGenerator[TantivyTextStore, None]:
    try:
        await store._open()
        yield store
    finally:
        await store.aclose()


def open_tantivy_text(
    path: str | os.PathLike[str],
    *,
    content: ContentDefinition | None = None,
    create: bool = False,
    name: str = "text",
) -> AbstractAsyncContextManager[TantivyTextStore]:
    """Open a text store in one tantivy index, and close it on the way out. One handle at a time can.

    Args:
        path: the directory.
        content: what a document's digest covers; None: the text alone. An index remembers what it was made for.
        create: make the directory (mode 0700) if it is not there, or in the place of an empty one.
        name: the store's name in errors.

    Raises (on entering):
        StoreFileError: the directory is missing, foreign, damaged, made for other content, or open elsewhere.

    **If cancelled:** the index is closed. It may have been made; never in part.
    """
    definition = ContentDefinition() if content is None else content
    directory = StoreDirectory(kind=INDEX, path=Path(path), store=name, content=definition, create=create)
    return _opened(TantivyTextStore(directory))


def tantivy_text_from_settings(
    settings: Mapping[str, Any], *, name: str, directory: Path, content: ContentDefinition, create: bool
) -> AbstractAsyncContextManager[TantivyTextStore]:
    """The kind "tantivy-text" of a configuration file: `path`, a directory.

    Raises:
        InvalidValue: a setting is unknown, missing or wrong; its key is named.
    """
    refuse_unknown(settings, ("path",))
    return open_tantivy_text(path_setting(settings, directory), content=content, create=create, name=name)
