"""What is promised about traits, what they allow, and closing."""

from __future__ import annotations

import datetime as dt
from typing import Final

from trio_repair import Document, Presence, Removal, StoreUnavailable, Write

from ._subject import Promise, Subject, broken, promise, require

TRAITS: Final[list[Promise]] = []


@promise(TRAITS, "full-batches", "One call may name max_batch documents.")
async def _full_batches(subject: Subject) -> None:
    # No store is asked for more than a thousand, whatever it says: it is the same code from there on.
    size = min(subject.traits.max_batch, 1000)
    documents = [subject.document(f"document {index:04}", f"text {index}") for index in range(size)]
    await subject.put(*documents)
    await subject.require_held(*documents)
    seen = await subject.observe(*(document.doc_id for document in documents))
    await subject.remove(
        *(Removal(doc_id=document.doc_id, token=one.token) for document, one in zip(documents, seen, strict=True))
    )
    require(not await subject.scan(), "documents are left after all were removed")


@promise(TRAITS, "max-calls-at-once", "max_calls calls may be under way at once.")
async def _max_calls_at_once(subject: Subject) -> None:
    # More than a store is likely to take if its author never tried; fewer that take turns are tried all the same.
    calls = max(32, min(subject.traits.max_calls, 128))
    documents = [subject.document(f"document {index}", f"text {index}") for index in range(calls)]

    async def write_and_read(document: Document) -> None:
        await subject.put(document)
        await subject.require_held(document)

    await subject.together([lambda document=document: write_and_read(document) for document in documents])  # type: ignore[misc]
    await subject.require_held(*documents)


@promise(
    TRAITS,
    "embedding-told",
    "A live copy shows the embedding identity in the traits; a tombstone, or no vectors, none.",
)
async def _embedding_told(subject: Subject) -> None:
    (landed,) = await subject.put(subject.document("a", "text"))
    wanted = subject.traits.embedding
    for source, one in (
        ("write", landed),
        ("observe", await subject.look("a")),
        ("scan", dict(await subject.scan())["a"]),
    ):
        require(one.embedding == wanted, f"{source} shows {one.embedding}, and the traits say {wanted}")
    (deleted,) = await subject.put(Document.tombstone("a", number=2))
    require(deleted.embedding is None, "a deleted document shows an embedding")


@promise(TRAITS, "traits-constant", "The traits do not change while the store is open.")
async def _traits_constant(subject: Subject) -> None:
    await subject.put(subject.document("a", "text"))
    await subject.put(Document.tombstone("a", number=2))
    require(subject.traits == subject.store.traits, f"they were {subject.traits} and are {subject.store.traits}")


@promise(
    TRAITS,
    "closed-for-good",
    "Once closed, every call but prepare raises StoreUnavailable; closing a store once more does nothing.",
)
async def _closed_for_good(subject: Subject) -> None:
    (seen,) = await subject.put(subject.document("a", "text"))
    (prepared,) = await subject.prepare(subject.document("a", "too late", number=2))
    store = subject.store
    await store.aclose()
    await store.aclose()
    for name, act in (
        ("observe", lambda: store.observe(["a"])),
        ("read", lambda: store.read(["a"])),
        ("write", lambda: store.write([Write(prepared=prepared, token=seen.token)])),
        ("remove", lambda: store.remove([Removal(doc_id="a", token=seen.token)])),
        ("count", store.count),
        ("a scan", subject.scan),
    ):
        try:
            await act()
        except StoreUnavailable:
            continue
        broken(f"{name} of a closed store did not raise")


@promise(TRAITS, "tombstones", "A tombstone is kept and shown, or, if the traits say so, the document is forgotten.")
async def _tombstones(subject: Subject) -> None:
    live = subject.document("a", "text", number=3)
    (first,) = await subject.put(live)
    moment = dt.datetime(2024, 1, 2, 3, 4, 5, 678, tzinfo=dt.timezone.utc)
    grave = Document.tombstone("a", number=4, updated_at=moment)
    # One over a live document, one over nothing, one that has no number.
    graves = [grave, Document.tombstone("b", number=0), Document.tombstone("c", number=None)]
    landed = await subject.put(*graves)
    require(landed == await subject.observe("a", "b", "c"), "the answer to a delete is not what observe shows next")
    require(landed[0].token != first.token, "a deleted document shows the token that it had while it lived")
    scanned = [doc_id for doc_id, _ in await subject.scan()]
    if subject.traits.keeps_tombstones:
        await subject.require_held(*graves)
        require(scanned == ["a", "b", "c"], f"a scan of three tombstones gave {scanned}")
        version = landed[0].version
        require(version is not None and version.updated_at == moment, "the tombstone lost its updated_at")
    else:
        for one in landed:
            require(
                one.presence is Presence.ABSENT, f"keeps_tombstones is False, and a deleted document is {one.presence}"
            )
        require(not scanned, f"keeps_tombstones is False, and a scan shows deleted documents: {scanned}")
    (held,) = await subject.read("a")
    require(held.document is None or held.document.text is None, "the text of a deleted document can be read")
    again = subject.document("a", "alive again", number=5)
    await subject.put(again)
    await subject.require_held(again)
