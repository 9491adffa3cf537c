"""`trio-repair create` on live servers: the tables of our own layout are made by an operator, and hold documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")

from servers.postgres_server import PostgresServer

CONFIGURATION = """\
[stores.text]
kind = "postgres-text"
dsn = { env = "MADE_DB" }

[stores.vector]
kind = "pgvector"
dsn = { env = "MADE_DB" }

[stores.vector.embedder]
kind = "hashing"
dimension = 16
"""


def test_tables_are_made_by_the_command(postgres: PostgresServer, tmp_path: Path) -> None:
    """Before: one line that says how. Made once, found there the second time, and checked without a complaint."""
    dsn = postgres.dsn_of(postgres.new_database())
    config = tmp_path / "made.toml"
    config.write_text(CONFIGURATION)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trio_repair", *arguments, "--config", str(config)]
        environment = {**os.environ, "MADE_DB": dsn}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)

    def made(*arguments: str) -> list[tuple[str, bool]]:
        done = run("create", "--json", *arguments)
        assert 0 == done.returncode, done.stderr
        records = [json.loads(line) for line in done.stdout.splitlines()]
        return [(record["store"], record["made"]) for record in records]

    missing = run("check")
    assert (2, 1) == (missing.returncode, len(missing.stderr.splitlines())), missing.stderr
    assert "make one with: trio-repair create text" in missing.stderr
    assert [("text", True)] == made("text")
    assert [("text", False), ("vector", True)] == made()
    checked = run("check")
    assert (0, "all 0 documents are consistent\n") == (checked.returncode, checked.stdout), checked.stderr
