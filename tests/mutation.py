"""Mutation testing of layers 2 and 3: ``python -m tests.mutation [--again | --show | --score] [module ...]``.

One run of mutmut for each module, in a directory of its own below ``.mutation``, with that module's tests: a mutant then
costs a fraction of a second, where every test of the engine would cost half a minute. What was judged before is not
judged again, except survivors on ``--again``. Ends with the score of each module; ``--show`` prints the survivors.
"""

from __future__ import annotations

import argparse
import ast
import collections
import difflib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

TOP = Path(__file__).parent.parent
WORK = TOP / ".mutation"

TESTS: dict[str, tuple[str, ...]] = {
    "_divergence": ("test_divergence",),
    "_summary": ("test_summary",),
    "_ranges": ("test_ranges",),
    "_plan": ("test_planning",),
    "_planning": ("test_planning",),
    "_backoff": ("test_backoff",),
    "_clock": ("test_clock",),
    "_timetable": ("test_timetable",),
    "_breaker": ("test_breaker",),
    "_store_call": ("test_store_call", "test_watchdogs", "test_batching_words"),
    "_suspects": ("test_suspects", "test_batching"),
    "_waiting": ("test_waiting", "test_batching"),
    "_stepping": ("test_stepping", "test_batching"),
    "_requests": ("test_requests", "test_progress", "test_batching", "test_watchdogs"),
    "_progress": ("test_progress", "test_execution"),
    "_ticket": ("test_ticket",),
    "_queue": ("test_queue",),
    "_active": ("test_limits_active",),
    "_limits": ("test_limits_active",),
    "_telling": ("test_telling",),
    "_verdict": ("test_verdict",),
    "_streaming": ("test_streaming",),
    "_batching": ("test_batching", "test_batching_calls", "test_batching_words", "test_watchdogs"),
    "_cache_repair": ("test_execution", "test_execution_words"),
    "_execution": ("test_execution", "test_execution_words"),
}
"""The modules of layers 2 and 3, and the tests that have to notice what is wrong with them."""

LEFT_OUT = (
    "every_small_state",
    "planted_bugs_break",
    "every_action",
    "reasons_name",
    "disagreement_is",
    "every_kind_is",
    "what_is_remembered_of_failed_calls",
    "control_without_its_watchdog",
)
"""Tests that take a second or more and find nothing that the others do not; and those that plant bugs themselves."""

KILLED = {1, 3}
HANGS = 36
"""What mutmut takes for a timeout."""
TIMED_OUT = {-24, 24, HANGS, 152, 255, -9}


seconds: dict[str, float] = {}
"""How long each test takes without a mutant, once mutmut has measured it."""


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Run quick tests first: the first one that fails ends the life of a mutant. (This module is a plugin of pytest.)"""
    stats = Path("mutmut-stats.json")
    if stats.exists():
        seconds.update(json.loads(stats.read_text())["duration_by_test"])
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


def pytest_runtest_setup(item: Any) -> None:
    """End a test that hangs; mutmut would allow it five times what all tests take together."""
    if item.nodeid in seconds:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(HANGS))
        signal.setitimer(signal.ITIMER_REAL, 5.0 + 10.0 * seconds[item.nodeid])


def pytest_runtest_teardown() -> None:
    """The test did not hang."""
    signal.setitimer(signal.ITIMER_REAL, 0.0)


def prepared(module: str) -> Path:
    """A directory in which mutmut mutates one module and runs its tests."""
    work = WORK / module
    work.mkdir(parents=True, exist_ok=True)
    for name in ("trio_repair", "tests"):
        if not (work / name).exists():
            (work / name).symlink_to(TOP / name)
    selection = [*(f"tests/{name}.py" for name in TESTS[module]), "-k", f"not ({' or '.join(LEFT_OUT)})"]
    settings = (
        "[tool.mutmut]\n"
        f"only_mutate = {json.dumps([f'trio_repair/{module}.py'])}\n"
        f"pytest_add_cli_args_test_selection = {json.dumps(selection)}\n"
    )
    (work / "pyproject.toml").write_text((TOP / "pyproject.toml").read_text().replace("[tool.mutmut]\n", settings))
    return work


def verdicts(module: str) -> dict[str, int | None]:
    """The exit code of pytest for each mutant of a module; None if it was not tried."""
    meta = WORK / module / "mutants" / "trio_repair" / f"{module}.py.meta"
    return json.loads(meta.read_text())["exit_code_by_key"] if meta.exists() else {}


def survivors(module: str) -> list[str]:
    """Mutants that no test noticed, those included that no test reaches."""
    return [name for name, code in verdicts(module).items() if code is not None and code not in KILLED | TIMED_OUT]


def change(module: str, mutant: str) -> list[str]:
    """The lines of a function that a mutant changes, before and after."""
    source = (WORK / module / "mutants" / "trio_repair" / f"{module}.py").read_text()
    name = mutant.rpartition(".")[2]
    original = name.rpartition("_")[0] + "_orig"
    lines = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in {name, original}:
            lines[node.name] = source.splitlines()[node.lineno : node.end_lineno]
    different = difflib.unified_diff(lines[original], lines[name], lineterm="", n=0)
    return [line for line in different if not line.startswith(("---", "+++", "@@"))]


def mutmut(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)


def run(module: str, *, again: bool, max_children: int) -> None:
    names = survivors(module) if again else []
    work = prepared(module)
    if again and not names:
        return
    # Which tests reach a function is found out anew: mutmut asks new tests only, and a function may be newer than they.
    (work / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    done = mutmut(work, "run", "--max-children", str(max_children), *names)
    if done.returncode != 0:
        print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
        raise SystemExit(f"mutmut failed on {module}")


def summary(modules: list[str]) -> str:
    lines = [f"{'module':<14} {'mutants':>7} {'killed':>7} {'timeout':>7} {'survived':>8} {'score':>7}"]
    total: collections.Counter[str] = collections.Counter()
    for module in modules:
        codes = verdicts(module).values()
        counts = collections.Counter(
            mutants=len(codes),
            killed=sum(code in KILLED for code in codes),
            timeout=sum(code in TIMED_OUT for code in codes),
            survived=len(survivors(module)),
        )
        total += counts
        lines.append(_row(module, counts))
    return "\n".join([*lines, _row("all", total)])


def _row(name: str, counts: collections.Counter[str]) -> str:
    score = 100 * (counts["killed"] + counts["timeout"]) / max(1, counts["mutants"])
    return (
        f"{name:<14} {counts['mutants']:>7} {counts['killed']:>7} {counts['timeout']:>7} {counts['survived']:>8}"
        f" {score:>6.1f}%"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"some of {', '.join(TESTS)}; all of them if none is named")
    parser.add_argument("--again", action="store_true", help="judge the survivors again, and nothing else")
    parser.add_argument("--fresh", action="store_true", help="forget what was judged before")
    parser.add_argument("--show", action="store_true", help="run nothing; print what each survivor changes")
    parser.add_argument("--score", action="store_true", help="run nothing; print the score of each module")
    parser.add_argument("--max-children", type=int, default=2, help="mutants tried at once")
    given = parser.parse_args()
    modules = given.modules or list(TESTS)
    for module in [] if given.score else modules:
        if given.show:
            for name in survivors(module):
                print(f"{name}\n{chr(10).join(change(module, name))}\n")
            continue
        if given.fresh:
            shutil.rmtree(WORK / module, ignore_errors=True)
        run(module, again=given.again, max_children=given.max_children)
        print(summary([module]).splitlines()[1], flush=True)
    print(summary(modules))


if __name__ == "__main__":
    main()
