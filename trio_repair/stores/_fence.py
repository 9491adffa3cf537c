"""What the fences of all stores share: the token of what is absent, and a change that names the token it expects."""

from __future__ import annotations

from typing import Final, NamedTuple

from trio_repair import Observation, Prepared, Presence

ABSENT_TOKEN: Final = "absent"  # noqa: S105 - a fence token
"""The token of everything that is not held. One is enough: to be absent again is to be in the observed state."""

ABSENT: Final = Observation(presence=Presence.ABSENT, token=ABSENT_TOKEN)


class Change(NamedTuple):
    """What to do with one document if it still holds the token."""

    doc_id: str
    token: str
    prepared: Prepared | None
    """None: take it away."""
