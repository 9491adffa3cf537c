"""What is promised about answers and content."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
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
    documents = [subject.document(doc_id, f"text of {doc_id}", number=index) for index, doc_id in enumerate(ids, 1)]
    prepared = await subject.prepare(*documents)
    require(ids == [one.document.doc_id for one in prepared], "prepare answered in another order")
    landed = await subject.put(*documents)
    digests = {document.doc_id: document.version.digest for document in documents}
    require(
        list(digests.values()) == [one.version.digest if one.version else None for one in landed],
        "write answered in another order",
    )
    for asked in (ids, sorted(ids), sorted(ids, reverse=True), ["missing", *ids, "also missing"]):
        wanted = [digests.get(doc_id) for doc_id in asked]
        seen = [one.version.digest if one.version else None for one in await subject.observe(*asked)]
        require(wanted == seen, f"observe of {asked} gave the versions {seen}")
        if subject.traits.holds_text:
            read = [one.document.doc_id if one.document else None for one in await subject.read(*asked)]
            require(read == [doc_id if doc_id in digests else None for doc_id in asked], f"read of {asked} gave {read}")
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
        subject.document("a", "up to the highest number", number=2**53 - 1),
        subject.document("a", "down to the lowest number", number=0),
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


@promise(
    CONTENT,
    "replaced-whole",
    "A document is replaced as a whole: nothing of the one before is left, whatever came in between.",
)
async def _replaced_whole(subject: Subject) -> None:
    long = " ".join(f"old{index}" for index in range(4_000))
    rich = {"kept": 1, "dropped": [1, 2, 3]}
    first = subject.document("a", long, number=1, metadata=rich)
    short = subject.document("a", "short", number=2, metadata={"kept": 2})
    for step in (first, short, subject.document("a", long[::-1], number=3), subject.document("a", "", number=4)):
        await subject.put(step)
        await subject.require_held(step)
    # Rows that are replaced, deleted and removed go by three ways, and by others again in batches.
    for between in (("removal",), ("tombstone",), ("tombstone", "tombstone"), ("tombstone", "removal")):
        for ids in ("a", "abc"):
            await subject.put(*(attrs.evolve(first, doc_id=doc_id) for doc_id in ids))
            for way in between:
                await (_bury(subject, ids) if way == "tombstone" else _take_away(subject, ids))
            again = [attrs.evolve(short, doc_id=doc_id) for doc_id in ids]
            await subject.put(*again)
            await subject.require_held(*again)
    # In one call, some become longer, some shorter, and some stay as long as they were; then the other way round.
    sizes = {"a": long, "b": "short", "c": long, "d": "short"}
    for number, turned in enumerate((False, True, False), 10):
        texts = dict(zip(sizes, reversed(sizes.values()), strict=True)) if turned else sizes
        mixed = [subject.document(doc_id, text, number=number) for doc_id, text in texts.items()]
        mixed.append(subject.document("e", long, number=number))
        await subject.put(*mixed)
        await subject.require_held(*mixed)


async def _bury(subject: Subject, ids: str) -> None:
    await subject.put(*(Document.tombstone(doc_id, number=2) for doc_id in ids))


async def _take_away(subject: Subject, ids: str) -> None:
    seen = await subject.observe(*ids)
    await subject.remove(*(Removal(doc_id=doc_id, token=one.token) for doc_id, one in zip(ids, seen, strict=True)))


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
    for place, shown in _show(error):
        require(secret not in shown, f"{place} shows the text of the document")


def _show(error: BaseException) -> Iterator[tuple[str, str]]:
    """What a traceback in a log shows of an error: itself, its notes, and the same of all that it came from."""
    seen: set[int] = set()
    waiting: list[tuple[str, BaseException | None]] = [("the error", error)]
    while waiting:
        place, one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield place, f"{one}{one!r}"
        yield f"a note on {place}", "".join(map(str, getattr(one, "__notes__", ())))
        origin = "what the error came from"
        waiting += [(origin, one.__cause__), (origin, None if one.__suppress_context__ else one.__context__)]
        if isinstance(one, BaseExceptionGroup):
            waiting += [(origin, part) for part in one.exceptions]


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
