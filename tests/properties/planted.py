"""Planted bugs: the engine's own source with one place changed, for as long as a test lasts."""

from __future__ import annotations

import importlib
import inspect
import sys
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
    source = inspect.getsource(function)
    times = source.count(bug.old)
    assert times == 1, f"{bug.where} has changed: {bug.old!r} stands there {times} times"
    mutant = textwrap.dedent(source.replace(bug.old, bug.new))
    # The module's own names are the mutant's globals, so that other patches reach it.
    namespace: dict[str, Any] = {}
    code = compile("from __future__ import annotations\n" + mutant, f"<planted: {bug.name}>", "exec")
    exec(code, module.__dict__, namespace)
    mutated = namespace[name]
    # A function is also known by its name in the modules that import it.
    places = [(owner, name)]
    if owner is module:
        modules = [module for key, module in sys.modules.items() if key.startswith("trio_repair.")]
        places += [(other, name) for other in modules if other is not module and vars(other).get(name) is original]
    for place, attribute in places:
        setattr(place, attribute, mutated)
    try:
        yield
    finally:
        for place, attribute in places:
            setattr(place, attribute, original)
