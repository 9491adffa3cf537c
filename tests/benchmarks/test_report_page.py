"""The page of the report: it says what the files of figures say, and nothing in it is loaded, run or unescaped."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from report_support import HAND_MADE, Read, page_of, rows, spread, write

from benchmarks import _plots, _report
from benchmarks._figures import Measure, Panel, Spread, number

MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
EVIL = '<script src="https://example.org/x.js">\'&</script> | `*_\n<!-- end --> $x$'


def test_the_page_says_what_the_files_say(tmp_path: Path) -> None:
    """Claim, command, machine, date, every median with minimum and maximum, plots if there can be any."""
    page = page_of(write(tmp_path, HAND_MADE))
    read = Read(page)
    for result in _report.load(tmp_path):
        assert f"Claim: {result.claim}" in read.words
        assert result.command in read.words
        for panel in [] if result.shown is None else result.shown.panels:
            assert f"{panel.title} ({panel.unit})" in read.words
            for one in panel.measures:
                assert {one.label, *map(number, (one.value.median, one.value.min, one.value.max))} <= set(read.words)
    assert "1.72" in read.words
    assert "1.20" in read.words  # its minimum
    assert "2.58" in read.words  # its maximum
    assert "Not measured." in read.words  # repair_throughput_normal
    assert "arq is left out: arq is not installed" in read.words
    taken = "Taken 2026-01-02T03:04:05+00:00 with python 3.11.9, trio 0.35.0, apsw 3.54.1, on 4 cores of Some CPU"
    assert len(HAND_MADE) == page.count(taken)
    panels = sum(len(result.shown.panels) for result in _report.load(tmp_path) if result.shown is not None)
    assert (panels if MATPLOTLIB else 0) == read.tags.count("svg")
    assert MATPLOTLIB is not any("matplotlib is not installed" in words for words in read.words)
    assert [] == read.loads(page)


def test_control_what_is_loaded_from_elsewhere_is_seen() -> None:
    """Each of these would be found in a page."""
    for page in [
        EVIL,
        "<img src='x.png'>",
        "<p style='background: url(x)'>",
        "<style>@import 'x'</style>",
        "<p onclick=x>",
    ]:
        assert Read(page).loads(page), page


def poisoned(value: Any) -> Any:
    """Figures of which every word, key and name that may come from elsewhere is hostile."""
    if isinstance(value, str):
        return f"{value} {EVIL}"
    if isinstance(value, list):
        return [poisoned(one) for one in value]
    if isinstance(value, dict):
        return {key: poisoned(one) for key, one in value.items()}
    return value


def test_words_of_a_file_are_words_in_page_and_table(tmp_path: Path) -> None:
    """Nothing that a file says becomes markup: no element, no row, no end of the marked place."""
    some = {name: HAND_MADE[name] for name in ("alternatives", "engine_cost", "peers")}
    plain, hostile = write(tmp_path / "plain", some), write(tmp_path / "hostile", some)
    for file in hostile.glob("*.json"):
        saved = poisoned(json.loads(file.read_text())) | {"benchmark": file.stem}
        for part in ("microseconds_per_job", "left_out", "versions"):
            if part in saved:
                saved[part] = {f"{key} {EVIL}": value for key, value in saved[part].items()}
        file.write_text(json.dumps(saved))
    page = page_of(hostile)
    read, expected = Read(page), Read(page_of(plain))
    assert [] == read.loads(page)
    assert sorted(set(expected.tags)) == sorted(set(read.tags))
    assert 10 < sum(EVIL in words for words in read.words)
    table = (hostile / "report.md").read_text()
    assert len(rows((plain / "report.md").read_text())) == len(rows(table))
    assert {6} == {len(row) for row in rows(table)}
    assert "<script" not in table
    document = f"{_report.BEGIN}\n{_report.END}\n"
    assert _report.fill(_report.fill(document, table), "") == document


def test_without_matplotlib_there_are_tables_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the page says so."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    read = Read(page_of(write(tmp_path, HAND_MADE)))
    assert "svg" not in read.tags
    assert any("There are tables only, no plots: matplotlib is not installed" in words for words in read.words)
    assert "1.72" in read.words


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 10], True), ([1, 9], False), ([0, 10], False), ([5], False), ([1e3, 1e6], True)]
)
def test_axes_are_logarithmic_where_sizes_span_decades(values: list[float], expected: bool) -> None:
    """From ten times on; never with a zero."""
    assert expected is _plots.spans_decades(values)


@pytest.mark.skipif(not MATPLOTLIB, reason="matplotlib is not installed")
def test_plots_have_their_words_and_no_ids_of_each_other(tmp_path: Path) -> None:
    """Labels are text, sizes are plain numbers, ids are one plot's own, and colours follow the page."""
    measures = [Measure("$engine$ <1>", Spread.of(spread(3.0)), size) for size in (1_000, 1_000_000)]
    along = _plots.svg(Panel(title="A", unit="µs", measures=measures, sizes="documents"), "x")
    words = {word.strip() for word in Read(along).words}
    assert {"$engine$ <1>", "1,000", "1,000,000", "documents", "µs"} <= words
    assert "currentColor" in along
    assert _plots.INK not in along
    alike = {name: HAND_MADE[name] for name in ("engine_cost", "peers")}
    page = page_of(write(tmp_path, alike))
    ids = re.findall(r' id="([^"]*)"', page)
    assert ids
    assert len(set(ids)) == len(ids)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used <= set(ids)


@pytest.mark.skipif(not MATPLOTLIB, reason="matplotlib is not installed")
def test_bars_are_as_long_as_what_they_stand_for() -> None:
    """Of two bars, one three times as long as the other; and error bars from the minimum to the maximum."""
    import matplotlib.figure

    axes = matplotlib.figure.Figure().add_subplot()
    measures = [Measure("a", Spread(1, 0.5, 4)), Measure("b", Spread(3, 2, 5))]
    _plots._bars(axes, Panel(title="A", unit="s", measures=measures))
    assert [1, 3] == [bar.get_width() for bar in axes.patches]
    (bars,) = (one for one in axes.containers if hasattr(one, "errorbar"))
    (errors,) = bars.errorbar.lines[2]
    assert [(0.5, 4), (2, 5)] == [(line[0][0], line[1][0]) for line in errors.get_segments()]
