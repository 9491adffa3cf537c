"""One HTML page of all figures: no scripts, nothing that is loaded from elsewhere, and nothing in it unescaped."""

from __future__ import annotations

import datetime as dt
import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from benchmarks import _plots
from benchmarks._figures import NOTHING, Panel, machine, number

if TYPE_CHECKING:
    from benchmarks._report import Result

STYLE = """
:root { color-scheme: light dark; --line: #d0d4da; --soft: #5c6470; --code: #f1f3f5; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3b4048; --soft: #a0a8b4; --code: #23272d; --bad: #ff8a80; }
  body { background: #16181c; color: #e4e6ea; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.words { min-width: 5rem; }
.figure { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code { background: var(--code); padding: .1rem .25rem; border-radius: .2rem; font-size: .9em; }
svg { width: 100%; max-width: 32rem; height: auto; display: block; }
@media (max-width: 36rem) {
  .claims thead { display: none; }
  .claims tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .claims td { display: block; text-align: left; border: 0; padding: 0; white-space: normal; }
  .claims td:not(:empty)::before { content: attr(data-head) ": "; color: var(--soft); font-weight: normal; }
}
.soft { color: var(--soft); font-size: .9rem; }
.missed { color: var(--bad); font-weight: bold; }
"""

Cell = str | tuple[str, str]
"""What a cell says; or its class and that."""


def text(value: object) -> str:
    """Escaped."""
    return html.escape(str(value))


def table(header: Sequence[Cell], rows: Iterable[Sequence[Cell]], *, stacked: bool = False) -> str:
    """A table that scrolls by itself where it is too wide, or stacks its cells. Everything is escaped here."""

    def line(tag: str, cells: Sequence[Cell]) -> str:
        parts = []
        for head, cell in zip(header, cells, strict=True):
            kind, said = ("words", cell) if isinstance(cell, str) else cell
            named = head if isinstance(head, str) else head[1]
            parts.append(f'<{tag} class="{text(kind)}" data-head="{text(named)}">{text(said)}</{tag}>')
        return f"<tr>{''.join(parts)}</tr>\n"

    body = "".join(line("td", row) for row in rows)
    kind = "scroll claims" if stacked else "scroll"
    return f'<div class="{kind}"><table>\n<thead>{line("th", header)}</thead>\n<tbody>{body}</tbody></table></div>\n'


def figures(*values: float) -> list[Cell]:
    """Cells with numbers."""
    return [("figure", number(value)) for value in values]


def heads(*names: str) -> list[Cell]:
    """Their headings."""
    return [("figure", name) for name in names]


def panel(shown: Panel, within: str, *, plots: bool) -> str:
    """A table of medians, and its plot."""
    sized = bool(shown.sizes)
    header = ["", *(heads(shown.sizes) if sized else ()), *heads("median", "min", "max")]
    rows = [
        [
            one.label,
            *([("figure", "" if one.size is None else f"{one.size:,.0f}")] if sized else ()),
            *figures(one.value.median, one.value.min, one.value.max),
        ]
        for one in shown.measures
    ]
    plot = _plots.svg(shown, within) if plots and shown.measures else ""
    return f"<h3>{text(shown.title)} ({text(shown.unit)})</h3>\n{plot}{table(header, rows)}"


def section(result: Result, *, plots: bool) -> str:
    """Everything about one file of figures."""
    parts = [f'<h2 id="{text(result.name)}">{text(result.name)}</h2>\n<p>Claim: {text(result.claim)}</p>\n']
    if result.saved is None or result.shown is None:
        reason = "Not measured." if result.problem is None else f"Cannot be read: {result.problem}"
        return "".join([*parts, f"<p>{text(reason)}</p>\n<p><code>{text(result.command)}</code></p>\n"])
    date = result.saved.get("date", "on a day that was not recorded")
    parts.append(f"<p><code>{text(result.command)}</code></p>\n")
    parts.append(f'<p class="soft">Taken {text(date)} with {text(machine(result.saved))}.</p>\n')
    parts += [f'<p class="soft">{text(note)}</p>\n' for note in result.shown.notes]
    parts += [panel(one, result.name, plots=plots) for one in result.shown.panels]
    parts += [f"<h3>{text(one.title)}</h3>\n{table(one.header, one.rows)}" for one in result.shown.listings]
    return "".join(parts)


def summary(results: Iterable[Result]) -> str:
    """A row for each claim."""
    rows: list[Sequence[Cell]] = []
    for result in results:
        if result.shown is None:
            rows.append([result.name, "", "not measured" if result.problem is None else "cannot be read", "", "", ""])
            continue
        if not result.shown.findings:
            rows.append([result.name, "", NOTHING, "", "", ""])
        for finding in result.shown.findings:
            claimed, ratio = ("missed" if finding.missed else "words", finding.claimed), finding.ratio
            rows.append([finding.what, finding.against, *figures(ratio.median, ratio.min, ratio.max), claimed])
    return table(["what", "against", *heads("median ratio", "min", "max"), "claimed"], rows, stacked=True)


def page(results: Sequence[Result]) -> str:
    """All of it."""
    missing = _plots.missing()
    now = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
    without = f'<p class="soft">There are tables only, no plots: {text(missing)}</p>\n' if missing else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>What trio_repair costs</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        "<h1>What trio_repair costs</h1>\n"
        "<p>Ratios count, not absolute times: machines drift, and what is compared ran in every round. Told are the"
        " median of the rounds, and from where to where they went.</p>\n"
        f'<p class="soft">This page was made {text(now)} by <code>python -m benchmarks report</code>.</p>\n{without}'
        f"{summary(results)}{''.join(section(result, plots=not missing) for result in results)}</body>\n</html>\n"
    )
