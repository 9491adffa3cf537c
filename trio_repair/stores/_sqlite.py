"""What the three SQLite stores share: their files, their connections, and what SQLite's errors mean.

A store file is recognised by its header (application id and schema version), which is read without locking and
without writing, before anything else touches the file: a foreign database is refused and stays as it is.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, TypeAlias

import apsw
import attrs

from trio_repair import ContentDefinition, InvalidValue, StoreFileError, StoreUnavailable

from ._sqlite_errors import LOCK_SECONDS, describe
from ._thread import Call

Synchronous: TypeAlias = Literal["full", "normal"]
"""How hard a commit is pushed to the disk. "full" survives a power cut; "normal" may lose the last commits to one,
but never part of a commit, and nothing when only the process dies."""

SCHEMA_VERSION: Final = 1
_SMALLEST_PAGE: Final = 512
_STEPS_BETWEEN_LOOKS: Final = 500_000
CACHE_KB: Final = 1536
_SPILL_PAGES: Final = 2048
_READER_CACHE_KB: Final = 512
"""A scan meets each page once, or a few times in a row."""
_HEADER_ERRORS: Final = (apsw.NotADBError, apsw.CorruptError)

_ROLES: Final[Mapping[str, int]] = {
    "sqlite-text": 0x54525478,
    "sqlite-vector": 0x54525665,
    "sqlite-cache": 0x54524361,
}
"""The application id in the header of each kind of file ("TRTx", "TRVe", "TRCa")."""

_COMMON_SCHEMA: Final = """
CREATE TABLE store_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE revision (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL) STRICT;
"""
# The counter behind the fence tokens. The store writes rows with rev above it and then raises it, all in one
# transaction; a row that arrives with rev at or below it was written by foreign SQL, and triggers give it a new rev.


@attrs.frozen(kw_only=True)
class SqliteFile:
    """Which file, and what is expected in it."""

    path: Path
    store: str
    kind: str
    content: ContentDefinition
    schema: str
    create: bool
    synchronous: Synchronous
    load_extensions: Callable[[apsw.Connection], None] | None = None
    more_cache_kb: int = 0
    """What the page cache needs beyond that for rows of usual size."""

    def __attrs_post_init__(self) -> None:
        if self.synchronous not in {"full", "normal"}:
            raise InvalidValue("synchronous", f"must be 'full' or 'normal', not {self.synchronous!r}")

    def error(self, problem: str) -> StoreFileError:
        """This file cannot be used, and why."""
        return StoreFileError(self.store, f"{self.path} {problem}")


class Session:
    """The connections of one store thread. Used in that thread alone, except for `interrupt`."""

    def __init__(self, file: SqliteFile) -> None:
        self.file = file
        self.call: Call[Session] | None = None
        self._main: apsw.Connection | None = None
        self._active: apsw.Connection | None = None
        self._readers: set[apsw.Connection] = set()
        self._identity: tuple[int, int] | None = None
        self._frozen: tuple[object, ...] | None = None
        """Of a connection that assumes that nobody writes: what the file looked like when it was opened."""
        self._lock_deadline = 0.0
        self._interrupting = threading.Lock()  # an interrupt is either over before a shield goes up, or does not come
        self._shielded = False

    def begin(self, call: Call[Session]) -> None:
        """Start a call: the file must still be the one that was opened.

        Raises:
            StoreUnavailable: it was removed or replaced.
        """
        self.call = call
        self._active = self._main
        if self._main is not None and self._identity != _identity(self.file.path):
            # SQLite would go on writing to the file that nobody can find any more.
            self.close()
            problem = f"{self.file.path} was removed or replaced while it was open"
            raise StoreUnavailable(self.file.store, problem)
        if self._frozen is not None and self._frozen != _look(self.file.path):
            self.close()  # somebody else has written: open it anew, and see what there is now

    @property
    def main(self) -> apsw.Connection:
        """The connection for everything but scans; opened when first needed.

        Raises:
            StoreError: the file cannot be used.
        """
        if self._main is None:
            check_header(self.file)
            self._identity = _identity(self.file.path)
            self._main = self._active = self._connect()
            try:
                self._check_meta(self._main)
            except BaseException:
                self.close()
                raise
        return self._main

    def open_reader(self) -> apsw.Connection:
        """A further connection that holds one snapshot until `close_reader`."""
        _ = self.main
        reader = self._connect()
        reader.execute(f"PRAGMA cache_size = -{_READER_CACHE_KB}")
        self._readers.add(reader)
        self._active = reader
        reader.execute("BEGIN")
        _ = reader.execute("SELECT value FROM revision").get  # BEGIN alone takes no snapshot
        return reader

    def use_reader(self, reader: apsw.Connection) -> None:
        """Go on with a snapshot.

        Raises:
            StoreUnavailable: it belongs to a thread that was left behind, or the file was closed since.
        """
        if reader not in self._readers:
            raise StoreUnavailable(self.file.store, "the snapshot of a scan was lost; start the scan again")
        self._active = reader

    def close_reader(self, reader: apsw.Connection) -> None:
        """Let a snapshot go, if it is still held."""
        if reader in self._readers:
            self._readers.discard(reader)
            reader.close()

    def close(self) -> None:
        """Close every connection; the next use opens the file again."""
        self._active = None
        for reader in list(self._readers):
            self.close_reader(reader)
        if self._main is not None:
            main, self._main = self._main, None
            self._frozen = None
            main.close()

    def raise_if_abandoned(self) -> None:
        """Stop if nobody waits for the call under way."""
        if self.call is not None:
            self.call.raise_if_abandoned()

    def begin_commit(self) -> None:
        """To be called right before COMMIT: see `Call.begin_commit`."""
        if self.call is not None:
            self.call.begin_commit()

    def interrupt(self) -> None:
        """Make the statement under way fail; called from the Trio thread while a call runs."""
        with self._interrupting:
            if self._active is not None and not self._shielded:
                with suppress(apsw.ConnectionClosedError):
                    self._active.interrupt()

    @contextmanager
    def uninterrupted(self) -> Generator[None, None, None]:
        """Statements that must not be interrupted, because an extension does not survive it.

        Raises:
            CallAbandoned: nobody waits any more; nothing was done.
        """
        with self._interrupting:
            self._shielded = True
        try:
            self.raise_if_abandoned()
            yield
        finally:
            self._shielded = False

    def _connect(self) -> apsw.Connection:
        file = self.file
        parent = file.path.parent
        if not os.access(parent, os.W_OK) and not _beside(file.path, "-wal").exists():
            # A log cannot be made here, and there is none. Others may write all the same: `begin` looks for that.
            self._frozen = _look(file.path)
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            connection = apsw.Connection(_uri(file.path, "mode=ro&immutable=1"), flags=flags)
        else:
            connection = apsw.Connection(str(file.path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.set_busy_handler(self._wait_for_lock)
            # An interrupt that comes between two statements is lost; this stops the second one all the same.
            connection.set_progress_handler(self._given_up, _STEPS_BETWEEN_LOOKS)
            if file.load_extensions is not None:
                file.load_extensions(connection)
            connection.execute(f"PRAGMA synchronous = {file.synchronous}")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KB + file.more_cache_kb}")
            # Changed pages may be more. A full disk is then told when a batch is committed, in words that can be
            # understood, and not by a virtual table in the middle of a statement.
            connection.execute(f"PRAGMA cache_spill = {_SPILL_PAGES}")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA temp_store = MEMORY")
        except BaseException:
            connection.close()
            raise
        return connection

    def _given_up(self) -> bool:
        return self.call is not None and self.call.abandoned and not self._shielded

    def _wait_for_lock(self, tries: int) -> bool:
        """SQLite's busy handler: its own would sleep through a cancellation."""
        if tries == 0:
            self._lock_deadline = time.monotonic() + LOCK_SECONDS
        if (self.call is not None and self.call.abandoned) or time.monotonic() > self._lock_deadline:
            return False
        time.sleep(min(0.001 * (tries + 1), 0.02))
        return True

    def _check_meta(self, connection: apsw.Connection) -> None:
        found = connection.execute("SELECT value FROM store_meta WHERE key = 'metadata_keys'").get
        if not isinstance(found, str):
            raise self.file.error("does not say what it was made for; it is damaged")
        keys = tuple(json.loads(found))
        asked = self.file.content.metadata_keys
        if keys != asked:
            raise self.file.error(
                f"was made for content of {_content_name(keys)}, not of {_content_name(asked)};"
                " use the same ContentDefinition, or make a new file"
            )


def open_file(file: SqliteFile) -> None:
    """Make the file if it may be made, and see that it is one of ours; in the store's thread.

    Raises:
        StoreFileError: the file cannot be used. Nothing was written to it.
    """
    try:
        if file.create and not file.path.exists():
            _create(file)
        check_header(file)
    except (OSError, apsw.Error) as error:
        raise file.error(f"cannot be opened: {describe(error)}") from error


def check_header(file: SqliteFile) -> None:
    """See by its header that a file is ours, without a lock and without a trace.

    It goes through SQLite, because a plain open and close of the file would drop the POSIX locks that other
    connections of this process hold on it.

    Raises:
        StoreFileError: it is missing, foreign, damaged or of another version.
    """
    if not file.path.exists():
        raise file.error("does not exist; name an existing store, or open it with create=True")
    if not file.path.is_file():
        raise file.error("is not a file")
    size = file.path.stat().st_size
    if size == 0:
        raise file.error("is empty and not a store; remove it, then open with create=True")
    if size < _SMALLEST_PAGE:  # SQLite would take it for an empty database
        raise file.error("is not a SQLite database")
    try:
        try:
            application, version = _marks(file.path)
        except apsw.CorruptError:
            application, version = _marks(file.path, any_length=True)
            if not _beside(file.path, "-wal").exists():  # with a log, a checkpoint may be under way
                raise file.error(
                    f"is damaged: it was cut short, its {size} bytes are fewer than its header announces; "
                    "restore it, or make a new one and repair from the other stores"
                ) from None
    except _HEADER_ERRORS:
        raise file.error("is not a SQLite database, or its first page is damaged") from None
    except apsw.Error as error:
        raise file.error(f"cannot be opened: {describe(error)}") from error
    application &= 0xFFFFFFFF
    expected = _ROLES[file.kind]
    if application != expected:
        for kind, other in _ROLES.items():
            if application == other:
                raise file.error(f"is a {kind} store, not {file.kind}; check which path belongs to which store")
        raise file.error("is a SQLite database of another application")
    if version != SCHEMA_VERSION:
        raise file.error(f"has schema version {version}; this release reads version {SCHEMA_VERSION}")


def _marks(path: Path, *, any_length: bool = False) -> tuple[int, int]:
    """Application id and schema version. With `any_length`, also of a file that is shorter than its header says."""
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(_uri(path, "mode=ro&immutable=1"), flags=flags)
    try:
        if any_length:  # with it, SQLite takes the length of the file for what the header ought to say
            connection.execute("PRAGMA writable_schema = ON")
        return connection.pragma("application_id"), connection.pragma("user_version")
    finally:
        connection.close()


def _create(file: SqliteFile) -> None:
    """Make an empty store under another name and link it into place: the path never shows half a store."""
    if not file.path.parent.is_dir():
        raise file.error(f"cannot be made: there is no directory {file.path.parent}")
    unfinished = file.path.with_name(f".{file.path.name[:200]}.{secrets.token_hex(6)}.new")
    try:
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = apsw.Connection(str(unfinished), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            if file.load_extensions is not None:
                file.load_extensions(connection)
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute(_COMMON_SCHEMA + file.schema)
            # Starting anywhere keeps a token of one file from meaning anything in another that was made in its place.
            connection.execute("INSERT INTO revision VALUES (1, ?)", (secrets.randbelow(2**40),))
            keys = json.dumps(file.content.metadata_keys)
            connection.execute("INSERT INTO store_meta VALUES ('kind', ?), ('metadata_keys', ?)", (file.kind, keys))
            connection.execute(f"PRAGMA application_id = {_ROLES[file.kind]}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
            _ = connection.execute("PRAGMA journal_mode = WAL").get
        finally:
            connection.close()
        try:
            os.link(unfinished, file.path)
        except FileExistsError:
            pass  # another process made it at the same time: use that one
        except OSError:  # a file system without hard links
            unfinished.rename(file.path)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _look(path: Path) -> tuple[object, ...]:
    """Changes when anybody writes to the database, into the file or into a log beside it."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, _beside(path, "-wal").exists()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _uri(path: Path, parameters: str) -> str:
    return f"{path.absolute().as_uri()}?{parameters}"


def _content_name(keys: tuple[str, ...]) -> str:
    return "text alone" if not keys else f"text and metadata {', '.join(map(repr, keys))}"
