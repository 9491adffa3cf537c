"""What is promised about ranges, by stores that have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from trio_repair import Document, Observation, Presence, RangeDigest, RangeListing, StoreTraits, summarize
from trio_repair.abc import ListingsAtHand, RangedStore, Ranges

from ._promises_scan import fill
from ._samples import HOSTILE_IDS
from ._subject import Promise, Subject, broken, promise, require

RANGES: Final[list[Promise]] = []

_SIZE: Final = 100
_AT_ONCE: Final = 3


async def _fill(subject: Subject) -> list[str]:
    """Documents in every presence, more than make a range, with hostile ids among them; the ids of the plain ones."""
    ids = await fill(subject, at_least=2 * _SIZE)
    await subject.put(*(subject.document(doc_id, "text") for doc_id in HOSTILE_IDS))
    await subject.put(
        subject.document(ids[3], "text", number=None),
        Document.tombstone(ids[1], number=2),
        Document.tombstone(ids[2], number=None),
    )
    return ids


def _require_entries(entries: bytes, views: Mapping[str, Observation], traits: StoreTraits, where: str) -> None:
    """These are entries of exactly these documents; each summary is the right one, or none."""
    parts = entries.split(b"\0")
    require(not parts[-1] and len(parts) % 2 == 1, f"{where} the entries are not ids and summaries, each with NUL")
    ids = [doc_id.decode(errors="replace") for doc_id in parts[:-1:2]]
    require(ids == [*views], f"{where} are {len(views)} documents, and the listing gave {len(ids)} that are not these")
    for (doc_id, view), summary in zip(views.items(), parts[1::2], strict=True):
        require(
            summary.decode(errors="replace") in (summarize(view, traits), ""),
            f"the summary of {doc_id[:20]!r} is not what summarize makes of its observation",
        )


def _between(shown: Sequence[tuple[str, Observation]], after: str | None, bound: str | None) -> dict[str, Observation]:
    return {
        doc_id: view
        for doc_id, view in shown
        if (after is None or doc_id > after) and (bound is None or doc_id <= bound)
    }


async def _list(held: Ranges, after: str | None, bound: str | None, most: int) -> bytes:
    """A whole range, page by page."""
    entries = b""
    for _ in range(most + 2):
        page = await held.listing(after, bound)
        require(isinstance(page, RangeListing), f"a listing is a RangeListing, not a {type(page).__name__}")
        entries += page.entries
        if not page.more:
            return entries
        require(bool(page.entries), "a page of a listing is empty and yet says that there is more")
        after = page.entries[:-1].rsplit(b"\0", 2)[-2].decode(errors="replace")
    return broken("a listing never comes to its end")


@promise(
    RANGES, "ranges-agree", "Ranges, where a store has them, say in digests and listings what a scan shows, or nothing."
)
async def _ranges_agree(subject: Subject) -> None:
    store = subject.store
    if not isinstance(store, RangedStore):
        return
    ids = await _fill(subject)
    for after in (None, ids[1]):
        shown = await subject.scan(after)
        async with store.open_ranges(after) as held:
            bounds = await _require_cut(subject, held, shown, after)
            # Any bounds, those of other stores: between documents, with nothing between them, and open at the end.
            others = [*bounds[:1], f"{ids[150]} and a half", f"{ids[150]} and more", ids[-20], None]
            await _require_digests(subject, held, shown, after, others)
            await _require_digests(subject, held, shown, after, [None])
            await _require_looks(held, shown)


async def _require_cut(
    subject: Subject, held: Ranges, shown: Sequence[tuple[str, Observation]], after: str | None
) -> list[str]:
    """Ranges that follow each other, cover every document, and are what their digests say; their bounds."""
    bounds: list[str] = []
    start = after
    while some := await held.ranges(start, _SIZE, _AT_ONCE):
        require(len(some) <= _AT_ONCE, f"{_AT_ONCE} ranges were asked for, and {len(some)} came")
        for bound, digest in some:
            views = _between(shown, start, bound)
            require(0 < len(views) <= _SIZE, f"a range of up to {_SIZE} documents has {len(views)}")
            require([*views][-1] == bound, "a range does not end with its last document")
            await _require_digest(subject, held, views, (start, bound), digest)
            bounds.append(bound)
            start = bound
    last = shown[-1][0]
    require(start == last, f"ranges come to their end at {start!r:.30}, and the last document is {last[:20]!r}")
    return bounds


async def _require_digests(
    subject: Subject,
    held: Ranges,
    shown: Sequence[tuple[str, Observation]],
    after: str | None,
    bounds: Sequence[str | None],
) -> None:
    most = len(shown)
    for limit in (most, 1):
        digests = await held.digests(after, bounds, limit)
        require(len(digests) == len(bounds), f"{len(bounds)} digests were asked for, and {len(digests)} came")
        start = after
        for bound, digest in zip(bounds, digests, strict=True):
            if digest is not None:
                await _require_digest(subject, held, _between(shown, start, bound), (start, bound), digest)
            start = bound


async def _require_digest(
    subject: Subject,
    held: Ranges,
    views: Mapping[str, Observation],
    edges: tuple[str | None, str | None],
    digest: RangeDigest,
) -> None:
    require(isinstance(digest, RangeDigest), f"a digest is a RangeDigest, not a {type(digest).__name__}")
    if isinstance(held, ListingsAtHand):
        listing = held.at_hand(*edges)
        same = listing is None or listing == await held.listing(*edges)
        require(same, "a listing that is at hand is not the one that a call gives")
    entries = await _list(held, *edges, len(views))
    _require_entries(entries, views, subject.traits, "in a range")
    require(digest == RangeDigest.of(entries), "the digest of a range is not that of what is listed in it")


async def _require_looks(held: Ranges, shown: Sequence[tuple[str, Observation]]) -> None:
    some = [*shown[:5], *shown[-5:]]
    looked = await held.look([doc_id for doc_id, _ in some])
    require(
        list(looked) == [view for _, view in some], "a look among ranges shows another state of a document than a scan"
    )
    (absent,) = await held.look(["nowhere"])
    require(absent.presence is Presence.ABSENT, f"a look at a document that is not held shows {absent.presence.value}")


@promise(
    RANGES, "ranges-snapshot", "Ranges, where a store has them, show one moment: writes that land meanwhile are not in."
)
async def _ranges_snapshot(subject: Subject) -> None:
    store = subject.store
    if not isinstance(store, RangedStore):
        return
    ids = await _fill(subject)
    before = await subject.scan()
    async with store.open_ranges() as held:
        first = await held.digests(None, [None], len(before))
        # What has not been asked for yet must not change either.
        await subject.put(
            subject.document(ids[-1], "changed", number=2),
            subject.document(f"{ids[-1]} and more", "new"),
            Document.tombstone(ids[-2], number=2),
        )
        await subject.take_away(ids[-3])
        views = dict(before)
        _require_entries(
            await _list(held, ids[0], None, len(before)),
            _between(before, ids[0], None),
            subject.traits,
            "in a snapshot",
        )
        require(await held.digests(None, [None], len(before)) == first, "a digest changed with a write that came later")
        (looked,) = await held.look([ids[-1]])
        require(looked == views[ids[-1]], "a look among ranges shows what was written later")
    async with store.open_ranges() as held:
        now = await held.digests(None, [None], 2 * len(before))
        require(now != first or first == [None], "the next snapshot does not show what was written")
