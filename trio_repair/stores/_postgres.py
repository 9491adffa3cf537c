"""What the PostgreSQL stores share: how a server is reached, and the connections of one store's thread.

Every statement runs in that thread. From outside, a call is only ever stopped: by a cancel request, which the server
obeys, and, if it does not, by cutting the connection.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeAlias

import attrs
import psycopg
from psycopg.pq import TransactionStatus

from trio_repair import InvalidValue, StoreUnavailable

from ._postgres_errors import describe_refusal, without_content
from ._thread import Call

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any] | None

_CANCEL_SECONDS: Final = 1.0
"""How long one cancel request may take."""
_STOP_SECONDS: Final = 2.0
"""How long the server has to stop a statement, before the connection is cut."""
_READER_IDLE: Final = 600.0
"""Seconds that the snapshot of a scan may wait for whoever reads it."""
_COMMIT_EXTRA: Final = 5.0
_OLDEST: Final = 130000

_KEPT_ALIVE: Final[Mapping[str, Any]] = {
    # A server that vanished without a word is noticed within some 25 s, whether it is waited for or written to.
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


@attrs.frozen(kw_only=True)
class Server:
    """Where a database is, and how long it may take."""

    store: str
    """The store's name in errors."""
    parameters: Mapping[str, Any] = attrs.field(repr=False)
    """What libpq is told; it holds credentials."""
    statement_timeout: float = 30.0
    """Seconds after which the server itself stops a statement."""
    lock_timeout: float = 3.0
    """Seconds after which the server gives up on a lock that another transaction holds."""

    @property
    def place(self) -> str:
        """The database in words, without credentials."""
        named = self.parameters
        host = named.get("host") or named.get("hostaddr")
        where = "" if host is None else f" at {host}:{named.get('port', 5432)}"
        database = named.get("dbname")
        return f"{'the database' if database is None else f'database {database!r}'}{where}"

    def error(self, problem: str) -> StoreUnavailable:
        """This database cannot be used, and why."""
        return StoreUnavailable(self.store, f"{self.place}: {problem}")

    def connect(self) -> Connection:
        """A connection that commits each statement by itself, unless BEGIN was said.

        Raises:
            StoreUnavailable: there is none to be had.
        """
        refused: psycopg.Error
        try:
            connection = psycopg.connect(
                **{**_KEPT_ALIVE, **self.parameters}, client_encoding="utf8", autocommit=True, prepare_threshold=None
            )
        except psycopg.Error as error:
            refused = error
        else:
            try:
                self._set_up(connection)
            except psycopg.Error as error:
                connection.close()
                refused = error
            except BaseException:
                connection.close()
                raise
            else:
                return connection
        raise self.error(f"cannot connect: {describe_refusal(refused)}") from without_content(refused)

    def _set_up(self, connection: Connection) -> None:
        if connection.info.server_version < _OLDEST:
            raise self.error(f"its server is older than PostgreSQL {_OLDEST // 10_000}")
        if connection.info.parameter_status("server_encoding") != "UTF8":
            raise self.error("its encoding is not UTF8, so that it cannot hold every document; make one with UTF8")
        # Not in the parameters of the connection: connection poolers refuse those that they do not know.
        settings = {
            "statement_timeout": _milliseconds(self.statement_timeout),
            "lock_timeout": _milliseconds(self.lock_timeout),
            "idle_in_transaction_session_timeout": _milliseconds(self.statement_timeout),
            "timezone": "UTC",
            "client_min_messages": "error",
            "jit": "off",  # it takes longer to compile a page's statement than to run it
        }
        calls = ", ".join(["set_config(%s, %s, false)"] * len(settings))
        execute(connection, f"SELECT {calls}", [part for pair in settings.items() for part in pair])
        with suppress(psycopg.Error):  # from PostgreSQL 14 on, and not on every platform
            execute(connection, "SET client_connection_check_interval = '2s'")


def _milliseconds(seconds: float) -> str:
    return str(max(1, min(round(seconds * 1000), 2**31 - 1)))


def execute(connection: Connection, sql: str, parameters: Parameters = None) -> psycopg.Cursor[tuple[Any, ...]]:
    """Run a statement that this package wrote, identifiers quoted; values are bound."""
    # Never None: "%%" would then be sent as it stands.
    return connection.execute(sql, () if parameters is None else parameters)


class Session:
    """The connections of one store thread. Used in that thread alone, except for `interrupt`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.call: Call[Session] | None = None
        self.known: dict[str, Any] = {}
        """What a layout has learned of the database; forgotten with the connection."""
        self._main: Connection | None = None
        self._active: Connection | None = None
        self._readers: set[Connection] = set()
        self._stopped: Connection | None = None
        """A connection on which a cancel request may still be under way, which would hit the next call."""
        self._guard = threading.Lock()  # a connection is either closed, or its socket is still its own

    def begin(self, call: Call[Session]) -> None:
        """Start a call: what has become useless in the meantime is let go."""
        self.call = call
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            self.drop(stopped)
        if self._main is not None and _has_ended(self._main):
            self.drop(self._main)
        self._active = self._main

    def end(self) -> None:
        """The call is over, whatever became of it: leave no transaction open."""
        main = self._main
        if main is not None and main.info.transaction_status is not TransactionStatus.IDLE:
            try:
                execute(main, "ROLLBACK")
            except psycopg.Error:
                self.drop(main)
        self.call = None  # an idle thread must not keep the last call's documents alive

    @property
    def main(self) -> Connection:
        """The connection for everything but scans; made when first needed.

        Raises:
            StoreUnavailable: there is none to be had.
        """
        if self._main is None:
            self._main = self.server.connect()
            self.known.clear()
        self._active = self._main
        return self._main

    def execute(
        self, sql: str, parameters: Parameters = None, *, connection: Connection | None = None
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run a statement, unless nobody waits for the call any more."""
        self.raise_if_abandoned()
        return execute(self.main if connection is None else connection, sql, parameters)

    @contextmanager
    def pipelined(self) -> Iterator[None]:
        """Statements on the main connection that do not wait for each other's answers, where libpq can do that.

        An error comes where an answer is asked for, or at the end; what was sent behind the statement that failed was
        not run. Nothing but single statements may be said in here.
        """
        if not psycopg.Pipeline.is_supported():
            yield
            return
        raised: BaseException | None = None
        try:
            with self.main.pipeline():
                try:
                    yield
                except BaseException as error:
                    # The driver would log whatever else failed because of it, and quote the server's words.
                    raised = error
        except psycopg.Error:
            if raised is None:
                raise
        if raised is not None:
            try:
                raise raised
            finally:
                del raised  # the error's traceback would keep this frame, and this frame the error

    def open_reader(self) -> Connection:
        """A further connection that holds one snapshot until `close_reader`."""
        reader = self.server.connect()
        self._readers.add(reader)
        self._active = reader
        execute(reader, f"SET idle_in_transaction_session_timeout = {_milliseconds(_READER_IDLE)}")
        execute(reader, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        execute(reader, "SELECT 1")  # BEGIN alone takes no snapshot
        return reader

    def use_reader(self, reader: Connection) -> None:
        """Go on with a snapshot.

        Raises:
            StoreUnavailable: it was lost, or belongs to a thread that was left behind.
        """
        if reader not in self._readers or reader.closed:
            raise StoreUnavailable(self.server.store, "the snapshot of a scan was lost; start the scan again")
        self._active = reader

    def close_reader(self, reader: Connection) -> None:
        """Let a snapshot go, if it is still held."""
        if reader in self._readers:
            self.drop(reader)

    def drop(self, connection: Connection) -> None:
        """Close a connection; what it had not committed is undone by the server."""
        self._readers.discard(connection)
        if self._main is connection:
            self._main = None
        if self._active is connection:
            self._active = None
        with self._guard:
            connection.close()

    def drop_active(self) -> None:
        """Close the connection that was used last."""
        if self._active is not None:
            self.drop(self._active)

    def close(self) -> None:
        """Close every connection; the next use makes new ones."""
        for connection in [*self._readers, *([] if self._main is None else [self._main])]:
            self.drop(connection)

    def raise_if_abandoned(self) -> None:
        """Stop if nobody waits for the call under way."""
        if self.call is not None:
            self.call.raise_if_abandoned()

    def commit(self) -> None:
        """Make the transaction permanent: see `Call.begin_commit`.

        Raises:
            CallAbandoned: nobody waits any more; nothing was written.
            psycopg.Error: it failed; see `is_definite`.
        """
        main = self.main
        if self.call is not None:
            self.call.begin_commit()
        # statement_timeout ends a commit that the server is busy with; this, one to which no answer comes.
        watchdog = threading.Timer(self.server.statement_timeout + _COMMIT_EXTRA, self._cut, (main,))
        watchdog.daemon = True
        watchdog.start()
        try:
            done = execute(main, "COMMIT").statusmessage
        finally:
            watchdog.cancel()
        if done != "COMMIT":  # the server answers ROLLBACK, and no error, if the transaction had failed
            raise psycopg.errors.InFailedSqlTransaction("the transaction had failed")

    def interrupt(self) -> None:
        """Make the server stop the statement under way; called from the Trio thread while a call runs.

        A cancel request is a connection of its own and may hang, so a thread of its own makes it.
        """
        call, connection = self.call, self._active
        if call is not None and connection is not None:
            self._stopped = connection
            name = f"trio_repair {self.server.store} store, cancel request"
            threading.Thread(target=self._stop, args=(call, connection), name=name, daemon=True).start()

    def _stop(self, call: Call[Session], connection: Connection) -> None:
        """Ask again until the call has ended: a request that comes between two statements is lost."""
        end = time.monotonic() + _STOP_SECONDS
        while self.call is call and not connection.closed:
            if time.monotonic() > end:
                self._cut(connection)
                return
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=_CANCEL_SECONDS)
            time.sleep(0.02)

    def _cut(self, connection: Connection) -> None:
        """End a connection under the feet of whoever waits for it; that call fails."""
        with self._guard, suppress(OSError, psycopg.Error):
            if not connection.closed:
                with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as cut:
                    cut.shutdown(socket.SHUT_RDWR)


def _has_ended(connection: Connection) -> bool:
    """Whether an idle connection was closed, here or there. A server that says something unasked says goodbye."""
    if connection.closed or connection.info.transaction_status is not TransactionStatus.IDLE:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))


def quoted_name(name: str) -> str:
    """An identifier as it stands in a statement with bound values."""
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


def literal(value: str) -> str:
    """A constant as it stands in a statement with bound values."""
    escaped = value.replace("'", "''").replace("%", "%%")
    return f" E'{escaped.replace(chr(92), chr(92) * 2)}'" if "\\" in escaped else f"'{escaped}'"


def check_schema(name: object) -> str:
    """Return the name of a schema of ours if it can be one.

    Raises:
        InvalidValue: it is not 1 to 63 ASCII letters, digits and underscores that do not start with a digit.
    """
    if isinstance(name, str) and name.isascii() and name.isidentifier() and len(name) <= 63:
        return name
    raise InvalidValue("schema", "must be 1 to 63 ASCII letters, digits and underscores, not a digit first")
