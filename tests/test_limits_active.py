"""Live limits, and the table of running repairs."""

from __future__ import annotations

import pytest
from engine_world import job

from trio_repair import InvalidValue, RepairPhase, SyncStrategy
from trio_repair._active import ActiveTable
from trio_repair._limits import Limits
from trio_repair._ticket import Entry, Mission, Ticket


def test_assigning_a_limit_has_effect_at_once():
    """Each assignment is stored and announced once."""
    changes = []
    limits = Limits(2, 10, lambda: changes.append((limits.max_concurrent_jobs, limits.max_queued_jobs)))
    limits.max_concurrent_jobs = 5
    limits.max_queued_jobs = 7
    assert [(5, 10), (5, 7)] == changes
    assert "<Limits: 5 concurrent, 7 queued>" == repr(limits)
    limits.max_concurrent_jobs = 1
    assert (1, 7) == changes[-1]


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, None, float("nan")])
@pytest.mark.parametrize("name", ["max_concurrent_jobs", "max_queued_jobs"])
def test_a_limit_that_makes_no_sense_is_refused_and_changes_nothing(name, value):
    """The error names the limit; the old value stays; nobody is told."""
    changes = []
    limits = Limits(2, 10, lambda: changes.append(1))
    with pytest.raises(InvalidValue, match=f"{name}: must be an int of at least 1"):
        setattr(limits, name, value)
    assert (2, 10, []) == (limits.max_concurrent_jobs, limits.max_queued_jobs, changes)


def _running(*job_ids: str, started_at: float = 0.0, timeout_at: float = 10.0) -> Entry:
    entry = Entry("d", 0.0, (), Mission(SyncStrategy.MOST_RECENT))
    entry.started_at, entry.timeout_at = started_at, timeout_at
    entry.tickets = [Ticket(job(id=job_id), 0.0, None, None) for job_id in job_ids]
    return entry


def test_a_row_for_each_job_id():
    """Jobs that share a repair each have a row with its times and phase."""
    table = ActiveTable()
    table.add(_running("a", "b"))
    rows = table.rows(1.0)
    assert {"a": "a", "b": "b"} == {job_id: row.job.id for job_id, row in rows.items()}
    assert (0.0, 10.0, RepairPhase.OBSERVE) == (rows["a"].started_at, rows["a"].timeout_at, rows["a"].phase)


def test_i15_what_is_past_its_time_is_overdue_and_not_shown():
    """At its very deadline a repair is still shown and may be told to stop; after it, it is overdue and keeps its slot."""
    table = ActiveTable()
    entry = _running("a")
    table.add(entry)
    assert ([], 0, {"a"}) == (table.past_deadline(9.9), table.overdue(9.9), set(table.rows(9.9)))
    assert ([entry], 0, {"a"}) == (table.past_deadline(10.0), table.overdue(10.0), set(table.rows(10.0)))
    assert (1, set(), 1) == (table.overdue(10.1), set(table.rows(10.1)), len(table))
    entry.overdue = True
    assert (1, set()) == (table.overdue(5.0), set(table.rows(5.0)))
    table.remove(entry)
    table.remove(entry)
    assert (0, 0) == (len(table), table.overdue(11.0))


def test_i20_rows_come_in_the_order_in_which_repairs_started():
    """The order does not depend on where objects lie in memory, or no seed could be replayed in another process."""
    table = ActiveTable()
    names = [f"job-{index}" for index in range(50)]
    for name in names:
        table.add(_running(name))
    assert names == list(table.rows(0.0))
    assert names == [entry.tickets[0].job.id for entry in table.past_deadline(11.0)]
