"""What is promised about calls that are cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import attrs
import trio

from trio_repair import (
    Document,
    Observation,
    Prepared,
    Presence,
    Removal,
    StoredDocument,
    Write,
    WriteAnswer,
    WriteStatus,
)

from ._overlap import Ending, begin_cancelled, cut_short
from ._subject import Promise, Subject, broken, promise, require

CANCELLED: Final[list[Promise]] = []

_LATE: Final = 1.5
"""Seconds in which what a cancelled call has left behind may show itself."""
_SOON: Final = 2.0
"""Seconds that a cancelled call may go on, beside twice the time that it takes when nobody cancels it."""
_DOCUMENTS: Final = 4


@promise(CANCELLED, "cancelled-whole", "A cancelled call leaves each document as it was or as it was to be, for good.")
async def _cancelled_whole(subject: Subject) -> None:
    last: dict[str, Observation] = {}

    def version(ids: Sequence[str], number: int) -> list[Document]:
        return [subject.document(doc_id, f"{doc_id} {number} " * 400, number=number) for doc_id in ids]

    for number, (checkpoints, seconds) in enumerate(_find_cuts(await _time_writes(subject), each=1)):
        # Documents of its own for each cut: what lands late is not refused because somebody wrote meanwhile.
        ids = [f"cut {number}, document {index}" for index in range(_DOCUMENTS)]
        held, meant = version(ids, 1), version(ids, 2)
        await subject.put(*held)
        prepared = await subject.prepare(*meant)
        seen = await subject.observe(*ids)
        writes = [Write(prepared=one, token=look.token) for one, look in zip(prepared, seen, strict=True)]
        await cut_short(lambda writes=writes: subject.write(*writes), checkpoints, seconds)  # type: ignore[misc]
        after = await subject.observe(*ids)
        for index, look in enumerate(after):
            if look != seen[index]:
                held[index] = meant[index]
        await subject.require_held(*held)
        for act in (
            lambda ids=ids: subject.observe_raw(ids),
            lambda ids=ids: subject.read_raw(ids),
            lambda meant=meant: subject.prepare_raw(meant),
        ):
            await cut_short(act, checkpoints, seconds)
        require(after == await subject.observe(*ids), "something changed after a cancelled call had ended")
        last.update(zip(ids, after, strict=True))
        last.update(await _cut_deletes(subject, [f"deleted, {doc_id}" for doc_id in ids], checkpoints, seconds))
    # A call that was given up, with its effect to come, shows itself when its driver has come back.
    await trio.sleep(_LATE)
    require(
        list(last.values()) == await subject.observe(*last), f"{_LATE:g} s after the last cancelled call, it landed"
    )


async def _time_writes(subject: Subject) -> float:
    """Seconds that a write of several documents takes, with what comes before it."""
    started = trio.current_time()
    await subject.put(*(subject.document(f"timed {index}", "text " * 400) for index in range(_DOCUMENTS)))
    return trio.current_time() - started


def _find_cuts(took: float, each: int) -> list[tuple[int, float]]:
    """Moments to cancel at: some checkpoints, for stores in this thread; parts of `took` seconds, for all others."""
    checkpoints = [(number, 0.0) for number in range(0, 8, each)]
    return checkpoints + [(0, took * part / 8) for part in range(1, 9, each)]


async def _cut_deletes(
    subject: Subject, ids: list[str], checkpoints: int, seconds: float
) -> Iterator[tuple[str, Observation]]:
    """Cancel a delete, and then a removal, of several documents: each is held whole, or is gone. What is shown then."""
    held = [subject.document(doc_id, f"{doc_id} " * 400, number=1) for doc_id in ids]
    await subject.put(*held)
    before = await subject.observe(*ids)
    graves = [Document.tombstone(doc_id, number=2) for doc_id in ids]
    prepared = await subject.prepare(*graves)
    writes = [Write(prepared=one, token=look.token) for one, look in zip(prepared, before, strict=True)]
    await cut_short(lambda: subject.write(*writes), checkpoints, seconds)
    between = await subject.observe(*ids)
    kept = [
        grave if look != was else document
        for document, grave, was, look in zip(held, graves, before, between, strict=True)
        if look.presence is not Presence.ABSENT or subject.traits.keeps_tombstones
    ]
    await subject.require_held(*kept)
    # Some are left to what the cancelled delete may have left behind.
    removals = [Removal(doc_id=doc_id, token=look.token) for doc_id, look in zip(ids, between, strict=True)][1:]
    await cut_short(lambda: subject.remove(*removals), checkpoints, seconds)
    after = await subject.observe(*ids)
    left = {doc_id for doc_id, look in zip(ids, after, strict=True) if look.presence is not Presence.ABSENT}
    await subject.require_held(*(document for document in kept if document.doc_id in left))
    return zip(ids, after, strict=True)


@promise(
    CANCELLED,
    "cancelled-told",
    "A cancelled call ends soon: it raises Cancelled, or returns what is true. Cancelled before it began, it raises.",
)
async def _cancelled_told(subject: Subject) -> None:
    ids = [f"document {index}" for index in range(min(_DOCUMENTS, subject.traits.max_batch))]
    await subject.put(*(subject.document(doc_id, "held " * 400) for doc_id in ids))
    took = await _time_writes(subject)
    soon = _SOON + 2 * took
    for ready in _CALLS:
        call = await ready(subject, ids, 2)
        ending = await begin_cancelled(call.act)
        require(not ending.returned, f"{call.name} returned, although it was cancelled before it began")
        call.require_soon(ending, soon)
    for number, (checkpoints, seconds) in enumerate(_find_cuts(took, each=2), 3):
        for ready in _CALLS:
            call = await ready(subject, ids, number)
            ending = await cut_short(call.act, checkpoints, seconds)
            call.require_soon(ending, soon)
            if ending.lasted is not None and ending.returned:
                await call.judge(ending.returned[0])
    for pages in range(2):
        await _require_scan_told(subject, pages)


async def _require_scan_told(subject: Subject, pages_before: int) -> None:
    """A scan that is cancelled when it is open ends by Cancelled, or with all that there is to come."""
    got: list[tuple[str, Observation]] = []
    ended = False
    with trio.CancelScope() as scope:
        async with subject.store.open_scan() as pages:
            for _ in range(pages_before):
                got.extend(await anext(pages))
            scope.cancel()
            async for page in pages:
                got.extend(page)
            ended = True
    require(not ended or got == await subject.scan(), "a scan that was cancelled ended as if it were complete")


@attrs.frozen
class _Call:
    """A call that is to be cancelled, and how to see whether what it returns all the same is true."""

    name: str
    act: Callable[[], Awaitable[Any]]
    judge: Callable[[Any], Awaitable[None]]

    def require_soon(self, ending: Ending[Any], seconds: float) -> None:
        """It did not go on for longer than that after it had been cancelled."""
        if ending.lasted is not None and ending.lasted > seconds:
            broken(f"{self.name} went on for {ending.lasted:.3g} s after it had been cancelled")

    def require_true(self, holds: bool) -> None:
        """What it returned is so."""
        require(holds, f"{self.name} was cancelled, and returned what is not so")


async def _observe(subject: Subject, ids: list[str], _number: int) -> _Call:
    async def judge(answers: Any) -> None:
        call.require_true(list(answers) == await subject.observe(*ids))

    call = _Call("observe", lambda: subject.store.observe(ids), judge)
    return call


async def _read(subject: Subject, ids: list[str], _number: int) -> _Call:
    async def judge(answers: Any) -> None:
        true = await subject.read_raw(ids)
        alike = [
            one == two if isinstance(two, StoredDocument) else True for one, two in zip(answers, true, strict=True)
        ]
        call.require_true(all(alike))

    call = _Call("read", lambda: subject.store.read(ids), judge)
    return call


async def _prepare(subject: Subject, ids: list[str], number: int) -> _Call:
    documents = [subject.document(doc_id, "meant", number=number) for doc_id in ids]

    async def judge(answers: Any) -> None:
        named = [one.document.doc_id for one in answers if isinstance(one, Prepared)]
        call.require_true(ids == named)

    call = _Call("prepare", lambda: subject.store.prepare(documents), judge)
    return call


async def _write(subject: Subject, ids: list[str], number: int) -> _Call:
    prepared = await subject.prepare(*(subject.document(doc_id, f"{number} " * 400, number=number) for doc_id in ids))
    before = await subject.observe(*ids)
    writes = [Write(prepared=one, token=look.token) for one, look in zip(prepared, before, strict=True)]

    async def judge(answers: Any) -> None:
        after = await subject.observe(*ids)
        call.require_true(all(map(_is_true, answers, before, after)))

    call = _Call("write", lambda: subject.store.write(writes), judge)
    return call


async def _remove(subject: Subject, ids: list[str], _number: int) -> _Call:
    ids = [f"removed, {doc_id}" for doc_id in ids]
    before = await subject.put(*(subject.document(doc_id, "to go") for doc_id in ids))
    removals = [Removal(doc_id=doc_id, token=look.token) for doc_id, look in zip(ids, before, strict=True)]

    async def judge(answers: Any) -> None:
        after = await subject.observe(*ids)
        call.require_true(all(map(_is_true, answers, before, after)))

    call = _Call("remove", lambda: subject.store.remove(removals), judge)
    return call


def _is_true(answer: WriteAnswer, before: Observation, after: Observation) -> bool:
    match answer.status:
        case WriteStatus.LANDED:
            return answer.observation == after != before
        case WriteStatus.UNKNOWN:
            return True
        case _:
            return False  # nobody else was there, and the token held


async def _count(subject: Subject, _ids: list[str], _number: int) -> _Call:
    async def judge(total: Any) -> None:
        call.require_true(isinstance(total, int))  # it may be an estimate

    call = _Call("count", subject.store.count, judge)
    return call


async def _scan(subject: Subject, _ids: list[str], _number: int) -> _Call:
    async def judge(entries: Any) -> None:
        call.require_true(entries == await subject.scan())

    call = _Call("a scan", subject.scan, judge)
    return call


_CALLS: Final = (_observe, _read, _prepare, _write, _remove, _count, _scan)
