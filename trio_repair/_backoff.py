"""How long to wait before trying again."""

from __future__ import annotations

import random

from ._errors import InvalidValue


def backoff_delay(attempt: int, *, base: float, cap: float, rng: random.Random) -> float:
    """Seconds to wait after a failure: uniform from 0 to min(cap, base * 2**(attempt - 1)), attempts counted from 1.

    Full jitter spreads clients that failed together best. Source: M. Brooker, "Exponential Backoff And Jitter", 2015.

    Raises:
        InvalidValue: `attempt` is below 1.
    """
    if attempt < 1:
        raise InvalidValue("attempt", f"counts from 1, not {attempt}")
    # 2.0**1024 overflows, and no cap is worth more than 2**64 times its base.
    ceiling = min(cap, base * 2.0 ** min(attempt - 1, 64))
    return rng.uniform(0.0, ceiling)
