"""Stores that hang, in every call that the command makes itself: it ends, names the store, and lets the lock go."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from cli_support import Application, Done, Fifo, configure, contents, doc_id, environment, run, with_stores

from trio_repair import CheckIncomplete, Document, StoreUnavailable
from trio_repair.cli._lock import hold_lock
from trio_repair.cli._patience import StoreHung, hung_stores, patience

QUICK = "store_call_timeout = 1.5\ngrace = 0.2\nunavailable_timeout = 0.5"


async def _deletes(application: Application) -> None:
    for store in application.stores.critical.values():
        await application.put(store, Document.tombstone(doc_id(1), number=2))


def _prepare(directory: Path, command: list[str], env: dict[str, str] | None = None) -> list[str]:
    """Make what a command needs, and give its whole line."""
    there = ["--dir", str(directory)]
    if "--ids-file" in command:
        (directory / "ids.txt").write_text(f"{doc_id(1)}\n")
        return [*command, str(directory / "ids.txt"), *there, "--strategy", "text"]
    if "--plan" in command:
        plan = directory / "plan.jsonl"
        assert 1 == run("plan", *there, "--strategy", "text", "--out", plan, env=env).status
        return [*command, str(plan), *there]
    if command[0] == "purge":
        with_stores(directory, _deletes)
    return [*command, *there]


NEAR = ["search", "topic3", "--in", "vector"]
BY_IDS = ["repair", "--ids-file"]
BY_PLAN = ["repair", "--plan"]
PURGE = ["purge", "--older-than", "0s"]


@pytest.mark.parametrize(
    ("command", "role", "method", "said"),
    [
        (NEAR, "vector", "nearest", "vector store: did not answer within 1.5 s (store_call_timeout)"),
        (["search", "topic3", "--in", "text"], "text", "search", "text store: did not answer"),
        (["search", "doc-00", "--in", "cache"], "cache", "get", "cache store: did not answer"),
        (BY_IDS, "vector", "count", "vector store: did not answer"),
        (BY_PLAN, "vector", "count", "vector store: did not answer"),
        (PURGE, "text", "tombstones", "text store: did not answer"),
        (PURGE, "vector", "remove", "vector store: did not answer"),
        (PURGE, "cache", "observe", "cache store: did not answer"),
        (["check"], "vector", "open", "vector store: did not open within 1.5 s (store_call_timeout)"),
        (["show", "doc-01"], "text", "open", "text store: did not open"),
        (BY_IDS, "cache", "open", "cache store: did not open"),
    ],
)
def test_a_store_that_hangs_is_given_up_and_named(
    damaged: Path,
    troubled: Callable[..., dict[str, str]],
    command: list[str],
    role: str,
    method: str,
    said: str,
) -> None:
    """In its own thread: status 3 by itself, one line, and nobody finds the lock held."""
    configure(damaged, "store_call_timeout = 5.0", QUICK)
    env = troubled(damaged, role=role, method=method, hangs="in its thread")
    arguments = _prepare(damaged, command, env)
    done = run(*arguments, env=env)
    assert 3 == done.status, done.err
    (told,) = [line for line in done.err.splitlines() if "was left behind" not in line]
    assert told.startswith(f"trio-repair: {said}")
    assert "" == done.out
    with hold_lock(damaged / "trio-repair.toml"):
        pass


def test_a_scan_for_tombstones_that_hangs_is_given_up(
    damaged: Path, troubled: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """A store that does not list its tombstones is scanned; each page has the whole time."""
    arguments = _prepare(damaged, PURGE)
    configure(damaged, "store_call_timeout = 5.0", QUICK)
    env = troubled(damaged, role="text", method="open_scan", hangs=True)
    plugin = tmp_path / "site" / "troubled_store.py"
    hidden = '        if name == "tombstones":\n            raise AttributeError(name)\n        found = getattr'
    plugin.write_text(plugin.read_text().replace("        found = getattr", hidden))
    done = run(*arguments, env=env)
    assert (3, True) == (done.status, "text store: did not answer within 1.5 s" in done.err)


def test_what_one_store_finds_is_shown_though_the_other_hangs(
    damaged: Path, troubled: Callable[..., dict[str, str]]
) -> None:
    """Status 3 says that it is not all."""
    configure(damaged, "store_call_timeout = 5.0", QUICK)
    done = run("search", "--dir", damaged, "topic3", "--json", env=troubled(damaged, method="nearest", hangs=True))
    assert 3 == done.status
    assert {"text"} == {record["store"] for record in done.records}
    assert "vector store: did not answer within 1.5 s" in done.err


def test_a_store_that_does_not_close_changes_nothing(damaged: Path, troubled: Callable[..., dict[str, str]]) -> None:
    """What was done was done: it is said, and the status is that of the command."""
    configure(damaged, "store_call_timeout = 5.0", QUICK)
    env = troubled(damaged, method="close", hangs=True)
    done = run("repair", "--dir", damaged, "--strategy", "most-recent", doc_id(3), env=env)
    assert (0, True) == (done.status, "the vector store did not close within 1.5 s" in done.err)
    again = run("repair", "--dir", damaged, "--strategy", "most-recent", doc_id(3), "--json", env=env)
    assert 1 == again.record["outcomes"]["already-consistent"]


@pytest.mark.parametrize(("method", "everything"), [("count", False), ("observe", False), ("open_scan", True)])
def test_a_store_that_hangs_while_it_is_counted_is_named_in_json(
    damaged: Path, troubled: Callable[..., dict[str, str]], method: str, everything: bool
) -> None:
    """The one line of a repair says which store hung, and that the run failed; nothing was done."""
    arguments = ["repair", "--dir", str(damaged), "--strategy", "text"] if everything else _prepare(damaged, BY_IDS)
    before = contents(damaged)
    configure(damaged, "store_call_timeout = 5.0", QUICK)
    env = troubled(damaged, method=method, hangs=True)
    done = run(*arguments, "--json", env=env)
    assert 3 == done.status
    assert ({"vector": 1}, "failed", 0) == tuple(done.record[key] for key in ("hung_stores", "stopped", "documents"))
    assert "did not answer within 1.5 s" in done.err
    assert "" == run(*arguments, env=env).out
    assert before == contents(damaged)


def test_a_store_that_hangs_in_the_check_is_named_in_json(
    damaged: Path, troubled: Callable[..., dict[str, str]]
) -> None:
    """It was counted, and hangs when suspects are looked at again."""
    configure(damaged, "store_call_timeout = 5.0", QUICK)
    env = troubled(damaged, method="observe", hangs="in its thread")
    done = run("repair", "--dir", damaged, "--strategy", "text", "--json", env=env)
    assert 3 == done.status
    assert "vector" in done.record["hung_stores"]
    assert "failed" == done.record["stopped"]


def test_hung_stores_are_read_from_errors() -> None:
    """Only those that took too long: a store that said that it is unreachable did not hang."""
    checked = CheckIncomplete(
        "could not read every store to the end: text store: did not answer within 3 s; vector store: is gone",
        stores=["text", "vector"],
    )
    assert {"text"} == hung_stores(checked)
    assert {"text", "cache"} == hung_stores(BaseExceptionGroup("x", [StoreHung("cache", 3.0), checked]))
    assert set() == hung_stores(StoreUnavailable("text", "is gone"))


async def test_patience_is_for_one_call(autojump_clock: trio.testing.MockClock) -> None:
    """It can be renewed and suspended; when it is over, the store is named."""
    with patience("text", 2.0) as waiting:
        await trio.sleep(1.5)
        waiting.renew()
        await trio.sleep(1.5)
        waiting.suspend()
        await trio.sleep(100)
    with pytest.raises(StoreHung, match="text store: did not answer within 2 s"), patience("text", 2.0):
        await trio.sleep(math.inf)
    with trio.move_on_after(1) as outer, patience("text", 2.0):  # somebody else's cancellation stays theirs
        await trio.sleep(math.inf)
    assert outer.cancelled_caught


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ids_that_never_come_can_be_interrupted(damaged: Path, fifo: Callable[[str], Fifo], number: int) -> None:
    """A pipe that stays silent: status 130 and one line, with the thread that reads it left behind."""
    reached = fifo("reached")
    silent, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", READS_IDS, reached.path, damaged],
        stdin=silent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    reached.wait()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    os.close(silent)
    os.close(writing)
    assert (130, b"", b"trio-repair: interrupted: nothing was changed\n") == (process.returncode, out, err)


READS_IDS = """
import os, shutil, sys
from trio_repair.cli import _ids, main
copy = shutil.copyfileobj
def copy_and_tell(*args):
    fifo = os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
    os.write(fifo, b".")
    os.close(fifo)
    copy(*args)
_ids.shutil.copyfileobj = copy_and_tell
sys.exit(main(["repair", "--dir", sys.argv[2], "--strategy", "text", "--ids-file", "-"]))
"""


def test_control_the_standard_input_that_python_owns_aborts_it(fifo: Callable[[str], Fifo]) -> None:
    """What happens if the thread that is left behind reads `sys.stdin` itself: Python aborts as it ends."""
    reached = fifo("reached")
    script = """
import os, sys, threading
def read():
    fifo = os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
    os.write(fifo, b".")
    sys.stdin.buffer.read()
threading.Thread(target=read, daemon=True).start()
threading.Event().wait(1)
"""
    silent, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", script, reached.path], stdin=silent, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=30)
    os.close(silent)
    os.close(writing)
    assert (-signal.SIGABRT, True) == (process.returncode, b"_enter_buffered_busy" in err)


def _closed(*descriptors: int) -> Callable[[], None]:
    return lambda: [os.close(one) for one in descriptors] and None


@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 2), (0, 1, 2)])
def test_a_closed_standard_input_is_told(damaged: Path, closed: tuple[int, ...]) -> None:
    """`--ids-file - <&-`: status 2, one line, and no database in place of a standard stream."""
    before = contents(damaged)
    process = subprocess.run(
        [sys.executable, "-m", "trio_repair", "repair", "--dir", damaged, "--strategy", "text", "--ids-file", "-"],
        capture_output=True,
        env=environment(),
        check=False,
        timeout=50,
        preexec_fn=_closed(*closed),
    )
    said = b"" if 2 in closed else b"trio-repair: --ids-file: standard input is closed; name a file instead\n"
    assert (2, b"", said) == (process.returncode, process.stdout, process.stderr)
    assert before == contents(damaged)


def test_standard_streams_that_are_closed_leave_no_room_for_a_database(tmp_path: Path) -> None:
    """The lowest free descriptors are those of the streams: what is opened later gets none of them."""
    script = """
import os, sys
from trio_repair.cli._main import _prepare_streams
_prepare_streams()
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(descriptor, str(descriptor).encode())
"""
    told = tmp_path / "told"
    subprocess.run([sys.executable, "-c", script, told], env=environment(), check=True, preexec_fn=_closed(0, 1, 2))
    assert int(told.read_text()) > 2


@pytest.mark.parametrize("method", ["observe", "open", "count"])
def test_a_store_that_ends_the_process_is_a_bug_without_its_message(
    damaged: Path, troubled: Callable[..., dict[str, str]], method: str
) -> None:
    """SystemExit is no Exception, and in a group it ended the command with a raw traceback and status 1."""
    arguments = _prepare(damaged, BY_IDS)
    env = troubled(damaged, method=method, exits=True)
    done = run(*arguments, "--json", env=env)
    assert 70 == done.status
    assert "builtins.SystemExit (its message is not shown)" in done.err
    assert "text of a document" not in done.err.replace('SystemExit("the text of a document")', "")  # our source
    assert all(json.loads(line)["type"] == "repair" for line in done.out.splitlines())
    if method == "open":
        assert "line 12: stores.vector.kind: the store 'troubled' could not be opened" in done.err
    with hold_lock(damaged / "trio-repair.toml"):
        pass


def test_a_store_that_cannot_be_made_is_named(damaged: Path, troubled: Callable[..., dict[str, str]]) -> None:
    """A bug of a third party keeps its status, and the key is named."""
    done: Done = run("check", "--dir", damaged, env=troubled(damaged, method="make"))
    assert 70 == done.status
    assert "line 12: stores.vector.kind: the store 'troubled' could not be opened" in done.err
    assert "builtins.RuntimeError (its message is not shown)" in done.err


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def (", "SyntaxError in {path}, line 1"),
        ("raise RuntimeError('the text of a document')", "RuntimeError was raised in {path}, line 1"),
        ("raise SystemExit('the text of a document')", "SystemExit was raised in {path}, line 1"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("", "module 'troubled_store' has no attribute 'troubled'"),
    ],
)
def test_a_kind_of_store_that_cannot_be_loaded_is_named(
    damaged: Path, troubled: Callable[..., dict[str, str]], tmp_path: Path, source: str, problem: str
) -> None:
    """Whatever its package does as it is imported: file, line, key and the place; status 2."""
    env = troubled(damaged, method="none")
    path = tmp_path / "site" / "troubled_store.py"
    path.write_text(source)
    done = run("check", "--dir", damaged, env=env)
    loaded = "stores.vector.kind: the store 'troubled' cannot be loaded from troubled_store:troubled: "
    assert (2, True) == (done.status, f"line 12: {loaded}{problem.format(path=path)}" in done.complaint)
    assert "text of a document" not in done.complaint
