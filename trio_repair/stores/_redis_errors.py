"""What a server says, in one line that quotes nothing of it: an error may show a key or a value."""

from __future__ import annotations

import re
import ssl
from typing import Final

import trio
from coredis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoKeyError,
    NoScriptError,
    ResponseError,
    UnknownCommandError,
    WrongTypeError,
)

_CODES: Final = re.compile(
    r"\b(OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|LOADING|BUSY|NOPERM|NOAUTH|WRONGPASS|MOVED|ASK|CROSSSLOT)\b"
)
"""In what servers before 7.0 say of an error in a script, the code stands in the middle."""

_MEANINGS: Final = {
    "OOM": "is out of memory (maxmemory), and evicts nothing; raise maxmemory, or set an eviction policy",
    "READONLY": "is a read-only replica; after a failover, let url name the server that takes writes",
    "MISCONF": "takes no writes, because it cannot save to its disk; look at its log and at the disk",
    "NOREPLICAS": "takes no writes, because too few replicas follow it (min-replicas-to-write)",
    "MASTERDOWN": "is a replica that has lost its primary",
    "LOADING": "is starting and still loads its data; try again soon",
    "BUSY": "is busy with a script of somebody else",
    "NOPERM": "does not let this user do that; see the permissions it needs in docs/redis.md",
    "NOAUTH": "wants a password; set password (and username, if it is not 'default')",
    "WRONGPASS": "does not accept this username and password",
    "MOVED": "is part of a cluster; this store speaks to a single server",
}
_MEANINGS["ASK"] = _MEANINGS["CROSSSLOT"] = _MEANINGS["MOVED"]

_TYPES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (BusyLoadingError, _MEANINGS["LOADING"]),
    (AuthorizationError, _MEANINGS["NOPERM"]),
    (UnknownCommandError, "does not know a command; Redis 6.0 or newer, or Valkey, is needed"),
    (WrongTypeError, "holds another kind of value than expected"),
)


def is_reply(error: object) -> bool:
    """True if the server said so; False if the connection was lost, so that nobody knows what the server did."""
    return isinstance(error, (ResponseError, BusyLoadingError, NoKeyError))


def is_missing_script(error: object) -> bool:
    """True if the server has forgotten a script."""
    return isinstance(error, NoScriptError)


def is_too_large(error: object) -> bool:
    """True if the server takes no value of this size, ever."""
    return isinstance(error, ResponseError) and "exceeds maximum allowed size" in str(error)


def meaning(error: BaseException) -> str:
    """What an error reply means."""
    if isinstance(error, AuthenticationError):
        said = str(error)
        if "called without any password configured" in said:
            return "has no password for this user; leave password out"
        return _MEANINGS["WRONGPASS" if "WRONGPASS" in said or "invalid" in said else "NOAUTH"]
    for kind, words in _TYPES:
        if isinstance(error, kind):
            return words
    said = str(error)
    found = _CODES.search(said)
    if found is not None:
        return _MEANINGS[found[0]]
    if type(error).__name__ in {"ReadOnlyError", "MovedError"}:
        return _MEANINGS["READONLY" if type(error).__name__ == "ReadOnlyError" else "MOVED"]
    if "ACL failure" in said or "The user executing the script" in said:  # of a command in a script
        return _MEANINGS["NOPERM"]
    if "DB index is out of range" in said:
        return "has no database of this number; see db in url"
    if "without any password configured" in said:
        return "has no password for this user; leave password out"
    return f"refused a command ({type(error).__name__})"


def connecting(error: BaseException) -> str:
    """Why no connection could be made."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    words = "closed the connection before it let anybody in; it may have none left (maxclients)"
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if is_reply(one):
            return meaning(one)
        if "max number of clients" in str(one):
            return "has no connection left (maxclients)"
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"shows a certificate that is not accepted: {one.verify_message}"
        if isinstance(one, ssl.SSLError):
            return "does not speak TLS here, or not with this client; look at url (redis:// or rediss://)"
        if isinstance(one, OSError) and not isinstance(one, (TimeoutError, trio.BrokenResourceError)):
            words = f"cannot be reached: {one.strerror or type(one).__name__}"
        if isinstance(one, TimeoutError):
            words = "did not answer in time"
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
    return words
