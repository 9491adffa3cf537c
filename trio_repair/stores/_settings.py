"""The settings of a store as they stand in a configuration file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trio_repair import InvalidValue
from trio_repair._errors import where_raised
from trio_repair._model import check_seconds, quoted
from trio_repair.abc import Chunker, Embedder
from trio_repair.embedding import HashingEmbedder, WindowChunker

if TYPE_CHECKING:  # its driver is not needed by every kind of store
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
    raise InvalidValue("synchronous", f"must be 'full' or 'normal', not {quoted(value)}")


def embedder_setting(settings: Mapping[str, Any]) -> Embedder:
    """The embedder that the table `embedder` describes; without it, feature hashing.

    Raises:
        InvalidValue: the table is not usable.
    """
    made = _from_table(settings, "embedder", "hashing", _hashing, ("dimension", "processes"))
    if not isinstance(made, Embedder):
        raise InvalidValue("embedder.kind", "does not return an embedder (see trio_repair.abc.Embedder)")
    return made


def _hashing(*, dimension: int = 256, processes: int = 0) -> Embedder:
    """Feature hashing in a thread, or, with `processes`, in so many processes."""
    embedder = HashingEmbedder(dimension)
    if type(processes) is int and processes == 0:
        return embedder
    try:
        from trio_repair.embedding.processes import InProcess  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError:
        problem = 'needs trio-parallel; install it with: pip install "trio-repair[parallel]"'
        raise InvalidValue("processes", problem) from None
    try:
        return InProcess(embedder.model, dimension, embedder.embed_all, max_processes=processes)
    except InvalidValue as error:
        raise InvalidValue("processes", error.problem) from None


def chunker_setting(settings: Mapping[str, Any]) -> Chunker:
    """The chunker that the table `chunker` describes; without it, windows.

    Raises:
        InvalidValue: the table is not usable.
    """
    made = _from_table(settings, "chunker", "windows", WindowChunker, ("size", "overlap"))
    if not isinstance(made, Chunker):
        raise InvalidValue("chunker.kind", "does not return a chunker (see trio_repair.abc.Chunker)")
    return made


def _from_table(
    settings: Mapping[str, Any], key: str, own: str, factory: Callable[..., object], known: tuple[str, ...]
) -> object:
    """What a table with the key `kind` describes: one of ours by its name, or what somebody else's callable makes."""
    table = settings.get(key, {})
    if not isinstance(table, Mapping):
        raise InvalidValue(key, "must be a table")
    arguments = dict(table)
    kind = arguments.pop("kind", own)
    if kind == own:
        refuse_unknown(arguments, known, under=f"{key}.")
    elif isinstance(kind, str) and ":" in kind:
        factory = _imported(kind, f"{key}.kind")
    else:
        raise InvalidValue(
            f"{key}.kind", f"must be {own!r}, or 'package.module:name' of a callable, not {quoted(kind)}"
        )
    try:
        # Python's own complaint names the arguments; one that the callable raises may quote what it was given.
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise InvalidValue(key, f"{kind!r} does not take these settings: {error}") from None
    except ValueError:  # a callable without a signature is called and seen
        pass
    try:
        return factory(**arguments)
    except InvalidValue as error:
        raise InvalidValue(f"{key}.{error.field}", error.problem) from None
    except (Exception, SystemExit) as error:
        raise InvalidValue(f"{key}.kind", f"{kind!r} could not make it: {where_raised(error)}") from error


def _imported(target: str, key: str) -> Callable[..., object]:
    module, _, name = target.partition(":")
    if module.startswith("."):
        raise InvalidValue(key, f"{target!r} is relative; name the module from its package on")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidValue(key, f"{target!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        raise InvalidValue(key, f"{target!r} cannot be imported: {where_raised(error)}") from error
    if not callable(found):
        raise InvalidValue(key, f"{target!r} is not callable")
    made: Callable[..., object] = found
    return made


def seconds_setting(settings: Mapping[str, Any], key: str) -> float | None:
    """A time span, or None if it is not there.

    Raises:
        InvalidValue: it is not a finite number of seconds above 0.
    """
    value = settings.get(key)
    if value is None:
        return None
    return check_seconds(key, value)
