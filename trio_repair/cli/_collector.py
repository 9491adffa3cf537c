"""How often Python's garbage collector runs in a process that is all ours."""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (100_000, 20, 50)
"""For `gc.set_threshold`. A repair makes some eighty small objects that live as long as it does. By default, (700, 10,
10) in Python 3.11, the collector walks over those of all running repairs again and again and finds nothing."""


def settle_collector() -> None:
    """Let the collector run less often. A library must not do that to its host; a command may."""
    gc.set_threshold(*THRESHOLDS)
