"""What LanceDB's errors mean, without any content of the table."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Final

from trio_repair import TrioRepairError

from ._directory_errors import OF_THE_SYSTEM, DriverFailed
from ._thread import CallAbandoned


class driver_errors:  # noqa: N801 - used like a function, as contextlib.suppress is
    """A context in which what LanceDB raises becomes `DriverFailed`, without any content.

    It uses Python's own classes, and, for a panic, one outside of Exception.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        # An InvalidValue is a ValueError, too; and the spool of a scan is SQLite.
        ours = isinstance(error, (TrioRepairError, CallAbandoned, DriverFailed, sqlite3.Error))
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


_MEANINGS: Final[Mapping[str, str]] = {"StorageFull": OF_THE_SYSTEM["No space left"], **OF_THE_SYSTEM}
