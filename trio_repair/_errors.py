"""What can go wrong, split by who is at fault.

`InvalidValue` and its kin are the caller's; `StoreUnavailable` and `StoreRejected` are the
outside world's; `EngineClosed` and `DuplicateJob` are two parts of one program that disagree.
No message carries document text or credentials: errors name the document, the store and
what to do next.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any


class TrioRepairError(Exception):
    """Base of every error this package raises on purpose. It can be pickled, fields and all."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args), self.__dict__


def _restore(kind: type[TrioRepairError], args: tuple[Any, ...]) -> TrioRepairError:
    """An error without its __init__, whose arguments are not those that `args` shows."""
    error = kind.__new__(kind)
    error.args = args
    return error


class InvalidValue(TrioRepairError, ValueError):
    """A value handed to the library cannot be used. Nothing was done with it.

    Attributes:
        field: the name of the argument or setting.
        problem: what is wrong with it and what would be right.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class InvalidDocumentId(InvalidValue):
    """A document id is empty, too long, or holds NUL or a lone surrogate."""


class EngineClosed(TrioRepairError):
    """The engine takes no more jobs: it is draining, closing or closed."""


class DuplicateJob(TrioRepairError):
    """A job with this id is queued or running. Ids may be used again once it has settled."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job id {job_id!r} is already queued or running; give each job an id of its own")
        self.job_id = job_id


class StoreError(TrioRepairError):
    """A store could not do what it was asked.

    Attributes:
        store: the store's name: "text", "vector" or "cache".
        problem: what happened, without document text.
        doc_id: the document concerned, or None if the whole call failed.
    """

    def __init__(self, store: str, problem: str, doc_id: str | None = None) -> None:
        where = f"{store} store" if doc_id is None else f"{store} store, document {doc_id!r}"
        super().__init__(f"{where}: {problem}")
        self.store = store
        self.problem = problem
        self.doc_id = doc_id


class StoreUnavailable(StoreError):
    """The store did not answer, or not now: a later try may succeed.

    You do not get this for a document that the store will never take; that is `StoreRejected`.
    """


class CircuitOpen(StoreUnavailable):
    """The store has been unreachable for longer than `unavailable_timeout`; the job is not retried."""


class StoreRejected(StoreError):
    """The store refuses this one document for good: trying again cannot help."""


class StoreFileError(StoreError):
    """A store's file cannot be used: missing, foreign, damaged, of another version, or locked.

    Raised when a store is opened, before anything is written to the file.
    """


class StoreMisbehaved(StoreError):
    """An adapter broke the contract of `trio_repair.abc.Store`, for instance by answering too few rows."""


class MassChangeRefused(TrioRepairError):
    """A bulk repair would change or delete more documents than the limits allow. Nothing was written.

    Attributes:
        documents: how many documents the stores hold together.
        changes: how many of them the repair would write.
        deletes: how many of those writes are deletes.
    """

    def __init__(self, problem: str, *, documents: int, changes: int, deletes: int) -> None:
        super().__init__(problem)
        self.documents = documents
        self.changes = changes
        self.deletes = deletes


class CheckIncomplete(TrioRepairError):
    """A check could not read every store to the end; what it yielded before is true but not complete."""

    def __init__(self, problem: str, *, stores: Sequence[str]) -> None:
        super().__init__(problem)
        self.stores = tuple(stores)


def where_raised(error: BaseException) -> str:
    """The type of somebody else's exception and where it was raised; its message may quote a text or a credential."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"SyntaxError in {error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} was raised in {frames[-1].filename}, line {frames[-1].lineno}"
