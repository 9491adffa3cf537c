"""The work queue: which repair starts next. Synchronous; time is passed in, and nothing here waits.

After client-go's workqueue: one slot for each document, a document never runs twice at once, requests that ask
for the same collapse, and a request for a running document runs once more afterwards.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import cast

from ._ticket import Entry, Mission, Ticket


class _Slot:
    """One document. Invariant: it exists while it has a pending, running or locking entry."""

    __slots__ = ("heap_key", "heap_order", "locked_by", "pending", "running")

    def __init__(self) -> None:
        # As a rule there is none while one runs, and then there is no list either: it would cost as much as the slot.
        self.pending: Sequence[Entry] = ()
        self.running: Entry | None = None
        self.locked_by: tuple[str, ...] = ()
        self.heap_order = -1
        self.heap_key = 0.0


def _remove(slot: _Slot, entry: Entry) -> None:
    if len(slot.pending) == 1:
        slot.pending = ()
    else:
        cast("list[Entry]", slot.pending).remove(entry)


class WorkQueue:
    """Pending repairs by document, in order of priority with aging.

    The sort key is a virtual time: acceptance plus `aging` seconds for each step below CRITICAL. It never changes
    while a job waits, so that aging costs nothing, and a job of rank r starts before every CRITICAL one that is
    accepted r * aging seconds after it.

    Invariants:
        - A slot is in `_ready` (with its current `heap_order`) if and only if it has a pending entry, nothing runs,
          nothing locks it, and the entry at its head is not backing off.
        - `_waiting` is the number of tickets in pending entries.
    """

    def __init__(self, aging: float) -> None:
        self._aging = aging
        self._slots: dict[str, _Slot] = {}
        self._ready: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def __repr__(self) -> str:
        return f"<WorkQueue: {self._waiting} waiting, {len(self._slots)} documents>"

    def add(self, ticket: Ticket, share_key: Hashable, mission: Mission, now: float) -> Entry:
        """Queue a ticket: join the last pending entry of its document if that asks for the same, else wait behind it.

        Only the last one is joined, so that requests of different kinds keep their order.
        """
        job = ticket.job
        slot = self._slots.get(job.doc_id)
        if slot is None:
            slot = self._slots[job.doc_id] = _Slot()
        key = now + job.priority * self._aging
        last = slot.pending[-1] if slot.pending else None
        if last is not None and last.attempts == 0 and last.share_key == share_key:
            entry = last
            entry.key = min(entry.key, key)
        else:
            entry = Entry(job.doc_id, key, share_key, mission)
            if slot.pending:
                cast("list[Entry]", slot.pending).append(entry)
            else:
                slot.pending = [entry]
        ticket.entry = entry
        entry.tickets.append(ticket)
        self._waiting += 1
        if slot.heap_order < 0:
            self._offer(job.doc_id, slot)
        elif entry.key < slot.heap_key:
            # In the heap already, under the least key of those before: no need to walk over them again.
            self._push(job.doc_id, slot, entry.key)
        return entry

    def pop(self) -> Entry | None:
        """Take the entry that is to run next, or None. Its document counts as running until `finish`."""
        while self._ready:
            item = heapq.heappop(self._ready)
            if not self._is_current(item):
                continue
            slot = self._slots[item[2]]
            slot.heap_order = -1
            entry = slot.pending[0]
            _remove(slot, entry)
            slot.running = entry
            self._waiting -= len(entry.tickets)
            return entry
        return None

    def put_back(self, entry: Entry, ready_at: float) -> None:
        """Return a running entry to the head of its document, to run again at `ready_at` (see `make_ready`)."""
        slot = self._slots[entry.doc_id]
        slot.running = None
        entry.ready_at = ready_at
        slot.pending = [entry, *slot.pending]
        self._waiting += len(entry.tickets)

    def make_ready(self, entry: Entry) -> None:
        """The back-off of an entry is over."""
        entry.ready_at = None
        slot = self._slots.get(entry.doc_id)
        if slot is not None:
            self._offer(entry.doc_id, slot)

    def finish(self, entry: Entry) -> None:
        """The repair has ended for good."""
        slot = self._slots[entry.doc_id]
        slot.running = None
        self._offer_or_drop(entry.doc_id, slot)

    def lock(self, doc_id: str, stores: Iterable[str]) -> None:
        """Keep a document from running while these stores still work on writes of an ended attempt."""
        slot = self._slots.setdefault(doc_id, _Slot())
        slot.locked_by += tuple(stores)
        slot.heap_order = -1

    def holds(self, entry: Entry) -> bool:
        """True if the entry waits; False if it runs. Only for entries that are not settled."""
        return self._slots[entry.doc_id].running is not entry

    def unlock(self, doc_id: str, store: str) -> None:
        """A write that outlived its repair has ended."""
        slot = self._slots[doc_id]
        index = slot.locked_by.index(store)
        slot.locked_by = slot.locked_by[:index] + slot.locked_by[index + 1 :]
        self._offer_or_drop(doc_id, slot)

    def locked_by(self, doc_id: str) -> str | None:
        """The store that still works on a write of an ended repair of this document."""
        slot = self._slots.get(doc_id)
        return slot.locked_by[0] if slot is not None and slot.locked_by else None

    def locked_documents(self) -> int:
        """How many documents are locked. O(documents in the queue)."""
        return sum(1 for slot in self._slots.values() if slot.locked_by)

    def discard(self, ticket: Ticket) -> None:
        """Forget a waiting ticket; its entry goes with its last one."""
        entry = ticket.entry
        slot = self._slots[entry.doc_id]
        entry.tickets.remove(ticket)
        self._waiting -= 1
        if entry.tickets:
            return
        # The next entry is not ready because this one was, nor urgent because this one was.
        lent_its_place = slot.pending[0] is entry or entry.key <= slot.heap_key
        _remove(slot, entry)
        if lent_its_place:
            slot.heap_order = -1
        self._offer_or_drop(entry.doc_id, slot)

    def waiting_on(self, doc_id: str) -> Iterator[Ticket]:
        """The tickets that wait for this document."""
        slot = self._slots.get(doc_id)
        if slot is not None:
            for entry in slot.pending:
                yield from entry.tickets

    def tickets(self) -> list[Ticket]:
        """Every waiting ticket, in no promised order."""
        return [ticket for slot in self._slots.values() for entry in slot.pending for ticket in entry.tickets]

    def _offer_or_drop(self, doc_id: str, slot: _Slot) -> None:
        if slot.pending:
            self._offer(doc_id, slot)
        elif slot.running is None and not slot.locked_by:
            del self._slots[doc_id]

    def _offer(self, doc_id: str, slot: _Slot) -> None:
        """Put the slot into the heap if its head may run. A later offer replaces an earlier one."""
        if slot.running is not None or slot.locked_by or not slot.pending or slot.pending[0].ready_at is not None:
            return
        # An urgent request behind a less urgent one lends it its urgency: they run in order of arrival.
        key = slot.pending[0].key if len(slot.pending) == 1 else min(entry.key for entry in slot.pending)
        if slot.heap_order < 0 or key < slot.heap_key:
            self._push(doc_id, slot, key)

    def _push(self, doc_id: str, slot: _Slot, key: float) -> None:
        slot.heap_order = next(self._order)
        slot.heap_key = key
        heapq.heappush(self._ready, (key, slot.heap_order, doc_id))
        if len(self._ready) > 64 + 2 * len(self._slots):
            self._ready = [item for item in self._ready if self._is_current(item)]
            heapq.heapify(self._ready)

    def _is_current(self, item: tuple[float, int, str]) -> bool:
        slot = self._slots.get(item[2])
        return slot is not None and slot.heap_order == item[1]
