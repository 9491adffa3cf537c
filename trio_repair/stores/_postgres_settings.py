"""How a PostgreSQL server is named: by a connection string, or by the settings of a configuration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

_CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer", "require"),
}
_NUMBERS: Final = frozenset(
    {
        *("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
        "tcp_user_timeout",
    }
)
_ENCODING: Final = "client_encoding"
"""What a string for other programs may say; here it is always UTF8."""

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
    if "://" in dsn and any("@" in str(parameters.get(key, "")) for key in ("host", "port", "dbname")):
        # Else what follows would be shown as the name of a host or database.
        problem = (
            "has an '@', '/' or ':' in its password; write %40 for @, %2F for / and %3A for :, or set password alone"
        )
        raise InvalidValue("dsn", problem)
    check_parameters(parameters)
    defaults = {"application_name": "trio-repair", "connect_timeout": round(CONNECT_TIMEOUT)}
    return Server(
        store=store,
        parameters={**defaults, **{key: value for key, value in parameters.items() if key != _ENCODING}},
        statement_timeout=check_seconds("statement_timeout", statement_timeout),
        lock_timeout=check_seconds("lock_timeout", lock_timeout),
    )


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """See that libpq will take these values; it would say so no sooner than with the first connection.

    Raises:
        InvalidValue: it will not. Nothing that could be a password is quoted.
    """
    for key, value in parameters.items():
        said = str(value)
        if key in _CHOICES and said not in _CHOICES[key]:
            raise InvalidValue(key, f"must be one of {', '.join(_CHOICES[key])}, not {quoted(said)}")
        if key in {"host", "hostaddr", "dbname"} and ("://" in said or "password=" in said):
            raise InvalidValue(key, "holds a whole connection string; that is for dsn")
        if key == "port" and not all(_is_port(one) for one in said.split(",")):
            raise InvalidValue(key, "must be a number from 1 to 65535")
        if key in _NUMBERS and not said.strip().lstrip("-").isdecimal():
            raise InvalidValue(key, f"must be a whole number, not {quoted(said)}")


def _is_port(said: str) -> bool:
    return not said or (said.isascii() and said.isdecimal() and 1 <= int(said) <= 65535)


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
    check_parameters(given)
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
