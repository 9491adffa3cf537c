"""What the tests of the cache on Redis share: a server, a proxy before it, and a store's calls in one line."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from servers import proxy
from servers.proxy import Proxy
from servers.redis_server import RedisServer
from store_calls import look

from trio_repair import Observation, Removal, WriteAnswer, WriteStatus
from trio_repair.abc import Store


def _missing() -> str | None:
    if importlib.util.find_spec("coredis") is None:
        return "coredis is not installed; pip install -e '.[redis]'"
    return RedisServer.missing()


if (reason := _missing()) is not None and os.environ.get("CI") != "true":
    pytest.skip(reason, allow_module_level=True)

from coredis import exceptions  # noqa: E402 - skipped above without it

from trio_repair.stores.redis import RedisCacheStore, open_redis_cache  # noqa: E402 - as above

__all__ = ["exceptions"]

SECRET = "canary-of-the-password"
PATIENCE = 10.0
_count = itertools.count(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that tests share; each takes a prefix of its own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


def fresh() -> str:
    """A prefix that nobody has."""
    return f"cache {next(_count)}:"


class Caches:
    """Opens caches, each time under a prefix of its own, or `again` the one that was opened last."""

    def __init__(self, server: RedisServer, **options: Any) -> None:
        # On a machine that is busy with something else, the default would be a fault like any other.
        self._open = functools.partial(open_redis_cache, server.url, timeout=50.0, **options)
        self._options = options
        self.prefix = fresh()

    def __call__(self) -> AbstractAsyncContextManager[RedisCacheStore]:
        self.prefix = fresh()
        return self.again()

    def again(self) -> AbstractAsyncContextManager[RedisCacheStore]:
        if "format" in self._options:
            return self._open(key=f"{self.prefix}{{id}}:end")
        return self._open(prefix=self.prefix)


async def take_away(store: Store, doc_id: str) -> WriteAnswer:
    (answer,) = await store.remove([Removal(doc_id=doc_id, token=(await look(store, doc_id)).token)])
    return answer


async def scan(store: Store, after: str | None = None) -> dict[str, Observation]:
    async with store.open_scan(after) as pages:
        return {doc_id: view async for page in pages for doc_id, view in page}


def statuses(answers: Sequence[WriteAnswer]) -> set[WriteStatus]:
    return {answer.status for answer in answers}


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that the server does by itself."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        await trio.sleep(0.005)


@asynccontextmanager
async def open_proxy(server: RedisServer) -> AsyncGenerator[Proxy, None]:
    """A proxy before the server."""
    async with proxy.open_proxy(server.port) as opened:
        yield opened


def url_of(opened: Proxy) -> str:
    """The way to the server that leads through a proxy."""
    return f"redis://127.0.0.1:{opened.port}/0"


def directory_of(tmp_path: Path, name: str = "redis") -> Path:
    """Where a server of a test's own keeps its files."""
    return tmp_path / name
