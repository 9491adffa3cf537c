"""Whose a directory is, what is in an index, and how both are made."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import attrs
import tantivy

from trio_repair import ContentDefinition, StoreFileError

from ._tantivy_errors import DriverFailed, describe, driver_errors

KIND: Final = "tantivy-text"
LAYOUT_VERSION: Final = 1
LABEL: Final = "trio_repair.json"
"""The file beside the index that says whose it is. It is written once, before the directory gets its name."""

DIGEST_FIELDS: Final = ("digest_0", "digest_1", "digest_2", "digest_3")
NUMBERS: Final = ("id_high", "id_low", "revision", "session", "number", *DIGEST_FIELDS)
SIGNED: Final = ("updated_at", "updated_offset")


def make_schema() -> tantivy.Schema:
    """The fields of an index. The id is one term, as it is ("raw"); texts are cut into words, in lower case."""
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("doc_id", stored=True, tokenizer_name="raw", index_option="basic")
    for name in NUMBERS:
        builder.add_unsigned_field(name, fast=True)
    for name in SIGNED:
        builder.add_integer_field(name, fast=True)
    builder.add_boolean_field("deleted", fast=True, indexed=True)
    builder.add_text_field("text", stored=True)
    builder.add_bytes_field("metadata", stored=True)
    return builder.build()


@attrs.frozen(kw_only=True)
class IndexDirectory:
    """Which directory, and what is expected in it."""

    path: Path
    store: str
    content: ContentDefinition
    create: bool

    def error(self, problem: str) -> StoreFileError:
        """This directory cannot be used, and why."""
        return StoreFileError(self.store, f"{self.path} {problem}")


def open_directory(directory: IndexDirectory) -> None:
    """Make the index if it may be made, and see that it is one of ours.

    Raises:
        StoreFileError: the directory cannot be used. Nothing was written to it.
    """
    try:
        path = directory.path
        if directory.create and (not path.exists() or (path.is_dir() and not any(path.iterdir()))):
            _create(directory)
        check_label(directory)
    except OSError as error:
        raise directory.error(f"cannot be opened: {describe(error)}") from error


def check_label(directory: IndexDirectory) -> None:
    """See by its label that a directory is ours, without a lock and without a trace.

    Raises:
        StoreFileError: it is missing, foreign, damaged, of another version, or made for other content.
    """
    path = directory.path
    if not path.exists():
        raise directory.error("does not exist; name an existing store, or open it with create=True")
    if not path.is_dir():
        raise directory.error("is not a directory; this kind of store is one")
    label = path / LABEL
    if not label.exists():
        if (path / "meta.json").exists():
            raise directory.error("is a tantivy index of another application")
        if not any(path.iterdir()):
            raise directory.error("is empty and not a store; remove it, then open with create=True")
        raise directory.error("is not a tantivy store")
    try:
        found = json.loads(label.read_bytes())
        kind, version, keys = found["kind"], found["version"], tuple(found["metadata_keys"])
    except (ValueError, KeyError, TypeError):
        raise directory.error(f"does not say what it was made for; its {LABEL} is damaged") from None
    if kind != KIND:
        raise directory.error("is a store of another kind; check which path belongs to which store")
    if version != LAYOUT_VERSION:
        raise directory.error(f"has layout version {version}; this release reads version {LAYOUT_VERSION}")
    asked = directory.content.metadata_keys
    if keys != asked:
        raise directory.error(
            f"was made for content of {_content_name(keys)}, not of {_content_name(asked)};"
            " use the same ContentDefinition, or make a new one"
        )


def _content_name(keys: tuple[str, ...]) -> str:
    return "text alone" if not keys else f"text and metadata {', '.join(map(repr, keys))}"


def _create(directory: IndexDirectory) -> None:
    """Make an empty index under another name and rename it: the path never shows half a store."""
    path = directory.path
    if not path.absolute().parent.is_dir():
        raise directory.error(f"cannot be made: there is no directory {path.parent}")
    # mkdtemp gives mode 0700; the files in it have the modes that the driver gives them.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name[:200]}.", suffix=".new", dir=path.absolute().parent))
    try:
        with driver_errors():
            tantivy.Index(make_schema(), path=str(unfinished))
        label = {"kind": KIND, "version": LAYOUT_VERSION, "metadata_keys": directory.content.metadata_keys}
        with open(unfinished / LABEL, "xb", opener=_private) as file:
            file.write(json.dumps(label).encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            unfinished.rename(path)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            # Another process has made it at the same time: use that one.
    except DriverFailed as error:
        raise directory.error(f"cannot be made: {error.problem}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
