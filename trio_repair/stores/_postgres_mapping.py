"""Which columns of an existing table are what: the table `table` in a store's settings, as it is written there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

from trio_repair import AbsentMeans, InvalidValue
from trio_repair._model import quoted

from ._settings import refuse_unknown

KEY: Final = "table"

_LONGEST_NAME: Final = 63
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_TABLE: Final = ("name", "where")
_WRITTEN: Final = ("insert", "absent")
_TEXT: Final = ("id", "text", "version", "updated_at", "order_by_updated_at", "deleted")
_CHUNKS: Final = ("document", "text", "embedding", "ordinal", "first_ordinal", "start", "join", "version", "digest")
_COMPARED: Final = ("compare", "source")
COMPARISONS: Final = ("text", "digest", "version", "chunks", "presence")


@attrs.frozen(kw_only=True)
class TextMapping:
    """A table with one row for each document."""

    under: str
    """The key of these settings."""
    name: str
    id: str
    text: str
    metadata: str | Mapping[str, str] | None = None
    """One JSON column, or columns and the key in the metadata that each is."""
    version: str | None = None
    updated_at: str | None = None
    order_by_updated_at: bool = False
    deleted: str | None = None
    where: str | None = None
    insert: Mapping[str, Any] = _NOTHING
    """Values of further columns, for new rows."""
    absent: AbsentMeans | None = None

    @property
    def columns(self) -> Mapping[str, str]:
        """The mapped columns, by the key that names them; those of metadata under their own."""
        single = {key: getattr(self, key) for key in ("id", "text", "version", "updated_at", "deleted")}
        if isinstance(self.metadata, str):
            single["metadata"] = self.metadata
        many = dict.fromkeys(self.metadata, "") if isinstance(self.metadata, Mapping) else {}
        named = {key: name for key, name in single.items() if name is not None}
        return {**named, **{f"metadata.{column}": column for column in many}}


@attrs.frozen(kw_only=True)
class ChunkMapping:
    """A table with a row for each chunk of a document."""

    under: str
    name: str
    document: str
    text: str
    embedding: str
    ordinal: str | None = None
    first_ordinal: int = 0
    start: str | None = None
    join: str | None = None
    """What stands between the chunks of a document, in the order of `ordinal`, to make its text."""
    version: str | None = None
    digest: str | None = None
    compare: str
    """One of `COMPARISONS`."""
    source: TextMapping | None = None
    where: str | None = None
    insert: Mapping[str, Any] = _NOTHING
    absent: AbsentMeans | None = None

    @property
    def columns(self) -> Mapping[str, str]:
        """The mapped columns, by the key that names them."""
        keys = ("document", "text", "embedding", "ordinal", "start", "version", "digest")
        named = {key: getattr(self, key) for key in keys}
        return {key: name for key, name in named.items() if name is not None}


def text_mapping(table: object, *, under: str = KEY, read_only: bool = False) -> TextMapping:
    """Read the settings of a table of documents.

    Args:
        under: where they stand.
        read_only: the table is only looked at.

    Raises:
        InvalidValue: one is unknown, missing or wrong; its key is named.
    """
    given = _table(table, under)
    extra = () if read_only else ("metadata", *_WRITTEN)
    refuse_unknown(given, (*_TABLE, *_TEXT, *extra), under=f"{under}.")
    names = {key: _name(given, key, under) for key in ("version", "updated_at", "deleted")}
    ordered = given.get("order_by_updated_at", False)
    if not isinstance(ordered, bool):
        raise InvalidValue(f"{under}.order_by_updated_at", f"must be true or false, not {quoted(ordered)}")
    if ordered and names["updated_at"] is None:
        raise InvalidValue(f"{under}.updated_at", "is missing; order_by_updated_at orders by it")
    if ordered and names["version"] is not None:
        raise InvalidValue(f"{under}.order_by_updated_at", "cannot be beside version, which orders already")
    mapping = TextMapping(
        under=under,
        name=_required(given, "name", under),
        id=_required(given, "id", under),
        text=_required(given, "text", under),
        metadata=_metadata(given.get("metadata"), under),
        order_by_updated_at=ordered,
        where=_where(given, under),
        insert=_insert(given, under),
        absent=_absent(given, under),
        **names,
    )
    _refuse_twice(mapping.columns, mapping.insert, under)
    return mapping


def chunk_mapping(table: object, *, under: str = KEY) -> ChunkMapping:
    """Read the settings of a table of chunks.

    Raises:
        InvalidValue: one is unknown, missing or wrong; its key is named.
    """
    given = _table(table, under)
    refuse_unknown(given, (*_TABLE, *_CHUNKS, *_COMPARED, *_WRITTEN), under=f"{under}.")
    names = {key: _name(given, key, under) for key in ("ordinal", "start", "version", "digest")}
    first = given.get("first_ordinal", 0)
    if isinstance(first, bool) or first not in (0, 1):
        raise InvalidValue(f"{under}.first_ordinal", f"must be 0 or 1, not {quoted(first)}")
    join = given.get("join")
    if join is not None and (not isinstance(join, str) or "\0" in join):
        raise InvalidValue(f"{under}.join", "must be a string, what stands between two chunks")
    if join is not None and names["ordinal"] is None:
        raise InvalidValue(f"{under}.ordinal", "is missing; chunks are joined in its order")
    source = None
    if "source" in given:
        source = text_mapping(given["source"], under=f"{under}.source", read_only=True)
    possible = _comparisons(names, join, source)
    compare = given.get("compare")
    if compare is None:
        if not possible:
            problem = (
                "names nothing to compare by; name start, or ordinal and join, or digest, or the source, which is the"
                " table that the chunks were cut from"
            )
            raise InvalidValue(under, problem)
        compare = possible[0]
    elif compare not in COMPARISONS:
        raise InvalidValue(f"{under}.compare", f"must be one of {', '.join(COMPARISONS)}, not {quoted(compare)}")
    elif compare not in possible:
        lacks = {
            "text": "start, or ordinal and join",
            "digest": "digest",
            "version": "version, and version or order_by_updated_at in source",
        }
        needs = lacks.get(compare, "source")
        raise InvalidValue(f"{under}.compare", f"cannot be {compare!r} without {needs}")
    mapping = ChunkMapping(
        under=under,
        name=_required(given, "name", under),
        document=_required(given, "document", under),
        text=_required(given, "text", under),
        embedding=_required(given, "embedding", under),
        first_ordinal=first,
        join=join,
        compare=compare,
        source=source,
        where=_where(given, under),
        insert=_insert(given, under),
        absent=_absent(given, under),
        **names,
    )
    _refuse_twice(mapping.columns, mapping.insert, under)
    return mapping


def _comparisons(names: Mapping[str, str | None], join: str | None, source: TextMapping | None) -> list[str]:
    """What a table of chunks can be compared by, the surest first."""
    found = []
    if names["start"] is not None or join is not None:
        found.append("text")
    if names["digest"] is not None:
        found.append("digest")
    if source is not None:
        if names["version"] is not None and (source.version is not None or source.order_by_updated_at):
            found.append("version")
        found += ["chunks", "presence"]
    return found


def _table(value: object, under: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidValue(under, "must be a table with name and the columns that are what")
    return value


def _required(given: Mapping[str, Any], key: str, under: str) -> str:
    value = _name(given, key, under)
    if value is None:
        what = "the table, as in 'articles' or 'public.articles'" if key == "name" else "a column"
        raise InvalidValue(f"{under}.{key}", f"is missing; name {what}")
    return value


def _name(given: Mapping[str, Any], key: str, under: str) -> str | None:
    value = given.get(key)
    if value is None:
        return None
    return check_name(value, f"{under}.{key}", most=2 * _LONGEST_NAME + 1 if key == "name" else _LONGEST_NAME)


def check_name(value: object, key: str, *, most: int = _LONGEST_NAME) -> str:
    """Return a name if PostgreSQL can have something of that name.

    Raises:
        InvalidValue: it cannot.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidValue(key, "must be a string, the name of a table or column")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = most + 1
    if size > most:
        raise InvalidValue(key, f"must be at most {most} bytes of UTF-8")
    return value


def _metadata(value: object, under: str) -> str | Mapping[str, str] | None:
    key = f"{under}.metadata"
    if value is None:
        return None
    if isinstance(value, str):
        return check_name(value, key)
    if isinstance(value, list):
        return {check_name(name, key): name for name in value}
    if isinstance(value, Mapping):
        found = {check_name(column, key): called for column, called in value.items()}
        if all(isinstance(called, str) for called in found.values()) and len({*found.values()}) == len(found):
            return found
        raise InvalidValue(key, "must give each column another name in the metadata, as in { headline = 'title' }")
    raise InvalidValue(key, "must be one JSON column, or a list of columns, or a table { column = 'key' }")


def _where(given: Mapping[str, Any], under: str) -> str | None:
    value = given.get("where")
    if value is not None and (not isinstance(value, str) or not value.strip() or "\0" in value):
        raise InvalidValue(f"{under}.where", "must be a string, an SQL condition on the table's columns")
    return value


def _insert(given: Mapping[str, Any], under: str) -> Mapping[str, Any]:
    value = given.get("insert", _NOTHING)
    if not isinstance(value, Mapping):
        raise InvalidValue(f"{under}.insert", "must be a table of columns and their values in new rows")
    for column, constant in value.items():
        check_name(column, f"{under}.insert.{column}")
        if not isinstance(constant, (str, int, float, bool)) or not math.isfinite(
            0 if isinstance(constant, str) else constant
        ):
            raise InvalidValue(f"{under}.insert.{column}", "must be a string, a number that is finite, true or false")
    return value


def _absent(given: Mapping[str, Any], under: str) -> AbsentMeans | None:
    value = given.get("absent")
    if value is None:
        return None
    try:
        return AbsentMeans(value)
    except ValueError:
        names = ", ".join(one.value for one in AbsentMeans)
        raise InvalidValue(f"{under}.absent", f"must be one of {names}, not {quoted(value)}") from None


def _refuse_twice(columns: Mapping[str, str], insert: Mapping[str, Any], under: str) -> None:
    seen: dict[str, str] = {}
    for key, column in columns.items():
        if column in seen:
            raise InvalidValue(f"{under}.{key}", f"is the same column as {seen[column]}")
        seen[column] = key
    for column in insert:
        if column in seen:
            raise InvalidValue(f"{under}.insert.{column}", f"is mapped already, as {seen[column]}")
