"""A TCP proxy of our own, which cuts, delays, swallows, and loses the answers between a client and its server.

It knows no protocol. What it does is switched while it runs: for everything from now on, or for the nth piece that a
client sends with certain bytes in it, such as ``COMMIT``.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import attrs
import trio


class Strike(enum.Enum):
    """What is done to a piece that a client sends."""

    CUT = "cut"
    """It is thrown away, and both sides of its connection are cut off."""
    DELAY = "delay"
    """It reaches the server `Proxy.held_for` seconds later, even if the client has given up by then."""
    BLACK_HOLE = "black-hole"
    """Its connection stays, takes everything and gives nothing, until `Proxy.heal`."""
    LOSE_ANSWER = "lose-answer"
    """It reaches the server; what the server answers is thrown away, and then the connection is cut off."""
    LOSE_ALL = "lose-all"
    """The same, and with it every connection; nobody is let in until `Proxy.heal`."""


@attrs.define
class _Armed:
    strike: Strike
    mark: bytes
    left: int
    """It strikes when this is down to 0."""
    times: int
    """So many pieces, one after another."""


@attrs.define(eq=False)
class _Link:
    """One client with its connection to the server."""

    client: trio.SocketStream
    server: trio.SocketStream
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    dead: bool = False
    """Takes everything, gives nothing."""
    loses_answer: Strike | None = None
    tail: bytes = b""
    """The end of the piece before: a mark may stand across two."""


class Proxy:
    """Stands between clients and one server; made by `open_proxy`."""

    def __init__(self, port: int, server_port: int) -> None:
        self.port = port
        """Where clients go."""
        self._server_port = server_port
        self._links: set[_Link] = set()
        self._armed: list[_Armed] = []
        self._held = 0
        self.lose_answers = False
        """Answers are swallowed from now on."""
        self.lose_commands = False
        """So is what clients send."""
        self.cut_after: int | None = None
        """After so many more bytes of answers, both sides are cut off."""
        self.refuse = False
        """New connections are cut off at once."""
        self.held_for = 1.0
        """Seconds that `Strike.DELAY` holds a piece back."""
        self.passed = 0
        """Bytes of clients that reached the server."""
        self.struck = 0
        """How many pieces were struck by what `on` had armed."""

    def __repr__(self) -> str:
        return f"<Proxy port={self.port} links={len(self._links)} struck={self.struck}>"

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is held back that might still reach the server."""
        return not self._held

    def on(self, strike: Strike, mark: bytes = b"", *, nth: int = 1, times: int = 1) -> None:
        """Strike the nth piece from now on that has `mark` in it, and the next `times` - 1 of them."""
        self._armed.append(_Armed(strike, mark, nth, times))

    def cut(self) -> None:
        """Cut every connection off, now."""
        for link in self._links:
            link.scope.cancel()

    def heal(self) -> None:
        """Strike no more. Connections of which something was swallowed are cut off: their streams have a hole."""
        self._armed.clear()
        whole = not (self.lose_answers or self.lose_commands)
        self.lose_answers = self.lose_commands = self.refuse = False
        self.cut_after = None
        for link in self._links:
            if link.dead or not whole:
                link.scope.cancel()

    async def serve(self, client: trio.SocketStream) -> None:
        """One client, to its end."""
        if self.refuse:
            client.socket.close()
            return
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self._server_port)
        except OSError:
            client.socket.close()
            return
        link = _Link(client, server)
        self._links.add(link)
        try:
            with link.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._commands, link)
                    nursery.start_soon(self._answers, link)
        finally:
            self._links.discard(link)
            # Not `aclose`, which is a checkpoint: the first would raise Cancelled, and the second never be.
            client.socket.close()
            server.socket.close()

    def _strike(self, link: _Link, piece: bytes) -> Strike | None:
        seen, struck = link.tail + piece, None
        for armed in list(self._armed):
            if armed.mark not in seen:
                continue
            armed.left -= 1
            if armed.left <= 0 and struck is None:
                struck = armed.strike
                armed.times -= 1
                if not armed.times:
                    self._armed.remove(armed)
        self.struck += struck is not None
        longest = max((len(armed.mark) for armed in self._armed), default=1)
        # Bytes that were part of a mark already are not to be counted a second time.
        counted = any(armed.mark in seen for armed in self._armed)
        link.tail = b"" if counted or longest <= 1 else seen[1 - longest :]
        return struck

    async def _commands(self, link: _Link) -> None:
        while piece := await _received(link.client):
            struck = self._strike(link, piece)
            if struck is Strike.CUT:
                break
            if struck is Strike.BLACK_HOLE:
                link.dead = True
            if struck in (Strike.LOSE_ANSWER, Strike.LOSE_ALL):
                link.loses_answer = struck
            if struck is Strike.DELAY:
                await self._hold_back()
            if not (self.lose_commands or link.dead):
                self.passed += len(piece)
                await _send(link.server, piece)
        link.scope.cancel()

    async def _hold_back(self) -> None:
        self._held += 1
        try:
            await trio.sleep(self.held_for)
        finally:
            self._held -= 1

    async def _answers(self, link: _Link) -> None:
        while piece := await _received(link.server):
            if link.loses_answer is Strike.LOSE_ALL:
                self.refuse = True
                self.cut()
            if link.loses_answer is not None:
                break
            if self.cut_after is not None:
                piece, self.cut_after = piece[: self.cut_after], max(0, self.cut_after - len(piece))
            if not (self.lose_answers or link.dead):
                await _send(link.client, piece)
            if self.cut_after == 0:
                break
        # A network goes on to carry what was sent before the other side was lost.
        while self._held:  # noqa: ASYNC110 - it ends by itself
            await trio.sleep(0.01)
        link.scope.cancel()


async def _received(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


async def _send(stream: trio.SocketStream, piece: bytes) -> None:
    try:
        await stream.send_all(piece)
    except trio.BrokenResourceError:
        return  # whoever reads from it sees its end


@asynccontextmanager
async def open_proxy(server_port: int) -> AsyncGenerator[Proxy, None]:
    """A proxy on loopback before the server at this port. **If cancelled:** every connection is cut off."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = Proxy(listener.socket.getsockname()[1], server_port)
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
