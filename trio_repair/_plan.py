"""What a repair plan says: the vocabulary between the decisions and those who carry them out."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

import attrs

from ._enums import plain_members
from ._model import DocumentVersion, SyncStrategy
from ._unchecked import unchecked
from ._views import StoreTraits

if TYPE_CHECKING:
    from ._config import AutoRepairConfig
    from .abc import Stores

MANUAL_REASON: Final = "Manual resolution required"
"""The reason of every manual plan begins with this."""


@plain_members
class PlanAction(enum.Enum):
    """What a plan does to the critical stores."""

    COPY = "copy"
    """Write the decided version where it is not held."""
    DELETE = "delete"
    """Write a tombstone where it is not held."""
    NOTHING = "nothing"
    """The critical stores agree; the cache may still need a step."""
    MANUAL = "manual"
    """Only a person can decide; nothing is written."""
    NOWHERE = "nowhere"
    """No store holds the document."""


@plain_members
class CacheStep(enum.Enum):
    """What a plan does to the cache, after the critical stores were read back."""

    NONE = "none"
    REFRESH = "refresh"
    """Write the document."""
    INVALIDATE = "invalidate"
    """Remove the entry."""


@attrs.frozen(kw_only=True)
class PlannedWrite:
    """A critical store that must be written, fenced by the token that was observed."""

    store: str
    token: str


new_planned_write: Final = unchecked(PlannedWrite)


def _frozen_tokens(tokens: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(tokens))


@attrs.frozen(kw_only=True)
class RepairPlan:
    """What will be done about one document, on the strength of what the stores were seen to hold."""

    doc_id: str
    strategy: SyncStrategy | None
    """None for the resolution of a person."""
    action: PlanAction
    version: DocumentVersion | None
    """What every critical store shall hold; None if nothing was decided or nothing shall be there."""
    sources: tuple[str, ...]
    """The stores to read the content from, best first; () if none is needed."""
    writes: tuple[PlannedWrite, ...]
    cache_step: CacheStep
    tokens: Mapping[str, str] = attrs.field(converter=_frozen_tokens)
    """The token of every store that was observed."""
    reason: str | None
    """MANUAL and NOWHERE: why, naming stores and numbers."""
    settle_first: bool
    """What will be overwritten may be newer than what was decided: wait `settle`, look again, then overwrite."""


new_plan: Final = unchecked(RepairPlan)


@attrs.frozen(kw_only=True)
class Policy:
    """The settings that decisions depend on."""

    traits: Mapping[str, StoreTraits]
    missing_source: Literal["refuse", "delete"] = "refuse"
    cache: Literal["refresh", "invalidate", "fill"] = "refresh"
    numbers: Literal["counter", "hlc"] = "counter"
    skew: float = 1.0

    @classmethod
    def of(cls, stores: Stores, config: AutoRepairConfig) -> Policy:
        """The policy of an engine with these stores and settings."""
        return cls(
            traits={name: store.traits for name, store in stores.by_name.items()},
            missing_source=config.missing_source,
            cache=config.cache,
            numbers=config.numbers,
            skew=config.skew,
        )
