"""What all three SQLite stores do alike: the fence, whole documents, poison, cancellation, snapshots, crashes."""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_support import GENEROUS, OPENERS, prepared, scan, sound, sql, summaries, whole
from store_calls import look, put, take_away, write

from trio_repair import (
    Document,
    InvalidValue,
    Observation,
    Presence,
    Removal,
    StoredDocument,
    StoreRejected,
    StoreUnavailable,
    Write,
    WriteStatus,
)
from trio_repair._summary import summarize
from trio_repair.stores._sqlite import Session
from trio_repair.stores._thread import Call
from trio_repair.testing import make_document

KINDS = sorted(OPENERS)
HOSTILE = [
    "a",
    "A",
    "á",
    "' OR 1=1 --",
    '"; DROP TABLE documents; --',
    "../../etc/passwd",
    "%_*",
    "😀",
    "\x01\x7f\u2028",
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# A store against a dict.

operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"),
            st.lists(
                st.tuples(st.sampled_from(HOSTILE), st.text(st.characters(codec="utf-8"), max_size=120)),
                max_size=4,
                unique_by=lambda pair: pair[0],
            ),
        ),
        st.tuples(st.just("delete"), st.sampled_from(HOSTILE)),
        st.tuples(st.just("remove"), st.sampled_from(HOSTILE)),
        st.tuples(st.just("stale"), st.sampled_from(HOSTILE)),
        st.tuples(st.just("reopen"), st.none()),
    ),
    max_size=12,
)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=20)
@given(steps=operations, _schedule=st.random_module())
def test_i18_a_store_is_a_dict(name: str, steps: list[tuple[str, Any]], _schedule: object) -> None:
    """I18: after any sequence of writes, deletes, removals and refused writes, the store holds what a dict would."""
    with tempfile.TemporaryDirectory() as directory:
        trio.run(follow_a_dict, name, Path(directory) / "s.db", steps)
        assert sound(Path(directory) / "s.db")
        assert whole(Path(directory) / "s.db", name)


async def follow_a_dict(name: str, path: Path, steps: list[tuple[str, Any]]) -> None:
    model: dict[str, Document] = {}
    numbers = itertools.count(1)
    remaining = [("reopen", None), *steps]
    while remaining:
        remaining.pop(0)
        async with OPENERS[name](path, create=True) as store:
            while remaining and remaining[0][0] != "reopen":
                step, argument = remaining.pop(0)
                if step == "put":
                    documents = [make_document(one, text, number=next(numbers)) for one, text in argument]
                    await put(store, *documents)
                    model.update({document.doc_id: document for document in documents})
                elif step == "delete":
                    grave = Document.tombstone(argument, number=next(numbers))
                    await put(store, grave)
                    model.pop(argument, None)
                    if store.traits.keeps_tombstones:
                        model[argument] = grave
                elif step == "remove":
                    await take_away(store, argument)
                    model.pop(argument, None)
                else:
                    (ready,) = await prepared(store, [make_document(argument, "stale")])
                    (answer,) = await store.write([Write(prepared=ready, token="1.1")])
                    assert answer.status is WriteStatus.REFUSED
            await require_model(store, model)


async def require_model(store: Any, model: dict[str, Document]) -> None:
    for doc_id, answer in zip(HOSTILE, await store.read(HOSTILE), strict=True):
        assert isinstance(answer, StoredDocument)
        assert model.get(doc_id) == answer.document
    entries = await scan(store)
    assert sorted(model) == [doc_id for doc_id, _ in entries]
    assert [seen for _, seen in entries] == await store.observe(sorted(model))
    assert all(seen.intact for _, seen in entries)
    assert len(model) == await store.count()


# The fence.


@pytest.mark.parametrize(
    ("edit", "table"),
    [
        ("UPDATE documents SET number = 2 WHERE doc_id = 'a'", "documents_updated"),
        ("UPDATE documents SET updated_at = '2024-01-01' WHERE doc_id = 'a'", "documents_updated"),
        ("UPDATE documents SET digest = 'other' WHERE doc_id = 'a'", "documents_updated"),
    ],
)
async def test_i01_foreign_sql_moves_the_token(kind: str, edit: str, table: str, tmp_path: Path) -> None:
    """I1: an edit by plain SQL refuses the write that was planned before it.

    Control: without the trigger, the write lands on a state that was never observed.
    """
    for planted, status in ((False, WriteStatus.REFUSED), (True, WriteStatus.LANDED)):
        path = tmp_path / f"{planted}.db"
        async with OPENERS[kind](path, create=True) as store:
            (seen,) = await put(store, make_document("a", "text"))
            (ready,) = await prepared(store, [make_document("a", "new", number=9)])
            sql(path, *([f"DROP TRIGGER {table}"] if planted else []), edit)
            (answer,) = await store.write([Write(prepared=ready, token=seen.token)])
            assert status is answer.status


async def test_i01_foreign_recreation_is_no_aba(kind: str, tmp_path: Path) -> None:
    """I1: a row that plain SQL deletes and inserts again, byte for byte, does not get its old token back.

    Control: without the trigger it does.
    """
    for planted, status in ((False, WriteStatus.REFUSED), (True, WriteStatus.LANDED)):
        path = tmp_path / f"{planted}.db"
        async with OPENERS[kind](path, create=True) as store:
            (seen,) = await put(store, make_document("a", "text"))
            (ready,) = await prepared(store, [make_document("a", "new", number=9)])
            sql(
                path,
                *(["DROP TRIGGER documents_inserted"] if planted else []),
                "CREATE TEMP TABLE kept AS SELECT * FROM documents; DELETE FROM documents;"
                "INSERT INTO documents SELECT * FROM kept",
            )
            (answer,) = await store.write([Write(prepared=ready, token=seen.token)])
            assert status is answer.status


async def test_a_new_file_shares_no_tokens(kind: str, tmp_path: Path) -> None:
    """A token that was taken from one file means nothing in another that was made in its place."""
    tokens = []
    for index in range(3):
        async with OPENERS[kind](tmp_path / f"{index}.db", create=True) as store:
            tokens.append((await put(store, make_document("a", "text")))[0].token)
    assert 3 == len(set(tokens))


COUNT_UP = """
    import sys, trio
    from pathlib import Path
    from sqlite_support import OPENERS, prepared
    from store_calls import look
    from trio_repair import Write, WriteStatus
    from trio_repair.testing import make_document
    async def main(kind, path, way, times):
        async with OPENERS[kind](path) as store:
            print("ready", flush=True)
            sys.stdin.readline()
            for _ in range(int(times)):
                while True:
                    seen = await look(store, "a")
                    await trio.sleep(0.001)
                    number = seen.version.number + 1
                    (ready,) = await prepared(store, [make_document("a", f"text {number}", number=number)])
                    token = seen.token if way == "fenced" else (await look(store, "a")).token
                    (answer,) = await store.write([Write(prepared=ready, token=token)])
                    if answer.status is WriteStatus.LANDED:
                        break
    trio.run(main, sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_i01_two_processes_lose_no_update(kind: str, tmp_path: Path) -> None:
    """I1: two processes that count one document up by compare-and-set lose no step.

    Control: looking at the token again right before the write, as a read-then-write does, loses some.
    """
    for way in ("fenced", "naive"):
        path = tmp_path / f"{way}.db"
        async with OPENERS[kind](path, create=True) as store:
            await put(store, make_document("a", "text 0", number=0))
        processes = [start(COUNT_UP, kind, path, way, 15) for _ in range(2)]
        for process in processes:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=GENEROUS)
            assert 0 == process.returncode
        async with OPENERS[kind](path) as store:
            version = (await look(store, "a")).version
            assert version is not None
            assert version.number is not None
            assert (version.number == 30) == (way == "fenced")


# Poison, and errors that concern the whole call.


async def test_i10_poison_fails_alone(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I10: a document that SQLite refuses is REJECTED, and those around it land.

    Control: without telling such errors apart, the batch fails as a whole.
    """
    path = tmp_path / "s.db"
    documents = [make_document(doc_id, f"text of {doc_id}") for doc_id in ("a", "b", "poison", "c", "gone")]
    async with OPENERS[kind](path, create=True) as store:
        await put(store, documents[-1])
        sql(path, "CREATE TRIGGER poison BEFORE INSERT ON documents WHEN NEW.doc_id = 'poison'"
                  " BEGIN SELECT RAISE(ABORT, 'SECRET'); END")  # fmt: skip
        documents[-1] = Document.tombstone("gone", number=2)
        with monkeypatch.context() as patched:
            patched.setattr("trio_repair.stores._writing.is_document_error", lambda _error: False)
            with pytest.raises(StoreUnavailable):
                await write(store, *documents)
            assert 1 == await store.count()
        answers = await write(store, *documents)
        landed = WriteStatus.LANDED
        assert [landed, landed, WriteStatus.REJECTED, landed, landed] == [answer.status for answer in answers]
        error = answers[2].error
        assert isinstance(error, StoreRejected)
        assert "poison" == error.doc_id
        assert "SECRET" not in f"{error}{error.__cause__}"
        assert ["a", "b", "c"] == [doc_id for doc_id, seen in await scan(store) if seen.presence is Presence.LIVE]
        assert (await look(store, "gone")).presence is not Presence.LIVE
        (alone,) = await write(store, documents[2])
        assert alone.status is WriteStatus.REJECTED
    assert sound(path)
    assert whole(path, kind)


async def test_tables_that_are_gone_are_not_the_documents_fault(kind: str, tmp_path: Path) -> None:
    """A schema that somebody damaged is StoreUnavailable, not a rejection of every document."""
    path = tmp_path / "s.db"
    async with OPENERS[kind](path, create=True) as store:
        sql(path, "CREATE TRIGGER bad AFTER INSERT ON documents BEGIN INSERT INTO no_such_table VALUES (1); END")
        with pytest.raises(StoreUnavailable, match="SQLError"):
            await write(store, make_document("a", "text"), make_document("b", "text"))


async def test_a_file_without_its_revision_says_so(kind: str, tmp_path: Path) -> None:
    """The counter behind the fence is gone, before a write or in the middle of one: told, and nothing is written."""
    path = tmp_path / "s.db"
    async with OPENERS[kind](path, create=True) as store:
        sql(path, "CREATE TRIGGER lost AFTER INSERT ON documents WHEN NEW.doc_id = 'a' BEGIN DELETE FROM revision; END",
                  "CREATE TRIGGER poison BEFORE INSERT ON documents WHEN NEW.doc_id = 'poison'"
                  " BEGIN SELECT RAISE(ABORT, 'no'); END")  # fmt: skip
        documents = [make_document(doc_id, "text") for doc_id in ("poison", "a", "b")]
        with pytest.raises(StoreUnavailable, match="has lost the row of its table revision"):
            await write(store, *documents)
        assert 0 == await store.count()
        await put(store, documents[2])
        sql(path, "DELETE FROM revision")
        with pytest.raises(StoreUnavailable, match="has lost the row of its table revision"):
            await write(store, make_document("c", "text"))
        assert 1 == await store.count()


@pytest.mark.parametrize("written", ["new", "over another", "tombstone"])
@pytest.mark.parametrize(
    "trigger",
    [
        "SELECT 1",
        "UPDATE documents SET number = 7 WHERE doc_id = NEW.doc_id AND number != 7",
        "UPDATE documents SET digest = NULL WHERE doc_id = NEW.doc_id AND digest IS NOT NULL",
    ],
)
async def test_an_answer_says_what_is_held_whatever_a_trigger_made_of_it(
    kind: str, tmp_path: Path, trigger: str, written: str
) -> None:
    """An application's trigger may change, in the same transaction, what was written, and leave it at our revision."""
    path = tmp_path / "s.db"
    kept, gone = make_document("a", "a new text", number=3), Document.tombstone("a", number=3)
    async with OPENERS[kind](path, create=True) as store:
        if written != "new":
            await put(store, make_document("a", "a text", number=1))
        for event in ("INSERT", "UPDATE"):
            sql(path, f"CREATE TRIGGER app_{event} AFTER {event} ON documents BEGIN {trigger}; END")
        (answer,) = await write(store, gone if written == "tombstone" else kept)
        assert answer.status is WriteStatus.LANDED
        assert answer.observation == await look(store, "a")
        assert answer.observation is not None
        if "number = 7" in trigger:  # the control: it is not what was written
            assert answer.observation.version not in (kept.version, gone.version)


class FailingCommit:
    """A connection on which COMMIT fails, as a disk makes it fail; the rest is the real one's."""

    def __init__(self, connection: apsw.Connection, extended: int) -> None:
        self._connection = connection
        self._extended = extended

    def execute(self, statement: str, *arguments: Any) -> Any:
        if statement == "COMMIT":
            error = apsw.IOError("disk I/O error")
            error.extendedresult = self._extended  # type: ignore[attr-defined]  # as the driver sets it
            raise error
        return self._connection.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize("extended", [apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_WRITE])
async def test_a_commit_that_fails(kind: str, extended: int, tmp_path: Path) -> None:
    """If syncing the commit fails, it is UNKNOWN whether it lasts; if writing it failed, nothing was written."""
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        (held,) = await put(store, make_document("a", "text"))

        def spoil(session: Session) -> None:
            session._main = FailingCommit(session.main, extended)  # type: ignore[assignment]  # stands in for a connection

        await store._run(spoil)
        ready = await prepared(store, [make_document("a", "new"), make_document("b", "new")])
        writes = [Write(prepared=ready[0], token=held.token), Write(prepared=ready[1], token="not its token")]
        if extended == apsw.SQLITE_IOERR_FSYNC:
            answers = await store.write(writes)
            assert [WriteStatus.UNKNOWN, WriteStatus.REFUSED] == [answer.status for answer in answers]
            assert isinstance(answers[0].error, StoreUnavailable)
        else:
            with pytest.raises(StoreUnavailable, match="I/O error"):
                await store.write(writes)
        assert held == await look(store, "a")


async def test_contents_too_large_for_one_answer(kind: str, tmp_path: Path) -> None:
    """What SQLite cannot give in one value is asked for in parts; a document that alone is too large is rejected."""
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        documents = [make_document(f"{index}", "word " * 2000) for index in range(8)]
        await put(store, *documents)

        def limit(session: Session, length: int) -> None:
            session.main.limit(apsw.SQLITE_LIMIT_LENGTH, length)

        await store._run(limit, 30_000)
        answers = await store.read([document.doc_id for document in documents])
        assert documents == [answer.document for answer in answers if isinstance(answer, StoredDocument)]
        await store._run(limit, 9000)
        (answer,) = await store.read(["0"])
        assert isinstance(answer, StoreRejected)
        assert "0" == answer.doc_id


async def test_what_a_call_may_name(kind: str, tmp_path: Path) -> None:
    """Too many documents, and a document twice in one write, are refused before anything happens."""
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        too_many = [f"{index}" for index in range(store.traits.max_batch + 1)]
        with pytest.raises(InvalidValue, match="batch: names 1025 documents"):
            await store.observe(too_many)
        with pytest.raises(InvalidValue, match="batch: names 1025 documents"):
            await store.read(too_many)
        with pytest.raises(InvalidValue, match="batch: names 1025 documents"):
            await store.prepare([make_document(doc_id, "x") for doc_id in too_many])
        (ready,) = await prepared(store, [make_document("a", "x")])
        with pytest.raises(InvalidValue, match="names a document twice"):
            await store.write([Write(prepared=ready, token="absent")] * 2)
        with pytest.raises(InvalidValue, match="names a document twice"):
            await store.remove([Removal(doc_id="a", token="absent")] * 2)
        assert 0 == await store.count()
    with pytest.raises(StoreUnavailable, match="is closed"):
        await store.observe(["a"])


@pytest.mark.parametrize(
    ("metadata", "text"),
    [({"x": float("nan")}, "t"), ({"x": {1}}, "t"), ({1: "x"}, "t"), ({"x": [{2: 3}]}, "t"), ({"x": "\ud800"}, "t")],
)
async def test_metadata_that_json_lacks(kind: str, metadata: dict[str, Any], text: str, tmp_path: Path) -> None:
    """What JSON cannot hold, or would change, is rejected in prepare, alone and without being shown."""
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        bad = make_document("bad", text, metadata=metadata)
        answers = await store.prepare([make_document("a", "good"), bad])
        assert isinstance(answers[1], StoreRejected)
        assert not isinstance(answers[0], StoreRejected)


# Cancellation.


async def wait_for(event: threading.Event) -> None:
    with trio.fail_after(GENEROUS):
        await trio.to_thread.run_sync(event.wait, abandon_on_cancel=True)


@pytest.mark.parametrize("heard", [True, False])
async def test_a_runaway_statement_is_interrupted(
    kind: str, heard: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled call is stopped inside SQLite, and its thread goes on; also if the interrupt came too early."""
    if not heard:
        monkeypatch.setattr(Session, "interrupt", lambda _session: None)
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        started, ended = threading.Event(), threading.Event()

        def run_away(session: Session) -> None:
            main = session.main
            started.set()
            try:
                main.execute("WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT sum(x) FROM n")
            finally:
                ended.set()

        with trio.fail_after(GENEROUS), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store._run, run_away)
                await wait_for(started)
                scope.cancel()
        assert scope.cancelled_caught
        await put(store, make_document("a", "text"))
        await trio.to_thread.run_sync(ended.wait, GENEROUS)
        assert ended.is_set()


def hang_in_writes(session: Session, started: threading.Event, gate: threading.Event) -> None:
    """From now on, each write to this connection hangs in mid-transaction, deaf to interrupts."""

    def hang(*_: Any) -> None:
        started.set()
        gate.wait()

    session.main.create_scalar_function("hang", hang)
    session.main.execute("CREATE TEMP TRIGGER hanging BEFORE INSERT ON main.documents BEGIN SELECT hang(); END")


@pytest.mark.parametrize("planted", [False, True])
async def test_a_write_that_hangs_never_lands_late(
    kind: str, planted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that hangs in its thread is given up at its deadline, reading goes on, and it never lands.

    Control: without the look at the flag before COMMIT, it lands after its caller was told that it did not.
    """
    if planted:
        monkeypatch.setattr(Call, "begin_commit", lambda _call: None)
    # What stops a call sooner would do this flag's work.
    monkeypatch.setattr(Session, "interrupt", lambda _session: None)
    monkeypatch.setattr(Session, "raise_if_abandoned", lambda _session: None)
    started, gate = threading.Event(), threading.Event()
    try:
        async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
            (held,) = await put(store, make_document("a", "old"))
            await store._run(hang_in_writes, started, gate)
            (ready,) = await prepared(store, [make_document("a", "late", number=2)])
            with trio.fail_after(GENEROUS), trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.write, [Write(prepared=ready, token=held.token)])
                    await wait_for(started)
                    scope.cancel()
            assert scope.cancelled_caught
            assert 1 == store.abandoned_threads
            assert held == await look(store, "a")
            old = next(thread for thread in threading.enumerate() if thread.name.endswith(f"{kind} store 1"))
            gate.set()
            await trio.to_thread.run_sync(old.join, GENEROUS)
            seen = await look(store, "a")
            assert (make_document("a", "late", number=2).version if planted else held.version) == seen.version
            if not planted:
                await put(store, make_document("a", "new", number=3))
    finally:
        gate.set()


async def test_told_and_stored_agree_under_random_cancellation(kind: str, tmp_path: Path) -> None:
    """A write that was told LANDED is stored; one that was cancelled is stored whole or not at all."""
    rng = random.Random(1)
    path = tmp_path / "s.db"
    outcomes = {"told": 0, "cancelled": 0}
    async with OPENERS[kind](path, create=True) as store:
        held, *_ = await put(store, make_document("a", "0", number=0))
        for number in range(1, 81):
            new = make_document("a", f"{number} " * 50, number=number)
            (ready,) = await prepared(store, [new])
            answers = []
            # Sometimes no time and sometimes enough, so that both ends are met on any machine.
            with trio.move_on_after((0, math.inf, rng.random() * 0.002, rng.random() * 0.01)[number % 4]):
                answers = list(await store.write([Write(prepared=ready, token=held.token)]))
            seen = await look(store, "a")
            assert seen.intact
            if answers:
                outcomes["told"] += 1
                assert answers[0].observation == seen
                assert new.version == seen.version
            else:
                outcomes["cancelled"] += 1
                assert seen.version in (held.version, new.version)
            held = seen
    assert min(outcomes.values()) > 0
    assert whole(path, kind)


# Scans.


async def test_scan_in_byte_order_over_many_pages(kind: str, tmp_path: Path) -> None:
    """A scan of several pages gives each document once, in the byte order of its id, from `after` on."""
    rng = random.Random(2)
    ids = sorted({"".join(rng.choice("aB~é€😀\u0001 %'") for _ in range(rng.randint(1, 6))) for _ in range(2600)})
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        for batch in (ids[start : start + 256] for start in range(0, len(ids), 256)):
            ready = await prepared(store, [make_document(doc_id, doc_id) for doc_id in batch])
            await store.write([Write(prepared=one, token="absent") for one in ready])
        found = [doc_id for doc_id, _ in await scan(store)]
        assert sorted(ids, key=str.encode) == found
        assert len(ids) == await store.count()
        middle = found[1234]
        assert found[1235:] == [doc_id for doc_id, _ in await scan(store, middle)]
        async with store.open_scan() as pages:
            sizes = [len(page) async for page in pages]
        assert [1000] * (len(ids) // 1000) + [len(ids) % 1000] == sizes


async def test_scans_are_snapshots(kind: str, tmp_path: Path) -> None:
    """Two scans at once each see the moment at which they were opened, whatever is written meanwhile."""
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        await put(store, make_document("a", "1"), make_document("b", "1"))
        before = await scan(store)
        async with store.open_scan() as first:
            await put(store, make_document("a", "2", number=2))
            await take_away(store, "b")
            after = await scan(store)
            async with store.open_scan() as second:
                await put(store, make_document("c", "3"))
                assert after == [entry async for page in second for entry in page]
            assert before == [entry async for page in first for entry in page]
        assert before != after
        assert ["a", "c"] == [doc_id for doc_id, _ in await scan(store)]


async def test_a_scan_lets_its_connection_go(kind: str, tmp_path: Path) -> None:
    """However a scan is left (to the end, early, by cancellation), its connection is closed."""
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        await put(store, make_document("a", "1"))

        def readers(session: Session) -> int:
            return len(session._readers)

        await scan(store)
        async with store.open_scan():
            assert 1 == await store._run(readers)
        assert 0 == await store._run(readers)
        with trio.CancelScope() as scope:
            async with store.open_scan() as pages:
                scope.cancel()
                async for _ in pages:
                    raise AssertionError("a page came in spite of the cancellation")
        assert scope.cancelled_caught
        assert 0 == await store._run(readers)


async def test_a_scan_does_not_outlive_its_thread(kind: str, tmp_path: Path) -> None:
    """A scan whose thread was left behind ends with StoreUnavailable, never with another snapshot's rows."""
    gate = threading.Event()
    started = threading.Event()

    def hang(_session: Session) -> None:
        started.set()
        gate.wait()

    try:
        async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
            await put(store, make_document("a", "1"))
            async with store.open_scan() as pages:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(store._run, hang)
                        await wait_for(started)
                        scope.cancel()
                with pytest.raises(StoreUnavailable, match="snapshot of a scan was lost; start the scan again"):
                    await anext(pages)
            assert 1 == len(await scan(store))
    finally:
        gate.set()


# Crashes.

WRITE_FOR_EVER = """
    import sys, trio
    from pathlib import Path
    from sqlite_support import OPENERS
    from store_calls import put
    from trio_repair.testing import make_document
    async def main(kind, path, first):
        async with OPENERS[kind](path) as store:
            for number in range(int(first), 10**9):
                await put(store, *(make_document(f"{index}", f"{number} " * 40, number=number) for index in range(20)))
                print(number, flush=True)
    trio.run(main, sys.argv[1], Path(sys.argv[2]), sys.argv[3])
"""


async def test_kill_in_mid_batch(kind: str, tmp_path: Path) -> None:
    """After kill -9 at any moment the file is sound, documents are whole, and a batch is there or not, as one."""
    path = tmp_path / "s.db"
    async with OPENERS[kind](path, create=True):
        pass
    number = 0
    for batches in (1, 3, 4):
        process = start(WRITE_FOR_EVER, kind, path, number + 1)
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(batches)]
        process.kill()
        told += [int(line) for line in process.communicate()[0].splitlines() if line.endswith(line.strip())]
        assert sound(path)
        assert whole(path, kind)
        async with OPENERS[kind](path) as store:
            entries = await scan(store)
            numbers = {seen.version.number for _, seen in entries if seen.version is not None}
            assert 20 == len(entries)
            assert 1 == len(numbers)
            (held,) = numbers
            assert held is not None
            assert held >= told[batches - 1]
            number = held
            answers = await store.read([doc_id for doc_id, _ in entries])
            assert all(isinstance(answer, StoredDocument) for answer in answers)


# What foreign hands can do to a row.


async def test_bytes_that_are_not_utf8(kind: str, tmp_path: Path) -> None:
    """Text that is not UTF-8 spoils its own document only; an id that is not stops scans with a clear error."""
    path = tmp_path / "s.db"
    table = "chunks" if kind == "vector" else "documents"
    async with OPENERS[kind](path, create=True) as store:
        await put(store, make_document("a", "good"), make_document("b", "bad"))
        sql(path, f"UPDATE {table} SET text = CAST(x'62ff' AS TEXT) WHERE doc_id = 'b'")
        seen = await look(store, "b")
        assert not seen.intact
        good, bad = await store.read(["a", "b"])
        assert isinstance(good, StoredDocument)
        assert isinstance(bad, StoreRejected)
        assert [("a", True), ("b", False)] == [(doc_id, one.intact) for doc_id, one in await scan(store)]
        sql(path, "UPDATE documents SET doc_id = CAST(x'62ff' AS TEXT) WHERE doc_id = 'b'")
        with pytest.raises(StoreUnavailable, match="holds a doc_id that is not UTF-8"):
            await scan(store)
        assert isinstance(await look(store, "a"), Observation)


@pytest.mark.parametrize("doc_id", ["''", "CAST(x'610062' AS TEXT)", "printf('%.*c', 2049, 'x')"])
async def test_ids_that_the_model_refuses(kind: str, doc_id: str, tmp_path: Path) -> None:
    """Plain SQL cannot insert an id that is empty, too long, or holds NUL."""
    path = tmp_path / "s.db"
    async with OPENERS[kind](path, create=True) as store:
        await put(store, make_document("a", "x"))
        with pytest.raises(apsw.ConstraintError):
            sql(path, f"UPDATE documents SET doc_id = {doc_id}")


async def test_a_lying_digest_is_found_when_read(kind: str, tmp_path: Path) -> None:
    """Content is handed out only if it has the digest that stands beside it."""
    path = tmp_path / "s.db"
    async with OPENERS[kind](path, create=True) as store:
        await put(store, make_document("a", "text"))
        sql(path, "UPDATE documents SET digest = printf('%.*c', 64, 'f')")
        (answer,) = await store.read(["a"])
        assert isinstance(answer, StoreRejected)
        assert "a" == answer.doc_id


async def test_odd_moments(kind: str, tmp_path: Path) -> None:
    """A moment that is none reads as None, one without an offset as UTC."""
    path = tmp_path / "s.db"
    async with OPENERS[kind](path, create=True) as store:
        await put(store, make_document("a", "text"))
        for text, wanted in (("yesterday", None), ("2024-05-06 07:08:09", "2024-05-06T07:08:09+00:00")):
            sql(path, f"UPDATE documents SET updated_at = '{text}'")
            version = (await look(store, "a")).version
            assert version is not None
            assert wanted == (None if version.updated_at is None else version.updated_at.isoformat())


async def test_summaries_are_those_of_the_observations(kind: str, tmp_path: Path) -> None:
    """For every copy that is whole, over several pages, a summary is exactly what `summarize` makes of what is seen.

    So two stores are compared without a look at each document. Control: what plain SQL has spoilt has no summary.
    """
    path = tmp_path / "s.db"
    async with OPENERS[kind](path, create=True) as store:
        many = [make_document(f"many {number:04}", f"text {number}", number=number) for number in range(1100)]
        for start in range(0, len(many), 200):
            await put(store, *many[start : start + 200])
        await put(store, *[make_document(doc_id, "x", number=None) for doc_id in HOSTILE])
        if kind != "cache":
            await put(store, Document.tombstone("a", number=7), Document.tombstone("never there", number=None))
        found = await summaries(store)
        assert [summarize(view, store.traits) for _, _, view in found] == [summary for _, summary, _ in found]
        assert [doc_id for doc_id, _, _ in found] == sorted(doc_id for doc_id, _, _ in found)
        assert len(found) >= 1100 + len(HOSTILE)
        assert "" not in {summary for _, summary, _ in found}
        assert found[5:] == await summaries(store, found[4][0])
        sql(path, "UPDATE documents SET digest = NULL WHERE doc_id = 'many 0500'")
        assert ["many 0500"] == [doc_id for doc_id, summary, _ in await summaries(store) if summary == ""]


async def test_summaries_of_an_empty_store(kind: str, tmp_path: Path) -> None:
    """Nothing is held, and nothing is summarized."""
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        assert [] == await summaries(store)
