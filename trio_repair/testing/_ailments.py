"""What `FaultyStore` injects, apart from the injecting: faults in force, and what rivals write."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol, TypeAlias, runtime_checkable

import attrs
import trio

from trio_repair import Document, Observation, StoreError, Write, WriteStatus
from trio_repair._model import MAX_VERSION_NUMBER
from trio_repair.abc import Store

from ._doubles import make_document
from ._faults import Fault

_EPOCH: Final = dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)
_COUNTER_BITS: Final = 12


@runtime_checkable
class Crashable(Protocol):
    """A store that can lose what it has not committed; see `CrashingStore`."""

    def crash(self) -> None:
        """Fail the calls under way, and hold again what was committed last."""
        ...


@attrs.define(eq=False)
class Ailment:
    """A fault that is in force, or whose calls still hang."""

    fault: Fault
    left: int | None
    """How many more calls it may strike; None: no limit."""
    hanging: int = 0
    _over: trio.Event = attrs.field(factory=trio.Event)

    async def hang(self) -> None:
        """Until somebody calls `release`."""
        self.hanging += 1
        try:
            await self._over.wait()
        finally:
            self.hanging -= 1

    def release(self) -> None:
        """Let the calls that hang go on; those that come will hang again."""
        self._over.set()
        self._over = trio.Event()


Strike: TypeAlias = tuple[Ailment, str | None]
"""What strikes a call, and which document of it."""


def write_newer(doc_id: str, held: Observation) -> Document:
    """What somebody else writes by default: a live document, one number above the one held."""
    number = 0 if held.version is None or held.version.number is None else held.version.number
    return make_document(doc_id, f"written meanwhile, number {number + 1}", number=number + 1)


def write_by_clock(doc_id: str, moment: dt.datetime) -> Document:
    """What somebody writes whose hybrid logical clock shows `moment`: milliseconds since 2020, counter 0."""
    milliseconds = (moment - _EPOCH) // dt.timedelta(milliseconds=1)
    number = min(max(0, milliseconds << _COUNTER_BITS), MAX_VERSION_NUMBER)
    return make_document(doc_id, f"written by a clock that shows {moment:%c}", number=number, updated_at=moment)


async def write_over(store: Store, doc_id: str, write: Callable[[str, Observation], Document]) -> Document | None:
    """Write over what is held, through the contract alone, so that any store will do. What was written, if it landed.

    **If cancelled:** as the store's write.
    """
    with suppress(StoreError):  # a rival that cannot write does not write
        (held,) = await store.observe([doc_id])
        if isinstance(held, StoreError):
            return None
        document = write(doc_id, held)
        (prepared,) = await store.prepare([document])
        if isinstance(prepared, StoreError):
            return None
        (verdict,) = await store.write([Write(prepared=prepared, token=held.token)])
        if verdict.status is WriteStatus.LANDED:
            return document
    return None
