"""The parts of the command that can be held without a process: lock, ids, receipts, the tap."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_repair import RepairJob, RepairOutcome, RepairResult, SyncStrategy
from trio_repair.cli._ids import IdFile
from trio_repair.cli._lock import hold_lock, lock_path
from trio_repair.cli._receipts import ReceiptFile
from trio_repair.cli._status import AnotherRun, OutputFailed, UsageError
from trio_repair.cli._tap import JobTap

HOLDER = """
import sys
from pathlib import Path
from trio_repair.cli._lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold_elsewhere(configuration: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its stdin ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, configuration], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert "held\n" == holder.stdout.readline()
    return holder


def test_the_lock_is_held_once_and_dies_with_its_process(tmp_path: Path) -> None:
    """A second run is told the pid of the first, also by way of a symlink; kill -9 of the first frees it."""
    configuration = tmp_path / "search.toml"
    configuration.touch()
    alias = tmp_path / "alias.toml"
    alias.symlink_to(configuration)
    with hold_elsewhere(configuration) as holder:
        for path in (configuration, alias):
            with pytest.raises(AnotherRun, match=rf"process {holder.pid}\)"), hold_lock(path):
                pass
        holder.kill()
        holder.wait()
        with hold_lock(alias):
            assert f"{os.getpid()}\n" == lock_path(configuration).read_text()


def test_two_configurations_are_two_locks(tmp_path: Path) -> None:
    """Runs under different configurations do not wait for each other."""
    with hold_lock(tmp_path / "a.toml"), hold_lock(tmp_path / "b.toml"):
        pass


def test_a_planted_symlink_is_not_followed(tmp_path: Path) -> None:
    """The lock file is truncated, so it must not be somebody's link to another file."""
    treasure = tmp_path / "treasure"
    treasure.write_text("gold")
    lock_path(tmp_path / "search.toml").symlink_to(treasure)
    with pytest.raises(UsageError, match="cannot open the lock file"), hold_lock(tmp_path / "search.toml"):
        pass
    assert "gold" == treasure.read_text()


def test_ids_come_one_a_line(tmp_path: Path) -> None:
    """UTF-8, empty lines skipped, the last line with or without its end; they can be read again."""
    path = tmp_path / "ids.txt"
    path.write_bytes("one\n\n  two \nthr€e/../x'\"\nfour".encode())
    ids = IdFile.open(str(path))
    assert 4 == ids.count
    assert ["one", "  two ", "thr€e/../x'\"", "four"] == list(ids) == list(ids)
    ids.close()


def test_bad_lines_are_named_by_number(tmp_path: Path) -> None:
    """All lines are checked before the first is used; the first bad ones are named, the others counted."""
    path = tmp_path / "ids.txt"
    path.write_bytes(b"\xef\xbb\xbfbom\nfine\n\xff\ncr\r\nnul\0\n" + b"x" * 2049 + b"\nfine\n")
    with pytest.raises(UsageError) as caught:
        IdFile.open(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: line 1: starts with a byte order mark")
    assert "line 3: is not UTF-8" in message
    assert "line 4: ends in a carriage return" in message
    assert message.endswith("; and 2 more bad lines")


def test_an_id_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, or a directory."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="--ids-file: cannot read"):
            IdFile.open(str(path))


def test_ids_come_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stdin cannot be read twice, and yet is checked whole before it is used."""
    reading, writing = os.pipe()
    os.write(writing, b"a\nb\n")
    os.close(writing)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(os.fdopen(reading, "rb")))
    ids = IdFile.open("-")
    assert (2, ["a", "b"]) == (ids.count, list(ids))
    ids.close()
    sys.stdin.close()


def result(doc_id: str) -> RepairResult:
    """A result to be receipted."""
    return RepairResult(doc_id=doc_id, job_id="j", outcome=RepairOutcome.FAILED, error="Vector store update failed: x")


def test_receipts_are_appended_line_by_line(tmp_path: Path) -> None:
    """An existing file is added to; each line is whole JSON, whatever the id holds."""
    path = tmp_path / "receipts.jsonl"
    for doc_id in ("a", "b\n\x1b"):
        receipts = ReceiptFile.open(path)
        receipts.append(result(doc_id))
        receipts.close()
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert ["a", "b\n\x1b"] == [line["doc_id"] for line in lines]
    assert {("result", "failed", False)} == {(line["type"], line["outcome"], line["success"]) for line in lines}


def test_a_full_disk_leaves_no_half_receipt(tmp_path: Path) -> None:
    """A line that does not fit is taken back, and the failure is told."""
    path = tmp_path / "receipts.jsonl"
    receipts = ReceiptFile.open(path)
    receipts.append(result("a"))
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))
    try:
        with pytest.raises(OutputFailed, match="the disk is full"):
            receipts.append(result("b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        receipts.close()
    assert whole == path.read_bytes()
    with pytest.raises(UsageError, match="--receipts: cannot write"):
        ReceiptFile.open(tmp_path)


def job(number: int) -> RepairJob:
    """A job."""
    return RepairJob(doc_id=f"d{number}", strategy=SyncStrategy.MOST_RECENT)


async def endless() -> AsyncIterator[RepairJob]:
    """A job each second, for ever."""
    number = 0
    while True:
        await trio.sleep(1)
        yield job(number)
        number += 1


async def test_the_tap_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    """A source that never ends is left when the time is up, in the middle of a wait; the reason is kept."""
    tap = JobTap(endless(), trio.current_time() + 3.5)
    assert 3 == len([one async for one in tap])
    assert "max-duration" == tap.stopped
    assert [] == [one async for one in tap]


async def test_the_tap_is_turned_off_while_its_source_waits(autojump_clock: trio.testing.MockClock) -> None:
    """Turning it off wakes the reader at once, and nothing is taken afterwards."""
    taken: list[str] = []

    async def take(tap: JobTap) -> None:
        taken.extend([one.doc_id async for one in tap])  # type: ignore[union-attr]  # repair jobs, no planned ones

    tap = JobTap(endless())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, tap)
        await trio.sleep(2.5)
        tap.stop("interrupted")
        tap.stop("receipts")
    assert 2.5 == trio.current_time()
    assert ["d0", "d1"] == taken
    assert "interrupted" == tap.stopped


async def test_a_source_that_ends_was_not_stopped() -> None:
    """The control: a tap that nobody turned off says so."""

    async def two() -> AsyncIterator[RepairJob]:
        yield job(0)
        yield job(1)

    tap = JobTap(two())
    assert ["d0", "d1"] == [one.doc_id async for one in tap]  # type: ignore[union-attr]  # as above
    assert tap.stopped is None
