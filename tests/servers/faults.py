"""The faults: each happens to a real server, or on the way to it, while repairs run, and is taken back.

Those that last, last until the run is over: then the repairs must end without the server.
"""

from __future__ import annotations

import functools
from typing import Any

from .meddling import (
    alter,
    deadlock,
    postgres_password,
    read_only_setting,
    redis_password,
    replica,
    row_locked,
    standby,
    table_dropped,
)
from .outages import (
    PAUSE,
    disk_full,
    kill_postgres,
    kill_redis,
    no_connection_left,
    pause,
    redis_evicts,
    redis_out_of_memory,
    strike,
)
from .proxy import Strike
from .running import Fault

POSTGRES = frozenset({"text", "vector"})
REDIS = frozenset({"cache"})
_SHORT = {"store_call_timeout": 0.5}
_PATIENT = {"unavailable_timeout": 5.0}
"""Long enough for a server to come back."""


def _on_the_way(server: str, name: str) -> list[Fault]:
    unknown = POSTGRES if server == "postgres" else REDIS
    given: dict[str, Any] = {"proxied": frozenset({server}), "unknown": unknown}
    short = {**given, "config": _SHORT}
    at = functools.partial
    return [
        Fault(name=f"{name}: connection cut", inject=at(strike, server=server, how=Strike.CUT, times=3), **given),
        Fault(name=f"{name}: answer lost", inject=at(strike, server=server, how=Strike.LOSE_ANSWER, times=3), **given),
        Fault(
            name=f"{name}: answer lost, then unreachable",
            inject=at(strike, server=server, how=Strike.LOSE_ALL, lasts=None),
            **given,
        ),
        Fault(name=f"{name}: network delays a write", inject=at(strike, server=server, how=Strike.DELAY), **short),
        Fault(
            name=f"{name}: network swallows all",
            inject=at(strike, server=server, how=Strike.BLACK_HOLE, lasts=PAUSE),
            **short,
        ),
    ]


FAULTS = [
    Fault(name="PostgreSQL: killed, restarted", inject=kill_postgres, unknown=POSTGRES, config=_PATIENT),
    Fault(name="Redis: killed, restarted", inject=kill_redis, unknown=REDIS, config=_PATIENT),
    Fault(
        name="PostgreSQL: stopped for a while",
        inject=functools.partial(pause, server="postgres"),
        unknown=POSTGRES,
        config=_SHORT,
    ),
    Fault(
        name="Redis: stopped for a while", inject=functools.partial(pause, server="redis"), unknown=REDIS, config=_SHORT
    ),
    *_on_the_way("postgres", "PostgreSQL"),
    *_on_the_way("redis", "Redis"),
    Fault(
        name="PostgreSQL: no connection left",
        inject=no_connection_left,
        unknown=POSTGRES,
        says="has no connection left",
    ),
    Fault(name="PostgreSQL: disk full", inject=disk_full, says="the server's disk is full"),
    Fault(name="PostgreSQL: rows locked", inject=row_locked, says="held a lock for longer than lock_timeout"),
    Fault(
        name="PostgreSQL: deadlock",
        inject=deadlock,
        role={"deadlock_timeout": "100ms"},
        limits={"lock_timeout": 2.0},
        config={"max_concurrent_jobs": 32},
    ),
    Fault(name="PostgreSQL: made read-only", inject=read_only_setting, says="read-only"),
    Fault(
        name="PostgreSQL: became a standby",
        inject=standby,
        unknown=POSTGRES,
        says="read-only",
    ),
    Fault(name="Redis: became a read-only replica", inject=replica, says="read-only replica"),
    Fault(name="Redis: evicts entries", inject=redis_evicts, evicts=True),
    Fault(name="Redis: out of memory", inject=redis_out_of_memory, says="out of memory"),
    Fault(
        name="PostgreSQL: password changed",
        inject=postgres_password,
        unknown=POSTGRES,
        says="the user or the password is wrong",
    ),
    Fault(
        name="Redis: password changed",
        inject=redis_password,
        unknown=REDIS,
        redis_user=True,
        says="does not accept this username and password",
    ),
    Fault(
        name="PostgreSQL: column renamed",
        inject=functools.partial(
            alter, store="text", change="RENAME COLUMN text TO body", back="RENAME COLUMN body TO text"
        ),
        says="a column of the store is gone",
    ),
    Fault(
        name="PostgreSQL: column dropped",
        inject=functools.partial(
            alter, store="vector", change="DROP COLUMN updated_at", back="ADD COLUMN updated_at timestamptz"
        ),
        says="a column of the store is gone",
    ),
    Fault(
        name="PostgreSQL: table dropped", inject=table_dropped, loses_tables=True, says="a table of the store is gone"
    ),
]
