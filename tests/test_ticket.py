"""What an accepted job and a repair know of themselves before anything has happened."""

from __future__ import annotations

import pytest
from decision_states import POLICY, views_of
from engine_world import job

from trio_repair import RepairPhase, SyncStrategy, plan_repair
from trio_repair._planning import plan_resolution
from trio_repair._progress import Progress
from trio_repair._ticket import Entry, Mission, Ticket

RECENT = SyncStrategy.MOST_RECENT
PLAN = plan_repair("d", views_of("L2a", "L1b"), RECENT, POLICY, now=0.0)
RESOLUTION = plan_resolution("d", views_of("L2a", "L1b"), "text", POLICY)


def test_a_ticket_waits_for_its_result():
    """It keeps what it was accepted with, and nothing else is known yet."""
    told: list[Ticket] = []
    accepted = job("d")
    ticket = Ticket(accepted, 3.0, 9.0, told.append)
    assert (accepted, 3.0, 9.0) == (ticket.job, ticket.accepted_at, ticket.deadline)
    assert (None, None, None, None) == (ticket.result, ticket.event, ticket.timer, ticket.lock_timer)
    assert ticket.on_settled is not None
    ticket.on_settled(ticket)
    assert [ticket] == told


def test_a_repair_that_was_not_started_has_no_history():
    """No attempt, no time, no progress; it neither backs off nor was told to stop."""
    mission = Mission(RECENT)
    entry = Entry("d", 4.0, ("key",), mission)
    known = {name: getattr(entry, name) for name in Entry.__slots__}
    assert {
        "doc_id": "d",
        "key": 4.0,
        "share_key": ("key",),
        "mission": mission,
        "tickets": [],
    }.items() <= known.items()
    assert [0, 0, 0, 0.0, 0.0, 0.0] == [
        known[name] for name in ("attempt", "attempts", "retries", "started_at", "timeout_at", "running_seconds")
    ]
    assert {None} == {known[name] for name in ("ready_at", "progress", "scope", "first_started_at")}
    assert {False} == {known[name] for name in ("cancelled", "overdue")}
    assert RepairPhase.OBSERVE is entry.phase


def test_the_phase_of_a_repair_is_that_of_its_progress():
    """Once it has begun, it is where its progress says."""
    entry = Entry("d", 0.0, (), Mission(RECENT))
    entry.progress = Progress({})
    entry.progress.phase = RepairPhase.WRITE
    assert RepairPhase.WRITE is entry.phase


@pytest.mark.parametrize(
    ("mission", "moves", "follows"),
    [
        (Mission(RECENT), True, None),
        (Mission(RECENT, plan=PLAN), False, "most-recent"),
        (Mission(RECENT, plan=RESOLUTION), False, "resolution"),
        (Mission(RECENT, choice="text"), False, "resolution"),
    ],
)
def test_whose_decision_is_carried_out(mission: Mission, moves: bool, follows: str | None):
    """Only a strategy of the job's own may decide anew; a plan names its strategy, a person's choice is a resolution."""
    assert (moves, follows) == (mission.moves_with_the_document, mission.follows)
