"""The cache on a Redis or Valkey server: entries of this library's own, or those that an application has there already.

Everything that is compared is compared by the server, in the script that then writes: the fence is strong, between
processes and against programs that know nothing of it. A token is a digest of what is held, made anew in each look. So
an entry of the application's own layout that returns to the very bytes that it had has the token that it had; entries
of this library's layout never do, each write being marked.

One server is spoken to: no cluster, and nobody who follows a failover. An entry may vanish at any time, by its TTL or
because the server makes room, which is what a cache is. Tombstones are not kept: deleting is removing.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import trio

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    Fence,
    InvalidValue,
    Observation,
    Prepared,
    Removal,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreTraits,
    Write,
    WriteAnswer,
)
from trio_repair._model import check_seconds
from trio_repair.abc import ScanPage

from ._fence import ABSENT, ABSENT_TOKEN, Change
from ._preparing import prepare_document
from ._redis_changes import Ledger
from ._redis_connections import Connections, Endpoint
from ._redis_entries import Entry, Form
from ._redis_keys import Keys
from ._redis_scan import Scanner
from ._redis_settings import (
    FIELD_SETTINGS,
    connections_setting,
    endpoint,
    keys_and_form,
    tls_context,
)
from ._settings import refuse_unknown, seconds_setting

__all__ = ["RedisCacheStore", "open_redis_cache", "redis_cache_from_settings"]

_MAX_BATCH: Final = 512
_LONGEST_TEXT: Final = 512 * 2**20 // 4
"""Characters that fit into 512 MiB of UTF-8, the most that a server takes unless it is told otherwise."""


class RedisCacheStore:
    """A cache on one server; made by `open_redis_cache`."""

    def __init__(
        self,
        name: str,
        where: str,
        connections: Connections,
        form: Form,
        keys: Keys,
        content: ContentDefinition,
        traits: StoreTraits,
        ledger: Ledger,
    ) -> None:
        self._name = name
        self._where = where
        self._connections = connections
        self._form = form
        self._keys = keys
        self._content = content
        self._traits = traits
        self._ledger = ledger
        self._scanner = Scanner(name, connections, ledger, form, keys)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._where} {self._keys.glob!r}>"

    @property
    def traits(self) -> StoreTraits:
        """What this store promises; constant while it is open."""
        return self._traits

    @property
    def connections_opened(self) -> int:
        """How many connections were made, ever: more than `traits.max_calls` if some were lost or given up."""
        return self._connections.opened

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """Look at documents. Of an application's entries, which state no digest, the content is taken and digested.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        found = await self._look(doc_ids, content=self._form.reads_to_observe)
        return [
            ABSENT if entry is None else entry.observation if isinstance(entry, Entry) else entry for entry in found
        ]

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """Read documents. `StoreRejected` for one whose content is not what its digest says.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        found = await self._look(doc_ids, content=True)
        answers: list[StoredDocument | StoreError] = []
        for doc_id, entry in zip(doc_ids, found, strict=True):
            if entry is None:
                answers.append(StoredDocument(document=None, token=ABSENT_TOKEN))
            elif isinstance(entry, Entry):
                answers.append(entry.read(self._name, self._content, doc_id))
            else:
                answers.append(entry)
        return answers

    async def get(self, doc_id: str) -> Document | None:
        """The cached document; None if it is absent, expired, or not what its digest says.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        (answer,) = await self.read([doc_id])
        return answer.document if isinstance(answer, StoredDocument) else None

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check that digest and content agree and that the metadata is JSON; `StoreRejected` otherwise.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(documents))
        await trio.lowlevel.checkpoint()
        return [self._prepare(document) for document in documents]

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds, one script for each. A tombstone removes.

        UNKNOWN for those whose answers did not come, or that the server did not take while it took others.

        Raises:
            InvalidValue: more documents than `traits.max_batch`, or one twice.
            StoreUnavailable: nothing was written.

        **If cancelled:** each document may have landed, or not; what lands later, because the server was held up, does
        so within the timeout, by the server's clock, and then never.
        """
        self._check_batch(len(writes))
        return await self._change(
            [Change(doc_id=one.prepared.document.doc_id, token=one.token, prepared=one.prepared) for one in writes]
        )

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """Take each document's key away where the expected token still holds.

        Raises:
            InvalidValue: more documents than `traits.max_batch`, or one twice.
            StoreUnavailable: nothing was removed.

        **If cancelled:** as `write`.
        """
        self._check_batch(len(removals))
        return await self._change([Change(doc_id=one.doc_id, token=one.token, prepared=None) for one in removals])

    def open_scan(self, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[ScanPage]]:
        """All entries with doc_id > `after`, in byte order, 1,000 to a page.

        **This is not one snapshot.** A server without an order or snapshots is gone over once, before the first page
        comes, and what it holds is spooled to a temporary file. Each entry is shown as it was at one moment in that
        time, and every entry that was there all the time is shown. One that is written or removed meanwhile is shown
        before or after, or not. A check looks twice at what seems wrong, and so is not misled.

        Raises:
            StoreUnavailable: the server cannot be asked now, or was lost meanwhile.

        **If cancelled:** nothing has changed, and the spool is let go.
        """
        return self._scanner.open(after)

    async def count(self) -> int:
        """How many entries there are. All keys of the database are gone over, which takes about a second per million.

        An estimate: what is written or removed meanwhile may be counted or not, and what the server moves, twice.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        return await self._scanner.count()

    async def aclose(self) -> None:
        """Close the connections; calls under way fail. Idempotent.

        **If cancelled:** the store is closed all the same.
        """
        self._connections.close()
        await trio.lowlevel.checkpoint()

    async def _open(self) -> None:
        """Be let in, and see that scripts may be run and keys read. **If cancelled:** nothing has changed."""
        replies = await self._connections.call(self._ledger.looks(["-"], content=False))
        self._connections.refuse_errors(replies)

    def _check_batch(self, size: int) -> None:
        if size > self._traits.max_batch:
            raise InvalidValue(
                "batch", f"names {size} documents; the {self._name} store takes {self._traits.max_batch}"
            )

    async def _look(self, doc_ids: Sequence[str], *, content: bool) -> list[Entry | StoreError | None]:
        self._check_batch(len(doc_ids))
        return await self._ledger.look(doc_ids, content=content)

    async def _change(self, changes: list[Change]) -> Sequence[WriteAnswer]:
        if len({change.doc_id for change in changes}) < len(changes):
            raise InvalidValue("batch", "names a document twice; one call writes each document once")
        return await self._ledger.change(changes)

    def _prepare(self, document: Document) -> Prepared | StoreError:
        if document.text is not None and len(document.text) > _LONGEST_TEXT:
            return StoreRejected(self._name, "its text is too long for a server's value of 512 MiB", document.doc_id)
        return prepare_document(self._name, self._content, document)


@asynccontextmanager
async def _opened(
    where: Endpoint,
    keys: Keys,
    form: Form,
    *,
    name: str,
    content: ContentDefinition,
    ttl: float | None,
    size: int,
    timeout: float,  # noqa: ASYNC109 - of each call, on the server's clock too
    connect_timeout: float,
    lasting: bool,
) -> AsyncGenerator[RedisCacheStore, None]:
    traits = StoreTraits(
        fence=Fence.STRONG,
        holds_text=True,
        keeps_tombstones=False,
        absent=AbsentMeans.MISSING,
        max_calls=size,
        max_batch=_MAX_BATCH,
        numbered=form.numbered,
    )
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        connections = Connections(name, where, nursery, size=size, connect_timeout=connect_timeout, timeout=timeout)
        ledger = Ledger(name, connections, form, keys, content, ttl=ttl, lasting=lasting)
        store = RedisCacheStore(name, where.where, connections, form, keys, content, traits, ledger)
        try:
            await store._open()
            yield store
        except BaseException as error:  # noqa: ASYNC103 - raised again below, not in a group of the nursery's
            failure = error
        finally:
            connections.close()
            nursery.cancel_scope.cancel()
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # the error's traceback would keep this frame, and this frame the error


def open_redis_cache(
    url: str,
    *,
    prefix: str | None = None,
    key: str | None = None,
    id_pattern: str | None = None,
    format: Literal["string", "json", "hash"] | None = None,  # noqa: A002 - as in the configuration
    fields: Mapping[str, Any] | None = None,
    content: ContentDefinition | None = None,
    ttl: float | None = None,
    username: str | None = None,
    password: str | None = None,
    tls: ssl.SSLContext | None = None,
    connections: int = 4,
    timeout: float = 5.0,
    connect_timeout: float = 5.0,
    name: str = "cache",
) -> AbstractAsyncContextManager[RedisCacheStore]:
    """Open a cache on a Redis or Valkey server, and close it on the way out.

    Args:
        url: redis://host:port/db, rediss:// for TLS, or unix:///path.
        prefix: what the keys begin with; the rest is the document id. The layout is this library's own.
        key: instead, the pattern of an application's keys, with {id} where the document id stands.
        id_pattern: with `key`, a regular expression for ids; keys with other ids are no documents, and left alone.
        format: with `key`, what they hold: the text, a JSON object or a hash.
        fields: with "json" or "hash", the names of the fields `text`, `metadata`, `version`, `updated_at` and `digest`;
            and `write_digest`, True to add a digest where there is none.
        content: what a document's digest covers; None: the text alone.
        ttl: seconds after which an entry that is written now expires. None: never, or, with `key`, when the entry that
            it replaces would have.
        username: None: "default", if there is a password.
        password: if the server wants one.
        tls: how to speak TLS with rediss://; None: as Python does by default, with the certificates of the system.
        connections: the most that are open, and calls that are under way, at once.
        timeout: seconds for a call; a write that the server reads later is not made.
        connect_timeout: seconds to be let in.
        name: the store's name in errors.

    Raises (at once, or on entering):
        InvalidValue: an argument is not usable.
        StoreUnavailable: the server cannot be reached, or does not let this user in, or not do what is needed.

    **If cancelled:** the connections are closed.
    """
    definition = ContentDefinition() if content is None else content
    where = endpoint(url, username=username, password=password, tls=tls)
    if fields is not None:
        refuse_unknown(fields, FIELD_SETTINGS, under="fields.")
    keys, form = keys_and_form(definition, prefix=prefix, key=key, id_pattern=id_pattern, format=format, fields=fields)
    return _opened(
        where,
        keys,
        form,
        name=name,
        content=definition,
        ttl=seconds_setting({"ttl": ttl}, "ttl"),
        size=connections_setting(connections),
        timeout=check_seconds("timeout", timeout),
        connect_timeout=check_seconds("connect_timeout", connect_timeout),
        lasting=key is None,
    )


_SETTINGS: Final = (
    *("url", "username", "password", "tls_ca", "tls_certificate", "tls_key", "prefix", "key", "id_pattern", "format"),
    *FIELD_SETTINGS,
    *("ttl", "connections", "timeout", "connect_timeout"),
)


def redis_cache_from_settings(
    settings: Mapping[str, Any],
    *,
    name: str,
    directory: Path,
    content: ContentDefinition,
    create: bool,  # noqa: ARG001 - there is nothing to create
) -> AbstractAsyncContextManager[RedisCacheStore]:
    """The kind "redis-cache" of a configuration file; its settings are in docs/redis.md.

    Raises:
        InvalidValue: a setting is unknown, missing or wrong; its key is named.
    """
    refuse_unknown(settings, _SETTINGS)
    options = {
        option: settings[option]
        for option in ("prefix", "key", "id_pattern", "format", "ttl", "username", "password")
        if option in settings
    }
    options |= {one: settings[one] for one in ("connections", "timeout", "connect_timeout") if one in settings}
    fields = {field: settings[field] for field in FIELD_SETTINGS if field in settings}
    return open_redis_cache(
        settings.get("url"),  # type: ignore[arg-type] # looked at there, as everything is
        **options,
        fields=fields or None,
        content=content,
        tls=tls_context(settings, directory),
        name=name,
    )
