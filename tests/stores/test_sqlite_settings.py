"""Stores by configuration file: the entry points, their settings, and complaints that name the key."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from store_calls import put

from trio_repair import ContentDefinition, InvalidValue
from trio_repair.abc import Chunk
from trio_repair.testing import make_document

GROUP = "trio_repair.stores"


def factory(kind: str) -> Any:
    (entry,) = {entry.value: entry for entry in importlib.metadata.entry_points(group=GROUP, name=kind)}.values()
    return entry.load()


def opened(kind: str, directory: Path, settings: dict[str, Any]) -> Any:
    return factory(kind)(settings, name="role", directory=directory, content=ContentDefinition(), create=True)


class Embedder:
    """An embedder that a configuration file names."""

    def __init__(self, model: str = "mine", size: int = 3) -> None:
        self.model = model
        self.dimension = size

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        return [[1.0] * self.dimension for _ in texts]


class Chunker:
    """A chunker that a configuration file names."""

    identity = "all in one"

    def chunk(self, text: str) -> Sequence[Chunk]:
        return [Chunk(0, text)]


def broken() -> Embedder:
    """What a configuration file may name by mistake."""
    raise RuntimeError("the message quotes a credential")


MINE = f"{__name__}:Embedder"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sqlite-text", {}),
        ("sqlite-text", {"synchronous": "normal"}),
        ("sqlite-vector", {}),
        ("sqlite-vector", {"embedder": {"kind": "hashing", "dimension": 8}, "chunker": {"size": 50, "overlap": 0}}),
        ("sqlite-vector", {"embedder": {"kind": MINE, "size": 4}, "chunker": {"kind": f"{__name__}:Chunker"}}),
        ("sqlite-cache", {"ttl": 60, "synchronous": "full"}),
    ],
)
async def test_registered_kinds_open_what_they_are_told(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Each kind is registered, and opens a file relative to the configuration's directory."""
    async with opened(kind, tmp_path, {"path": "store.db", **settings}) as store:
        await put(store, make_document("a", "text"))
        if settings.get("embedder", {}).get("kind") == MINE:
            identity = store.traits.embedding
            assert ("mine", 4, "all in one") == (identity.model, identity.dimension, identity.chunking)
    assert (tmp_path / "store.db").exists()


@pytest.mark.parametrize(
    ("kind", "settings", "field"),
    [
        ("sqlite-text", {}, "path"),
        ("sqlite-text", {"path": 5}, "path"),
        ("sqlite-text", {"path": ""}, "path"),
        ("sqlite-text", {"path": "a\0b"}, "path"),
        ("sqlite-text", {"path": "s.db", "synchronous": "off"}, "synchronous"),
        ("sqlite-text", {"path": "s.db", "paht": "t"}, "paht"),
        ("sqlite-text", {"path": "s.db", "ttl": 5}, "ttl"),
        ("sqlite-cache", {"path": "s.db", "ttl": "soon"}, "ttl"),
        ("sqlite-vector", {"path": "s.db", "embedder": "hashing"}, "embedder"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"kind": "magic"}}, "embedder.kind"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"kind": 3}}, "embedder.kind"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"kind": "no_such_module:x"}}, "embedder.kind"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"kind": "json:no_such_name"}}, "embedder.kind"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"kind": "json:__name__"}}, "embedder.kind"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"kind": ":x"}}, "embedder.kind"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"kind": ".relative:x"}}, "embedder.kind"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"kind": "builtins:exit"}}, "embedder.kind"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"kind": f"{__name__}:broken"}}, "embedder.kind"),
        ("sqlite-cache", {"path": "s.db", "ttl": 10**400}, "ttl"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"kind": f"{__name__}:Chunker"}}, "embedder.kind"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"kind": MINE, "colour": "red"}}, "embedder"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"dimension": 0}}, "embedder.dimension"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"dimension": 3.5}}, "embedder.dimension"),
        ("sqlite-vector", {"path": "s.db", "embedder": {"size": 3}}, "embedder.size"),
        ("sqlite-vector", {"path": "s.db", "chunker": {"size": 10, "overlap": 10}}, "chunker.overlap"),
        ("sqlite-vector", {"path": "s.db", "chunker": {"kind": MINE}}, "chunker.kind"),
    ],
)
def test_wrong_settings_are_named(kind: str, settings: dict[str, Any], field: str, tmp_path: Path) -> None:
    """A setting that is unknown, missing or wrong is refused by its key, before a file is made."""
    with pytest.raises(InvalidValue) as caught:
        opened(kind, tmp_path, settings)
    assert field == caught.value.field
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = (\n", "SyntaxError in {path}, line 1"),
        ("\nraise RuntimeError('quotes a credential')\n", "RuntimeError was raised in {path}, line 2"),
        ("raise SystemExit(5)\n", "SystemExit was raised in {path}, line 1"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_place(
    source: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises: the key, the type and where, and not its message."""
    path = tmp_path / "spoilt_module.py"
    path.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidValue) as caught:
        opened("sqlite-vector", tmp_path, {"path": "s.db", "embedder": {"kind": "spoilt_module:make"}})
    expected = f"'spoilt_module:make' cannot be imported: {problem.format(path=path)}"
    assert ("embedder.kind", expected) == (caught.value.field, caught.value.problem)


def test_a_callable_that_raises_is_named_with_the_place(tmp_path: Path) -> None:
    """Its message may quote what it was given."""
    with pytest.raises(InvalidValue, match=r"could not make it: RuntimeError was raised in .*, line \d+$") as caught:
        opened("sqlite-vector", tmp_path, {"path": "s.db", "embedder": {"kind": f"{__name__}:broken"}})
    assert "credential" not in str(caught.value)
