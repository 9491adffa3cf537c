"""The settings of the cache on Redis, from a configuration file or a program, checked before anything is connected."""

from __future__ import annotations

import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from trio_repair import ContentDefinition, InvalidValue
from trio_repair._model import quoted

from ._redis_adopted import FieldNames, FieldsOfHash, JsonObject, PlainText
from ._redis_connections import Endpoint
from ._redis_entries import Form, OwnHash
from ._redis_keys import Keys

FORMATS: Final = ("string", "json", "hash")
FIELD_SETTINGS: Final = ("text", "metadata", "version", "updated_at", "digest", "write_digest")
MOST_CONNECTIONS: Final = 128

_MOST_DATABASES: Final = 2**31 - 1


def endpoint(
    url: object, *, username: object = None, password: object = None, tls: ssl.SSLContext | None = None
) -> Endpoint:
    """The server that a URL names: redis://host:port/db, rediss:// for TLS, or unix:///path?db=0.

    Raises:
        InvalidValue: it cannot be used. It is not quoted, since it may hold a password.
    """
    if not isinstance(url, str) or not url:
        problem = "is missing; name the server, as in redis://localhost:6379/0" if url is None else "must be a string"
        raise InvalidValue("url", problem)
    if "#" in url:
        raise InvalidValue("url", "holds a '#'; write one in a password as %23, or set password by itself")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidValue("url", "is no URL: its host or port cannot be read") from None
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise InvalidValue("url", "must begin with redis://, rediss:// (TLS) or unix://")
    user = _credential("username", username, parts.username)
    secret = _credential("password", password, parts.password)
    if parts.scheme == "unix":
        if parts.hostname or not parts.path:
            raise InvalidValue("url", "must name a socket by its whole path, as in unix:///run/redis.sock")
        query = parts.query.removeprefix("db=") if parts.query else "0"
        return Endpoint(path=unquote(parts.path), db=_database(query), username=user, password=secret)
    if not parts.hostname:
        raise InvalidValue("url", "names no host, as in redis://localhost:6379/0")
    if parts.query:
        raise InvalidValue("url", "has a query (what follows '?'), which is not read here; use the other settings")
    if parts.scheme == "rediss" and tls is None:
        tls = ssl.create_default_context()
    if parts.scheme == "redis" and tls is not None:
        raise InvalidValue("url", "begins with redis://, which is not encrypted; TLS needs rediss://")
    return Endpoint(
        host=unquote(parts.hostname),
        port=6379 if port is None else port,
        db=_database(parts.path.strip("/") or "0"),
        username=user,
        password=secret,
        tls=tls,
    )


def _credential(field: str, given: object, in_url: str | None) -> str | None:
    if given is not None and in_url:
        raise InvalidValue(field, "is given twice, in url too; leave it out there")
    if given is None:
        return unquote(in_url) if in_url else None
    if not isinstance(given, str) or not given:
        raise InvalidValue(field, 'must be a string that is not empty, or { env = "NAME" }')
    return given


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MOST_DATABASES):
        raise InvalidValue("url", "must end with the number of a database, as in redis://localhost:6379/0")
    return int(text)


def tls_context(settings: Mapping[str, Any], directory: Path) -> ssl.SSLContext | None:
    """What `tls_ca`, `tls_certificate` and `tls_key` say; None if there is none of them.

    Raises:
        InvalidValue: a file cannot be used.
    """
    found = {key: settings.get(key) for key in ("tls_ca", "tls_certificate", "tls_key")}
    for key, value in found.items():
        if value is not None and (not isinstance(value, str) or not value or "\0" in value):
            raise InvalidValue(key, "must be a string that names a file")
    if not any(found.values()):
        return None
    ca, certificate, key_file = (None if value is None else str(directory / value) for value in found.values())
    if (certificate is None) != (key_file is None):
        missing = "tls_certificate" if certificate is None else "tls_key"
        raise InvalidValue(missing, "is missing; a certificate and its key come together")
    with _reading("tls_ca"):
        context = ssl.create_default_context(cafile=ca)
    if certificate is not None:
        with _reading("tls_certificate"):
            context.load_cert_chain(certificate, key_file, password="")
    return context


@contextmanager
def _reading(field: str) -> Generator[None, None, None]:
    try:
        yield
    except ssl.SSLError:
        raise InvalidValue(field, "is no such file in PEM format, or one with a password") from None
    except OSError as error:
        raise InvalidValue(field, f"cannot be read: {error.strerror or type(error).__name__}") from None


def keys_and_form(
    content: ContentDefinition,
    *,
    prefix: object = None,
    key: object = None,
    id_pattern: object = None,
    format: object = None,  # noqa: A002 - the name of the setting
    fields: Mapping[str, Any] | None = None,
) -> tuple[Keys, Form]:
    """Which keys are documents, and how they are written.

    Args:
        fields: of the settings in `FIELD_SETTINGS`, those that are given.

    Raises:
        InvalidValue: a setting cannot be used, or not with the others.
    """
    given = dict(fields or {})
    if key is None:
        for name, value in {"id_pattern": id_pattern, "format": format, **given}.items():
            if value is not None:
                raise InvalidValue(name, "is for existing keys; name their pattern in key, as in 'article:{id}'")
        if not isinstance(prefix, str) or not prefix:
            problem = "is missing; name what the keys of this cache begin with, as in 'trio-repair:', or key"
            raise InvalidValue("prefix", problem if prefix is None else "must be a string that is not empty")
        return Keys.of_prefix(prefix), OwnHash()
    if prefix is not None:
        raise InvalidValue("prefix", "is for keys of this library's own; key names existing ones. Give one of them")
    if id_pattern is not None and not isinstance(id_pattern, str):
        raise InvalidValue("id_pattern", "must be a string, a regular expression for ids")
    if not isinstance(key, str):
        raise InvalidValue("key", "must be a string such as 'article:{id}'")
    keys = Keys.of_pattern(key, id_pattern)
    if format not in FORMATS:
        problem = "is missing" if format is None else f"is {quoted(format)}"
        raise InvalidValue("format", f"{problem}; it must say what existing keys hold: {', '.join(FORMATS)}")
    if format == "string":
        for name in given:
            raise InvalidValue(name, "is for format 'json' or 'hash'; a string is the text alone")
        if content.metadata_keys:
            raise InvalidValue("format", "'string' has no place for metadata, which is part of the content here")
        return keys, PlainText(content, FieldNames())
    names = _field_names(given)
    if content.metadata_keys and names.metadata is None:
        raise InvalidValue("metadata", "is missing; metadata is part of the content here, so it needs a field")
    return keys, JsonObject(content, names) if format == "json" else FieldsOfHash(content, names)


def _field_names(given: Mapping[str, Any]) -> FieldNames:
    names: dict[str, str] = {"text": "text"}
    write_digest = given.get("write_digest", False)
    if not isinstance(write_digest, bool):
        raise InvalidValue("write_digest", f"must be true or false, not {quoted(write_digest)}")
    for name in ("text", "metadata", "version", "updated_at", "digest"):
        value = given.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or not value:
            raise InvalidValue(name, "must be a string, the name of a field")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidValue(name, "holds a lone surrogate, which is not UTF-8") from None
        names[name] = value
    for name, value in names.items():
        for other, same in names.items():
            if name < other and value == same:
                raise InvalidValue(other, f"is the same field as {name}")
    if write_digest and "digest" not in names:
        raise InvalidValue("digest", "is missing; name the field that write_digest is to add")
    return FieldNames(**names, write_digest=write_digest)


def connections_setting(value: object) -> int:
    """How many connections.

    Raises:
        InvalidValue: not an int from 1 to 128.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_CONNECTIONS:
        raise InvalidValue("connections", f"must be an int from 1 to {MOST_CONNECTIONS}, not {quoted(value)}")
    return value
