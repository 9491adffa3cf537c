"""Any text store with any vector store and any cache in one engine: made, damaged, checked, repaired, checked again."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from servers.redis_server import RedisServer
from store_calls import put, text_of

from trio_repair import (
    AutoRepairConfig,
    Document,
    Presence,
    RepairJob,
    RepairOutcome,
    Stores,
    SyncStrategy,
    check,
    open_repair_engine,
)
from trio_repair.testing import make_document

if os.environ.get("CI") != "true":
    for package in ("psycopg", "coredis", "lancedb", "tantivy", "cyclopts"):
        pytest.importorskip(package, reason=f"{package} is not installed; pip install -e '.[test]'")

from trio_repair.cli._configuration import load_configuration
from trio_repair.cli._opening import create_store, open_stores

TEXT = {
    "sqlite-text": 'path = "text.db"',
    "tantivy-text": 'path = "text"',
    "postgres-text": 'dsn = {{ env = "MIXED_DB" }}',
}
VECTOR = {
    "sqlite-vector": 'path = "vector.db"',
    "lancedb-vector": 'path = "vector"',
    "pgvector": 'dsn = {{ env = "MIXED_DB" }}',
}
CACHE = {"sqlite-cache": 'path = "cache.db"', "redis-cache": 'url = "{redis}"\nprefix = "mixed:"'}
MIXTURES = [
    (text, vector, list(CACHE)[index % 2 if (text, vector) != ("postgres-text", "lancedb-vector") else 1])
    for index, (text, vector) in enumerate(itertools.product(TEXT, VECTOR))
]
DAMAGED = {"missing", "newer", "deleted", "stale"}


@pytest.fixture
def redis(tmp_path: Path) -> Any:
    missing = RedisServer.missing()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    with RedisServer(tmp_path / "redis") as server:
        yield server


async def damage(stores: Stores) -> dict[str, Document]:
    """What dual writes leave behind when they fail half-way; what has to be there in the end, by document."""
    ids = ("fine", "missing", "newer", "deleted", "stale")
    first = {doc_id: make_document(doc_id, f"{doc_id} at first " * 40, number=1) for doc_id in ids}
    second = {doc_id: make_document(doc_id, f"{doc_id} later", number=2) for doc_id in ids}
    assert stores.cache is not None
    await put(stores.text, *(first[doc_id] for doc_id in ids))
    await put(stores.vector, *(first[doc_id] for doc_id in ids if doc_id != "missing"))
    await put(stores.cache, *(first[doc_id] for doc_id in ids))
    await put(stores.text, second["newer"], second["stale"], Document.tombstone("deleted", number=2))
    await put(stores.vector, second["stale"])
    return {**first, "newer": second["newer"], "stale": second["stale"], "deleted": Document.tombstone("d", number=2)}


async def found(stores: Stores) -> set[str]:
    async with check(stores, AutoRepairConfig(settle=0.0)) as checking:
        return {divergence.doc_id async for divergence in checking}


@pytest.mark.parametrize(("text", "vector", "cache"), MIXTURES)
async def test_a_mixture(
    text: str,
    vector: str,
    cache: str,
    postgres: Any,
    redis: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exactly what is damaged is found, all of it is repaired, and every copy is what it should be."""
    kinds = {"text": (text, TEXT[text]), "vector": (vector, VECTOR[vector]), "cache": (cache, CACHE[cache])}
    tables = [
        f'[stores.{role}]\nkind = "{kind}"\n{rest.format(redis=redis.url)}' for role, (kind, rest) in kinds.items()
    ]
    config = tmp_path / "mixed.toml"
    config.write_text("\n\n".join([*tables, '[stores.vector.embedder]\nkind = "hashing"\ndimension = 16\n']))
    monkeypatch.setenv("MIXED_DB", postgres.dsn_of(postgres.new_database()))
    configuration = load_configuration(config)
    for role in configuration.stores:
        await create_store(configuration, role)
    async with open_stores(configuration) as stores:
        wanted = await damage(stores)
        assert DAMAGED == await found(stores)
        async with open_repair_engine(stores, AutoRepairConfig(settle=0.0)) as engine:
            jobs = [RepairJob(doc_id=doc_id, strategy=SyncStrategy.MOST_RECENT) for doc_id in sorted(wanted)]
            async with engine.run(jobs) as results:
                outcomes = {result.doc_id: (result.outcome, result.warnings) async for result in results}
        repaired = dict.fromkeys(DAMAGED, (RepairOutcome.REPAIRED, ()))
        assert {**repaired, "fine": (RepairOutcome.ALREADY_CONSISTENT, ())} == outcomes
        assert set() == await found(stores)
        for doc_id, document in wanted.items():
            for store in stores.by_name.values():
                assert document.text == await text_of(store, doc_id), doc_id
        (buried,) = await stores.text.observe(["deleted"])
        assert Presence.TOMBSTONE is buried.presence  # type: ignore[union-attr] # no error, or the check had told it
