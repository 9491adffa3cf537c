"""A store's calls in one line, for the tests of every store."""

from __future__ import annotations

from trio_repair import Document, Observation, Prepared, Removal, StoredDocument, Write, WriteAnswer, WriteStatus
from trio_repair.abc import Store


async def look(store: Store, doc_id: str) -> Observation:
    (seen,) = await store.observe([doc_id])
    assert isinstance(seen, Observation), seen
    return seen


async def writes_over(store: Store, *documents: Document) -> list[Write]:
    """Writes on the tokens that hold."""
    seen = await store.observe([document.doc_id for document in documents])
    writes = []
    for view, prepared in zip(seen, await store.prepare(documents), strict=True):
        assert isinstance(view, Observation), view
        assert isinstance(prepared, Prepared), prepared
        writes.append(Write(prepared=prepared, token=view.token))
    return writes


async def write(store: Store, *documents: Document) -> list[WriteAnswer]:
    """Write over whatever is held; what the store answers."""
    return list(await store.write(await writes_over(store, *documents)))


async def put(store: Store, *documents: Document) -> list[Observation]:
    """Write over whatever is held; it must land."""
    answers = await write(store, *documents)
    assert all(answer.status is WriteStatus.LANDED for answer in answers), answers
    views = [answer.observation for answer in answers if answer.observation is not None]
    assert len(documents) == len(views)
    return views


async def take_away(store: Store, doc_id: str) -> None:
    (answer,) = await store.remove([Removal(doc_id=doc_id, token=(await look(store, doc_id)).token)])
    assert answer.status is WriteStatus.LANDED


async def scan(store: Store, after: str | None = None) -> list[tuple[str, Observation]]:
    async with store.open_scan(after) as pages:
        return [entry async for page in pages for entry in page]


async def text_of(store: Store, doc_id: str) -> str | None:
    (answer,) = await store.read([doc_id])
    assert isinstance(answer, StoredDocument), answer
    return None if answer.document is None else answer.document.text
