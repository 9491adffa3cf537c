"""I19 from end to end: no failure makes anybody tell a document's text, metadata or vector, or a credential."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import random
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
from cli_support import CONFIGURATION, Application, configure, with_database, with_stores
from security_support import Told

from trio_repair import (
    AutoRepairConfig,
    RepairJob,
    Stores,
    StoreUnavailable,
    SyncStrategy,
    check,
    count_changes,
    open_repair_engine,
)
from trio_repair.cli import _status
from trio_repair.instrumentation import JsonLinesInstrument, LoggingInstrument
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import CrashingStore, Fault, FaultKind, FaultyStore, make_document

TEXT, META, KEY, NUMBER = "canary-of-the-text", "canary-of-the-metadata", "canary-of-the-credentials", 0.70710678
CANARIES = ("canary-of", "70710678")


def leaks(told: str) -> list[str]:
    """The lines that tell a canary."""
    return [line for line in told.splitlines() if any(canary in line for canary in CANARIES)]


class Quoting:
    """A store whose operations raise, one after the other, exceptions that quote all that they know."""

    def __init__(self, inner: Any, operation: str, kind: str) -> None:
        self._inner, self._operation, self._kind = inner, operation, kind

    def __getattr__(self, name: str) -> Any:
        if name == "open_ranges":
            raise AttributeError(name)  # so that a check goes through the scan below
        return getattr(self._inner, name)

    def _raise(self) -> None:
        quoted = f"cannot store {TEXT} with {META} at {KEY}, vector [{NUMBER}]"
        error: BaseException = {
            "runtime": RuntimeError(quoted),
            "value": ValueError(quoted),
            "os": OSError(5, quoted, quoted),
            "key": KeyError(quoted),
            "unicode": UnicodeEncodeError("utf-8", quoted, 0, 1, quoted),
            "group": ExceptionGroup(quoted, [ValueError(quoted), KeyError(quoted)]),
            "typed": StoreUnavailable("vector", quoted),
        }[self._kind]
        error.add_note(quoted)
        raise error from LookupError(quoted)

    async def observe(self, doc_ids: Sequence[str]) -> Any:
        if self._operation == "observe":
            self._raise()
        return await self._inner.observe(doc_ids)

    async def read(self, doc_ids: Sequence[str]) -> Any:
        if self._operation == "read":
            self._raise()
        return await self._inner.read(doc_ids)

    async def prepare(self, documents: Sequence[Any]) -> Any:
        if self._operation == "prepare":
            self._raise()
        return await self._inner.prepare(documents)

    async def write(self, writes: Sequence[Any]) -> Any:
        if self._operation == "write":
            self._raise()
        return await self._inner.write(writes)

    async def remove(self, removals: Sequence[Any]) -> Any:
        if self._operation == "remove":
            self._raise()
        return await self._inner.remove(removals)

    async def count(self) -> Any:
        if self._operation == "count":
            self._raise()
        return await self._inner.count()

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> Any:
        if self._operation == "scan":
            self._raise()
        async with self._inner.open_scan(after) as pages:
            yield pages


OPERATIONS = ("observe", "read", "prepare", "write", "remove", "count", "scan")
KINDS = ("runtime", "value", "os", "key", "unicode", "group")


class _Reprs:
    """Keeps the repr of every event and of all that hangs on it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_event(self, event: Any) -> None:
        self.told += [repr(event), str(event), repr(event.result), repr(event.job)]


def _store(name: str, ids: Sequence[str], number: int) -> MemoryStore:
    store = CrashingStore(name)  # so that every fault can strike
    for doc_id in ids:
        store.put_nowait(make_document(doc_id, TEXT, number=number, metadata={"m": META}))
    return store


async def _drive(wrap: Callable[[MemoryStore], Any], told: list[str]) -> None:
    """Repair, check, count, resolve over a store that fails; keep everything that anybody could print."""
    text = _store("text", ["a", "b", "orphaned in text"], 2)
    vector = wrap(_store("vector", ["a", "b", "orphaned in vector"], 1))
    cache = _store("cache", ["a"], 1)
    stores = Stores(text=text, vector=vector, cache=cache)
    lines, reprs = io.StringIO(), _Reprs()
    config = AutoRepairConfig(
        job_timeout_seconds=1.0, store_call_timeout=0.2, unavailable_timeout=0.5, settle=0.01, missing_source="delete"
    )

    async def attempt(what: Callable[[], Any]) -> None:
        try:
            told.append(repr(await what()))
        except Exception as error:  # whatever comes out is looked at
            told.append(f"{error} {error!r}")

    async def repair() -> Any:
        instruments = [JsonLinesInstrument(lines), LoggingInstrument(), reprs]
        async with open_repair_engine(stores, config, instruments=instruments, rng=random.Random(0)) as engine:
            jobs = [RepairJob(doc_id=one, strategy=SyncStrategy.MOST_RECENT, max_retries=1) for one in ("a", "b")]
            async with engine.run(jobs) as results:
                told.extend([repr(result) + str(result.error) async for result in results])
            await attempt(lambda: engine.resolve("orphaned in text", "delete"))
            told.append(f"{engine!r} {engine.statistics()!r}")

    async def find() -> Any:
        async with check(stores, config) as checking:
            return [divergence async for divergence in checking]

    await attempt(repair)
    if isinstance(vector, FaultyStore):
        await vector.wait_for_late_landings()  # however short the back-offs were
    await attempt(find)
    await attempt(lambda: count_changes(stores, SyncStrategy.MOST_RECENT, config))
    told.extend(
        [lines.getvalue(), *reprs.told, repr(stores), repr(text), repr(vector) if hasattr(vector, "inner") else ""]
    )


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """Every log record at DEBUG, formatted with its traceback as a program would."""
    records: list[str] = []

    class Everything(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(logging.Formatter("%(name)s %(levelname)s %(message)s").format(record))

    root, handler = logging.getLogger("trio_repair"), Everything()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield records
    root.setLevel(level)
    root.removeHandler(handler)


def _run(wrap: Callable[[MemoryStore], Any]) -> str:
    told: list[str] = []
    trio.run(_drive, wrap, told, clock=trio.testing.MockClock(autojump_threshold=0))
    return "\n".join(told)


@pytest.mark.parametrize("kind", KINDS)
def test_i19_what_an_adapter_quotes_is_not_told(heard: list[str], kind: str) -> None:
    """Whatever operation raises it: no event, line, log, result, error or repr has it."""
    for operation in OPERATIONS:
        told = _run(lambda store, operation=operation: Quoting(store, operation, kind))
        assert [] == leaks("\n".join([told, *heard])), operation
    assert heard


@pytest.mark.parametrize("kind", list(FaultKind), ids=lambda kind: kind.value)
def test_i19_no_fault_makes_anybody_tell(heard: list[str], kind: FaultKind) -> None:
    """Each kind of fault, at each operation where it can strike."""
    reached = 0
    for operation in sorted(kind.operations):
        delay = 0.001 if kind is FaultKind.BLOCKED_LOOP else 0.3
        faulty: list[FaultyStore] = []

        fault = Fault(kind, operation, delay=delay)

        def wrap(store: MemoryStore, fault: Fault = fault, faulty: list[FaultyStore] = faulty) -> Any:
            faulty.append(FaultyStore(store, [fault], name="vector"))
            return faulty[0]

        told = _run(wrap)
        reached += faulty[0].injected[kind]
        assert [] == leaks("\n".join([told, *heard])), operation
    # One call alone overtakes nobody.
    assert reached or kind is FaultKind.OVERTAKEN


def test_control_i19_an_adapter_that_quotes_in_a_typed_error_is_heard() -> None:
    """The very same drive finds a leak where there is one: the problem that a store's own typed error states is told."""
    assert leaks(_run(lambda store: Quoting(store, "observe", "typed")))


PLUGIN = """\
from contextlib import asynccontextmanager
from importlib.metadata import entry_points

from test_nothing_is_told import Quoting


@asynccontextmanager
async def quoting(settings, *, name, directory, content, create):
    if settings["operation"] == "open":
        Quoting(None, "open", settings["error"])._raise()
    (entry,) = entry_points(group="trio_repair.stores", name="sqlite-vector")
    async with entry.load()(settings["inner"], name=name, directory=directory, content=content, create=create) as store:
        yield Quoting(store, settings["operation"], settings["error"])
"""

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("check",),
    ("plan", "--strategy", "most-recent", "--out", "plan.jsonl"),
    ("repair", "--strategy", "most-recent", "--receipts", "receipts.jsonl", "--allow-mass", "--max-retries", "0"),
    ("repair", "--strategy", "most-recent", "--dry-run", "--json"),
    ("show", "a"),
    ("resolve", "b", "--take", "delete"),
    ("purge", "--older-than", "0s"),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores with canaries in them, some of them damaged."""
    directory = tmp_path_factory.mktemp("canaries")

    async def fill(application: Application) -> None:
        for number, store in ((2, application.stores.text), (1, application.stores.vector)):
            ids = ("a", "b", "c", "only here" if number == 1 else "only there")
            await application.put(
                store, *(make_document(one, TEXT, number=number, metadata={"m": META}) for one in ids)
            )
        assert application.stores.cache is not None
        await application.put(application.stores.cache, make_document("a", TEXT, metadata={"m": META}))

    with_stores(directory, fill, create=True)
    return directory


@pytest.fixture
def quoting(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """A copy of the stores, the vector store of which quotes; its credentials come from the environment."""
    site = tmp_path / "site"
    (site / "quoting-1.0.dist-info").mkdir(parents=True)
    (site / "quoting_store.py").write_text(PLUGIN)
    (site / "quoting-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: quoting\nVersion: 1.0\n")
    (site / "quoting-1.0.dist-info" / "entry_points.txt").write_text(
        "[trio_repair.stores]\nquoting = quoting_store:quoting\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("VECTOR_KEY", KEY)

    def make(operation: str, error: str) -> Path:
        directory = tmp_path / f"{operation}-{error}"
        shutil.copytree(sound, directory)
        (directory / "trio-repair.toml").write_text(CONFIGURATION.replace("settle = 0.05", "settle = 0.0"))
        configure(
            directory,
            'kind = "sqlite-vector"\npath = "vector.db"\n\n[stores.vector.embedder]',
            f'kind = "quoting"\noperation = "{operation}"\nerror = "{error}"\nkey = {{ env = "VECTOR_KEY" }}\n\n'
            '[stores.vector.inner]\npath = "vector.db"\n\n[stores.vector.inner.embedder]',
        )
        monkeypatch.chdir(directory)
        return directory

    return make


CASES = [(operation, kind) for (operation, kind) in zip(("open", *OPERATIONS), itertools.cycle(KINDS), strict=False)]


@pytest.mark.parametrize(("operation", "kind"), CASES)
def test_i19_the_command_tells_nothing(
    quoting: Callable[[str, str], Path], told: Callable[..., Told], operation: str, kind: str
) -> None:
    """Tables, JSON lines, complaints, tracebacks of bugs, logs, receipts and plans, by every command."""
    directory = quoting(operation, kind)
    statuses = set()
    for command in COMMANDS:
        done = told(*command)
        statuses.add(done.status)
        assert [] == leaks(done.all), command
    for path in directory.glob("*.jsonl"):
        assert [] == leaks(path.read_text())
    assert statuses - {0, 1} or operation not in {"open", "observe", "scan"}  # it was really in trouble


def test_control_i19_a_bug_that_is_shown_whole_is_heard(
    quoting: Callable[[str, str], Path], told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Python's own traceback in place of ours, the same command tells the canaries."""
    quoting("open", "runtime")
    assert [] == leaks(told("check").all)
    monkeypatch.setattr(_status, "show_where", traceback.print_exception)
    assert leaks(told("check").all)


def test_i19_credentials_in_a_typed_error_are_hidden(
    quoting: Callable[[str, str], Path], told: Callable[..., Told]
) -> None:
    """A store's typed error is shown, with the variable's name for what came from the environment."""
    quoting("scan", "typed")
    shown = told("check").all
    assert "<from $VECTOR_KEY>" in shown
    assert KEY not in shown


def _spoil(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    start = int(len(content) * at) // 4096 * 4096
    content[start : start + 4096] = os.urandom(4096)
    path.write_bytes(content)


SPOILERS: dict[str, Callable[[Path], Any]] = {
    "text: first page": lambda directory: _spoil(directory / "text.db", 0.0),
    "text: a page": lambda directory: _spoil(directory / "text.db", 0.5),
    "vector: a page": lambda directory: _spoil(directory / "vector.db", 0.6),
    "text: cut short": lambda directory: os.truncate(directory / "text.db", 9000),
    "text: no index": lambda directory: with_database(
        directory / "text.db", lambda connection: connection.execute("DROP TABLE documents_fts").get
    ),
    "text: metadata that is no JSON": lambda directory: _sql(directory / "text.db", f"metadata = '{{{META}'"),
    "text: bytes that are no UTF-8": lambda directory: _sql(
        directory / "text.db", "text = CAST(x'ff' || CAST(text AS BLOB) AS TEXT)"
    ),
    "text: another digest": lambda directory: _sql(directory / "text.db", "digest = 'no digest'"),
}


def _sql(path: Path, change: str) -> None:
    def work(connection: apsw.Connection) -> None:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        try:
            connection.execute(f"UPDATE documents SET {change}")
        except apsw.SQLError:  # metadata is checked as JSON by an index or trigger: then it cannot be spoiled
            return

    with_database(path, work)


@pytest.mark.parametrize("what", SPOILERS)
def test_i19_spoiled_files_are_not_quoted(
    quoting: Callable[[str, str], Path], told: Callable[..., Told], what: str
) -> None:
    """Damaged pages, cut files, contents that nobody can read: typed complaints without any content."""
    directory = quoting("none", "none")
    SPOILERS[what](directory)
    for command in COMMANDS:
        done = told(*command)
        assert done.status in {0, 1, 2, 3}, done.all
        assert "Traceback" not in done.all
        assert [] == leaks(done.all), command
    for path in directory.glob("*.jsonl"):
        assert [] == leaks(path.read_text())
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_i19_reprs_hide_contents() -> None:
    """Documents, chunks and what was prepared hide text, metadata and vectors."""

    async def main() -> list[str]:
        store = MemoryStore("text")
        document = make_document("a", TEXT, metadata={"m": META})
        store.put_nowait(document)
        (prepared,) = await store.prepare([document])
        (stored,) = await store.read(["a"])
        return [repr(one) for one in (document, prepared, stored, store)]

    assert [] == leaks("\n".join(trio.run(main)))
    assert leaks(repr({"text": TEXT}))  # the control
