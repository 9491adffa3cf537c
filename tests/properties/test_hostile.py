"""I18 and I19: inputs that are hostile, and texts that nobody may tell."""

from __future__ import annotations

from hypothesis import given

from .laws import LAWS, examples
from .scenario import Scenario


@examples(40)
@given(LAWS["i18"].draw)
def test_i18_hostile_ids_touch_only_their_own_rows(scenario: Scenario) -> None:
    """Ids with quotes, patterns and look-alikes are repaired as any other, and their neighbours are left alone."""
    LAWS["i18"].holds(scenario)


@examples(40)
@given(LAWS["i19"].draw)
def test_i19_no_text_is_told(scenario: Scenario) -> None:
    """Events, results, receipts, reprs and logs hold no document text, even when a driver's errors quote it."""
    LAWS["i19"].holds(scenario)
