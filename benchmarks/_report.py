"""A page, and a table for the documents, of all figures that were saved.

Which of a benchmark's figures are shown, and how, stands beside that benchmark: see `benchmarks._figures`. The page has
plots if matplotlib is installed. The table has a row for each claim; ``--readme`` puts it into the documents, between
the lines that mark its place, so that no figure there is copied by hand.
"""

from __future__ import annotations

import argparse
import html
import importlib
import json
import pkgutil
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

import benchmarks
from benchmarks import _harness, _page
from benchmarks._figures import NOTHING, Shown, machine, number

QUOTING = ("README.md", "docs/performance.md")
"""The documents that quote the table."""

BEGIN, END = "<!-- table: benchmarks -->", "<!-- end -->"

NO_FIGURES = (
    "No figures were taken yet: `python -m benchmarks NAME` takes them, and `python -m benchmarks report --readme`\n"
    "puts them here.\n"
)


@attrs.frozen(kw_only=True)
class Result:
    """One file of figures, there or not."""

    name: str
    claim: str
    command: str
    """The one that made the figures; if there are none, the one that would."""
    saved: Mapping[str, Any] | None = None
    shown: Shown | None = None
    problem: str | None = None
    """Why nothing can be shown of a file that is there."""


def load(folder: Path) -> list[Result]:
    """What there is of every benchmark's files, in order of name."""
    results = []
    for name in sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__)):
        if not name.startswith("_"):
            module = importlib.import_module(f"benchmarks.{name}")
            files: Mapping[str, Sequence[str]] = getattr(module, "FILES", {name: (name,)})
            results += [_load_file(folder, module, file, arguments) for file, arguments in files.items()]
    return results


def _load_file(folder: Path, module: Any, name: str, arguments: Sequence[str]) -> Result:
    result = Result(
        name=name,
        claim=module.__doc__.splitlines()[0].removeprefix("Claim: "),
        command=shlex.join(["python", "-m", "benchmarks", *arguments]),
    )
    try:
        saved = json.loads((folder / f"{name}.json").read_text())
        return attrs.evolve(
            result, saved=saved, shown=module.shown(saved), command=str(saved.get("command", "a command not recorded"))
        )
    except FileNotFoundError:
        return result
    except Exception as error:  # whatever such a file may hold; the others are shown all the same
        return attrs.evolve(result, problem=f"{type(error).__name__}: {error}")


def words(text: str) -> str:
    """Text in a cell of a Markdown table, or around it, where nothing of it is markup."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    for mark in "\\`*_[]|":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped


def code(text: str) -> str:
    """A command in a cell."""
    text = " ".join(text.split())
    if set(text) & set("`<>&|\\"):
        return f"<code>{words(text)}</code>"
    return f"`{text}`"


def markdown(results: Iterable[Result]) -> str:
    """A row for each claim; a sentence, if nothing was measured at all."""
    results = list(results)
    if all(result.shown is None and result.problem is None for result in results):
        return NO_FIGURES
    rows = [("what", "against", "median ratio", "min to max", "claimed", "command"), ("---",) * 6]
    made = []
    for result in results:
        if result.saved is None or result.shown is None:
            state = "not measured" if result.problem is None else "cannot be read"
            rows.append((words(result.name), "", state, "", "", code(result.command)))
            continue
        if not result.shown.findings:
            rows.append((words(result.name), "", NOTHING, "", "", code(result.command)))
        made.append(f"{str(result.saved.get('date', 'no date'))[:10]} with {machine(result.saved)}")
        rows += [
            (
                words(finding.what),
                words(finding.against),
                number(finding.ratio.median),
                f"{number(finding.ratio.min)} to {number(finding.ratio.max)}",
                words(finding.claimed),
                code(result.command),
            )
            for finding in result.shown.findings
        ]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    taken = "".join(f"- {words(one)}\n" for one in dict.fromkeys(made))
    return f"{table}\nTaken on\n\n{taken}" if made else table


def fill(document: str, table: str) -> str:
    """The document, with this table for whatever stood in the marked place.

    Raises:
        ValueError: there is no such place, or more than one.
    """
    before, begin, rest = document.partition(f"{BEGIN}\n")
    _old, end, after = rest.partition(END)
    if not begin or not end or document.count(BEGIN) != 1:
        raise ValueError(f"there must be one place between {BEGIN} and {END}")
    return f"{before}{begin}{table}{end}{after}"


def main(arguments: list[str]) -> int:
    """Print the table, write it and the page; returns the exit status, 1 if a file of figures could not be read."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=_harness.RESULTS, help="the folder that has the figures")
    parser.add_argument("--out", type=Path, help="the page; the table goes beside it (report.html in the folder)")
    parser.add_argument("--readme", action="store_true", help=f"put the table into {' and '.join(QUOTING)}")
    options = parser.parse_args(arguments)
    page = options.out or options.results / "report.html"
    if page.suffix == ".md":
        parser.error("--out names the page; the table takes the same name, with .md")
    results = load(options.results)
    table = markdown(results)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_page.page(results), encoding="utf-8")
    page.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)
    print(f"written to {page} and {page.with_suffix('.md')}")
    if options.readme:
        for name in QUOTING:
            document = _harness.ROOT / name
            document.write_text(fill(document.read_text(encoding="utf-8"), table), encoding="utf-8")
            print(f"put into {name}")
    unread = [result for result in results if result.problem is not None]
    for result in unread:
        print(f"benchmarks: {result.name}.json cannot be read: {result.problem}", file=sys.stderr)
    return 1 if unread else 0
