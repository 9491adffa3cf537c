"""`check_store`: hold a store to every sentence of `trio_repair.abc.Store`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

import trio

from trio_repair import ContentDefinition, InvalidValue

from ._promises_cancelled import CANCELLED
from ._promises_content import CONTENT
from ._promises_fence import FENCE
from ._promises_races import FENCE_RACED, RACES
from ._promises_ranges import RANGES
from ._promises_scan import SCAN
from ._promises_traits import TRAITS
from ._promises_writers import WRITERS
from ._subject import Breach, Factory, Promise, Subject

__all__ = ["PROMISES", "ContractBroken", "check_store"]

_ALL: Final = (*CONTENT, *TRAITS, *FENCE, *WRITERS, *CANCELLED, *RACES, *SCAN, *RANGES)

PROMISES: Final[Mapping[str, str]] = MappingProxyType({one.name: one.sentence for one in _ALL})
"""What `check_store` checks, in this order: a sentence for each name."""


class ContractBroken(AssertionError):
    """A store does not keep its contract. The message has a line for each broken promise.

    Attributes:
        breaches: what was seen, by name of the promise (see `PROMISES`).
    """

    def __init__(self, breaches: Mapping[str, str]) -> None:
        lines = [f"{name}: {detail} (promised: {PROMISES[name]})" for name, detail in breaches.items()]
        super().__init__("\n".join(lines))
        self.breaches = dict(breaches)


async def check_store(
    factory: Factory,
    *,
    again: Factory | None = None,
    races: bool = True,
    content: ContentDefinition | None = None,
    only: Collection[str] | None = None,
    timeout: float = 60.0,  # noqa: ASYNC109 - a bound on each promise, part of what is checked
) -> None:
    """Hold the stores that `factory` opens to the contract, all promises, and report every one that is broken.

    ::

        async def test_contract(tmp_path):
            paths = [tmp_path / "0"]

            def open_new():
                paths.append(tmp_path / str(len(paths)))
                return open_my_store(paths[-1])

            await check_store(open_new, again=lambda: open_my_store(paths[-1]))

    **Give `again` to every store that can be opened twice.** A fence that is looked at in one transaction and obeyed in
    another holds as long as nobody else is there: only two writers at once show it. With `max_calls` above 1 there are
    two in one handle; between processes, which may share a lock or a cache with nobody, there are two only with
    `again`. A store that says STRONG and `max_calls=1` has proved nothing without it, and breaks "fence-raced".

    It runs on the real clock or on a MockClock (unless the store uses threads), and decides what to expect from the
    store's traits alone: a weak fence is not raced, a store that keeps no tombstones must forget deleted documents.

    Args:
        factory: opens an *empty* store, a new one each time; called once for each promise.
        again: opens another handle on the contents of the store that `factory` opened last, as another process would.
            The races are then run between handles, and what one writes the other must see. None: one handle only.
        races: False: accept a STRONG fence that nothing raced, of a store with `max_calls=1` that cannot be opened
            twice (one in this process' memory). All races that can be run are run all the same.
        content: what a document's digest covers in these stores; None: the text alone.
        only: names of promises to check (see `PROMISES`); None: all.
        timeout: seconds that one promise may take; a store that hangs breaks it.

    Raises:
        ContractBroken: a promise is broken; all that are, are named.
        InvalidValue: `only` names a promise that does not exist.

    **If cancelled:** the store that is open is left through its context manager.
    """
    unknown = set() if only is None else set(only) - set(PROMISES)
    if unknown:
        raise InvalidValue("only", f"there is no promise {', '.join(sorted(unknown))}; see PROMISES")
    chosen = [one for one in _ALL if (only is None or one.name in only) and (races or one.name != FENCE_RACED)]
    definition = ContentDefinition() if content is None else content
    breaches: dict[str, str] = {}
    first: Exception | None = None
    for one in chosen:
        try:
            await _check(one, factory, again, definition, timeout)
        except Exception as error:
            cause = _innermost(error)
            if isinstance(cause, Breach):
                breaches.setdefault(one.name if cause.promise is None else cause.promise, cause.detail)
            else:
                breaches.setdefault(one.name, f"{type(cause).__name__} was raised: {cause}")
            first = cause if first is None else first
    if breaches:
        raise ContractBroken(breaches) from first


async def _check(
    one: Promise, factory: Factory, again: Factory | None, content: ContentDefinition, seconds: float
) -> None:
    with trio.move_on_after(seconds) as scope:
        async with factory() as store:
            await one.check(Subject.of(store, content, again))
    if scope.cancelled_caught:
        raise Breach(f"no end within {seconds:g} s")


def _innermost(error: Exception) -> Exception:
    """A task's own exception, out of the groups that nurseries wrap around it; of several, one that names a breach."""
    while isinstance(error, ExceptionGroup):
        error = (error.subgroup(Breach) or error).exceptions[0]
    return error
