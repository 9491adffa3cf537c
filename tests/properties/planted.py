"""Planted bugs: the engine's own source with one place changed, for as long as a test lasts."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs


@attrs.frozen
class Bug:
    name: str
    where: str
    """``module:function`` or ``module:Class.method``, within trio_repair."""
    old: str
    """What stands there exactly once."""
    new: str

    def __str__(self) -> str:
        return self.name


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Replace one function by its mutant."""
    module_name, _, path = bug.where.partition(":")
    module = importlib.import_module(f"trio_repair.{module_name}")
    *owners, name = path.split(".")
    owner: Any = module
    for part in owners:
        owner = getattr(owner, part)
    original = inspect.getattr_static(owner, name)
    function = getattr(original, "fget", None) or getattr(original, "__func__", None) or original
    source = textwrap.dedent(inspect.getsource(function))
    old, new = textwrap.dedent(bug.old), textwrap.dedent(bug.new)
    assert source.count(old) == 1, f"{bug.where} has changed: {bug.old!r} stands there {source.count(old)} times"
    # The module's own names are the mutant's globals, so that other patches reach it.
    namespace: dict[str, Any] = {}
    code = compile("from __future__ import annotations\n" + source.replace(old, new), f"<planted: {bug.name}>", "exec")
    exec(code, module.__dict__, namespace)  # noqa: S102 - our own source, changed
    setattr(owner, name, namespace[name])
    try:
        yield
    finally:
        setattr(owner, name, original)
