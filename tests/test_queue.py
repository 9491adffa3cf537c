"""The work queue against a plain model, and its bounds."""

from __future__ import annotations

import pytest
from engine_world import job
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_repair import RepairPriority, SyncStrategy
from trio_repair._queue import WorkQueue
from trio_repair._ticket import Entry, Mission, Ticket

MISSION = Mission(SyncStrategy.MOST_RECENT)


def _ticket(doc_id: str = "d", priority: RepairPriority = RepairPriority.MEDIUM, **given) -> Ticket:
    return Ticket(job(doc_id, priority=priority, **given), 0.0, None, None)


def _add(queue: WorkQueue, ticket: Ticket, key: object = "same", now: float = 0.0) -> Entry:
    return queue.add(ticket, key, MISSION, now)


def _drain(queue: WorkQueue) -> list[str]:
    order = []
    while (entry := queue.pop()) is not None:
        order.append(entry.doc_id)
        queue.finish(entry)
    return order


def test_by_priority_then_by_arrival():
    """Of jobs that came together the more urgent starts first, and equals in order of arrival."""
    queue = WorkQueue(aging=5.0)
    for doc_id, priority in (("l", 3), ("m1", 2), ("c", 0), ("m2", 2), ("h", 1)):
        _add(queue, _ticket(doc_id, RepairPriority(priority)))
    assert ["c", "h", "m1", "m2", "l"] == _drain(queue)


@pytest.mark.parametrize(("aging", "starved"), [(5.0, False), (1e12, True)])
def test_i14_no_starvation(aging: float, starved: bool):
    """A LOW job starts before CRITICAL ones accepted 15 s after it; the control without aging never starts it."""
    queue = WorkQueue(aging=aging)
    _add(queue, _ticket("low", RepairPriority.LOW), now=0.0)
    started = []
    for second in range(60):
        for index in range(2):
            _add(queue, _ticket(f"critical {second}.{index}", RepairPriority.CRITICAL), now=float(second))
        entry = queue.pop()
        assert entry is not None
        started.append(entry.doc_id)
        queue.finish(entry)
    assert starved == ("low" not in started)


def test_i12_a_document_that_runs_is_not_given_out_again():
    """A request for a running document waits, and runs once more after it."""
    queue = WorkQueue(5.0)
    first = _add(queue, _ticket())
    assert first is queue.pop()
    second = _add(queue, _ticket())
    third = _add(queue, _ticket())
    assert second is third is not first
    assert queue.pop() is None
    assert not queue.holds(first)
    assert queue.holds(second)
    queue.finish(first)
    assert second is queue.pop()


def test_join_only_the_last_and_only_what_asks_for_the_same():
    """A, B, A keep their order: the second A does not overtake B by joining the first."""
    queue = WorkQueue(5.0)
    entries = [_add(queue, _ticket(), key) for key in ("a", "a", "b", "a")]
    assert [True, False, False] == [entries[0] is other for other in entries[1:]]
    order = []
    while (entry := queue.pop()) is not None:
        order.append(entry)
        queue.finish(entry)
    assert [entries[0], entries[2], entries[3]] == order


def test_an_urgent_companion_lends_its_urgency():
    """Joining with a higher priority moves the repair forward, and so does waiting behind it."""
    queue = WorkQueue(5.0)
    _add(queue, _ticket("other", RepairPriority.HIGH))
    _add(queue, _ticket("joined", RepairPriority.LOW))
    _add(queue, _ticket("joined", RepairPriority.CRITICAL))
    _add(queue, _ticket("behind", RepairPriority.LOW), "a", now=0.1)
    _add(queue, _ticket("behind", RepairPriority.CRITICAL), "b", now=0.1)
    assert ["joined", "behind", "behind", "other"] == _drain(queue)


def test_a_companion_that_is_in_no_hurry_takes_no_urgency_away():
    """The most urgent of those that share a repair decides when it starts, whoever comes last."""
    queue = WorkQueue(5.0)
    entry = _add(queue, _ticket("shared", RepairPriority.CRITICAL))
    assert entry is _add(queue, _ticket("shared", RepairPriority.LOW))
    _add(queue, _ticket("other", RepairPriority.HIGH))
    assert 0.0 == entry.key
    # Also where its place is computed anew, when a lock on its document ends.
    queue.lock("shared", ["text"])
    queue.unlock("shared", "text")
    assert ["shared", "other"] == _drain(queue)


def test_urgency_is_lent_by_whoever_waits_when_a_document_becomes_free():
    """Requests that came while the document ran count as much as those that came before: the most urgent one decides."""
    queue = WorkQueue(5.0)
    running = _add(queue, _ticket())
    assert running is queue.pop()
    behind = [
        _add(queue, _ticket(priority=priority), priority) for priority in (RepairPriority.LOW, RepairPriority.HIGH)
    ]
    _add(queue, _ticket("other", RepairPriority.MEDIUM))
    queue.finish(running)
    assert behind[0] is queue.pop()


def test_urgency_goes_with_the_request_that_lent_it():
    """The urgent request is withdrawn: what waited before it goes back to its own place, the others keep theirs."""
    queue = WorkQueue(5.0)
    urgent = _ticket("lent", RepairPriority.CRITICAL)
    _add(queue, _ticket("lent", RepairPriority.LOW), "a")
    _add(queue, urgent, "b")
    _add(queue, _ticket("other", RepairPriority.HIGH))
    queue.discard(urgent)
    assert ["other", "lent"] == _drain(queue)


def test_who_withdraws_from_behind_costs_nobody_a_place():
    """Of two documents that are equally urgent the first stays first, though one of its later requests is withdrawn."""
    queue = WorkQueue(5.0)
    _add(queue, _ticket("first"), "a")
    _add(queue, _ticket("second"), "a")
    behind = _ticket("first", RepairPriority.LOW)
    _add(queue, behind, "b")
    queue.discard(behind)
    assert ["first", "second"] == _drain(queue)


def test_a_document_that_is_locked_before_anything_waits_for_it():
    """Requests come and go while it is locked; the one that is left runs once the lock is gone, on its own mission."""
    queue = WorkQueue(5.0)
    queue.lock("d", ["text"])
    _add(queue, _ticket(), "a")
    withdrawn = _ticket()
    _add(queue, withdrawn, "b")
    queue.discard(withdrawn)
    assert queue.pop() is None
    queue.unlock("d", "text")
    entry = queue.pop()
    assert entry is not None
    assert MISSION is entry.mission
    queue.finish(entry)
    assert "<WorkQueue: 0 waiting, 0 documents>" == repr(queue)


def test_an_entry_that_has_run_is_not_joined():
    """A repair that is being tried again is a repair that was started: the newcomer waits behind it."""
    queue = WorkQueue(5.0)
    first = _add(queue, _ticket())
    queue.pop()
    first.attempts = 1
    queue.put_back(first, ready_at=9.0)
    assert first is not _add(queue, _ticket())
    assert queue.pop() is None
    queue.make_ready(first)
    assert first is queue.pop()


def test_a_locked_document_waits_for_every_store_that_locks_it():
    """Two stores lock it; it runs when both have let go, and is named while it waits."""
    queue = WorkQueue(5.0)
    running = _add(queue, _ticket())
    queue.pop()
    queue.lock("d", ["text", "vector"])
    queue.finish(running)
    waiting = _add(queue, _ticket())
    assert (None, "text", 1) == (queue.pop(), queue.locked_by("d"), queue.locked_documents())
    queue.unlock("d", "text")
    assert (None, "vector") == (queue.pop(), queue.locked_by("d"))
    queue.unlock("d", "vector")
    assert (waiting, None) == (queue.pop(), queue.locked_by("d"))


def test_a_lock_takes_a_waiting_document_out_of_the_heap():
    """A document that was ready when it got locked does not run."""
    queue = WorkQueue(5.0)
    _add(queue, _ticket())
    queue.lock("d", ["text"])
    assert queue.pop() is None
    queue.unlock("d", "text")
    assert queue.pop() is not None


def test_discarding_the_head_lets_the_next_one_run():
    """The head backs off and is withdrawn: who waits behind it need not wait for its back-off."""
    queue = WorkQueue(5.0)
    ticket = _ticket()
    first = _add(queue, ticket)
    queue.pop()
    first.attempts = 1
    queue.put_back(first, ready_at=9.0)
    second = _add(queue, _ticket())
    queue.discard(ticket)
    assert second is queue.pop()
    queue.make_ready(first)
    queue.finish(second)
    assert (None, "<WorkQueue: 0 waiting, 0 documents>") == (queue.pop(), repr(queue))


def test_discarding_one_that_is_not_the_head_leaves_the_head_ready():
    """Order and readiness of the others do not change."""
    queue = WorkQueue(5.0)
    first = _add(queue, _ticket(), "a")
    behind = _ticket()
    _add(queue, behind, "b")
    queue.discard(behind)
    assert first is queue.pop()


def test_nothing_is_left_behind():
    """Joins and withdrawals by the thousand, while nothing is popped, leave neither slots nor heap entries."""
    queue = WorkQueue(5.0)
    keep = _add(queue, _ticket("kept", RepairPriority.LOW))
    for index in range(500):
        tickets = [_ticket(f"d{index % 7}", RepairPriority(3 - rank)) for rank in range(4)]
        for ticket in tickets:
            _add(queue, ticket, now=-float(index))
        for ticket in tickets:
            queue.discard(ticket)
    assert "<WorkQueue: 1 waiting, 1 documents>" == repr(queue)
    assert len(queue._ready) <= 64 + 2 * 8 + 1
    assert keep is queue.pop()


def test_many_requests_of_different_kinds_for_one_document_cost_the_same_each(monkeypatch):
    """Ten thousand that cannot be joined are taken without walking over those before; one more urgent is put forward."""
    walks = []
    offer = WorkQueue._offer
    monkeypatch.setattr(WorkQueue, "_offer", lambda *given: walks.append(1) or offer(*given))
    queue = WorkQueue(5.0)
    for index in range(10_000):
        _add(queue, _ticket(), index)
    assert (10_000, 1, 1) == (len(queue), len(queue._ready), len(walks))
    _add(queue, _ticket("other", RepairPriority.HIGH))
    _add(queue, _ticket(priority=RepairPriority.CRITICAL), "urgent")
    assert "d" == queue.pop().doc_id


class QueueMachine(RuleBasedStateMachine):
    """The queue beside a model that keeps, for each document, a list of entries and recomputes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WorkQueue(5.0)
        self.now = 0.0
        self.pending: dict[str, list[Entry]] = {}
        self.running: dict[str, Entry] = {}
        self.locks: dict[str, list[str]] = {}

    def _may_run(self, doc_id: str) -> bool:
        entries = self.pending.get(doc_id)
        return (
            bool(entries) and doc_id not in self.running and not self.locks.get(doc_id) and entries[0].ready_at is None
        )

    @rule(doc_id=st.sampled_from("abc"), priority=st.sampled_from(RepairPriority), key=st.sampled_from("xy"))
    def add(self, doc_id: str, priority: RepairPriority, key: str) -> None:
        self.now += 1.0
        entry = self.queue.add(_ticket(doc_id, priority), key, MISSION, self.now)
        entries = self.pending.setdefault(doc_id, [])
        joins = bool(entries) and entries[-1].attempts == 0 and entries[-1].share_key == key
        assert joins == (bool(entries) and entries[-1] is entry)
        if not joins:
            entries.append(entry)

    @rule()
    def pop(self) -> None:
        ready = {
            doc_id: min(entry.key for entry in self.pending[doc_id]) for doc_id in self.pending if self._may_run(doc_id)
        }
        entry = self.queue.pop()
        assert (entry is None) == (not ready)
        if entry is not None:
            assert entry.doc_id not in self.running
            assert ready[entry.doc_id] <= min(ready.values()) + 1e-9
            assert entry is self.pending[entry.doc_id].pop(0)
            entry.attempts += 1
            self.running[entry.doc_id] = entry

    @precondition(lambda self: self.running)
    @rule(data=st.data(), backs_off=st.booleans(), locks=st.lists(st.sampled_from(["text", "vector"]), max_size=2))
    def end(self, data, backs_off: bool, locks: list[str]) -> None:
        doc_id = data.draw(st.sampled_from(sorted(self.running)))
        entry = self.running.pop(doc_id)
        if locks:
            self.queue.lock(doc_id, locks)
            self.locks.setdefault(doc_id, []).extend(locks)
        if backs_off:
            self.queue.put_back(entry, self.now + 1.0)
            self.pending.setdefault(doc_id, []).insert(0, entry)
        else:
            self.queue.finish(entry)

    @rule(data=st.data())
    def back_off_over(self, data) -> None:
        waiting = [entry for entries in self.pending.values() for entry in entries if entry.ready_at is not None]
        if waiting:
            self.queue.make_ready(data.draw(st.sampled_from(waiting)))

    @rule(data=st.data())
    def unlock(self, data) -> None:
        held = sorted((doc_id, store) for doc_id, stores in self.locks.items() for store in stores)
        if held:
            doc_id, store = data.draw(st.sampled_from(held))
            self.locks[doc_id].remove(store)
            self.queue.unlock(doc_id, store)

    @rule(data=st.data())
    def discard(self, data) -> None:
        tickets = [ticket for entries in self.pending.values() for entry in entries for ticket in entry.tickets]
        if tickets:
            ticket = data.draw(st.sampled_from(tickets))
            entry = ticket.entry
            self.queue.discard(ticket)
            if not entry.tickets:
                self.pending[entry.doc_id].remove(entry)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert sum(len(e.tickets) for entries in self.pending.values() for e in entries) == len(self.queue)
        assert len(self.queue.tickets()) == len(self.queue)
        for doc_id in "abc":
            stores = self.locks.get(doc_id, [])
            assert (self.queue.locked_by(doc_id) is not None) == bool(stores)
            waiting = [ticket for entry in self.pending.get(doc_id, []) for ticket in entry.tickets]
            assert waiting == list(self.queue.waiting_on(doc_id))
        assert sum(1 for stores in self.locks.values() if stores) == self.queue.locked_documents()
        alive = {d for d in "abc" if self.pending.get(d) or d in self.running or self.locks.get(d)}
        assert alive == set(self.queue._slots)
        assert len(self.queue._ready) <= 64 + 2 * 3 + 1


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestQueueMachine = QueueMachine.TestCase
