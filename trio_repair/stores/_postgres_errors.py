"""What PostgreSQL's errors mean, without any content of the database.

A server's own words quote rows, keys and statements, and are translated into its users' language; so only the
SQLSTATE is taken from an error (https://www.postgresql.org/docs/current/errcodes-appendix.html), and the errors of
opening a connection, which have none, are told apart by signs in the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import psycopg

_MEANINGS: Final[Mapping[str, str]] = {
    "40001": "another transaction changed the same rows at the same moment; nothing was written",
    "40P01": "a deadlock with another transaction; nothing was written",
    "55P03": "another transaction held a lock for longer than lock_timeout; end it",
    "57014": "a statement was stopped: by statement_timeout, by an operator, or because nobody waits for it any more",
    "25006": "the server, or the database, is read-only; connect to the primary",
    "25P03": "the server ended a transaction that was idle for too long",
    "28000": "the server does not let this user in; look at user, database and pg_hba.conf",
    "28P01": "the user or the password is wrong",
    "3D000": "there is no such database",
    "42501": "the user lacks a privilege on the store's tables; see the documentation for the GRANTs it needs",
    "42P01": "a table of the store is gone",
    "42703": "a column of the store is gone",
    "42883": "a function of the store, or of an extension that it needs, is gone",
    "42704": "a type that the store needs is gone; is its extension installed?",
    "3F000": "the store's schema is gone",
    "0A000": "its tables were changed while it was open",
    "53100": "the server's disk is full; make room",
    "53200": "the server is out of memory",
    "53300": "the server has no connection left; raise max_connections, or close some",
    "53400": "the server has reached a limit of its configuration",
    "57P01": "the server ended the connection: it was shut down, or an operator did it",
    "57P02": "another process of the server crashed; it recovers",
    "57P03": "the server is starting up, shutting down or recovering",
    "57P05": "the server ended the connection, which was idle for too long",
}

_CLASSES: Final[Mapping[str, str]] = {
    "08": "the connection was lost",
    "25": "the transaction was ended by the server",
    "40": "the transaction was rolled back by the server; nothing was written",
    "42": "its tables are not what they were when it was opened, or the user may not use them",
    "53": "the server lacks resources",
    "58": "the server's operating system reported an error, such as of its disk",
    "XX": "the server reports an internal error or damaged data; look at its log",
}

_SIGNS: Final[Mapping[str, str]] = {
    "password authentication failed": "the user or the password is wrong",
    "no password supplied": "the server wants a password, and none was given, by setting or pgpass file",
    "pg_hba.conf": "the server's pg_hba.conf does not let this user in from here",
    "certificate": "the server's certificate was not accepted; look at sslmode and sslrootcert",
    "SSL": "no encrypted connection could be made; look at sslmode and sslrootcert",
    "too many connections for": "the user, or the database, has no connection left; raise its limit, or close some",
    "too many": "the server has no connection left; raise max_connections, or close some",
    "connection slots": "the server has no connection left; raise max_connections, or close some",
    "starting up": "the server is starting up",
    "shutting down": "the server is shutting down",
    "recovery": "the server recovers",
    "definition of service": "there is no such service; look at service and the file of services",
    "hot standby": "it is no standby, and target_session_attrs asks for one",
    "session is read-only": "it is read-only, and target_session_attrs asks for another; is it a standby?",
    "session is not read-only": "it is not read-only, and target_session_attrs asks for that",
    "refused": "nothing listens there; is the server running?",
    "timeout expired": "it did not answer within connect_timeout",
    "could not translate host name": "the host name is not known",
    "resolve": "the host name is not known",
    "not permitted to log in": "the user may not log in",
    "No such file": "there is no socket of a server there; is it running?",
    "No route to host": "there is no way to that host",
    "unreachable": "the network cannot be reached",
    "closed the connection unexpectedly": "the server closed the connection",
    "role": "there is no such user",  # last: each of the others may name a role too
}

_DOCUMENT_CLASSES: Final = frozenset({"22", "23", "54", "44", "P0", "21", "27"})
"""Data, integrity, program limits, views' check options, and what triggers raise and do."""


def sqlstate(error: BaseException) -> str:
    """The five characters of an error of the server; "" for any other."""
    return getattr(error, "sqlstate", None) or ""


def describe(error: BaseException) -> str:
    """What a driver's error means, without any content."""
    state = sqlstate(error)
    if state:
        return _MEANINGS.get(state) or _CLASSES.get(state[:2]) or f"PostgreSQL reports SQLSTATE {state}"
    if isinstance(error, psycopg.OperationalError):
        return "the connection was lost"
    return f"the driver reports {type(error).__name__}"


def describe_refusal(error: psycopg.Error) -> str:
    """Why no connection was made."""
    if sqlstate(error):
        return describe(error)
    said = str(error)
    if "database" in said and "does not exist" in said:
        return "there is no such database"
    for sign, meaning in _SIGNS.items():
        if sign in said:
            return meaning
    return "the server cannot be reached, or does not let this user in"


def is_document_error(error: BaseException) -> bool:
    """Whether an error speaks of a row at hand, so that other rows may well be taken."""
    state = sqlstate(error)
    if not state:  # the driver cannot send the value
        return isinstance(error, (psycopg.DataError, psycopg.ProgrammingError, UnicodeEncodeError, OverflowError))
    return state[:2] in _DOCUMENT_CLASSES


def may_be_of_document(error: BaseException) -> bool:
    """Whether an error may as well speak of a row as of the tables: 42501 is a missing privilege, or a row policy."""
    return sqlstate(error) == "42501"


def ends_connection(error: BaseException) -> bool:
    """Whether a connection is of no use after this error."""
    state = sqlstate(error)
    if not state:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    # After a failover the other server is asked; after a change of the tables their types are looked up anew.
    return (state[:2] in {"08", "57", "58", "XX"} and state != "57014") or state in {"25006", "25P03", "0A000"}


def is_definite(error: BaseException) -> bool:
    """Whether a commit that failed with this error has certainly not been made.

    A server that ends a connection may do so after the commit, while it waits for a standby's word.
    """
    state = sqlstate(error)
    return bool(state) and state[:2] not in {"08", "57", "58", "XX"}


def without_content(error: psycopg.Error) -> psycopg.Error:
    """An error to stand as the cause of ours: the same class, and nothing of what the server said."""
    state = sqlstate(error)
    return type(error)(f"SQLSTATE {state}" if state else "an error of the driver")
