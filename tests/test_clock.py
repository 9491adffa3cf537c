"""The hybrid logical clock."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_repair._clock import EPOCH, MAX_COUNTER, HybridClock, number_time, pack, unpack
from trio_repair._errors import InvalidValue
from trio_repair._model import MAX_VERSION_NUMBER, DocumentVersion

MILLISECONDS = st.integers(0, 2**41 - 1)
COUNTERS = st.integers(0, MAX_COUNTER)


class Wall:
    """A wall clock that is set by hand."""

    def __init__(self, seconds: float = EPOCH + 1000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


@given(MILLISECONDS, COUNTERS)
def test_pack_and_unpack_are_inverse(milliseconds: int, counter: int) -> None:
    """Every pair fits a version number and comes back; numbers are exact as doubles."""
    number = pack(milliseconds, counter)

    assert (milliseconds, counter) == unpack(number)
    assert number == int(float(number))
    assert number == DocumentVersion(number=number).number


@given(st.tuples(MILLISECONDS, COUNTERS), st.tuples(MILLISECONDS, COUNTERS))
def test_numbers_order_as_their_moments(one: tuple[int, int], other: tuple[int, int]) -> None:
    """Comparing numbers compares milliseconds first and counters second."""
    assert (one < other) == (pack(*one) < pack(*other))


def test_layout() -> None:
    """Milliseconds count from 2020-01-01 UTC, and the last number is the largest that versions may have."""
    assert dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc).timestamp() == EPOCH
    assert number_time(0) == EPOCH
    assert number_time(pack(1_500, 7)) == EPOCH + 1.5
    assert pack(2**41 - 1, MAX_COUNTER) == MAX_VERSION_NUMBER
    assert unpack(MAX_VERSION_NUMBER) == (2**41 - 1, MAX_COUNTER)


@pytest.mark.parametrize(
    ("milliseconds", "counter", "message"),
    [
        (-1, 0, "milliseconds: must be 0 to 2**41 - 1 since 2020, not -1"),
        (2**41, 0, "milliseconds: must be 0 to 2**41 - 1 since 2020, not 2199023255552"),
        (0, -1, "counter: must be 0 to 4095, not -1"),
        (0, 4096, "counter: must be 0 to 4095, not 4096"),
    ],
)
def test_what_does_not_fit_is_refused(milliseconds: int, counter: int, message: str) -> None:
    """Neither part may run over into the other."""
    with pytest.raises(InvalidValue) as caught:
        pack(milliseconds, counter)
    assert message == str(caught.value)


@pytest.mark.parametrize("number", [-1, 2**53])
def test_unpack_refuses_what_is_no_number(number: int) -> None:
    """53 bits, no more."""
    with pytest.raises(InvalidValue) as caught:
        unpack(number)
    assert f"number: must be 0 to 2**53 - 1, not {number}" == str(caught.value)


# (what happens, how far the wall clock is moved before it)
STEPS = st.lists(
    st.tuples(st.sampled_from(("tick", "observe")), st.floats(-3, 3), st.floats(-5, 0.9)), min_size=1, max_size=40
)


def numbers_made(clock: HybridClock, wall: Wall, steps: list[tuple[str, float, float]]) -> bool:
    """Whether every tick is above all that was made or observed before it."""
    highest = -1
    for what, moved, offset in steps:
        wall.seconds += moved
        if what == "observe":
            number = pack(int((wall.seconds + offset - EPOCH) * 1000), MAX_COUNTER)
            clock.observe(number)
            highest = max(highest, number)
        else:
            number = clock.tick()
            if number <= highest:
                return False
            highest = number
    return True


@given(STEPS)
def test_ticks_only_grow(steps: list[tuple[str, float, float]]) -> None:
    """Ticks are above all numbers made or observed before, even if the wall clock steps back."""
    wall = Wall()

    assert numbers_made(HybridClock(now=wall, skew=1.0), wall, steps)


def test_a_plain_wall_clock_would_not_grow() -> None:
    """The control: numbers straight from the wall clock repeat, and go back with it."""

    class Plain(HybridClock):
        def tick(self) -> int:
            return pack(int((self.now() - EPOCH) * 1000), 0)

    for steps in ([("tick", 0.0, 0.0)] * 2, [("tick", 0.0, 0.0), ("tick", -1.0, 0.0)]):
        wall = Wall()
        assert not numbers_made(Plain(now=wall), wall, steps)


def test_counter_counts_within_a_millisecond_and_carries() -> None:
    """Within one millisecond the counter counts; when it is full, the milliseconds run ahead of the wall."""
    wall = Wall(EPOCH + 1.0)
    clock = HybridClock(now=wall)

    numbers = [clock.tick() for _ in range(MAX_COUNTER + 2)]

    assert (1000, 0) == unpack(numbers[0])
    assert (1000, MAX_COUNTER) == unpack(numbers[-2])
    assert (1001, 0) == unpack(numbers[-1])


def test_ticks_follow_the_wall_clock() -> None:
    """When the wall clock moves on, so do the numbers, and the counter starts over."""
    wall = Wall(EPOCH + 1.0)
    clock = HybridClock(now=wall)
    clock.tick()
    clock.tick()
    wall.seconds += 0.25

    assert (1250, 0) == unpack(clock.tick())


def test_observed_numbers_are_overtaken() -> None:
    """A number of a process whose clock is a little ahead is below the next tick."""
    wall = Wall(EPOCH + 1.0)
    clock = HybridClock(now=wall, skew=1.0)

    clock.observe(pack(1900, 5))

    assert (1900, 6) == unpack(clock.tick())


def test_far_future_is_refused_and_changes_nothing() -> None:
    """A number beyond `skew` would drag every later number with it; exactly `skew` ahead is taken."""
    wall = Wall(EPOCH + 1.0)
    clock = HybridClock(now=wall, skew=1.0)

    number = pack(2001, 0)
    with pytest.raises(InvalidValue) as caught:
        clock.observe(number)
    assert f"number: {number} lies 1.001 s in the future, more than skew (1 s) allows" == str(caught.value)
    assert (1000, 0) == unpack(clock.tick())
    clock.observe(pack(2000, 0))
    assert (2000, 1) == unpack(clock.tick())


def test_end_of_time_is_refused() -> None:
    """The last number of all is made, and has no successor."""
    wall = Wall(EPOCH + (2**41 - 1) / 1000)
    clock = HybridClock(now=wall)
    clock.observe(MAX_VERSION_NUMBER - 1)

    assert MAX_VERSION_NUMBER == clock.tick()
    with pytest.raises(InvalidValue) as caught:
        clock.tick()
    assert "number: the clock has used up its 53 bits" == str(caught.value)


@pytest.mark.parametrize("seconds", [0.0, EPOCH - 0.0005])
def test_wall_clock_before_2020_is_refused(seconds: float) -> None:
    """A machine whose clock was never set makes no numbers, and half a millisecond early is early."""
    with pytest.raises(InvalidValue, match="since 2020"):
        HybridClock(now=Wall(seconds)).tick()


@pytest.mark.parametrize("skew", [-1.0, float("nan"), float("inf")])
def test_bad_skew_is_refused(skew: float) -> None:
    """A skew is a finite number of seconds."""
    with pytest.raises(InvalidValue, match=r"^skew: "):
        HybridClock(skew=skew)


def test_without_skew_nothing_from_the_future_is_taken() -> None:
    """Clocks may be said to agree exactly: what is of this millisecond is taken, what is of the next is not."""
    clock = HybridClock(now=Wall(EPOCH + 1.0), skew=0.0)

    clock.observe(pack(1000, 3))
    with pytest.raises(InvalidValue, match="future"):
        clock.observe(pack(1001, 0))
    assert (1000, 4) == unpack(clock.tick())


def test_default_wall_clock() -> None:
    """Without a clock of the caller's, numbers are of now."""
    before = dt.datetime.now(dt.timezone.utc).timestamp()

    assert before - 0.002 <= number_time(HybridClock().tick()) <= before + 60
