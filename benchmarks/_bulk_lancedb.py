"""A hand-written bulk script on the table of the LanceDB store: what the engine does, by the driver's plain calls."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import lancedb
import pyarrow as pa

from benchmarks.repair_throughput import CHUNKER, EMBEDDER, contents, versions

VECTOR = f"vector_{EMBEDDER.dimension}"
LOOKED_AT = ("doc_id", "number", "digest", "revision", "chunk_count")


def of(ids: Sequence[str]) -> str:
    """A condition on rows, in SQL: LanceDB takes no parameters."""
    return "doc_id IN (" + ",".join("'" + doc_id.replace("'", "''") + "'" for doc_id in ids) + ")"


class Target:
    """The table, as the store has it."""

    def __init__(self, path: Path) -> None:
        self.table: Any = lancedb.connect(str(path)).open_table("documents")
        self.session = secrets.randbits(63)

    def held(self, ids: Sequence[str]) -> dict[str, tuple[int, str, int, int]]:
        """Number, digest, revision and count of chunks by document, of those whose rows are all there."""
        query = self.table.search().select({**{name: name for name in LOOKED_AT}, "there": f"{VECTOR} IS NOT NULL"})
        found = query.where(of(ids)).limit(None).to_arrow()
        names = (*LOOKED_AT, "there")
        rows: dict[str, list[tuple[Any, ...]]] = {}
        for doc_id, *row in zip(*(found[name].to_pylist() for name in names), strict=True):
            rows.setdefault(doc_id, []).append(tuple(row))
        return {
            doc_id: own[0][:4]
            for doc_id, own in rows.items()
            if len(own) == own[0][3] and len(set(own)) == 1 and own[0][4]
        }

    def write(self, rows: Sequence[tuple[str, str, str, int, str]], held: dict[str, tuple[int, str, int, int]]) -> None:
        """Replace these documents, which are held so, in one commit."""
        pieces = [CHUNKER.chunk(row[1]) for row in rows]
        vectors = EMBEDDER.embed_all([chunk.text for chunks in pieces for chunk in chunks])
        columns: dict[str, list[Any]] = {
            name: [] for name in self.table.schema.names if name not in (VECTOR, "updated_at")
        }
        revision = self.table.version + 1
        for (doc_id, _text, metadata, number, digest), chunks in zip(rows, pieces, strict=True):
            for ordinal, chunk in enumerate(chunks):
                made = {
                    "doc_id": doc_id,
                    "ordinal": ordinal,
                    "chunk_count": len(chunks),
                    "revision": revision,
                    "session": self.session,
                    "number": number,
                    "digest": digest,
                    "deleted": False,
                    "model": EMBEDDER.model,
                    "dimension": EMBEDDER.dimension,
                    "chunking": CHUNKER.identity,
                    "start": chunk.start,
                    "text": chunk.text,
                    "metadata": None if ordinal else metadata,
                }
                for name, column in columns.items():
                    column.append(made[name])
        flat = pa.Array.from_buffers(
            pa.float32(),
            len(vectors) * EMBEDDER.dimension,
            [None, pa.py_buffer(b"".join(v.tobytes() for v in vectors))],
        )
        schema = self.table.schema
        arrays = {name: pa.array(column, schema.field(name).type) for name, column in columns.items()}
        arrays["updated_at"] = pa.nulls(len(vectors), schema.field("updated_at").type)
        arrays[VECTOR] = pa.FixedSizeListArray.from_arrays(flat, EMBEDDER.dimension)
        table = pa.table([arrays[name] for name in schema.names], schema=schema)
        shorter = [row[0] for row, chunks in zip(rows, pieces, strict=True) if held[row[0]][3] > len(chunks)]
        merge = self.table.merge_insert(["doc_id", "ordinal"]).when_matched_update_all().when_not_matched_insert_all()
        if shorter:
            merge = merge.when_not_matched_by_source_delete(of(shorter))
        merge.execute(table)


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
        target.write([row for row in rows if now[row[0]][2] == held[row[0]][2]], now)
        commits += 1
        there = target.held(stale)
        assert all(there[doc_id][:2] == wanted[doc_id][:2] for doc_id in stale)
        assert versions(source, json.dumps(stale)) == {doc_id: wanted[doc_id] for doc_id in stale}
    source.close()
    return commits
