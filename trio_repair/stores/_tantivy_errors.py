"""What tantivy's errors mean, without any content of the index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trio_repair import TrioRepairError

from ._directory_errors import LOCK_BUSY, OF_THE_SYSTEM, DriverFailed


class driver_errors:  # noqa: N801 - used like a function, as contextlib.suppress is
    """A context in which what tantivy raises becomes `DriverFailed`, without any content.

    It uses Python's own classes, and, for a panic, one outside of Exception.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        ours = isinstance(error, TrioRepairError)  # an InvalidValue is a ValueError, too
        theirs = isinstance(error, (ValueError, RuntimeError, OSError)) or type(error).__name__ == "PanicException"
        if error is not None and theirs and not ours:
            raise DriverFailed(describe(error)) from error


def describe(error: BaseException) -> str:
    """What an exception of the driver or the operating system means, without any content."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    said = str(error)
    for sign, meaning in _MEANINGS.items():
        if sign in said:
            return meaning
    return f"tantivy says {type(error).__name__}; restore the index, or make a new one and repair from the other stores"


_MEANINGS: Final[Mapping[str, str]] = {"LockBusy": LOCK_BUSY, **OF_THE_SYSTEM}
