"""Settings: the documented defaults, and every wrong value refused by name."""

from __future__ import annotations

import attrs
import pytest

from trio_repair import AutoRepairConfig, ContentDefinition, InvalidValue

SECONDS = [
    "loop_block_seconds",
    "job_timeout_seconds",
    "aging_seconds",
    "backoff_base",
    "backoff_cap",
    "store_call_timeout",
    "unavailable_timeout",
    "breaker_reset",
]
SECONDS_OR_ZERO = ["grace", "drain_timeout", "settle", "skew"]
COUNTS = {"max_concurrent_jobs": 1, "max_queued_jobs": 1, "breaker_failures": 1, "max_reobserve": 0}
FRACTIONS = ["max_changed", "max_deletes"]
CHOICES = {"missing_source": "refuse", "cache": "fill", "numbers": "hlc"}
FLAGS = ["allow_mass", "allow_weak_fence"]


def test_every_setting_is_tested_here():
    """A new setting that nobody validates would show up."""
    named = {*SECONDS, *SECONDS_OR_ZERO, *COUNTS, *FRACTIONS, *CHOICES, *FLAGS, "content"}
    assert named == {field.name for field in attrs.fields(AutoRepairConfig)}


def test_the_defaults():
    """What DESIGN and the documentation promise."""
    config = AutoRepairConfig()
    assert (30.0, 0.10, 0.01, "refuse", "refresh", "counter", False, False) == (
        config.job_timeout_seconds,
        config.max_changed,
        config.max_deletes,
        config.missing_source,
        config.cache,
        config.numbers,
        config.allow_mass,
        config.allow_weak_fence,
    )
    assert ContentDefinition() == config.content


@pytest.mark.parametrize("name", SECONDS + SECONDS_OR_ZERO)
@pytest.mark.parametrize(
    "value", [-1, float("nan"), float("inf"), "3", None, True, 10**400, pytest.param(-(10**5000), id="-long")]
)
def test_durations(name: str, value):
    """Negative, NaN, infinite, not a number, too large for a float."""
    with pytest.raises(InvalidValue, match=f"^{name}: must be"):
        AutoRepairConfig(**{name: value})


@pytest.mark.parametrize("name", SECONDS)
def test_zero_where_a_duration_must_be_positive(name: str):
    """Refused; where zero means "at once", accepted."""
    with pytest.raises(InvalidValue, match=f"^{name}: must be more than 0"):
        AutoRepairConfig(**{name: 0})
    for other in SECONDS_OR_ZERO:
        assert 0 == getattr(AutoRepairConfig(**{other: 0}), other)


@pytest.mark.parametrize(("name", "minimum"), COUNTS.items())
def test_counts(name: str, minimum: int):
    """At least their minimum, whole, and no bool."""
    assert minimum == getattr(AutoRepairConfig(**{name: minimum}), name)
    for value in (minimum - 1, 1.5, "1", None, True):
        with pytest.raises(InvalidValue, match=f"^{name}: must be an int of at least {minimum}"):
            AutoRepairConfig(**{name: value})


@pytest.mark.parametrize("name", FRACTIONS)
def test_fractions(name: str):
    """From 0 to 1, both included."""
    for value in (0, 0.5, 1):
        assert value == getattr(AutoRepairConfig(**{name: value}), name)
    for value in (-0.01, 1.01, float("nan"), "10%", True):
        with pytest.raises(InvalidValue, match=f"^{name}: must be a fraction"):
            AutoRepairConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), CHOICES.items())
def test_choices(name: str, value: str):
    """One of the words, which the error lists."""
    assert value == getattr(AutoRepairConfig(**{name: value}), name)
    for wrong in ("nonsense", "", None, True):
        with pytest.raises(InvalidValue, match=f"^{name}: must be one of '"):
            AutoRepairConfig(**{name: wrong})


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name: str):
    """True or False; 1 is not True, for it is more likely a mistake."""
    assert getattr(AutoRepairConfig(**{name: True}), name)
    for value in (1, "yes", None):
        with pytest.raises(InvalidValue, match=f"^{name}: must be True or False"):
            AutoRepairConfig(**{name: value})
