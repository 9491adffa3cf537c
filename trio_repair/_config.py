"""Every setting of the engine, validated when it is made."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from ._errors import InvalidValue
from ._model import ContentDefinition, check_seconds, quoted


def _seconds(*, positive: bool = True) -> Any:
    def validate(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        check_seconds(attribute.name, value, positive=positive)

    return validate


def _at_least(minimum: int) -> Any:
    def validate(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise InvalidValue(attribute.name, f"must be an int of at least {minimum}, not {quoted(value)}")

    return validate


def _fraction(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InvalidValue(attribute.name, f"must be a fraction from 0 to 1, not {quoted(value)}")


def _one_of(*choices: str) -> Any:
    def validate(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in choices:
            raise InvalidValue(attribute.name, f"must be one of {', '.join(map(repr, choices))}, not {quoted(value)}")

    return validate


def _content(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, ContentDefinition):
        raise InvalidValue(attribute.name, f"must be a ContentDefinition, not {type(value).__name__}")


def _flag(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidValue(attribute.name, f"must be True or False, not {quoted(value)}")


@attrs.frozen(kw_only=True)
class AutoRepairConfig:
    """Settings of an engine and of checks. Durations are float seconds.

    Raises:
        InvalidValue: a setting is out of range; the message names it.
    """

    job_timeout_seconds: float = attrs.field(default=30.0, validator=_seconds())
    """What one attempt may take, unless the job names its own timeout."""
    max_concurrent_jobs: int = attrs.field(default=64, validator=_at_least(1))
    """How many repairs may run at once. Live: `engine.limits.max_concurrent_jobs`."""
    max_queued_jobs: int = attrs.field(default=10_000, validator=_at_least(1))
    """How many accepted jobs may wait. Live: `engine.limits.max_queued_jobs`."""
    aging_seconds: float = attrs.field(default=5.0, validator=_seconds())
    """Waiting this long is worth one step of priority."""
    backoff_base: float = attrs.field(default=0.1, validator=_seconds())
    """Upper bound of the first back-off; it doubles with each attempt, with full jitter."""
    backoff_cap: float = attrs.field(default=30.0, validator=_seconds())
    """No back-off is longer."""
    max_reobserve: int = attrs.field(default=3, validator=_at_least(0))
    """How often a repair starts over because the document changed under it."""
    store_call_timeout: float = attrs.field(default=10.0, validator=_seconds())
    """A store call that takes longer is given up and opens the store's circuit breaker."""
    loop_block_seconds: float = attrs.field(default=0.5, validator=_seconds())
    """A store call that lets nothing else run for so long at a stretch (wall time) is logged and counted."""
    unavailable_timeout: float = attrs.field(default=15.0, validator=_seconds())
    """How long a job waits for an unreachable store or a locked document before it fails."""
    breaker_failures: int = attrs.field(default=5, validator=_at_least(1))
    """So many failed calls in a row open the circuit breaker."""
    breaker_reset: float = attrs.field(default=1.0, validator=_seconds())
    """An open breaker lets one probe through after this; it doubles, up to 30 s, while probes fail."""
    grace: float = attrs.field(default=2.0, validator=_seconds(positive=False))
    """On close or cancel, how long a store call under way may still take."""
    drain_timeout: float = attrs.field(default=60.0, validator=_seconds(positive=False))
    """On a normal exit, how long accepted jobs may still take before they are cancelled."""
    settle: float = attrs.field(default=1.0, validator=_seconds(positive=False))
    """How far apart the two looks are that a suspect must fail, and that precede overwriting a higher number."""
    missing_source: Literal["refuse", "delete"] = attrs.field(default="refuse", validator=_one_of("refuse", "delete"))
    """What an absent source of truth means: leave it to a person, or delete the other copy."""
    cache: Literal["refresh", "invalidate", "fill"] = attrs.field(
        default="refresh", validator=_one_of("refresh", "invalidate", "fill")
    )
    """What happens to a cache entry that differs. "refresh" leaves absent entries absent; "fill" writes them."""
    numbers: Literal["counter", "hlc"] = attrs.field(default="counter", validator=_one_of("counter", "hlc"))
    """How version numbers are made. Skew and "from the future" have a meaning for "hlc" only."""
    skew: float = attrs.field(default=1.0, validator=_seconds(positive=False))
    """With "hlc": two numbers closer than this are undecidable, and so is one further in the future."""
    max_changed: float = attrs.field(default=0.10, validator=_fraction)
    """A bulk repair that would write more than this fraction of the documents stops before it writes."""
    max_deletes: float = attrs.field(default=0.01, validator=_fraction)
    """A bulk repair that would delete more than this fraction of the documents stops before it writes."""
    allow_mass: bool = attrs.field(default=False, validator=_flag)
    """Lift `max_changed` and `max_deletes`."""
    allow_weak_fence: bool = attrs.field(default=False, validator=_flag)
    """Accept stores without atomic compare-and-set; receipts say "weak"."""
    content: ContentDefinition = attrs.field(factory=ContentDefinition, validator=_content)
    """What counts as the content of a document; the stores must use the same."""
