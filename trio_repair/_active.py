"""The repairs that are running, and what may be said of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ._model import ActiveRepair
from ._ticket import Entry


class ActiveTable:
    """Running entries.

    Invariant: `len(self)` slots are taken. An entry that has been told to stop and has not is overdue: it is no
    longer shown, and it keeps its slot and its document until it ends. One that was cut off has ended before its task
    has: it is gone from here, and keeps its slot until then.
    """

    def __init__(self) -> None:
        # In order of starting, not of addresses in memory: one seed gives one trace, in every process.
        self._entries: dict[Entry, None] = {}
        self._unwinding = 0

    def __len__(self) -> int:
        return len(self._entries) + self._unwinding

    @property
    def running(self) -> int:
        """How many repairs run. Of those that were cut off, only the tasks are left."""
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """The repair starts."""
        self._entries[entry] = None

    def remove(self, entry: Entry) -> None:
        """The repair has ended."""
        self._entries.pop(entry, None)

    def cut_off(self, entry: Entry) -> None:
        """The repair has ended, and its task is still to end."""
        self._entries.pop(entry)
        self._unwinding += 1

    def unwound(self) -> None:
        """The task of one that was cut off ends."""
        self._unwinding -= 1

    def past_deadline(self, now: float) -> list[Entry]:
        """Entries whose time is up. O(running)."""
        return [entry for entry in self._entries if now >= entry.timeout_at]

    def overdue(self, now: float) -> int:
        """How many entries have not stopped although their time is up. O(running)."""
        return sum(1 for entry in self._entries if entry.overdue or _is_late(entry, now))

    def rows(self, now: float) -> Mapping[str, ActiveRepair]:
        """A row for each job id whose repair is running and not overdue. O(running)."""
        return MappingProxyType(
            {
                ticket.job.id: ActiveRepair(
                    job=ticket.job, started_at=entry.started_at, timeout_at=entry.timeout_at, phase=entry.phase
                )
                for entry in self._entries
                if not entry.overdue and not _is_late(entry, now)
                for ticket in entry.tickets
            }
        )


def _is_late(entry: Entry, now: float) -> bool:
    return now > entry.timeout_at
