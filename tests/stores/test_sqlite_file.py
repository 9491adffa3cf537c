"""Which files are opened, which are refused, and that a refused file stays as it is."""

# ruff: noqa: ASYNC221, ASYNC240 - nothing else runs in these loops, so nothing is held up

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import apsw
import pytest
import trio
from sqlite_support import GENEROUS, OPENERS, scan, sql
from store_calls import look, put, write

from trio_repair import (
    ContentDefinition,
    InvalidValue,
    Presence,
    StoreFileError,
    StoreUnavailable,
)
from trio_repair.testing import make_document

KINDS = sorted(OPENERS)


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up a lock sooner than in life."""
    monkeypatch.setattr("trio_repair.stores._sqlite.LOCK_SECONDS", 0.1)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def create(kind: str, path: Path, *texts: str) -> None:
    async with OPENERS[kind](path, create=True) as store:
        await put(store, *(make_document(text, text) for text in texts))


async def refused(kind: str, path: Path, pattern: str, **settings: object) -> None:
    """Opening is refused with one line, and leaves no trace in the directory."""
    before = footprint(path.parent)
    with pytest.raises(StoreFileError, match=pattern) as caught:
        async with OPENERS[kind](path, **settings):
            raise AssertionError("it was opened")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert kind == caught.value.store
    assert before == footprint(path.parent)


def footprint(directory: Path) -> dict[str, bytes]:
    if not directory.exists():
        return {}
    return {entry.name: entry.read_bytes() for entry in directory.iterdir() if entry.is_file()}


async def test_created_for_its_owner_alone(kind: str, tmp_path: Path) -> None:
    """A new file has mode 0600, whatever the umask, with what SQLite puts beside it; and nothing else is left."""
    previous = os.umask(0)
    try:
        async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
            await put(store, make_document("a", "text"))
            modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    finally:
        os.umask(previous)
    assert {"s.db": 0o600, "s.db-wal": 0o600, "s.db-shm": 0o600} == modes
    assert ["s.db"] == [entry.name for entry in tmp_path.iterdir()]


async def test_kept_over_reopening(kind: str, tmp_path: Path) -> None:
    """What was written is there when the file is opened again, under the same token; `create` does not empty it."""
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        (landed,) = await put(store, make_document("a", "text"))
    for settings in ({}, {"create": True}):
        async with OPENERS[kind](tmp_path / "s.db", **settings) as store:
            assert landed == await look(store, "a")


async def test_missing(kind: str, tmp_path: Path) -> None:
    """A file that is not there is not made unasked, and the message says what to do."""
    await refused(kind, tmp_path / "s.db", r"does not exist; .*create=True")
    await refused(kind, tmp_path / "no" / "s.db", r"does not exist")
    await refused(kind, tmp_path / "no" / "s.db", r"there is no directory", create=True)


async def test_not_a_database(kind: str, tmp_path: Path) -> None:
    """Text, an empty file, a directory and a cut header are refused, and stay as they are."""
    path = tmp_path / "s.db"
    for content, pattern in (
        (b"Dear diary, " * 100, "not a SQLite database"),
        (b"SQLite format 3\0" + b"\xff" * 500, "not a SQLite database|is damaged"),
        (b"x", "not a SQLite database"),
        (b"", "is empty and not a store"),
    ):
        path.write_bytes(content)
        await refused(kind, path, pattern)
        await refused(kind, path, pattern, create=True)
    path.unlink()
    path.mkdir()
    await refused(kind, path, "is not a file")


async def test_foreign_database(kind: str, tmp_path: Path) -> None:
    """Another application's database is refused and not touched, not even by a -wal file, in whatever journal mode."""
    for mode in ("delete", "wal"):
        path = tmp_path / f"{mode}.db"
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA journal_mode = {mode}")
            connection.execute("CREATE TABLE documents (doc_id TEXT, text TEXT)")
        connection.close()
        await refused(kind, path, "of another application")
        await refused(kind, path, "of another application", create=True)


async def test_store_of_another_role(tmp_path: Path) -> None:
    """A store opened as another kind is refused, and the message says which kind it is."""
    for made in KINDS:
        path = tmp_path / f"{made}.db"
        await create(made, path, "a")
        for opened in KINDS:
            if opened != made:
                await refused(opened, path, f"is a sqlite-{made} store, not sqlite-{opened}")


async def test_other_schema_version(kind: str, tmp_path: Path) -> None:
    """A file of another schema version is refused, with both versions."""
    path = tmp_path / "s.db"
    await create(kind, path, "a")
    sql(path, "PRAGMA user_version = 7")
    await refused(kind, path, r"has schema version 7; this release reads version 1")


async def test_other_content_definition(kind: str, tmp_path: Path) -> None:
    """A file remembers what its digests cover, and is refused under another definition."""
    path = tmp_path / "s.db"
    titled = ContentDefinition(metadata_keys=("title",))
    async with OPENERS[kind](path, create=True, content=titled) as store:
        await put(store, make_document("a", "text", metadata={"title": "t"}, content=titled))
    with pytest.raises(StoreFileError, match="made for content of text and metadata 'title', not of text alone"):
        async with OPENERS[kind](path):
            pass
    async with OPENERS[kind](path, content=titled) as store:
        assert 1 == await store.count()


async def test_damaged_when_opened(kind: str, tmp_path: Path) -> None:
    """A truncated file and one with spoiled pages are refused when they are opened."""
    path = tmp_path / "s.db"
    await create(kind, path, *(f"document {index}" for index in range(50)))
    content = path.read_bytes()
    for spoiled in (content[: 4096 * 3], content[:4096] + b"\xaa" * (len(content) - 4096)):
        path.write_bytes(spoiled)
        with pytest.raises(StoreFileError, match="damaged"):
            async with OPENERS[kind](path):
                pass


async def test_damaged_later(kind: str, tmp_path: Path) -> None:
    """A file that turns out to be damaged while it is open is StoreUnavailable, and the message says so."""
    path = tmp_path / "s.db"
    await create(kind, path, *(f"document {index}" for index in range(200)))
    content = path.read_bytes()
    async with OPENERS[kind](path) as store:
        with path.open("r+b") as file:
            file.write(b"\xaa" * len(content))
        with pytest.raises(StoreUnavailable, match=r"the file is (damaged|no longer)"):
            await store.count()
            await scan(store)
            await put(store, make_document("new", "new"))


async def test_no_document_text_in_errors(kind: str, tmp_path: Path) -> None:
    """I19: what is said about a file names the file and nothing that stands in it."""
    path = tmp_path / "s.db"
    path.write_bytes(b"SECRET " * 1000)
    with pytest.raises(StoreFileError) as caught:
        async with OPENERS[kind](path):
            pass
    assert "SECRET" not in f"{caught.value}{caught.value!r}{caught.value.__cause__!r}"


@pytest.mark.usefixtures("short_wait")
async def test_locked_by_another_process(kind: str, tmp_path: Path) -> None:
    """Another writer's open transaction is waited for, then StoreUnavailable; reading goes on all the while."""
    path = tmp_path / "s.db"
    await create(kind, path, "a")
    async with OPENERS[kind](path) as store:
        seen = await look(store, "a")
        with closing(apsw.Connection(str(path))) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked by another process"):
                await write(store, make_document("a", "new"))
            assert seen == await look(store, "a")
            other.execute("ROLLBACK")
        await put(store, make_document("a", "new", number=2))


async def test_waiting_for_a_lock_is_cancelled_at_once(tmp_path: Path) -> None:
    """A deadline ends the wait for a lock, and the thread is not left behind."""
    path = tmp_path / "s.db"
    await create("text", path, "a")
    async with OPENERS["text"](path) as store:
        with closing(apsw.Connection(str(path))) as other:
            other.execute("BEGIN IMMEDIATE")
            with trio.move_on_after(0.05) as scope:
                await write(store, make_document("a", "new"))
            assert scope.cancelled_caught
            assert 0 == store.abandoned_threads
            other.execute("ROLLBACK")
        assert make_document("a", "a").version == (await look(store, "a")).version


@pytest.mark.usefixtures("short_wait")
async def test_locked_when_opened(kind: str, tmp_path: Path) -> None:
    """A file that another process keeps to itself is unavailable when it is opened: a later try may succeed."""
    path = tmp_path / "s.db"
    await create(kind, path, "a")
    with closing(apsw.Connection(str(path))) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match="locked by another process"):
            async with OPENERS[kind](path):
                pass


async def test_removed_or_replaced_while_open(kind: str, tmp_path: Path) -> None:
    """A file that is taken away is not written to in secret; one put in its place is looked at before it is used."""
    path = tmp_path / "s.db"
    await create(kind, path, "a")
    other = tmp_path / "other.db"
    await create(kind, other, "b")
    async with OPENERS[kind](path) as store:
        assert (await look(store, "a")).presence is Presence.LIVE
        path.unlink()
        with pytest.raises(StoreUnavailable, match="was removed or replaced while it was open"):
            await look(store, "a")
        with pytest.raises(StoreUnavailable, match="does not exist"):
            await write(store, make_document("a", "text"))
        for leftover in tmp_path.glob("s.db-*"):
            leftover.unlink()
        shutil.copy(other, path)
        assert (await look(store, "b")).presence is Presence.LIVE
        path.unlink()
        path.write_bytes(b"x" * 5000)
        with pytest.raises(StoreUnavailable, match="was removed or replaced"):
            await look(store, "b")
        with pytest.raises(StoreUnavailable, match="not a SQLite database"):
            await look(store, "b")


# For root permissions do not count, until it gives its capabilities away (capset(2), version 3 of its header).
AS_SOMEBODY = """
import ctypes, os, sys
if os.geteuid() == 0:
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        sys.exit(f"cannot give up root's powers: {os.strerror(ctypes.get_errno())}")
"""


def as_somebody(program: str, *arguments: object) -> str:
    """Run a program as a user for whom permissions count, who owns the same files."""
    code = AS_SOMEBODY
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + textwrap.dedent(program), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        timeout=GENEROUS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == ended.returncode, ended.stderr
    return ended.stdout.strip()


READ_AND_WRITE = """
    import trio
    from pathlib import Path
    from sqlite_support import OPENERS, scan
    from store_calls import look, write
    from trio_repair import StoreError
    from trio_repair.testing import make_document
    async def main(kind, path):
        try:
            async with OPENERS[kind](path) as store:
                print((await look(store, "a")).presence.value, len(await scan(store)), await store.count())
                await write(store, make_document("a", "new", number=2))
        except StoreError as error:
            print(type(error).__name__, error)
    trio.run(main, sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("writable_directory", [True, False])
async def test_read_only(kind: str, tmp_path: Path, writable_directory: bool) -> None:
    """A file that may only be read, also on a directory that may only be read, can be checked; a write says why not.

    Control: with the permissions restored, the same program writes.
    """
    path = tmp_path / "s.db"
    await create(kind, path, "a")
    path.chmod(0o444)
    tmp_path.chmod(0o777 if writable_directory else 0o555)
    lines = as_somebody(READ_AND_WRITE, kind, path).splitlines()
    assert "live 1 1" == lines[0]
    assert re.fullmatch("StoreUnavailable .* read-only; make them writable", lines[1])
    path.chmod(0o666)
    tmp_path.chmod(0o777)
    for left_by_the_reader in tmp_path.glob("s.db-*"):
        left_by_the_reader.unlink()
    assert ["live 1 1"] == as_somebody(READ_AND_WRITE, kind, path).splitlines()


async def test_unreadable(kind: str, tmp_path: Path) -> None:
    """A file without permission to read is refused with a reason."""
    path = tmp_path / "s.db"
    await create(kind, path, "a")
    path.chmod(0o000)
    line = as_somebody(READ_AND_WRITE, kind, path)
    assert re.match(r"StoreFileError .*cannot be opened: .*permissions", line)


async def test_created_by_two_at_once(kind: str, tmp_path: Path) -> None:
    """Two who create one file at the same time get one store between them."""
    path = tmp_path / "s.db"
    found: list[object] = []

    async def one(doc_id: str) -> None:
        async with OPENERS[kind](path, create=True) as store:
            await put(store, make_document(doc_id, doc_id))
            found.append(store)

    async with trio.open_nursery() as nursery:
        for doc_id in "abcd":
            nursery.start_soon(one, doc_id)
    async with OPENERS[kind](path) as store:
        assert list("abcd") == [doc_id for doc_id, _ in await scan(store)]
    assert ["s.db"] == [entry.name for entry in tmp_path.iterdir()]


async def test_nothing_is_left_when_creation_fails(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that cannot be made whole is not made at all."""
    monkeypatch.setattr("trio_repair.stores._sqlite._COMMON_SCHEMA", "CREATE TABLE store_meta (x); nonsense;")
    with pytest.raises(StoreFileError, match="cannot be opened"):
        async with OPENERS[kind](tmp_path / "s.db", create=True):
            pass
    assert [] == list(tmp_path.iterdir())


async def test_file_system_without_hard_links(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file cannot have two names, the new store is renamed into place."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    await create(kind, tmp_path / "s.db", "a")
    assert ["s.db"] == [entry.name for entry in tmp_path.iterdir()]


def test_wrong_arguments(kind: str, tmp_path: Path) -> None:
    """A value that means nothing is refused before a file is looked at."""
    with pytest.raises(InvalidValue, match=r"synchronous: must be 'full' or 'normal'"):
        OPENERS[kind](tmp_path / "s.db", synchronous="off")


async def test_disk_full(kind: str, tmp_path: Path) -> None:
    """A write that does not fit is StoreUnavailable and leaves no part; smaller ones and reading go on.

    The quota is SQLite's own (max_page_count), which fails like a full disk does.
    """
    path = tmp_path / "s.db"
    async with OPENERS[kind](path, create=True) as store:
        (held,) = await put(store, make_document("a", "text"))
        await store._run(lambda session: limit_pages(session.main, 0))
        big = [make_document(f"big {index}", f"{index} {'word ' * 20_000}") for index in range(3)]
        with pytest.raises(StoreUnavailable, match="full; make room"):
            await write(store, *big)
        assert held == await look(store, "a")
        assert [("a", held)] == await scan(store)
        await store._run(lambda session: limit_pages(session.main, 100_000))
        await put(store, *big)
        assert 4 == await store.count()


def limit_pages(connection: apsw.Connection, more: int) -> None:
    pages = connection.pragma("page_count")
    connection.execute(f"PRAGMA max_page_count = {pages + more}")


async def test_disk_full_by_file_size_limit(kind: str, tmp_path: Path) -> None:
    """The same where the operating system refuses to let a file grow."""
    program = """
        import resource, signal, trio
        from pathlib import Path
        from sqlite_support import OPENERS, scan
        from store_calls import look, put, write
        from trio_repair import StoreUnavailable, WriteStatus
        from trio_repair.testing import make_document
        async def main(kind, path):
            async with OPENERS[kind](path, create=True) as store:
                await put(store, make_document("a", "text"))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                size = max(entry.stat().st_size for entry in path.parent.iterdir())
                resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
                try:
                    answers = await write(store, make_document("big", "word " * 100_000))
                    print([answer.status.name for answer in answers])
                except StoreUnavailable as error:
                    print(error)
                print([doc_id for doc_id, _ in await scan(store)])
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                await put(store, make_document("b", "text"))
                print([doc_id for doc_id, _ in await scan(store)])
        trio.run(main, sys.argv[1], Path(sys.argv[2]))
    """
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import sys\n" + textwrap.dedent(program), kind, str(tmp_path / "s.db")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        timeout=GENEROUS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == ended.returncode, ended.stderr
    first, held, after = ended.stdout.splitlines()
    assert re.search("full|I/O error", first)
    assert "['a']" == held
    assert "['a', 'b']" == after
