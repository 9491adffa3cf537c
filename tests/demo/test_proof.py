"""The proof by plain SQL: nothing on sound files, and every damage that can be done to them (the controls)."""

from __future__ import annotations

import ast
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from demo_support import DOCUMENTS, damage, files, find, proof_of

from trio_repair.demo import proof as proof_module
from trio_repair.demo.build import create_stores
from trio_repair.demo.damage import STORIES
from trio_repair.demo.proof import fingerprint


def run_sql(directory: Path, role: str, *statements: str) -> None:
    """Change a file as foreign SQL does."""
    with closing(sqlite3.connect(files(directory)[role])) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def blamed(directory: Path) -> set[str | None]:
    """What the proof finds at fault."""
    return {disagreement.doc_id for disagreement in proof_of(directory).disagreements}


def test_sound_files_are_proved(sound):
    """Files that agree are proved, and the counts are those of the files."""
    proof = proof_of(sound)
    assert proof.holds
    assert () == proof.disagreements
    assert (DOCUMENTS, 0) == (proof.live, proof.tombstones)
    assert proof.chunks == proof.vectors >= DOCUMENTS
    with closing(sqlite3.connect(files(sound)["cache"])) as connection:
        assert proof.cached == connection.execute("SELECT count(*) FROM documents").fetchone()[0] > 0


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.told)
async def test_every_story_breaks_the_proof(sound, story):
    """Each way in which copies come apart is seen in the files: every damaged document, and no other."""
    damaged = {one.doc_id for one in await damage(sound, (story,))}
    assert len(damaged) > 1
    assert damaged == blamed(sound) - {None}


FOREIGN = {
    "text changed": ("text", "UPDATE documents SET text = text || 'x' WHERE doc_id = {id}"),
    "digest changed": ("text", "UPDATE documents SET digest = 'x' WHERE doc_id = {id}"),
    "number changed": ("vector", "UPDATE documents SET number = number + 1 WHERE doc_id = {id}"),
    "not indexed": (
        "text",
        "DELETE FROM documents_fts_docsize WHERE id = (SELECT id FROM documents WHERE doc_id = {id})",
    ),
    "chunk changed": ("vector", "UPDATE chunks SET text = text || 'x' WHERE doc_id = {id}"),
    "chunk moved": ("vector", "UPDATE chunks SET start = start + 1 WHERE doc_id = {id}"),
    "chunks uncounted": ("vector", "UPDATE documents SET chunk_count = chunk_count + 1 WHERE doc_id = {id}"),
    "other model": ("vector", "UPDATE documents SET model = 'x' WHERE doc_id = {id}"),
    "other dimension": ("vector", "UPDATE documents SET dimension = 3 WHERE doc_id = {id}"),
    "document row gone": ("vector", "DELETE FROM documents WHERE doc_id = {id}"),
    "vector not searchable": (
        "vector",
        "UPDATE vectors_256_chunks SET validity = zeroblob(length(validity))",
    ),
    "cached text changed": ("cache", "UPDATE documents SET text = text || 'x' WHERE doc_id = {id}"),
    "cached number changed": ("cache", "UPDATE documents SET number = number + 1 WHERE doc_id = {id}"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_changes_break_the_proof(sound, what):
    """Single rows that were changed by SQL, which no story does, are seen as well."""
    role, statement = FOREIGN[what]
    with closing(sqlite3.connect(files(sound)["cache"])) as connection:
        doc_id = connection.execute("SELECT max(doc_id) FROM documents").fetchone()[0]
    run_sql(sound, role, statement.format(id=f"'{doc_id}'"))
    assert doc_id in blamed(sound)


async def test_vectors_that_nobody_owns_break_the_proof(sound):
    """A vector whose chunk is gone counts as a disagreement even if every document is whole."""
    await damage(sound, (next(story for story in STORIES if "chunk lost" in story.told),))
    assert None in blamed(sound)


async def test_a_fingerprint_changes_with_any_row_and_by_nothing_else(sound):
    """Looking through the stores leaves every row as it was; one changed row of any file shows."""
    paths = list(files(sound).values())
    before = fingerprint(*paths)
    async with create_stores(sound) as stores:
        await find(stores)
    assert before == fingerprint(*paths)
    seen = {before}
    for role in files(sound):
        run_sql(sound, role, "UPDATE documents SET number = number + 1 WHERE id = (SELECT min(id) FROM documents)")
        seen.add(fingerprint(*paths))
    assert 4 == len(seen)


def test_the_proof_rests_on_nothing_that_it_proves():
    """It imports the standard library and attrs: no engine, no store, and no driver of theirs."""
    imported = set()
    for node in ast.walk(ast.parse(Path(proof_module.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported.update(name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert 0 == node.level
            imported.add(str(node.module).partition(".")[0])
    assert {"attrs"} == imported - set(sys.stdlib_module_names)
