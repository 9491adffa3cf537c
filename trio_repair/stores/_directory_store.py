"""Stores in a directory that one handle at a time can have open, and whose driver keeps no order of ids."""

from __future__ import annotations

import abc
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, ClassVar, Final, TypeVar

from trio_repair import (
    AbsentMeans,
    EmbeddingIdentity,
    Fence,
    Observation,
    StoreFileError,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
)
from trio_repair.abc import ScanPage

from ._directory import StoreDirectory, open_directory
from ._directory_errors import DriverFailed
from ._directory_session import DirectorySession
from ._thread import Call, CallAbandoned, StoreThread
from ._threaded_store import Pages, ThreadedStore

T = TypeVar("T")
R = TypeVar("R", bound=DirectorySession[Any])

_PATIENCE: Final = 1.5
"""Seconds that a cancelled call gets to come back. Such a driver cannot be interrupted, and a thread that is left
behind keeps the lock: more than a commit takes."""
_CLOSE_GRACE: Final = 10.0
"""Seconds that what is under way gets to end when the store is closed."""


class DirectoryStore(ThreadedStore[R]):
    """The methods of `trio_repair.abc.Store` on top of a `DirectorySession`."""

    _driver_errors: ClassVar[type[AbstractContextManager[None]]]
    """A context in which what the driver raises becomes `DriverFailed`."""

    def __init__(
        self,
        directory: StoreDirectory,
        open_session: Callable[[StoreDirectory], R],
        embedding: EmbeddingIdentity | None = None,
    ) -> None:
        traits = StoreTraits(
            fence=Fence.STRONG,
            holds_text=True,
            keeps_tombstones=True,
            absent=AbsentMeans.MISSING,
            max_batch=4096,
            max_batch_bytes=32 * 2**20,
            embedding=embedding,
        )
        thread: StoreThread[R] = StoreThread(
            directory.store,
            open_resource=lambda: open_session(directory),
            close_resource=lambda session: session.close(),
            interrupt=_cannot_interrupt,
            patience=_PATIENCE,
        )
        super().__init__(directory.store, repr(str(directory.path)), directory.content, traits, thread)
        self._directory = directory

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds, all in one commit.

        Raises:
            InvalidValue: more documents than `traits.max_batch`, or one twice.
            StoreUnavailable: nothing was written.

        **If cancelled:** all of it may have landed, or nothing; never after Cancelled was raised, unless a commit that
        had begun takes longer than 1.5 s.
        """
        return await super().write(writes)

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """One snapshot of all documents and tombstones with doc_id > `after`, in byte order, 1,000 to a page.

        The driver has no order of ids: before the first page comes, ids and versions of the whole snapshot are spooled
        to a temporary file. Memory is bounded.

        Raises:
            StoreUnavailable: the store cannot be read now.

        **If cancelled:** nothing has changed, and the snapshot is let go.
        """
        async with self._snapshot(
            lambda session: session.open_snapshot(after), lambda session, held: session.close_snapshot(held)
        ) as snapshot:
            yield Pages(lambda _last: self._next_page(snapshot), after)

    async def aclose(self) -> None:
        """Wait for what is under way, at most 10 s, let the lock go and end the thread. Idempotent.

        What takes longer, such as a merge, keeps the lock until it ends, or the process does.

        **If cancelled:** the store is closed all the same.
        """
        await self._thread.aclose(grace=_CLOSE_GRACE)

    async def _open(self) -> None:
        await self._run(_open_call, self._directory)

    async def _next_page(self, snapshot: Any) -> ScanPage:
        while not snapshot.filled:
            await self._run(self._fill_call, snapshot)
        return await self._run(self._page_call, snapshot)

    # In the store's thread.

    def _call(self, call: Call[R], work: Callable[..., T], args: tuple[Any, ...]) -> T:
        session = call.resource
        try:
            session.begin(call)
            with self._driver_errors():
                return work(session, *args)
        except StoreFileError as error:
            if work is _open_call:
                raise
            raise StoreUnavailable(self._name, error.problem) from error
        except CallAbandoned as error:
            raise StoreUnavailable(self._name, "the call was given up") from error
        except sqlite3.Error as error:
            raise StoreUnavailable(self._name, f"the spool of a scan failed ({type(error).__name__})") from error
        except DriverFailed as error:
            raise StoreUnavailable(self._name, error.problem) from error
        finally:
            session.call = None  # an idle thread must not keep the last call's documents alive

    @abc.abstractmethod
    def _fill_call(self, session: R, snapshot: Any) -> None:
        """Move some rows of a snapshot into its spool."""

    @abc.abstractmethod
    def _page_call(self, session: R, snapshot: Any) -> Sequence[tuple[str, Observation]]:
        """Some documents of a snapshot that is spooled, in byte order; none at the end."""


def _cannot_interrupt(_session: object) -> None:
    """The driver goes on until it is done; calls look between its steps whether they were abandoned."""


def _open_call(session: DirectorySession[Any], directory: StoreDirectory) -> None:
    open_directory(directory)
    session.open()
