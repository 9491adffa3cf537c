"""What PostgreSQL's catalogue says of a table that somebody else made, and SQL for its columns."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import psycopg

from trio_repair import InvalidValue

from ._postgres import Connection, Session, literal, quoted_name
from ._postgres_errors import sqlstate, without_content

TEXTS: Final = frozenset({"text", "varchar", "bpchar"})
INTEGERS: Final = frozenset({"int2", "int4", "int8"})
JSONS: Final = frozenset({"json", "jsonb"})
MOMENTS: Final = frozenset({"timestamptz", "timestamp"})

_RELATION: Final = (
    "SELECT c.oid, c.relkind::text, n.nspname::text, c.relname::text FROM pg_catalog.pg_class AS c"
    " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = pg_catalog.to_regclass(%s)"
)
_COLUMNS: Final = (
    "SELECT a.attname::text, coalesce(b.typname, t.typname)::text, a.attnotnull,"
    " a.attgenerated <> '' OR a.attidentity = 'a', pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypmod"
    " FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid"
    " LEFT JOIN pg_catalog.pg_type AS b ON b.oid = nullif(t.typbasetype, 0)"
    " WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
)
_INDEXES: Final = (
    "SELECT i.indisunique AND i.indimmediate AND i.indpred IS NULL, ARRAY(SELECT a.attname::text"
    " FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (num, nth)"
    " JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.num ORDER BY k.nth)"
    " FROM pg_catalog.pg_index AS i WHERE i.indrelid = %s AND i.indisvalid AND i.indexprs IS NULL"
)
_HIDES: Final = (
    "SELECT pg_catalog.row_security_active(%(oid)s::oid) AND (count(*) FILTER (WHERE NOT p.polpermissive) > 0"
    " OR count(*) FILTER (WHERE p.polpermissive AND pg_catalog.pg_get_expr(p.polqual, p.polrelid) = 'true') = 0)"
    " FROM pg_catalog.pg_policy AS p WHERE p.polrelid = %(oid)s::oid AND p.polcmd IN ('r', '*')"
    " AND EXISTS (SELECT 1 FROM unnest(p.polroles) AS r WHERE r = 0 OR pg_catalog.pg_has_role(r, 'USAGE'))"
)
"""Whether policies may keep rows from this user: some that he must pass, or none that lets all through."""
_KINDS: Final = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index"}


@attrs.frozen(kw_only=True)
class Column:
    """A column of the table, by its base type."""

    name: str
    kind: str
    required: bool
    """NOT NULL."""
    computed: bool
    """Nobody but the server can set it."""
    declared: str
    """Its type as it stands in a definition of the table."""
    modifier: int
    """Of a type of vectors, how many numbers it takes; -1 for any."""

    @property
    def quoted(self) -> str:
        """Its name as it stands in a statement."""
        return quoted_name(self.name)

    @property
    def defined(self) -> str:
        """Name and type, as they stand in a list of columns."""
        return f"{self.quoted} {self.declared.replace('%', '%%')}"


@attrs.frozen(kw_only=True)
class Relation:
    """A table that exists."""

    under: str
    """The key of the settings that name it."""
    oid: int
    schema: str
    name: str
    columns: Mapping[str, Column]
    unique: Sequence[Sequence[str]]
    """The columns of each unique index without conditions."""
    indexed: frozenset[str]
    """Columns that an index begins with."""

    @property
    def sql(self) -> str:
        """The table as it stands in a statement."""
        return f"{quoted_name(self.schema)}.{quoted_name(self.name)}"

    @property
    def words(self) -> str:
        """The table as it stands in an error."""
        return f"{self.schema}.{self.name}"

    def column(self, name: str, key: str, kinds: frozenset[str] | None = None, *, written: bool = True) -> Column:
        """The column that a setting names.

        Raises:
            InvalidValue: there is none, or it is none that can be used so.
        """
        found = self.columns.get(name)
        key = f"{self.under}.{key}"
        if found is None:
            close = difflib.get_close_matches(name, self.columns, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(self.columns)}"
            raise InvalidValue(key, f"{self.words} has no column {name!r}; {hint}")
        if kinds is not None and found.kind not in kinds:
            raise InvalidValue(key, f"column {name!r} is of type {found.kind}; usable are {', '.join(sorted(kinds))}")
        if written and found.computed:
            raise InvalidValue(key, f"column {name!r} is computed by the server, so that no repair could write it")
        return found


def find_relation(session: Session, under: str, name: str) -> Relation:
    """The table of a name, which may begin with a schema.

    Raises:
        InvalidValue: there is no such table.
    """
    key = f"{under}.name"
    parts = name.split(".")
    if len(parts) > 2 or not all(parts):
        raise InvalidValue(key, f"{name!r} is no name of a table; write 'articles' or 'public.articles'")
    spelled = ".".join('"' + part.replace('"', '""') + '"' for part in parts)
    found = session.execute(_RELATION, (spelled,)).fetchone()
    if found is None:
        raise InvalidValue(key, f"{session.server.place} has no table {name!r}")
    oid, kind, schema, plain = found
    if kind not in {"r", "p"}:
        raise InvalidValue(key, f"{name!r} is {_KINDS.get(kind, 'something else')}, not a table")
    if session.execute(_HIDES, {"oid": oid}).fetchone() == (True,):
        problem = (
            f"row-level security may hide rows of {schema}.{plain} from this user, which would be taken for missing;"
            " give the user BYPASSRLS, or a policy for SELECT USING (true), and say in where which rows are meant"
        )
        raise InvalidValue(key, problem)
    columns = {
        row[0]: Column(name=row[0], kind=row[1], required=row[2], computed=row[3], declared=row[4], modifier=row[5])
        for row in session.execute(_COLUMNS, (oid,)).fetchall()
    }
    indexes = session.execute(_INDEXES, (oid,)).fetchall()
    return Relation(
        under=under,
        oid=oid,
        schema=schema,
        name=plain,
        columns=columns,
        unique=sorted((tuple(names) for unique, names in indexes if unique), key=len),
        indexed=frozenset(names[0] for _, names in indexes if names),
    )


@attrs.frozen(kw_only=True)
class IdColumn:
    """The column that a document's id stands in."""

    column: Column
    alias: str

    @property
    def raw(self) -> str:
        """The column."""
        return f"{self.alias}.{self.column.quoted}"

    @property
    def text(self) -> str:
        """The id as text."""
        return f"{self.raw}::text"

    @property
    def order(self) -> str:
        """The id, ordered by bytes."""
        return f'{self.text} COLLATE "C"'

    @property
    def usable(self) -> str:
        """A condition: it can be a document's id."""
        if self.column.kind in TEXTS:
            return f"octet_length({self.text}) BETWEEN 1 AND 2048"
        return f"{self.raw} IS NOT NULL"

    def among(self, ids: str = "%(ids)s") -> str:
        """A condition that an index on the column serves: its id is one of a bound list of texts."""
        kind = self.column.kind
        if kind in TEXTS:
            # Its own collation may take different ids for equal ones; bytes do not.
            listed = f"{ids}::{'bpchar' if kind == 'bpchar' else 'text'}[]"
            return f"({self.raw} = ANY({listed}) AND {self.order} = ANY({ids}::text[]))"
        if kind == "uuid":
            cast = "CASE WHEN k ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN k::uuid END"
        else:
            fits = f"k::numeric BETWEEN {-(2**63)} AND {2**63 - 1}"
            cast = f"CASE WHEN k ~ '^(0|-?[1-9][0-9]{{0,18}})$' THEN CASE WHEN {fits} THEN k::bigint END END"
        return f"{self.raw} = ANY(ARRAY(SELECT {cast} FROM unnest({ids}::text[]) AS k))"


ID_KINDS: Final = TEXTS | INTEGERS | {"uuid"}


def condition(where: str | None) -> str:
    """The operator's condition as it stands in a statement with bound values."""
    return "TRUE" if where is None else "(" + where.replace("%", "%%") + "\n)"


def check_condition(session: Session, relation: Relation, where: str | None, alias: str) -> None:
    """See that the server takes the operator's condition, by itself and in brackets: that it is one, and nothing else.

    Raises:
        InvalidValue: it does not.
    """
    if where is None:
        return
    failure: psycopg.Error
    selected = f"SELECT 1 FROM {relation.sql} AS {alias} WHERE"
    try:
        for one in (condition(where), condition(where)[1:-1]):
            # What has bound values is one statement, or it is refused.
            session.execute(f"{selected} {one} LIMIT %s", (0,))
    except psycopg.Error as error:
        # A constant of it may be none of its type: class 22.
        if sqlstate(error)[:2] not in {"22", "42"} or sqlstate(error) == "42501":
            raise
        failure = error
    else:
        return
    problem = f"is no condition that the server takes on {relation.words} (SQLSTATE {sqlstate(failure)})"
    if sqlstate(failure) == "42P01":
        problem += "; write its columns without the name of the table"
    raise InvalidValue(f"{relation.under}.where", problem) from without_content(failure)


def serves_order(session: Session, relation: str, order: str, held: str) -> bool:
    """Whether an index gives the ids in byte order, so that nothing must be sorted."""
    session.execute("BEGIN READ ONLY")
    session.execute("SET LOCAL enable_sort = off")
    session.execute("SET LOCAL enable_seqscan = off")
    sql = f"EXPLAIN (FORMAT JSON, COSTS OFF) SELECT {order} FROM {relation} WHERE {held} ORDER BY {order} LIMIT 1"
    (plan,) = session.execute(sql).fetchone() or ("",)
    session.execute("ROLLBACK")
    return '"Sort"' not in json.dumps(plan)


def declare(session: Session, reader: Connection, name: str, sql: str) -> None:
    """Open a cursor in the transaction of a reader; nothing is bound in it."""
    session.execute(f"DECLARE {quoted_name(name)} NO SCROLL CURSOR FOR {sql}", connection=reader)


def fetch(session: Session, reader: Connection, name: str, count: int) -> list[tuple[Any, ...]]:
    """The next rows of a cursor."""
    return session.execute(f"FETCH {count} FROM {quoted_name(name)}", connection=reader).fetchall()


def number_of(expression: str) -> str:
    """A version number, or NULL for an integer that cannot be one."""
    return f"CASE WHEN {expression} BETWEEN 0 AND {2**53 - 1} THEN {expression}::bigint END"


def milliseconds_of(expression: str) -> str:
    """A moment as milliseconds since the epoch, or NULL for one that is before it, or infinite.

    Truncated first: in PostgreSQL 13 the epoch is a float, and whole milliseconds would be cut to those before.
    """
    since = f"round(extract(epoch FROM date_trunc('milliseconds', {expression})) * 1000)::bigint"
    return f"CASE WHEN isfinite({expression}) AND {expression} >= {literal('1970-01-01 00:00:00+00')} THEN {since} END"
