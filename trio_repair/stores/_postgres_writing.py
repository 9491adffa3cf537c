"""A write to a PostgreSQL store: the fence, one transaction for a batch, savepoints to find a document that is refused.

The rows of a batch are locked in byte order of their ids, so that two batches never wait for each other in a ring, and
looked at after that: what a lock waited for is not in the snapshot of the statement that waited. Documents that are
absent cannot be locked; whoever inserts one first has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import psycopg

from trio_repair import StoreError, StoreRejected, StoreUnavailable, WriteAnswer, WriteStatus

from ._fence import ABSENT, Change
from ._postgres import Session
from ._postgres_errors import describe, is_definite, is_document_error, may_be_of_document, sqlstate, without_content
from ._postgres_layout import Put, View, Writer, row_token

_BEGIN = ("BEGIN ISOLATION LEVEL READ COMMITTED", "SET LOCAL trio_repair.own = 'on'")
"""The setting tells the triggers on our own tables that it is us. Not READ WRITE: whoever makes a server read-only by
default_transaction_read_only means us too, and a standby refuses these words as something that it does not know."""


_UNFIT: Final[Mapping[str, str]] = {
    "22001": "its id, or a value of it or of table.insert, is too long for its column",
    "22003": "its id, its version, or a value of it or of table.insert, is too large a number for its column",
    "22007": "a value of it or of table.insert is no moment, as its column wants one",
    "22P02": "its id, or a value of it or of table.insert, is not of the type of its column",
}


class RowRefused(psycopg.DataError):
    """A `Writer` cannot write a document, for a reason of its own.

    Attributes:
        problem: why, without any content.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


@attrs.frozen
class _Passed:
    """A change that passed the fence."""

    change: Change
    existed: bool


def make_changes(session: Session, view: View, writer: Writer, changes: Sequence[Change]) -> list[WriteAnswer]:
    """Make these changes in one transaction; each that still holds its token, or the answer why not.

    Raises:
        psycopg.Error: nothing was written.
        CallAbandoned: the caller has gone, and nothing was written.
    """
    if not changes:
        return []
    # On any exception the transaction is left open, and `Session.end` closes the connection, which undoes it.
    answers, landing = _apply(session, view, writer, changes)
    if not landing:
        session.execute("ROLLBACK")
        return answers
    try:
        session.commit()
    except psycopg.Error as error:
        if is_definite(error):
            raise
        session.drop_active()
        lost = f"no answer came to a commit ({describe(error)}); look again whether it was made"
        unknown = StoreUnavailable(view.store, lost)
        unknown.__cause__ = without_content(error)
        return [
            WriteAnswer(status=WriteStatus.UNKNOWN, error=unknown) if index in landing else answer
            for index, answer in enumerate(answers)
        ]
    return answers


def _apply(
    session: Session, view: View, writer: Writer, changes: Sequence[Change]
) -> tuple[list[WriteAnswer], frozenset[int]]:
    """All of a write but its commit: the fence, the rows, and what is then held. Also, which would land."""
    ids = sorted(change.doc_id for change in changes)  # code point order, which is byte order of UTF-8
    # A statement is run, and takes its snapshot, once the one before it is done: here, once all locks are had.
    with session.pipelined():
        for statement in _BEGIN:
            session.execute(statement)
        writer.lock(session, ids)
        rows = view.rows(session, ids)
    passed = {
        index: _Passed(change, change.doc_id in rows)
        for index, change in enumerate(changes)
        if change.token == row_token(rows.get(change.doc_id))
    }
    raced, failed = _write_all(session, view.store, writer, list(passed.values()))
    landing = [
        index for index, one in passed.items() if one.change.doc_id not in raced and one.change.doc_id not in failed
    ]
    erased = {changes[index].doc_id for index in landing if _erases(writer, changes[index])}
    again = [changes[index].doc_id for index in landing if changes[index].doc_id not in erased]
    now = view.rows(session, [*again, *raced]) if again or raced else {}
    answers = []
    for index, change in enumerate(changes):
        doc_id = change.doc_id
        if doc_id in failed:
            answers.append(WriteAnswer(status=WriteStatus.REJECTED, error=failed[doc_id]))
        elif index not in passed or doc_id in raced:
            held = view.observation((now if doc_id in raced else rows).get(doc_id))
            answers.append(WriteAnswer(status=WriteStatus.REFUSED, observation=held))
        else:
            held = ABSENT if doc_id in erased else view.observation(now.get(doc_id))
            answers.append(WriteAnswer(status=WriteStatus.LANDED, observation=held))
    return answers, frozenset(landing)


def _erases(writer: Writer, change: Change) -> bool:
    prepared = change.prepared
    return prepared is None or (prepared.document.version.deleted and not writer.keeps_tombstones)


def _write_all(
    session: Session, store: str, writer: Writer, passed: list[_Passed]
) -> tuple[set[str], dict[str, StoreError]]:
    """Write what passed the fence: all at once; if that fails, in halves, to find who is to blame.

    Returns:
        The ids that somebody else has made meanwhile, and why documents were not taken.
    """
    raced: set[str] = set()
    failed: dict[str, StoreError] = {}
    doubtful: psycopg.Error | None = None
    waiting = [sorted(passed, key=lambda one: one.change.doc_id)] if passed else []
    while waiting:
        some = waiting.pop()
        try:
            with session.pipelined():
                session.execute("SAVEPOINT batch")
                made = _write_rows(session, writer, some)
                # Constraints that wait for the commit would fail there, and nobody could tell whose they are.
                session.execute("SET CONSTRAINTS ALL IMMEDIATE")
                session.execute("RELEASE SAVEPOINT batch")
        except (psycopg.Error, UnicodeEncodeError, OverflowError) as error:
            if not is_document_error(error) and not may_be_of_document(error):
                raise
            session.execute("ROLLBACK TO SAVEPOINT batch; RELEASE SAVEPOINT batch")
            if len(some) > 1:
                middle = len(some) // 2
                waiting += [some[middle:], some[:middle]]
            else:
                if isinstance(error, psycopg.Error) and may_be_of_document(error):
                    doubtful = error
                doc_id = some[0].change.doc_id
                failed[doc_id] = StoreRejected(store, _refusal(error), doc_id)
        else:
            raced |= made
    if doubtful is not None and len(failed) == len(passed):
        raise doubtful  # not one was taken: it is the tables, not the documents
    return raced, failed


def _refusal(error: BaseException) -> str:
    if isinstance(error, RowRefused):
        return error.problem
    state = sqlstate(error)
    if state == "23502" and isinstance(error, psycopg.Error) and error.diag.column_name:
        return f"PostgreSQL refuses it: column {error.diag.column_name!r} must have a value, and it got none"
    constraint = error.diag.constraint_name if isinstance(error, psycopg.Error) else None
    if state.startswith("23") and constraint:
        return f"PostgreSQL refuses it: constraint {constraint!r} does not hold"
    if state.startswith("54"):
        return "PostgreSQL refuses it: a part of it is larger than the server takes"
    if state in _UNFIT:
        return f"PostgreSQL refuses it: {_UNFIT[state]} (SQLSTATE {state})"
    if state:
        return f"PostgreSQL refuses it (SQLSTATE {state})"
    return f"it cannot be sent to PostgreSQL ({type(error).__name__})"


def _write_rows(session: Session, writer: Writer, passed: Sequence[_Passed]) -> set[str]:
    puts: list[Put] = []
    erased: list[str] = []
    for one in passed:
        prepared = one.change.prepared
        if prepared is None or _erases(writer, one.change):
            if one.existed:
                erased.append(one.change.doc_id)
        else:
            puts.append(Put(prepared.document, prepared.payload, one.existed))
    if erased:
        writer.erase(session, erased)
    return writer.put(session, puts) if puts else set()
