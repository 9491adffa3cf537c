"""A directory that is one store: whose it is, by a label in it, and how it is made without ever showing half of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from trio_repair import ContentDefinition, StoreFileError

LABEL: Final = "trio_repair.json"
"""The file that says whose the directory is. It is written once, before the directory gets its name."""


@attrs.frozen(kw_only=True)
class DirectoryKind:
    """A kind of store that is a directory."""

    name: str
    """The kind in a configuration file."""
    version: int
    """Of what is in the directory."""
    thing: str
    """What the driver calls such a directory, with its article."""
    is_foreign: Callable[[Path], bool]
    """Whether a directory without our label looks like the driver's, but made by another application."""
    fill: Callable[[StoreDirectory, Path], None]
    """Make an empty store in this directory; `StoreFileError` if it cannot be."""


@attrs.frozen(kw_only=True)
class StoreDirectory:
    """Which directory, and what is expected in it."""

    kind: DirectoryKind
    path: Path
    store: str
    content: ContentDefinition
    create: bool

    def error(self, problem: str) -> StoreFileError:
        """This directory cannot be used, and why."""
        return StoreFileError(self.store, f"{self.path} {problem}")


def open_directory(directory: StoreDirectory) -> None:
    """Make the store if it may be made, and see that it is one of ours.

    Raises:
        StoreFileError: the directory cannot be used. Nothing was written to it.
    """
    try:
        path = directory.path
        if directory.create and (not path.exists() or (path.is_dir() and not any(path.iterdir()))):
            _create(directory)
        check_label(directory)
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise directory.error(f"cannot be opened: {said}") from error


def check_label(directory: StoreDirectory) -> None:
    """See by its label that a directory is ours, without a lock and without a trace.

    Raises:
        StoreFileError: it is missing, foreign, damaged, of another version, or made for other content.
    """
    path, wanted = directory.path, directory.kind
    if not path.exists():
        raise directory.error("does not exist; name an existing store, or open it with create=True")
    if not path.is_dir():
        raise directory.error("is not a directory; this kind of store is one")
    label = path / LABEL
    if not label.exists():
        if wanted.is_foreign(path):
            raise directory.error(f"is {wanted.thing} of another application")
        if not any(path.iterdir()):
            raise directory.error("is empty and not a store; remove it, then open with create=True")
        raise directory.error(f"is not a {wanted.name} store")
    try:
        found = json.loads(label.read_bytes())
        kind, version, keys = found["kind"], found["version"], tuple(found["metadata_keys"])
    except (ValueError, KeyError, TypeError):
        raise directory.error(f"does not say what it was made for; its {LABEL} is damaged") from None
    if kind != wanted.name:
        raise directory.error("is a store of another kind; check which path belongs to which store")
    if version != wanted.version:
        raise directory.error(f"has layout version {version}; this release reads version {wanted.version}")
    asked = directory.content.metadata_keys
    if keys != asked:
        raise directory.error(
            f"was made for content of {_content_name(keys)}, not of {_content_name(asked)};"
            " use the same ContentDefinition, or make a new one"
        )


def identity(path: Path, lock: str) -> object:
    """What stands under the path, and under the name of the lock in it, now; equal as long as neither is replaced."""
    found: list[tuple[int, int] | None] = []
    for each in (path, path / lock):
        try:
            seen = each.stat()
            found.append((seen.st_dev, seen.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


def open_private(path: str, flags: int) -> int:
    """An opener for `open` that makes a file with mode 0600."""
    return os.open(path, flags, 0o600)


def _content_name(keys: tuple[str, ...]) -> str:
    return "text alone" if not keys else f"text and metadata {', '.join(map(repr, keys))}"


def _create(directory: StoreDirectory) -> None:
    """Make an empty store under another name and rename it: the path never shows half a store."""
    path, kind = directory.path, directory.kind
    if not path.absolute().parent.is_dir():
        raise directory.error(f"cannot be made: there is no directory {path.parent}")
    # mkdtemp gives mode 0700; the files in it have the modes that the driver gives them.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name[:200]}.", suffix=".new", dir=path.absolute().parent))
    try:
        kind.fill(directory, unfinished)
        label = {"kind": kind.name, "version": kind.version, "metadata_keys": directory.content.metadata_keys}
        with open(unfinished / LABEL, "xb", opener=open_private) as file:
            file.write(json.dumps(label).encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            unfinished.rename(path)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            # Another process has made it at the same time: use that one.
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
