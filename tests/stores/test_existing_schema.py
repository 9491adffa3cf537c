"""The example of an existing schema: exactly its damage is found and repaired, and no table is altered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")

import psycopg
from servers.postgres_server import PostgresServer
from servers.redis_server import RedisServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "existing_schema"

CATALOGUE = {
    "columns": "SELECT * FROM information_schema.columns WHERE table_schema = 'public'",
    "constraints": "SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint",
    "triggers": "SELECT tgrelid::regclass, tgname, pg_get_triggerdef(oid) FROM pg_trigger",
    "indexes": "SELECT * FROM pg_indexes WHERE schemaname = 'public'",
    "tables": "SELECT oid, relname, relkind, relnatts, relfilenode, reloptions FROM pg_class WHERE relkind <> 't'",
    "functions": "SELECT oid, proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    "schemas": "SELECT nspname FROM pg_namespace",
}


def command(dsn: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the command as an operator does."""
    environment = {**os.environ, "EXISTING_DB": dsn, **extra}
    return subprocess.run(
        [sys.executable, "-m", "trio_repair", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def records(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def catalogue(dsn: str) -> dict[str, list[str]]:
    """What PostgreSQL says that there is."""
    with psycopg.connect(dsn) as connection:
        return {what: sorted(map(str, connection.execute(sql).fetchall())) for what, sql in CATALOGUE.items()}


def rows(dsn: str, table: str, columns: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2").fetchall()


def make(dsn: str, **extra: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE / "make.py")],
        env={**os.environ, "EXISTING_DB": dsn, **extra},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)


@pytest.fixture
def redis(tmp_path: Path) -> Any:
    missing = RedisServer.missing()
    if missing is not None and os.environ.get("CI") != "true":
        pytest.skip(missing)
    with RedisServer(tmp_path) as server:
        yield server


def test_the_example_is_found_and_repaired_and_nothing_is_altered(postgres: PostgresServer) -> None:
    """A reader's rights find exactly the damage; a repair mends it; what the catalogue says is as before."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        from make import DAMAGE
    finally:
        sys.path.remove(str(EXAMPLE))
    database = postgres.new_database()
    dsn = postgres.dsn_of(database)
    make(dsn)
    before, articles = catalogue(dsn), rows(dsn, "articles", "*")
    with postgres.connect(database) as connection:
        connection.execute("DROP ROLE IF EXISTS looker")
        connection.execute("CREATE ROLE looker LOGIN PASSWORD 'only looks'")
        connection.execute("GRANT SELECT ON articles, chunks TO looker")
    looker = psycopg.conninfo.make_conninfo(dsn, user="looker", password="only looks")
    config = str(EXAMPLE / "trio-repair.toml")

    *found, summary = records(command(looker, "check", "--config", config, "--json"))
    assert {*DAMAGE} == {record["doc_id"] for record in found}
    assert {"text": "digest", "vector": "chunks"} == summary["comparison"]
    refused = command(looker, "repair", "--config", config)
    assert refused.returncode == 1
    assert "the user lacks a privilege" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr

    done = command(dsn, "repair", "--config", config)
    assert 0 == done.returncode, done.stdout + done.stderr
    checked = command(looker, "check", "--config", config)
    assert 0 == checked.returncode, checked.stdout
    assert "vector: copies are compared by the chunks that the source's text is cut into" in checked.stdout
    assert before == catalogue(dsn)
    assert articles == rows(dsn, "articles", "*")
    kept = {article for article, _ in rows(dsn, "chunks", "article, position")}
    assert {f"article-{number:02}" for number in range(40)} - {"article-13"} == kept


def test_control_an_altered_table_is_seen(database: str) -> None:
    """The comparison of catalogues sees a column, an index, a trigger, and a table that is written anew."""
    make(database)
    for statement in (
        "ALTER TABLE chunks ADD COLUMN digest text",
        "CREATE INDEX ON articles (title)",
        "VACUUM FULL articles",
        "ALTER TABLE articles ALTER COLUMN author DROP NOT NULL",
        "CREATE TABLE more ()",
    ):
        before = catalogue(database)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(statement.encode())
        assert before != catalogue(database), statement


def test_a_cache_of_the_same_application_comes_with_it(database: str, redis: RedisServer) -> None:
    """With Redis as third store its entries are repaired too, and members that nobody mapped stay."""
    make(database, EXISTING_REDIS=redis.url)
    config = str(EXAMPLE / "with-cache.toml")
    *found, _ = records(command(database, "check", "--config", config, "--json", EXISTING_REDIS=redis.url))
    stale = {one["doc_id"] for one in found if {"kind": "stale-cache", "store": "cache"} in one["findings"]}
    assert {"article-07", "article-13", "article-17"} == stale
    done = command(database, "repair", "--config", config, EXISTING_REDIS=redis.url)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert 0 == command(database, "check", "--config", config, EXISTING_REDIS=redis.url).returncode
    entry = json.loads(redis.command("GET", "article:article-17"))
    assert (3, 1) == (entry["shown"], entry["revision"])
