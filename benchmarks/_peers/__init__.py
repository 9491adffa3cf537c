"""What `benchmarks.peers` compares the engine with, a module for each library that is needed.

A module is imported only when its peer is measured, so that a library that is not installed leaves out that peer alone.
Each offers a contender: a context manager that gets so many jobs ready, with whatever has to be started, outside the
time that is measured, and gives a function that runs them, `CONCURRENCY` at a time and each under `TIMEOUT`, and
returns how many have run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

from benchmarks.engine_cost import CONCURRENCY, TIMEOUT

__all__ = ["CONCURRENCY", "TIMEOUT", "Contender", "Left", "Work"]

Work: TypeAlias = Callable[[], int]
Contender: TypeAlias = Callable[[int], AbstractContextManager[Work]]


class Left(Exception):
    """Something that a peer needs is not here; says what."""
