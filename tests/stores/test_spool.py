"""The spool: byte order for rows that came without, in bounded memory."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks._harness import peak_apart
from trio_repair.stores._spool import Spool
from trio_repair.testing.strategies import doc_ids

ROW_BYTES = 200


def drain(spool: Spool, size: int = 3) -> list[tuple[str, list[bytes]]]:
    """All that comes out, page by page; every page but the last is full, and the end stays the end."""
    found: list[tuple[str, list[bytes]]] = []
    while page := spool.next_page(size):
        assert not len(found) % size, "a page that was not full came before another"
        found += page
    assert [] == spool.next_page(size)
    return found


def spooled(
    rows: Iterable[tuple[str, bytes]], after: str | None = None, size: int = 3
) -> list[tuple[str, list[bytes]]]:
    spool = Spool(after)
    try:
        spool.add(rows)
        return drain(spool, size)
    finally:
        spool.close()


@given(st.lists(st.tuples(doc_ids(), st.binary(max_size=9)), max_size=40), st.none() | doc_ids(), st.integers(1, 7))
def test_rows_come_out_in_byte_order(rows: list[tuple[str, bytes]], after: str | None, size: int) -> None:
    """Whatever the ids: each once, above `after`, by its UTF-8, with all of its rows in the order they came in."""
    expected: dict[str, list[bytes]] = {}
    for doc_id, row in sorted(rows, key=lambda one: one[0].encode()):
        if after is None or doc_id.encode() > after.encode():
            expected.setdefault(doc_id, []).append(row)
    assert list(expected.items()) == spooled(rows, after, size)


def test_rows_can_be_added_in_parts() -> None:
    """Until the first page is asked for."""
    spool = Spool()
    spool.add([("b", b"1")])
    spool.add([])
    spool.add(iter([("a", b"2"), ("b", b"3")]))
    assert [("a", [b"2"]), ("b", [b"1", b"3"])] == drain(spool)
    with pytest.raises(RuntimeError):
        spool.add([("c", b"4")])
    spool.close()


def test_closing_ends_it() -> None:
    """Twice is once; nothing comes out afterwards, and nothing goes in."""
    spool = Spool()
    spool.add([("a", b"1"), ("b", b"2")])
    assert [("a", [b"1"])] == spool.next_page(1)
    spool.close()
    spool.close()
    assert [] == spool.next_page(1)
    other = Spool()
    other.close()
    with pytest.raises((RuntimeError, sqlite3.Error)):
        other.add([("a", b"1")])


def fill_and_drain(count: int) -> int:
    """Spool so many rows in an order that is not theirs; how many came out, in order."""
    spool = Spool()
    step = 7919  # a prime: every number once, in no order
    for start in range(0, count, 1000):
        numbers = [(index * step) % count for index in range(start, start + 1000)]
        spool.add((f"{number:09}", b"%0*d" % (ROW_BYTES, number)) for number in numbers)
    seen, last = 0, ""
    while page := spool.next_page(1000):
        for doc_id, _ in page:
            assert doc_id > last
            seen, last = seen + 1, doc_id
    spool.close()
    return seen


def hold(count: int) -> int:
    """What the spool is there to avoid."""
    rows = {f"{number:09}": b"%0*d" % (ROW_BYTES, number) for number in range(count)}
    return len(sorted(rows))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred thousand rows take hardly more than a few; control: a dict of them takes much more."""
    here = str(Path(__file__).parent)  # where the other process finds this module
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    few, many = peak_apart(fill_and_drain, 1000), peak_apart(fill_and_drain, 300_000)
    assert (1000, 300_000) == (few.value, many.value)
    control = peak_apart(hold, 300_000)
    bound = 40 * 2**20
    assert many.peak_rss - few.peak_rss < bound
    assert control.peak_rss - few.peak_rss > bound


def temporary_files() -> list[str]:
    """Where this process' open files of SQLite's own are; "(deleted)" follows the names of those that have none."""
    targets = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return [target for target in targets if "etilqs_" in target]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not show a process its open files")
def test_nothing_is_left_on_the_disk() -> None:
    """What the cache cannot hold lies in a file without a name, which goes with the spool."""
    before = temporary_files()
    spool = Spool()
    for start in range(0, 100_000, 10_000):
        spool.add((f"{number:09}", bytes(ROW_BYTES)) for number in range(start, start + 10_000))
    (made,) = set(temporary_files()) - set(before)
    assert made.endswith(" (deleted)")
    spool.close()
    assert before == temporary_files()
