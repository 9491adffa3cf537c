"""The docstrings of the Python standard library as documents: real text that every machine has.

The sources are parsed and never imported, so that nothing of them runs.
"""

from __future__ import annotations

import ast
import itertools
import os
import random
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from trio_repair import ContentDefinition, Document, DocumentVersion

MIN_WORDS: Final = 3
"""A shorter docstring says too little to be searched for."""

MAX_VERSION: Final = 9
"""Documents start at version 1 to this one, so that no repair gets by with assuming that all are at 1."""

_SKIPPED: Final = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "turtledemo"})
"""Directories that hold other people's packages, tests, or programs rather than the library."""

_BLOCKS: Final[Mapping[type[ast.AST], tuple[str, ...]]] = {
    ast.Module: ("body",),
    ast.ClassDef: ("body",),
    ast.FunctionDef: ("body",),
    ast.AsyncFunctionDef: ("body",),
    ast.If: ("body", "orelse"),
    ast.For: ("body", "orelse"),
    ast.While: ("body", "orelse"),
    ast.With: ("body",),
    ast.Try: ("body", "handlers", "orelse", "finalbody"),
    ast.ExceptHandler: ("body",),
}
"""Where definitions are found. `ast.walk` would look at every expression too, which takes ten times as long."""

_CONTENT: Final = ContentDefinition()


def stdlib_documents(*, documents: int | None = None, seed: int = 0, root: Path | None = None) -> Iterator[Document]:
    """Yield one document for each docstring of a module, class, function or method, by ascending doc_id.

    A doc_id is the dotted path of its definition, such as ``json.decoder.JSONDecoder.raw_decode``; the second
    definition of the same path ends in ``#2``, and so on. The metadata are `module`, `kind` and `line`. The same
    sources give the same documents, in the same order and at the same versions, whatever the seed.

    Args:
        documents: at most so many, those of a seeded choice of modules; None for all of them, about 7,500.
        seed: which modules, if not all.
        root: the directory to read instead of the running interpreter's library.

    Yields:
        Live documents. One package is held in memory at a time, or the chosen documents.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    modules = _modules(root)
    if documents is not None:
        random.Random(seed).shuffle(modules)
        chosen = itertools.islice(itertools.chain.from_iterable(map(_module_documents, modules)), documents)
        yield from sorted(chosen, key=_by_id)
        return
    # A dot sorts before every character of a name, hence all of "json" comes before anything of "jsonx", and sorting
    # package by package gives the order of the whole. Within a package, "a.b" may stand in a/__init__.py or a/b.py.
    for _, package in itertools.groupby(modules, key=lambda module: module[0].partition(".")[0]):
        yield from sorted(itertools.chain.from_iterable(map(_module_documents, package)), key=_by_id)


def _by_id(document: Document) -> str:
    return document.doc_id


def _modules(root: Path) -> list[tuple[str, Path]]:
    """(dotted name, file) of every module below `root`, in ascending order."""
    found = []
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if name.isidentifier() and name not in _SKIPPED]
        package = Path(directory).relative_to(root).parts
        for file in files:
            name = file.removesuffix(".py")
            # Files such as "_sysconfigdata__linux_x86_64-linux-gnu.py" are about this machine, not part of the library.
            if name != file and name.isidentifier():
                parts = package if name == "__init__" else (*package, name)
                if parts:
                    found.append((".".join(parts), Path(directory, file)))
    return sorted(found)


def _module_documents(module: tuple[str, Path]) -> list[Document]:
    """The documents of one file, in the order of its lines; none if it cannot be read or parsed."""
    name, path = module
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    found: list[Document] = []
    taken: dict[str, int] = {}
    for doc_id, kind, line, text in _docstrings(tree, name):
        taken[doc_id] = taken.get(doc_id, 0) + 1
        try:
            digest = _CONTENT.digest(text, {})
        except ValueError:  # a lone surrogate, spelled as an escape
            continue
        found.append(
            Document(
                doc_id=doc_id if taken[doc_id] == 1 else f"{doc_id}#{taken[doc_id]}",
                text=text,
                metadata={"module": name, "kind": kind, "line": line},
                version=DocumentVersion(number=1 + int(digest[:8], 16) % MAX_VERSION, digest=digest),
            )
        )
    return found


def _docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, str, int, str]]:
    """(doc_id, kind, line, docstring) of each definition that is worth a document, in the order of the source."""
    stack: list[tuple[ast.AST, str, bool]] = [(tree, module, False)]
    while stack:
        node, name, in_class = stack.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if isinstance(node, ast.Module):
                kind, line = "module", 1
            else:
                name, line = f"{name}.{node.name}", node.lineno
                kind = "class" if isinstance(node, ast.ClassDef) else "method" if in_class else "function"
            text = ast.get_docstring(node)
            if text is not None and len(text.split()) >= MIN_WORDS:
                yield name, kind, line, text
            in_class = isinstance(node, ast.ClassDef)
        inner = [child for block in _BLOCKS[type(node)] for child in getattr(node, block) if type(child) in _BLOCKS]
        stack.extend((child, name, in_class) for child in reversed(inner))
