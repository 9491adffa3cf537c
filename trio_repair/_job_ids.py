"""Ids of jobs, drawn many at once.

To ask the system lets go of the interpreter lock, and to get it back from a store's thread takes longer than all else
that a new job takes. What comes out is what uuid4 makes its hex of.
"""

from __future__ import annotations

import os
from typing import Final

_FRESH_IDS: Final[list[str]] = []
_IDS_AT_ONCE: Final = 256


def new_job_id() -> str:
    """32 hexadecimal digits, of 16 random bytes from the system."""
    try:
        return _FRESH_IDS.pop()
    except IndexError:
        drawn = os.urandom(16 * (_IDS_AT_ONCE + 1)).hex()
        _FRESH_IDS.extend(drawn[start : start + 32] for start in range(32, len(drawn), 32))
        return drawn[:32]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_FRESH_IDS.clear)  # or parent and child would name two jobs alike
