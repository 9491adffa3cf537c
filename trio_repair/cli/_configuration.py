"""The configuration file: TOML, checked key by key, each complaint with the file, the line and the key."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs

from .. import AutoRepairConfig, ContentDefinition, InvalidValue, SyncStrategy
from ._secrets import NotSet, Redactor, Secrets, hide, looked_up
from ._status import UsageError

FILE_NAME: Final = "trio-repair.toml"
"""The file that `--dir` means, and the one that is looked for if neither it nor `--config` is given."""

DEFAULT_MAX_RETRIES: Final = 3

_ENGINE_FIELDS: Final = frozenset(field.name for field in attrs.fields(AutoRepairConfig)) - {"content"}
_ALIASES: Final = {"timeout": "job_timeout_seconds", "concurrency": "max_concurrent_jobs"}
"""Keys of [repair] that are called as on the command line."""
_REPAIR_KEYS: Final = _ENGINE_FIELDS | _ALIASES.keys() | {"strategy", "max_retries"}
_ROLES: Final = ("text", "vector", "cache")


class ConfigurationError(UsageError):
    """The configuration file cannot be used. Nothing was done.

    Attributes:
        path: the file.
        line: where in it, counted from 1; None if not known.
        key: the dotted key, or None if the file as a whole is at fault.
    """

    def __init__(self, path: Path, problem: str, *, line: int | None = None, key: str | None = None) -> None:
        where = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{where}: {problem}" if key is None else f"{where}: {key}: {problem}")
        self.path = path
        self.line = line
        self.key = key


def _settings(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(value))


@attrs.frozen(kw_only=True)
class StoreSettings:
    """How to open one store."""

    kind: str
    """The name of an entry point in the group `trio_repair.stores`."""
    settings: Mapping[str, Any] = attrs.field(converter=_settings, repr=False)
    """What its factory is given; it may hold credentials."""
    written: Mapping[str, Any] = attrs.field(converter=_settings, repr=False)
    """The same as it stands in the file, before the environment was asked."""


@attrs.frozen(kw_only=True)
class Configuration:
    """A configuration file that was read and found usable."""

    path: Path
    """Absolute."""
    strategy: SyncStrategy | None
    """None if the file names none; then the command line must."""
    max_retries: int
    engine: AutoRepairConfig
    stores: Mapping[str, StoreSettings]
    """By role: text, vector and perhaps cache."""
    text: str = attrs.field(repr=False)
    """The file itself, in which lines are looked up."""
    secrets: Secrets = attrs.field(repr=False)
    """What came from the environment."""

    def error(self, problem: str, *keys: str) -> ConfigurationError:
        """A complaint about one key, which is given as its path; it quotes nothing that came from the environment."""
        return _error(self.path, self.text, Redactor.of(self.secrets).text(problem), keys)

    @property
    def fingerprint(self) -> str:
        """Tells configurations of different stores or contents apart: SHA-256 in hexadecimal, 64 characters.

        Where the file lies belongs to it, because relative paths in it do. Of a setting from the environment, the
        variable's name does and the value does not: whoever reads a plan must not be able to try out passwords on it.
        """
        described = {
            "directory": str(self.path.parent),
            "content": self.engine.content.metadata_keys,
            "stores": {role: [store.kind, dict(store.written)] for role, store in self.stores.items()},
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def locate(config: Path | None, directory: Path | None) -> Path:
    """The file that `--config` or `--dir` means; with neither, the one in the current directory.

    Raises:
        UsageError: both were given.
    """
    if config is not None and directory is not None:
        raise UsageError("--config and --dir both name the configuration; give one of them")
    if config is not None:
        return config
    return (Path() if directory is None else directory) / FILE_NAME


_HEADER: Final = re.compile(r"\s*\[\s*(?P<path>[^\[\]]+?)\s*\]\s*(#.*)?")
_PAIR: Final = re.compile(r"""\s*(?P<path>[A-Za-z0-9_."'\- ]+?)\s*=""")


def _split(path: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in path.split("."))


def _places(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            section = _split(header["path"])
            yield section, number
        elif pair := _PAIR.match(line):
            yield section + _split(pair["path"]), number


def find_line(text: str, keys: Sequence[str]) -> int | None:
    """The line that sets a key, or else the nearest table around it; None if that is not certain.

    tomllib keeps no positions, so this reads the layout that people write: one key or header a line.
    """
    places = list(_places(text))
    for length in range(len(keys), 0, -1):
        lines = [number for path, number in places if path == tuple(keys[:length])]
        if len(lines) == 1:
            return lines[0]
        if lines:
            return None
    return None


def _error(path: Path, text: str, problem: str, keys: Sequence[str]) -> ConfigurationError:
    return ConfigurationError(path, problem, line=find_line(text, keys), key=".".join(keys) or None)


def suggestion(name: str, known: Iterable[str]) -> str:
    """What was probably meant, or all there is."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(choices)}"


@attrs.frozen
class _Reader:
    """One parsed file, and the words in which it is complained about."""

    path: Path
    text: str
    data: Mapping[str, Any]
    environment: Mapping[str, str] = attrs.field(repr=False)

    def error(self, problem: str, *keys: str) -> ConfigurationError:
        return _error(self.path, self.text, problem, keys)

    def table(self, *keys: str) -> Mapping[str, Any]:
        """A table, which may be left out."""
        value: Any = self.data
        for key in keys:
            value = value.get(key, {})
        if not isinstance(value, dict):
            raise self.error(f"must be a table, [{'.'.join(keys)}]", *keys)
        return value

    def refuse_unknown(self, table: Mapping[str, Any], known: Iterable[str], *keys: str, what: str = "key") -> None:
        for key in table:
            if key not in known:
                raise self.error(f"unknown {what}; {suggestion(key, known)}", *keys, key)

    def strategy(self) -> SyncStrategy | None:
        name = self.table("repair").get("strategy")
        if name is None:
            return None
        try:
            return SyncStrategy(name)
        except ValueError:
            names = ", ".join(strategy.value for strategy in SyncStrategy)
            raise self.error(f"must be one of {names}, not {name!r}", "repair", "strategy") from None

    def max_retries(self) -> int:
        value = self.table("repair").get("max_retries", DEFAULT_MAX_RETRIES)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(f"must be an int of at least 0, not {value!r}", "repair", "max_retries")
        return value

    def content(self) -> ContentDefinition:
        table = self.table("content")
        self.refuse_unknown(table, ("metadata_keys",), "content")
        names = table.get("metadata_keys", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.error("must be a list of strings", "content", "metadata_keys")
        return ContentDefinition(metadata_keys=tuple(names))

    def engine(self) -> AutoRepairConfig:
        table = self.table("repair")
        self.refuse_unknown(table, _REPAIR_KEYS, "repair")
        settings: dict[str, Any] = {}
        named: dict[str, str] = {}
        for key, value in table.items():
            field = _ALIASES.get(key, key)
            if field in named:
                raise self.error(f"is another name of {named[field]}; set one of them", "repair", key)
            if field in _ENGINE_FIELDS:
                settings[field] = value
                named[field] = key
        try:
            return AutoRepairConfig(**settings, content=self.content())
        except InvalidValue as error:
            raise self.error(error.problem, "repair", named.get(error.field, error.field)) from None

    def stores(self) -> tuple[Mapping[str, StoreSettings], Secrets]:
        tables = self.table("stores")
        self.refuse_unknown(tables, _ROLES, "stores", what="store")
        found = {}
        secrets: dict[str, str] = {}
        for role in _ROLES:
            if role not in tables:
                if role == "cache":
                    continue
                raise self.error(f"is missing; add a table [stores.{role}] with the kind of the store", "stores", role)
            written = dict(self.table("stores", role))
            kind = written.pop("kind", None)
            if not isinstance(kind, str):
                problem = "is missing; name the kind of the store" if kind is None else "must be a string"
                raise self.error(problem, "stores", role, "kind")
            try:
                settings, looked = looked_up(written, self.environment)
            except NotSet as error:
                raise self.error(error.problem, "stores", role, *error.keys) from None
            secrets |= looked
            found[role] = StoreSettings(kind=kind, settings=settings, written=written)
        return MappingProxyType(found), secrets


_LARGEST: Final = 2**63
_LONG_INTEGER: Final = re.compile(r"\d[\d_]{4300,}", re.ASCII)
"""What Python's parser gives up on, without saying where."""


def _refuse_large(value: Any, keys: tuple[str, ...], path: Path, text: str) -> None:
    """TOML's integers have 64 bits; Python's have no end, and some of what they are used for has."""
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise _error(path, text, "is an integer of more than 64 bits", keys)
    if isinstance(value, dict):
        for key, one in value.items():
            _refuse_large(one, (*keys, key), path, text)
    elif isinstance(value, list):
        for one in value:
            _refuse_large(one, keys, path, text)


def _too_long(path: Path, text: str) -> ConfigurationError:
    """The complaint about an integer of more digits than Python reads."""
    found = _LONG_INTEGER.search(text)
    if found is None:
        return ConfigurationError(path, "holds a value that cannot be read")
    line = text.count("\n", 0, found.start()) + 1
    key = next((".".join(keys) for keys, place in reversed([*_places(text)]) if place <= line), None)
    return ConfigurationError(path, "is an integer of more than 64 bits", line=line, key=key)


_POSITION: Final = re.compile(r" \(at (line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")


def _toml_problem(message: str, text: str) -> tuple[str, int | None]:
    """What the parser complains of, and the line, taken out of its message to stand where all our errors have it."""
    position = _POSITION.search(message)
    if position is None:
        return message, None
    if position["line"] is None:
        return f"{message[: position.start()]} at the end of the file", text.count("\n") + 1
    return f"{message[: position.start()]} (column {position['column']})", int(position["line"])


def parse_configuration(path: Path, content: bytes, environment: Mapping[str, str] | None = None) -> Configuration:
    """Check a configuration file.

    Args:
        path: where it lies; relative paths in it are relative to its directory.
        content: what it holds.
        environment: where `{ env = "NAME" }` is looked up; None: the process's own.

    Raises:
        ConfigurationError: it cannot be used.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(path, "is not UTF-8", line=content.count(b"\n", 0, error.start) + 1) from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem, line = _toml_problem(str(error), text)
        raise ConfigurationError(path, f"is not valid TOML: {problem}", line=line) from None
    except RecursionError:
        raise ConfigurationError(path, "is nested too deeply") from None
    except ValueError:
        raise _too_long(path, text) from None
    _refuse_large(data, (), path, text)
    reader = _Reader(path, text, data, os.environ if environment is None else environment)
    reader.refuse_unknown(data, ("repair", "content", "stores"), what="section")
    stores, secrets = reader.stores()
    return Configuration(
        path=path,
        strategy=reader.strategy(),
        max_retries=reader.max_retries(),
        engine=reader.engine(),
        stores=stores,
        text=text,
        secrets=secrets,
    )


def load_configuration(path: Path) -> Configuration:
    """Read a configuration file. What it takes from the environment is not told by this process any more.

    Raises:
        ConfigurationError: it cannot be read or used.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        hint = f"`trio-repair init {path}` writes one, or name yours by --config FILE or --dir DIRECTORY"
        raise ConfigurationError(path, f"there is no such configuration file; {hint}") from None
    except OSError as error:
        raise ConfigurationError(path, f"cannot be read: {error.strerror}") from error
    configuration = parse_configuration(path.resolve(), content)
    hide(configuration.secrets)
    return configuration
