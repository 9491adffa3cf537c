"""The settings of a store as they stand in a configuration file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trio_repair import InvalidValue

from ._sqlite import Synchronous


def refuse_unknown(settings: Mapping[str, Any], known: Iterable[str], *, under: str = "") -> None:
    """Refuse settings that nobody reads.

    Raises:
        InvalidValue: there is one; it is named.
    """
    known = tuple(known)
    for key in settings:
        if key not in known:
            raise InvalidValue(f"{under}{key}", f"is not a setting here; there are {', '.join(known)}")


def path_setting(settings: Mapping[str, Any], directory: Path) -> Path:
    """The file that `path` names, relative to `directory`.

    Raises:
        InvalidValue: it is missing or not a str.
    """
    value = settings.get("path")
    if not isinstance(value, str) or not value or "\0" in value:
        problem = "is missing; name the store's file" if value is None else "must be a string that names a file"
        raise InvalidValue("path", problem)
    return directory / value


def synchronous_setting(settings: Mapping[str, Any]) -> Synchronous:
    """What `synchronous` says; "full" if it is not there.

    Raises:
        InvalidValue: it is something else than "full" or "normal".
    """
    value = settings.get("synchronous", "full")
    if value == "full":
        return "full"
    if value == "normal":
        return "normal"
    raise InvalidValue("synchronous", f"must be 'full' or 'normal', not {value!r}")


def table_setting(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table of settings, which may be left out.

    Raises:
        InvalidValue: it is not a table.
    """
    value = settings.get(key, {})
    if not isinstance(value, Mapping):
        raise InvalidValue(key, "must be a table")
    return value


def whole_setting(settings: Mapping[str, Any], key: str, default: int, *, under: str = "") -> int:
    """A whole number.

    Raises:
        InvalidValue: it is not one.
    """
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValue(f"{under}{key}", f"must be a whole number, not {value!r}")
    return value
