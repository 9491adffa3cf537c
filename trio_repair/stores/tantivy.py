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
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Literal

import tantivy

from trio_repair import ContentDefinition, InvalidValue, Observation, StoredDocument, StoreError, WriteAnswer

from ._directory import StoreDirectory
from ._directory_store import DirectoryStore
from ._encoding import check_limit
from ._fence import ABSENT, Change
from ._search_hit import SearchHit
from ._settings import path_setting, refuse_unknown
from ._tantivy import Session, Snapshot
from ._tantivy_directory import INDEX
from ._tantivy_errors import driver_errors
from ._tantivy_rows import fill_snapshot, find_rows, make_changes, next_page, read_documents
from ._threaded_store import opened

__all__ = ["SearchHit", "TantivyTextStore", "open_tantivy_text", "tantivy_text_from_settings"]

_PASSAGE_CHARACTERS: Final = 160


class TantivyTextStore(DirectoryStore[Session]):
    """A text store in one tantivy index; made by `open_tantivy_text`.

    The ids lie beside the texts, so that each scan unpacks all of them.
    """

    _driver_errors = driver_errors

    def __init__(self, directory: StoreDirectory) -> None:
        super().__init__(directory, Session)

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

    # In the store's thread.

    def _observe_call(self, session: Session, doc_ids: Sequence[str]) -> list[Observation]:
        rows = find_rows(session, doc_ids)
        return [rows[doc_id].observation if doc_id in rows else ABSENT for doc_id in doc_ids]

    def _read_call(self, session: Session, doc_ids: Sequence[str]) -> list[StoredDocument | StoreError]:
        return read_documents(session, self._content, doc_ids)

    def _count_call(self, session: Session) -> int:
        return int(session.searcher.num_docs)

    def _change_call(self, session: Session, changes: Sequence[Change]) -> list[WriteAnswer]:
        return make_changes(session, changes)

    def _fill_call(self, session: Session, snapshot: Snapshot) -> None:
        fill_snapshot(session, snapshot)

    def _page_call(self, session: Session, snapshot: Snapshot) -> list[tuple[str, Observation]]:
        return next_page(session, snapshot)


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
    return opened(TantivyTextStore(directory))


def tantivy_text_from_settings(
    settings: Mapping[str, Any], *, name: str, directory: Path, content: ContentDefinition, create: bool
) -> AbstractAsyncContextManager[TantivyTextStore]:
    """The kind "tantivy-text" of a configuration file: `path`, a directory.

    Raises:
        InvalidValue: a setting is unknown, missing or wrong; its key is named.
    """
    refuse_unknown(settings, ("path",))
    return open_tantivy_text(path_setting(settings, directory), content=content, create=create, name=name)
