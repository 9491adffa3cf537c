"""What the operator wants done: the strategy, and the settings that the command line overrides."""

from __future__ import annotations

from typing import Any

import attrs

from .. import AutoRepairConfig, InvalidValue, SyncStrategy
from ._configuration import Configuration
from ._status import UsageError


def chosen_strategy(configuration: Configuration, name: str | None) -> SyncStrategy:
    """The strategy of the command line, or else of the configuration. There is no default: it decides who loses.

    Raises:
        UsageError: neither names one.
    """
    if name is not None:
        return SyncStrategy(name)
    if configuration.strategy is None:
        names = "|".join(strategy.value for strategy in SyncStrategy)
        raise UsageError(
            f"no strategy is named; give --strategy {names}, or set strategy under [repair] in {configuration.path}"
        )
    return configuration.strategy


def overridden(config: AutoRepairConfig, **options: tuple[str, Any]) -> AutoRepairConfig:
    """The settings with some replaced: field name = (option as it is written, value), a value of None being ignored.

    Raises:
        UsageError: a value is out of range; the message names the option.
    """
    for field, (option, value) in options.items():
        if value is not None:
            try:
                config = attrs.evolve(config, **{field: value})
            except InvalidValue as error:
                raise UsageError(f"{option}: {error.problem}") from None
    return config
