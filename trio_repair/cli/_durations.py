"""Durations on the command line: `30`, `1.5s`, `10m`, `12h`, `30d`."""

from __future__ import annotations

import math
import re
from typing import Final

from ._status import UsageError

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION: Final = re.compile(r"(?P<number>[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)\s*(?P<unit>ms|[smhdw])?", re.ASCII)


def parse_duration(option: str, text: str, *, unit_required: bool = False, zero: bool = False) -> float:
    """Seconds, more than 0 (with `zero`, at least 0) and finite. A bare number is seconds, unless a unit is required.

    Raises:
        UsageError: it is not a duration; the message names the option.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"{option}: must be a duration such as 30s, 10m or 2d, not {text!r}")
    unit = match["unit"]
    if unit is None and unit_required:
        raise UsageError(f"{option}: needs a unit; write {text.strip()}d for days, or one of {', '.join(_UNITS)}")
    seconds = float(match["number"]) * (1.0 if unit is None else _UNITS[unit])
    if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and not zero):
        raise UsageError(
            f"{option}: must be a finite duration of {'at least' if zero else 'more than'} 0, not {text!r}"
        )
    return seconds
