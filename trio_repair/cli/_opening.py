"""Open the stores that a configuration names."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final

from .. import InvalidValue, StoreFileError, Stores
from ..abc import Store
from ._configuration import Configuration, suggestion

GROUP: Final = "trio_repair.stores"
"""The entry-point group in which kinds of stores are registered."""

_HINTS: Final = {
    "name an existing store, or open it with create=True": "look at the path; the application that owns it makes it",
    "then open with create=True": "and let the application that owns the store make it",
}
"""What the library tells a programmer to do, and what an operator does instead: this command makes no stores."""


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
        raise configuration.error(
            f"the store {kind!r} cannot be loaded from {entry.value}: {error}", "stores", role, "kind"
        ) from error
    return factory


async def _enter(configuration: Configuration, role: str, stack: AsyncExitStack) -> Store:
    factory = _factory(configuration, role)
    try:
        opening = factory(
            configuration.stores[role].settings,
            name=role,
            directory=configuration.path.parent,
            content=configuration.engine.content,
            create=False,
        )
        return await stack.enter_async_context(opening)
    except InvalidValue as error:
        raise configuration.error(error.problem, "stores", role, *error.field.split(".")) from error
    except StoreFileError as error:
        problem = error.problem
        for to_programmers, to_operators in _HINTS.items():
            problem = problem.replace(to_programmers, to_operators)
        raise StoreFileError(error.store, problem) from error


@asynccontextmanager
async def open_stores(configuration: Configuration) -> AsyncIterator[Stores]:
    """Open all stores of a configuration; none is created.

    Raises:
        ConfigurationError: a store's kind or settings are not usable.
        StoreFileError: a store's file is missing, foreign or damaged.
        StoreUnavailable: a store did not answer.

    **If cancelled:** the stores that were open are closed.
    """
    async with AsyncExitStack() as stack:
        opened: dict[str, Any] = {}
        for role in configuration.stores:
            opened[role] = await _enter(configuration, role, stack)
        yield Stores(**opened)
