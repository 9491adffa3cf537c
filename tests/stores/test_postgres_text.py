"""The text store on PostgreSQL: the contract, foreign SQL, documents that are refused, lost answers, and bad settings."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")

import psycopg
import psycopg.conninfo
from servers.postgres_server import PASSWORD, PostgresServer
from sqlite_support import prepared, scan
from store_calls import look, put, take_away, write

from trio_repair import (
    ContentDefinition,
    Document,
    InvalidValue,
    Presence,
    RepairJob,
    RepairOutcome,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    SyncStrategy,
    Write,
    WriteStatus,
    open_repair_engine,
)
from trio_repair.abc import Stores
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores import _postgres_writing
from trio_repair.stores._postgres import Session
from trio_repair.stores.pgvector import open_pgvector
from trio_repair.stores.postgres_text import PostgresTextStore, open_postgres_text, postgres_text_from_settings
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.testing import ContractBroken, check_store, make_document

TABLE = "trio_repair_text.documents"


class Schemas:
    """Opens stores in one database: a new schema each time, or `again` the one that was opened last."""

    def __init__(self, opener: Callable[..., AbstractAsyncContextManager[Any]], dsn: str) -> None:
        self._open = functools.partial(opener, dsn)
        self._numbers = itertools.count()
        self._schema = ""

    def __call__(self) -> AbstractAsyncContextManager[Any]:
        self._schema = f"schema_{next(self._numbers)}"
        return self._open(schema=self._schema, create=True)

    def again(self) -> AbstractAsyncContextManager[Any]:
        return self._open(schema=self._schema)


def sql(dsn: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run plain SQL as a foreign program does; the rows of the last statement."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows: list[tuple[Any, ...]] = []
        for statement in statements:
            done = connection.execute(statement)
            rows = done.fetchall() if done.description else []
        return rows


# The contract.


async def test_contract(database: str) -> None:
    """Every promise, between two connections too."""
    schemas = Schemas(open_postgres_text, database)
    await check_store(schemas, again=schemas.again)


async def test_contract_with_metadata_as_content(database: str) -> None:
    """Where the server cannot compute a digest, what is promised of content holds as well."""
    content = ContentDefinition(metadata_keys=("title", "changed"))
    schemas = Schemas(functools.partial(open_postgres_text, content=content), database)
    only = ("content-round-trip", "version-round-trip", "write-is-seen", "one-poison-alone", "ranges-agree")
    await check_store(schemas, again=schemas.again, content=content, only=only)


async def test_control_without_locks_and_fence_a_race_is_lost(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the rows are not locked, a writer that looked in time writes over another, and the suite sees it."""
    monkeypatch.setattr("trio_repair.stores.postgres_text._TextWriter.lock", lambda *_: None)
    schemas = Schemas(open_postgres_text, database)
    with pytest.raises(ContractBroken) as broken:
        await check_store(schemas, again=schemas.again, only=("one-winner", "no-lost-update"))
    assert broken.value.breaches


async def test_what_is_written_lasts(database: str) -> None:
    """Another handle, later, finds the same documents under the same tokens."""
    async with open_postgres_text(database, create=True) as store:
        seen = await put(store, make_document("a", "kept"), Document.tombstone("b", number=3))
    async with open_postgres_text(database) as store:
        assert seen == list(await store.observe(["a", "b"]))
        assert 2 == await store.count()
        assert ["b"] == list(await store.tombstones())


# Foreign SQL.


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        (f"UPDATE {TABLE} SET text = 'edited'", "edited"),
        (f"UPDATE {TABLE} SET digest = 'forged'", "original"),
        (f"UPDATE {TABLE} SET text = 'edited', digest = repeat('0', 64)", "edited"),
        (f"UPDATE {TABLE} SET number = 7", "original"),
        (f"UPDATE {TABLE} SET rev = rev", "original"),
        (f"DELETE FROM {TABLE}; INSERT INTO {TABLE} (doc_id, text) VALUES ('a', 'original')", "original"),
        (f"SET session_replication_role = replica; UPDATE {TABLE} SET text = 'edited'", "edited"),
        (f"ALTER TABLE {TABLE} DISABLE TRIGGER ALL; UPDATE {TABLE} SET metadata = '{{}}'", "original"),
    ],
)
async def test_foreign_writes_move_the_token_and_keep_the_digest_true(database: str, statement: str, text: str) -> None:
    """Whatever foreign SQL does, the fence notices, and the digest is that of the text that is held."""
    async with open_postgres_text(database, create=True) as store:
        (before,) = await put(store, make_document("a", "original", metadata={"k": 1}))
        sql(database, *statement.split("; "))
        after = await look(store, "a")
        assert before.token != after.token
        assert after.version is not None
        assert hashlib.sha256(text.encode()).hexdigest() == after.version.digest
        (held,) = await store.read(["a"])
        assert isinstance(held, StoredDocument)
        assert held.document is not None
        assert text == held.document.text
        assert [("a", after)] == await scan(store)


async def test_foreign_edits_with_metadata_as_content(database: str) -> None:
    """A digest that the server cannot compute is forgotten when the content changes, and then computed here."""
    content = ContentDefinition(metadata_keys=("title",))
    async with open_postgres_text(database, create=True, content=content) as store:
        await put(store, make_document("a", "text", metadata={"title": "one"}, content=content))
        sql(database, f"""UPDATE {TABLE} SET metadata = '{{"title": "two"}}'""")
        seen = await look(store, "a")
        assert seen.version is not None
        assert content.digest("text", {"title": "two"}) == seen.version.digest
        assert [("a", seen)] == await scan(store)


async def test_numbers_that_jsonb_changes_are_refused_in_time(database: str) -> None:
    """A digest over a number that comes back in another form could never be proved again."""
    content = ContentDefinition(metadata_keys=("n",))
    async with open_postgres_text(database, create=True, content=content) as store:
        for number, taken in ((1e16, False), (-0.0, False), (0.1, True), (1e-7, True), (10**30, True), (2.5e15, True)):
            document = make_document(f"n {number}", "text", metadata={"n": number}, content=content)
            (answer,) = await store.prepare([document])
            assert taken is not isinstance(answer, StoreRejected), number
            if taken:
                await put(store, document)
                (held,) = await store.read([document.doc_id])
                assert isinstance(held, StoredDocument), number


# Documents that the server refuses.


async def test_a_refused_document_fails_alone(database: str) -> None:
    """One of many breaks a constraint that somebody added: it is told apart, and its text is not told."""
    secret = "not to be told"
    async with open_postgres_text(database, create=True) as store:
        sql(database, f"ALTER TABLE {TABLE} ADD CONSTRAINT house_rule CHECK (text NOT LIKE '%{secret}%')")
        documents = [make_document(f"{n:03}", secret if n in {3, 77} else "fine") for n in range(100)]
        answers = await write(store, *documents)
        poison = {document.doc_id for document, one in zip(documents, answers, strict=True) if one.error is not None}
        assert {"003", "077"} == poison
        assert isinstance(answers[3].error, StoreRejected)
        assert "house_rule" in str(answers[3].error)
        assert secret not in str(answers[3].error)
        assert 98 == await store.count()


async def test_a_constraint_that_waits_for_the_commit_is_asked_before(database: str) -> None:
    """A deferred constraint fails one document, not the commit of all."""
    async with open_postgres_text(database, create=True) as store:
        sql(
            database,
            "CREATE TABLE public.known (id text PRIMARY KEY)",
            "INSERT INTO public.known VALUES ('a')",
            f"ALTER TABLE {TABLE} ADD FOREIGN KEY (doc_id) REFERENCES public.known DEFERRABLE INITIALLY DEFERRED",
        )
        answers = await write(store, make_document("a", "text"), make_document("b", "text"))
        assert [WriteStatus.LANDED, WriteStatus.REJECTED] == [one.status for one in answers]


async def test_nul_is_refused_in_time(database: str) -> None:
    """PostgreSQL's text and jsonb hold no NUL: that is said before anything is written."""
    async with open_postgres_text(database, create=True) as store:
        for document in (make_document("a", "x\0y"), make_document("b", "x", metadata={"k": ["\0"]})):
            (answer,) = await store.prepare([document])
            assert isinstance(answer, StoreRejected)


async def test_a_text_too_long_for_the_index_is_held(database: str) -> None:
    """More words than a tsvector takes: the document is held whole, and found by what it begins with."""
    text = "beginning " + " ".join(f"{n:06}" for n in range(200_000)) + " ending"
    async with open_postgres_text(database, create=True) as store:
        await put(store, make_document("a", text))
        (held,) = await store.read(["a"])
        assert isinstance(held, StoredDocument)
        assert held.document is not None
        assert text == held.document.text
        assert ["a"] == [hit.doc_id for hit in await store.search("beginning")]


# Locks, and answers that do not come.


async def test_a_lock_is_waited_for_no_longer_than_said(database: str) -> None:
    """Another transaction holds the row: the call fails in words, nothing is written, and it works once that ends."""
    async with open_postgres_text(database, create=True, lock_timeout=0.05) as store:
        await put(store, make_document("a", "one"))
        with psycopg.connect(database) as other:
            other.execute(f"UPDATE {TABLE} SET number = 9")
            with pytest.raises(StoreUnavailable, match="lock_timeout"):
                await put(store, make_document("a", "two", number=10))
        assert 9 == (await look(store, "a")).version.number  # type: ignore[union-attr]  # it is held
        await put(store, make_document("a", "two", number=10))


async def test_a_cancelled_write_is_stopped_on_the_server(postgres: PostgresServer, database: str) -> None:
    """A statement that waits is cancelled there, not only forgotten here."""
    async with open_postgres_text(database, create=True, lock_timeout=60) as store:
        await put(store, make_document("a", "one"))
        waiting = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = '{database_name(database)}'"
        with psycopg.connect(database) as other:
            other.execute(f"UPDATE {TABLE} SET number = 9")
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancel_once_it_waits, database, waiting, scope)
                    await put(store, make_document("a", "two", number=10))
            assert scope.cancelled_caught
            with trio.fail_after(5):
                while sql(database, waiting) != [(0,)]:  # noqa: ASYNC110 - it is another process that is waited for
                    await trio.sleep(0.01)
        assert 0 == store.abandoned_threads
        assert 9 == (await look(store, "a")).version.number  # type: ignore[union-attr]  # it is held


def database_name(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


async def cancel_once_it_waits(dsn: str, waiting: str, scope: trio.CancelScope) -> None:
    while sql(dsn, waiting) == [(0,)]:  # noqa: ASYNC110 - the server has no way to tell us
        await trio.sleep(0.01)
    scope.cancel()


async def test_a_lost_answer_to_a_commit_is_unknown(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was landing is UNKNOWN, what was refused is refused, and both can be looked up afterwards."""
    commit = Session.commit

    def commit_and_lose(session: Session) -> None:
        commit(session)
        raise psycopg.OperationalError("the answer was lost")

    async with open_postgres_text(database, create=True) as store:
        ready = await prepared(store, [make_document("a", "one"), make_document("b", "two")])
        stale = "no such token"
        monkeypatch.setattr(Session, "commit", commit_and_lose)
        absent = (await look(store, "a")).token
        answers = await store.write([Write(prepared=ready[0], token=absent), Write(prepared=ready[1], token=stale)])
        monkeypatch.undo()
        assert [WriteStatus.UNKNOWN, WriteStatus.REFUSED] == [one.status for one in answers]
        assert isinstance(answers[0].error, StoreUnavailable)
        assert Presence.LIVE is (await look(store, "a")).presence


async def test_an_ended_connection_is_made_anew(database: str) -> None:
    """The server ends the idle connection: the next call does not notice."""
    async with open_postgres_text(database, create=True) as store:
        await put(store, make_document("a", "one"))
        sql(
            database,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'trio-repair'"
            f" AND datname = '{database_name(database)}'",
        )
        await put(store, make_document("a", "two", number=2))


async def test_a_failing_statement_leaves_no_transaction(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error the connection is used again, with nothing of the failed call in it."""
    async with open_postgres_text(database, create=True) as store:
        monkeypatch.setattr(_postgres_writing, "_BEGIN", ("BEGIN", "SELECT 1 / 0"))
        with pytest.raises(StoreUnavailable):
            await put(store, make_document("a", "one"))
        monkeypatch.undo()
        await put(store, make_document("a", "one"))
        assert 1 == await store.count()


async def test_what_fails_among_statements_is_not_logged(database: str, caplog: pytest.LogCaptureFixture) -> None:
    """The driver's own words on what a failure took along would quote the server's; nothing of them is heard."""
    async with open_postgres_text(database, create=True) as store:
        sql(database, f"ALTER TABLE {TABLE} ADD CHECK (text <> 'poison')")
        answers = await write(store, make_document("a", "good"), make_document("b", "poison"))
        assert [WriteStatus.LANDED, WriteStatus.REJECTED] == [one.status for one in answers]
        with pytest.raises(StoreUnavailable), psycopg.connect(database) as other:
            other.execute(f"LOCK TABLE {TABLE}")
            async with open_postgres_text(database, lock_timeout=0.05) as impatient:
                await put(impatient, make_document("c", "text"))
    assert [] == [one for one in caplog.records if one.name.startswith("psycopg")]


# Search.


async def test_search(database: str) -> None:
    """Words, phrases and exclusions; deleted documents are not found; what people type is no syntax."""
    async with open_postgres_text(database, create=True) as store:
        await put(store, make_document("a", "The quick brown fox"), make_document("b", "A brown bear, quick to anger"))
        await put(store, make_document("c", "quick brown"))
        await put(store, Document.tombstone("c", number=2))
        assert {"a", "b"} == {hit.doc_id for hit in await store.search("QUICK brown")}
        (hit,) = await store.search('"quick brown" -bear', syntax="websearch")
        assert "a" == hit.doc_id
        assert "[quick] [brown]" in hit.snippet
        assert [] == list(await store.search("fox & ! ( 'bear \0 \ud800"))
        with pytest.raises(InvalidValue, match="syntax"):
            await store.search("x", syntax="fts5")  # type: ignore[arg-type]  # wrong on purpose
    async with open_postgres_text(database, create=True, schema="stems", language="english") as store:
        await put(store, make_document("a", "running foxes"))
        assert ["a"] == [hit.doc_id for hit in await store.search("the fox runs")]


# Opening.


def complaint(error: StoreError | InvalidValue) -> str:
    """What an operator sees: one line without secrets, its causes too."""
    shown: list[str] = []
    one: BaseException | None = error
    while one is not None:
        shown.append(str(one))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    assert PASSWORD not in "\n".join(shown)
    assert "wrong-secret" not in "\n".join(shown)
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"password": "wrong-secret"}, "password is wrong"),
        ({"user": "nobody_here"}, "password is wrong"),
        ({"dbname": "no_such"}, "no such database"),
        ({"port": 1}, "nothing listens there"),
        ({"host": "no-such-host.invalid"}, "host name is not known"),
        ({"sslmode": "require"}, "encrypted connection"),
    ],
)
async def test_why_no_connection(database: str, changes: dict[str, Any], words: str) -> None:
    """Each reason has its own line, and none of them a secret."""
    dsn = psycopg.conninfo.make_conninfo(database, connect_timeout=3, **changes)
    with pytest.raises(StoreUnavailable) as error:
        async with open_postgres_text(dsn):
            pass
    assert words in complaint(error.value)


@pytest.mark.parametrize(
    ("option", "words"),
    [("LOGIN CONNECTION LIMIT 0", "the user, or the database, has no connection left"), ("NOLOGIN", "may not log in")],
)
async def test_why_a_user_is_not_let_in(database: str, option: str, words: str) -> None:
    """A user who is there and has a right password is not told to be missing."""
    user = f"guest_{option.partition(' ')[0].lower()}"
    sql(database, f"CREATE ROLE {user} {option} PASSWORD 'guest'")
    try:
        with pytest.raises(StoreUnavailable) as error:
            async with open_postgres_text(psycopg.conninfo.make_conninfo(database, user=user, password="guest")):
                pass
        assert words in complaint(error.value)
    finally:
        sql(database, f"DROP ROLE {user}")


async def test_a_database_made_read_only_is_left_alone(database: str) -> None:
    """Whoever says so means the store too: nothing is written, in words, until it is taken back."""
    name = f'"{database_name(database)}"'
    async with open_postgres_text(database, create=True) as store:
        await put(store, make_document("a", "one"))
        sql(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        sql(
            database,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'trio-repair'",
        )
        with pytest.raises(StoreUnavailable, match="is read-only"):
            await put(store, make_document("a", "two", number=2))
        with pytest.raises(StoreUnavailable, match="is read-only"):
            async with open_postgres_text(database, schema="another", create=True):
                pass
        sql(
            database,
            "SET default_transaction_read_only = off",
            f"ALTER DATABASE {name} RESET default_transaction_read_only",
        )
        assert 1 == (await look(store, "a")).version.number  # type: ignore[union-attr]  # it is held
        await put(store, make_document("a", "two", number=2))


async def test_tables_that_do_not_fit(database: str) -> None:
    """Missing, of another kind, for other content, for another language: one line that names the setting."""
    embedding = {"embedder": HashingEmbedder(8), "chunker": WindowChunker()}
    async with open_postgres_text(database, create=True), open_pgvector(database, create=True, **embedding):
        pass
    keyed = ContentDefinition(metadata_keys=("title",))
    for options, field, words in (
        ({"schema": "nothing_here"}, "schema", "holds no store"),
        ({"schema": "trio_repair_vector"}, "schema", "holds a pgvector store"),
        ({"content": keyed}, "schema", "was made for content of text alone"),
        ({"language": "english"}, "language", "was made for 'simple'"),
        ({"language": "klingon"}, "language", "there are"),
        ({"schema": "public; DROP"}, "schema", "letters"),
        ({"statement_timeout": 0}, "statement_timeout", "more than 0"),
    ):
        with pytest.raises(InvalidValue) as error:
            async with open_postgres_text(database, **options):  # type: ignore[arg-type]  # a row of the table above
                pass
        assert field == error.value.field
        assert words in complaint(error.value)


async def test_foreign_tables_are_left_alone(database: str) -> None:
    """A schema that holds somebody's table of that name is refused whole."""
    sql(database, "CREATE SCHEMA theirs", "CREATE TABLE theirs.documents (x int)")
    with pytest.raises(InvalidValue, match="another application"):
        async with open_postgres_text(database, create=True, schema="theirs"):
            pass
    assert [("documents",)] == sql(database, "SELECT tablename::text FROM pg_tables WHERE schemaname = 'theirs'")


async def test_one_may_read_and_not_write(database: str) -> None:
    """A user with SELECT alone looks and scans; what he writes is refused in words, and nothing is written."""
    async with open_postgres_text(database, create=True) as store:
        await put(store, make_document("a", "one"))
    role = f"reader_{database_name(database)}"
    sql(
        database,
        f"CREATE ROLE {role} LOGIN PASSWORD 'reads-only'",
        f"GRANT USAGE ON SCHEMA trio_repair_text TO {role}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA trio_repair_text TO {role}",
    )
    reading = psycopg.conninfo.make_conninfo(database, user=role, password="reads-only")
    async with open_postgres_text(reading) as store:
        assert ["a"] == [doc_id for doc_id, _ in await scan(store)]
        with pytest.raises(StoreUnavailable, match="privilege"):
            await put(store, make_document("a", "two", number=2))
    sql(database, f"GRANT INSERT, UPDATE, DELETE ON trio_repair_text.documents TO {role}")
    async with open_postgres_text(reading) as store:
        await put(store, make_document("a", "two", number=2), make_document("b", "new"))
        await take_away(store, "b")


async def test_nothing_secret_is_shown(database: str) -> None:
    """Neither a store nor what it is made of shows the password."""
    async with open_postgres_text(database, create=True) as store:
        assert PASSWORD not in f"{store!r} {store._server!r} {store._thread!r}"
        assert isinstance(store, PostgresTextStore)


# Settings.


async def test_settings(database: str, tmp_path: Path) -> None:
    """By connection string or one by one; a wrong one is named, and no value of a secret is told."""
    options: dict[str, Any] = {"name": "text", "directory": tmp_path, "content": ContentDefinition(), "create": True}
    parts = psycopg.conninfo.conninfo_to_dict(database)
    single = {**parts, "port": int(str(parts["port"])), "statement_timeout": 5, "language": "simple"}
    for settings in ({"dsn": database}, single):
        async with postgres_text_from_settings(settings, **options) as store:
            assert 0 == await store.count()
    for encoding in ("utf8", "latin1"):  # as strings for other programs may say
        async with postgres_text_from_settings({"dsn": f"{database} client_encoding={encoding}"}, **options) as store:
            (seen,) = await put(store, make_document("ä", "日本"))
            assert seen.intact
            await take_away(store, "ä")
    for settings, key in (
        ({"dsn": f"postgresql://u:{PASSWORD}@[broken"}, "dsn"),
        ({"dsn": 5}, "dsn"),
        # Passwords that are not escaped: what libpq takes for host, port or database is a part of them.
        ({"dsn": "postgresql://u:1/wrong-secret@db/name"}, "dsn"),
        ({"dsn": "postgresql://u:x/wrong-secret@db/name"}, "dsn"),
        ({"dsn": "postgresql://u:x@wrong-secret@db/name"}, "dsn"),
        ({"dbname": "postgresql://u:wrong-secret@db/name"}, "dbname"),
        ({"host": f"host=db password={PASSWORD}"}, "host"),
        ({"dsn": "postgresql://u:wrong-secret@db:five/name"}, "port"),
        ({"dsn": f"{database} port=99999"}, "port"),
        ({"dsn": f"{database} connect_timeout=soon"}, "connect_timeout"),
        ({"sslmode": "on"}, "sslmode"),
        ({"target_session_attrs": "master"}, "target_session_attrs"),
        ({"port": "5432"}, "port"),
        ({"port": 0}, "port"),
        ({"host": ""}, "host"),
        ({"dsn": database, "user": "else"}, "user"),
        ({"path": "x"}, "path"),
        ({"schema": 1}, "schema"),
        ({"language": 1}, "language"),
        ({"statement_timeout": -1}, "statement_timeout"),
        ({"lock_timeout": "soon"}, "lock_timeout"),
        ({"connect_timeout": 0}, "connect_timeout"),
    ):
        with pytest.raises(InvalidValue) as error:
            postgres_text_from_settings(settings, **options)
        assert key == error.value.field
        complaint(error.value)


# Together.


async def test_an_engine_repairs_what_is_damaged(database: str, tmp_path: Path) -> None:
    """Text and vectors on PostgreSQL, the cache in SQLite: damage by foreign SQL is repaired, and found no more."""
    async with (
        open_postgres_text(database, create=True) as text,
        open_pgvector(database, create=True, embedder=HashingEmbedder(16), chunker=WindowChunker(40, 10)) as vector,
        open_sqlite_cache(tmp_path / "cache.db", create=True) as cache,
    ):
        documents = [make_document(f"{n:02}", f"document {n} about many things and long enough") for n in range(20)]
        for store in (text, vector, cache):
            await put(store, *documents)
        vectors = "trio_repair_vector"
        sql(
            database,
            f"UPDATE {TABLE} SET text = 'edited by the application', number = 2 WHERE doc_id = '03'",
            f"DELETE FROM {vectors}.chunks WHERE doc_id = '05' AND ordinal = 0",
            f"DELETE FROM {vectors}.documents WHERE doc_id = '07'",
            f"UPDATE {vectors}.chunks SET text = 'forged' WHERE doc_id = '09'",
            f"UPDATE {TABLE} SET deleted = true, number = 2 WHERE doc_id = '11'",
        )
        damaged = {"03", "05", "07", "09", "11"}
        strategy = SyncStrategy.TEXT_SOURCE_OF_TRUTH
        async with open_repair_engine(Stores(text=text, vector=vector, cache=cache)) as engine:
            for expected in (RepairOutcome.REPAIRED, RepairOutcome.ALREADY_CONSISTENT):
                for document in documents:
                    result = await engine.execute_repair_job(RepairJob(doc_id=document.doc_id, strategy=strategy))
                    wanted = expected if document.doc_id in damaged else RepairOutcome.ALREADY_CONSISTENT
                    assert wanted is result.outcome, result
        assert 19 == len([1 for _, seen in await scan(vector) if seen.presence is Presence.LIVE and seen.intact])
        assert "03" == (await vector.nearest("edited by the application", 1))[0].doc_id
