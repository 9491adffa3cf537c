"""Back-off with full jitter."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_repair._backoff import backoff_delay
from trio_repair._errors import InvalidValue


class _Highest(random.Random):
    """Draws the upper bound of each range."""

    def uniform(self, a: float, b: float) -> float:
        return b


@given(st.integers(1, 5_000), st.floats(0.001, 10), st.floats(0.001, 100), st.integers())
def test_delay_is_within_its_bounds(attempt: int, base: float, cap: float, seed: int) -> None:
    """A delay is never negative, never above the cap, and never above the doubled base; huge attempts do not overflow."""
    delay = backoff_delay(attempt, base=base, cap=cap, rng=random.Random(seed))

    assert 0 <= delay <= cap
    assert delay <= base * 2.0 ** min(attempt - 1, 1000)


def test_upper_bound_doubles_up_to_the_cap() -> None:
    """The bound is base, 2 base, 4 base … and then the cap."""
    bounds = [backoff_delay(attempt, base=0.1, cap=1.0, rng=_Highest()) for attempt in range(1, 7)]

    assert [0.1, 0.2, 0.4, 0.8, 1.0, 1.0] == bounds


def test_jitter_is_full() -> None:
    """Delays of one attempt spread over the whole range, so that clients that failed together come back apart."""
    rng = random.Random(7)
    delays = sorted(backoff_delay(4, base=1.0, cap=100.0, rng=rng) for _ in range(200))

    assert delays[0] < 0.8
    assert 7.2 < delays[-1] <= 8.0


def test_same_seed_same_delays() -> None:
    """The only randomness is the one that is passed in."""

    def delays() -> list[float]:
        rng = random.Random(3)
        return [backoff_delay(attempt, base=0.1, cap=30.0, rng=rng) for attempt in range(1, 9)]

    assert delays() == delays()


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_count_from_one(attempt: int) -> None:
    """There is no back-off before the first failure."""
    with pytest.raises(InvalidValue) as caught:
        backoff_delay(attempt, base=0.1, cap=30.0, rng=random.Random())
    assert f"attempt: counts from 1, not {attempt}" == str(caught.value)
