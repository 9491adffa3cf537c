"""A document's state as one short string, so that two stores are compared without a look at each document."""

from __future__ import annotations

from typing import Final

from ._views import Observation, Presence, StoreTraits

ODD: Final = ""
"""The summary of a copy that has to be looked at: damaged, of another embedding, or without a digest that is one."""


def summarize(view: Observation, traits: StoreTraits) -> str:
    """Equal for two stores if and only if their copies of one document agree; `ODD` agrees with nothing.

    "t" and the number for a tombstone; the digest, a space and the number for a live copy. A number that is None is
    left out. No summary holds NUL.
    """
    version = view.version
    if version is None or not view.intact:
        return ODD
    number = "" if version.number is None else str(version.number)
    if view.presence is Presence.TOMBSTONE:
        return f"t{number}"
    digest = version.digest
    if (
        not digest
        or not digest.isascii()
        or "\0" in digest
        or (traits.embedding is not None and view.embedding != traits.embedding)
    ):
        return ODD
    return f"{digest} {number}"
