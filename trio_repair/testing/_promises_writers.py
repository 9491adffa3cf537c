"""What is promised about acts that compete: of those on one token one lands, and nothing that landed is lost."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import attrs
import trio

from trio_repair import Document, Fence, Observation, Presence, Removal, Write, WriteAnswer, WriteStatus

from ._overlap import pause
from ._subject import Promise, Subject, broken, promise, require

WRITERS: Final[list[Promise]] = []

_WRITERS: Final = 6
_SEVERAL: Final = 5
"""Documents in the calls that name several."""
_FEWEST: Final = 10
"""Contests that even a slow store is put to: each act once, over each presence."""
_PATIENCE: Final = 10.0
"""Seconds after which a slow store is put to no more than those."""
_TURNS: Final = 18
"""Acts of each writer among others; each kind of them meets each other."""
_MIXED: Final = "delete and write"
"""In one call, tombstones and documents by turns."""


@attrs.frozen
class _Contest:
    """Acts at once on the tokens of the same documents."""

    presence: Presence
    """What is held of each document before."""
    acts: tuple[str, ...]
    """Taken by turns."""
    documents: int
    in_step: bool
    """All begin at once, or else one behind the other: those that keep step may all look, and then all act."""


def _contests(keeps_tombstones: bool) -> Iterable[_Contest]:
    for documents, in_step in ((1, True), (_SEVERAL, False), (1, False), (_SEVERAL, True)):
        for presence in Presence:
            if presence is Presence.TOMBSTONE and not keeps_tombstones:
                continue
            for acts in (("write",), ("delete",), ("removal",), ("write", "delete", "removal"), (_MIXED,)):
                # What changes nothing displaces nothing: it may land as often as it likes.
                vain = {"removal"} if keeps_tombstones else {"removal", "delete", _MIXED}
                left = tuple(act for act in acts if presence is not Presence.ABSENT or act not in vain)
                if left and (left == acts or len(left) > 1):
                    yield _Contest(presence, left, documents, in_step)


@promise(
    WRITERS,
    "one-winner",
    "Of many acts at once on one token (writes, deletes, removals, alone and in batches), one lands (strong fence).",
)
async def _one_winner(subject: Subject) -> None:
    if subject.traits.fence is not Fence.STRONG:
        return
    took = await _time_each_act(subject)
    deadline = trio.current_time() + _PATIENCE
    async with subject.open_handles() as handles:
        for number, contest in enumerate(_contests(subject.traits.keeps_tombstones)):
            if number >= _FEWEST and trio.current_time() > deadline:
                break
            await _hold(contest, number, handles, max(took[act] for act in contest.acts))


async def _time_each_act(subject: Subject) -> dict[str, float]:
    """Seconds that each act takes when nobody else is there, with what comes before it."""
    took = {}
    for act in ("write", "delete", "removal"):
        started = trio.current_time()
        await (await _ready(subject, act, 1, await subject.observe("timed"), ["timed"]))()
        took[act] = trio.current_time() - started
    return took | {_MIXED: max(took.values())}


async def _hold(contest: _Contest, number: int, handles: Sequence[Subject], seconds: float) -> None:
    subject = handles[0]
    ids = [f"contest {number}, document {index}" for index in range(contest.documents)]
    if contest.presence is not Presence.ABSENT:
        await subject.put(*(subject.document(doc_id, "before the races") for doc_id in ids))
    if contest.presence is Presence.TOMBSTONE:
        await subject.put(*(Document.tombstone(doc_id, number=2) for doc_id in ids))
    looks = await subject.observe(*ids)
    # Each handle does each act, and none of them always begins.
    acts = [contest.acts[(index // len(handles) + number) % len(contest.acts)] for index in range(_WRITERS)]
    contestants = []
    for index, act in enumerate(acts):
        handle = handles[index % len(handles)]
        by = 0 if contest.in_step else index
        contestants.append(await _ready(handle, act, index, looks, ids, by, seconds * by / (2 * _WRITERS)))
    answers = await subject.together(contestants)
    held: list[Document] = []
    for place, doc_id in enumerate(ids):
        landed = [index for index, each in enumerate(answers) if each[place].status is WriteStatus.LANDED]
        if len(landed) != 1:
            what = f"{_WRITERS} calls of {len(ids)} documents at once ({', '.join(contest.acts)})"
            broken(f"of {what} on the same tokens of {contest.presence.value} documents, {len(landed)} landed")
        outcome = _outcome(subject, acts[landed[0]], landed[0], doc_id, place)
        if outcome is not None and (subject.traits.keeps_tombstones or not outcome.version.deleted):
            held.append(outcome)
        else:
            gone = (await subject.look(doc_id)).presence
            require(gone is Presence.ABSENT, f"a {acts[landed[0]]} landed among others, and the document is {gone}")
    await subject.require_held(*held)


@promise(
    WRITERS,
    "no-lost-update",
    "Nothing that landed is lost: it is held, or one act that landed on its token has displaced it (strong fence).",
)
async def _no_lost_update(subject: Subject) -> None:
    if subject.traits.fence is not Fence.STRONG:
        return
    rounds = 5

    async def count_up(handle: Subject) -> None:
        for _ in range(rounds):
            while True:
                seen = await handle.look("a")
                number = 0 if seen.version is None or seen.version.number is None else seen.version.number
                document = handle.document("a", f"count {number + 1}", number=number + 1)
                if (await handle.put_over(document, seen.token)).status is WriteStatus.LANDED:
                    break

    ids = [f"changed {index}" for index in range(_SEVERAL)]
    ledger = _Ledger()

    async def change(handle: Subject, index: int) -> None:
        deadline = trio.current_time() + _PATIENCE
        for turn, act in itertools.islice(enumerate(itertools.cycle(_EACH)), index, index + _TURNS):
            if turn >= index + rounds and trio.current_time() > deadline:
                break
            looks = await handle.observe(*ids)
            answers = await (await _ready(handle, act, 2 * _TURNS * index + turn, looks, ids))()
            for doc_id, look, answer in zip(ids, looks, answers, strict=True):
                ledger.enter(doc_id, look, answer)

    async with subject.open_handles() as handles:
        # A count goes by the number that is held.
        works = [lambda handle, _index: count_up(handle)] if subject.traits.numbered else []
        for work in (*works, change):
            await subject.together(
                functools.partial(work, handles[index % len(handles)], index) for index in range(_WRITERS)
            )
    total = _WRITERS * rounds
    if subject.traits.numbered:
        await subject.require_held(subject.document("a", f"count {total}", number=total))
    for doc_id, look in zip(ids, await subject.observe(*ids), strict=True):
        ledger.require_balanced(doc_id, look)


_EACH: Final = ("write", "delete", "write", "removal", _MIXED, "removal")


@attrs.define
class _Ledger:
    """What landed among others: what each act displaced, and what it left."""

    displaced: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    """By id and token."""
    left: set[tuple[str, str]] = attrs.field(factory=set)
    """Ids and tokens."""
    present: Counter[str] = attrs.field(factory=Counter)
    """By id: acts over nothing, less those that left nothing. Absence has one token however often it comes."""

    def enter(self, doc_id: str, look: Observation, answer: WriteAnswer) -> None:
        """Take note of one answer."""
        if answer.status is not WriteStatus.LANDED:
            require(answer.status is WriteStatus.REFUSED, f"among others, an act was {answer.status}")
            return
        now = answer.observation
        assert now is not None
        if look.presence is Presence.ABSENT:
            self.present[doc_id] += 1
        else:
            self.displaced[doc_id, look.token] += 1
        if now.presence is Presence.ABSENT:
            self.present[doc_id] -= 1
        else:
            self.left.add((doc_id, now.token))

    def require_balanced(self, doc_id: str, held: Observation) -> None:
        """Every act that landed on this document is accounted for."""
        there = held.presence is not Presence.ABSENT
        for (one, token), times in self.displaced.items():
            require(one != doc_id or times == 1, f"{times} acts landed on one token ({token!r})")
        for one, token in self.left:
            lost = one == doc_id and not self.displaced[one, token] and not (there and token == held.token)
            require(not lost, f"what landed (token {token!r}) is neither held nor displaced by an act that landed")
        require(not there or (doc_id, held.token) in self.left, "what is held was left by no act that landed")
        require(self.present[doc_id] == int(there), f"acts that landed leave {self.present[doc_id]} documents of one")


async def _ready(
    handle: Subject,
    act: str,
    writer: int,
    looks: Sequence[Observation],
    ids: Sequence[str],
    checkpoints: int = 0,
    seconds: float = 0.0,
) -> Callable[[], Awaitable[list[WriteAnswer]]]:
    """Prepare one call; what is given does it, after a pause."""
    outcomes = [_outcome(handle, act, writer, doc_id, place) for place, doc_id in enumerate(ids)]
    documents = [one for one in outcomes if one is not None]
    prepared = await handle.prepare(*documents) if documents else []
    writes = [Write(prepared=one, token=look.token) for one, look in zip(prepared, looks, strict=bool(documents))]
    removals = [Removal(doc_id=doc_id, token=look.token) for doc_id, look in zip(ids, looks, strict=True)]

    async def begin() -> list[WriteAnswer]:
        await pause(checkpoints, seconds)
        return await handle.write(*writes) if documents else await handle.remove(*removals)

    return begin


def _outcome(subject: Subject, act: str, writer: int, doc_id: str, place: int) -> Document | None:
    """What an act leaves of the document at `place` in its call; None: nothing."""
    if act == "removal":
        return None
    if act == "delete" or (act == _MIXED and place % 2 == 0):
        return Document.tombstone(doc_id, number=writer)
    return subject.document(doc_id, f"by writer {writer}", number=writer)
