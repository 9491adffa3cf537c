"""I11: repairs come to an end, in one and the same state."""

from __future__ import annotations

from hypothesis import given

from .laws import LAWS, examples
from .scenario import Scenario


@examples(45)
@given(LAWS["i11"].draw)
def test_i11_bounded_runs_converge_and_the_last_one_writes_nothing(scenario: Scenario) -> None:
    """Once faults stop, what is decidable becomes equal, the rest stays as it was, and one more run is idle."""
    LAWS["i11"].holds(scenario)
