"""I1 to I8: what the engine may do to the stores, and what it may say about it."""

from __future__ import annotations

from hypothesis import given

from .laws import LAWS, examples
from .scenario import Scenario


@examples(40)
@given(LAWS["i01"].draw)
def test_i01_no_write_lands_on_a_state_that_was_not_observed(scenario: Scenario) -> None:
    """Whatever goes wrong, each write displaces a state that was seen and follows from what was seen."""
    LAWS["i01"].holds(scenario)


@examples(40)
@given(LAWS["i01 contended"].draw)
def test_i01_nor_while_others_write(scenario: Scenario) -> None:
    """The same beside an application and a rival; under MOST_RECENT no number decreases."""
    LAWS["i01 contended"].holds(scenario)


@examples(40)
@given(LAWS["i02"].draw)
def test_i02_no_copy_is_lost_without_a_decision(scenario: Scenario) -> None:
    """A store that held a readable copy holds one after every write, unless a delete was decided."""
    LAWS["i02"].holds(scenario)


@examples(40)
@given(LAWS["i03"].draw)
def test_i03_no_resurrection(scenario: Scenario) -> None:
    """No strategy and no plan writes anything at or below a tombstone over it, or beside it."""
    LAWS["i03"].holds(scenario)


@examples(40)
@given(LAWS["i04"].draw)
def test_i04_deletes_have_a_reason(scenario: Scenario) -> None:
    """A delete needs a tombstone that was seen, or a setting and an absence that was seen; unreachable is neither."""
    LAWS["i04"].holds(scenario)


@examples(40)
@given(LAWS["i05"].draw)
def test_i05_looking_changes_nothing(scenario: Scenario) -> None:
    """What no write was sent to is as it was, token included, whatever failed or was cancelled."""
    LAWS["i05"].holds(scenario)


@examples(40)
@given(LAWS["i05 blocked"].draw)
def test_i05_what_fails_before_its_first_write_changes_nothing(scenario: Scenario) -> None:
    """With observe, read or prepare failing or hanging, no write is sent and the stores are identical."""
    LAWS["i05 blocked"].holds(scenario)


@examples(40)
@given(LAWS["i06"].draw)
def test_i06_the_undecidable_is_not_decided(scenario: Scenario) -> None:
    """What the table leaves to a person has no effect and no success, and is not left to one otherwise."""
    LAWS["i06"].holds(scenario)


@examples(40)
@given(LAWS["i07"].draw)
def test_i07_only_what_was_planned_is_done(scenario: Scenario) -> None:
    """A plan has the planned effects on the planned states or none, and a document that moved is refused."""
    LAWS["i07"].holds(scenario)


@examples(50)
@given(LAWS["i08"].draw)
def test_i08_success_is_what_was_read_back(scenario: Scenario) -> None:
    """Success if and only if the critical stores were read back equal; each word of a receipt is true."""
    LAWS["i08"].holds(scenario)


@examples(50)
@given(LAWS["i08 contended"].draw)
def test_i08_receipts_are_true_while_others_write(scenario: Scenario) -> None:
    """The same beside an application and a rival, with verdicts that get lost."""
    LAWS["i08 contended"].holds(scenario)
