"""What a benchmark shows of the figures that it saved: its claims' ratios, and tables that can be plotted.

Every benchmark has a function ``shown``, which makes a `Shown` of what it has given to `_harness.save`; nothing else
knows which keys there are. One that writes other files than one of its own name has also ``FILES``: by file, the
arguments of ``python -m benchmarks`` that make it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

NOTHING = "nothing to compare with"
"""Said where figures were taken of which none is a claim's."""


def number(value: float) -> str:
    """A figure for people: three digits or more, never an exponent."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}"


@attrs.frozen
class Spread:
    """Median, minimum and maximum of some rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, saved: Mapping[str, float], factor: float = 1.0) -> Spread:
        """What `_harness.spread` gave, in another unit.

        Raises:
            KeyError, TypeError, ValueError: it is not what that gives.
        """
        spread = cls(*(float(saved[each]) * factor for each in ("median", "min", "max")))
        if not 0 <= spread.min <= spread.median <= spread.max < math.inf:
            raise ValueError(f"{saved} are no median, minimum and maximum")
        return spread

    @classmethod
    def only(cls, value: float) -> Spread:
        """Of what was counted, or measured once."""
        return cls.of({"median": value, "min": value, "max": value})


@attrs.frozen(kw_only=True)
class Limit:
    """What a benchmark claims of a ratio."""

    words: str
    """As they stand in its claim."""
    low: float = 0.0
    high: float = math.inf


@attrs.frozen(kw_only=True)
class Finding:
    """What became of a claim, or of one half of it: one row of the table that the documents quote."""

    what: str
    against: str
    ratio: Spread
    limit: Limit | None = None
    """None: the claim names no number."""

    @property
    def missed(self) -> bool:
        """Whether the median is not what was claimed."""
        return self.limit is not None and not self.limit.low <= self.ratio.median <= self.limit.high

    @property
    def claimed(self) -> str:
        """What the claim says in numbers, and whether the median is that."""
        return "" if self.limit is None else f"{self.limit.words}: {'missed' if self.missed else 'holds'}"


@attrs.frozen
class Measure:
    """One row of a table, one bar or point of its plot."""

    label: str
    value: Spread
    size: float | None = None


@attrs.frozen(kw_only=True)
class Panel:
    """A table with medians, and its plot."""

    title: str
    unit: str
    measures: Sequence[Measure]
    sizes: str = ""
    """What the sizes count. Where there are several, the plot goes along them, with a line for each label."""
    limit: float | None = None
    """Drawn into the plot: where the claim ends."""


@attrs.frozen(kw_only=True)
class Listing:
    """A table of words and counts, which is not plotted."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@attrs.frozen(kw_only=True)
class Shown:
    """All that is shown of one file of figures."""

    findings: Sequence[Finding]
    panels: Sequence[Panel]
    listings: Sequence[Listing] = ()
    notes: Sequence[str] = ()
    """Sizes, rounds, and who was left out."""


def bars(title: str, unit: str, spreads: Mapping[str, Any], *, limit: float | None = None) -> Panel:
    """A panel with a bar for each of some saved spreads."""
    measures = [Measure(label, Spread.of(saved)) for label, saved in spreads.items()]
    return Panel(title=title, unit=unit, measures=measures, limit=limit)


def machine(saved: Mapping[str, Any]) -> str:
    """What saved figures were measured with, for people: versions, cores and processor."""
    on = dict(saved.get("on", {}))
    cores, processor, kind = on.pop("cores", "?"), on.pop("processor", "an unknown processor"), on.pop("machine", "?")
    versions = ", ".join(f"{name} {version}" for name, version in on.items())
    return f"{versions}, on {cores} cores of {processor} ({kind})"
