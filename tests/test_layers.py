"""The architecture, held by tests: layers import downward only, and the public surface is what it says."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trio_repair

PACKAGE = Path(trio_repair.__file__).parent

LAYERS: dict[int, set[str]] = {
    0: {"_enums", "_unchecked", "_job_ids", "_model", "_views", "_events", "_errors", "_config"},
    1: {"abc"},
    2: {"_divergence", "_summary", "_ranges", "_plan", "_planning", "_backoff", "_clock"},
    3: {
        "_timetable",
        "_breaker",
        "_batching",
        "_store_call",
        "_suspects",
        "_waiting",
        "_requests",
        "_stepping",
        "_progress",
        "_ticket",
        "_queue",
        "_active",
        "_limits",
        "_execution",
        "_cache_repair",
        "_telling",
        "_verdict",
        "_streaming",
    },
    4: {"_engine", "_supervisor", "_check", "_merge", "_lanes"},
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}
EDGES = {"stores", "embedding", "instrumentation", "testing", "cli", "demo"}
THIRD_PARTY_OF_CORE = {0: {"attrs"}, 1: {"attrs"}, 2: {"attrs"}, 3: {"attrs", "trio"}, 4: {"attrs", "trio"}}
# What an edge may know beside the public surface: values that every layer shares, and how strings become them.
EDGE_MAY_IMPORT = {"_model", "_views", "_events", "_errors", "_config", "abc", "_divergence", "_planning"}


def imports_of(source: str, package: str = "trio_repair") -> Iterator[str]:
    """Every module that a piece of source imports, absolute; type-only imports too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parent = ".".join(parts[: len(parts) - node.level + 1])
                base = f"{parent}.{base}" if base else parent
            if base == "trio_repair":
                yield from (f"trio_repair.{alias.name}" for alias in node.names)
            else:
                yield base


def violations(name: str, source: str) -> list[str]:
    """Imports of a core module that do not point downward."""
    found = []
    for module in imports_of(source):
        top, _, rest = module.partition(".")
        target = rest.split(".")[0]
        if top == "trio_repair":
            if target not in LAYER_OF or LAYER_OF[target] > LAYER_OF[name]:
                found.append(f"{name} imports {module}")
        elif top not in sys.stdlib_module_names and top not in THIRD_PARTY_OF_CORE[LAYER_OF[name]]:
            found.append(f"{name} imports {module}")
    return found


def core_modules() -> list[Path]:
    """The modules of layers 0 to 4."""
    return sorted(path for path in PACKAGE.glob("*.py") if path.stem not in {"__init__", "__main__"})


def test_every_core_module_has_a_layer() -> None:
    """A module that is added has to say where it belongs."""
    assert sorted(LAYER_OF) == [path.stem for path in core_modules()]


@pytest.mark.parametrize("path", core_modules(), ids=lambda path: path.stem)
def test_layers_import_downward_only(path: Path) -> None:
    """No module of the core imports a layer above its own, or an edge, or a library its layer must not know."""
    assert [] == violations(path.stem, path.read_text())


def test_control_the_layer_test_sees_upward_imports() -> None:
    """The check above can fail: upward, sideways to an edge, Trio in a pure layer, and a foreign library."""
    planted = {
        "from ._engine import RepairExecutionEngine": ["_queue imports trio_repair._engine"],
        "from .stores.memory import MemoryStore": ["_queue imports trio_repair.stores.memory"],
        "from trio_repair import check": ["_queue imports trio_repair.check"],
        "import apsw": ["_queue imports apsw"],
    }
    assert planted == {source: violations("_queue", source) for source in planted}
    assert ["_planning imports trio"] == violations("_planning", "import trio")


def edge_modules() -> list[Path]:
    """The modules of layer 5."""
    return sorted(path for edge in EDGES for path in (PACKAGE / edge).rglob("*.py"))


@pytest.mark.parametrize("path", edge_modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_edges_use_the_public_surface(path: Path) -> None:
    """An edge imports the package's front, layers 0 to 2, its own folder, or another edge; never the mechanisms."""
    relative = path.relative_to(PACKAGE.parent).with_suffix("")
    package = ".".join(relative.parts[:-1])
    public = {f"trio_repair.{name}" for name in trio_repair.__all__} | {"trio_repair.__version__"}
    for module in imports_of(path.read_text(), package):
        if module == "trio_repair" or not module.startswith("trio_repair."):
            continue
        target = module.split(".")[1]
        assert module in public or target in EDGES or target in EDGE_MAY_IMPORT, f"{relative} imports {module}"


def test_all_is_exact() -> None:
    """`__all__` names what the package exports: all of it, nothing else, sorted, and every name exists."""
    exported = {
        name
        for name, value in vars(trio_repair).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("trio_repair")
    }
    assert sorted(exported) == trio_repair.__all__


def test_importing_does_no_work() -> None:
    """Importing the package loads no driver and no test framework, starts no thread, and needs only the core."""
    script = (
        "import sys, threading, trio_repair, trio_repair.abc, trio_repair.testing, trio_repair.instrumentation\n"
        "unwanted = {'apsw', 'sqlite_vec', 'cyclopts', 'rich', 'hypothesis', 'pytest', 'opentelemetry'}\n"
        "loaded = (unwanted | {'prometheus_client'}) & set(sys.modules)\n"
        "print(sorted(loaded), threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "[] 1\n" == done.stdout
