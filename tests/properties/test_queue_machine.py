"""The work queue alone, step by step against a model that walks over everything."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from trio_repair import RepairJob, RepairPriority, SyncStrategy
from trio_repair._queue import WorkQueue
from trio_repair._ticket import Entry, Mission, Ticket

from .planted import Bug, planted

AGING = 1.0
DOCS = ("a", "b")


@attrs.define(eq=False)
class Pending:
    """What the model knows of an entry."""

    key: float
    share: str
    tickets: list[Ticket]
    attempts: int = 0
    backing_off: bool = False
    entry: Entry = attrs.field(init=False)


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = WorkQueue(AGING)
        self.now = 0.0
        self.waiting: dict[str, list[Pending]] = {doc_id: [] for doc_id in DOCS}
        self.running: dict[str, Pending] = {}
        self.locks: dict[str, list[str]] = {doc_id: [] for doc_id in DOCS}

    def pending_tickets(self) -> list[Ticket]:
        return [ticket for pendings in self.waiting.values() for pending in pendings for ticket in pending.tickets]

    def ready(self) -> dict[str, float]:
        """The documents that may run, and the most urgent key that waits for each."""
        return {
            doc_id: min(pending.key for pending in pendings)
            for doc_id, pendings in self.waiting.items()
            if pendings and not pendings[0].backing_off and doc_id not in self.running and not self.locks[doc_id]
        }

    @rule(
        doc_id=st.sampled_from(DOCS),
        priority=st.sampled_from(RepairPriority),
        share=st.sampled_from(["x", "x", "y"]),
        later=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    )
    def add(self, doc_id: str, priority: RepairPriority, share: str, later: float) -> None:
        self.now += later
        job = RepairJob(doc_id=doc_id, strategy=SyncStrategy.MOST_RECENT, priority=priority)
        ticket = Ticket(job, self.now, None, None)
        entry = self.queue.add(ticket, share, Mission(SyncStrategy.MOST_RECENT), self.now)
        key = self.now + priority * AGING
        pendings = self.waiting[doc_id]
        if pendings and pendings[-1].share == share and pendings[-1].attempts == 0:
            joined = pendings[-1]
            joined.tickets.append(ticket)
            joined.key = min(joined.key, key)
            assert entry is joined.entry
        else:
            pendings.append(Pending(key, share, [ticket]))
            pendings[-1].entry = entry
        assert ticket.entry is entry

    @rule()
    def pop(self) -> None:
        ready = self.ready()
        entry = self.queue.pop()
        if entry is None:
            assert {} == ready
            return
        assert entry.doc_id in ready, f"{entry.doc_id} may not run"
        assert min(ready.values()) == ready[entry.doc_id]
        pending = self.waiting[entry.doc_id].pop(0)
        assert entry is pending.entry
        assert pending.tickets == entry.tickets
        pending.attempts += 1
        entry.attempts += 1
        self.running[entry.doc_id] = pending

    @precondition(lambda self: self.running)
    @rule(data=st.data(), locks=st.sampled_from([(), (), ("text",), ("text", "vector")]))
    def finish(self, data: st.DataObject, locks: tuple[str, ...]) -> None:
        doc_id = data.draw(st.sampled_from(sorted(self.running)))
        self._lock(doc_id, locks)
        self.queue.finish(self.running.pop(doc_id).entry)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), locks=st.sampled_from([(), (), ("vector",)]))
    def back_off(self, data: st.DataObject, locks: tuple[str, ...]) -> None:
        doc_id = data.draw(st.sampled_from(sorted(self.running)))
        self._lock(doc_id, locks)
        pending = self.running.pop(doc_id)
        pending.backing_off = True
        self.waiting[doc_id].insert(0, pending)
        self.queue.put_back(pending.entry, self.now + 1)

    def _lock(self, doc_id: str, stores: tuple[str, ...]) -> None:
        if stores:
            self.locks[doc_id] += stores
            self.queue.lock(doc_id, stores)

    @precondition(lambda self: any(self.locks.values()))
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        doc_id = data.draw(st.sampled_from([doc_id for doc_id in DOCS if self.locks[doc_id]]))
        self.queue.unlock(doc_id, self.locks[doc_id].pop(0))

    @rule(data=st.data())
    def make_ready(self, data: st.DataObject) -> None:
        for pendings in self.waiting.values():
            if pendings and pendings[0].backing_off and data.draw(st.booleans()):
                pendings[0].backing_off = False
                self.queue.make_ready(pendings[0].entry)

    @precondition(lambda self: self.pending_tickets())
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        tickets = self.pending_tickets()
        ticket = tickets[data.draw(st.integers(0, len(tickets) - 1))]
        self.queue.discard(ticket)
        pendings = self.waiting[ticket.job.doc_id]
        (pending,) = (pending for pending in pendings if ticket in pending.tickets)
        pending.tickets.remove(ticket)
        if not pending.tickets:
            pendings.remove(pending)
            if pending.backing_off:
                # Its timer is still there, and finds it gone.
                self.queue.make_ready(pending.entry)

    @invariant()
    def the_same_wait(self) -> None:
        tickets = self.pending_tickets()
        assert len(tickets) == len(self.queue)
        assert {id(ticket) for ticket in tickets} == {id(ticket) for ticket in self.queue.tickets()}
        for doc_id in DOCS:
            ours = [ticket for pending in self.waiting[doc_id] for ticket in pending.tickets]
            assert ours == list(self.queue.waiting_on(doc_id))
            assert (self.locks[doc_id] or [None])[0] == self.queue.locked_by(doc_id)
        assert sum(1 for locks in self.locks.values() if locks) == self.queue.locked_documents()

    @invariant()
    def nothing_is_kept_for_nobody(self) -> None:
        known = {doc_id for doc_id in DOCS if self.waiting[doc_id] or self.locks[doc_id] or doc_id in self.running}
        assert known == set(self.queue._slots)
        assert len(self.queue._ready) <= 65 + 2 * len(known)

    def teardown(self) -> None:
        """Whatever waits comes out in the end."""
        for doc_id, locks in self.locks.items():
            while locks:
                self.queue.unlock(doc_id, locks.pop(0))
        for pending in list(self.running.values()):
            self.queue.finish(pending.entry)
        self.running.clear()
        for pendings in self.waiting.values():
            if pendings and pendings[0].backing_off:
                pendings[0].backing_off = False
                self.queue.make_ready(pendings[0].entry)
        while self.pending_tickets():
            self.pop()
            (doc_id,) = self.running
            self.queue.finish(self.running.pop(doc_id).entry)
        assert self.queue.pop() is None


QueueMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


class TestI12AndI14TheQueueIsItsModel(QueueMachine.TestCase):  # type: ignore[misc,name-defined]  # made by Hypothesis when it is asked for
    """One entry of a document at a time, urgent ones first with aging, equal requests together, nothing lost."""


def _withdraw_an_urgent_job() -> None:
    machine = QueueMachine()
    machine.add("a", RepairPriority.LOW, "x", 0.0)
    machine.add("a", RepairPriority.CRITICAL, "y", 0.0)
    machine.add("b", RepairPriority.MEDIUM, "x", 0.0)
    machine.queue.discard(machine.waiting["a"].pop().tickets[0])
    machine.pop()
    assert ["b"] == list(machine.running)


def test_an_urgent_job_that_is_withdrawn_takes_its_urgency_along() -> None:
    """What waits before it goes back to its own place."""
    _withdraw_an_urgent_job()


def test_control_urgency_that_outlives_its_job_is_noticed() -> None:
    """The same fails for a queue that keeps the place which a withdrawn job had lent."""
    bug = Bug("urgency outlives its job", "_queue:WorkQueue.discard", " or entry.key <= slot.heap_key", "")
    with planted(bug), pytest.raises(AssertionError, match="assert"):
        _withdraw_an_urgent_job()


BUGS = [
    Bug("a document runs twice", "_queue:WorkQueue.pop", "slot.running = entry", "slot.running = None"),
    Bug("a lock is dropped", "_queue:WorkQueue.lock", "slot.locked_by += tuple(stores)", "pass"),
    Bug(
        "priority without aging", "_queue:WorkQueue.add", "key = now + job.priority * self._aging", "key = job.priority"
    ),
    Bug("unlike requests join", "_queue:WorkQueue.add", "and last.share_key == share_key", ""),
    Bug("a job joins one that was started", "_queue:WorkQueue.add", "last.attempts == 0 and", ""),
    Bug("the higher priority loses", "_queue:WorkQueue.add", "min(entry.key, key)", "max(entry.key, key)"),
    Bug(
        "a back-off is not waited for",
        "_queue:WorkQueue.put_back",
        "entry.ready_at = ready_at",
        "entry.ready_at = None",
    ),
    Bug("who waits behind a back-off is forgotten", "_queue:WorkQueue.make_ready", "if slot is not None:", "if False:"),
    Bug("a slot is never dropped", "_queue:WorkQueue._offer_or_drop", "del self._slots[doc_id]", "pass"),
    Bug("withdrawn jobs are counted", "_queue:WorkQueue.discard", "self._waiting -= 1", "pass"),
]


@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_control_the_machine_finds_a_planted_bug(bug: Bug) -> None:
    """The model disagrees with a queue that has a planted bug."""
    with planted(bug), pytest.raises(Exception):  # noqa: B017 - whatever breaks first
        run_state_machine_as_test(
            QueueMachine,
            settings=settings(
                max_examples=300,
                stateful_step_count=25,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
