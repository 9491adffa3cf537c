"""What the tests of the stores in a directory share: where the two drivers differ, for tests that are the same."""

from __future__ import annotations

import abc
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from trio_repair.embedding import HashingEmbedder, WindowChunker


class Kind(abc.ABC):
    """One kind of store in a directory. Nothing of its driver is imported before it is made."""

    driver: ClassVar[str]
    name: ClassVar[str]
    """Of the kind in a configuration file."""
    role: ClassVar[str]
    """The store's name in errors."""
    lock: ClassVar[str]
    making: ClassVar[str]
    """The function that makes rows, in `rows`."""

    session: ModuleType
    rows: ModuleType
    store: Any
    settings: Any
    """The factory that an entry point names."""

    @abc.abstractmethod
    def open(self, path: Path, **options: Any) -> Any:
        """The store in this directory."""

    @abc.abstractmethod
    def make_foreign(self, path: Path) -> None:
        """Make what another application has in such a directory."""

    @abc.abstractmethod
    def spoil_commit(self, session: Any, landed: bool) -> None:
        """Let the next commit fail, before or after it has landed, in words of the driver that quote a secret."""


class TantivyKind(Kind):
    """`trio_repair.stores.tantivy`."""

    driver = "tantivy"
    name = "tantivy-text"
    role = "text"
    lock = ".tantivy-writer.lock"
    making = "_make_row"

    def __init__(self) -> None:
        from trio_repair.stores import _tantivy, _tantivy_rows, tantivy

        self.session, self.rows = _tantivy, _tantivy_rows
        self.store, self.settings = tantivy.TantivyTextStore, tantivy.tantivy_text_from_settings
        self._open = tantivy.open_tantivy_text

    def open(self, path: Path, **options: Any) -> Any:
        return self._open(path, **options)

    def make_foreign(self, path: Path) -> None:
        import tantivy

        path.mkdir()
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("title", stored=True)
        tantivy.Index(builder.build(), path=str(path))

    def spoil_commit(self, session: Any, landed: bool) -> None:
        session._writer = FailingWriter(session._writer, landed)


class FailingWriter:
    """The writer, until its commit."""

    def __init__(self, writer: Any, landed: bool) -> None:
        self._writer = writer
        self._landed = landed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def commit(self) -> int:
        if self._landed:
            self._writer.commit()
        raise ValueError("No space left on device, says the driver, and quotes a secret")


class LanceDBKind(Kind):
    """`trio_repair.stores.lancedb`."""

    driver = "lancedb"
    name = "lancedb-vector"
    role = "vector"
    lock = "writer.lock"
    making = "_make_rows"

    def __init__(self) -> None:
        from trio_repair.stores import _lancedb, _lancedb_rows, lancedb

        self.session, self.rows = _lancedb, _lancedb_rows
        self.store, self.settings = lancedb.LanceDBVectorStore, lancedb.lancedb_vector_from_settings
        self._open = lancedb.open_lancedb_vector

    def open(self, path: Path, **options: Any) -> Any:
        return self._open(path, embedder=HashingEmbedder(16), chunker=WindowChunker(40, 10), **options)

    def make_foreign(self, path: Path) -> None:
        import lancedb
        import pyarrow as pa

        lancedb.connect(str(path)).create_table("titles", schema=pa.schema([("title", pa.string())]))

    def spoil_commit(self, session: Any, landed: bool) -> None:
        session._table = FailingMerge(session._table, landed)


class FailingMerge:
    """The table, until a merge is carried out."""

    def __init__(self, inner: Any, landed: bool) -> None:
        self._inner = inner
        self._landed = landed

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "execute":
            return self._fail
        if name.startswith(("merge", "when")):
            return lambda *args: FailingMerge(found(*args), self._landed)
        return found

    def _fail(self, *args: Any, **options: Any) -> None:
        if self._landed:
            self._inner.execute(*args, **options)
        raise RuntimeError("No space left on device, says the driver, and quotes a secret")


KINDS: dict[str, type[Kind]] = {kind.driver: kind for kind in (TantivyKind, LanceDBKind)}


def kind_of(driver: str) -> Kind:
    """The kind of a driver; the test is skipped where that is not installed."""
    if importlib.util.find_spec(driver) is None and os.environ.get("CI") != "true":
        pytest.skip(f"{driver} is not installed; pip install -e '.[{driver}]'")
    return KINDS[driver]()
