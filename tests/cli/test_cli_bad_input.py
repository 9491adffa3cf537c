"""Everything wrong that an operator can hand to the command: one clear line, status 2 or 3, and nothing done."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_support import Done, configure, contents, environment, run, with_database


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["chekc"], 'Unknown command "chekc". Did you mean "check"?'),
        (["check", "--sumary"], "Unknown option: --sumary. Did you mean --summary?"),
        (["check", "extra"], "Unused Tokens: ['extra']"),
        (["check", "--config"], "--config requires an argument"),
        (["check", "--config", "a", "--dir", "b"], "--config and --dir both name the configuration"),
        (["check", "--limit", "-1"], "--limit: must be at least 0, not -1"),
        (["check", "--limit", "many"], "--limit: must be an integer, not 'many'"),
        (["show"], 'Command "show" parameter DOCUMENT requires an argument'),
        (["plan", "--strategy", "text"], 'Command "plan" parameter --out requires an argument'),
        (["resolve", "doc-01"], 'Command "resolve" parameter --take requires an argument'),
        (["resolve", "doc-01", "--take", "cache"], 'Invalid value "cache" for --take. Choose from: "text"'),
        (["search", "x", "--in", "disk"], 'Invalid value "disk" for --in. Choose from: "text"'),
        (["search", "x", "--limit", "0"], "--limit: must be at least 1, not 0"),
        (["purge"], 'Command "purge" parameter --older-than requires an argument'),
        (["purge", "--older-than", "30"], "--older-than: needs a unit; write 30d"),
        (["purge", "--older-than", "-1d"], "--older-than: must be a finite duration of at least 0"),
        (["repair", "--strategy", "newest"], 'Invalid value "newest" for --strategy. Choose from: "text", "vector"'),
        (["repair", "--strategy", "txet"], 'Did you mean "text"?'),
        (["repair", "--timeout", "-1"], "--timeout: must be a finite duration of more than 0, not '-1'"),
        (["repair", "--timeout", "0"], "--timeout: must be a finite duration of more than 0, not '0'"),
        (["repair", "--timeout", "nan"], "--timeout: must be a duration such as 30s"),
        (["repair", "--timeout", "inf"], "--timeout: must be a duration such as 30s"),
        (["repair", "--max-duration", "soon"], "--max-duration: must be a duration such as 30s"),
        (["repair", "--concurrency", "0"], "--concurrency: must be an int of at least 1, not 0"),
        (["repair", "--concurrency", "-3"], "--concurrency: must be an int of at least 1, not -3"),
        (["repair", "--max-retries", "-1"], "--max-retries: must be at least 0, not -1"),
        (["repair", "x", "--ids-file", "y"], "document ids and --ids-file cannot be combined"),
        (["repair", "x", "--plan", "y"], "document ids and --plan cannot be combined"),
        (["repair", "--dry-run", "--receipts", "y"], "--dry-run and --receipts cannot be combined"),
        (["repair", "--plan", "nowhere.jsonl"], "--plan: cannot read nowhere.jsonl: No such file or directory"),
        (["repair", "--ids-file", "nowhere.txt"], "--ids-file: cannot read nowhere.txt: No such file or directory"),
        (["demo", "--documents", "0"], "--documents: must be at least 1, not 0"),
        (["repair", "--concurrency", "1.5"], "--concurrency: must be an integer, not '1.5'"),
        (["repair", "--max-retries", "0.5"], "--max-retries: must be an integer, not '0.5'"),
        (["check", "--limit", "1.5"], "--limit: must be an integer, not '1.5'"),
        (["check", "--limit", "0x10"], "--limit: must be an integer, not '0x10'"),
        (["check", "--limit", "1_0"], "--limit: must be an integer, not '1_0'"),
        (["check", "--limit", "9" * 40], "--limit: must be an integer"),
        (["demo", "--documents", "200.5"], "--documents: must be an integer, not '200.5'"),
        (["demo", "--documents", "199"], "--documents: 199 are too few to show each kind of damage; at least 200"),
        (["demo", "--seed", "1.5"], "--seed: must be an integer, not '1.5'"),
        (["simulate", "--seed", "1.5"], "--seed: must be an integer, not '1.5'"),
        (["simulate", "--runs", "1.5"], "--runs: must be an integer, not '1.5'"),
        (["simulate", "--runs", "0"], "runs: must be at least 1, not 0"),
        (["simulate", "--hours", "nan"], "hours: must be more than 0"),
        (["search", ""], "QUERY: is empty; name at least one word"),
        (["search", " \t\n"], "QUERY: is empty; name at least one word"),
        (["search", "", "--in", "vector"], "QUERY: is empty; name at least one word"),
        (["search", "", "--in", "cache"], "document id '': is empty"),
        (
            ["search", "x", "--in", "vector", "--limit", "5000"],
            "--limit: must be at most 4096, not 5000 (the vector store)",
        ),
        (["search", "document", "--limit", "5000"], "--limit: must be at most 4096, not 5000 (the vector store)"),
        (["purge", "--older-than", "800000d"], "--older-than: reaches back to before the calendar begins"),
        (["purge", "--older-than", "9999999d"], "--older-than: reaches back to before the calendar begins"),
        (["purge", "--older-than", "1e300d"], "--older-than: reaches back to before the calendar begins"),
    ],
)
def test_wrong_usage_is_one_line(
    sound: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Done], arguments: list[str], complaint: str
) -> None:
    """Status 2, nothing on stdout, the option named, and no traceback."""
    monkeypatch.chdir(sound)
    done = call(*arguments)
    assert 2 == done.status
    assert complaint in done.complaint


def test_no_command_at_all_shows_the_help(call: Callable[..., Done]) -> None:
    """It is wrong usage all the same; asking for the help is not."""
    nothing, asked = call(), call("--help")
    assert (2, 0) == (nothing.status, asked.status)
    assert nothing.out == asked.out
    assert "trio-repair check --dir demo" in asked.out
    assert "130  interrupted" in asked.out
    for command in ("check", "plan", "repair", "show", "resolve", "purge", "search", "init", "demo"):
        assert "Examples:" in call(command, "--help").out


@pytest.mark.parametrize(
    ("doc_id", "complaint"),
    [
        ("", "document id '': is empty"),
        ("x" * 2049, "is 2049 bytes of UTF-8; at most 2048 are allowed"),
        ("é" * 1025, "is 2050 bytes of UTF-8"),
        ("\ud800", "document id '\\ud800': holds a lone surrogate and is not valid UTF-8"),
        ("a\0b", "document id 'a\\x00b': holds a NUL character"),
    ],
)
def test_ids_that_can_be_none_are_refused(sound: Path, call: Callable[..., Done], doc_id: str, complaint: str) -> None:
    """By every command that takes one, before a store is opened."""
    shutil.rmtree(sound / "nothing", ignore_errors=True)
    for command in (["repair", "--strategy", "text"], ["show"], ["resolve", "--take", "text"]):
        done = call(*command, "--dir", sound, doc_id)
        assert 2 == done.status
        assert complaint in done.complaint
        assert len(done.complaint) < 200


def test_an_id_that_is_not_utf_8_is_refused(sound: Path) -> None:
    """Bytes from the shell arrive as surrogates; the line on stderr is plain text all the same."""
    done = run("repair", "--dir", sound, "--strategy", "text", b"doc-\xff")
    assert (2, "document id 'doc-\\udcff': holds a lone surrogate and is not valid UTF-8") == (
        done.status,
        done.complaint,
    )


@pytest.mark.parametrize(
    "doc_id",
    ["'; DROP TABLE documents; --", '"', "../../etc/passwd", "%s%n{0}", "-rf", "--json", "\x1b[2J", "x" * 2048],
)
def test_odd_ids_are_only_ids(sound: Path, call: Callable[..., Done], doc_id: str) -> None:
    """Quotes, paths, formats, options and escapes are looked up, found nowhere, and touch nothing."""
    before = contents(sound)
    done = call("repair", "--dir", sound, "--strategy", "text", "--json", "--", doc_id)
    assert (1, doc_id) == (done.status, done.record["failures"][0]["doc_id"])
    assert before == contents(sound)


def test_the_configuration_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Done]
) -> None:
    """Missing, by either option or none: what to do is said."""
    monkeypatch.chdir(tmp_path)
    for where in ([], ["--dir", "."], ["--config", "trio-repair.toml"]):
        done = call("check", *where)
        assert 2 == done.status
        assert "trio-repair.toml: there is no such configuration file; `trio-repair init" in done.complaint


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[repair]", "[repair", "line 1: is not valid TOML"),
        ("settle = 0.05", "setle = 0.05", "line 2: repair.setle: unknown key; did you mean 'settle'?"),
        ("settle = 0.05", "settle = -1", "line 2: repair.settle: must be at least 0 seconds"),
        (
            '"sqlite-vector"',
            '"sqlite-vectro"',
            "line 12: stores.vector.kind: no such kind of store, 'sqlite-vectro'; did you mean 'sqlite-vector'?",
        ),
        ('path = "vector.db"', 'file = "vector.db"', "line 13: stores.vector.file: "),
        ('path = "text.db"', "path = 3", "line 9: stores.text.path: must be a string"),
        ("dimension = 32", "dimension = 0", "line 17: stores.vector.embedder.dimension: "),
        ("dimension = 32", "dimensoin = 32", "line 17: stores.vector.embedder.dimensoin: "),
        ('kind = "hashing"', 'kind = "magic"', "line 16: stores.vector.embedder.kind: "),
    ],
)
def test_a_wrong_configuration_is_named_by_line_and_key(
    sound: Path, call: Callable[..., Done], old: str, new: str, complaint: str
) -> None:
    """Also where the mistake is found by the store itself."""
    configure(sound, old, new)
    done = call("check", "--dir", sound)
    assert 2 == done.status
    assert complaint in done.complaint
    assert str(sound / "trio-repair.toml") in done.complaint


def _missing(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _foreign(path: Path) -> None:
    path.write_text("this is a diary, and no database")


def _other_database(path: Path) -> None:
    path.unlink()
    with_database(path, lambda connection: connection.execute("CREATE TABLE diary (day TEXT)").get)


def _other_version(path: Path) -> None:
    with_database(path, lambda connection: connection.execute("PRAGMA user_version = 99").get)


def _other_role(path: Path) -> None:
    shutil.copy(path.with_name("text.db" if path.name != "text.db" else "cache.db"), path)


@pytest.mark.parametrize(
    "spoil", [_missing, _directory, _empty, _foreign, _other_database, _other_version, _other_role]
)
@pytest.mark.parametrize("name", ["text", "vector"])
def test_a_store_file_that_cannot_be_used_is_left_as_it_is(
    sound: Path, call: Callable[..., Done], spoil: Callable[[Path], None], name: str
) -> None:
    """Missing, foreign, of another version or another store's: status 2, the file named and unchanged."""
    path = sound / f"{name}.db"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    for command in (["check"], ["repair", "--strategy", "text", "--allow-mass"]):
        done = call(*command, "--dir", sound)
        assert 2 == done.status
        assert f"{name} store: " in done.complaint
        assert str(path) in done.complaint
    assert before == (path.read_bytes() if path.is_file() else None)


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process writes to a database and does not end."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert b"locked\n" == process.stdout.readline()
        yield
        process.communicate(b"")


def test_a_locked_store_is_told_and_nothing_is_lost(damaged: Path, call: Callable[..., Done]) -> None:
    """Looking still works; the repair fails by name, and works once the lock is gone."""
    configure(damaged, "[repair]", "[repair]\nunavailable_timeout = 0.5")
    command = ["repair", "--dir", damaged, "--strategy", "most-recent", "--max-retries", "0", "doc-03"]
    with locked(damaged / "vector.db"):
        assert 1 == call("check", "--dir", damaged, "--summary").status
        done = call(*command)
        assert 1 == done.status
        assert "locked by another process" in done.out
    assert 0 == call(*command).status


@pytest.mark.parametrize("left", [600, 4096, 5000])
def test_a_store_file_that_was_cut_short_is_called_so(sound: Path, call: Callable[..., Done], left: int) -> None:
    """Not "the first page is damaged": the first page is whole, and what comes after it is not there."""
    path = sound / "text.db"
    for name in ("-wal", "-shm"):
        assert not Path(f"{path}{name}").exists()
    os.truncate(path, left)
    done = call("check", "--dir", sound)
    assert 2 == done.status
    assert (
        f"{path} is damaged: it was cut short, its {left} bytes are fewer than its header announces" in done.complaint
    )
    content = bytearray(path.read_bytes())
    content[16:100] = bytes(84)
    path.write_bytes(content)
    assert "its first page is damaged" in call("check", "--dir", sound).complaint  # the control


def test_complaints_speak_to_an_operator(sound: Path, call: Callable[..., Done]) -> None:
    """No argument of the library's functions is named: an operator has commands and options."""
    (sound / "text.db").unlink()
    missing = call("check", "--dir", sound)
    (sound / "text.db").touch()
    empty = call("check", "--dir", sound)
    assert "does not exist; look at the path, or make one with: trio-repair create text" in missing.err
    assert "is empty and not a store; remove it, then: trio-repair create text" in empty.err
    assert "create=" not in missing.err + empty.err
    assert "at least 200" in call("demo", "--help").out


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize("make", [_fifo, _device])
def test_what_is_no_file_is_refused_at_once(
    damaged: Path, call: Callable[..., Done], make: Callable[..., None]
) -> None:
    """A pipe or device for receipts, plans and the lock: status 2, no waiting, nothing replaced, nothing repaired."""
    before = contents(damaged)
    place = damaged / "place"
    make(place)
    kind = stat.S_IFMT(place.stat().st_mode)
    repair = ["repair", "--dir", damaged, "--strategy", "most-recent"]
    for arguments, complaint in (
        ([*repair, "--receipts", place], f"--receipts: {place} is not a regular file"),
        (["plan", "--dir", damaged, "--strategy", "text", "--out", place], f"--out: {place} is not a regular file"),
        (["repair", "--dir", damaged, "--plan", place], f"--plan: {place} is not a regular file"),
    ):
        done = call(*arguments)
        assert (2, True) == (done.status, done.complaint.startswith(complaint))
    assert kind == stat.S_IFMT(place.stat().st_mode)
    lock = damaged / "trio-repair.toml.lock"
    lock.unlink(missing_ok=True)
    os.mkfifo(lock)
    done = call(*repair)
    assert (2, True) == (done.status, "it is not a regular file" in done.complaint)
    lock.unlink()
    assert before == contents(damaged)


@pytest.mark.parametrize(
    "foreign",
    ['{"name": "somebody\'s package"}\n', "{}\n", "{\n", '{"type": "result", "of": "a benchmark"}\n', "[1]\n", "\n"],
)
def test_receipts_follow_receipts_only(damaged: Path, call: Callable[..., Done], foreign: str) -> None:
    """JSON of somebody else's is no receipts file: nothing is appended, nothing is repaired."""
    before = contents(damaged)
    path = damaged / "somebody's.json"
    path.write_text(foreign)
    done = call("repair", "--dir", damaged, "--strategy", "most-recent", "--receipts", path)
    assert (2, True) == (done.status, "exists and holds no receipts; name another file" in done.complaint)
    assert foreign == path.read_text()
    assert before == contents(damaged)


@pytest.mark.parametrize("torn", ["", "{", '{"type": "result", "doc_id": "doc-'])
def test_receipts_go_on_after_a_first_one_that_was_cut_off(damaged: Path, call: Callable[..., Done], torn: str) -> None:
    """What a power cut leaves is taken back, also if it is all that there is."""
    path = damaged / "receipts.jsonl"
    for beginning in (torn, None):
        if beginning is not None:
            path.write_text(beginning)
        assert 0 == call("repair", "--dir", damaged, "--strategy", "text", "--receipts", path, "doc-03").status
    assert ["repaired", "already-consistent"] == [json.loads(line)["outcome"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["plan.jsonl", "alias.jsonl"])
def test_what_is_read_is_not_written_to(damaged: Path, call: Callable[..., Done], name: str) -> None:
    """A plan, or ids, that would take the receipts of the run: refused by either name, and left as it is."""
    plan, ids, alias = damaged / "plan.jsonl", damaged / "ids.txt", damaged / "alias.jsonl"
    assert 1 == call("plan", "--dir", damaged, "--strategy", "text", "--out", plan).status
    alias.symlink_to(plan)
    ids.touch()
    before, held = plan.read_bytes(), contents(damaged)
    done = call("repair", "--dir", damaged, "--plan", plan, "--receipts", damaged / name)
    assert (2, f"--plan and --receipts are the same file, {damaged / name}") == (done.status, done.complaint)
    same = call("repair", "--dir", damaged, "--strategy", "text", "--ids-file", ids, "--receipts", ids)
    assert (2, f"--ids-file and --receipts are the same file, {ids}") == (same.status, same.complaint)
    assert (before, held) == (plan.read_bytes(), contents(damaged))


def test_a_pipe_that_somebody_reads_is_no_place_for_receipts_either(damaged: Path, call: Callable[..., Done]) -> None:
    """Opening succeeds then, and nothing but a look at what was opened tells the difference."""
    place = damaged / "place"
    os.mkfifo(place)
    reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    try:
        done = call("repair", "--dir", damaged, "--strategy", "text", "--receipts", place)
    finally:
        os.close(reader)
    assert (2, True) == (done.status, "is not a regular file" in done.complaint)


INTERRUPTED = """
import sys
class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupter())
from trio_repair.cli import {entry}
sys.exit({entry}(["check"]))
"""


def test_an_interrupt_while_modules_load_is_quiet(tmp_path: Path) -> None:
    """Ctrl-C before there is anything to interrupt: status 130, not a word."""
    ended = {}
    for entry in ("main", "_main.run"):
        script = INTERRUPTED.format(module="cyclopts", entry=entry).replace("import _main.run", "import _main")
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, env=environment(), check=False
        )
        ended[entry] = done.returncode, done.stderr.decode()
    assert (130, "") == ended["main"]
    assert "Traceback" in ended["_main.run"][1]  # the control: without the guard, it is a traceback


def _like_anybody() -> None:
    """In the child: give up what lets root write to what is read-only (CAP_DAC_OVERRIDE)."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.mark.parametrize("what", ["directory", "file"])
def test_what_is_read_only_is_told(damaged: Path, what: str) -> None:
    """Without a lock nothing is repaired (2); a database that cannot be written fails by name (1)."""
    target = damaged if what == "directory" else damaged / "vector.db"
    before = contents(damaged)
    mode = target.stat().st_mode
    target.chmod(0o500 if what == "directory" else 0o400)
    try:
        done = run(
            "repair",
            "--dir",
            damaged,
            "--strategy",
            "most-recent",
            "--timeout",
            "3s",
            "doc-03",
            preexec_fn=_like_anybody,
        )
    finally:
        target.chmod(mode)
    assert before == contents(damaged)
    if what == "directory":
        assert (2, True) == (done.status, "cannot open the lock file" in done.complaint)
    else:
        assert 1 == done.status
        assert "Vector store update failed: the file, its -wal or its directory is read-only" in done.out


def _small_disk() -> None:
    """In the child: no file may become larger than SQLite's index of its log, which is the first thing it makes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (32768, 32768))


def test_a_full_disk_is_told_and_harms_nothing(damaged: Path) -> None:
    """The repair fails by name; what was there is still there; with room, it is repaired."""
    command = [
        "repair",
        "--dir",
        damaged,
        "--strategy",
        "most-recent",
        "--max-retries",
        "0",
        "--timeout",
        "3s",
        "doc-03",
    ]
    before = contents(damaged)
    done = run(*command, preexec_fn=_small_disk)
    assert 1 == done.status
    assert "Vector store update failed" in done.out
    assert before == contents(damaged)
    assert 0 == run(*command).status


def test_the_lock_file_may_be_impossible(damaged: Path, call: Callable[..., Done]) -> None:
    """What stands in its place is named; nothing is repaired without the lock."""
    before = contents(damaged)
    (damaged / "trio-repair.toml.lock").mkdir()
    done = call("repair", "--dir", damaged, "--strategy", "most-recent")
    assert 2 == done.status
    assert "cannot open the lock file" in done.complaint
    assert before == contents(damaged)


def test_a_place_for_results_that_cannot_be_written(damaged: Path, call: Callable[..., Done]) -> None:
    """Receipts and plans: status 2 before anything is done."""
    before = contents(damaged)
    receipts = call("repair", "--dir", damaged, "--strategy", "text", "--receipts", damaged / "none" / "x")
    assert (2, True) == (receipts.status, receipts.complaint.startswith("--receipts: cannot write"))
    plan = call("plan", "--dir", damaged, "--strategy", "text", "--out", damaged / "none" / "x")
    assert (2, True) == (plan.status, plan.complaint.startswith("--out: cannot write"))
    assert before == contents(damaged)


def test_the_command_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    """The core alone is installed: one line, status 2, no traceback."""
    for module in ("cyclopts", "sqlite_vec"):
        blocker = textwrap.dedent(
            f"""
            import sys
            sys.modules[{module!r}] = None
            from trio_repair.cli import main
            sys.exit(main(["demo", "--documents", "1"]))
            """
        )
        done = subprocess.run(
            [sys.executable, "-c", blocker],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
        )
        assert 2 == done.returncode, done.stderr
        assert f"the command needs {module}; install it with: pip install" in done.stderr
        assert 1 == len(done.stderr.splitlines())
