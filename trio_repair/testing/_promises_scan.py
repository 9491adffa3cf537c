"""What is promised about scans."""

from __future__ import annotations

import itertools
from typing import Final

import trio

from trio_repair import Document, Observation, Removal

from ._samples import HOSTILE_IDS
from ._subject import Promise, Subject, promise, require

SCAN: Final[list[Promise]] = []


_MANY: Final = 1100
"""More than the thousand at which many a driver ends a page without a word."""
_WINDOW: Final = 10_050
"""More than the ten thousand at which search indexes end a result by default."""
_PATIENCE: Final = 10.0
"""Seconds after which a slow store need not be filled further."""


async def fill(subject: Subject, *, at_least: int = 0, many: int = 0) -> list[str]:
    """More documents than one call may name, up to 1,200; or as `many`, if the store is quick. Ids in order."""
    size = subject.traits.max_batch
    enough = max(at_least, min(2 * size + 3, 1200))
    many = min(many, max(_MANY, 100 * size))  # a store that takes few documents in a call would be filled for ever
    ids = [f"document {index:05}" for index in range(max(enough, many))]
    deadline = trio.current_time() + _PATIENCE
    for start in range(0, len(ids), size):
        if start >= enough and trio.current_time() > deadline:
            return ids[:start]
        await subject.put(*(subject.document(doc_id, f"text of {doc_id}") for doc_id in ids[start : start + size]))
    return ids


@promise(SCAN, "scan-order", "A scan gives documents in ascending byte order of the UTF-8 of their ids.")
async def _scan_order(subject: Subject) -> None:
    await subject.put(*(subject.document(doc_id, "text") for doc_id in reversed(HOSTILE_IDS)))
    ids = [doc_id for doc_id, _ in await subject.scan()]
    for before, behind in itertools.pairwise(ids):
        require(before.encode() < behind.encode(), f"{before[:20]!r} comes before {behind[:20]!r}")
    require(set(ids) == set(HOSTILE_IDS), f"{len(HOSTILE_IDS)} documents were written and {len(ids)} scanned")


@promise(SCAN, "scan-complete", "A scan gives each document and tombstone once, as observe shows it.")
async def _scan_complete(subject: Subject) -> None:
    ids = await fill(subject, many=_WINDOW)
    await subject.put(Document.tombstone(ids[1], number=2), Document.tombstone("zz", number=1))
    await subject.take_away(ids[2])
    kept = [doc_id for doc_id in ids if doc_id != ids[2]]
    kept = [*kept, "zz"] if subject.traits.keeps_tombstones else [doc_id for doc_id in kept if doc_id != ids[1]]
    entries = await subject.scan()
    scanned = [doc_id for doc_id, _ in entries]
    require(scanned == kept, f"{len(kept)} documents and tombstones are held, and a scan gave {len(scanned)}")
    seen = await subject.observe(*kept)
    require([one for _, one in entries] == seen, "scan and observe show different states of a document")


@promise(SCAN, "scan-after", "With `after`, a scan gives exactly the documents whose ids are greater.")
async def _scan_after(subject: Subject) -> None:
    await subject.put(*(subject.document(doc_id, "text") for doc_id in HOSTILE_IDS))
    ordered = sorted(HOSTILE_IDS, key=str.encode)
    for after in (*ordered[::4], ordered[-1], "aa", "m", "\U0010ffff", "%", "a' --"):
        wanted = [doc_id for doc_id in ordered if doc_id.encode() > after.encode()]
        got = [doc_id for doc_id, _ in await subject.scan(after)]
        require(got == wanted, f"after {after[:20]!r} there are {len(wanted)} documents; the scan gave {len(got)}")


@promise(SCAN, "scan-resumes", "A scan that goes on after the last id of a page misses nothing and repeats nothing.")
async def _scan_resumes(subject: Subject) -> None:
    ids = await fill(subject)
    got: list[str] = []
    after: str | None = None
    # Each turn reads one page and closes the scan; a turn without a new document ends it.
    while True:
        page: list[str] = []
        async with subject.store.open_scan(after) as pages:
            async for entries in pages:
                page = [doc_id for doc_id, _ in entries]
                if page:
                    break
        if not page or len(got) > len(ids):
            break
        got.extend(page)
        after = page[-1]
    require(got == ids, f"{len(ids)} documents are held; page by page, {len(got)} came")


@promise(SCAN, "scan-snapshot", "A scan shows one moment: writes that land while it is open are not in it.")
async def _scan_snapshot(subject: Subject) -> None:
    ids = await fill(subject, many=_MANY)
    before = await subject.scan()
    got: list[tuple[str, Observation]] = []
    async with subject.store.open_scan() as pages:
        got.extend(await anext(pages))
        # The writes go where the scan has not been yet, if pages are small enough for that.
        await subject.put(
            subject.document(ids[-1], "changed", number=2),
            subject.document(f"{ids[-1]} and more", "new"),
            Document.tombstone(ids[-2], number=2),
        )
        await subject.take_away(ids[-3])
        async for page in pages:
            got.extend(page)
    require(
        [doc_id for doc_id, _ in got] == [doc_id for doc_id, _ in before],
        "a document that was written or removed while a scan was open came or went in it",
    )
    require(got == before, "a document that was changed while a scan was open shows its new state in it")
    require(got != await subject.scan(), "the next scan does not show what was written")


@promise(SCAN, "scan-left-early", "A scan can be left at any page, or cancelled, and the store goes on as before.")
async def _scan_left_early(subject: Subject) -> None:
    ids = await fill(subject)
    for _ in range(20):
        async with subject.store.open_scan():
            pass
        async with subject.store.open_scan() as pages:
            await anext(pages)
        with trio.CancelScope() as scope:
            async with subject.store.open_scan() as pages:
                scope.cancel()
                async for _page in pages:
                    pass
    changed = subject.document(ids[0], "changed", number=2)
    await subject.put(changed)
    await subject.require_held(changed)
    require([doc_id for doc_id, _ in await subject.scan()] == ids, "a scan after scans left early is not complete")


@promise(SCAN, "scans-at-once", "Two scans of one store, open at once, do not disturb each other.")
async def _scans_at_once(subject: Subject) -> None:
    if subject.traits.max_calls < 2:
        return
    ids = await fill(subject)
    first, second = await subject.together([subject.scan, lambda: subject.scan(ids[0])])
    require([doc_id for doc_id, _ in first] == ids, "the scan from the start is not complete")
    require([doc_id for doc_id, _ in second] == ids[1:], "the scan from the second document is not complete")


@promise(
    SCAN, "count-near", "With hundreds of documents and tombstones held, count is within a factor of 2 of the truth."
)
async def _count_near(subject: Subject) -> None:
    ids = await fill(subject, at_least=200, many=_MANY)
    await _require_near(subject, len(ids))
    removed = ids[len(ids) // 4 :]
    if subject.traits.keeps_tombstones:
        await subject.put(*(Document.tombstone(doc_id, number=2) for doc_id in removed))
        await _require_near(subject, len(ids))
    seen = await subject.observe(*removed)
    await subject.remove(*(Removal(doc_id=doc_id, token=one.token) for doc_id, one in zip(removed, seen, strict=True)))
    await _require_near(subject, len(ids) - len(removed))


async def _require_near(subject: Subject, held: int) -> None:
    total = await subject.store.count()
    require(held <= 2 * total <= 4 * held, f"{held} documents and tombstones are held, and count gave {total}")
