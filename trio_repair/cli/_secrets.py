"""Settings that come from the environment: looked up when the configuration is read, and never told to anybody.

What is told passes through `redacted`, whoever wrote it: a store's own error may quote the address, password and all,
that it was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final, TypeAlias

import attrs

Secrets: TypeAlias = Mapping[str, str]
"""Values that came from the environment, and the variable of each."""

_ALONE_BELOW: Final = 8
"""A value of fewer characters is hidden only where it stands alone: in every word, "db" would hide half of a line."""

_KEPT: Final = frozenset(
    {"doc_id", "token", "tokens", "text", "passage", "digest", "job_id"}  # what stores and engine hold
    | {"type", "store", "kind", "presence", "strategy", "action", "outcome", "state", "source", "stopped"}  # our words
)
"""Fields of JSON lines that programs need as they are, and that no setting can get into."""


@attrs.frozen
class NotSet(Exception):
    """A setting cannot be looked up.

    Attributes:
        keys: the path of the setting.
        problem: what is wrong with it.
    """

    keys: tuple[str, ...]
    problem: str


def looked_up(settings: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """A store's settings with every `{ env = "NAME" }` replaced by what the variable holds; and those values.

    Raises:
        NotSet: a variable is not set or empty, or may not be used there.
    """
    secrets: dict[str, str] = {}
    found = {key: _look_up(value, (key,), environment, secrets) for key, value in settings.items()}
    return found, secrets


def _look_up(value: Any, keys: tuple[str, ...], environment: Mapping[str, str], secrets: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_look_up(one, keys, environment, secrets) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {"env"}:
        return {key: _look_up(one, (*keys, key), environment, secrets) for key, one in value.items()}
    name = value["env"]
    if keys[-1] == "kind":
        raise NotSet(keys, "must be written in the file: which code is run is not for the environment to say")
    if not isinstance(name, str) or not name or "=" in name or "\0" in name:
        raise NotSet(keys, 'env must be the name of an environment variable, as in { env = "NAME" }')
    held = environment.get(name)
    if not held:
        problem = "is not set" if held is None else "is empty"
        raise NotSet(keys, f"the environment variable {name} {problem}")
    secrets[held] = name
    return held


def _forms(secret: str) -> Iterator[str]:
    """How a value appears in messages: as it is, quoted by repr, and as a path."""
    yield secret
    yield repr(secret)[1:-1]
    yield str(PurePath(secret))


@attrs.frozen
class Redactor:
    """Replaces values that must not be told."""

    _names: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Each form of each value, and the variable."""
    _pattern: re.Pattern[str] | None = attrs.field(default=None, repr=False)

    @classmethod
    def of(cls, secrets: Secrets) -> Redactor:
        """One for these values."""
        names = {form: name for secret, name in secrets.items() for form in _forms(secret) if form != "."}
        if not names:
            return cls()
        longest_first = sorted(names, key=len, reverse=True)
        patterns = (
            re.escape(form) if len(form) >= _ALONE_BELOW else rf"(?<!\w){re.escape(form)}(?!\w)"
            for form in longest_first
        )
        return cls(names, re.compile("|".join(patterns)))

    def text(self, text: str) -> str:
        """The text with `<from $NAME>` for each value."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: f"<from ${self._names[match[0]]}>", text)

    def record(self, record: Any) -> Any:
        """The same for every string of a JSON value, except fields that are kept as they are."""
        if self._pattern is None:
            return record
        if isinstance(record, str):
            return self.text(record)
        if isinstance(record, Mapping):
            return {key: one if key in _KEPT else self.record(one) for key, one in record.items()}
        if isinstance(record, Sequence):
            return [self.record(one) for one in record]
        return record


_redactors: list[Redactor] = [Redactor()]
"""The one in force: a process runs one command, under one configuration. Replaced by `hide`, never changed."""


def hide(secrets: Secrets) -> None:
    """From now on, do not tell these values, and no longer those that were named before."""
    _redactors[:] = [Redactor.of(secrets)]


def redacted(text: str) -> str:
    """The text as it may be told."""
    return _redactors[0].text(text)


def redacted_record(record: Any) -> Any:
    """A JSON value as it may be told."""
    return _redactors[0].record(record)
