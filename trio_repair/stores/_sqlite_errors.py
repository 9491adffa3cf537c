"""What SQLite's errors mean, without any content of the database."""

from __future__ import annotations

from typing import Final

import apsw

from trio_repair import StoreError, StoreFileError, StoreUnavailable

from ._thread import CallAbandoned

LOCK_SECONDS: Final = 2.0
"""How long a lock that another process holds is waited for."""


def describe(error: BaseException) -> str:
    """What an exception of the driver or the operating system means, without any content."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    for kind, meaning in _MEANINGS:
        if isinstance(error, kind):
            return meaning
    return f"SQLite says {type(error).__name__}"


_MEANINGS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (apsw.BusyError, f"locked by another process for more than {LOCK_SECONDS:g} s; end its transaction"),
    (apsw.LockedError, "locked by another connection"),
    (apsw.FullError, "the disk or the file's quota is full; make room"),
    (apsw.ReadOnlyError, "the file, its -wal or its directory is read-only; make them writable"),
    (apsw.CorruptError, "the file is damaged; restore it, or make a new one and repair from the other stores"),
    (apsw.NotADBError, "the file is no longer a SQLite database"),
    (
        apsw.CantOpenError,
        "SQLite cannot open the file or make its -wal beside it; look at the permissions of file and directory",
    ),
    (apsw.PermissionsError, "permission denied"),
    (apsw.IOError, "the disk reported an I/O error"),
    (apsw.NoMemError, "out of memory"),
    (apsw.InterruptError, "interrupted"),
)

_DOCUMENT_ERRORS: Final = (
    apsw.ConstraintError,
    apsw.TooBigError,
    apsw.MismatchError,
    apsw.RangeError,
    apsw.SQLError,
    ValueError,
    TypeError,
    OverflowError,
)


def is_document_error(error: BaseException) -> bool:
    """True if an error speaks of the row at hand, so that other rows may well be taken."""
    return isinstance(error, _DOCUMENT_ERRORS)


def unavailable(store: str, error: BaseException) -> StoreUnavailable:
    """A driver's error at run time, as it concerns a whole call."""
    return StoreUnavailable(store, describe(error))


def translate(store: str, error: Exception) -> StoreError:
    """Any error of a running call, as the seam knows it."""
    if isinstance(error, StoreFileError):  # the file was exchanged or damaged after it had been opened
        return StoreUnavailable(store, error.problem)
    if isinstance(error, StoreError):
        return error
    if isinstance(error, CallAbandoned):
        return StoreUnavailable(store, "the call was given up")
    return unavailable(store, error)
