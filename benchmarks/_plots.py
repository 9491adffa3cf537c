"""Panels as SVG that stands in a page: its words are words, in the page's own font and colour, and it loads nothing."""

from __future__ import annotations

import html
import importlib.util
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks._figures import Measure, Panel

COLOURS = ("#4c8dd6", "#e08b3c", "#4aa86b", "#b06fc4")
"""Each can be seen on white and on black."""

INK = "#0a0b0c"
"""For words and lines; turned into the colour that the page writes in."""

DECADE = 10.0
HIDDEN = 30.0
"""How many times as long as another one a bar is when that can hardly be seen."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trio_repair",
    "text.parse_math": False,  # a label is no formula
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def missing() -> str | None:
    """Why there can be no plots."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed; pip install -e '.[bench]' brings it."
    return None


def spans_decades(values: Iterable[float], least: float = DECADE) -> bool:
    """Whether these are told apart better on a logarithmic axis."""
    found = list(values)
    return min(found) > 0 and max(found) / min(found) >= least


def svg(panel: Panel, within: str) -> str:
    """Bars with error bars; where there are several sizes, points with error bars along them.

    Args:
        panel: what is drawn.
        within: the part of the page that it stands in, which has no other panel of that title.
    """
    import matplotlib as mpl  # noqa: PLC0415 - may be missing
    from matplotlib.figure import Figure  # noqa: PLC0415

    sizes = sorted({one.size for one in panel.measures if one.size is not None})
    with mpl.rc_context(STYLE):
        height = 2.8 if len(sizes) > 1 else 0.8 + 0.24 * len(panel.measures)
        figure = Figure(figsize=(4.4, height), layout="constrained")
        axes = figure.add_subplot()
        if len(sizes) > 1:
            _along(axes, panel, sizes)
        else:
            _bars(axes, panel)
        drawn = io.StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=unsaid)
    return _inlined(drawn.getvalue(), f"{panel.title} ({panel.unit})", within)


def _errors(measures: Sequence[Measure]) -> list[list[float]]:
    values = [one.value for one in measures]
    return [[one.median - one.min for one in values], [one.max - one.median for one in values]]


def _bars(axes: Any, panel: Panel) -> None:
    medians = [one.value.median for one in panel.measures]
    axes.barh(
        range(len(medians)),
        medians,
        xerr=_errors(panel.measures),
        height=0.62,
        color=COLOURS[0],
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2.5},
    )
    axes.set_yticks(range(len(medians)), [one.label for one in panel.measures])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(panel.unit)
    if panel.limit is not None:
        axes.axvline(panel.limit, color=INK, linestyle=":", linewidth=1)
    # Where bars begin on a logarithmic axis means nothing: only if one would otherwise dwarf the others.
    if spans_decades(medians, HIDDEN):
        axes.set_xscale("log")
        axes.set_xlim(left=min(one.value.min for one in panel.measures) / 2)
        axes.set_xlabel(f"{panel.unit}, logarithmic")
    _plain(axes.xaxis)


def _along(axes: Any, panel: Panel, sizes: Sequence[float]) -> None:
    for colour, label in zip(COLOURS * 9, dict.fromkeys(one.label for one in panel.measures), strict=False):
        line = sorted((one for one in panel.measures if one.label == label), key=lambda one: one.size or 0)
        axes.errorbar(
            [one.size for one in line],
            [one.value.median for one in line],
            yerr=_errors(line),
            color=colour,
            marker="o",
            markersize=4,
            capsize=3,
            label=label,
        )
    if spans_decades(sizes):
        axes.set_xscale("log")
    if spans_decades(one.value.median for one in panel.measures):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.08 * max(panel.limit or 0, *(one.value.max for one in panel.measures)))
    if panel.limit is not None:
        axes.axhline(panel.limit, color=INK, linestyle=":", linewidth=1)
    axes.set_xticks(sizes)
    axes.minorticks_off()
    axes.set_xlabel(panel.sizes)
    axes.set_ylabel(panel.unit)
    axes.legend(frameon=False)
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value:,.0f}")
    _plain(axes.yaxis)


def _plain(axis: Any) -> None:
    """Numbers as in the tables, not as powers."""
    axis.set_major_formatter(lambda value, _position: f"{value:g}" if value % 1 else f"{value:,.0f}")
    axis.set_minor_formatter("")


def _inlined(drawn: str, title: str, within: str) -> str:
    """Without what only a file of its own needs, and with ids that are this plot's."""
    inside = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    used = set(re.findall(r'(?:"#|url\(#)([^")]+)', inside))
    name = re.sub(r"\W+", "-", f"{within} {title}").strip("-").lower()
    inside = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", inside)
    for one in used:
        inside = re.sub(rf'(" |"|#){re.escape(one)}(?=["\)])', rf"\g<1>{name}-{one}", inside)
    return inside.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
