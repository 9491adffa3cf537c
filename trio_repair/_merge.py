"""Compare several stores side by side, in order of document id, in memory bounded by a few pages for each store.

The text store leads: it cuts its documents into ranges, and the others say what they hold of the same ranges. Where all
digests agree, that is all. Where they do not, the entries of the range are listed and compared. Snapshots of all stores
are opened together; all stores work at once, and the next ranges are being read while the last ones are compared.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

import attrs
import trio

from ._errors import CheckIncomplete, StoreMisbehaved
from ._lanes import Answer, Lane, StoreFailed, StoreReader
from ._ranges import BadEntries, Found, Record, agree, check_entries, compare, joined, take
from ._views import Observation, RangeDigest, RangeListing

RANGE_SIZE: Final = 1000
"""Documents in a range. Fewer cost more statements, more make it likelier that stores differ somewhere in it."""

RANGES_AT_ONCE: Final = 8
"""Ranges for one call: going to a store's thread and back costs as much as some hundred documents. Those of three calls
are under way at a time, and their entries take the memory."""

READ_AHEAD: Final = 1
"""Calls of each store that may be ahead of the comparison, so that no store waits while suspects are looked at."""

LOOKS: Final = 1000
"""How many documents one look names."""

GATHERING: Final = 0.1
"""Seconds for which suspects are gathered, so that one look takes many; what was found is counted no later."""


@attrs.frozen
class Window:
    """What was found in the documents of one range of ids. No document is in two windows."""

    documents: int
    suspects: Sequence[tuple[str, str | None]]
    """Those on which the stores may disagree, each with an id up to which, without it, nothing is left to look at."""
    bound: str | None
    """The last id that it covers; None if it covers nothing."""
    lanes: Mapping[str, Lane]

    async def look(self) -> dict[str, dict[str, Observation]]:
        """For each suspect, by role, what each store holds."""
        views: dict[str, dict[str, Observation]] = {doc_id: {} for doc_id, _ in self.suspects}
        ids = list(views)
        for start in range(0, len(ids), LOOKS):
            some = ids[start : start + LOOKS]
            looks = {role: lane.look(some) for role, lane in self.lanes.items()}
            for role, look in looks.items():
                answers = await look.get()
                self.lanes[role].reader.check_answers("look", answers, some)
                for doc_id, answer in zip(some, answers, strict=True):
                    views[doc_id][role] = answer
        return views


@attrs.frozen
class _Step:
    """Consecutive ranges. What the others hold of them is being asked."""

    after: str | None
    bounds: Sequence[str | None]
    text: Sequence[RangeDigest]
    others: Mapping[str, Answer[Sequence[RangeDigest | None]]]


async def merge_ranges(
    readers: Sequence[StoreReader],
    handle: Callable[[Window], Awaitable[None]],
    *,
    after: str | None,
) -> None:
    """Compare all documents with ids > `after`, and hand over window by window, in ascending order.

    Raises:
        StoreFailed: a store could not be read; in an ExceptionGroup. The snapshots of all stores are closed.

    **If cancelled:** the snapshots are closed; nothing has changed.
    """
    async with trio.open_nursery() as nursery:
        lanes = {reader.role: Lane(reader) for reader in readers}
        for lane in lanes.values():
            nursery.start_soon(lane.run, after)
        send, steps = trio.open_memory_channel[_Step](READ_AHEAD)
        nursery.start_soon(_lead, lanes, after, send)
        merge = _Merge(lanes, handle, after)
        async with steps:
            async for step in steps:
                await merge.compare(step)
        for lane in lanes.values():
            lane.finish()


async def _lead(lanes: Mapping[str, Lane], after: str | None, steps: trio.MemorySendChannel[_Step]) -> None:
    """Cut ranges, and have the others read them; as far ahead of the comparison as the channel is long."""
    leader = lanes["text"]
    others = {role: lane for role, lane in lanes.items() if lane is not leader}
    # What is scanned is kept until it has been compared, so less is read ahead.
    most = RANGES_AT_ONCE if all(lane.ranged for lane in lanes.values()) else 1
    count = 1
    async with steps:
        while True:
            found = await leader.ranges(after, RANGE_SIZE, count)
            # The first calls are short, so that the others need not wait long before they have something to do.
            count = min(2 * count, most)
            # Behind its last document, the others may hold more.
            bounds: Sequence[str | None] = [bound for bound, _ in found] or [None]
            text = [digest for _, digest in found] or [RangeDigest.of(b"")]
            asked = {role: lane.digests(after, bounds, RANGE_SIZE) for role, lane in others.items()}
            try:
                await steps.send(_Step(after, bounds, text, asked))
            except trio.BrokenResourceError:
                return  # the comparison has failed, and tells why
            if not found:
                return
            after = bounds[-1]


@attrs.frozen
class _Range:
    """A range, and by role what is known of it."""

    after: str | None
    bound: str | None
    digests: Mapping[str, RangeDigest | None]

    @property
    def text(self) -> RangeDigest:
        """What the text store holds of it."""
        digest = self.digests["text"]
        assert digest is not None
        return digest

    @property
    def is_known(self) -> bool:
        """Whether every store gave a digest."""
        return None not in self.digests.values()

    @property
    def to_list(self) -> Sequence[str]:
        """The stores whose entries must be seen. The others hold nothing, or what the text store holds."""
        return [
            role
            for role, digest in self.digests.items()
            if digest is None or (digest.count > 0 and (role == "text" or digest != self.text))
        ]

    @property
    def odd(self) -> Collection[str]:
        """The stores that may hold copies that have to be looked at."""
        return [role for role, digest in self.digests.items() if digest is None or digest.odd]

    def completed(self, entries: dict[str, bytes]) -> dict[str, bytes]:
        """The entries of all stores, from those of `to_list`."""
        for role, digest in self.digests.items():
            if role not in entries:
                entries[role] = entries["text"] if digest is not None and digest.count else b""
        return entries


class _Merge:
    """Gathers what comparisons find, until there is enough for one look."""

    def __init__(
        self, lanes: Mapping[str, Lane], handle: Callable[[Window], Awaitable[None]], after: str | None
    ) -> None:
        self._lanes = lanes
        self._handle = handle
        self._bound = after
        self._documents = 0
        self._suspects: list[tuple[str, str | None]] = []
        self._flushed_at = trio.current_time()

    async def compare(self, step: _Step) -> None:
        """Compare what the stores hold of some ranges."""
        digests: dict[str, Sequence[RangeDigest | None]] = {"text": step.text}
        for role, asked in step.others.items():
            digests[role] = await asked.get()
            self._lanes[role].reader.check_answers("call for digests", digests[role], step.bounds, "ranges")
        starts = [step.after, *step.bounds[:-1]]
        ranges = [
            _Range(after, bound, {role: found[index] for role, found in digests.items()})
            for index, (after, bound) in enumerate(zip(starts, step.bounds, strict=True))
        ]
        # What has a digest is short enough to be listed at once.
        short = [one for one in ranges if one.is_known and not agree(one.digests)]
        pages = await self._list(short)
        for one in ranges:
            if agree(one.digests):
                self._add(Found(one.text.count, ()), one.bound)
            elif one.is_known:
                await self._compare_entries(one, next(pages))
                # A store may have answered meanwhile, and wait for its next call.
                await trio.lowlevel.checkpoint()
            else:
                (page,) = await self._list([one])
                await self._compare_entries(one, page)
        if step.bounds[-1] is None or not self._can_wait():
            await self._flush()

    async def _list(self, ranges: Sequence[_Range]) -> Iterator[Mapping[str, RangeListing]]:
        """For each range, by role, the entries that have to be seen."""
        asked = {
            role: self._lanes[role].listings([(one.after, one.bound) for one in some])
            for role in self._lanes
            if (some := [one for one in ranges if role in one.to_list])
        }
        listed = {role: iter(await answer.get()) for role, answer in asked.items()}
        return iter([{role: next(listed[role]) for role in one.to_list} for one in ranges])

    async def _compare_entries(self, one: _Range, pages: Mapping[str, RangeListing]) -> None:
        if any(page.more for page in pages.values()):
            await self._compare_pages(one, pages)
            return
        entries = one.completed({role: page.entries for role, page in pages.items()})
        found = self._compared(entries, one.after, one.bound, one.odd)
        self._add(found, one.bound if one.bound is not None else self._last(entries))

    async def _compare_pages(self, one: _Range, pages: Mapping[str, RangeListing]) -> None:
        """Compare a range that is too large to be listed at once."""
        lists = {role: _List(self._lanes[role], page, one.after, one.bound) for role, page in pages.items()}
        after = one.after
        while True:
            for some in lists.values():
                await some.fill()
            ends = [some.last for some in lists.values() if some.more]
            # Up to the smallest of these, every store has said all that it holds.
            end = min(ends) if ends else None
            entries = one.completed({role: some.take(end) for role, some in lists.items()})
            last = end if end is not None else (one.bound if one.bound is not None else self._last(entries))
            self._add(self._compared(entries, after, last, one.odd), last)
            await self._flush()
            if end is None:
                return
            after = end

    def _compared(
        self, entries: Mapping[str, bytes], after: str | None, bound: str | None, odd: Collection[str]
    ) -> Found:
        try:
            return compare(entries, after, bound, odd=odd)
        except BadEntries as error:
            raise self._lanes[error.role].reader.out_of_order("ranges are") from None

    def _last(self, entries: Mapping[str, bytes]) -> str | None:
        """The greatest id; entries that are equal in all stores were not looked at yet."""
        ids = []
        for role, held in entries.items():
            if held:
                parts = held[:-1].rsplit(b"\0", 2)
                if len(parts) == 1:
                    raise self._lanes[role].reader.out_of_order("ranges are")
                ids.append(parts[-2])
        return max(ids).decode() if ids else None

    def _add(self, found: Found, bound: str | None) -> None:
        previous = self._bound
        for doc_id in found.suspects:
            self._suspects.append((doc_id, previous))
            previous = doc_id
        self._documents += found.documents
        self._bound = self._bound if bound is None else bound

    def _can_wait(self) -> bool:
        """Whether there may be more to be looked at with this. What is scanned is kept until then, and so may not."""
        all_ranged = all(lane.ranged for lane in self._lanes.values())
        return all_ranged and len(self._suspects) < LOOKS and trio.current_time() < self._flushed_at + GATHERING

    async def _flush(self) -> None:
        window = Window(self._documents, self._suspects, self._bound, self._lanes)
        self._documents, self._suspects = 0, []
        await self._handle(window)
        self._flushed_at = trio.current_time()
        if window.bound is not None:
            for lane in self._lanes.values():
                lane.forget(window.bound)


class _List:
    """The entries of a long range in one store, page by page."""

    def __init__(self, lane: Lane, page: RangeListing, after: str | None, bound: str | None) -> None:
        self._lane = lane
        self._after = after
        self._bound = bound
        self._records: list[Record] = []
        self._receive(page)

    async def fill(self) -> None:
        """Have an entry to give, unless the range has ended."""
        while not self._records and self.more:
            (page,) = await self._lane.listings([(self._after, self._bound)]).get()
            self._receive(page)

    @property
    def last(self) -> str:
        """The last id that was read."""
        assert self._after is not None
        return self._after

    def take(self, end: str | None) -> bytes:
        """The entries up to and including `end`; None: all."""
        count = len(self._records) if end is None else take(self._records, end)
        taken, self._records = self._records[:count], self._records[count:]
        return joined(taken)

    def _receive(self, page: RangeListing) -> None:
        reader = self._lane.reader
        try:
            self._records = check_entries(reader.role, page.entries, self._after, self._bound)
        except BadEntries:
            raise reader.out_of_order("ranges are") from None
        if self._records:
            self._after = self._records[-1][0].decode()
        elif page.more:
            raise reader.misbehaved("a page of a range is empty, and yet not the last")
        self.more = page.more


async def report_failures(run: Callable[[], Awaitable[None]]) -> None:
    """Await `run()`, and turn the failures of stores in it into one error.

    Raises:
        StoreMisbehaved: an adapter broke its contract.
        CheckIncomplete: stores could not be read.
    """
    failed: list[StoreFailed] = []
    try:
        await run()
    except* StoreFailed as group:
        failed.extend(_leaves(group))
    if not failed:
        return
    for failure in failed:
        if isinstance(failure.error, StoreMisbehaved):
            raise failure.error
    stores = tuple(dict.fromkeys(failure.role for failure in failed))
    # By its role here, whatever name the store was given.
    problems = "; ".join(f"{failure.role} store: {failure.error.problem}" for failure in failed)
    raise CheckIncomplete(f"could not read every store to the end: {problems}", stores=stores) from failed[0].error


def _leaves(group: BaseExceptionGroup[StoreFailed]) -> Iterator[StoreFailed]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
