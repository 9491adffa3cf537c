"""Version numbers from a hybrid logical clock: 41 bits of milliseconds since 2020, 12 bits of counter.

They order writes of one process even if its wall clock steps back, and writes of several up to their clocks' skew.
53 bits stay exact in an IEEE double and last until 2089. Method: Kulkarni et al., "Logical Physical Clocks", 2014.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import attrs

from ._errors import InvalidValue
from ._model import MAX_VERSION_NUMBER, check_seconds

EPOCH: Final = 1_577_836_800.0
"""2020-01-01 00:00:00 UTC in Unix seconds: where the milliseconds start."""

COUNTER_BITS: Final = 12
MAX_COUNTER: Final = (1 << COUNTER_BITS) - 1
MAX_MILLISECONDS: Final = MAX_VERSION_NUMBER >> COUNTER_BITS


def pack(milliseconds: int, counter: int) -> int:
    """The version number of a moment (milliseconds since 2020) and a counter.

    Raises:
        InvalidValue: the milliseconds do not fit 41 bits, or the counter 12.
    """
    if not 0 <= milliseconds <= MAX_MILLISECONDS:
        raise InvalidValue("milliseconds", f"must be 0 to 2**41 - 1 since 2020, not {milliseconds}")
    if not 0 <= counter <= MAX_COUNTER:
        raise InvalidValue("counter", f"must be 0 to {MAX_COUNTER}, not {counter}")
    return milliseconds << COUNTER_BITS | counter


def unpack(number: int) -> tuple[int, int]:
    """The milliseconds since 2020 and the counter in a version number.

    Raises:
        InvalidValue: it is not a version number.
    """
    if not 0 <= number <= MAX_VERSION_NUMBER:
        raise InvalidValue("number", f"must be 0 to 2**53 - 1, not {number}")
    return number >> COUNTER_BITS, number & MAX_COUNTER


def number_time(number: int) -> float:
    """The moment in a version number, in Unix seconds."""
    return EPOCH + unpack(number)[0] / 1000


def _skew(value: float) -> float:
    return check_seconds("skew", value, positive=False)


@attrs.define(kw_only=True)
class HybridClock:
    """Makes version numbers that only ever grow. For an application that writes; the engine makes none.

    One clock for each process that writes; it is not thread-safe.
    """

    now: Callable[[], float] = time.time
    """The wall clock, in Unix seconds."""
    skew: float = attrs.field(default=1.0, converter=_skew)
    """How many seconds another process's clock may be ahead of this one."""
    _last: int = attrs.field(default=-1, init=False)
    # The highest number made or observed; every number made later is above it.

    def tick(self) -> int:
        """A number above every one that this clock made or observed before.

        Raises:
            InvalidValue: the wall clock stands before 2020, or the numbers are used up.
        """
        physical = pack(self._milliseconds(), 0)
        # One up carries a full counter into the milliseconds by itself: the clock then runs ahead, by 1 ms per 4,096.
        number = max(physical, self._last + 1)
        if number > MAX_VERSION_NUMBER:
            raise InvalidValue("number", "the clock has used up its 53 bits")
        self._last = number
        return number

    def observe(self, number: int) -> None:
        """Take note of a number made elsewhere, so that later ticks are above it.

        Raises:
            InvalidValue: it is no version number, or lies more than `skew` in the future. The clock is unchanged.
        """
        milliseconds, _ = unpack(number)
        ahead = milliseconds - self._milliseconds()
        if ahead > self.skew * 1000:
            raise InvalidValue(
                "number", f"{number} lies {ahead / 1000:g} s in the future, more than skew ({self.skew:g} s) allows"
            )
        self._last = max(self._last, number)

    def _milliseconds(self) -> int:
        return int((self.now() - EPOCH) * 1000 // 1)
