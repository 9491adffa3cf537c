"""The stores in a directory: the contract, the lock that their fence rests on, kills, and directories not their own."""

from __future__ import annotations

import functools
import importlib
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
from directory_support import KINDS, Kind, kind_of
from store_calls import look, put, scan, take_away, text_of, write

from trio_repair import (
    ContentDefinition,
    Document,
    InvalidValue,
    Observation,
    StoredDocument,
    StoreError,
    StoreFileError,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.stores._directory import LABEL
from trio_repair.stores._fence import Change
from trio_repair.testing import PROMISES, ContractBroken, check_store, make_document

ROOT = Path(__file__).parents[2]
OF_WRITERS = ("stale-refused", "one-creator", "one-winner", "no-lost-update", "whole-beside-writers", "fence-raced")

Factory = Callable[[], AbstractAsyncContextManager[Any]]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """One of the kinds; tests that take it are run for each of them."""
    return kind_of(request.param)


@pytest.fixture
def impatient(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that somebody else holds is not waited for."""
    monkeypatch.setattr(kind.session, "LOCK_SECONDS", 0.0)


def factory(kind: Kind, directory: Path, store: Any = None, *, max_calls: int = 1) -> Factory:
    """Opens a new store each time, of this class; with so many calls at once."""
    count = iter(range(1_000_000))

    @asynccontextmanager
    async def open_new() -> AsyncIterator[Any]:
        async with kind.open(directory / f"{next(count)}", create=True) as opened:
            opened.__class__ = kind.store if store is None else store
            opened._traits = attrs.evolve(opened._traits, max_calls=max_calls)
            yield opened

    return open_new


def traces(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file in a directory, when it was written, and what is in it."""
    return {
        str(one.relative_to(directory)): (one.stat().st_mtime_ns, one.read_bytes())
        for one in sorted(directory.rglob("*"))
        if one.is_file()
    }


# The contract.


async def test_contract(kind: Kind, tmp_path: Path) -> None:
    """Every promise but those of writers: `again` cannot be, because one handle at a time has the lock.

    `test_the_fence_between_calls` asks for these, with many calls at once, and `test_the_lock_keeps_others_out` proves
    what the fence rests on besides.
    """
    await check_store(factory(kind, tmp_path), races=False, only=set(PROMISES) - set(OF_WRITERS))


async def test_the_fence_between_calls(kind: Kind, tmp_path: Path) -> None:
    """With many calls on the one handle at once, every race is run, and the fence holds."""
    await check_store(factory(kind, tmp_path, max_calls=6), only=OF_WRITERS)


def looking_first(store: Any) -> Any:
    """A store that compares in one call, and writes what it may in another, whatever is held by then."""

    class LooksFirst(store):
        async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
            answers: list[WriteAnswer | None] = []
            going: list[Change] = []
            seen = await self.observe([one.prepared.document.doc_id for one in writes])
            for one, held in zip(writes, seen, strict=True):
                assert isinstance(held, Observation)
                may = held.token == one.token
                answers.append(None if may else WriteAnswer(status=WriteStatus.REFUSED, observation=held))
                if may:
                    going.append(Change(one.prepared.document.doc_id, one.token, one.prepared))
            landed = list(await self._run(self._write_blindly, going))
            return [landed.pop(0) if answer is None else answer for answer in answers]

        def _write_blindly(self, session: Any, changes: Sequence[Change]) -> Sequence[WriteAnswer]:
            held = self._observe_call(session, [change.doc_id for change in changes])
            now = [attrs.evolve(one, token=view.token) for one, view in zip(changes, held, strict=True)]
            return self._change_call(session, now)

    return LooksFirst


async def test_control_a_fence_of_two_calls_is_caught(kind: Kind, tmp_path: Path) -> None:
    """The races between calls of one handle see a fence that is looked at first and obeyed later."""
    with pytest.raises(ContractBroken) as broken:
        await check_store(factory(kind, tmp_path, looking_first(kind.store), max_calls=6), only=["one-winner"])
    assert {"one-winner"} == set(broken.value.breaches)


# The lock.

LOOK_INTO = """
import sys, trio
sys.path.insert(0, sys.argv[1])
from directory_support import kind_of
from trio_repair import StoreFileError

kind = kind_of(sys.argv[2])
kind.session.LOCK_SECONDS = 0.0

async def main():
    async with kind.open(sys.argv[3]) as store:
        print(await store.count())

try:
    trio.run(main)
except StoreFileError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def in_another_process(kind: Kind, path: Path) -> subprocess.CompletedProcess[str]:
    """Open the store there; its exit status is 0 if it could, and it says what it was told."""
    command = [sys.executable, "-W", "error", "-c", LOOK_INTO, str(Path(__file__).parent), kind.driver, str(path)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)


async def test_the_lock_keeps_others_out(kind: Kind, tmp_path: Path, impatient: None) -> None:
    """While a handle is open no other can be, in this process or another; it is told so in one line, by type."""
    path = tmp_path / "store"
    async with kind.open(path, create=True) as store:
        await put(store, make_document("a", "held"))
        with pytest.raises(StoreFileError, match="one at a time") as refused:
            async with kind.open(path):
                pass
        assert "\n" not in str(refused.value)
        done = await trio.to_thread.run_sync(in_another_process, kind, path)
        assert 1 == done.returncode
        assert done.stderr.startswith(f"StoreFileError: {kind.role} store: ")
        assert "one at a time" in done.stderr
        assert 1 == len(done.stderr.splitlines())
        # The handle that has it goes on.
        await put(store, make_document("a", "held still", number=2))
    done = await trio.to_thread.run_sync(in_another_process, kind, path)
    assert (0, "1\n") == (done.returncode, done.stdout), done.stderr


async def test_the_lock_is_waited_for(kind: Kind, tmp_path: Path) -> None:
    """A handle that is just being closed is not in the way."""
    path = tmp_path / "store"
    release = trio.Event()
    opened = trio.Event()

    async def first() -> None:
        async with kind.open(path, create=True) as store:
            await put(store, make_document("a", "held"))
            opened.set()
            await release.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await opened.wait()
        nursery.start_soon(trio.to_thread.run_sync, lambda: trio.from_thread.run_sync(release.set))
        async with kind.open(path) as store:
            assert "held" == await text_of(store, "a")


async def test_a_directory_that_is_replaced_is_not_written_to(kind: Kind, tmp_path: Path) -> None:
    """The lock was on another one: the call fails, and says why; the next looks at what is there now."""
    path = tmp_path / "store"
    async with kind.open(path, create=True) as store:
        await put(store, make_document("a", "in the first"))
        path.rename(tmp_path / "moved")
        async with kind.open(path, create=True) as other:
            await put(other, make_document("b", "in the second"))
        with pytest.raises(StoreUnavailable, match="removed or replaced"):
            await store.observe(["a"])
        assert ["b"] == [doc_id for doc_id, _ in await scan(store)]
        (path / kind.lock).unlink()
        with pytest.raises(StoreUnavailable, match="removed or replaced"):
            await write(store, make_document("b", "without a lock", number=2))
        assert "in the second" == await text_of(store, "b")


# Tokens and commits.


async def test_tokens_never_come_back(kind: Kind, tmp_path: Path) -> None:
    """Not over writing the same again, removing, reopening, nor restoring an older copy of the directory."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    seen: list[tuple[str, str]] = []
    for turn in range(3):
        async with kind.open(path, create=True) as store:
            for _ in range(3):
                views = await put(store, make_document("a", "same"), Document.tombstone("b", number=1))
                seen += zip("ab", (view.token for view in views), strict=True)
                await take_away(store, "a")
            await put(store, make_document("kept", "kept", number=turn))
            seen.append(("kept", (await look(store, "kept")).token))
        if turn == 1:
            shutil.copytree(path, copy)
    shutil.rmtree(path)
    copy.rename(path)
    async with kind.open(path) as store:
        assert ("kept", (await look(store, "kept")).token) in seen  # it is what it was
        views = await put(store, make_document("kept", "other", number=9), make_document("a", "same"))
        seen += zip(["kept", "a"], (view.token for view in views), strict=True)
    assert len(seen) == len(set(seen))


async def test_a_batch_is_one_commit(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many documents it names; and none is made where every document was refused."""
    commits: list[int] = []
    commit = kind.session.Session.commit

    def counted(*args: Any) -> None:
        commits.append(1)
        commit(*args)

    monkeypatch.setattr(kind.session.Session, "commit", counted)
    async with kind.open(tmp_path / "store", create=True) as store:
        documents = [make_document(f"{index}", "text") for index in range(store.traits.max_batch)]
        await put(store, *documents)
        assert [1] == commits
        assert 4096 == await store.count()
        (prepared,) = await store.prepare([make_document("0", "other", number=2)])
        assert not isinstance(prepared, StoreError)
        (answer,) = await store.write([Write(prepared=prepared, token="stale")])
        assert answer.status is WriteStatus.REFUSED
        assert [1] == commits
        with pytest.raises(InvalidValue):
            await store.observe(["one too many"] * 4097)
        with pytest.raises(InvalidValue, match="twice"):
            await write(store, documents[0], documents[0])


@pytest.mark.parametrize("landed", [False, True])
async def test_a_commit_that_fails_is_unknown(kind: Kind, tmp_path: Path, landed: bool) -> None:
    """It may have landed or not; the next look is at what is there, and the store goes on."""
    async with kind.open(tmp_path / "store", create=True) as store:
        (before,) = await put(store, make_document("a", "before"))
        await store._run(kind.spoil_commit, landed)
        (answer,) = await write(store, make_document("a", "after", number=2))
        assert answer.status is WriteStatus.UNKNOWN
        assert "the disk is full" in str(answer.error)
        assert "secret" not in str(answer.error)
        assert ("after" if landed else "before") == await text_of(store, "a")
        assert landed == ((await look(store, "a")).token != before.token)
        await put(store, make_document("a", "later", number=3))
        assert "later" == await text_of(store, "a")


# Cancellation.


async def test_a_cancelled_write_that_had_not_begun_to_commit_never_lands(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """Its thread hangs, is left behind, and holds the lock until it comes back; then it writes nothing."""
    entered, release = threading.Event(), threading.Event()
    make = getattr(kind.rows, kind.making)

    def hanging(*args: Any) -> Any:
        entered.set()
        assert release.wait(30)
        return make(*args)

    async with kind.open(tmp_path / "store", create=True) as store:
        store._thread._patience = 0.05
        await put(store, make_document("a", "before"))
        monkeypatch.setattr(kind.rows, kind.making, hanging)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, store, make_document("a", "too late", number=2))
                await trio.to_thread.run_sync(entered.wait)
                scope.cancel()
        assert scope.cancelled_caught
        assert 1 == store.abandoned_threads
        monkeypatch.setattr(kind.rows, kind.making, make)
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
from directory_support import kind_of
from store_calls import put
from trio_repair.testing import make_document

async def main(driver, path, size):
    async with kind_of(driver).open(path) as store:
        number = 1
        while True:
            number += 1
            text = f"{number} " * (40 if number % 2 else 200)
            documents = [make_document(f"{index}", text, number=number) for index in range(20)]
            for start in range(0, 20, size):
                await put(store, *documents[start : start + size])
                print(number, flush=True)

trio.run(main, sys.argv[2], sys.argv[3], int(sys.argv[4]))
"""


def killed_amid_writes(kind: Kind, path: Path, size: int, lines: int) -> int:
    """Write twenty documents again and again, `size` in a call; kill -9 after so many calls. The last number told."""
    own = str(Path(__file__).parent)
    command = [sys.executable, "-c", WRITE_FOR_EVER, own, kind.driver, str(path), str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(lines)]
        process.kill()
        told += [int(line) for line in process.stdout if line.endswith("\n")]
    return told[-1]


async def numbers_held(kind: Kind, path: Path) -> set[int | None]:
    """The numbers of the twenty documents, each of which is read and proven by its digest."""
    async with kind.open(path) as store:
        answers = await store.read([f"{index}" for index in range(20)])
        documents = [answer.document for answer in answers if isinstance(answer, StoredDocument)]
        held = {document.version.number for document in documents if document is not None}
        assert 20 == len(documents) == len(await scan(store)) == await store.count()
        return held


@pytest.fixture
async def filled(kind: Kind, tmp_path: Path) -> Path:
    """A store of twenty documents, closed."""
    path = tmp_path / "store"
    async with kind.open(path, create=True) as store:
        await put(store, *(make_document(f"{index}", "first") for index in range(20)))
    return path


async def test_a_kill_leaves_whole_batches(kind: Kind, filled: Path) -> None:
    """After kill -9 each document is whole, and all of a call have landed or none; what was told is there."""
    for lines in (1, 2, 4):
        told = await trio.to_thread.run_sync(killed_amid_writes, kind, filled, 20, lines)
        (held,) = await numbers_held(kind, filled)
        assert held in (told, told + 1)


async def test_control_a_batch_of_many_commits_is_torn_by_a_kill(kind: Kind, filled: Path) -> None:
    """One call for each document: killed amid them, some are new and some are not."""
    await trio.to_thread.run_sync(killed_amid_writes, kind, filled, 1, 3)
    assert 2 == len(await numbers_held(kind, filled))


# Directories.


async def refused(kind: Kind, path: Path, **options: Any) -> str:
    with pytest.raises(StoreFileError) as error:
        async with kind.open(path, **options):
            pass
    return error.value.problem


async def test_foreign_directories_are_left_as_they_are(kind: Kind, tmp_path: Path) -> None:
    """Each is refused by type, with what is wrong with it, and nothing in it is touched; `create` or not."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("text")
    kind.make_foreign(tmp_path / "foreign")
    async with kind.open(tmp_path / "ours", create=True):
        pass
    label = json.loads((tmp_path / "ours" / LABEL).read_text())
    for name, spoiled in {
        "no label": "{",
        "kind": json.dumps(label | {"kind": "other"}),
        "version": json.dumps(label | {"version": 2}),
        "odd": json.dumps([label]),
    }.items():
        shutil.copytree(tmp_path / "ours", tmp_path / name)
        (tmp_path / name / LABEL).write_text(spoiled)
    before = traces(tmp_path)
    expected = {
        "file": "is not a directory",
        "other": f"is not a {kind.name} store",
        "foreign": "another application",
        "no label": "damaged",
        "odd": "damaged",
        "kind": "another kind",
        "version": "layout version 2",
    }
    for name, problem in expected.items():
        for create in (False, True):
            assert problem in await refused(kind, tmp_path / name, create=create)
    content = ContentDefinition(metadata_keys=("title",))
    assert "text alone, not of text and metadata 'title'" in await refused(kind, tmp_path / "ours", content=content)
    assert before == traces(tmp_path)


async def test_missing_and_empty_directories(kind: Kind, tmp_path: Path) -> None:
    """They become stores only where asked for."""
    assert "does not exist" in await refused(kind, tmp_path / "none")
    assert "there is no directory" in await refused(kind, tmp_path / "none" / "store", create=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is empty" in await refused(kind, empty)
    for path in (empty, tmp_path / "none"):
        async with kind.open(path, create=True) as store:
            assert 0 == await store.count()
            assert [] == await scan(store)
    assert {"empty", "none"} == {name.split("/")[0] for name in traces(tmp_path)}  # nothing unfinished is left


async def test_only_the_owner_can_enter(kind: Kind, tmp_path: Path) -> None:
    """Whatever the umask."""
    umask = os.umask(0)
    try:
        async with kind.open(tmp_path / "store", create=True):
            pass
    finally:
        os.umask(umask)
    assert 0o700 == stat.S_IMODE((tmp_path / "store").stat().st_mode)
    assert 0o600 == stat.S_IMODE((tmp_path / "store" / LABEL).stat().st_mode)


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
@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("tantivy", "meta.json"),
        ("tantivy", ".store"),
        ("tantivy", ".fast"),
        ("tantivy", ".term"),
        ("tantivy", ".idx"),
        ("lancedb", ".manifest"),
        ("lancedb", ".lance"),
    ],
    indirect=["kind"],
)
async def test_a_damaged_store_fails_by_type(kind: Kind, tmp_path: Path, damage: str, suffix: str) -> None:
    """It is refused when it is opened, or its documents are when they are looked at; no wrong text is ever given."""
    path = tmp_path / "store"
    texts = {f"{index}": f"secret {index} " * 50 for index in range(200)}
    async with kind.open(path, create=True) as store:
        await put(store, *(make_document(doc_id, text) for doc_id, text in texts.items()))
    spoiled = [one for one in path.rglob(f"*{suffix}") if one.is_file() and "_indices" not in one.parts]
    assert spoiled
    for one in spoiled:  # all manifests of LanceDB, so that none is left to fall back on
        DAMAGES[damage](one, random.Random(suffix))
    try:
        async with kind.open(path) as store:
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


async def test_control_an_undamaged_store_opens(kind: Kind, filled: Path) -> None:
    """What the test above breaks is whole before."""
    assert {1} == await numbers_held(kind, filled)


# Scans.


async def test_a_scan_goes_on_beside_other_calls(kind: Kind, tmp_path: Path) -> None:
    """More rows than one look takes; writes land while it is open, and it shows none of them."""
    async with kind.open(tmp_path / "store", create=True) as store:
        ids = [f"{index:05}" for index in range(2500)]
        await put(store, *(make_document(doc_id, "text") for doc_id in ids))
        got: list[str] = []
        async with store.open_scan("00009") as pages:
            async for page in pages:
                got += [doc_id for doc_id, _ in page]
                await put(store, make_document(f"99999 {len(got)}", "new"))
        assert ids[10:] == got
        assert len(ids) + 3 == await store.count()


async def test_a_scan_whose_snapshot_is_gone_says_so(kind: Kind, tmp_path: Path) -> None:
    """After the store had to be opened anew, for instance."""
    async with kind.open(tmp_path / "store", create=True) as store:
        await put(store, make_document("a", "text"))
        async with store.open_scan() as pages:
            await store._run(functools.partial(kind.session.Session.close))
            with pytest.raises(StoreUnavailable, match="start the scan again"):
                await anext(pages)


# Registration.


def test_the_kind_is_registered(kind: Kind) -> None:
    """Its entry point leads to the factory, and what it needs is an extra that tests are run with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["trio_repair.stores"][kind.name].partition(":")
    assert kind.settings is getattr(importlib.import_module(module), name)
    assert f"trio-repair[{kind.driver}]" in project["optional-dependencies"]["test"]
