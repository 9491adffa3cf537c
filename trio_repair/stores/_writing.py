"""A write to a SQLite store: the fence, and one transaction for a batch.

Every statement lets go of the interpreter lock, and gets it back a switch interval later if the event loop is busy; so
there are few of them. Where a document cannot be written, its batch is, in another transaction, written one by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias

import apsw

from trio_repair import StoreError, StoreRejected, WriteAnswer, WriteStatus
from trio_repair._views import new_write_answer

from ._fence import ABSENT_TOKEN, Change
from ._layout import Layout, Put
from ._sqlite import Session
from ._sqlite_errors import is_document_error, unavailable

_LANDED: Final = WriteStatus.LANDED
"""By a name of its own, which on Python 3.11 costs less than to name it in its enum."""


class _Passed(NamedTuple):
    """A change that passed the fence, and the revision that it gets."""

    change: Change
    revision: int


_Writer: TypeAlias = Callable[[Session, Layout, list[_Passed]], dict[str, StoreError]]
"""Writes what passed the fence; gives, by document, which could not be written and why."""


class _OneByOne(Exception):
    """Some document of a batch cannot be written; nothing was."""


def make_changes(session: Session, layout: Layout, changes: Sequence[Change]) -> list[WriteAnswer]:
    """Make these changes in one transaction; each that still holds its token, or the answer why not.

    Raises:
        apsw.Error: nothing was written.
        CallAbandoned: the caller has gone, and nothing was written.
    """
    if not changes:
        return []
    with suppress(_OneByOne):
        return _transact(session, layout, changes, _write_rows)
    return _transact(session, layout, changes, _write_each)


def _transact(session: Session, layout: Layout, changes: Sequence[Change], write: _Writer) -> list[WriteAnswer]:
    main = session.main
    main.execute("BEGIN IMMEDIATE")
    try:
        answers, landing = _apply(session, layout, changes, write)
        if landing:
            session.begin_commit()
            try:
                main.execute("COMMIT")
            except apsw.IOError as error:
                if getattr(error, "extendedresult", None) == apsw.SQLITE_IOERR_WRITE:
                    raise  # the frame that commits is written last, and so was not written whole
                # Else the log may hold the commit although it was reported as failed, and a crash could revive it.
                unknown = WriteAnswer(status=WriteStatus.UNKNOWN, error=unavailable(layout.store, error))
                return [unknown if index in landing else answer for index, answer in enumerate(answers)]
        return answers
    finally:
        layout.end(main)
        if main.in_transaction:
            main.execute("ROLLBACK")


def _apply(
    session: Session, layout: Layout, changes: Sequence[Change], write: _Writer
) -> tuple[list[WriteAnswer], frozenset[int]]:
    """All of a write but its commit: the fence, the rows, and what is then held. Also, which would land."""
    main = session.main
    base = layout.begin(main)
    tokens = layout.tokens(session, [change.doc_id for change in changes])
    passed: dict[int, _Passed] = {}
    refused: dict[int, str] = {}
    for index, change in enumerate(changes):
        if change.token == tokens.get(change.doc_id, ABSENT_TOKEN):
            passed[index] = _Passed(change, base + 1 + index)
        else:
            refused[index] = change.doc_id
    answers: dict[int, WriteAnswer] = {}
    if refused:
        for index, held in zip(refused, layout.observations(session, list(refused.values())), strict=True):
            answers[index] = WriteAnswer(status=WriteStatus.REFUSED, observation=held)
    failed = write(session, layout, list(passed.values()))
    for index, one in passed.items():
        if one.change.doc_id in failed:
            answers[index] = WriteAnswer(status=WriteStatus.REJECTED, error=failed[one.change.doc_id])
    landing = [index for index in passed if index not in answers]
    if landing:
        # max: a trigger of the application's may have written rows, and raised it, in this transaction.
        main.execute("UPDATE revision SET value = max(value, ?)", (base + len(changes),))
        now = layout.observations(session, [changes[index].doc_id for index in landing])
        for index, held in zip(landing, now, strict=True):
            answers[index] = new_write_answer(_LANDED, held, None)
    return [answers[index] for index in range(len(changes))], frozenset(landing)


def _write_each(session: Session, layout: Layout, passed: list[_Passed]) -> dict[str, StoreError]:
    """Write what passed the fence one by one, each in a savepoint; which of them cannot be written, and why."""
    main = session.main
    failed: dict[str, StoreError] = {}
    schema_error: apsw.SQLError | None = None
    for one in passed:
        session.raise_if_abandoned()
        main.execute("SAVEPOINT document")
        try:
            _put(session, layout, [one])
        except Exception as error:
            if not is_document_error(error):
                raise
            main.execute("ROLLBACK TO document")
            schema_error = error if isinstance(error, apsw.SQLError) else schema_error
            doc_id = one.change.doc_id
            failed[doc_id] = StoreRejected(layout.store, f"SQLite refuses it ({type(error).__name__})", doc_id)
        main.execute("RELEASE document")
        layout.begin(main)  # what was rolled back is gone, and a trigger may have done anything
    if schema_error is not None and len(failed) == len(passed):
        raise schema_error  # not one was taken: it is the tables, not the documents
    return failed


def _write_rows(session: Session, layout: Layout, passed: list[_Passed]) -> dict[str, StoreError]:
    """Write what passed the fence all at once.

    Raises:
        _OneByOne: some document is to blame that this failed.
    """
    try:
        _put(session, layout, passed)
    except Exception as error:
        if is_document_error(error):
            raise _OneByOne from error
        raise
    return {}


def _put(session: Session, layout: Layout, passed: list[_Passed]) -> None:
    puts: list[Put] = []
    erased: list[str] = []
    for one in passed:
        prepared = one.change.prepared
        if prepared is None or (prepared.document.version.deleted and not layout.keeps_tombstones):
            erased.append(one.change.doc_id)
        else:
            puts.append(Put(prepared.document, prepared.payload, one.revision))
    if erased:
        layout.erase(session, json.dumps(erased, ensure_ascii=False))
    if puts:
        layout.put(session, puts)
