"""Open the stores that a configuration names."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final

import trio

from .. import InvalidValue, StoreFileError, Stores, TrioRepairError
from .._errors import where_raised
from ..abc import Store
from ._configuration import Configuration, ConfigurationError, suggestion
from ._patience import Patience, StoreHung
from ._status import say

GROUP: Final = "trio_repair.stores"
"""The entry-point group in which kinds of stores are registered."""

_HINTS: Final = {
    "name an existing store, or open it with create=True": "look at the path, or make one with: trio-repair create {}",
    "then open with create=True": "then: trio-repair create {}",
    "name that of a store, or open with create=True": "name that of a store, or make one with: trio-repair create {}",
}
"""What the library tells a programmer to do, and what an operator does instead."""


def _factory(configuration: Configuration, role: str) -> Callable[..., AbstractAsyncContextManager[Store]]:
    kind = configuration.stores[role].kind
    found = importlib.metadata.entry_points(group=GROUP)
    # The same package may be seen twice (an editable install and a wheel); what counts is where the names lead.
    targets = {entry.value: entry for entry in found if entry.name == kind}
    if not targets:
        known = {entry.name for entry in found}
        raise configuration.error(f"no such kind of store, {kind!r}; {suggestion(kind, known)}", "stores", role, "kind")
    if len(targets) > 1:
        raise configuration.error(
            f"several packages register {kind!r} ({', '.join(sorted(targets))}); uninstall all but one",
            "stores",
            role,
            "kind",
        )
    (entry,) = targets.values()
    try:
        factory: Callable[..., AbstractAsyncContextManager[Store]] = entry.load()
    except (ImportError, AttributeError) as error:
        why = str(error)
    except (Exception, SystemExit) as error:
        why = where_raised(error)
    else:
        return factory
    raise configuration.error(f"the store {kind!r} cannot be loaded from {entry.value}: {why}", "stores", role, "kind")


def _to_operators(problem: str, role: str) -> str:
    for to_programmers, hint in _HINTS.items():
        problem = problem.replace(to_programmers, hint.format(role))
    return problem


async def _enter(configuration: Configuration, role: str, stack: AsyncExitStack, *, create: bool) -> Store:
    factory = _factory(configuration, role)
    settings = configuration.stores[role]
    try:
        opening = factory(
            settings.settings,
            name=role,
            directory=configuration.path.parent,
            content=configuration.engine.content,
            create=create,
        )
        return await stack.enter_async_context(opening)
    except InvalidValue as error:
        problem = _to_operators(error.problem, role)
        raise configuration.error(problem, "stores", role, *error.field.split(".")) from error
    except StoreFileError as error:
        raise StoreFileError(error.store, _to_operators(error.problem, role)) from error
    except TrioRepairError:
        raise
    except (Exception, SystemExit):
        # A bug, and told as one; but nobody should have to guess in which store.
        problem = f"the store {settings.kind!r} could not be opened"
        say(str(configuration.error(problem, "stores", role, "kind")))
        raise


@asynccontextmanager
async def _open_store(configuration: Configuration, role: str, *, create: bool = False) -> AsyncGenerator[Store, None]:
    """Open a store, with patience for the opening and the closing, not for what lies between."""
    seconds = configuration.engine.store_call_timeout
    failure: BaseException | None = None
    opened = False
    # One scope around it all: a scope around the opening alone would have to be left before the scopes and nurseries
    # that the store opens in there.
    with trio.move_on_after(seconds) as scope:
        waiting = Patience(seconds, scope)
        async with AsyncExitStack() as stack:
            store = await _enter(configuration, role, stack, create=create)
            waiting.suspend()
            opened = True
            try:
                yield store
            except trio.Cancelled:
                raise
            except BaseException as error:
                failure = error
                raise
            finally:
                waiting.renew()
    if not scope.cancelled_caught:
        return
    if not opened:
        raise StoreHung(role, seconds, "open")
    say(f"the {role} store did not close within {seconds:g} s (store_call_timeout) and was left as it was")
    if failure is not None:
        raise failure


@asynccontextmanager
async def open_stores(configuration: Configuration) -> AsyncGenerator[Stores, None]:
    """Open all stores of a configuration; none is created.

    Raises:
        ConfigurationError: a store's kind or settings are not usable.
        StoreFileError: a store's file is missing, foreign or damaged.
        StoreUnavailable: a store did not answer, or not within `store_call_timeout`.

    **If cancelled:** the stores that were open are closed.
    """
    async with AsyncExitStack() as stack:
        opened: dict[str, Any] = {}
        for role in configuration.stores:
            opened[role] = await stack.enter_async_context(_open_store(configuration, role))
        yield Stores(**opened)


async def create_store(configuration: Configuration, role: str) -> bool:
    """Make a store, empty, unless it is there.

    Returns:
        True if it was made.

    Raises:
        ConfigurationError: its kind or settings are not usable.
        StoreFileError: its file is foreign or damaged, or cannot be made.
        StoreUnavailable: it did not answer, or not within `store_call_timeout`.

    **If cancelled:** it may have been made; never in part.
    """
    try:
        async with _open_store(configuration, role):
            return False
    except (StoreFileError, ConfigurationError):
        # Not there, or not usable; if the latter, opening says so once more.
        async with _open_store(configuration, role, create=True):
            return True
