"""Plan files: whole or refused, line by line."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from trio_repair import (
    CacheStep,
    DocumentVersion,
    PlanAction,
    PlannedWrite,
    RepairPlan,
    SyncStrategy,
)
from trio_repair.cli._configuration import Configuration, parse_configuration
from trio_repair.cli._plan_file import PlanWriter, read_plan
from trio_repair.cli._receipts import ReceiptFile
from trio_repair.cli._status import UsageError

STORES = b'[stores.text]\nkind = "a"\n[stores.vector]\nkind = "b"\n'


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    """A configuration in the test's directory."""
    return parse_configuration(tmp_path / "search.toml", STORES)


def plan(doc_id: str, action: PlanAction = PlanAction.COPY, **changes: Any) -> RepairPlan:
    """A plan that writes the vector store."""
    version = DocumentVersion(
        number=4, digest="" if action is PlanAction.DELETE else "d", deleted=action is PlanAction.DELETE
    )
    settings: dict[str, Any] = {
        "doc_id": doc_id,
        "strategy": SyncStrategy.MOST_RECENT,
        "action": action,
        "version": version,
        "sources": ("text",),
        "writes": (PlannedWrite(store="vector", token="v1"),),
        "cache_step": CacheStep.REFRESH,
        "tokens": {"text": "t1", "vector": "v1"},
        "reason": None,
        "settle_first": False,
    }
    return RepairPlan(**settings | changes)


PLANS = [
    plan("a"),
    plan("b\x1b\u202e'\"", PlanAction.DELETE, sources=()),
    plan("c", PlanAction.MANUAL, version=None, sources=(), writes=(), reason="Manual resolution required"),
]


def write(path: Path, configuration: Configuration) -> list[dict[str, Any]]:
    """Write `PLANS`; gives the lines."""
    with closing(PlanWriter.open(path)) as writer:
        for one in PLANS:
            writer.add(one, {"text", "vector"})
        writer.finish(configuration, SyncStrategy.MOST_RECENT, documents=9)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_written_is_read_back(tmp_path: Path, configuration: Configuration) -> None:
    """Every field of every plan survives, in jobs of the plan's strategy; the counts are the plan's."""
    path = tmp_path / "plan.jsonl"
    lines = write(path, configuration)
    assert ["trio-repair-plan", "document", "document", "document"] == [line["type"] for line in lines]
    plan_file = read_plan(path, configuration)
    assert PLANS == list(plan_file.plans())
    counts = plan_file.counts
    assert (9, 3, 2, 1, 1) == (counts.documents, counts.planned, counts.changes, counts.deletes, counts.manual)
    jobs = list(plan_file.jobs(max_retries=2))
    assert [one.doc_id for one in PLANS] == [planned.job.doc_id for planned in jobs]
    assert {(SyncStrategy.MOST_RECENT, 2)} == {(planned.job.strategy, planned.job.max_retries) for planned in jobs}


def test_a_plan_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """A plan that is not finished leaves what was there before, and no other file."""
    path = tmp_path / "plan.jsonl"
    before = '{"type": "trio-repair-plan", "of": "before"}\n'
    path.write_text(before)
    with closing(PlanWriter.open(path)) as writer:
        writer.add(PLANS[0], ())
    assert before == path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A directory, and a directory that does not exist."""
    with pytest.raises(UsageError, match=r"--out: .* is a directory"):
        PlanWriter.open(tmp_path)
    with pytest.raises(UsageError, match=r"--out: cannot write in .*none"):
        PlanWriter.open(tmp_path / "none" / "plan.jsonl")


@pytest.mark.parametrize("opener", [PlanWriter.open, ReceiptFile.open])
def test_what_is_not_ours_is_not_written_over(tmp_path: Path, opener: Callable[[Path], object]) -> None:
    """A plan replaces nothing but a plan, and receipts follow nothing but receipts; a store above all is left alone."""
    path = tmp_path / "text.db"
    path.write_bytes(b"SQLite format 3\0...")
    with pytest.raises(UsageError, match=r"--(out|receipts): .*text.db exists and (is no plan|holds no receipts)"):
        opener(path)
    assert b"SQLite format 3\0..." == path.read_bytes()


def edit(lines: list[dict[str, Any]], number: int, **changes: Any) -> str:
    """The file with one line changed; a value of ... takes the key out."""
    edited = [dict(line) for line in lines]
    for key, value in changes.items():
        edited[number - 1][key] = value
        if value is ...:
            del edited[number - 1][key]
    return "".join(json.dumps(line) + "\n" for line in edited)


@pytest.mark.parametrize(
    ("number", "changes", "complaint"),
    [
        (1, {"type": "x"}, "line 1: is not the header of a plan"),
        (1, {"format": 2}, "line 1: says format 2; this version reads format 1"),
        (1, {"format": "1"}, "line 1: 'format' must be int"),
        (1, {"strategy": "newest"}, "line 1: 'strategy' is 'newest'"),
        (1, {"counts": ...}, "line 1: lacks 'counts'"),
        (1, {"configuration": "0" * 64}, "was made for other stores"),
        (
            1,
            {"counts": {"documents": 9, "planned": 4, "changes": 2, "deletes": 1, "manual": 1}},
            "it was cut short or edited",
        ),
        (2, {"type": "x"}, "line 2: is not a planned document"),
        (2, {"doc_id": ""}, "line 2: doc_id: is empty"),
        (2, {"doc_id": "\ud800"}, "line 2: doc_id: holds a lone surrogate"),
        (2, {"doc_id": 3}, "line 2: 'doc_id' must be str"),
        (2, {"action": "destroy"}, "line 2: 'action' is 'destroy'"),
        (2, {"action": "manual"}, "line 2: 'action' is 'manual', which writes nothing"),
        (2, {"action": "delete"}, "line 2: 'action' and 'version' disagree"),
        (2, {"version": None}, "line 2: 'action' is 'copy', which writes nothing, or 'version' is missing"),
        (
            2,
            {"version": {"number": -1, "digest": "", "deleted": False, "updated_at": None}},
            "line 2: 'version': number:",
        ),
        (
            2,
            {"version": {"number": True, "digest": "", "deleted": False, "updated_at": None}},
            "line 2: 'number' must be",
        ),
        (
            2,
            {"version": {"number": 1, "digest": "", "deleted": False, "updated_at": "x"}},
            "line 2: 'version': Invalid",
        ),
        (
            2,
            {"version": {"number": 1, "digest": "", "deleted": False, "updated_at": "2020-01-01"}},
            "line 2: 'version': ",
        ),
        (2, {"writes": [{"store": "cache", "token": "x"}]}, "line 2: 'writes' names a store 'cache'"),
        (2, {"writes": [{"store": "vector", "token": "other"}]}, "line 2: 'writes' and 'tokens' disagree"),
        (2, {"writes": ["vector"]}, "line 2: 'writes' must hold objects"),
        (2, {"sources": ["cache"]}, "line 2: 'sources' must name"),
        (2, {"sources": [["text"]]}, "line 2: 'sources' must name"),
        (2, {"tokens": {"vector": "v1"}}, "line 2: 'tokens' must hold"),
        (2, {"cache_step": "burn"}, "line 2: 'cache_step' is 'burn'"),
        (2, {"settle_first": 0}, "line 2: 'settle_first' must be bool"),
        (2, {"live": ...}, "line 2: lacks 'live'"),
        (4, {"reason": 1}, "line 4: 'reason' must be str or NoneType"),
    ],
)
def test_a_changed_plan_is_refused_by_line(
    tmp_path: Path, configuration: Configuration, number: int, changes: dict[str, Any], complaint: str
) -> None:
    """Each line is checked before anything is done; the message names the line in one line of its own."""
    path = tmp_path / "plan.jsonl"
    path.write_text(edit(write(path, configuration), number, **changes))
    with pytest.raises(UsageError) as caught:
        read_plan(path, configuration)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "line 1: is empty"),
        (b"hello\n", "line 1: is not JSON"),
        (b"\xff\xfe\n", "line 1: is not JSON"),
        (b"[]\n", "line 1: is not a JSON object"),
        (b"[" * 100_000, "line 1: is nested too deeply"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(
    tmp_path: Path, configuration: Configuration, content: bytes, complaint: str
) -> None:
    """Empty, not JSON, not UTF-8, not an object, or an attack on the parser."""
    path = tmp_path / "plan.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=complaint):
        read_plan(path, configuration)


def test_a_document_is_planned_once(tmp_path: Path, configuration: Configuration) -> None:
    """A second line about a document is refused by number, even if the header counts it."""
    path = tmp_path / "plan.jsonl"
    lines = write(path, configuration)
    for name in ("planned", "changes"):
        lines[0]["counts"][name] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[1]]))
    with pytest.raises(UsageError, match="line 5: is about a document that a line before is about"):
        read_plan(path, configuration)
    lines[1]["doc_id"] = "another"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[1] | {"doc_id": "a"}]))
    assert 4 == read_plan(path, configuration).counts.planned  # the control


def test_a_plan_that_changes_after_it_was_read_is_not_carried_out(tmp_path: Path, configuration: Configuration) -> None:
    """What was counted and what is done are the same lines."""
    path = tmp_path / "plan.jsonl"
    write(path, configuration)
    plan_file = read_plan(path, configuration)
    assert 3 == len(list(plan_file.plans()))  # the control
    plans = plan_file.plans()
    next(plans)
    with path.open("a") as out:
        out.write(path.read_text().splitlines()[1] + "\n")
    for changed in (plans, plan_file.plans()):
        with pytest.raises(UsageError, match="changed while it was being carried out"):
            list(changed)


def test_a_plan_that_was_cut_short_is_refused(tmp_path: Path, configuration: Configuration) -> None:
    """Whole lines that are lost are missed, and half a line is found."""
    path = tmp_path / "plan.jsonl"
    write(path, configuration)
    content = path.read_text()
    path.write_text("".join(content.splitlines(keepends=True)[:-1]))
    with pytest.raises(
        UsageError, match=r"announces 3 documents .2 changes., and it holds 2 .2 changes.: it was cut short"
    ):
        read_plan(path, configuration)
    path.write_text(content[:-20])
    with pytest.raises(UsageError, match="line 4: is not JSON"):
        read_plan(path, configuration)
    path.write_text(content)
    read_plan(path, configuration)  # the control


def test_a_plan_that_cannot_be_read_is_refused(tmp_path: Path, configuration: Configuration) -> None:
    """Missing: named by option and reason."""
    with pytest.raises(UsageError, match=r"--plan: cannot read .*: No such file"):
        read_plan(tmp_path / "none.jsonl", configuration)
