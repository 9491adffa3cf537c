"""A write to a SQLite store: the fence, one transaction for a batch, a savepoint for each document that needs one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

import apsw

from trio_repair import Observation, StoreError, StoreRejected, WriteAnswer, WriteStatus
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
    marks = layout.marks(session, [change.doc_id for change in changes])
    base = int(main.execute("SELECT value FROM revision").get)
    passed: dict[int, _Passed] = {}
    refused: dict[int, str] = {}
    for index, change in enumerate(changes):
        mark = marks.get(change.doc_id)
        if change.token == (ABSENT_TOKEN if mark is None else mark.token):
            passed[index] = _Passed(change, base + 1 + index)
        else:
            refused[index] = change.doc_id
    answers: dict[int, WriteAnswer] = {}
    if refused:
        for index, held in zip(refused, layout.observations(session, list(refused.values())), strict=True):
            answers[index] = WriteAnswer(status=WriteStatus.REFUSED, observation=held)
    failed = _write_all(session, layout, list(passed.values()))
    for index, one in passed.items() if failed else ():
        if one.change.doc_id in failed:
            answers[index] = WriteAnswer(status=WriteStatus.REJECTED, error=failed[one.change.doc_id])
    landing = [index for index in passed if index not in answers]
    if landing:
        landed = [passed[index] for index in landing]
        main.execute("UPDATE revision SET value = ? WHERE value = ?", (base + len(changes), base))
        if main.changes() == 1:
            held_now = _held_now(session, layout, landed)
        else:  # a trigger of the application's has written rows, and raised it, in this transaction
            main.execute("UPDATE revision SET value = max(value, ?)", (base + len(changes),))
            held_now = layout.observations(session, [one.change.doc_id for one in landed])
        for index, held in zip(landing, held_now, strict=True):
            answers[index] = new_write_answer(_LANDED, held, None)
    return [answers[index] for index in range(len(changes))], frozenset(landing)


def _held_now(session: Session, layout: Layout, landing: Sequence[_Passed]) -> list[Observation]:
    """What is held of each after a write beside which nothing else was written: looked at, and not only assumed."""
    marks = layout.marks(session, [one.change.doc_id for one in landing])
    found: dict[str, Observation] = {}
    for change, revision in landing:
        mark = marks.get(change.doc_id)
        if mark is not None and mark.rev == revision and change.prepared is not None:
            document = change.prepared.document
            if document.text is not None:
                found[change.doc_id] = layout.written(document, mark)
    others = [one.change.doc_id for one in landing if one.change.doc_id not in found]
    if others:
        found |= zip(others, layout.observations(session, others), strict=True)
    return [found[one.change.doc_id] for one in landing]


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
