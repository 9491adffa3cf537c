"""What is promised about calls that overlap: two writers, and readers beside a writer."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import attrs
import trio

from trio_repair import Document, Fence, Observation, Presence, StoredDocument, StoreRejected

from ._subject import Promise, Subject, broken, promise, require

RACES: Final[list[Promise]] = []

FENCE_RACED: Final = "fence-raced"

_ROUNDS: Final = 30
_FEWEST_ROUNDS: Final = 6
_PATIENCE: Final = 4.0
"""Seconds after which a slow store is asked for no more than the fewest rounds."""
_READERS: Final = 3
"""The most readers on one handle."""
_LOOKS: Final = 20
"""Looks without a pause, of one reader during one write."""


@promise(
    RACES, FENCE_RACED, "A strong fence is proved by a race: max_calls is above 1, or a second handle can be opened."
)
async def _fence_raced(subject: Subject) -> None:
    if subject.traits.fence is Fence.STRONG and subject.traits.max_calls == 1 and subject.again is None:
        broken(
            "nothing was raced: the traits say STRONG and max_calls=1, so only a second handle can show it; give "
            "again=, or races=False if such a store cannot be opened twice"
        )


@promise(
    RACES, "whole-beside-writers", "Beside a writer, a reader sees each document as it was or as it is to be, whole."
)
async def _whole_beside_writers(subject: Subject) -> None:
    if not subject.traits.numbered:
        return  # it is by their numbers that the versions of this history are told apart
    async with subject.open_handles() as handles:
        readers = [subject] * min(subject.traits.max_calls - 1, _READERS)
        for handle in handles[1:]:
            readers += [handle] * min(handle.traits.max_calls, _READERS)
        if not readers:
            return  # with one call at a time, on one handle, only a cancelled call can show: see cancelled-whole
        history = _History(subject)
        await history.write_next()
        over = trio.Event()

        async def write_on() -> None:
            deadline = trio.current_time() + _PATIENCE
            for number in range(_ROUNDS):
                if number >= _FEWEST_ROUNDS and trio.current_time() > deadline:
                    break
                await history.write_next()
            over.set()

        acts: list[Callable[[], Awaitable[None]]] = [write_on]
        acts += [functools.partial(_read_on, one, history, over) for one in readers]
        await subject.together(acts)
        for handle in handles:
            await handle.require_held(*history.written[-1].values())


async def _read_on(reader: Subject, history: _History, over: trio.Event) -> None:
    """Look until the writer is done: in one way during each write, in the next during the next.

    Ways that took turns could keep step with the writer, and each miss the moment that only it would see.
    """
    ways = [_look_beside, _scan_beside, *([_read_beside] if reader.traits.holds_text else [])]
    number = looks = 0
    while not over.is_set():
        if number != len(history.written):
            number, looks = len(history.written), 0
        await ways[number % len(ways)](reader, history)
        looks += 1
        # The longer a write takes, the longer the pauses: on a virtual clock, no time would pass without any.
        if looks > _LOOKS:
            await trio.sleep((looks - _LOOKS) / 1000)


async def _look_beside(reader: Subject, history: _History) -> None:
    ids, landed = list(history.written[0]), history.landed
    for doc_id, seen in zip(ids, await reader.observe(*ids), strict=True):
        history.require_written("observe", doc_id, seen, landed)


async def _read_beside(reader: Subject, history: _History) -> None:
    ids, landed = list(history.written[0]), history.landed
    for doc_id, answer in zip(ids, await reader.read_raw(ids), strict=True):
        if isinstance(answer, StoreRejected):
            broken(f"beside a writer, read of {doc_id} was rejected: {answer.problem}")
        if isinstance(answer, StoredDocument):  # any other error says "not now"
            history.require_whole(doc_id, answer, landed)


async def _scan_beside(reader: Subject, history: _History) -> None:
    ids, landed = list(history.written[0]), history.landed
    scanned = dict(await reader.scan())
    for doc_id in ids:
        require(doc_id in scanned, f"beside a writer that never removes it, a scan does not show {doc_id}")
        history.require_written("scan", doc_id, scanned[doc_id], landed)


@attrs.define
class _History:
    """All that was ever written, and what of it has landed."""

    subject: Subject
    written: list[Mapping[str, Document]] = attrs.field(factory=list)
    """By number: what was written under it. The last may be under way."""
    tokens: dict[tuple[str, int], str] = attrs.field(factory=dict)
    """By id and number: the token that was first seen with it."""
    landed: int = 0
    """What is held has at least this number."""

    async def write_next(self) -> None:
        """Write every document once more."""
        number = len(self.written)
        documents = self._documents(number)
        self.written.append({document.doc_id: document for document in documents})
        await self.subject.put(*documents)
        self.landed = number

    def _documents(self, number: int) -> Sequence[Document]:
        # Longer and shorter by turns, so that a mixture of two has neither's digest.
        long = f"long {number} " * (600 if number % 2 else 300)
        documents = [
            self.subject.document("long", long, number=number, metadata={"number": number}),
            self.subject.document("short", f"short {number}", number=number),
        ]
        if self.subject.traits.keeps_tombstones:
            alive = self.subject.document("deleted at times", f"alive {number}", number=number)
            documents.append(alive if number % 2 else Document.tombstone(alive.doc_id, number=number))
        return documents

    def require_written(self, source: str, doc_id: str, seen: Observation, landed: int) -> None:
        """What `source` showed is what somebody wrote, and no older than what had landed before it was asked."""
        where = f"beside a writer, {source} of {doc_id}"
        wanted = self._find(where, doc_id, None if seen.version is None else seen.version.number, landed)
        presence = Presence.TOMBSTONE if wanted.version.deleted else Presence.LIVE
        require(seen.presence is presence, f"{where} showed {seen.presence}, which nobody wrote")
        require(seen.version == wanted.version, f"{where} showed {seen.version}, which nobody wrote")
        require(seen.intact, f"{where} showed a copy that is not intact")
        self._require_token(where, wanted, seen.token)

    def require_whole(self, doc_id: str, answer: StoredDocument, landed: int) -> None:
        """What read gave is what somebody wrote, to the last character."""
        where = f"beside a writer, read of {doc_id}"
        got = answer.document
        if got is None:
            broken(f"{where} gave nothing")
        wanted = self._find(where, doc_id, got.version.number, landed)
        require(got.version == wanted.version, f"{where} gave {got.version}, which nobody wrote")
        require(
            got.text == wanted.text and dict(got.metadata) == dict(wanted.metadata),
            f"{where} gave content that nobody wrote under {got.version}",
        )
        self._require_token(where, wanted, answer.token)

    def _require_token(self, where: str, document: Document, token: str) -> None:
        """What is shown and its token come from one look: every write has a token of its own."""
        number = document.version.number
        assert number is not None
        known = self.tokens.setdefault((document.doc_id, number), token)
        require(known == token, f"{where} showed number {number} with another token than it had before")
        for near in (number - 1, number + 1):
            require(
                self.tokens.get((document.doc_id, near)) != token,
                f"{where} showed number {number} with the token of number {near}",
            )

    def _find(self, where: str, doc_id: str, number: int | None, landed: int) -> Document:
        if number is None or number >= len(self.written):
            broken(f"{where} showed the number {number}, which nobody wrote")
        require(number >= landed, f"{where} showed number {number} when {landed} had landed before")
        return self.written[number][doc_id]
