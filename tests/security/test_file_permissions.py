"""Files that are made are for their owner alone, whatever the umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from cli_support import CONFIGURATION, damage, fill, with_stores
from security_support import Told

from trio_repair.cli._ids import IdFile
from trio_repair.cli._plan_file import PlanWriter
from trio_repair.demo.build import CONFIGURATION as DEMO_CONFIGURATION
from trio_repair.demo.build import MARKER, claim_directory, clear_directory, create_stores


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """Nothing is taken away by the process's own setting."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, str]:
    """The mode of every file."""
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in directory.iterdir() if path.is_file()}


def open_to_others(directory: Path) -> set[str]:
    """Files that are not for their owner alone."""
    return {name for name, mode in modes(directory).items() if mode != "0o600"}


def test_stores_and_what_lies_beside_them_are_private(tmp_path: Path) -> None:
    """The three files, and the logs and indexes that SQLite makes beside them while they are open."""
    seen: dict[str, str] = {}

    async def work(application: object) -> None:
        await fill(application)  # type: ignore[arg-type]  # an application, which the caller makes
        seen.update(modes(tmp_path))

    with_stores(tmp_path, work, create=True)
    expected = {f"{name}.db{suffix}" for name in ("text", "vector", "cache") for suffix in ("", "-wal", "-shm")}
    assert dict.fromkeys(expected, "0o600") == seen
    assert set() == open_to_others(tmp_path)


def test_what_the_command_writes_is_private(
    tmp_path: Path, told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configuration, plan, receipts and lock, a plan also while it is being written."""
    before_rename: list[str] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        before_rename.append(oct(stat.S_IMODE(os.fstat(descriptor).st_mode)))
        fsync(descriptor)

    assert 0 == told("init", tmp_path / "new.toml").status
    made = os.open(tmp_path / "trio-repair.toml", os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(made, CONFIGURATION.encode())
    os.close(made)
    with_stores(tmp_path, fill, create=True)
    with_stores(tmp_path, damage)
    monkeypatch.setattr(os, "fsync", look)
    where = ["--dir", tmp_path, "--strategy", "most-recent"]
    assert 1 == told("plan", *where, "--out", tmp_path / "plan.jsonl").status
    assert 1 == told("repair", *where, "--receipts", tmp_path / "receipts.jsonl").status
    made_files = {"new.toml", "plan.jsonl", "receipts.jsonl", "trio-repair.toml.lock", "text.db"}
    assert made_files <= modes(tmp_path).keys()
    assert set() == open_to_others(tmp_path)
    assert ["0o600"] == before_rename


def test_temporary_files_are_private(tmp_path: Path) -> None:
    """The lines of a plan that has no header yet, and ids that came through a pipe; neither has a name."""
    piped, feed = os.pipe()
    os.write(feed, b"doc-1\n")
    os.close(feed)
    ids, writer = IdFile.open(f"/dev/fd/{piped}"), PlanWriter.open(tmp_path / "plan.jsonl")
    os.close(piped)
    try:
        for file in (ids._file, writer._lines):
            found = os.fstat(file.fileno())
            assert ("0o600", 0) == (oct(stat.S_IMODE(found.st_mode)), found.st_nlink)
    finally:
        ids.close()
        writer.close()
    assert [] == list(tmp_path.iterdir())


def test_the_demo_is_private(tmp_path: Path) -> None:
    """Its stores, its configuration and its marker."""

    async def main() -> None:
        claim_directory(tmp_path)
        clear_directory(tmp_path)
        async with create_stores(tmp_path):
            pass

    trio.run(main)
    assert {MARKER, DEMO_CONFIGURATION, "text.db"} <= modes(tmp_path).keys()
    assert set() == open_to_others(tmp_path)


def test_control_a_file_that_is_made_carelessly_is_noticed(tmp_path: Path) -> None:
    """Under this umask, whoever names no mode makes a file for everybody."""
    (tmp_path / "careless").write_text("")
    assert {"careless"} == open_to_others(tmp_path)
