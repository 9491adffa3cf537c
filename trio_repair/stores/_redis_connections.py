"""Connections to one server: a bounded number of them, each for one call at a time.

The driver's own pool loses a place for each connection that breaks while it is lent, so connections are kept here. A
connection whose call was cancelled, or got no answer in time, is closed: no answer that is still to come can be taken
for that of a later call. What was not yet sent then never is.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import attrs
import trio
from coredis.commands.request import CommandRequest
from coredis.connection import (
    BaseConnection,
    TCPConnection,
    TCPLocation,
    UnixDomainSocketConnection,
    UnixDomainSocketLocation,
)
from coredis.connection._request import Request
from coredis.exceptions import RedisError

from trio_repair import StoreUnavailable

from ._redis_errors import connecting, is_missing_script, is_reply, meaning
from ._redis_scripts import Script

# An attempt to connect that fails is told to its caller; without any handler, the driver's record of it, traceback and
# all, would go to the terminal.
logging.getLogger("coredis").addHandler(logging.NullHandler())

Reply: TypeAlias = Any
"""What the server answered to a command; an exception if that was an error, or if there is no answer."""

_PATIENCE: Final = 0.5
"""Seconds that a change which was cancelled gets to come back with its verdict."""


class _Asking(BaseConnection):
    """Remembers what it asked by itself to be let in: a server that refuses and closes says why only there."""

    asked: tuple[Request, ...] = ()

    def create_request(self, *args: Any, **options: Any) -> Request:
        """As the driver does."""
        request: Request = super().create_request(*args, **options)
        self.asked += (request,)
        return request


class _TCPConnection(_Asking, TCPConnection):
    pass


class _UnixConnection(_Asking, UnixDomainSocketConnection):
    pass


async def _refusal(connection: BaseConnection) -> RedisError | None:
    """What a server said when it did not let the connection in. **If cancelled:** never; these are answered."""
    for request in connection.asked if isinstance(connection, _Asking) else ():
        if request.complete:
            try:
                await request
            except RedisError as error:
                return error
            except Exception:  # noqa: S112 - the connection's own end, which its caller knows
                continue
    return None


@attrs.frozen(kw_only=True)
class Endpoint:
    """Where the server is, and who comes."""

    host: str = ""
    port: int = 6379
    path: str = ""
    """A socket in the file system, instead of host and port."""
    db: int = 0
    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)
    tls: ssl.SSLContext | None = attrs.field(default=None, repr=False)

    @property
    def where(self) -> str:
        """The server as errors name it."""
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def connection(self) -> BaseConnection:
        """A connection that is not open yet."""
        if self.path:
            return _UnixConnection(
                UnixDomainSocketLocation(self.path), username=self.username, password=self.password, db=self.db
            )
        return _TCPConnection(
            TCPLocation(self.host, self.port),
            socket_keepalive=True,
            username=self.username,
            password=self.password,
            db=self.db,
            ssl_context=self.tls,
        )


@attrs.frozen
class Command:
    """One command, or one run of a script."""

    name: bytes
    arguments: tuple[bytes | int, ...]
    script: Script | None = None

    @classmethod
    def run(cls, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Command:
        """Run a script that the server should know."""
        return cls(b"EVALSHA", (script.sha, len(keys), *keys, *arguments), script)

    def in_full(self) -> Command:
        """The same, with the text of the script."""
        assert self.script is not None
        return Command(b"EVAL", (self.script.text, *self.arguments[1:]), self.script)

    def request(self) -> CommandRequest[Any]:
        """As the driver takes it. Made by itself, it is never sent again."""
        return CommandRequest(self.name, *self.arguments, execution_parameters={"decode": False})


class Connections:
    """At most `size` connections, made when they are needed and again when they were lost.

    Args:
        nursery: connections live in it.
        connect_timeout: seconds for a connection, from the look-up of its name to the password.
        timeout: seconds for the answers to one call, and to wait for a free connection.
    """

    def __init__(
        self,
        store: str,
        endpoint: Endpoint,
        nursery: trio.Nursery,
        *,
        size: int,
        connect_timeout: float,
        timeout: float,
    ) -> None:
        self._store = store
        self._endpoint = endpoint
        self._nursery = nursery
        self._size = size
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._slots = trio.Semaphore(size)
        self._idle: list[BaseConnection] = []
        self._online: set[BaseConnection] = set()
        self._closed = False
        self._ahead: float | None = None
        self.opened = 0
        """How many connections were made, ever."""

    def __repr__(self) -> str:
        closed = " closed" if self._closed else ""
        return f"<Connections {self._endpoint.where} online={len(self._online)} of {self._size}{closed}>"

    @property
    def timeout(self) -> float:
        """Seconds for the answers to one call."""
        return self._timeout

    def unavailable(self, problem: str) -> StoreUnavailable:
        """An error that names the server."""
        return StoreUnavailable(self._store, f"{self._endpoint.where} {problem}")

    def check_open(self) -> None:
        """Raise if the store is closed.

        Raises:
            StoreUnavailable: it is.
        """
        if self._closed:
            raise StoreUnavailable(self._store, "is closed; open it again")

    def close(self) -> None:
        """Close all connections; calls under way fail. Idempotent."""
        self._closed = True
        self._idle.clear()
        for connection in self._online:
            connection.invalidate("the store was closed")

    @asynccontextmanager
    async def lend(self) -> AsyncGenerator[BaseConnection, None]:
        """A connection for one task.

        Raises:
            StoreUnavailable: there is none. Nothing was sent.

        **If cancelled:** nothing was sent.
        """
        await trio.lowlevel.checkpoint()
        self.check_open()
        with trio.move_on_after(self._timeout) as waiting:
            await self._slots.acquire()
        if waiting.cancelled_caught:
            raise self.unavailable(f"was busy with {self._size} calls of this store for {self._timeout:g} s")
        connection: BaseConnection | None = None
        try:
            self.check_open()
            while self._idle and connection is None:
                connection = self._idle.pop()
                connection = connection if connection.reusable else None
            if connection is None:
                connection = await self._connect()
            yield connection
        finally:
            self._slots.release()
            if connection is not None and not self._closed and connection.reusable:
                self._idle.append(connection)
            elif connection is not None:
                connection.invalidate("not to be used again")

    async def call(self, commands: Sequence[Command], *, effect: bool = False) -> list[Reply]:
        """Send commands in one go, and wait for all answers. One whose script the server has forgotten is sent anew.

        Args:
            effect: they change something, so that a cancelled call waits a moment for its verdict.

        Raises:
            StoreUnavailable: nothing was sent.

        **If cancelled:** with `effect`, the answers are returned if they come within half a second. Else, and without,
        Cancelled is raised, and the connection is closed.
        """
        if not commands:
            await trio.lowlevel.checkpoint()
            return []
        async with self.lend() as connection:
            return await self.ask(connection, commands, effect=effect)

    async def ask(
        self, connection: BaseConnection, commands: Sequence[Command], *, effect: bool = False
    ) -> list[Reply]:
        """As `call`, on a connection that was lent. **If cancelled:** as `call`."""
        replies = await self._send(connection, commands, effect=effect)
        again = [index for index, reply in enumerate(replies) if is_missing_script(reply)]
        if again:
            # Were the connection lost here, nothing of these was sent; but others may have had an effect.
            try:
                late = await self._send(connection, [commands[index].in_full() for index in again], effect=effect)
            except StoreUnavailable as error:
                late = [error] * len(again)
            for index, reply in zip(again, late, strict=True):
                replies[index] = reply
        return replies

    async def _send(self, connection: BaseConnection, commands: Sequence[Command], *, effect: bool) -> list[Reply]:
        try:
            batch = connection.create_request_batch([one.request() for one in commands], timeout=self._timeout)
        except RedisError as error:
            raise self.unavailable("closed the connection before anything was sent") from error
        if not effect:
            return list(await batch)
        answered = trio.Event()
        replies: list[Reply] = []

        async def listen() -> None:
            # In a task of its own, which a cancelled caller does not take along.
            try:
                replies.extend(await batch)
            finally:
                answered.set()

        self._nursery.start_soon(listen)
        try:
            await answered.wait()
        except trio.Cancelled:  # noqa: ASYNC103 - a change that was made is told to its caller
            with trio.move_on_after(_PATIENCE, shield=True):
                await answered.wait()
            if not replies or not all(map(is_answer, replies)):
                connection.invalidate("its call was cancelled")
                raise
        return replies or [RedisError("the store was closed")] * len(commands)

    async def deadline(self) -> int:
        """When a change that is sent now has to be made at the latest, in milliseconds on the server's clock.

        Raises:
            StoreUnavailable: the server could not be asked for its time.

        **If cancelled:** nothing was sent.
        """
        if self._ahead is None:
            before = time.monotonic()
            (now,) = await self.call([Command(b"TIME", ())])
            self.refuse_errors([now])
            self._ahead = int(now[0]) + int(now[1]) / 1e6 - before
        return int((time.monotonic() + self._ahead + self._timeout) * 1000)

    def forget_time(self) -> None:
        """Ask the server for its time anew: a clock was set."""
        self._ahead = None

    def refuse_errors(self, replies: Sequence[Reply]) -> None:
        """Raise if one of the answers to something without effect is an error.

        Raises:
            StoreUnavailable: it is.
        """
        for reply in replies:
            if isinstance(reply, BaseException):
                raise self.translate(reply) from None  # what the server said may quote what it was told

    def translate(self, error: BaseException) -> StoreUnavailable:
        """An error reply, or what came instead of a reply."""
        if isinstance(error, StoreUnavailable):
            return error
        if is_reply(error):
            return self.unavailable(meaning(error))
        if isinstance(error, TimeoutError):
            return self.unavailable(f"did not answer within {self._timeout:g} s")
        return self.unavailable("closed the connection while its answer was waited for")

    async def _connect(self) -> BaseConnection:
        connection = self._endpoint.connection()
        with trio.move_on_after(self._connect_timeout) as scope:
            try:
                await self._nursery.start(self._live, connection)
            except (RedisError, OSError, AssertionError) as error:
                # The driver raises this in the place of Cancelled, too.
                await trio.lowlevel.checkpoint_if_cancelled()
                said = await _refusal(connection)
                # An old server quotes the password when it complains of the command that brings it.
                raise self.unavailable(connecting(error if said is None else said)) from None
            except RuntimeError as error:  # the nursery is closed
                raise StoreUnavailable(self._store, "is closed; open it again") from error
        if scope.cancelled_caught:
            # A server without TLS takes the beginning of a handshake for an unfinished command, and waits for its end.
            hint = "" if self._endpoint.tls is None else "; does it speak TLS on this port? (redis:// or rediss://)"
            raise self.unavailable(f"did not let anybody in within {self._connect_timeout:g} s{hint}")
        self.opened += 1
        return connection

    async def _live(
        self, connection: BaseConnection, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """A connection's whole life."""
        self._online.add(connection)
        started = _Started(task_status.started)
        try:
            await connection.run(task_status=started)
        except Exception:
            if not started.done:
                raise
            # Who waits for an answer is told by the driver; nobody else is concerned.
        finally:
            self._online.discard(connection)
            _close_buffers(connection)


def is_answer(reply: Reply) -> bool:
    """True if the server said it."""
    return not isinstance(reply, BaseException) or is_reply(reply)


def _close_buffers(connection: BaseConnection) -> None:
    """The driver does so only for connections that were made; Python warns of the others."""
    for kind in ("write_buffer", "push_message_buffer", "streamed_message_buffer"):
        for end in ("in", "out"):
            buffer = getattr(connection, f"_{kind}_{end}", None)
            if buffer is not None:
                buffer.close()


class _Started:
    """A task status that remembers."""

    def __init__(self, started: Callable[[], None]) -> None:
        self._started = started
        self.done = False

    def started(self, value: object = None) -> None:  # noqa: ARG002 - anyio's signature
        self.done = True
        self._started()
