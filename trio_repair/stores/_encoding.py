"""How values are written in SQLite's columns, and read back although anybody may have written there."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from trio_repair import InvalidValue

_NO_METADATA: Final[Mapping[str, Any]] = MappingProxyType({})


def load_json(raw: bytes) -> Any:
    """JSON that SQLite made. Bytes that are not UTF-8 become lone surrogates, so that they spoil one value only."""
    return json.loads(raw.decode(errors="surrogateescape"))


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Metadata as it is stored.

    Raises:
        TypeError: JSON has no such value, or a key is not a str (JSON would make it one).
        ValueError: NaN, infinity, or a structure that contains itself.
        UnicodeEncodeError: a lone surrogate.
    """
    if not metadata:
        return "{}"
    text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
    _check_keys(metadata)
    text.encode()
    return text


def _check_keys(value: object) -> None:
    if isinstance(value, Mapping):
        for key, held in value.items():
            if not isinstance(key, str):
                raise TypeError("a key is not a str")
            _check_keys(held)
    elif isinstance(value, (list, tuple)):
        for held in value:
            _check_keys(held)


def load_metadata(text: object) -> Mapping[str, Any] | None:
    """Stored metadata; None if it is not a JSON object."""
    if text == "{}":
        return _NO_METADATA
    try:
        metadata = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return metadata if isinstance(metadata, dict) else None


def moment_text(moment: dt.datetime) -> str:
    """A moment as UTC in ISO 8601, such that the order of texts is the order of moments."""
    try:
        moment = moment.astimezone(dt.timezone.utc)
    except OverflowError:  # within hours of year 1 or 9999; its own offset says the same moment
        return moment.isoformat()
    return moment.isoformat(timespec="microseconds")


def parse_moment(text: object) -> dt.datetime | None:
    """A stored moment; None if it is not one. Without an offset it is taken as UTC."""
    try:
        moment = dt.datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if moment is not None and moment.tzinfo is None:
        return moment.replace(tzinfo=dt.timezone.utc)
    return moment


def check_limit(limit: object, *, maximum: int | None = None) -> int:
    """Return `limit` if it is a usable number of results.

    Raises:
        InvalidValue: it is not an int of at least 1, or above `maximum`.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidValue("limit", f"must be an int of at least 1, not {limit!r}")
    if maximum is not None and limit > maximum:
        raise InvalidValue("limit", f"must be at most {maximum}, not {limit}")
    return limit
