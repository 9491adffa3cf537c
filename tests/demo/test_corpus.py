"""The corpus on the real standard library, and on small made-up ones for the edges."""

import sys
from pathlib import Path

import pytest

from trio_repair.demo.corpus import MAX_VERSION, MIN_WORDS, stdlib_documents


@pytest.fixture(scope="module")
def corpus():
    return list(stdlib_documents())


def write_module(root: Path, name: str, source: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)


def test_the_library_gives_thousands_of_documents(corpus):
    """Each supported Python has 7,000 to 11,000 docstrings of at least a few words."""
    assert 7_000 <= len(corpus) <= 11_000


def test_ids_are_unique_and_in_byte_order(corpus):
    """The generator sorts package by package, and the whole still comes out in byte order of doc_id."""
    ids = [document.doc_id for document in corpus]
    assert sorted(set(ids), key=str.encode) == ids


def test_a_known_method_is_there(corpus):
    """A doc_id is the dotted path of the definition, and the text is its docstring without indentation."""
    import json.decoder

    found = {document.doc_id: document for document in corpus}["json.decoder.JSONDecoder.raw_decode"]
    assert {"module": "json.decoder", "kind": "method", "line": found.metadata["line"]} == dict(found.metadata)
    assert json.decoder.JSONDecoder.raw_decode.__code__.co_firstlineno == found.metadata["line"]
    assert found.text is not None
    assert found.text.startswith("Decode a JSON document from ``s``")


def test_every_document_is_whole(corpus):
    """Text, digest, number and metadata are present in each document, and all four kinds occur."""
    assert {"module", "class", "function", "method"} == {document.metadata["kind"] for document in corpus}
    for document in corpus:
        assert len(document.text.split()) >= MIN_WORDS
        assert 64 == len(document.version.digest)
        assert 1 <= document.version.number <= MAX_VERSION


def test_a_smaller_corpus_is_part_of_the_whole(corpus):
    """N documents are exactly N, sorted, each the same as in the whole corpus; the seed decides which."""
    whole = {document.doc_id: document for document in corpus}
    some = list(stdlib_documents(documents=100, seed=5))
    assert 100 == len(some)
    assert sorted(document.doc_id for document in some) == [document.doc_id for document in some]
    assert all(whole[document.doc_id] == document for document in some)
    assert some == list(stdlib_documents(documents=100, seed=5))
    assert some != list(stdlib_documents(documents=100, seed=6))


def test_nothing_is_imported(corpus):
    """Sources are parsed, not run: modules that would act on import were read without doing so."""
    read = {document.metadata["module"] for document in corpus}
    acting = {"idlelib", "lib2to3.__main__", "pydoc_data", "turtle", "tkinter.colorchooser"} & read
    assert acting
    assert set() == acting & set(sys.modules)


def test_second_definitions_are_numbered(tmp_path):
    """Definitions of one path, as in both branches of an if, become two documents in the order of the source."""
    write_module(
        tmp_path,
        "m.py",
        "if x:\n    def f():\n        'first of the two'\nelse:\n    def f():\n        'second of the two'\n",
    )
    assert [("m.f", "first of the two"), ("m.f#2", "second of the two")] == [
        (document.doc_id, document.text) for document in stdlib_documents(root=tmp_path)
    ]


def test_package_and_neighbours_sort_together(tmp_path):
    """A package's own definitions, its modules, and a package whose name merely starts alike keep byte order."""
    write_module(tmp_path, "a/__init__.py", "'the package a itself'\ndef z():\n    'function z of a'\n")
    write_module(
        tmp_path,
        "a/m.py",
        "'the module m of a'\nclass C:\n    'a class of m'\n    def g(self):\n        'a method of C'\n",
    )
    write_module(tmp_path, "ab.py", "'the module ab here'\n")
    found = [(document.doc_id, document.metadata["kind"]) for document in stdlib_documents(root=tmp_path)]
    assert [
        ("a", "module"),
        ("a.m", "module"),
        ("a.m.C", "class"),
        ("a.m.C.g", "method"),
        ("a.z", "function"),
        ("ab", "module"),
    ] == found


def test_unreadable_and_foreign_files_are_skipped(tmp_path):
    """Syntax errors, undecodable bytes, NULs, lone surrogates, tests and installed packages give no document."""
    write_module(tmp_path, "broken.py", "'three words here'\ndef (")
    (tmp_path / "bytes.py").write_bytes(b"'three words \xff here'\n")
    (tmp_path / "nul.py").write_bytes(b"'three words here'\0\n")
    write_module(tmp_path, "surrogate.py", "'three words \\ud800 here'\n")
    write_module(tmp_path, "short.py", "'two words'\n")
    write_module(tmp_path, "not-a-name.py", "'three words here'\n")
    for directory in ("test", "site-packages/x", "idlelib", "lib2to3/tests"):
        write_module(tmp_path, f"{directory}/m.py", "'three words here'\n")
    write_module(tmp_path, "good.py", "'three words here'\n")
    assert ["good"] == [document.doc_id for document in stdlib_documents(root=tmp_path)]
