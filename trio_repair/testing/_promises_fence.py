"""What is promised about tokens and the fence, one act after the other."""

from __future__ import annotations

from typing import Final

import trio

from trio_repair import (
    Document,
    Presence,
    Removal,
    Write,
    WriteAnswer,
    WriteStatus,
)

from ._promises_presences import ACTS, attempt, hold_every_presence, outcome_of, stale_tokens
from ._subject import Promise, Subject, broken, promise, require

FENCE: Final[list[Promise]] = []

_WRITES: Final = 260
"""More than a byte can count."""
_PATIENCE: Final = 5.0
"""Seconds after which a slow store is asked for no more of them."""


@promise(FENCE, "token-moves", "Every landed write gives the document a token that it never had before.")
async def _token_moves(subject: Subject) -> None:
    seen = {(await subject.look("a")).token}
    steps = (
        subject.document("a", "one", number=1),
        subject.document("a", "two", number=2),
        subject.document("a", "two", number=3),
        subject.document("a", "two", number=3, metadata={"changed": True}),
        subject.document("a", "one", number=1),
        subject.document("a", "one", number=1),
        Document.tombstone("a", number=4),
        subject.document("a", "one", number=1),
    )
    for index, step in enumerate(steps, 1):
        (landed,) = await subject.put(step)
        if landed.presence is Presence.ABSENT:
            continue  # deleted by a store that keeps no tombstones: absence has no history
        require(landed.token not in seen, f"write {index} of {len(steps)} gave a token that was there before")
        seen.add(landed.token)
    await _count_on(subject, seen)


async def _count_on(subject: Subject, seen: set[str]) -> None:
    """A counter that is too small starts again: write so often that one of a byte does."""
    (prepared,) = await subject.prepare(subject.document("a", "one", number=1))
    first = token = (await subject.look("a")).token
    deadline = trio.current_time() + _PATIENCE
    for number in range(1, _WRITES + 1):
        (answer,) = await subject.write(Write(prepared=prepared, token=token))
        if answer.status is not WriteStatus.LANDED or answer.observation is None:
            broken(f"of many writes, each on the token that the one before gave, number {number} was {answer.status}")
        token = answer.observation.token
        require(token not in seen, f"of many writes, number {number} gave a token that was there before")
        seen.add(token)
        if trio.current_time() > deadline:
            break
    (answer,) = await subject.write(Write(prepared=prepared, token=first))
    require(answer.status is WriteStatus.REFUSED, f"on the token from before many writes, one was {answer.status}")


@promise(FENCE, "token-stable", "Looking, refused writes, and writes of other documents leave a token as it is.")
async def _token_stable(subject: Subject) -> None:
    await subject.put(subject.document("a", "text"), subject.document("b", "text"))
    before = await subject.observe("a", "missing")
    await subject.put(subject.document("b", "changed", number=2), subject.document("c", "new"))
    await subject.take_away("c")
    await subject.put(Document.tombstone("b", number=3))
    for doc_id in ("a", "missing"):
        await subject.put_over(subject.document(doc_id, "refused", number=9), "no such token")
    await subject.read_raw(["a", "missing"])
    require(before == await subject.observe("a", "missing"), "observe shows another state of a document left alone")
    scanned = dict(await subject.scan())
    require(scanned.get("a") == before[0], "scan and observe show different states of one document")


@promise(FENCE, "stale-refused", "A write or removal on a token that no longer holds is REFUSED and changes nothing.")
async def _stale_refused(subject: Subject) -> None:
    (first,) = await subject.put(subject.document("a", "first"))
    held = subject.document("a", "second", number=2)
    (second,) = await subject.put(held)
    absent = (await subject.look("missing")).token
    for token in (first.token, absent, "no such token", ""):
        for name, act in (
            ("write", lambda token=token: subject.put_over(subject.document("a", "stale", number=9), token)),
            ("delete", lambda token=token: subject.put_over(Document.tombstone("a", number=9), token)),
            ("removal", lambda token=token: _remove(subject, "a", token)),
        ):
            answer: WriteAnswer = await act()  # type: ignore[no-untyped-call]
            require(answer.status is WriteStatus.REFUSED, f"a {name} on a token that does not hold was {answer.status}")
            require(answer.observation == second, f"a refused {name} does not show what is held")
            require(await subject.look("a") == second, f"a refused {name} changed what observe shows")
    await subject.require_held(held)
    answer = await subject.put_over(subject.document("missing", "created"), second.token)
    require(answer.status is WriteStatus.REFUSED, f"a write over nothing, on another's token, was {answer.status}")
    require((await subject.look("missing")).presence is Presence.ABSENT, "a refused write created a document")


@promise(FENCE, "refused-alone", "In one call, the writes on tokens that hold land, and only the others are refused.")
async def _refused_alone(subject: Subject) -> None:
    old = {doc_id: subject.document(doc_id, "old") for doc_id in "abcd"}
    await subject.put(*old.values())
    new = {doc_id: subject.document(doc_id, f"new {doc_id}", number=2) for doc_id in "abcd"}
    tokens = {doc_id: one.token for doc_id, one in zip("abcd", await subject.observe(*"abcd"), strict=True)}
    tokens["c"] = "no such token"
    prepared = await subject.prepare(*new.values())
    answers = await subject.write(*(Write(prepared=one, token=tokens[one.document.doc_id]) for one in prepared))
    landed = [answer.status is WriteStatus.LANDED for answer in answers]
    require(landed == [True, True, False, True], f"with the third token stale, LANDED was {landed}")
    await subject.require_held(new["a"], new["b"], old["c"], new["d"])


@promise(
    FENCE, "fence-everywhere", "The fence is asked whatever is held and whatever is to be done to it, in batches too."
)
async def _fence_everywhere(subject: Subject) -> None:
    held = await hold_every_presence(subject, "all stale")
    ids = list(held)
    before = await subject.observe(*ids)
    stale = {doc_id: await stale_tokens(subject, held[doc_id], seen) for doc_id, seen in zip(ids, before, strict=True)}
    for act in ACTS:
        for turn in range(max(map(len, stale.values()))):
            tokens = {doc_id: every[turn % len(every)] for doc_id, every in stale.items()}
            alone = [{doc_id: token} for doc_id, token in tokens.items()]
            for batch in (*alone, tokens):
                answers = await attempt(subject, act, batch)
                for doc_id, answer in zip(batch, answers, strict=True):
                    where = f"a {act} on a stale token, over {doc_id} in a call of {len(batch)},"
                    require(answer.status is WriteStatus.REFUSED, f"{where} was {answer.status}")
                    require(answer.observation == before[ids.index(doc_id)], f"{where} does not show what is held")
                require(before == await subject.observe(*ids), f"a {act} that was refused changed what is held")
        await subject.require_held(*(one.document for one in held.values() if one.document is not None))


@promise(FENCE, "answers-are-true", "What LANDED in a call is held after it, and what was REFUSED in it is as before.")
async def _answers_are_true(subject: Subject) -> None:
    for act in ACTS:
        for odd in (0, 1):
            held = await hold_every_presence(subject, f"{act} {odd}")
            ids = list(held)
            before = await subject.observe(*ids)
            stale = set(ids[odd::2])
            tokens = {
                doc_id: "no such token" if doc_id in stale else seen.token
                for doc_id, seen in zip(ids, before, strict=True)
            }
            answers = await attempt(subject, act, tokens)
            after = await subject.observe(*ids)
            for doc_id, was, answer, now in zip(ids, before, answers, after, strict=True):
                wanted = WriteStatus.REFUSED if doc_id in stale else WriteStatus.LANDED
                name = f"a {act} of {doc_id} in a call of {len(ids)}"
                require(answer.status is wanted, f"{name} was {answer.status}, not {wanted}")
                require(answer.observation == now, f"{name} does not show what is held afterwards")
                require(doc_id not in stale or was == now, f"{name} was refused and changed what is held")
            untouched = (one.document for doc_id, one in held.items() if doc_id in stale)
            written = [outcome_of(subject, act, doc_id) for doc_id in ids if doc_id not in stale]
            await subject.require_held(*(one for one in untouched if one is not None))
            for one, seen in ((one, after[ids.index(one.doc_id)]) for one in written if one is not None):
                if seen.presence is not Presence.ABSENT or not one.version.deleted:
                    await subject.require_held(one)


@promise(FENCE, "no-aba", "A token does not come back to life when the same content is deleted and written again.")
async def _no_aba(subject: Subject) -> None:
    document = subject.document("a", "the same content", number=1)

    async def by_removal() -> None:
        await subject.take_away("a")

    async def by_tombstone() -> None:
        await subject.put(Document.tombstone("a", number=2))

    async def by_tombstone_and_purge() -> None:
        await by_tombstone()
        await by_removal()

    async def by_other_content() -> None:
        await subject.put(subject.document("a", "other content", number=1))

    for way in (by_removal, by_tombstone, by_tombstone_and_purge, by_other_content):
        (old,) = await subject.put(document)
        await way()
        (now,) = await subject.put(document)
        name = way.__name__.replace("_", " ")
        answer = await subject.put_over(subject.document("a", "stale", number=9), old.token)
        require(answer.status is WriteStatus.REFUSED, f"recreated {name}, a token from before was {answer.status}")
        answer = await _remove(subject, "a", old.token)
        require(answer.status is WriteStatus.REFUSED, f"recreated {name}, a removal from before was {answer.status}")
        require(now == await subject.look("a"), f"recreated {name}, the document changed by refused calls")


@promise(FENCE, "one-creator", "Of two writes that saw the document absent, one lands.")
async def _one_creator(subject: Subject) -> None:
    absent = (await subject.look("a")).token
    first = subject.document("a", "first")
    answers = [await subject.put_over(first, absent), await subject.put_over(subject.document("a", "second"), absent)]
    statuses = [answer.status for answer in answers]
    require(statuses == [WriteStatus.LANDED, WriteStatus.REFUSED], f"they were {statuses}")
    await subject.require_held(first)


@promise(FENCE, "seen-elsewhere", "Another handle sees what was written, under the same tokens, now and after closing.")
async def _seen_elsewhere(subject: Subject) -> None:
    if subject.again is None:
        return
    held = [subject.document("a", "first"), subject.document("b", "text", metadata={"key": "value"})]
    async with subject.open_handles() as (here, there):
        landed = await here.put(*held)
        require(await there.observe("a", "b") == landed, "another handle shows another state or other tokens")
        await there.require_held(*held)
        held[0] = subject.document("a", "second", number=2)
        answer = await there.put_over(held[0], landed[0].token)
        require(answer.status is WriteStatus.LANDED, f"on another handle's token, a write was {answer.status}")
        answer = await here.put_over(subject.document("a", "stale", number=9), landed[0].token)
        require(
            answer.status is WriteStatus.REFUSED, f"on a token that another handle outdated, it was {answer.status}"
        )
        await here.require_held(*held)
        before = await there.scan()
    await subject.store.aclose()
    async with subject.again() as store:
        later = Subject.of(store, subject.content, subject.again)
        await later.require_held(*held)
        require(await later.scan() == before, "reopened, the store shows other states or other tokens")
        answer = await later.put_over(subject.document("a", "stale", number=9), landed[0].token)
        require(answer.status is WriteStatus.REFUSED, f"reopened, a write on an outdated token was {answer.status}")
        await later.take_away("b")
        (again,) = await later.put(held[1])
        require(again.token != landed[1].token, "reopened, a recreated document got a token that was there before")


async def _remove(subject: Subject, doc_id: str, token: str) -> WriteAnswer:
    return (await subject.remove(Removal(doc_id=doc_id, token=token)))[0]
