"""`trio-repair demo` as it is installed: what it tells, what it leaves, and what it refuses."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from demo_support import proof_of

from trio_repair import RepairOutcome
from trio_repair.cli import _demo
from trio_repair.cli._output import Output
from trio_repair.demo.damage import STORIES


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "trio_repair", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """One run on 300 documents: the directory and what was printed."""
    directory = tmp_path_factory.mktemp("command") / "demo"
    done = run("demo", "--dir", directory, "--documents", "300", "--seed", "3")
    assert (0, "") == (done.returncode, done.stderr)
    return directory, done.stdout


def test_it_proves_what_it_did(told):
    """It ends with status 0 and tells of damage, findings, repairs, conflicts, choices and the proof."""
    _, out = told
    for sentence in (
        "300 docstrings of Python",
        f"{len(STORIES)} documents, as dual writes do",
        "Every damaged document was found, with what is wrong, and no other.",
        f"{len(STORIES) - 1} documents repaired",
        "Conflicts left: 1.",
        "No divergence is left.",
        "A second repair, of all 299 documents, wrote nothing",
        "by plain SQL",
        "All of it is proved",
    ):
        assert sentence in re.sub(r"\s+\d+\.\d s\n", " ", out).replace("\n         ", " ").replace("  ", " ")


def test_it_fits_80_columns(told):
    """No line is wider than 80 columns but one that the directory's own name makes so, and none is empty-handed."""
    directory, out = told
    assert [] == [line for line in out.splitlines() if len(line) > 80 and str(directory) not in line]


def test_the_directory_is_left_in_order(told):
    """The files agree by plain SQL, and the command to check them finds nothing."""
    directory, _ = told
    proof = proof_of(directory)
    assert proof.holds
    assert 297 == proof.live
    done = run("check", "--dir", directory)
    assert (0, "") == (done.returncode, done.stderr)


def test_the_commands_to_try_next_work(told):
    """Each command line that is printed at the end runs as it stands."""
    _, out = told
    after = out.partition("Try next:")[2].replace("\\\n", "")
    lines = [shlex.split(line) for line in after.splitlines() if line.strip()]
    assert 3 == len(lines)
    for program, *arguments in lines:
        assert "trio-repair" == program
        assert 0 == run(*arguments).returncode, arguments


def test_it_replaces_its_own_files_only(told, tmp_path):
    """Run again in the same directory it starts afresh, and leaves a stranger's file there alone."""
    directory, _ = told
    (directory / "mine.txt").write_text("kept")
    done = run("demo", "--dir", directory, "--documents", "200", "--seed", "4")
    assert 0 == done.returncode
    assert "kept" == (directory / "mine.txt").read_text()


def test_too_few_documents_are_refused(tmp_path):
    """With too few documents for each kind of damage it says so in one line, makes nothing, and ends with 2."""
    done = run("demo", "--dir", tmp_path / "demo", "--documents", "199")
    assert (2, "", 1) == (done.returncode, done.stdout, len(done.stderr.splitlines()))
    assert "at least 200" in done.stderr
    assert [] == list(tmp_path.iterdir())


def test_a_foreign_directory_is_refused(tmp_path):
    """A directory that the demo did not make is refused in one line, stays as it is, and the status is 2."""
    (tmp_path / "text.db").write_text("precious")
    done = run("demo", "--dir", tmp_path, "--documents", "300")
    assert (2, "", 1) == (done.returncode, done.stdout, len(done.stderr.splitlines()))
    assert "not made by the demo" in done.stderr
    assert ["text.db"] == [path.name for path in tmp_path.iterdir()]


def test_interrupted_it_leaves_valid_stores(tmp_path):
    """Ctrl-C after the stores were made ends it with 130, and every file can be read to its end."""
    directory = tmp_path / "demo"
    with subprocess.Popen(
        command("demo", "--dir", directory, "--documents", "1000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"make"):
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (130, True) == (process.returncode, b"interrupted" in err)
    assert 900 < proof_of(directory).live <= 1000


@pytest.fixture
def in_process(tmp_path, capsys):
    """Run the demo in this process, where it can be tampered with."""

    def in_process() -> str:
        console = Output(json=False).out
        with pytest.raises(ExceptionGroup) as caught:
            trio.run(_demo.run_demo, tmp_path / "demo", 200, 3, console)
        error: BaseException = caught.value
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, _demo.NotProved)
        assert "proved" not in capsys.readouterr().out
        return str(error)

    return in_process


def test_control_damage_that_is_not_found_is_told(in_process, monkeypatch):
    """If check finds other documents than were damaged, the demo says so and proves nothing."""
    real = _demo.damage_stores

    async def understated(*args, **kwargs):
        return (await real(*args, **kwargs))[1:]

    monkeypatch.setattr(_demo, "damage_stores", understated)
    assert "check found not exactly the damage" in in_process()


def test_control_a_wrong_end_state_is_told(in_process, monkeypatch):
    """If documents end at another version than they must, the demo says so although the stores agree."""
    real = _demo._expected

    def other(*args):
        expected = real(*args)
        doc_id = next(iter(expected))
        return {**expected, doc_id: expected[doc_id]._replace(number=99)}

    monkeypatch.setattr(_demo, "_expected", other)
    assert "a document is not what it must be" in in_process()


def test_control_a_second_repair_that_writes_is_told(in_process, monkeypatch):
    """If the second repair did anything, the demo says so."""
    real = _demo._run_jobs

    async def busy(*args):
        results = await real(*args)
        if args[-1] == "repairing again":
            import attrs

            results[0] = attrs.evolve(results[0], outcome=RepairOutcome.REPAIRED)
        return results

    monkeypatch.setattr(_demo, "_run_jobs", busy)
    assert "a second repair found something to do" in in_process()
