"""An application that dies half-way: it writes the texts of two documents, and the vectors of one of them.

It makes the stores on the servers of compose.yaml, if they are not there.
"""

import os

import psycopg
import psycopg.conninfo
import trio

from trio_repair import RepairJob, Stores, SyncStrategy, open_repair_engine
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.pgvector import open_pgvector
from trio_repair.stores.postgres_text import open_postgres_text

DATABASE = psycopg.conninfo.make_conninfo(
    host="127.0.0.1", port=55432, dbname="search", user="search", password=os.environ["SEARCH_PASSWORD"]
)
WRITE = "INSERT INTO trio_repair_text.documents (doc_id, text, number) VALUES (%s, %s, 1) ON CONFLICT DO NOTHING"


async def main() -> None:
    async with (
        open_postgres_text(DATABASE, create=True) as text,
        open_pgvector(DATABASE, embedder=HashingEmbedder(), chunker=WindowChunker(), create=True) as vector,
        open_repair_engine(Stores(text=text, vector=vector)) as engine,
    ):
        with psycopg.connect(DATABASE) as application:
            application.execute(WRITE, ("note", "Mind the gap"))
            application.execute(WRITE, ("sign", "Way out"))
        await engine.execute_repair_job(RepairJob(doc_id="note", strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH))


trio.run(main)
