"""The proxy before a server that says everything back: what each strike does to what is sent, and to what comes back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from .proxy import Proxy, Strike, open_proxy


class Echo:
    """What a server has been told, which it says back."""

    def __init__(self) -> None:
        self.told = b""

    async def serve(self, stream: trio.SocketStream) -> None:
        while piece := await received(stream):
            self.told += piece
            await stream.send_all(piece)


async def received(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


@asynccontextmanager
async def ground() -> AsyncGenerator[tuple[Echo, Proxy], None]:
    echo = Echo()
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo.serve, [listener])
        async with open_proxy(listener.socket.getsockname()[1]) as proxy:
            yield echo, proxy
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_of(proxy: Proxy) -> AsyncGenerator[trio.SocketStream, None]:
    async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as client:
        yield client


async def said(client: trio.SocketStream, piece: bytes) -> bytes:
    """What comes back; b"" if the connection ends."""
    await client.send_all(piece)
    with trio.fail_after(5):
        return await received(client)


async def test_what_is_whole_passes() -> None:
    """Without a strike all goes through, both ways, on as many connections as there are."""
    async with ground() as (echo, proxy):
        for word in (b"one", b"two"):
            async with client_of(proxy) as client:
                assert word == await said(client, word)
        assert b"onetwo" == echo.told
        assert (6, 0) == (proxy.passed, proxy.struck)


@pytest.mark.parametrize(("strike", "arrives"), [(Strike.CUT, b"ax1"), (Strike.LOSE_ANSWER, b"ax1x2")])
async def test_the_nth_piece_is_struck(strike: Strike, arrives: bytes) -> None:
    """The second piece with the mark: thrown away or delivered, but never answered; its connection ends, others begin."""
    async with ground() as (echo, proxy):
        proxy.on(strike, b"x", nth=2)
        async with client_of(proxy) as client, client_of(proxy) as another:
            assert b"a" == await said(client, b"a")
            assert b"x1" == await said(client, b"x1")
            assert b"" == await said(client, b"x2")
            assert arrives == echo.told
            assert b"x3" == await said(another, b"x3")
        assert 1 == proxy.struck


async def test_an_answer_is_lost_and_all_else_with_it() -> None:
    """What the server did, nobody can ask it, until it heals."""
    async with ground() as (echo, proxy):
        proxy.on(Strike.LOSE_ALL, b"x")
        async with client_of(proxy) as client, client_of(proxy) as another:
            assert b"a" == await said(another, b"a")
            assert b"" == await said(client, b"x")
            assert b"ax" == echo.told
            assert b"" == await received(another)
        async with client_of(proxy) as client:
            assert b"" == await received(client)
        proxy.heal()
        async with client_of(proxy) as client:
            assert b"b" == await said(client, b"b")


async def test_a_mark_across_two_pieces_is_seen() -> None:
    """TCP cuts where it likes."""
    async with ground() as (_, proxy):
        proxy.on(Strike.CUT, b"mark")
        async with client_of(proxy) as client:
            assert b"ma" == await said(client, b"ma")
            assert b"" == await said(client, b"rk")


async def test_a_black_hole_takes_and_gives_nothing_until_it_heals() -> None:
    """The connection is neither answered nor ended, others work; after it has healed, it is cut."""
    async with ground() as (echo, proxy):
        proxy.on(Strike.BLACK_HOLE, b"x")
        async with client_of(proxy) as client, client_of(proxy) as another:
            await client.send_all(b"x")
            await client.send_all(b"y")
            with trio.move_on_after(0.1) as silence:
                await received(client)
            assert silence.cancelled_caught
            assert b"z" == await said(another, b"z")
            proxy.heal()
            assert b"" == await received(client)
        assert b"z" == echo.told


async def test_what_is_delayed_arrives_although_the_client_has_gone() -> None:
    """As a network does."""
    async with ground() as (echo, proxy):
        proxy.held_for = 0.1
        proxy.on(Strike.DELAY, b"x")
        async with client_of(proxy) as client:
            await client.send_all(b"x")
            while not proxy.struck:  # noqa: ASYNC110 - the proxy tells nobody
                await trio.sleep(0.001)
            assert not proxy.is_quiet
            assert b"" == echo.told
        with trio.fail_after(5):
            while echo.told != b"x":  # noqa: ASYNC110 - what arrives is told by no event
                await trio.sleep(0.01)
        assert proxy.is_quiet


async def test_refused_and_cut() -> None:
    """All that are open end at once, and nobody is let in until it heals."""
    async with ground() as (_, proxy):
        async with client_of(proxy) as client:
            assert b"a" == await said(client, b"a")
            proxy.refuse = True
            proxy.cut()
            assert b"" == await received(client)
        async with client_of(proxy) as client:
            assert b"" == await received(client)
        proxy.heal()
        async with client_of(proxy) as client:
            assert b"b" == await said(client, b"b")
