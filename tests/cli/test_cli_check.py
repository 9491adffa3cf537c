"""`check` as an installed command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from cli_support import DAMAGE, DOCUMENTS, Application, Done, Fifo, environment, findings, run, with_stores

from trio_repair import CheckStatistics, ContentDefinition, Document, DocumentVersion
from trio_repair.cli._check import Findings, _verdict

HOSTILE_ID = "\x1b[31m[bold]x\u202e\n; rm"


def test_stores_that_agree(sound: Path) -> None:
    """Status 0 and one sentence, by the console script that pip installs."""
    script = Path(sys.executable).with_name("trio-repair")
    done = subprocess.run([script, "check", "--dir", sound], capture_output=True, check=False, env=environment())
    assert (0, f"all {DOCUMENTS} documents are consistent\n".encode(), b"") == (
        done.returncode,
        done.stdout,
        done.stderr,
    )


def test_the_table_counts_by_kind_and_names_documents(damaged: Path) -> None:
    """It fits 80 columns, is plain when piped, and says what is wrong in each store."""
    done = run("check", "--dir", damaged, "--limit", "3", env=environment(COLUMNS="80"))
    assert (1, "") == (done.status, done.err)
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.out
    assert ["stale", "2", "1", "1"] in [line.split() for line in lines]
    assert "the first 3 of 7" in lines
    assert [True, True, True, False] == [f"doc-{number:02}" in done.out for number in (1, 3, 5, 7)]
    assert "7 of 40 documents diverge" == lines[-1]


def test_json_is_a_line_for_each_divergence_and_a_summary(damaged: Path, call: Callable[..., Done]) -> None:
    """Every damaged document and no other, in the documented form; `--summary` leaves the documents out."""
    records = call("check", "--dir", damaged, "--json").records
    assert ["divergence"] * 7 + ["summary"] == [record["type"] for record in records]
    assert DAMAGE == {
        record["doc_id"]: {f"{finding['store']} {finding['kind']}" for finding in record["findings"]}
        for record in records[:-1]
    }
    assert DAMAGE == findings(damaged)
    stale = next(record for record in records[:-1] if record["doc_id"] == "doc-03")
    assert [{"kind": "stale", "store": "vector"}] == stale["findings"]
    assert {"text": 2, "vector": 1} == {name: stale["stores"][name]["version"]["number"] for name in ("text", "vector")}
    assert {"presence": "absent", "version": None, "intact": True, "embedding": None, "token": "absent"} == stale[
        "stores"
    ]["cache"]
    summary = records[-1]
    assert summary == {
        "type": "summary",
        "documents": 40,
        "divergent": 7,
        "by_kind": {
            "missing": 1,
            "stale": 2,
            "orphan": 1,
            "undeleted": 1,
            "conflict": 1,
            "incomplete": 0,
            "stale-embedding": 0,
            "stale-cache": 1,
        },
        "by_store": {
            "text": {"stale": 1},
            "vector": {"missing": 1, "stale": 1, "orphan": 1, "undeleted": 1, "conflict": 1},
            "cache": {"stale-cache": 1},
        },
        "unsettled": 0,
        "complete": True,
        "last_id": "doc-39",
        "seconds": summary["seconds"],
        "comparison": {"text": "digest", "vector": "digest", "cache": "digest"},
    }
    short = call("check", "--dir", damaged, "--json", "--summary").record
    assert summary | {"seconds": 0} == short | {"seconds": 0}


async def _add_hostile(application: Application) -> None:
    text = "hostile"
    version = DocumentVersion(number=1, digest=ContentDefinition().digest(text, {}))
    await application.put(application.stores.text, Document(doc_id=HOSTILE_ID, text=text, version=version))


def test_a_hostile_id_is_shown_and_not_obeyed(sound: Path, call: Callable[..., Done]) -> None:
    """Terminal escapes, line breaks, bidi controls and markup reach neither a terminal nor a log as such."""
    with_stores(sound, _add_hostile)
    done = run("check", "--dir", sound, env=environment(FORCE_COLOR="1", TERM="xterm", COLUMNS="200"))
    shown = repr(HOSTILE_ID)
    assert shown in done.out
    assert "\x1b[31m[bold]" not in done.out
    assert "\u202e" not in done.out
    assert "\x1b" in done.out  # the control: colour was on, so the escapes that are there are ours
    assert HOSTILE_ID == call("check", "--dir", sound, "--json").records[0]["doc_id"]
    assert shown in run("check", "--dir", sound, env=environment(PYTHONIOENCODING="ascii", COLUMNS="200")).out
    shown_alone = call("show", "--dir", sound, HOSTILE_ID)
    assert shown in shown_alone.out
    assert "\x1b" not in shown_alone.out


def test_a_reader_that_leaves_is_nothing_to_complain_of(damaged: Path) -> None:
    """`check | head` says nothing on stderr, with and without --json."""
    for option in ([], ["--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, "-m", "trio_repair", "check", "--dir", damaged, *option],
            stdout=writing,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
        )
        os.close(writing)
        assert (1, b"") == (done.returncode, done.stderr)


@pytest.mark.parametrize("words", [["--help"], ["check", "--help"]])
def test_a_reader_that_leaves_the_help_is_nothing_to_complain_of(words: list[str]) -> None:
    """`--help | head -1`: quiet, status 0, as if it had been read to its end."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "trio_repair", *words]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment(), check=False)
    os.close(writing)
    assert (0, b"") == (done.returncode, done.stderr)


def test_a_full_disk_under_stdout_is_told(damaged: Path) -> None:
    """Results that could not be written were not given: one line, and not status 0."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "trio_repair", "check", "--dir", damaged],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
        )
    complaint = b"trio-repair: cannot write to standard output: No space left on device\n"
    assert (1, complaint) == (done.returncode, done.stderr)


def test_a_store_that_cannot_be_read_is_not_an_empty_one(
    damaged: Path, troubled: Callable[..., dict[str, str]]
) -> None:
    """Status 3, the store is named, nothing is called missing, and the summary says that it is not complete."""
    env = troubled(damaged, method="open_scan", fails=True)
    done = run("check", "--dir", damaged, "--json", env=env)
    assert 3 == done.status
    assert not done.record["complete"]
    assert "the network is down" in done.err
    assert "vector store" in done.err
    assert 1 == len(done.err.splitlines())


def test_an_interrupted_check_says_how_far_it_came(
    damaged: Path,
    troubled: Callable[..., dict[str, str]],
    start: Callable[..., subprocess.Popen[bytes]],
    fifo: Callable[[str], Fifo],
) -> None:
    """Ctrl-C: status 130, and a summary that does not claim to be complete."""
    reached = fifo("reached")
    env = troubled(damaged, method="open_scan", reached=str(reached.path), hangs=True)
    process = start("check", "--dir", damaged, env=env)
    reached.wait()
    process.send_signal(2)
    out, err = process.communicate(timeout=30)
    assert (130, b"trio-repair: interrupted\n") == (process.returncode, err)
    assert b"0 of 0 documents diverge; the check did not come to its end" in out


def test_a_check_after_an_id(damaged: Path, call: Callable[..., Done]) -> None:
    """Only what comes behind it is looked at, and the words say so; an id that can be none is refused."""
    everything = call("check", "--dir", damaged, "--json").records
    after = everything[2]["doc_id"]
    rest = call("check", "--dir", damaged, "--json", f"--after={after}").records
    assert sorted(record["doc_id"] for record in everything[:-1] if record["doc_id"] > after) == sorted(
        record["doc_id"] for record in rest[:-1]
    )
    assert everything[-1]["documents"] > rest[-1]["documents"] > 0
    assert everything[-1]["last_id"] == rest[-1]["last_id"]
    last = everything[-1]["last_id"]
    done = call("check", "--dir", damaged, "--after", last)
    assert (0, f"all 0 documents after {last} are consistent\n") == (done.status, done.out)
    refused = run("check", "--dir", damaged, "--after", "")
    assert 2 == refused.status
    assert "--after ''" in refused.err


def test_a_check_that_is_left_early_says_where_to_go_on(damaged: Path) -> None:
    """A reader that leaves gets no more; a failure in the middle leaves an id that `--after` takes, quoted if need be."""
    statistics = CheckStatistics(documents=7, divergent=0, by_kind={}, unsettled=0, last_id="it's 7", complete=False)
    assert [
        "0 of 7 documents diverge; the check did not come to its end",
        """to go on from there: --after='it'"'"'s 7'""",
    ] == _verdict(Findings(most_shown=0), statistics, None)
    hostile = attrs.evolve(statistics, last_id=HOSTILE_ID)
    assert (
        f"to go on behind {HOSTILE_ID!r}, pass --after the last_id that --json gives"
        == (_verdict(Findings(most_shown=0), hostile, "a")[-1])
    )
    assert 1 == len(_verdict(Findings(most_shown=0), attrs.evolve(statistics, last_id=None), None))


def test_a_count_that_fails_does_not_fail_a_check(damaged: Path, troubled: Callable[..., dict[str, str]]) -> None:
    """How many documents there are is for the progress alone."""
    env = troubled(damaged, method="count", fails=True)
    done = run("check", "--dir", damaged, env=env)
    assert (1, "") == (done.status, done.err)
    assert "7 of 40 documents diverge" in done.out
