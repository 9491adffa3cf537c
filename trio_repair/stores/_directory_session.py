"""What is open of a store in a directory: the lock that goes with it, and the snapshots of scans.

All of this runs in the store's thread.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Generic, TypeVar

import attrs

from trio_repair import StoreUnavailable

from ._directory import StoreDirectory, identity
from ._spool import Spool
from ._thread import Call


@attrs.define(eq=False)
class SpooledSnapshot(abc.ABC):
    """One moment of a store, and the spool that a scan of it fills."""

    spool: Spool

    @property
    @abc.abstractmethod
    def filled(self) -> bool:
        """Whether all rows lie in the spool."""

    def close(self) -> None:
        """Let everything go. Idempotent."""
        self.spool.close()


N = TypeVar("N", bound=SpooledSnapshot)


class DirectorySession(abc.ABC, Generic[N]):
    """The open store of one store thread, and the lock that goes with it.

    The lock is held from the first use until `close`: whatever is looked at here is changed by nobody else before it is
    written here.
    """

    lock_name: ClassVar[str]
    """The file in the directory that is locked."""

    def __init__(self, directory: StoreDirectory) -> None:
        self.directory = directory
        self.store = directory.store
        self.salt = 0
        """Drawn anew for each session, and part of every token: none comes back, not even from a restored copy."""
        self.call: Call[Any] | None = None
        self._identity: object = None
        """Of directory and lock as they were opened; None while they are not."""
        self._snapshots: set[N] = set()

    def begin(self, call: Call[Any]) -> None:
        """Start a call: directory and lock must still be those that were opened.

        Raises:
            StoreUnavailable: they were removed or replaced.
        """
        self.call = call
        if self._identity is not None and self._identity != self._seen():
            # What is written now would go to a directory that somebody else may have locked.
            self.close()
            problem = f"{self.directory.path} or the lock in it was removed or replaced while it was open"
            raise StoreUnavailable(self.store, problem)

    @abc.abstractmethod
    def open(self) -> None:
        """Lock the store and look into it, unless that is done.

        Raises:
            StoreFileError: the directory is not one of ours, is damaged, or somebody else holds the lock.
        """

    @abc.abstractmethod
    def open_snapshot(self, after: str | None) -> N:
        """The present moment, until `close_snapshot`."""

    def use_snapshot(self, snapshot: N) -> None:
        """Go on with a snapshot.

        Raises:
            StoreUnavailable: it belongs to a thread that was left behind, or the store was closed since.
        """
        if snapshot not in self._snapshots:
            raise StoreUnavailable(self.store, "the snapshot of a scan was lost; start the scan again")

    def close_snapshot(self, snapshot: N) -> None:
        """Let a snapshot go, if it is still held."""
        if snapshot in self._snapshots:
            self._snapshots.discard(snapshot)
            snapshot.close()

    def close(self) -> None:
        """Close the store and give up the lock; the next use opens it again."""
        for snapshot in list(self._snapshots):
            self.close_snapshot(snapshot)
        self._identity = None

    def raise_if_abandoned(self) -> None:
        """Stop if nobody waits for the call under way."""
        if self.call is not None:
            self.call.raise_if_abandoned()

    def _seen(self) -> object:
        """What stands under the names of directory and lock now."""
        return identity(self.directory.path, self.lock_name)
