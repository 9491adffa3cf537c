"""kill -9 at every call of a store and at every statement of a write: nothing is lost, no receipt lies, all gets done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from trio_repair import RepairOutcome, RepairResult
from trio_repair.cli._receipts import ReceiptFile
from trio_repair.cli._status import UsageError

from .deaths import DOCUMENTS, Cemetery, Death, open_cemetery
from .held import NAMES

ALL = list(DOCUMENTS)


@pytest.fixture(scope="module")
def cemetery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cemetery]:
    with open_cemetery(tmp_path_factory.mktemp("crash")) as opened:
        yield opened


def _all_deaths(cemetery: Cemetery, doc_ids: list[str]) -> list[Death]:
    deaths = []
    for point, times in cemetery.points(doc_ids).items():
        for nth in range(times):
            death = cemetery.die(doc_ids, point, nth)
            # How the stores' calls share the documents differs a little from run to run, so the last one may not come.
            assert death.point == point or nth > 0
            deaths.append(death)
    return deaths


def test_killed_at_every_store_call(cemetery: Cemetery) -> None:
    """Killed before each call, and after its effect but before its answer; and before and after each receipt."""
    deaths = _all_deaths(cemetery, ALL)
    assert [] == [death for death in deaths if death.wrong]
    died_at = {death.point for death in deaths}
    operations = ("observe", "read", "prepare", "write")
    assert {
        f"{when} {store}.{what}" for store in ("text", "vector") for what in operations for when in ("before", "in")
    } < died_at
    assert {"in cache.write", "in cache.remove", "before a receipt", "after a receipt"} < died_at
    # Not vacuous: some died before anything was written, some after that and before they could tell, some told a part.
    assert any(not death.landed for death in deaths)
    assert any(death.landed and not death.results for death in deaths)
    assert any(0 < len(death.results) < len(ALL) for death in deaths)


@pytest.mark.parametrize("doc_id", ALL)
def test_killed_at_every_write_of_one_repair(cemetery: Cemetery, doc_id: str) -> None:
    """A repair alone makes a call for each step: killed at each that changes something, it can be taken up again."""
    points = [point for point in cemetery.points([doc_id]) if point.endswith((".write", ".remove"))]
    assert points
    for point in points:
        death = cemetery.die([doc_id], point)
        assert (point, []) == (death.point, death.wrong)
        assert point.startswith("in ") <= bool(death.landed)


def test_killed_at_every_statement_of_a_write(cemetery: Cemetery) -> None:
    """Killed in the stores' threads, after each kind of statement, and before, in and after each commit."""
    points = cemetery.points(ALL, statements=True)
    assert {f"{when} {store}: COMMIT" for store in NAMES for when in ("before", "in", "after")} < points.keys()
    for point in points:
        death = cemetery.die(ALL, point, statements=True)
        assert (point, []) == (death.point, death.wrong)


def test_control_a_store_that_deletes_and_then_inserts_is_found(cemetery: Cemetery) -> None:
    """The control: killed between the two, which are two commits, the document is gone."""
    deaths = [
        cemetery.die(["copy"], point, planted="delete-then-insert")
        for point in ("in vector.remove", "before vector.write")
    ]
    for death in deaths:
        assert any("vector had a readable copy and has none" in problem for problem in death.wrong), death


def test_control_a_receipt_in_two_writes_is_found(cemetery: Cemetery) -> None:
    """The control of "receipts are whole lines": killed between the two writes, the last line is half a line."""
    death = cemetery.die(["copy"], "in a receipt", planted="split-receipts")
    assert "receipts.jsonl ends in the middle of a line" in death.wrong


def test_control_a_receipt_that_is_not_true_is_found(cemetery: Cemetery) -> None:
    """The control of "told is stored": the same receipts, held against stores that were put back, are lies."""
    death = cemetery.die(["copy"], "after a receipt")
    assert (["copy"], []) == ([result.doc_id for result in death.results], death.wrong)
    told = Death(death.point)
    cemetery.examine(told, cemetery.before)
    assert any("vector is told as verified, but nothing was written" in problem for problem in told.wrong), told.wrong


def _receipt(doc_id: str) -> RepairResult:
    return RepairResult(doc_id=doc_id, job_id=f"of {doc_id}", outcome=RepairOutcome.REPAIRED)


def test_a_receipt_that_was_torn_is_taken_back_before_the_next_one(tmp_path: Path) -> None:
    """What a power cut leaves of a last line, however little, does not spoil the line that the next run appends."""
    path = tmp_path / "receipts.jsonl"
    for doc_id in ("a", "b"):
        receipts = ReceiptFile.open(path)
        receipts.append(_receipt(doc_id))
        receipts.close()
    first, second, _ = path.read_bytes().split(b"\n")
    for length in range(len(second) + 1):
        path.write_bytes(first + b"\n" + second[:length])
        receipts = ReceiptFile.open(path)
        receipts.append(_receipt("c"))
        receipts.close()
        assert ["a", "c"] == [json.loads(line)["doc_id"] for line in path.read_text().splitlines()]


def test_a_last_line_that_is_no_receipt_is_left_alone(tmp_path: Path) -> None:
    """The control: what somebody else wrote, alone or behind receipts, without a newline at its end, is kept."""
    path = tmp_path / "settings.json"
    receipts = ReceiptFile.open(tmp_path / "receipts.jsonl")
    receipts.append(_receipt("a"))
    receipts.close()
    line = (tmp_path / "receipts.jsonl").read_text()
    for before, problem in (("", "exists and holds no receipts"), (line, "ends in a line that is no receipt")):
        path.write_text(f'{before}{{"colour": "green"}}')
        with pytest.raises(UsageError, match=problem):
            ReceiptFile.open(path)
        assert f'{before}{{"colour": "green"}}' == path.read_text()


def test_control_an_event_log_that_is_not_flushed_by_the_line_is_found(cemetery: Cemetery) -> None:
    """The control of "the log of events has what the receipts have": with Python's own buffer it has not."""
    death = cemetery.die(ALL, "after a receipt", len(ALL) - 1, planted="buffered-events")
    assert any("results in the log of events" in problem for problem in death.wrong), death.wrong
