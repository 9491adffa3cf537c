"""Demo directories: whose they are, what is removed from them, and what they hold."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio
from demo_support import DOCUMENTS, SEED, files, find, proof_of

from trio_repair import InvalidValue
from trio_repair.cli._configuration import load_configuration
from trio_repair.cli._opening import open_stores
from trio_repair.demo.build import MARKER, claim_directory, clear_directory, create_stores, fill_stores
from trio_repair.demo.corpus import stdlib_documents


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_new_or_empty_directory_is_claimed(tmp_path):
    """A directory that is not there is made, parents too, and an empty one is taken; both are marked."""
    claim_directory(tmp_path / "a" / "b")
    assert {MARKER} == names(tmp_path / "a" / "b")
    (tmp_path / "empty").mkdir()
    claim_directory(tmp_path / "empty")
    assert {MARKER} == names(tmp_path / "empty")


def test_somebody_elses_directory_is_refused(tmp_path):
    """A directory that holds anything, and a file, are refused by one clear line and stay as they are."""
    (tmp_path / "text.db").write_text("precious")
    with pytest.raises(InvalidValue, match="is not empty and was not made by the demo; name another"):
        claim_directory(tmp_path)
    assert {"text.db"} == names(tmp_path)
    with pytest.raises(InvalidValue, match="is not a directory"):
        claim_directory(tmp_path / "text.db")
    with pytest.raises(InvalidValue, match="cannot be used"):
        claim_directory(tmp_path / "text.db" / "below")
    assert "precious" == (tmp_path / "text.db").read_text()


def test_only_what_the_demo_made_is_removed(sound):
    """Making a demo directory anew removes the databases and writes the configuration; other files stay."""
    (sound / "mine.txt").write_text("kept")
    (sound / "text.db-wal").write_text("")
    (sound / "trio-repair.toml").write_text("changed")
    claim_directory(sound)
    clear_directory(sound)
    assert {MARKER, "mine.txt", "trio-repair.toml"} == names(sound)
    assert "changed" != (sound / "trio-repair.toml").read_text()


def test_a_link_in_place_of_a_database_is_removed_not_followed(sound, tmp_path):
    """A database that is a symbolic link is unlinked; what it points to stays."""
    outside = tmp_path / "outside.db"
    (sound / "text.db").rename(outside)
    (sound / "text.db").symlink_to(outside)
    clear_directory(sound)
    assert outside.exists()
    assert not (sound / "text.db").is_symlink()


async def test_the_configuration_opens_what_was_made(sound):
    """The configuration file names the three stores; opened by it, they hold the corpus and agree."""
    configuration = load_configuration(sound / "trio-repair.toml")
    async with open_stores(configuration) as stores:
        assert DOCUMENTS == await stores.text.count() == await stores.vector.count()
        assert stores.cache is not None
        assert DOCUMENTS / 5 < await stores.cache.count() < DOCUMENTS / 2
        assert {} == await find(stores)


def test_the_stores_hold_the_corpus(sound):
    """Every document of the corpus is in the files, at its version, and nothing else is."""
    proof = proof_of(sound)
    corpus = stdlib_documents(documents=DOCUMENTS, seed=SEED)
    assert {one.doc_id: (one.version.number, one.version.digest, False) for one in corpus} == proof.text


async def test_cancelled_halfway_the_files_are_valid(tmp_path):
    """Cancelled between two batches, the stores hold what was written and SQLite finds their files sound."""
    directory = tmp_path / "demo"
    claim_directory(directory)
    clear_directory(directory)
    with trio.CancelScope() as scope:
        async with create_stores(directory) as stores:
            corpus = stdlib_documents(documents=600, seed=SEED)
            await fill_stores(stores, corpus, seed=SEED, progress=lambda _: scope.cancel())
    assert scope.cancelled_caught
    for file in files(directory).values():
        with sqlite3.connect(file) as connection:
            assert [("ok",)] == connection.execute("PRAGMA quick_check").fetchall()
        connection.close()
    proof = proof_of(directory)
    assert 0 < proof.live < 600
    assert proof.holds
