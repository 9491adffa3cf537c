"""Limits that can be changed while the engine runs."""

from __future__ import annotations

from collections.abc import Callable

from ._errors import InvalidValue
from ._model import quoted


class Limits:
    """How much the engine takes on. Assigning a new value has effect at once; it never stops a running repair."""

    __slots__ = ("_changed", "_max_concurrent_jobs", "_max_queued_jobs")

    def __init__(self, max_concurrent_jobs: int, max_queued_jobs: int, changed: Callable[[], None]) -> None:
        self._max_concurrent_jobs = max_concurrent_jobs
        self._max_queued_jobs = max_queued_jobs
        self._changed = changed

    def __repr__(self) -> str:
        return f"<Limits: {self._max_concurrent_jobs} concurrent, {self._max_queued_jobs} queued>"

    @property
    def max_concurrent_jobs(self) -> int:
        """How many repairs may run at once; at least 1.

        Raises:
            InvalidValue: on assignment of anything else.
        """
        return self._max_concurrent_jobs

    @max_concurrent_jobs.setter
    def max_concurrent_jobs(self, value: int) -> None:
        self._max_concurrent_jobs = _positive("max_concurrent_jobs", value)
        self._changed()

    @property
    def max_queued_jobs(self) -> int:
        """How many accepted jobs may wait; at least 1. Lowering it drops none.

        Raises:
            InvalidValue: on assignment of anything else.
        """
        return self._max_queued_jobs

    @max_queued_jobs.setter
    def max_queued_jobs(self, value: int) -> None:
        self._max_queued_jobs = _positive("max_queued_jobs", value)
        self._changed()


def _positive(field: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidValue(field, f"must be an int of at least 1, not {quoted(value)}")
    return value
