"""The benchmark on live servers: it mends what was damaged, and notices a contender that does not."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from benchmarks import _harness, _servers, server_throughput

if (reason := _servers.why_not()) is not None and os.environ.get("CI") != "true":
    pytest.skip(reason, allow_module_level=True)

from benchmarks import _bulk_servers

COUNT = 60


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    """How fast it is is no question here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_servers, "FSYNC", False)
        yield


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_servers.Servers]:
    """Servers with a few documents, a quarter of them damaged."""
    with _servers.Servers(tmp_path_factory.mktemp("servers"), index=True) as running:
        running.prepare(COUNT, 0.25)
        yield running


def test_every_contender_does_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engine and script mend the same copies, the check finds what was damaged, and the figures are there."""
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    sizes = ["--documents", "80", "--damaged", "0.25", "--chunk", "7", "--concurrency", "9", "--index", "none"]
    memory = ["--memory", "80", "--memory-concurrency", "5", "--memory-rounds", "1"]
    server_throughput.main([*sizes, "--rounds", "1", *memory])
    figures = json.loads((tmp_path / "server_throughput_none.json").read_text())
    assert server_throughput.shown(figures).panels
    assert (20, "none") == (figures["damaged"], figures["index"])
    assert 20 < figures["replaced"] < 40  # those that are newer in the text store, in two other stores
    told = figures["microseconds_per_document"]
    assert {"script", "engine", "check", "read"} == set(told)
    spreads = [*told.values(), figures["throughput_over"]["script"], figures["check_over_read"]]
    for work in ("check", "repair"):
        assert [(80, 20)] == [(row["documents"], row["damaged"]) for row in figures["memory"][work]]
        spreads += [row["peak_rss_over_smallest"] for row in figures["memory"][work]]
        assert all(row["peak_rss_bytes"]["min"] > 2**20 for row in figures["memory"][work])
    assert all(0 < one["min"] <= one["median"] <= one["max"] for one in spreads)


def test_the_stores_are_as_they_were_for_each_run(servers: _servers.Servers) -> None:
    """What one run has mended is damaged again for the next, and the index over vectors is there for both."""
    damaged = servers.prepare(COUNT, 0.25)
    for work in (lambda place: _bulk_servers.script(place, damaged, 4), server_throughput.engine):
        with servers.fresh(COUNT) as place:
            assert len(damaged) == trio.run(server_throughput.check, place)
            arguments = (place,) if work is not server_throughput.engine else (place, damaged, 8)
            assert len(damaged) <= trio.run(work, *arguments)
            assert 0 == trio.run(server_throughput.check, place)
            assert {"text": COUNT, "vector": COUNT, "cache": COUNT} == _servers.read_all(place)
            assert ["hnsw"] == indexes(place)


def indexes(place: _servers.Place) -> list[str]:
    """The kinds of indexes over vectors."""
    import psycopg

    sql = (
        "SELECT a.amname::text FROM pg_class AS c JOIN pg_am AS a ON a.oid = c.relam"
        " WHERE c.relname LIKE 'chunks_hnsw%'"
    )
    with psycopg.connect(place.dsn) as connection:
        return [row[0] for row in connection.execute(sql)]


@pytest.mark.parametrize("part", ["Vectors", "Cache"])
def test_control_a_script_whose_writes_do_not_land_is_an_error(
    servers: _servers.Servers, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """What was not mended is seen by the script's own read-back."""

    async def nothing(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(getattr(_bulk_servers, part), "write", nothing if part == "Cache" else lambda *_: None)
    damaged = servers.prepare(COUNT, 0.25)
    with servers.fresh(COUNT) as place, pytest.RaisesGroup(AssertionError):
        trio.run(_bulk_servers.script, place, damaged, COUNT)


def test_the_script_writes_over_nothing_that_moved(servers: _servers.Servers) -> None:
    """Its fence holds: what others wrote between its look and its write stays."""
    damaged = servers.prepare(COUNT, 0.25)

    async def race(place: _servers.Place) -> None:
        import coredis
        import psycopg

        with psycopg.connect(place.dsn, autocommit=True) as connection:
            held = _bulk_servers.versions(connection, _bulk_servers.VECTOR, damaged)
            one = next(iter(held))
            (row,) = _bulk_servers.contents(connection, [one])
            connection.execute(f"UPDATE {_bulk_servers.VECTOR} SET number = 99 WHERE doc_id = %s", (one,))
            _bulk_servers.Vectors(connection).write([row], held)
            assert 99 == _bulk_servers.versions(connection, _bulk_servers.VECTOR, [one])[one][0]
        async with coredis.Redis.from_url(place.url) as client:
            cache = _bulk_servers.Cache(client, (await client.script_load(_bulk_servers.PUT)).decode())
            before = await cache.versions([one])
            await client.hset(_servers.PREFIX + one, {"rev": "moved", "number": "99"})
            await cache.write([row], before)
            assert 99 == (await cache.versions([one]))[one][0]
            await cache.write([row], await cache.versions([one]))
            assert row[3] == (await cache.versions([one]))[one][0]

    with servers.fresh(COUNT) as place:
        trio.run(race, place)


def test_without_a_driver_it_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is measured, nothing fails, and the reason is told."""
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    monkeypatch.setitem(sys.modules, "coredis", None)
    assert importlib.util.find_spec("psycopg") is not None
    server_throughput.main([])
    assert [] == list(tmp_path.iterdir())
    assert "server_throughput is left out: coredis is not installed" in capsys.readouterr().out
