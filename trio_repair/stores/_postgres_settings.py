"""How a PostgreSQL server is named: by a connection string, or by the settings of a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import psycopg
import psycopg.conninfo

from trio_repair import InvalidValue
from trio_repair._model import check_seconds, quoted

from ._postgres import Server
from ._settings import refuse_unknown, seconds_setting

STATEMENT_TIMEOUT: Final = 30.0
LOCK_TIMEOUT: Final = 3.0
CONNECT_TIMEOUT: Final = 5.0

_TEXTS: Final = (
    *("host", "dbname", "user", "password", "passfile", "service", "sslmode", "sslrootcert", "sslcert", "sslkey"),
    *("target_session_attrs", "application_name"),
)
"""Settings that libpq knows by the same name."""

SERVER_SETTINGS: Final = ("dsn", *_TEXTS, "port", "connect_timeout", "statement_timeout", "lock_timeout")
"""Settings that say which server, and how long it may take."""


def make_server(
    store: str,
    dsn: str,
    *,
    statement_timeout: float = STATEMENT_TIMEOUT,
    lock_timeout: float = LOCK_TIMEOUT,
) -> Server:
    """The server that a connection string names.

    Raises:
        InvalidValue: libpq cannot read the string, or a time span is not usable.
    """
    try:
        parameters = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.Error:
        parameters = None
    if parameters is None:  # libpq's complaint quotes the string
        problem = "is not a connection string; write postgresql://user@host/dbname or host=... dbname=..."
        raise InvalidValue("dsn", problem)
    defaults = {"application_name": "trio-repair", "connect_timeout": round(CONNECT_TIMEOUT)}
    return Server(
        store=store,
        parameters={**defaults, **parameters},
        statement_timeout=check_seconds("statement_timeout", statement_timeout),
        lock_timeout=check_seconds("lock_timeout", lock_timeout),
    )


def server_setting(settings: Mapping[str, Any], store: str) -> Server:
    """The server that a configuration file names, by `dsn` or one by one; what it leaves out, libpq's environment
    variables and files say.

    Raises:
        InvalidValue: a setting is wrong; its key is named.
    """
    given: dict[str, Any] = {}
    for key in _TEXTS:
        value = settings.get(key)
        if value is None:
            continue
        if not isinstance(value, str) or not value or "\0" in value:
            raise InvalidValue(key, "must be a string that is not empty")
        given[key] = value
    port = settings.get("port")
    if port is not None:
        if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
            raise InvalidValue("port", f"must be an int from 1 to 65535, not {quoted(port)}")
        given["port"] = port
    dsn = settings.get("dsn", "")
    if not isinstance(dsn, str):
        raise InvalidValue("dsn", "must be a string")
    timeout = seconds_setting(settings, "connect_timeout")
    if timeout is not None:
        given["connect_timeout"] = max(2, round(timeout))  # libpq counts in whole seconds, and takes 1 for 2
    known = make_server(store, dsn).parameters
    twice = sorted(key for key in given if dsn and key in psycopg.conninfo.conninfo_to_dict(dsn))
    if twice:
        raise InvalidValue(twice[0], "stands in dsn too; say it once")
    statement = seconds_setting(settings, "statement_timeout")
    lock = seconds_setting(settings, "lock_timeout")
    return Server(
        store=store,
        parameters={**known, **given},
        statement_timeout=STATEMENT_TIMEOUT if statement is None else statement,
        lock_timeout=LOCK_TIMEOUT if lock is None else lock,
    )


def schema_setting(settings: Mapping[str, Any], default: str) -> str:
    """The schema that the store's tables are in.

    Raises:
        InvalidValue: it is not a str.
    """
    value = settings.get("schema", default)
    if not isinstance(value, str):
        raise InvalidValue("schema", "must be a string")
    return value


__all__ = [
    "LOCK_TIMEOUT",
    "SERVER_SETTINGS",
    "STATEMENT_TIMEOUT",
    "make_server",
    "refuse_unknown",
    "schema_setting",
    "server_setting",
]
