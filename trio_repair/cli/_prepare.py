"""`trio-repair prepare`: what existing tables could be given, as SQL; with `--apply` it is done."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import trio

from ..abc import Store
from ._configuration import Configuration, suggestion
from ._opening import open_stores
from ._output import Output
from ._patience import patience
from ._signals import open_interruption
from ._status import ExitStatus, UsageError

_WIDTH: Final = 80


class _Preparation(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def statements(self) -> Sequence[str]: ...


@runtime_checkable
class _Preparable(Protocol):
    """A store on tables that somebody else made."""

    async def preparations(self) -> Sequence[_Preparation]: ...
    async def apply(self, preparations: Sequence[Any], /) -> None: ...


async def run_prepare(configuration: Configuration, output: Output, *, names: Sequence[str], apply: bool) -> ExitStatus:
    """Show what could be added to the databases, or add it.

    Args:
        configuration: names the stores.
        output: with `json`, a line for each preparation.
        names: those that are meant, as `STORE.NAME`; none: all.
        apply: do it; each store's in one transaction.

    Raises:
        UsageError: there is no preparation of a name.
    """
    done = False
    async with open_interruption() as interruption:
        with interruption.scope:
            async with open_stores(configuration) as stores:
                found = await _find(stores.by_name, configuration.engine.store_call_timeout)
                chosen = _choose(found, names)
                for role, some in chosen.items():
                    store = stores.by_name[role]
                    if apply and some and isinstance(store, _Preparable):
                        await store.apply(some)  # an index may take long; a Ctrl-C stops it on the server
                    for one in some:
                        _show(output, role, one, applied=apply)
                if not any(chosen.values()):
                    output.say("nothing to prepare: no store's tables lack anything that would help")
                elif not apply:
                    output.say("nothing was done; --apply does it")
                done = True
    if not done:
        output.say("interrupted")
        return ExitStatus.INTERRUPTED
    return ExitStatus.OK


async def _find(stores: Mapping[str, Store], seconds: float) -> dict[str, list[_Preparation]]:
    found: dict[str, list[_Preparation]] = {}
    for role, store in stores.items():
        if isinstance(store, _Preparable):
            with patience(role, seconds):
                found[role] = list(await store.preparations())
    await trio.lowlevel.checkpoint()
    return found


def _choose(found: Mapping[str, list[_Preparation]], names: Sequence[str]) -> dict[str, list[_Preparation]]:
    known = {f"{role}.{one.name}" for role, some in found.items() for one in some}
    for name in names:
        if name not in known:
            hint = suggestion(name, known) if known else "nothing would help"
            raise UsageError(f"there is nothing to prepare that is called {name!r}; {hint}")
    return {role: [one for one in some if not names or f"{role}.{one.name}" in names] for role, some in found.items()}


def _show(output: Output, role: str, one: _Preparation, *, applied: bool) -> None:
    name = f"{role}.{one.name}"
    if output.json:
        output.record(
            {
                "type": "preparation",
                "store": role,
                "name": name,
                "why": one.why,
                "statements": list(one.statements),
                "applied": applied,
            }
        )
        return
    output.show(f"-- {name}{': done' if applied else ''}")
    for line in textwrap.wrap(one.why, _WIDTH - 3):
        output.show(f"-- {line}")
    for statement in one.statements:
        for line in f"{statement};".splitlines():
            output.show(line)
