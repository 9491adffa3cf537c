"""A process that repairs three SQLite stores and kills itself at a point that it was told.

``python -m crash.mortal`` is a nursery of such processes: it has imported everything and started no thread, and forks
one for each line of JSON on stdin (`Life`), and answers with a line that says how it ended. A death costs what a fork
costs, not what a start of Python costs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import apsw
import attrs
import trio

from trio_repair import AutoRepairConfig, EventKind, RepairJob, Stores, SyncStrategy, open_repair_engine
from trio_repair.cli._receipts import ReceiptFile
from trio_repair.cli._tally import Tally
from trio_repair.instrumentation import JsonLinesInstrument

from .sqlite_files import open_stores
from .witness import DeleteThenInsert

RECEIPTS = "receipts.jsonl"
EVENTS = "events.jsonl"
POINTS = "points.txt"


@attrs.frozen(kw_only=True)
class Life:
    """What one process does, and where it ends."""

    directory: str
    doc_ids: Sequence[str]
    """Repaired all at once by TEXT_SOURCE_OF_TRUTH."""
    choices: Sequence[tuple[str, str]] = ()
    """Documents that a person decides, beside these."""
    dies_at: str | None = None
    """The name of the point at which the process kills itself; None: it lives, and writes down what it passed."""
    nth: int = 0
    """It dies when it comes there for this time, from 0."""
    statements: bool = False
    """The points are those around each SQL statement of a write, not those around each call of the engine."""
    planted: str | None = None
    """A bug: "delete-then-insert", "split-receipts", "buffered-events"."""


class Fate:
    """Counts the points that the process passes, in any thread, and kills it at the one that it was told."""

    def __init__(self, life: Life) -> None:
        self._dies_at = life.dies_at
        self._left = life.nth
        self._lock = threading.Lock()
        self.passed: list[str] = []
        self.armed = False

    def point(self, name: str) -> None:
        with self._lock:
            if not self.armed:
                return
            if name == self._dies_at and not self._left:
                os.write(1, json.dumps({"point": name}).encode() + b"\n")
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= name == self._dies_at
            self.passed.append(name)


class MortalStore:
    """A point before each call, and one between its effect and its answer."""

    def __init__(self, name: str, inner: Any, fate: Fate) -> None:
        self._name = name
        self._inner = inner
        self._fate = fate
        self.traits = inner.traits

    def __getattr__(self, method: str) -> Any:
        async def call(items: Any) -> Any:
            self._fate.point(f"before {self._name}.{method}")
            answers = await getattr(self._inner, method)(items)
            self._fate.point(f"in {self._name}.{method}")
            return answers

        return call


class MortalReceipts:
    """A point before each receipt, and one after it."""

    def __init__(self, inner: Tally, fate: Fate) -> None:
        self._inner = inner
        self._fate = fate

    def on_event(self, event: Any) -> None:
        if event.kind is EventKind.SETTLED:
            self._fate.point("before a receipt")
        self._inner.on_event(event)
        if event.kind is EventKind.SETTLED:
            self._fate.point("after a receipt")


def _watch_statements(fate: Fate) -> None:
    """A point after each statement of a transaction, and before each commit, in it just before it is made, and after it.

    Among them are those that the full-text index and the vector tables make of one statement of the store.
    """

    def watch(connection: apsw.Connection) -> None:
        store = Path(connection.filename).stem

        def before(_cursor: object, sql: str, _bindings: object) -> bool:
            if connection.in_transaction and sql == "COMMIT":  # any other comes right after one that is over
                fate.point(f"before {store}: {_first_words(sql)}")
            return True

        def after(event: dict[str, Any]) -> None:
            words = _first_words(event["sql"] or "")
            if words.startswith(("SELECT", "PRAGMA")):
                return  # as after the one before it
            if words and (connection.in_transaction or words == "COMMIT"):
                fate.point(f"after {store}: {words}")

        def in_commit() -> bool:
            fate.point(f"in {store}: COMMIT")
            return False

        connection.exec_trace = before
        connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, after)
        connection.set_commit_hook(in_commit)

    apsw.connection_hooks.append(watch)


def _first_words(sql: str) -> str:
    return " ".join(sql.split()[:3])


def _split_receipts(fate: Fate) -> None:
    """The planted bug: a line in two writes."""
    whole = os.write

    def write(descriptor: int, data: bytes) -> int:
        if descriptor <= 2:
            return whole(descriptor, data)
        half = len(data) // 2
        done = whole(descriptor, data[:half])
        fate.point("in a receipt")
        return done + whole(descriptor, data[half:])

    os.write = write


async def _live(life: Life, fate: Fate, log: IO[str]) -> None:
    directory = Path(life.directory)
    async with open_stores(directory) as opened:
        stores: dict[str, Any] = opened
        if not life.statements:
            stores = {name: MortalStore(name, store, fate) for name, store in opened.items()}
        if life.planted == "delete-then-insert":
            stores = {name: DeleteThenInsert(store) for name, store in stores.items()}
        tally = Tally(most_failures=10)
        tally.receipts = ReceiptFile.open(directory / RECEIPTS)
        if life.planted == "split-receipts":
            _split_receipts(fate)
        receipts = tally if life.statements else MortalReceipts(tally, fate)
        config = AutoRepairConfig(settle=0.0, drain_timeout=30.0)
        instruments = [receipts, JsonLinesInstrument(log)]
        async with open_repair_engine(Stores(**stores), config, instruments=instruments) as engine:
            fate.armed = True
            async with trio.open_nursery() as nursery:
                for doc_id in life.doc_ids:
                    strategy = SyncStrategy.TEXT_SOURCE_OF_TRUTH
                    nursery.start_soon(engine.execute_repair_job, RepairJob(doc_id=doc_id, strategy=strategy))
                for doc_id, choice in life.choices:
                    nursery.start_soon(engine.resolve, doc_id, choice)
        fate.armed = False


def _end(life: Life) -> NoReturn:
    """Live in this process, the child, and leave it."""
    signal.alarm(300)  # one that hangs ends all the same, and its parent is told
    status = 1
    try:
        fate = Fate(life)
        if life.statements:
            _watch_statements(fate)
        by_the_line = -1 if life.planted == "buffered-events" else 1
        with (Path(life.directory) / EVENTS).open("a", encoding="utf-8", buffering=by_the_line) as log:
            trio.run(_live, life, fate, log)
        (Path(life.directory) / POINTS).write_text("\n".join(fate.passed))
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    for line in sys.stdin:
        life = Life(**json.loads(line))
        child = os.fork()
        if child == 0:
            _end(life)
        _, ended = os.waitpid(child, 0)
        print(json.dumps({"killed": os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL, "status": ended}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
