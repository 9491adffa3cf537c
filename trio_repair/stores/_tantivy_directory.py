"""What is in a tantivy index of ours, and how an empty one is made."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import tantivy

from ._directory import DirectoryKind, StoreDirectory
from ._directory_errors import DriverFailed
from ._tantivy_errors import driver_errors

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


def _fill(directory: StoreDirectory, path: Path) -> None:
    try:
        with driver_errors():
            tantivy.Index(make_schema(), path=str(path))
    except DriverFailed as error:
        raise directory.error(f"cannot be made: {error.problem}") from error


INDEX: Final = DirectoryKind(
    name="tantivy-text",
    version=1,
    thing="a tantivy index",
    is_foreign=lambda path: (path / "meta.json").exists(),
    fill=_fill,
)
