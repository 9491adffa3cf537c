"""What LanceDB's errors mean, without any content of the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trio_repair import TrioRepairError

from ._thread import CallAbandoned

LOCK_SECONDS: Final = 2.0
"""How long a lock that somebody else holds is waited for."""
LOCK_BUSY: Final = (
    f"another process, or another handle in this one, has had it open for more than {LOCK_SECONDS:g} s;"
    " one at a time can"
)


class DriverFailed(Exception):
    """LanceDB or Arrow raised something. They use Python's own classes, and, for a panic, one outside of Exception."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class driver_errors:  # noqa: N801 - used like a function, as contextlib.suppress is
    """A context in which what LanceDB raises becomes `DriverFailed`, without any content."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        ours = isinstance(error, (TrioRepairError, CallAbandoned, DriverFailed))  # an InvalidValue is a ValueError, too
        theirs = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if error is not None and theirs and not ours:
            raise DriverFailed(describe(error)) from error


def describe(error: BaseException) -> str:
    """What an exception of the driver or the operating system means, without any content."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = str(error)
    for sign, meaning in _MEANINGS.items():
        if sign in said:
            return meaning
    return f"LanceDB says {type(error).__name__}; restore the table, or make a new one and repair from the other stores"


_MEANINGS: Final[Mapping[str, str]] = {
    "No space left": "the disk is full; make room",
    "StorageFull": "the disk is full; make room",
    "Read-only file system": "the file system is read-only",
    "Permission denied": "permission denied; look at the modes of the directory and its files",
    "Too many open files": "too many files are open",
}
