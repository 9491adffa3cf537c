"""What is in a LanceDB table of ours, and how an empty one is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import lancedb
import pyarrow as pa
from lancedb.index import BTree

from ._directory import DirectoryKind, StoreDirectory, open_private
from ._directory_errors import DriverFailed
from ._lancedb_errors import driver_errors

TABLE: Final = "documents"
LOCK: Final = "writer.lock"
"""Whoever has it locked is the one who may use the table."""

VECTOR: Final = "vector_"
"""Vectors of n numbers stand in the column ``vector_<n>``, which is made when the first of them comes."""

COMMON: Final = (
    "doc_id",
    "chunk_count",
    "revision",
    "session",
    "number",
    "digest",
    "deleted",
    "updated_at",
    "model",
    "dimension",
    "chunking",
)
"""Columns that are the same in all rows of a document."""

SCHEMA: Final = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),
        pa.field("chunk_count", pa.int32()),
        pa.field("revision", pa.int64()),
        pa.field("session", pa.int64()),
        pa.field("number", pa.int64()),
        pa.field("digest", pa.string()),
        pa.field("deleted", pa.bool_()),
        pa.field("updated_at", pa.string()),
        pa.field("model", pa.string()),
        pa.field("dimension", pa.int32()),
        pa.field("chunking", pa.string()),
        pa.field("start", pa.int64()),
        pa.field("text", pa.large_string()),
        pa.field("metadata", pa.large_string()),
    ]
)
"""A row for each chunk, by `ordinal` from 0; for a tombstone one row without a chunk. `metadata` is in the first."""


def vector_field(dimension: int) -> Any:
    """The column of vectors with so many numbers."""
    return pa.field(f"{VECTOR}{dimension}", pa.list_(pa.float32(), dimension))


def dimensions(schema: Any) -> list[int]:
    """The dimensions for which there is a column of vectors."""
    return [
        dimension
        for dimension in (int(name.removeprefix(VECTOR)) for name in schema.names if _is_vector(name))
        if schema.field(f"{VECTOR}{dimension}").equals(vector_field(dimension))
    ]


def connect(path: Path) -> Any:
    """The database in a directory; nothing is opened yet."""
    return lancedb.connect(str(path))


def _is_vector(name: str) -> bool:
    return name.startswith(VECTOR) and name.removeprefix(VECTOR).isdecimal()


def _fill(directory: StoreDirectory, path: Path) -> None:
    try:
        with driver_errors():
            table = connect(path).create_table(TABLE, schema=SCHEMA)
            table.create_index("doc_id", config=BTree())  # by it documents are found without a look at each row
    except DriverFailed as error:
        raise directory.error(f"cannot be made: {error.problem}") from error
    os.close(open_private(str(path / LOCK), os.O_CREAT | os.O_EXCL | os.O_WRONLY))


DATASET: Final = DirectoryKind(
    name="lancedb-vector",
    version=1,
    thing="a LanceDB database",
    is_foreign=lambda path: any(path.glob("*.lance")),
    fill=_fill,
)
