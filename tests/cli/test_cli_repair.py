"""`repair` and `plan`: what is done, what is refused, and what is said about it."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import (
    DAMAGE,
    DOCUMENTS,
    Application,
    Done,
    Fifo,
    configure,
    contents,
    doc_id,
    document,
    findings,
    run,
    with_database,
    with_stores,
)

from trio_repair import Document

CONFLICT = {"doc-11": {"vector conflict"}}
"""What MOST_RECENT leaves to a person."""


def receipts_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a receipts file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_all_that_check_finds_is_repaired_and_a_second_run_writes_nothing(
    damaged: Path, call: Callable[..., Done]
) -> None:
    """Only the conflict is left; it needs a person, so the status is 1. The second run changes no token."""
    done = run("repair", "--dir", damaged, "--strategy", "most-recent", "--receipts", damaged / "receipts.jsonl")
    assert 1 == done.status
    assert ["repaired", "6"] in [line.split() for line in done.out.splitlines()]
    assert "documents written: text 2, vector 3, cache 1" in done.out
    assert "doc-11" in done.out
    assert "trio-repair resolve DOC_ID --take" in done.out
    assert "trio-repair: documents to repair: 7; strategy: most-recent\n" == done.err
    assert findings(damaged) == CONFLICT
    receipts = receipts_of(damaged / "receipts.jsonl")
    assert set(DAMAGE) == {receipt["doc_id"] for receipt in receipts}
    assert {"text", "vector", "cache"} == {step["store"] for receipt in receipts for step in receipt["receipt"]}
    before = contents(damaged)
    again = call("repair", "--dir", damaged, "--strategy", "most-recent", "--json")
    assert (1, {"text": 0, "vector": 0, "cache": 0}) == (again.status, again.record["written"])
    assert before == contents(damaged)


def test_the_json_summary_is_one_line_of_documented_names(damaged: Path, call: Callable[..., Done]) -> None:
    """Counts by outcome and store, the failures, and how it ended."""
    record = call("repair", "--dir", damaged, "--strategy", "most-recent", "--json").record
    reason = record["failures"][0].pop("error")
    assert "the same version with different content" in reason
    assert record == {
        "type": "repair",
        "strategy": "most-recent",
        "documents": 7,
        "outcomes": {
            "repaired": 6,
            "already-consistent": 0,
            "needs-manual": 1,
            "timed-out": 0,
            "failed": 0,
            "cancelled": 0,
        },
        "written": {"text": 2, "vector": 3, "cache": 1},
        "with_warnings": 0,
        "failures": [{"doc_id": "doc-11", "outcome": "needs-manual"}],
        "warnings": [],
        "hung_stores": {},
        "receipts_lost": 0,
        "stopped": None,
        "refused": None,
        "unsettled": 0,
        "seconds": record["seconds"],
    }


def test_nothing_to_repair_is_status_0(sound: Path, call: Callable[..., Done]) -> None:
    """Consistent stores need no engine, and the strategy may stand in the configuration."""
    configure(sound, "[repair]", '[repair]\nstrategy = "text"')
    done = call("repair", "--dir", sound)
    assert (0, "all 40 documents are consistent; nothing to repair\n") == (done.status, done.out)


def test_the_strategy_is_never_guessed(damaged: Path, call: Callable[..., Done]) -> None:
    """Neither on the command line nor in the configuration: status 2, and nothing is done."""
    before = contents(damaged)
    for command in (["repair"], ["repair", "--dry-run"], ["plan", "--out", damaged / "plan.jsonl"]):
        done = call(*command, "--dir", damaged)
        assert 2 == done.status
        assert done.complaint.startswith("no strategy is named; give --strategy text|vector|most-recent|manual")
    assert before == contents(damaged)


def test_each_strategy_does_what_it_says(damaged: Path, tmp_path: Path, call: Callable[..., Done]) -> None:
    """The text store wins, or the vector store wins, or nothing is written."""
    left = {}
    for strategy in ("text", "vector", "manual"):
        directory = Path(shutil.copytree(damaged, tmp_path / strategy))
        done = call("repair", "--dir", directory, "--strategy", strategy)
        assert 1 == done.status
        left[strategy] = set(findings(directory))
    # An absent source of truth means nothing by itself, and no strategy overrides a tombstone.
    assert {"text": {doc_id(7)}, "vector": {doc_id(1), doc_id(9)}, "manual": set(DAMAGE)} == left


def test_a_dry_run_writes_nothing(damaged: Path, call: Callable[..., Done]) -> None:
    """It says what would be done, and the stores hold what they held, tokens included."""
    before = contents(damaged)
    done = call("repair", "--dir", damaged, "--strategy", "most-recent", "--dry-run")
    assert 1 == done.status
    assert "copy version 2 to vector from text" in done.out
    assert "dry run, nothing was written; documents that need a step: 7" in done.out
    records = call("repair", "--dir", damaged, "--strategy", "most-recent", "--dry-run", "--json").records
    assert ["document"] * 7 + ["dry-run"] == [record["type"] for record in records]
    assert (5, 1, 1) == tuple(records[-1]["counts"][name] for name in ("changes", "deletes", "manual"))
    named = call(
        "repair", "--dir", damaged, "--strategy", "most-recent", "--dry-run", doc_id(0), doc_id(3), "--json"
    ).records
    assert [doc_id(3), None] == [record.get("doc_id") for record in named]
    assert before == contents(damaged)
    assert 0 == call("repair", "--dir", damaged, "--strategy", "text", "--dry-run", doc_id(0)).status


def test_named_documents_are_repaired_and_no_others(damaged: Path, call: Callable[..., Done]) -> None:
    """By argument, by file and by stdin; a document in no store fails by name."""
    done = call("repair", "--dir", damaged, "--strategy", "most-recent", doc_id(1), doc_id(0))
    assert 0 == done.status
    assert ["already-consistent", "1"] in [line.split() for line in done.out.splitlines()]
    ids = damaged / "ids.txt"
    ids.write_text(f"{doc_id(3)}\n\n{doc_id(5)}\n")
    assert 0 == call("repair", "--dir", damaged, "--strategy", "most-recent", "--ids-file", str(ids)).status
    by_stdin = run(
        "repair", "--dir", damaged, "--strategy", "most-recent", "--ids-file", "-", "--json", input=b"doc-07\nnowhere\n"
    )
    assert 1 == by_stdin.status
    assert ["nowhere"] == [failure["doc_id"] for failure in by_stdin.record["failures"]]
    assert "in no store" in by_stdin.record["failures"][0]["error"]
    assert set(DAMAGE) - {doc_id(1), doc_id(3), doc_id(5), doc_id(7)} == set(findings(damaged))


def test_no_ids_is_nothing_to_do(damaged: Path, call: Callable[..., Done]) -> None:
    """An empty file comes out of an empty pipeline: status 0, nothing done."""
    (damaged / "ids.txt").touch()
    done = call("repair", "--dir", damaged, "--strategy", "text", "--ids-file", str(damaged / "ids.txt"))
    assert (0, "no document ids were given; nothing to do\n") == (done.status, done.out)


def test_a_bad_line_among_ids_does_nothing_at_all(damaged: Path, call: Callable[..., Done]) -> None:
    """The file is checked whole before the first id is used."""
    before = contents(damaged)
    (damaged / "ids.txt").write_bytes(b"doc-01\n\xff\n")
    done = call("repair", "--dir", damaged, "--strategy", "text", "--ids-file", str(damaged / "ids.txt"))
    assert 2 == done.status
    assert done.complaint.endswith("ids.txt: line 2: is not UTF-8")
    assert before == contents(damaged)


def test_a_plan_is_carried_out_and_nothing_else(damaged: Path, call: Callable[..., Done]) -> None:
    """What diverged after planning stays as it is; a document that moved is refused; the rest is done."""
    plan = damaged / "plan.jsonl"
    planned = call("plan", "--dir", damaged, "--strategy", "most-recent", "--out", plan, "--json")
    assert 1 == planned.status
    assert {"documents": 40, "planned": 7, "changes": 5, "deletes": 1, "manual": 1} == planned.record["counts"]

    async def move(application: Application) -> None:
        await application.put(application.stores.vector, document(3, 3))
        await application.put(application.stores.text, document(21, 2))

    with_stores(damaged, move)
    dry = call("repair", "--dir", damaged, "--plan", plan, "--dry-run", "--json")
    assert (1, 6, 1) == (dry.status, dry.records[-1]["counts"]["planned"], dry.records[-1]["moved"])
    done = call("repair", "--dir", damaged, "--plan", plan, "--json")
    assert 1 == done.status
    assert (5, 1, 1) == tuple(done.record["outcomes"][name] for name in ("repaired", "failed", "needs-manual"))
    (refused,) = [failure for failure in done.record["failures"] if failure["outcome"] == "failed"]
    assert doc_id(3) == refused["doc_id"]
    assert "changed" in refused["error"]
    assert {**CONFLICT, doc_id(3): {"text stale"}, doc_id(21): {"vector stale"}} == findings(damaged)


def test_a_plan_for_other_stores_is_refused(damaged: Path, sound: Path, call: Callable[..., Done]) -> None:
    """Tokens mean nothing elsewhere: status 2, nothing done. So are a malformed plan and a strategy beside a plan."""
    plan = damaged / "plan.jsonl"
    call("plan", "--dir", damaged, "--strategy", "most-recent", "--out", plan)
    elsewhere = call("repair", "--dir", sound, "--plan", plan)
    assert 2 == elsewhere.status
    assert "was made for other stores" in elsewhere.complaint
    both = call("repair", "--dir", damaged, "--plan", plan, "--strategy", "text")
    assert (2, "--plan and --strategy cannot be combined") == (both.status, both.complaint)
    plan.write_text(plan.read_text() + "and so on\n")
    malformed = call("repair", "--dir", damaged, "--plan", plan)
    assert 2 == malformed.status
    assert "plan.jsonl, line 9: is not JSON" in malformed.complaint


def test_an_emptied_store_does_not_become_a_mass_deletion(
    sound: Path, tmp_path: Path, call: Callable[..., Done]
) -> None:
    """Counted before anything is written: by check, by id file and by plan. Only --allow-mass goes ahead."""
    configure(sound, "[repair]", '[repair]\nmissing_source = "delete"')

    async def empty(application: Application) -> None:
        await application.forget(application.stores.text, *(doc_id(number) for number in range(DOCUMENTS)))

    with_stores(sound, empty)
    before = contents(sound)
    (sound / "ids.txt").write_text("".join(f"{doc_id(number)}\n" for number in range(DOCUMENTS)))
    plan = sound / "plan.jsonl"
    planned = call("plan", "--dir", sound, "--strategy", "text", "--out", plan)
    assert "repair will refuse this plan, because it would delete 40 of 40" in planned.err
    base = ["repair", "--dir", sound]
    for arguments in (
        ["--strategy", "text"],
        ["--strategy", "text", "--ids-file", str(sound / "ids.txt")],
        ["--plan", plan],
    ):
        done = call(*base, *arguments)
        assert 1 == done.status
        assert "would delete 40 of 40 documents (100%; max_deletes is 0.1, which is 10%)" in done.complaint
        assert "--allow-mass" in done.complaint
    dry = call(*base, "--strategy", "text", "--dry-run")
    assert "repair would refuse this, because it would delete 40 of 40" in dry.err
    assert before == contents(sound)
    assert 0 == call(*base, "--plan", plan, "--allow-mass").status  # the control
    assert {} == findings(sound)


@pytest.mark.parametrize("emptied", ["critical", "all but the cache's own"])
def test_what_the_cache_holds_counts_among_the_documents(sound: Path, call: Callable[..., Done], emptied: str) -> None:
    """With emptied critical stores too, no more documents are changed than there are."""
    cached = [doc_id(number) for number in range(0, DOCUMENTS, 2)]
    kept = [] if emptied == "critical" else [doc_id(1)]

    async def empty(application: Application) -> None:
        gone = [one for one in map(doc_id, range(DOCUMENTS)) if one not in kept]
        for store in application.stores.critical.values():
            await application.forget(store, *gone)

    with_stores(sound, empty)
    (sound / "ids.txt").write_text("".join(f"{one}\n" for one in cached))
    plan = sound / "plan.jsonl"
    base = ["repair", "--dir", sound]
    by_ids = call(*base, "--strategy", "text", "--ids-file", sound / "ids.txt")
    assert 1 == call("plan", "--dir", sound, "--strategy", "text", "--out", plan).status
    by_plan = call(*base, "--plan", plan)
    # Counted by a scan, each document is told from the others; by names, they are as many as the fullest store has.
    everything = call(*base, "--strategy", "text")
    for done in (by_ids, by_plan):
        assert "would delete 20 of 20 documents (100%; max_deletes is 0.1, which is 10%)" in done.complaint
    assert f"would delete 20 of {20 + len(kept)} documents" in everything.complaint


def test_documents_that_are_in_different_stores_count_as_different_ones(sound: Path, call: Callable[..., Done]) -> None:
    """Each store holds half of them: no fraction is above 100%."""

    async def part(application: Application) -> None:
        await application.forget(application.stores.text, *map(doc_id, range(20)))
        await application.forget(application.stores.vector, *map(doc_id, range(20, DOCUMENTS)))
        assert application.stores.cache is not None
        await application.forget(application.stores.cache, *map(doc_id, range(0, DOCUMENTS, 2)))

    with_stores(sound, part)
    (sound / "ids.txt").write_text("".join(f"{doc_id(number)}\n" for number in range(DOCUMENTS)))
    done = call("repair", "--dir", sound, "--strategy", "most-recent", "--ids-file", sound / "ids.txt")
    assert "would change 40 of 40 documents (100%; max_changed is 0.5, which is 50%)" in done.complaint


def test_a_mass_change_that_is_refused_is_told_in_json(sound: Path, call: Callable[..., Done]) -> None:
    """One JSON object as after any repair: nothing done, why, and how much it would have been."""
    configure(sound, "max_deletes = 0.1", "max_deletes = 0.0")

    async def delete_one(application: Application) -> None:
        await application.put(application.stores.text, Document.tombstone(doc_id(3), number=2))

    with_stores(sound, delete_one)
    arguments = ["repair", "--dir", sound, "--strategy", "text", "--json"]
    done = call(*arguments)
    assert (1, "repair", "mass-change") == (done.status, done.record["type"], done.record["stopped"])
    assert {"documents": 40, "changes": 1, "deletes": 1} == done.record["refused"]
    assert (0, {"text": 0, "vector": 0, "cache": 0}) == (done.record["documents"], done.record["written"])
    assert "nothing was begun: the repair would delete 1 of 40 documents" in done.err
    assert "allow_mass" not in done.err
    lifted = call(*arguments, "--allow-mass")  # the control
    assert (0, None, None) == (lifted.status, lifted.record["stopped"], lifted.record["refused"])


def test_an_id_that_is_named_twice_counts_once(damaged: Path, call: Callable[..., Done]) -> None:
    """On the command line and in a file."""
    base = ["repair", "--dir", damaged, "--strategy", "most-recent", "--json"]
    assert 1 == call(*base, "doc-03", "doc-03").record["documents"]
    (damaged / "ids.txt").write_text("doc-01\ndoc-05\n\ndoc-01\n")
    assert 2 == call(*base, "--ids-file", damaged / "ids.txt").record["documents"]


@pytest.mark.parametrize("edited", ["documents", "live"])
def test_an_edited_plan_does_not_lift_the_limits(damaged: Path, call: Callable[..., Done], edited: str) -> None:
    """They are held against what the stores hold, whatever header and lines say of it."""
    configure(damaged, "max_deletes = 0.1", "max_deletes = 0.0")
    before = contents(damaged)
    plan = damaged / "plan.jsonl"
    assert 1 == call("plan", "--dir", damaged, "--strategy", "most-recent", "--out", plan).status
    arguments = ["repair", "--dir", damaged, "--plan", plan]
    untouched = call(*arguments)
    assert (1, True) == (untouched.status, "would delete 1 of 39 documents" in untouched.err)  # the control
    lines = [json.loads(line) for line in plan.read_text().splitlines()]
    if edited == "documents":
        lines[0]["counts"]["documents"] = 10**9
    else:
        lines[0]["counts"]["deletes"] = 0
        for line in lines[1:]:
            line["live"] = []
    plan.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = call(*arguments)
    if edited == "documents":
        assert (2, True) == (done.status, "announces 1000000000 documents, and the stores hold 98 at most" in done.err)
    else:
        assert (1, True) == (done.status, "would delete 1 of 39 documents" in done.err)
        dry = call(*arguments, "--dry-run")
        assert "repair would refuse this, because it would delete 1 of 39 documents" in dry.err
    assert before == contents(damaged)


def test_the_time_is_limited(damaged: Path, troubled: Callable[..., dict[str, str]]) -> None:
    """After --max-duration no document is begun, those under way end, and the summary says so."""
    env = troubled(damaged, method="write", delay=1.0)
    done = run(
        "repair",
        "--dir",
        damaged,
        "--strategy",
        "text",
        "--concurrency",
        "1",
        "--max-duration",
        "1.2s",
        "--json",
        env=env,
    )
    assert (1, "max-duration") == (done.status, done.record["stopped"])
    assert "--max-duration is over" in done.err
    assert 0 < done.record["documents"] < 7
    assert 0 == done.record["outcomes"]["cancelled"]


def test_one_run_at_a_time(
    damaged: Path,
    troubled: Callable[..., dict[str, str]],
    start: Callable[..., subprocess.Popen[bytes]],
    fifo: Callable[[str], Fifo],
    call: Callable[..., Done],
) -> None:
    """A second repair, resolve or purge is told the pid of the first; looking is allowed; afterwards all is free."""
    reached, release = fifo("reached"), fifo("release")
    plain = (damaged / "trio-repair.toml").read_text()
    env = troubled(damaged, method="write", reached=str(reached.path), release=str(release.path))
    process = start("repair", "--dir", damaged, "--strategy", "most-recent", env=env)
    reached.wait()
    (damaged / "trio-repair.toml").write_text(plain)
    for command in (
        ["repair", "--strategy", "text"],
        ["resolve", "doc-11", "--take", "text"],
        ["purge", "--older-than", "1d"],
    ):
        done = call(*command, "--dir", damaged)
        assert 3 == done.status
        assert f"(process {process.pid})" in done.complaint
    assert 1 == call("check", "--dir", damaged, "--summary").status
    release.release()
    process.communicate(timeout=30)
    assert 1 == process.returncode
    assert 0 == call("resolve", "doc-11", "--take", "text", "--dir", damaged).status
    assert {} == findings(damaged)


def test_receipts_that_cannot_be_written_end_the_run(damaged: Path) -> None:
    """A full quota: no new documents, what was begun is finished, the loss is counted, status 1."""
    receipts = damaged / "receipts.jsonl"
    with receipts.open("wb") as file:  # a sparse file, as large as the quota lets one be
        file.write(b'{"type": "result", "doc_id": "doc-01"}\n')
        file.seek((64 << 20) - 1)
        file.write(b"\n")
    done = run(
        "repair",
        "--dir",
        damaged,
        "--strategy",
        "most-recent",
        "--concurrency",
        "1",
        "--receipts",
        receipts,
        "--json",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20)),
    )
    assert (1, "receipts") == (done.status, done.record["stopped"])
    assert done.record["receipts_lost"] == done.record["documents"] < 7
    assert f"{receipts}: receipts cannot be written: File too large" in done.err


def test_kill_9_leaves_stores_that_the_next_run_repairs(
    damaged: Path,
    troubled: Callable[..., dict[str, str]],
    start: Callable[..., subprocess.Popen[bytes]],
    fifo: Callable[[str], Fifo],
    call: Callable[..., Done],
) -> None:
    """Killed in the middle of a write: the lock is free, no file is damaged, receipts are whole lines, all gets done."""
    reached = fifo("reached")
    plain = (damaged / "trio-repair.toml").read_text()
    env = troubled(damaged, method="write", reached=str(reached.path), hangs=True)
    receipts = damaged / "receipts.jsonl"
    process = start("repair", "--dir", damaged, "--strategy", "most-recent", "--receipts", receipts, env=env)
    reached.wait()
    process.kill()
    process.wait()
    receipts_of(receipts)
    for name in ("text.db", "vector.db", "cache.db"):
        assert "ok" == with_database(damaged / name, lambda connection: connection.pragma("integrity_check"))
    assert len(findings(damaged)) > 1  # the control: it was killed before it was done
    (damaged / "trio-repair.toml").write_text(plain)
    assert 1 == call("repair", "--dir", damaged, "--strategy", "most-recent", "--receipts", receipts).status
    assert findings(damaged) == CONFLICT


def test_a_store_that_hangs_does_not_hang_the_command(damaged: Path, troubled: Callable[..., dict[str, str]]) -> None:
    """A thread that never returns: the command ends by itself, names the store, and does what can be done."""
    configure(damaged, "store_call_timeout = 5.0", "store_call_timeout = 1.5\ngrace = 0.2\nunavailable_timeout = 0.5")
    env = troubled(damaged, method="observe", hangs=True)
    done = run("repair", "--dir", damaged, "--strategy", "text", "--timeout", "4s", doc_id(1), doc_id(3), env=env)
    assert 1 == done.status
    assert all(line.startswith("trio-repair: ") for line in done.err.splitlines())
    assert "the vector store hung; calls given up after 1.5 s: " in done.err
    assert doc_id(3) in done.out
    looked = run("show", "--dir", damaged, doc_id(1), env=env)
    assert 3 == looked.status
    assert "vector store: did not answer within 1.5 s" in looked.err


@pytest.mark.parametrize("interrupts", [1, 2])
def test_interrupts(
    damaged: Path,
    troubled: Callable[..., dict[str, str]],
    start: Callable[..., subprocess.Popen[bytes]],
    fifo: Callable[[str], Fifo],
    interrupts: int,
) -> None:
    """The first Ctrl-C finishes what runs, the second cancels it; either leaves valid stores and a true summary."""
    reached, release = fifo("reached"), fifo("release")
    configure(damaged, "store_call_timeout = 5.0", "store_call_timeout = 30.0\ngrace = 0.2")
    plain = (damaged / "trio-repair.toml").read_text()
    env = troubled(damaged, method="write", reached=str(reached.path), release=str(release.path))
    receipts = damaged / "receipts.jsonl"
    process = start(
        "repair",
        "--dir",
        damaged,
        "--strategy",
        "most-recent",
        "--concurrency",
        "1",
        "--json",
        "--receipts",
        receipts,
        env=env,
    )
    reached.wait()
    assert process.stderr is not None
    process.send_signal(2 if interrupts == 2 else 15)
    heard = ""
    while "repairs that are still finished: 1; interrupt again to cancel them" not in heard:
        line = process.stderr.readline().decode()
        assert line, heard
        heard += line
    if interrupts == 1:
        release.release()
    else:
        process.send_signal(2)
    out, err = process.communicate(timeout=30)
    assert 130 == process.returncode
    record = json.loads(out)
    outcomes = record["outcomes"]
    assert ["interrupted", "cancelled"][interrupts - 1] == record["stopped"]
    assert sum(outcomes.values()) == record["documents"] == len(receipts_of(receipts))
    assert outcomes["cancelled"] > 0
    repaired = {receipt["doc_id"] for receipt in receipts_of(receipts) if receipt["outcome"] == "repaired"}
    assert set(DAMAGE) - repaired == set(findings(damaged))
    # The one that ran was finished, or not; whatever was repaired before it reached the vector store counts too.
    assert (interrupts == 1) == bool({doc_id(number) for number in (1, 3, 9)} & repaired)
    said = b"the repairs under way were finished" if interrupts == 1 else b"running repairs were cancelled"
    assert said in err
    (damaged / "trio-repair.toml").write_text(plain)
    assert 1 == run("repair", "--dir", damaged, "--strategy", "most-recent").status
    assert findings(damaged) == CONFLICT
