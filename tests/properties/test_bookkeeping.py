"""I9, I10, I12 to I16: counting, attribution, exclusion, limits, deadlines, errors."""

from __future__ import annotations

from hypothesis import given

from .laws import LAWS, examples
from .scenario import Scenario


@examples(40)
@given(LAWS["i09"].draw)
def test_i09_conservation(scenario: Scenario) -> None:
    """The totals add up after every step, and each accepted job gets exactly one result."""
    LAWS["i09"].holds(scenario)


@examples(60)
@given(LAWS["i10"].draw)
def test_i10_one_poison_document_fails_alone(scenario: Scenario) -> None:
    """The companions of a document that spoils its bulk calls end as they would without it."""
    LAWS["i10"].holds(scenario)


@examples(50)
@given(LAWS["i12"].draw)
def test_i12_one_repair_at_a_time_for_a_document(scenario: Scenario) -> None:
    """No repair starts while another of its document runs, or while a store still works on its write."""
    LAWS["i12"].holds(scenario)


@examples(40)
@given(LAWS["i13"].draw)
def test_i13_the_limit_in_force_holds(scenario: Scenario) -> None:
    """No repair starts beyond the limit, which changes while they run."""
    LAWS["i13"].holds(scenario)


@examples(25)
@given(LAWS["i14"].draw)
def test_i14_a_stuck_document_delays_no_other(scenario: Scenario) -> None:
    """A document whose calls hang delays the others by no more than two calls that are given up."""
    LAWS["i14"].holds(scenario)


@examples(25)
@given(LAWS["i14 starvation"].draw)
def test_i14_nobody_starves(scenario: Scenario) -> None:
    """A job starts before every one that is accepted its rank times aging_seconds after it."""
    LAWS["i14 starvation"].holds(scenario)


@examples(50)
@given(LAWS["i15"].draw)
def test_i15_what_is_over_is_over(scenario: Scenario) -> None:
    """Nothing is active past its timeout, nothing that timed out runs again, nothing outlives the engine."""
    LAWS["i15"].holds(scenario)


@examples(50)
@given(LAWS["i16"].draw)
def test_i16_errors_stay_where_they_happen(scenario: Scenario) -> None:
    """An exception fails its own repair, Cancelled reaches who was cancelled, errors beside a timeout are kept."""
    LAWS["i16"].holds(scenario)
