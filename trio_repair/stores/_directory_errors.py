"""What goes wrong with a store in a directory, whatever its driver is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trio_repair import StoreUnavailable

LOCK_SECONDS: Final = 2.0
"""How long a lock that somebody else holds is waited for."""
LOCK_BUSY: Final = (
    f"another process, or another handle in this one, has had it open for more than {LOCK_SECONDS:g} s;"
    " one at a time can"
)
OF_THE_SYSTEM: Final[Mapping[str, str]] = {
    "No space left": "the disk is full; make room",
    "Read-only file system": "the file system is read-only",
    "Permission denied": "permission denied; look at the modes of the directory and its files",
    "Too many open files": "too many files are open",
}
"""What the operating system says in the middle of a driver's message, and what it means."""


class DriverFailed(Exception):
    """The driver raised something. They use Python's own classes, and, for a panic, one outside of Exception."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class CommitInDoubt(Exception):
    """A commit failed, and may have landed all the same."""

    def __init__(self, error: StoreUnavailable) -> None:
        super().__init__(error.problem)
        self.error = error
