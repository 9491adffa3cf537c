"""Make a database as an application of somebody else's has one, and damage some of it as dual writes do.

Nothing in it knows of trio_repair: articles, their chunks with vectors (pgvector), and, if Redis is there, cached JSON.
Run with the database's connection string in EXISTING_DB, and perhaps the server's URL in EXISTING_REDIS; then
``trio-repair check --config trio-repair.toml``, or ``with-cache.toml``.
"""

import json
import os
from collections.abc import Sequence

import psycopg
import trio

from trio_repair.embedding import HashingEmbedder, WindowChunker

ARTICLES = 40
SCHEMA = """
CREATE TABLE articles (
    id bigserial PRIMARY KEY,
    slug text NOT NULL UNIQUE,
    title text NOT NULL,
    body text NOT NULL,
    author text NOT NULL DEFAULT 'nobody',
    revision bigint NOT NULL DEFAULT 1,
    changed_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);
CREATE TABLE chunks (
    id bigserial PRIMARY KEY,
    article text NOT NULL,
    position integer NOT NULL,
    content text NOT NULL,
    embedding vector(64)
);
CREATE INDEX chunks_article ON chunks (article);
"""

DAMAGE = {
    "article-03": "DELETE FROM chunks WHERE article = 'article-03'",
    "article-05": "DELETE FROM chunks WHERE article = 'article-05' AND position = 1",
    "article-07": "UPDATE articles SET body = 'Written anew.', revision = 2 WHERE slug = 'article-07'",
    "article-11": "UPDATE chunks SET content = 'cut short' WHERE article = 'article-11' AND position = 0",
    "article-13": "UPDATE articles SET deleted_at = now(), revision = 2 WHERE slug = 'article-13'",
    "article-99": "INSERT INTO chunks (article, position, content) VALUES ('article-99', 0, 'of no article')",
}
"""What goes wrong in the database, by article."""

CACHE_DAMAGE = {"article-17": {"body": "of yesterday", "revision": 0, "shown": 3}}
"""What the cache holds instead, by article."""


def body(number: int) -> str:
    """The text of an article."""
    return " ".join(f"Sentence {nth} of article {number} speaks of topic {number * nth % 17}." for nth in range(20))


async def chunks_of(texts: Sequence[str]) -> list[list[tuple[str, Sequence[float]]]]:
    """What the application's indexer makes of texts: for each, its chunks and their vectors."""
    chunker, embedder = WindowChunker(300, 50), HashingEmbedder(64)
    made = []
    for text in texts:
        pieces = [chunk.text for chunk in chunker.chunk(text)]
        made.append(list(zip(pieces, await embedder.embed(pieces), strict=True)))
    await trio.lowlevel.checkpoint()
    return made


def make(dsn: str) -> None:
    """Make the tables and fill them."""
    texts = [body(number) for number in range(ARTICLES)]
    made = trio.run(chunks_of, texts)
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(SCHEMA.encode())
        for number, (text, chunks) in enumerate(zip(texts, made, strict=True)):
            slug = f"article-{number:02}"
            article = (slug, f"Article {number}", text)
            cursor.execute("INSERT INTO articles (slug, title, body) VALUES (%s, %s, %s)", article)
            rows = [(slug, nth, piece, json.dumps(list(vector))) for nth, (piece, vector) in enumerate(chunks)]
            cursor.executemany(
                "INSERT INTO chunks (article, position, content, embedding) VALUES (%s, %s, %s, %s)", rows
            )


def damage(dsn: str) -> None:
    """Do to it what lost writes do."""
    with psycopg.connect(dsn) as connection:
        for statement in DAMAGE.values():
            connection.execute(statement.encode())


async def fill_cache(url: str) -> None:
    """Cache every article as the application does, one of them long ago."""
    from coredis import Redis  # noqa: PLC0415 - only who has a Redis server needs it

    client = Redis.from_url(url, decode_responses=True)
    async with client:
        for number in range(ARTICLES):
            slug = f"article-{number:02}"
            entry = CACHE_DAMAGE.get(slug, {"body": body(number), "revision": 1, "shown": number})
            await client.set(f"article:{slug}", json.dumps(entry))


def main() -> None:
    dsn, url = os.environ["EXISTING_DB"], os.environ.get("EXISTING_REDIS")
    make(dsn)
    damage(dsn)
    if url:
        trio.run(fill_cache, url)
    print(f"{ARTICLES} articles; damaged in the database: {', '.join(DAMAGE)}")
    if url:
        print(f"in the cache, besides those: {', '.join(CACHE_DAMAGE)}")


if __name__ == "__main__":
    main()
