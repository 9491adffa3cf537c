"""A hand-written bulk script on the index of the tantivy store: what the engine does, by the driver's plain calls."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import tantivy

from benchmarks.repair_throughput import contents, versions

DIGEST = ("digest_0", "digest_1", "digest_2", "digest_3")
COLUMNS = ("id_high", "id_low", "number", "revision", *DIGEST)
HEAP_BYTES = 64 * 2**20


def words_of(digest: bytes) -> list[int]:
    """A digest, or a part of it, as numbers of 64 bits."""
    return [int.from_bytes(digest[start : start + 8], "big") for start in range(0, len(digest), 8)]


class Target:
    """The index: one writer, one thread, as the store has it."""

    def __init__(self, path: Path) -> None:
        self.index = tantivy.Index.open(str(path))
        self.index.config_reader("manual")
        self.writer = self.index.writer(heap_size=HEAP_BYTES, num_threads=1)
        self.revision = self.writer.commit_opstamp
        self.session = secrets.randbits(63)

    def held(self, ids: Sequence[str]) -> dict[str, tuple[int, str, int]]:
        """Number, digest and revision by document."""
        searcher = self.index.searcher()
        query = tantivy.Query.term_set_query(self.index.schema, "doc_id", ids)
        addresses = [address for _, address in searcher.search(query, limit=2 * len(ids), count=False).hits]
        keys = {tuple(words_of(hashlib.sha256(doc_id.encode()).digest()[:16])): doc_id for doc_id in ids}
        rows = zip(*(searcher.fast_field_values(name, addresses) for name in COLUMNS), strict=True)
        return {
            keys[high, low]: (number, "".join(f"{word:016x}" for word in digest), revision)
            for high, low, number, revision, *digest in rows
        }

    def write(self, rows: Sequence[tuple[str, str, str, int, str]]) -> None:
        """Replace these documents in one commit."""
        for index, (doc_id, text, metadata, number, digest) in enumerate(rows, 1):
            row = tantivy.Document()
            row.add_text("doc_id", doc_id)
            row.add_text("text", text)
            row.add_bytes("metadata", metadata.encode())
            row.add_boolean("deleted", value=False)
            key = words_of(hashlib.sha256(doc_id.encode()).digest()[:16])
            numbers = (*key, number, self.revision + index, *words_of(bytes.fromhex(digest)))
            for name, value in zip(COLUMNS, numbers, strict=True):
                row.add_unsigned(name, value)
            row.add_unsigned("session", self.session)
            self.writer.delete_documents_by_term("doc_id", doc_id)
            self.writer.add_document(row)
        self.revision = self.writer.commit()
        self.index.reload()

    def close(self) -> None:
        """Let the lock go."""
        self.writer.wait_merging_threads()


def script(folder: Path, ids: Sequence[str], size: int) -> int:
    """Versions, content, a second look, writes where nothing has moved, read-back. How many commits that took."""
    source: Any = apsw.Connection(str(folder / "text.db"))
    target = Target(folder / "index")
    commits = 0
    for start in range(0, len(ids), size):
        some = ids[start : start + size]
        wanted = versions(source, json.dumps(some))
        held = target.held(some)
        stale = [doc_id for doc_id in some if held[doc_id][:2] != wanted[doc_id][:2]]
        rows = contents(source, json.dumps(stale))
        now = target.held(stale)
        target.write([row for row in rows if now[row[0]][2] == held[row[0]][2]])
        commits += 1
        there = target.held(stale)
        assert all(there[doc_id][:2] == wanted[doc_id][:2] for doc_id in stale)
        assert versions(source, json.dumps(stale)) == {doc_id: wanted[doc_id] for doc_id in stale}
    target.close()
    source.close()
    return commits
