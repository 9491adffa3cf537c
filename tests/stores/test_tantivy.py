"""The text store on tantivy: the contract, the lock that its fence rests on, kills, and directories that are not its own."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

if importlib.util.find_spec("tantivy") is None and os.environ.get("CI") != "true":
    pytest.skip("tantivy is not installed; pip install -e '.[tantivy]'", allow_module_level=True)

import tantivy

from trio_repair import (
    ContentDefinition,
    Document,
    InvalidValue,
    Observation,
    Presence,
    Removal,
    StoredDocument,
    StoreError,
    StoreFileError,
    StoreRejected,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.stores import _directory, _tantivy, _tantivy_rows
from trio_repair.stores.tantivy import (
    TantivyTextStore,
    open_tantivy_text,
    tantivy_text_from_settings,
)
from trio_repair.testing import PROMISES, ContractBroken, check_store, make_document

ROOT = Path(__file__).parents[2]
OF_WRITERS = ("stale-refused", "one-creator", "one-winner", "no-lost-update", "whole-beside-writers", "fence-raced")

Factory = Callable[[], AbstractAsyncContextManager[TantivyTextStore]]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that somebody else holds is not waited for."""
    monkeypatch.setattr(_tantivy, "LOCK_SECONDS", 0.0)


def factory(directory: Path, kind: type[TantivyTextStore] = TantivyTextStore, *, max_calls: int = 1) -> Factory:
    """Opens a new store each time; with so many calls at once."""
    count = iter(range(1_000_000))

    @asynccontextmanager
    async def open_store() -> AsyncIterator[TantivyTextStore]:
        async with open_tantivy_text(directory / f"{next(count)}", create=True) as store:
            store.__class__ = kind
            store._traits = attrs.evolve(store._traits, max_calls=max_calls)
            yield store

    return open_store


async def look(store: TantivyTextStore, doc_id: str) -> Observation:
    (seen,) = await store.observe([doc_id])
    assert isinstance(seen, Observation)
    return seen


async def write(store: TantivyTextStore, *documents: Document) -> list[WriteAnswer]:
    """Write over whatever is held."""
    seen = await store.observe([document.doc_id for document in documents])
    writes = []
    for view, prepared in zip(seen, await store.prepare(documents), strict=True):
        assert not isinstance(view, StoreError)
        assert not isinstance(prepared, StoreError)
        writes.append(Write(prepared=prepared, token=view.token))
    return list(await store.write(writes))


async def put(store: TantivyTextStore, *documents: Document) -> list[Observation]:
    """Write over whatever is held; it must land."""
    answers = await write(store, *documents)
    assert {WriteStatus.LANDED} == {answer.status for answer in answers}, answers
    return [answer.observation for answer in answers if answer.observation is not None]


async def take_away(store: TantivyTextStore, doc_id: str) -> None:
    (answer,) = await store.remove([Removal(doc_id=doc_id, token=(await look(store, doc_id)).token)])
    assert answer.status is WriteStatus.LANDED


async def scan(store: TantivyTextStore, after: str | None = None) -> list[tuple[str, Observation]]:
    async with store.open_scan(after) as pages:
        return [entry async for page in pages for entry in page]


async def text_of(store: TantivyTextStore, doc_id: str) -> str | None:
    (answer,) = await store.read([doc_id])
    assert isinstance(answer, StoredDocument), answer
    return None if answer.document is None else answer.document.text


def written_from_outside(path: Path, *rows: dict[str, Any]) -> None:
    """Add rows as a program that knows tantivy and not this store does, while nobody has it open."""
    index = tantivy.Index.open(str(path))
    writer = index.writer(heap_size=15_000_000, num_threads=1)
    for row in rows:
        writer.add_document(tantivy.Document.from_dict(row, index.schema))
    writer.commit()
    writer.wait_merging_threads()


def traces(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file in a directory, when it was written, and what is in it."""
    return {
        str(one.relative_to(directory)): (one.stat().st_mtime_ns, one.read_bytes())
        for one in sorted(directory.rglob("*"))
        if one.is_file()
    }


# The contract.


async def test_contract(tmp_path: Path) -> None:
    """Every promise but those of writers: `again` cannot be, because one handle at a time has the lock.

    `test_the_fence_between_calls` asks for these, with many calls at once, and `test_the_lock_keeps_others_out` proves
    what the fence rests on besides.
    """
    await check_store(factory(tmp_path), races=False, only=set(PROMISES) - set(OF_WRITERS))


async def test_the_fence_between_calls(tmp_path: Path) -> None:
    """With many calls on the one handle at once, every race is run, and the fence holds."""
    await check_store(factory(tmp_path, max_calls=6), only=OF_WRITERS)


class LooksFirst(TantivyTextStore):
    """Compares in one call, and writes what it may in another, whatever is held by then."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        answers: list[WriteAnswer | None] = []
        going: list[_tantivy_rows.Change] = []
        seen = await self.observe([write.prepared.document.doc_id for write in writes])
        for write, held in zip(writes, seen, strict=True):
            assert isinstance(held, Observation)
            may = held.token == write.token
            answers.append(None if may else WriteAnswer(status=WriteStatus.REFUSED, observation=held))
            if may:
                going.append(_tantivy_rows.Change(write.prepared.document.doc_id, write.token, write.prepared))
        landed = await self._run(write_blindly, going)
        return [landed.pop(0) if answer is None else answer for answer in answers]


def write_blindly(session: _tantivy.Session, changes: Sequence[_tantivy_rows.Change]) -> list[WriteAnswer]:
    rows = _tantivy_rows.find_rows(session, [change.doc_id for change in changes])
    tokens = {doc_id: row.observation.token for doc_id, row in rows.items()}
    now = [attrs.evolve(one, token=tokens.get(one.doc_id, _tantivy_rows.ABSENT_TOKEN)) for one in changes]
    return _tantivy_rows.make_changes(session, now)


async def test_control_a_fence_of_two_calls_is_caught(tmp_path: Path) -> None:
    """The races between calls of one handle see a fence that is looked at first and obeyed later."""
    with pytest.raises(ContractBroken) as broken:
        await check_store(factory(tmp_path, LooksFirst, max_calls=6), only=["one-winner"])
    assert {"one-winner"} == set(broken.value.breaches)


# The lock.


def in_another_process(path: Path) -> subprocess.CompletedProcess[str]:
    """Open the store there; its exit status is 0 if it could, and it says what it was told."""
    script = (
        "import sys, trio\n"
        "from trio_repair import StoreFileError\n"
        "from trio_repair.stores import _tantivy\n"
        "from trio_repair.stores.tantivy import open_tantivy_text\n"
        "_tantivy.LOCK_SECONDS = 0.0\n"
        "async def main():\n"
        "    async with open_tantivy_text(sys.argv[1]) as store:\n"
        "        print(await store.count())\n"
        "try:\n"
        "    trio.run(main)\n"
        "except StoreFileError as error:\n"
        "    sys.exit(f'{type(error).__name__}: {error}')\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(path)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)


async def test_the_lock_keeps_others_out(tmp_path: Path, impatient: None) -> None:
    """While a handle is open no other can be, in this process or another; it is told so in one line, by type."""
    path = tmp_path / "store"
    async with open_tantivy_text(path, create=True) as store:
        await put(store, make_document("a", "held"))
        with pytest.raises(StoreFileError, match="one at a time") as refused:
            async with open_tantivy_text(path):
                pass
        assert "\n" not in str(refused.value)
        done = await trio.to_thread.run_sync(in_another_process, path)
        assert 1 == done.returncode
        assert done.stderr.startswith("StoreFileError: text store: ")
        assert "one at a time" in done.stderr
        assert 1 == len(done.stderr.splitlines())
        # The handle that has it goes on.
        await put(store, make_document("a", "held still", number=2))
    done = await trio.to_thread.run_sync(in_another_process, path)
    assert (0, "1\n") == (done.returncode, done.stdout), done.stderr


async def test_the_lock_is_waited_for(tmp_path: Path) -> None:
    """A handle that is just being closed is not in the way."""
    path = tmp_path / "store"
    release = trio.Event()
    opened = trio.Event()

    async def first() -> None:
        async with open_tantivy_text(path, create=True) as store:
            await put(store, make_document("a", "held"))
            opened.set()
            await release.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await opened.wait()
        nursery.start_soon(trio.to_thread.run_sync, lambda: trio.from_thread.run_sync(release.set))
        async with open_tantivy_text(path) as store:
            assert "held" == await text_of(store, "a")


async def test_a_directory_that_is_replaced_is_not_written_to(tmp_path: Path) -> None:
    """The lock was on another one: the call fails, and says why; the next looks at what is there now."""
    path = tmp_path / "store"
    async with open_tantivy_text(path, create=True) as store:
        await put(store, make_document("a", "in the first"))
        path.rename(tmp_path / "moved")
        async with open_tantivy_text(path, create=True) as other:
            await put(other, make_document("b", "in the second"))
        with pytest.raises(StoreUnavailable, match="removed or replaced"):
            await store.observe(["a"])
        assert ["b"] == [doc_id for doc_id, _ in await scan(store)]
        (path / ".tantivy-writer.lock").unlink()
        with pytest.raises(StoreUnavailable, match="removed or replaced"):
            await write(store, make_document("b", "without a lock", number=2))
        assert "in the second" == await text_of(store, "b")


# Tokens and commits.


async def test_tokens_never_come_back(tmp_path: Path) -> None:
    """Not over writing the same again, removing, reopening, nor restoring an older copy of the directory."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    seen: list[str] = []
    for turn in range(3):
        async with open_tantivy_text(path, create=True) as store:
            for _ in range(3):
                views = await put(store, make_document("a", "same"), Document.tombstone("b", number=1))
                seen += [view.token for view in views]
                await take_away(store, "a")
            await put(store, make_document("kept", "kept", number=turn))
            seen.append((await look(store, "kept")).token)
        if turn == 1:
            shutil.copytree(path, copy)
    shutil.rmtree(path)
    copy.rename(path)
    async with open_tantivy_text(path) as store:
        assert (await look(store, "kept")).token in seen  # it is what it was
        views = await put(store, make_document("kept", "other", number=9), make_document("a", "same"))
        seen += [view.token for view in views]
    assert len(seen) == len(set(seen))


async def test_a_batch_is_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many documents it names; and none is made where every document was refused."""
    commits: list[int] = []
    commit = _tantivy.Session.commit

    def counted(session: _tantivy.Session, erased: Sequence[str], added: Sequence[tantivy.Document]) -> None:
        commits.append(len(erased))
        commit(session, erased, added)

    monkeypatch.setattr(_tantivy.Session, "commit", counted)
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        documents = [make_document(f"{index}", "text") for index in range(store.traits.max_batch)]
        await put(store, *documents)
        assert [4096] == commits
        assert 4096 == await store.count()
        (prepared,) = await store.prepare([make_document("0", "other", number=2)])
        assert not isinstance(prepared, StoreError)
        (answer,) = await store.write([Write(prepared=prepared, token="stale")])
        assert answer.status is WriteStatus.REFUSED
        assert [4096] == commits
        with pytest.raises(InvalidValue):
            await store.observe(["one too many"] * 4097)
        with pytest.raises(InvalidValue, match="twice"):
            await write(store, documents[0], documents[0])


class Failing:
    """The writer, until its commit, which fails before or after it has landed."""

    def __init__(self, writer: Any, landed: bool) -> None:
        self._writer = writer
        self._landed = landed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def commit(self) -> int:
        if self._landed:
            self._writer.commit()
        raise ValueError("No space left on device, says the driver, and quotes a secret")


@pytest.mark.parametrize("landed", [False, True])
async def test_a_commit_that_fails_is_unknown(tmp_path: Path, landed: bool) -> None:
    """It may have landed or not; the next look is at what is there, and the store goes on."""
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        (before,) = await put(store, make_document("a", "before"))

        def spoil(session: _tantivy.Session) -> None:
            session._writer = Failing(session._writer, landed)  # type: ignore[assignment]

        await store._run(spoil)
        (answer,) = await write(store, make_document("a", "after", number=2))
        assert answer.status is WriteStatus.UNKNOWN
        assert "the disk is full" in str(answer.error)
        assert "secret" not in str(answer.error)
        assert ("after" if landed else "before") == await text_of(store, "a")
        assert landed == ((await look(store, "a")).token != before.token)
        await put(store, make_document("a", "later", number=3))
        assert "later" == await text_of(store, "a")


async def test_a_driver_that_fails_before_the_commit_wrote_nothing(tmp_path: Path) -> None:
    """The call fails as a whole."""
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        await put(store, make_document("a", "before"))

        def spoil(session: _tantivy.Session) -> None:
            session._writer.wait_merging_threads()  # type: ignore[union-attr]  # it takes nothing any more

        await store._run(spoil)
        with pytest.raises(StoreUnavailable):
            await write(store, make_document("a", "after", number=2))
        assert "before" == await text_of(store, "a")
        await put(store, make_document("a", "later", number=3))


# Cancellation.


async def test_a_cancelled_write_that_had_not_begun_to_commit_never_lands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """Its thread hangs, is left behind, and holds the lock until it comes back; then it writes nothing."""
    entered, release = threading.Event(), threading.Event()
    make_row = _tantivy_rows._make_row

    def hanging(*args: Any) -> tantivy.Document:
        entered.set()
        assert release.wait(30)
        return make_row(*args)

    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        store._thread._patience = 0.05
        await put(store, make_document("a", "before"))
        monkeypatch.setattr(_tantivy_rows, "_make_row", hanging)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, store, make_document("a", "too late", number=2))
                await trio.to_thread.run_sync(entered.wait)
                scope.cancel()
        assert scope.cancelled_caught
        assert 1 == store.abandoned_threads
        monkeypatch.setattr(_tantivy_rows, "_make_row", make_row)
        with pytest.raises(StoreUnavailable, match="one at a time"):
            await store.observe(["a"])
        release.set()
        with trio.fail_after(30):
            while True:  # until that thread has let the lock go
                try:
                    assert "before" == await text_of(store, "a")
                except StoreUnavailable:
                    await trio.sleep(0.01)
                else:
                    break
        await put(store, make_document("a", "after", number=3))


# Kills.

WRITE_FOR_EVER = """
import sys, trio
sys.path.insert(0, sys.argv[1])
from test_tantivy import put
from trio_repair.stores.tantivy import open_tantivy_text
from trio_repair.testing import make_document

async def main(path, size):
    async with open_tantivy_text(path) as store:
        number = 1
        while True:
            number += 1
            documents = [make_document(f"{index}", f"{number} " * 200, number=number) for index in range(20)]
            for start in range(0, 20, size):
                await put(store, *documents[start : start + size])
                print(number, flush=True)

trio.run(main, sys.argv[2], int(sys.argv[3]))
"""


def killed_amid_writes(path: Path, size: int, lines: int) -> int:
    """Write twenty documents again and again, `size` in a call; kill -9 after so many calls. The last number told."""
    command = [sys.executable, "-c", WRITE_FOR_EVER, str(Path(__file__).parent), str(path), str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(lines)]
        process.kill()
        told += [int(line) for line in process.stdout if line.endswith("\n")]
    return told[-1]


async def numbers_held(path: Path) -> set[int | None]:
    """The numbers of the twenty documents, each of which is read and proven by its digest."""
    async with open_tantivy_text(path) as store:
        answers = await store.read([f"{index}" for index in range(20)])
        held = {answer.document.version.number for answer in answers if isinstance(answer, StoredDocument)}  # type: ignore[union-attr]
        assert 20 == len(answers) == len(await scan(store)) == await store.count()
        assert all(isinstance(answer, StoredDocument) for answer in answers)
        return held


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    """A store of twenty documents, closed."""
    path = tmp_path / "store"
    async with open_tantivy_text(path, create=True) as store:
        await put(store, *(make_document(f"{index}", "first") for index in range(20)))
    return path


async def test_a_kill_leaves_whole_batches(filled: Path) -> None:
    """After kill -9 each document is whole, and all of a call have landed or none; what was told is there."""
    for lines in (1, 2, 4):
        told = await trio.to_thread.run_sync(killed_amid_writes, filled, 20, lines)
        (held,) = await numbers_held(filled)
        assert held in (told, told + 1)


async def test_control_a_batch_of_many_commits_is_torn_by_a_kill(filled: Path) -> None:
    """One call for each document: killed amid them, some are new and some are not."""
    await trio.to_thread.run_sync(killed_amid_writes, filled, 1, 3)
    assert 2 == len(await numbers_held(filled))


# Directories.


async def refused(path: Path, **options: Any) -> str:
    with pytest.raises(StoreFileError) as error:
        async with open_tantivy_text(path, **options):
            pass
    return error.value.problem


async def test_foreign_directories_are_left_as_they_are(tmp_path: Path) -> None:
    """Each is refused by type, with what is wrong with it, and nothing in it is touched; `create` or not."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("text")
    (tmp_path / "index").mkdir()
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("title", stored=True)
    tantivy.Index(builder.build(), path=str(tmp_path / "index"))
    async with open_tantivy_text(tmp_path / "ours", create=True):
        pass
    label = json.loads((tmp_path / "ours" / _directory.LABEL).read_text())
    for name, spoiled in {
        "no label": "{",
        "kind": json.dumps(label | {"kind": "other"}),
        "version": json.dumps(label | {"version": 2}),
        "odd": json.dumps([label]),
    }.items():
        shutil.copytree(tmp_path / "ours", tmp_path / name)
        (tmp_path / name / _directory.LABEL).write_text(spoiled)
    before = traces(tmp_path)
    expected = {
        "file": "is not a directory",
        "other": "is not a tantivy-text store",
        "index": "another application",
        "no label": "damaged",
        "odd": "damaged",
        "kind": "another kind",
        "version": "layout version 2",
    }
    for name, problem in expected.items():
        for create in (False, True):
            assert problem in await refused(tmp_path / name, create=create)
    content = ContentDefinition(metadata_keys=("title",))
    assert "text alone, not of text and metadata 'title'" in await refused(tmp_path / "ours", content=content)
    assert before == traces(tmp_path)


async def test_missing_and_empty_directories(tmp_path: Path) -> None:
    """They become stores only where asked for."""
    assert "does not exist" in await refused(tmp_path / "none")
    assert "there is no directory" in await refused(tmp_path / "none" / "store", create=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is empty" in await refused(empty)
    for path in (empty, tmp_path / "none"):
        async with open_tantivy_text(path, create=True) as store:
            assert 0 == await store.count()
            assert [] == await scan(store)
    assert {"empty", "none"} == {name.split("/")[0] for name in traces(tmp_path)}  # nothing unfinished is left


async def test_only_the_owner_can_enter(tmp_path: Path) -> None:
    """Whatever the umask."""
    umask = os.umask(0)
    try:
        async with open_tantivy_text(tmp_path / "store", create=True):
            pass
    finally:
        os.umask(umask)
    assert 0o700 == stat.S_IMODE((tmp_path / "store").stat().st_mode)
    assert 0o600 == stat.S_IMODE((tmp_path / "store" / _directory.LABEL).stat().st_mode)


async def test_an_index_without_our_fields_is_refused(tmp_path: Path) -> None:
    """The label says that it is ours, and the index is not."""
    async with open_tantivy_text(tmp_path / "store", create=True):
        pass
    for one in (tmp_path / "store").iterdir():
        if one.name != _directory.LABEL:
            one.unlink()
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("doc_id", stored=True)
    tantivy.Index(builder.build(), path=str(tmp_path / "store"))
    written_from_outside(tmp_path / "store", {"doc_id": "a"})
    assert "cannot be used" in await refused(tmp_path / "store")


def flip(path: Path, rng: random.Random) -> None:
    """Spoil some bytes before the footer, which says how the file is to be read."""
    content = bytearray(path.read_bytes())
    for _ in range(30):
        content[rng.randrange(max(1, len(content) - 120))] = rng.randrange(256)
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "gone": lambda path, _: path.unlink(),
    "empty": lambda path, _: path.write_bytes(b""),
    "short": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "noise": lambda path, rng: path.write_bytes(rng.randbytes(path.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["meta.json", ".store", ".fast", ".term", ".idx"])
async def test_a_damaged_index_fails_by_type(tmp_path: Path, damage: str, suffix: str) -> None:
    """It is refused when it is opened, or its documents are when they are looked at; no wrong text is ever given."""
    path = tmp_path / "store"
    texts = {f"{index}": f"secret {index} " * 50 for index in range(200)}
    async with open_tantivy_text(path, create=True) as store:
        await put(store, *(make_document(doc_id, text) for doc_id, text in texts.items()))
    (spoiled,) = [one for one in path.iterdir() if one.name.endswith(suffix)]
    DAMAGES[damage](spoiled, random.Random(suffix))
    try:
        async with open_tantivy_text(path) as store:
            for doc_id, answer in zip(texts, await store.read(list(texts)), strict=True):
                if isinstance(answer, StoredDocument) and answer.document is not None:
                    assert texts[doc_id] == answer.document.text
            await scan(store)
    except StoreError as error:
        assert type(error) in (StoreFileError, StoreUnavailable)
        assert "secret" not in str(error)
    else:
        assert damage in {"flipped", "noise"}, (
            "a store that lost half a file, or all of it, opened as if nothing were wrong"
        )


async def test_control_an_undamaged_index_opens(filled: Path) -> None:
    """What the test above breaks is whole before."""
    assert {1} == await numbers_held(filled)


# Rows of others.


async def test_rows_of_others_are_damaged_copies(tmp_path: Path) -> None:
    """A row without our columns, and a document that is there twice: seen, scanned once, not read, and repaired."""
    path = tmp_path / "store"
    async with open_tantivy_text(path, create=True) as store:
        await put(store, make_document("ours", "text"), make_document("twice", "text"))
    written_from_outside(
        path,
        {"doc_id": "theirs", "text": "from outside"},
        {"doc_id": "twice", "text": "from outside"},
        {"doc_id": "number", "text": "from outside", "number": 2**60},
    )
    async with open_tantivy_text(path) as store:
        damaged = ["number", "theirs", "twice"]
        entries = await scan(store)
        assert ["number", "ours", "theirs", "twice"] == [doc_id for doc_id, _ in entries]
        assert list(dict(entries).values()) == list(await store.observe([doc_id for doc_id, _ in entries]))
        tokens = set()
        for doc_id in damaged:
            seen = await look(store, doc_id)
            assert (Presence.LIVE, False) == (seen.presence, seen.intact)
            tokens.add(seen.token)
            (answer,) = await store.read([doc_id])
            assert isinstance(answer, StoreRejected)
        assert len(tokens) == len(damaged)
        await put(store, *(make_document(doc_id, "repaired", number=3) for doc_id in damaged))
        assert 4 == await store.count()
        for doc_id in damaged:
            assert "repaired" == await text_of(store, doc_id)
            assert (await look(store, doc_id)).intact


async def test_rows_under_revisions_of_others_stop_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revision that comes again could hide a row from a page: the scan fails rather than miss it."""
    path = tmp_path / "store"
    async with open_tantivy_text(path, create=True) as store:
        await put(store, make_document("a", "text"))
    written_from_outside(path, *({"doc_id": f"copy {index}", "revision": 7} for index in range(9)))
    monkeypatch.setattr(_tantivy_rows, "_ROWS_PER_LOOK", 4)
    async with open_tantivy_text(path) as store:
        with pytest.raises(StoreUnavailable, match="something else"):
            await scan(store)


# Search.


async def test_search_by_words(tmp_path: Path) -> None:
    """All words must be there, whatever their case; deleted documents are not found; nothing typed is syntax."""
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        assert [] == await store.search("anything")
        await put(
            store,
            make_document("a", "Grüße an die Welt, viele GRÜSSE"),
            make_document("b", "die Welt " * 200 + "endet mit Grüßen und grüße"),
            make_document("c", "no such thing"),
            make_document("d", "grüße welt, to be deleted"),
        )
        await put(store, Document.tombstone("d", number=2))
        hits = await store.search("WELT grüße")
        assert ["a", "b"] == [hit.doc_id for hit in hits]
        assert hits[0].score > hits[1].score > 0
        assert "[Grüße] an die [Welt], viele GRÜSSE" == hits[0].snippet
        assert len(hits[1].snippet) < 400
        assert 1 == len(await store.search("welt", 1))
        for hostile in ("", "-c", "no OR welt", 'no "', "text:welt no", "c*", "^", "a" * 100_000, "\0", "[1 TO 2]"):
            assert "d" not in [hit.doc_id for hit in await store.search(hostile, 2**62)]
        assert ["c"] == [hit.doc_id for hit in await store.search('"no" (thing) -')]


async def test_search_by_expression(tmp_path: Path) -> None:
    """With tantivy's own operators; tombstones are not found, not even by their ids."""
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        await put(store, make_document("a", "one two"), make_document("b", "two three"), make_document("c", "four"))
        await put(store, Document.tombstone("c", number=2))
        for query, expected in {
            "one OR three": {"a", "b"},
            "two -three": {"a"},
            '"two three"': {"b"},
            "doc_id:c OR doc_id:a": {"a"},
            "*": {"a", "b"},
        }.items():
            assert expected == {hit.doc_id for hit in await store.search(query, syntax="tantivy")}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"query": "a", "limit": 0}, "limit"),
        ({"query": "a", "syntax": "fts5"}, "syntax"),
        ({"query": 'a "b', "syntax": "tantivy"}, "query"),
        ({"query": "nosuchfield:a", "syntax": "tantivy"}, "query"),
        ({"query": "\ud800"}, "query"),
    ],
)
async def test_a_search_that_cannot_be_made_is_refused(tmp_path: Path, arguments: Any, field: str) -> None:
    """By type, and the argument is named."""
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        with pytest.raises(InvalidValue) as error:
            await store.search(**arguments)
        assert field == error.value.field


# Registration.


async def test_settings_of_a_configuration_file(tmp_path: Path) -> None:
    """`path` and nothing else; relative to the file."""
    options: dict[str, Any] = {"name": "text", "directory": tmp_path, "content": ContentDefinition(), "create": True}
    async with tantivy_text_from_settings({"path": "store"}, **options) as store:
        assert str(tmp_path / "store") in repr(store)
        assert 0 == await store.count()
    for settings, key in [({}, "path"), ({"path": 1}, "path"), ({"path": "x", "synchronous": "full"}, "synchronous")]:
        with pytest.raises(InvalidValue) as error:
            tantivy_text_from_settings(settings, **options)
        assert key == error.value.field


def test_the_kind_is_registered() -> None:
    """Its entry point leads to the factory, and what it needs is an extra that tests are run with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["trio_repair.stores"]["tantivy-text"].partition(":")
    assert tantivy_text_from_settings is getattr(importlib.import_module(module), name)
    assert "trio-repair[tantivy]" in project["optional-dependencies"]["test"]


async def test_a_scan_goes_on_beside_other_calls(tmp_path: Path) -> None:
    """More rows than one look takes; writes land while it is open, and it shows none of them."""
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        ids = [f"{index:05}" for index in range(2500)]
        await put(store, *(make_document(doc_id, "text") for doc_id in ids))
        got: list[str] = []
        async with store.open_scan("00009") as pages:
            async for page in pages:
                got += [doc_id for doc_id, _ in page]
                await put(store, make_document(f"99999 {len(got)}", "new"))
        assert ids[10:] == got
        assert len(ids) + 3 == await store.count()


async def test_a_scan_whose_snapshot_is_gone_says_so(tmp_path: Path) -> None:
    """After the index had to be opened anew, for instance."""
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        await put(store, make_document("a", "text"))
        async with store.open_scan() as pages:
            await store._run(functools.partial(_tantivy.Session.close))
            with pytest.raises(StoreUnavailable, match="start the scan again"):
                await anext(pages)
