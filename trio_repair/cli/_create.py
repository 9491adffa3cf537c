"""`trio-repair create`: stores that are not there yet, or not any more, empty."""

from __future__ import annotations

from collections.abc import Sequence

from ._configuration import Configuration, suggestion
from ._lock import hold_lock
from ._opening import create_store
from ._output import Output
from ._signals import open_interruption
from ._status import ExitStatus, UsageError


async def run_create(configuration: Configuration, output: Output, *, roles: Sequence[str]) -> ExitStatus:
    """Make each of these stores unless it is there; a store that is there is left as it is.

    Args:
        configuration: names the stores.
        output: with `json`, a line for each store.
        roles: which; none: all.

    Raises:
        UsageError: the configuration names no such store.
    """
    for role in roles:
        if role not in configuration.stores:
            raise UsageError(f"{configuration.path} names no {role!r} store; {suggestion(role, configuration.stores)}")
    chosen = list(dict.fromkeys(roles)) or list(configuration.stores)
    made = False
    done = False
    with hold_lock(configuration.path):
        async with open_interruption() as interruption:
            with interruption.scope:
                for role in chosen:
                    new = await create_store(configuration, role)
                    made = made or new
                    if output.json:
                        output.record({"type": "store", "store": role, "made": new})
                    else:
                        output.show(f"{role}: {'made, and empty' if new else 'is there'}")
                done = True
    if not done:
        output.say("interrupted")
        return ExitStatus.INTERRUPTED
    if made:
        output.say("repair fills what is empty from the others; it asks for --allow-mass, since that is a mass change")
    return ExitStatus.OK
