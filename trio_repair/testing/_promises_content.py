"""What is promised about answers and content."""

from __future__ import annotations

import datetime as dt
from typing import Final

import attrs

from trio_repair import (
    Document,
    Prepared,
    Presence,
    Removal,
    StoreError,
    StoreRejected,
    Write,
    WriteStatus,
)
from trio_repair.abc import Store

from ._samples import HOSTILE_IDS, METADATA, ODD_TEXTS, TEXTS
from ._subject import Promise, Subject, broken, promise, require

CONTENT: Final[list[Promise]] = []


@promise(
    CONTENT, "empty-at-first", "The factory gives an empty store, and an empty store scans as empty and holds nothing."
)
async def _empty_at_first(subject: Subject) -> None:
    require(isinstance(subject.store, Store), "methods of trio_repair.abc.Store are missing")
    entries = await subject.scan()
    require(not entries, f"a scan of a new store gave {len(entries)} documents")
    total = await subject.store.count()
    require(isinstance(total, int) and total >= 0, f"count gave {total!r}")
    require((await subject.look("a")).presence is Presence.ABSENT, "a new store holds a document")


@promise(CONTENT, "one-answer-each", "Each call gives exactly one answer of the right type for each document named.")
async def _one_answer_each(subject: Subject) -> None:
    documents = [subject.document(doc_id, doc_id) for doc_id in "abc"]
    await subject.put(*documents)
    await subject.read_raw(["c", "missing", "a"])
    seen = await subject.observe("a", "missing", "c")
    await subject.remove(
        Removal(doc_id="a", token=seen[0].token),
        Removal(doc_id="missing", token=seen[1].token),
        Removal(doc_id="c", token="no such token"),  # noqa: S106 - a fence token
    )


@promise(CONTENT, "verdicts-explained", "LANDED and REFUSED show what is held; REJECTED and UNKNOWN carry an error.")
async def _verdicts_explained(subject: Subject) -> None:
    await subject.put(subject.document("a", "text"))
    await subject.put_over(subject.document("a", "other", number=2), "no such token")
    await subject.remove(Removal(doc_id="a", token="no such token"))  # noqa: S106 - a fence token


@promise(CONTENT, "answers-in-order", "The answers stand in the order in which the documents were named.")
async def _answers_in_order(subject: Subject) -> None:
    ids = ["m", "z", "a", "k", "b"]
    numbers = {doc_id: index + 1 for index, doc_id in enumerate(ids)}
    documents = [subject.document(doc_id, f"text of {doc_id}", number=numbers[doc_id]) for doc_id in ids]
    prepared = await subject.prepare(*documents)
    require(ids == [one.document.doc_id for one in prepared], "prepare answered in another order")
    landed = await subject.put(*documents)
    require(
        list(numbers.values()) == [one.version.number if one.version else None for one in landed],
        "write answered in another order",
    )
    for asked in (ids, sorted(ids), sorted(ids, reverse=True), ["missing", *ids, "also missing"]):
        wanted = [numbers.get(doc_id) for doc_id in asked]
        seen = [one.version.number if one.version else None for one in await subject.observe(*asked)]
        require(wanted == seen, f"observe of {asked} gave the versions {seen}")
        if subject.traits.holds_text:
            read = [one.document.doc_id if one.document else None for one in await subject.read(*asked)]
            require(read == [doc_id if doc_id in numbers else None for doc_id in asked], f"read of {asked} gave {read}")
    tokens = {doc_id: one.token for doc_id, one in zip(ids, await subject.observe(*ids), strict=True)}
    tokens["z"] = "no such token"
    answers = await subject.remove(*(Removal(doc_id=doc_id, token=tokens[doc_id]) for doc_id in ids))
    verdicts = [answer.status is WriteStatus.LANDED for answer in answers]
    require(verdicts == [True, False, True, True, True], f"remove answered in another order: {verdicts}")


@promise(CONTENT, "absent-is-absent", "A document that is not held is ABSENT, reads as None, and both show one token.")
async def _absent_is_absent(subject: Subject) -> None:
    await subject.put(subject.document("a", "text"))
    seen = await subject.look("b")
    require(seen.presence is Presence.ABSENT, f"a document never written is {seen.presence}")
    (held,) = await subject.read("b")
    require(held.document is None, "read of a document never written gave one")
    require(held.token == seen.token, "read and observe of an absent document show different tokens")


@promise(
    CONTENT, "write-is-seen", "What a landed write answers is what observe shows next, and it is what was written."
)
async def _write_is_seen(subject: Subject) -> None:
    for document in (
        subject.document("a", "first"),
        subject.document("a", "second", number=2),
        subject.document("a", "back to a lower number", number=1),
    ):
        (landed,) = await subject.put(document)
        require(landed == await subject.look("a"), "the answer to a write is not what observe shows next")
        await subject.require_held(document)


@promise(CONTENT, "content-round-trip", "Text and metadata that prepare accepts come back exactly.")
async def _content_round_trip(subject: Subject) -> None:
    documents = [subject.document(f"text {name}", text) for name, text in TEXTS.items()]
    documents += [
        subject.document(f"metadata {name}", "text", metadata=metadata) for name, metadata in METADATA.items()
    ]
    await subject.put(*documents)
    await subject.require_held(*documents)
    # Not every database takes these; one that does must give them back.
    for index, text in enumerate(ODD_TEXTS):
        document = subject.document(f"odd {index}", text)
        (answer,) = await subject.prepare_raw([document])
        if isinstance(answer, Prepared):
            await subject.put(document)
            await subject.require_held(document)


@promise(CONTENT, "version-round-trip", "Number, digest and updated_at come back exactly, in observe, read and scan.")
async def _version_round_trip(subject: Subject) -> None:
    moments = (
        None,
        dt.datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=dt.timezone.utc),
        dt.datetime(1999, 12, 31, 23, 0, tzinfo=dt.timezone(dt.timedelta(hours=-5, minutes=-30))),
    )
    documents = [
        subject.document(f"number {number}, moment {index}", "text", number=number, updated_at=moment)
        for number in (None, 0, 1, 2**53 - 1)
        for index, moment in enumerate(moments)
    ]
    await subject.put(*documents)
    await subject.require_held(*documents)
    scanned = dict(await subject.scan())
    for document in documents:
        wanted = document.version.updated_at
        seen = await subject.look(document.doc_id)
        for source, version in (("observe", seen.version), ("scan", scanned[document.doc_id].version)):
            if version is None or version.updated_at != wanted:
                broken(f"{source} gave updated_at {version and version.updated_at}, not {wanted}")
        if subject.traits.holds_text:
            (held,) = await subject.read(document.doc_id)
            if held.document is None or held.document.version.updated_at != wanted:
                broken(f"read gave another updated_at than {wanted}")


@promise(CONTENT, "replaced-whole", "A document is replaced as a whole: nothing of the one before is left.")
async def _replaced_whole(subject: Subject) -> None:
    long = " ".join(f"old{index}" for index in range(4_000))
    rich = {"kept": 1, "dropped": [1, 2, 3]}
    steps = [
        subject.document("a", long, number=1, metadata=rich),
        subject.document("a", "short", number=2, metadata={"kept": 2}),
        subject.document("a", long[::-1], number=3),
        subject.document("a", "", number=4),
    ]
    for step in steps:
        await subject.put(step)
        await subject.require_held(step)
    await subject.put(steps[0])
    await subject.take_away("a")
    await subject.put(steps[1])
    await subject.require_held(steps[1])


@promise(CONTENT, "prepare-proves-digest", "prepare rejects a document whose digest is not that of its content.")
async def _prepare_proves_digest(subject: Subject) -> None:
    true = subject.document("a", "the text that was meant")
    false = attrs.evolve(true, text="another text")
    (answer,) = await subject.prepare_raw([false])
    require(isinstance(answer, StoreRejected), f"a false digest was answered with {type(answer).__name__}")


@promise(
    CONTENT,
    "one-poison-alone",
    "A document that is rejected fails alone, is named by its error, and its text is not shown.",
)
async def _one_poison_alone(subject: Subject) -> None:
    secret = "marker-that-must-not-be-shown"  # noqa: S105 - stands for document text
    good = [subject.document(doc_id, f"text of {doc_id}") for doc_id in "abd"]
    poison = attrs.evolve(subject.document("c", "something else"), text=secret)
    answers = await subject.prepare_raw([*good[:2], poison, good[2]])
    error = answers.pop(2)
    for one in answers:
        require(isinstance(one, Prepared), f"beside a rejected document, a good one got {type(one).__name__}")
    if not isinstance(error, StoreError):
        broken("the poison was not refused by prepare")
    require(error.doc_id == "c", f"the error of document 'c' names {error.doc_id!r}")
    require(secret not in f"{error}{error!r}", "the error shows the text of the document")
    require(secret not in f"{error.__cause__!r}", "the error's cause shows the text of the document")


@promise(CONTENT, "prepare-has-no-effect", "observe, read and prepare change nothing.")
async def _prepare_has_no_effect(subject: Subject) -> None:
    held = subject.document("a", "held")
    await subject.put(held)
    before = await subject.scan()
    total = await subject.store.count()
    for _ in range(2):
        await subject.prepare(
            subject.document("a", "never written", number=2),
            subject.document("b", "never written"),
            Document.tombstone("c", number=5),
        )
        await subject.observe("a", "b", "c")
        await subject.read_raw(["a", "b", "c"])
    require(before == await subject.scan(), "a scan shows something else after calls that may have no effect")
    require(total == await subject.store.count(), "count changed by calls that may have no effect")
    await subject.require_held(held)


@promise(
    CONTENT,
    "hostile-ids",
    "Every id that the model accepts is an id like any other, and touches only its own document.",
)
async def _hostile_ids(subject: Subject) -> None:
    documents = {doc_id: subject.document(doc_id, f"document {index}") for index, doc_id in enumerate(HOSTILE_IDS)}
    await subject.put(*documents.values())
    await subject.require_held(*documents.values())
    seen = dict(zip(HOSTILE_IDS, await subject.observe(*HOSTILE_IDS), strict=True))
    for index, doc_id in enumerate(HOSTILE_IDS):
        (seen[doc_id],) = await subject.put(subject.document(doc_id, f"rewritten {index}", number=2))
        require(list(seen.values()) == await subject.observe(*seen), f"writing {doc_id!r} touched another document")
        del seen[doc_id]
        await subject.take_away(doc_id)
        require(list(seen.values()) == await subject.observe(*seen), f"removing {doc_id!r} touched another document")
        require([one for one, _ in await subject.scan()] == sorted(seen), f"without {doc_id!r}, a scan shows other ids")


@promise(CONTENT, "empty-batches", "A call that names no documents gives no answers, and no error.")
async def _empty_batches(subject: Subject) -> None:
    require(not await subject.observe_raw([]), "observe")
    require(not await subject.read_raw([]), "read")
    require(not await subject.prepare_raw([]), "prepare")
    require(not await subject.write(), "write")
    require(not await subject.remove(), "remove")


@promise(CONTENT, "full-batches", "One call may name max_batch documents.")
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


@promise(CONTENT, "max-calls-at-once", "max_calls calls may be under way at once.")
async def _max_calls_at_once(subject: Subject) -> None:
    documents = [subject.document(f"document {index}", f"text {index}") for index in range(32)]

    async def write_and_read(document: Document) -> None:
        await subject.put(document)
        await subject.require_held(document)

    await subject.together([lambda document=document: write_and_read(document) for document in documents])  # type: ignore[misc]
    await subject.require_held(*documents)


@promise(
    CONTENT,
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


@promise(CONTENT, "traits-constant", "The traits do not change while the store is open.")
async def _traits_constant(subject: Subject) -> None:
    await subject.put(subject.document("a", "text"))
    await subject.put(Document.tombstone("a", number=2))
    require(subject.traits == subject.store.traits, f"they were {subject.traits} and are {subject.store.traits}")


@promise(CONTENT, "closed-twice", "Closing a closed store does nothing.")
async def _closed_twice(subject: Subject) -> None:
    await subject.put(subject.document("a", "text"))
    await subject.store.aclose()
    await subject.store.aclose()


@promise(CONTENT, "tombstones", "A tombstone is kept and shown, or, if the traits say so, the document is forgotten.")
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


@promise(
    CONTENT, "removed-without-trace", "remove takes live documents and tombstones away; absence removed stays absence."
)
async def _removed_without_trace(subject: Subject) -> None:
    stays = subject.document("stays", "text")
    await subject.put(stays, subject.document("live", "text"), Document.tombstone("dead", number=7))
    for doc_id in ("live", "dead", "never"):
        left = await subject.take_away(doc_id)
        require(left.presence is Presence.ABSENT, f"a {doc_id} document that was removed is {left.presence}")
        require(left == await subject.look(doc_id), "the answer to a removal is not what observe shows next")
    (held,) = await subject.read("live")
    require(held.document is None, "a document that was removed can be read")
    await subject.require_held(stays)
    require([doc_id for doc_id, _ in await subject.scan()] == ["stays"], "a scan shows documents that were removed")


@promise(CONTENT, "write-what-was-prepared", "A prepared document can be written later, and more than once.")
async def _write_what_was_prepared(subject: Subject) -> None:
    first, second = subject.document("a", "first"), subject.document("a", "second", number=2)
    prepared = await subject.prepare(first, second)
    for index in (0, 1, 0):
        seen = await subject.look("a")
        (answer,) = await subject.write(Write(prepared=prepared[index], token=seen.token))
        require(answer.status is WriteStatus.LANDED, f"it was {answer.status}")
        await subject.require_held((first, second)[index])
