"""Embed the engine in a Trio application: two real stores, one of them behind, one repair."""

import apsw
import trio

from trio_repair import RepairJob, Stores, SyncStrategy, open_repair_engine
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector


async def main() -> None:
    async with (
        open_sqlite_text("text.db", create=True) as text,
        open_sqlite_vector("vector.db", embedder=HashingEmbedder(), chunker=WindowChunker(), create=True) as vector,
        open_repair_engine(Stores(text=text, vector=vector)) as engine,
    ):
        with apsw.Connection("text.db") as application:  # an application wrote the text; the vector write was lost
            application.execute("INSERT INTO documents (doc_id, text, number) VALUES ('note', 'Mind the gap', 1)")
        job = RepairJob(doc_id="note", strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH, timeout=5.0)
        result = await engine.execute_repair_job(job)
        print(result.outcome.value, result.updated_systems, [hit.doc_id for hit in await vector.nearest("gap")])


trio.run(main)
