"""Calls that no engine makes: a store that hangs in one is given up and named, and the command ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from .. import CheckIncomplete, StoreUnavailable
from ._status import leaves


class StoreHung(StoreUnavailable):
    """The store did not answer in time, and the call was given up."""

    def __init__(self, store: str, seconds: float, doing: str = "answer") -> None:
        super().__init__(store, f"did not {doing} within {seconds:g} s (store_call_timeout)")


@attrs.define
class Patience:
    """How long a store may still take."""

    seconds: float
    scope: trio.CancelScope

    def renew(self) -> None:
        """It has answered: the next call has the whole time again."""
        self.scope.deadline = trio.current_time() + self.seconds

    def suspend(self) -> None:
        """It is not being asked for anything."""
        self.scope.deadline = math.inf


@contextmanager
def patience(store: str, seconds: float) -> Iterator[Patience]:
    """Give a store so many seconds for what the block asks of it.

    Raises:
        StoreHung: it took longer.
    """
    with trio.move_on_after(seconds) as scope:
        yield Patience(seconds, scope)
    if scope.cancelled_caught:
        raise StoreHung(store, seconds)


_GIVEN_UP = "did not answer within"


def hung_stores(error: BaseException) -> set[str]:
    """The stores that an error says were given up because they took too long."""
    hung: set[str] = set()
    for leaf in leaves(error):
        if isinstance(leaf, StoreHung):
            hung.add(leaf.store)
        elif isinstance(leaf, CheckIncomplete):
            # A check tells the stores that failed, and why in words only.
            hung.update(store for store in leaf.stores if f"{store} store: {_GIVEN_UP}" in str(leaf))
    return hung
