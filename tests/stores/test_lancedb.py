"""The vector store on LanceDB: what `test_directory_store` does not ask of both stores in a directory."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("lancedb") is None and os.environ.get("CI") != "true":
    pytest.skip("lancedb is not installed; pip install -e '.[lancedb]'", allow_module_level=True)

import pyarrow as pa
from lancedb_support import open_store, table_of
from store_calls import put, text_of, write

from trio_repair import ContentDefinition, InvalidValue, StoreFileError, StoreUnavailable
from trio_repair.stores import _lancedb_rows
from trio_repair.stores.lancedb import lancedb_vector_from_settings
from trio_repair.testing import make_document


async def test_a_driver_that_fails_before_the_commit_wrote_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call fails as a whole."""
    async with open_store(tmp_path / "store", create=True) as store:
        await put(store, make_document("a", "before"))

        def failing(*args: Any) -> None:
            raise pa.ArrowInvalid("secret")

        with monkeypatch.context() as patched:
            patched.setattr(_lancedb_rows, "_make_rows", failing)
            with pytest.raises(StoreUnavailable) as error:
                await write(store, make_document("a", "after", number=2))
        assert "secret" not in str(error.value)
        assert "before" == await text_of(store, "a")
        await put(store, make_document("a", "later", number=3))


@pytest.mark.parametrize("column", ["doc_id", "ordinal", "text", "chunking"])
async def test_a_table_without_our_columns_is_refused(tmp_path: Path, column: str) -> None:
    """The label says that it is ours, and the table is not."""
    async with open_store(tmp_path / "store", create=True):
        pass
    table_of(tmp_path / "store").drop_columns([column])
    with pytest.raises(StoreFileError, match=f"lacks {column}"):
        async with open_store(tmp_path / "store"):
            pass


async def test_settings_of_a_configuration_file(tmp_path: Path) -> None:
    """`path`, relative to the file, `embedder` and `chunker`, and nothing else."""
    options: dict[str, Any] = {"name": "vector", "directory": tmp_path, "content": ContentDefinition(), "create": True}
    settings: dict[str, Any] = {"path": "store", "embedder": {"dimension": 8}, "chunker": {"size": 50, "overlap": 5}}
    async with lancedb_vector_from_settings(settings, **options) as store:
        assert str(tmp_path / "store") in repr(store)
        assert 0 == await store.count()
        embedding = store.traits.embedding
        assert (8, "windows-v1(size=50,overlap=5)") == (embedding.dimension, embedding.chunking)
    for settings, key in [
        ({}, "path"),
        ({"path": 1}, "path"),
        ({"path": "x", "synchronous": "full"}, "synchronous"),
        ({"path": "x", "embedder": {"dimension": 0}}, "embedder.dimension"),
        ({"path": "x", "chunker": 3}, "chunker"),
    ]:
        with pytest.raises(InvalidValue) as error:
            lancedb_vector_from_settings(settings, **options)
        assert key == error.value.field
