"""A write to a SQLite store: the fence, one transaction for a batch, a savepoint for each document that needs one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

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


def make_changes(session: Session, layout: Layout, changes: Sequence[Change]) -> list[WriteAnswer]:
    """Make these changes in one transaction; each that still holds its token, or the answer why not.

    Raises:
        apsw.Error: nothing was written.
        CallAbandoned: the caller has gone, and nothing was written.
    """
    if not changes:
        return []
    main = session.main
    main.execute("BEGIN IMMEDIATE")
    try:
        answers, landing = _apply(session, layout, changes)
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
        if main.in_transaction:
            main.execute("ROLLBACK")


def _apply(session: Session, layout: Layout, changes: Sequence[Change]) -> tuple[list[WriteAnswer], frozenset[int]]:
    """All of a write but its commit: the fence, the rows, and what is then held. Also, which would land."""
    main = session.main
    tokens = layout.tokens(session, [change.doc_id for change in changes])
    base = int(main.execute("SELECT value FROM revision").get)
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
    failed = _write_all(session, layout, list(passed.values()))
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


def _write_all(session: Session, layout: Layout, passed: list[_Passed]) -> dict[str, StoreError]:
    """Write what passed the fence: all at once, or, if that fails, one by one to find who is to blame."""
    main = session.main
    main.execute("SAVEPOINT batch")
    try:
        _write_rows(session, layout, passed)
    except Exception as error:
        if not is_document_error(error):
            raise
    else:
        return {}
    main.execute("ROLLBACK TO batch")
    failed: dict[str, StoreError] = {}
    schema_error: apsw.SQLError | None = None
    for one in passed:
        session.raise_if_abandoned()
        main.execute("SAVEPOINT document")
        try:
            _write_rows(session, layout, [one])
        except Exception as error:
            if not is_document_error(error):
                raise
            main.execute("ROLLBACK TO document")
            schema_error = error if isinstance(error, apsw.SQLError) else schema_error
            doc_id = one.change.doc_id
            failed[doc_id] = StoreRejected(layout.store, f"SQLite refuses it ({type(error).__name__})", doc_id)
        main.execute("RELEASE document")
    if schema_error is not None and len(failed) == len(passed):
        raise schema_error  # not one was taken: it is the tables, not the documents
    return failed


def _write_rows(session: Session, layout: Layout, passed: list[_Passed]) -> None:
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
