"""Documents in and out of one store, as the application that owns them does it: no engine, no other store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from trio_repair import (
    Document,
    Observation,
    Presence,
    Removal,
    StoreError,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.abc import Store

T = TypeVar("T")


def _batches(store: Store, items: Sequence[T]) -> Iterator[Sequence[T]]:
    size = store.traits.max_batch
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _sound(answers: Sequence[T | StoreError]) -> list[T]:
    """The answers, none of which is an error."""
    for answer in answers:
        if isinstance(answer, StoreError):
            raise answer
    return [answer for answer in answers if not isinstance(answer, StoreError)]


def _all_landed(role: str, doc_ids: Sequence[str], answers: Sequence[WriteAnswer]) -> None:
    for doc_id, answer in zip(doc_ids, answers, strict=True):
        if answer.error is not None:
            raise answer.error
        if answer.status is not WriteStatus.LANDED:
            raise StoreUnavailable(role, "somebody else writes to this store; leave it to the demo", doc_id)


async def _tokens(store: Store, doc_ids: Sequence[str]) -> list[str]:
    views: list[Observation] = _sound(await store.observe(doc_ids))
    return [view.token for view in views]


async def write_documents(store: Store, documents: Sequence[Document], *, role: str) -> None:
    """Write documents or tombstones over whatever the store holds of them.

    Args:
        store: where to.
        documents: at most one for each doc_id.
        role: the store's name in errors.

    Raises:
        StoreError: a document was not written; those of earlier batches were.

    **If cancelled:** some documents may be written, each of them whole.
    """
    for batch in _batches(store, documents):
        doc_ids = [document.doc_id for document in batch]
        tokens = await _tokens(store, doc_ids)
        prepared = _sound(await store.prepare(batch))
        writes = [Write(prepared=ready, token=token) for ready, token in zip(prepared, tokens, strict=True)]
        _all_landed(role, doc_ids, await store.write(writes))


async def remove_documents(store: Store, doc_ids: Sequence[str], *, role: str) -> None:
    """Take documents out without a trace, as a hand-written DELETE does.

    Raises:
        StoreError: a document was not removed; those of earlier batches were.

    **If cancelled:** some documents may be removed, each of them whole.
    """
    for batch in _batches(store, doc_ids):
        tokens = await _tokens(store, batch)
        removals = [Removal(doc_id=doc_id, token=token) for doc_id, token in zip(batch, tokens, strict=True)]
        _all_landed(role, batch, await store.remove(removals))


async def read_documents(store: Store, doc_ids: Sequence[str], *, role: str) -> list[Document]:
    """Read documents that the store holds, in the order asked.

    Raises:
        StoreError: one is not there or cannot be read.

    **If cancelled:** nothing has changed.
    """
    found: list[Document] = []
    for batch in _batches(store, doc_ids):
        for doc_id, stored in zip(batch, _sound(await store.read(batch)), strict=True):
            if stored.document is None:
                raise StoreUnavailable(role, "the document has gone; leave the directory to the demo", doc_id)
            found.append(stored.document)
    return found


async def live_ids(store: Store) -> list[str]:
    """The ids of all live documents, ascending.

    Raises:
        StoreError: the store cannot be read.

    **If cancelled:** nothing has changed.
    """
    found: list[str] = []
    async with store.open_scan() as pages:
        async for page in pages:
            found.extend(doc_id for doc_id, view in page if view.presence is Presence.LIVE)
    return found
