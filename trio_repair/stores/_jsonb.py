"""What PostgreSQL's jsonb makes of JSON: it keeps values, and not how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def holds_nul(value: object) -> bool:
    """Whether a string in it, or a key, holds NUL, which jsonb refuses."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, Mapping):
        return any(holds_nul(key) or holds_nul(held) for key, held in value.items())
    return isinstance(value, (list, tuple)) and any(map(holds_nul, value))


def as_read_back(value: Any) -> Any:
    """A JSON value as Python reads it after jsonb has held it.

    Its numbers are decimal, without an exponent: 1e16 comes back as the integer 10000000000000000, and -0.0 as 0.0.
    """
    if isinstance(value, float):
        written = format(Decimal(repr(value)), "f")
        return abs(float(written)) if value == 0 else float(written) if "." in written else int(written)
    if isinstance(value, Mapping):
        return {key: as_read_back(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_read_back(held) for held in value]
    return value
