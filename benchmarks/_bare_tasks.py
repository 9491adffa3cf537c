"""The same repairs by bare Trio tasks: what a task and a scope for each document leave at best.

Each document has a task of its own under `trio.move_on_after`, asks for what the script does (versions, content,
vectors, conditional writes, read-back) and waits for the answers. Requests gather while a store is busy and go out as
one call in a thread, as the engine's do. There is neither plan nor queue, neither receipt nor result, nothing that
a store answers is doubted, and a store that fails ends it all.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeAlias

import apsw
import trio

Bulk: TypeAlias = Callable[[list[Any]], Awaitable[Sequence[Any]]]
Versions: TypeAlias = Callable[[apsw.Connection, str], dict[str, tuple[int, str, int]]]
Contents: TypeAlias = Callable[[apsw.Connection, str], list[tuple[str, str, str, int, str]]]
Writer: TypeAlias = Callable[[apsw.Connection, Sequence[tuple[Any, ...]]], None]

_MOST = 1024
_SECONDS = 30.0


class _Wait:
    """A task that waits for some answers."""

    __slots__ = ("answers", "missing", "task")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.answers: list[Any] = [None] * missing
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()


class Served:
    """A store, or an embedder, and what it was asked for and has not answered."""

    def __init__(self, nursery: trio.Nursery, bulk: dict[str, Bulk]) -> None:
        self._nursery = nursery
        self._bulk = bulk
        self._asked: dict[str, list[tuple[Any, _Wait, int]]] = {operation: [] for operation in bulk}
        self._order: deque[str] = deque()
        self._busy = False

    def ask(self, operation: str, item: Any, wait: _Wait, place: int) -> None:
        """Answered in `wait.answers[place]`."""
        asked = self._asked[operation]
        if not asked:
            self._order.append(operation)
        asked.append((item, wait, place))
        if not self._busy:
            self._busy = True
            self._nursery.start_soon(self._serve)

    async def _serve(self) -> None:
        while self._order:
            operation = self._order.popleft()
            asked = self._asked[operation]
            batch, self._asked[operation] = asked[:_MOST], asked[_MOST:]
            if self._asked[operation]:
                self._order.append(operation)
            answers = await self._bulk[operation]([item for item, _wait, _place in batch])
            for (_item, wait, place), answer in zip(batch, answers, strict=True):
                wait.answers[place] = answer
                wait.missing -= 1
                if not wait.missing and wait.task is not None:
                    trio.lowlevel.reschedule(wait.task)
                    wait.task = None
        self._busy = False


async def _answers(*asked: tuple[Served, str, Any]) -> list[Any]:
    wait = _Wait(len(asked))
    for place, (served, operation, item) in enumerate(asked):
        served.ask(operation, item, wait, place)

    def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
        wait.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    await trio.lowlevel.wait_task_rescheduled(abort)
    return wait.answers


def in_thread(work: Callable[[list[Any]], Sequence[Any]]) -> Bulk:
    """A bulk call that blocks."""

    async def call(items: list[Any]) -> Sequence[Any]:
        return await trio.to_thread.run_sync(work, items)

    return call


def lookers(connection: apsw.Connection, versions: Versions) -> dict[str, Bulk]:
    """Number, digest and revision of each document."""

    def look(ids: list[str]) -> list[Any]:
        held = versions(connection, json.dumps(ids))
        return [held.get(doc_id) for doc_id in ids]

    return {"look": in_thread(look)}


def readers(connection: apsw.Connection, contents: Contents) -> dict[str, Bulk]:
    """The row of each document."""

    def read(ids: list[str]) -> list[Any]:
        held = {row[0]: row for row in contents(connection, json.dumps(ids))}
        return [held.get(doc_id) for doc_id in ids]

    return {"read": in_thread(read)}


def writers(connection: apsw.Connection, versions: Versions, write: Writer) -> dict[str, Bulk]:
    """Write each row, the last of which is the revision that must still be held; in one transaction."""

    def change(rows: list[tuple[Any, ...]]) -> list[bool]:
        connection.execute("BEGIN IMMEDIATE")
        now = versions(connection, json.dumps([row[0] for row in rows]))
        fits = [now[row[0]][2] == row[-1] for row in rows]
        write(connection, [row[:-1] for row, fit in zip(rows, fits, strict=True) if fit])
        connection.execute("COMMIT")
        return fits

    return {"write": in_thread(change)}


async def repair(
    ids: Iterable[str],
    concurrency: int,
    serve: Callable[[trio.Nursery], dict[str, Served]],
) -> int:
    """Repair them, so many at a time; how many were read back equal."""
    done = 0
    slots = trio.Semaphore(concurrency)
    async with trio.open_nursery() as calls:
        served = serve(calls)
        text, vector, cache, embedder = served["text"], served["vector"], served["cache"], served["embedder"]

        async def one(doc_id: str) -> None:
            nonlocal done
            try:
                with trio.move_on_after(_SECONDS):
                    wanted, behind, cached = await _answers(
                        (text, "look", doc_id), (vector, "look", doc_id), (cache, "look", doc_id)
                    )
                    assert behind[0] < wanted[0]
                    (row,) = await _answers((text, "read", doc_id))
                    (embedded,) = await _answers((embedder, "embed", row[1]))
                    await _answers((vector, "write", (*row, embedded, behind[2])))
                    at_text, at_vector = await _answers((text, "look", doc_id), (vector, "look", doc_id))
                    assert at_text[:2] == at_vector[:2]
                    await _answers((cache, "write", (*row, cached[2])))
                    (at_cache,) = await _answers((cache, "look", doc_id))
                    done += at_cache[:2] == at_text[:2]
            finally:
                slots.release()

        async with trio.open_nursery() as nursery:
            for doc_id in ids:
                await slots.acquire()
                nursery.start_soon(one, doc_id)
    return done
