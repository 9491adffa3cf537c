"""`check_store` rejects stores that go wrong when calls overlap or are cancelled, and those whose limits are not true.

Each wrong store is the reference store with one mistake, as in `test_check_store`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, ClassVar

import attrs
import pytest
import trio
from wrong_stores import Right, Shared, check_in_virtual_time, in_virtual_time, two_handles

from trio_repair import (
    Document,
    Observation,
    Prepared,
    Presence,
    Removal,
    StoredDocument,
    StoreError,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.testing import ContractBroken

# Fences that are looked at in one step and obeyed in another


class ActsLater(Right):
    """Looks, lets others in, and acts on what it saw, in those calls that `is_careless` about."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        documents = [one.prepared.document for one in writes]
        if not self.is_careless(documents, len(writes)):
            return await super().write(writes)
        early = self.look([one.doc_id for one in documents])
        await self.let_others_in()
        return [self._change(one.doc_id, write.token, one, early) for one, write in zip(documents, writes, strict=True)]

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        if not self.is_careless((), len(removals)):
            return await super().remove(removals)
        early = self.look([one.doc_id for one in removals])
        await self.let_others_in()
        return [self._change(one.doc_id, one.token, None, early) for one in removals]

    def look(self, doc_ids: Sequence[str]) -> Mapping[str, str]:
        if self._closed:
            raise StoreUnavailable("text", "is closed")
        return {doc_id: self.observe_nowait(doc_id).token for doc_id in doc_ids}

    async def let_others_in(self) -> None:
        for _ in range(2):
            await trio.lowlevel.checkpoint()

    def is_careless(self, written: Sequence[Document], size: int) -> bool:
        raise NotImplementedError


class RemovesLater(ActsLater):
    """Removals only."""

    def is_careless(self, written: Sequence[Document], size: int) -> bool:
        return not written


class RemovesMuchLater(RemovesLater):
    """Removals only, and the server takes its time between its two steps."""

    async def let_others_in(self) -> None:
        await trio.sleep(0.01)


class BuriesLater(ActsLater):
    """Calls that write nothing but tombstones."""

    def is_careless(self, written: Sequence[Document], size: int) -> bool:
        return bool(written) and all(one.version.deleted for one in written)


class MixesLater(ActsLater):
    """Calls that write both documents and tombstones."""

    def is_careless(self, written: Sequence[Document], size: int) -> bool:
        return len({one.version.deleted for one in written}) > 1


class ReplacesGravesLater(ActsLater):
    """Calls that write over tombstones."""

    def is_careless(self, written: Sequence[Document], size: int) -> bool:
        held = [self.observe_nowait(one.doc_id).presence for one in written]
        return Presence.TOMBSTONE in held


class BatchesLater(ActsLater):
    """Calls of more than three documents."""

    def is_careless(self, written: Sequence[Document], size: int) -> bool:
        return size > 3


class RemovesUnderItsOwnLock(Shared):
    """Looks and then removes. Whatever it changes, it does under a lock, which other handles do not know."""

    def __init__(self, first: Shared | None) -> None:
        super().__init__(first)
        self._lock = trio.Lock()

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        async with self._lock:
            return await super().write(writes)

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        async with self._lock:
            early = {one.doc_id: self.observe_nowait(one.doc_id).token for one in removals}
            await trio.lowlevel.checkpoint()
            return [self._change(one.doc_id, one.token, None, early) for one in removals]


# Remains


class GravesKeepChunks(Right):
    """A tombstone leaves the rows of chunks; those that the next, shorter text does not replace are read with it."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks: dict[str, dict[int, str]] = {}

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        held = self.get_nowait(doc_id)
        if document is None or (held is not None and not held.version.deleted and not document.version.deleted):
            self._chunks.pop(doc_id, None)
        if document is not None and document.text is not None:
            rows = self._chunks.setdefault(doc_id, {})
            rows.update({start: document.text[start : start + 200] for start in range(0, len(document.text), 200)})
        return super()._replace(doc_id, document)

    def _read(self, doc_id: str) -> StoredDocument | StoreError:
        answer = super()._read(doc_id)
        if isinstance(answer, StoredDocument) and answer.document is not None and answer.document.text is not None:
            text = "".join(chunk for _, chunk in sorted(self._chunks[doc_id].items()))
            return attrs.evolve(answer, document=attrs.evolve(answer.document, text=text))
        return answer


class BatchesOfGravesKeepChunks(GravesKeepChunks):
    """Of a call that deletes several documents, only the first loses its rows."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        answers = await super().write(writes)
        if writes and writes[0].prepared.document.version.deleted:
            self._chunks.pop(writes[0].prepared.document.doc_id, None)
        return answers


# Cancellation


class SwallowsCancelled(Right):
    """Every call catches Cancelled, does its work, and answers as if nothing had been."""

    async def _checkpoint(self, documents: int) -> None:
        with suppress(trio.Cancelled):  # the mistake
            await trio.sleep(0.01)
        with trio.CancelScope(shield=True):
            await super()._checkpoint(documents)


class AnswersUnknown(Right):
    """A write that is cancelled answers UNKNOWN, without an effect, and does not let the cancellation out."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        try:
            return await super().write(writes)
        except trio.Cancelled:  # noqa: ASYNC103 - the mistake
            error = StoreUnavailable("text", "cancelled")
            return [WriteAnswer(status=WriteStatus.UNKNOWN, error=error) for _ in writes]


class EndsScansWhenCancelled(Right):
    """A scan that is cancelled ends, as if it were complete."""

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> Any:
        async with super().open_scan(after) as pages:

            async def give() -> AsyncIterator[Any]:
                try:
                    async for page in pages:
                        yield page
                except trio.Cancelled:  # noqa: ASYNC103 - the mistake
                    return

            async with aclosing(give()) as open_pages:
                yield open_pages


class Interruptible(Right):
    """Base of stores whose writes take a moment; `give_up` decides what a cancelled one does."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        await self._checkpoint(len(writes))
        try:
            await trio.sleep(0.01)
        except trio.Cancelled:  # noqa: ASYNC103 - each decides
            return await self.give_up(writes)
        return self.change_nowait(writes)

    async def give_up(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        raise NotImplementedError


class GoesOnWaiting(Interruptible):
    """A cancelled write waits for its server, which has been told nothing, for five seconds more."""

    async def give_up(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return self.change_nowait(writes)


class TellsFalsely(Interruptible):
    """A cancelled write is rolled back, and answers LANDED."""

    async def give_up(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        await trio.lowlevel.cancel_shielded_checkpoint()
        seen = [self.observe_nowait(one.prepared.document.doc_id) for one in writes]
        return [WriteAnswer(status=WriteStatus.LANDED, observation=one) for one in seen]


class LandsAllTheSame(Interruptible):
    """Right: a cancelled write that its server has done already is told as what it is."""

    async def give_up(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        await trio.lowlevel.cancel_shielded_checkpoint()
        return self.change_nowait(writes)


class LandsAndRaises(Interruptible):
    """Right: a cancelled write lands, and raises Cancelled."""

    async def give_up(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        self.change_nowait(writes)
        await trio.lowlevel.checkpoint()
        raise AssertionError


class LandsASecondLater(Right):
    """The driver's thread is left behind by a cancelled call, and does its work a second later."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        try:
            return await super().write(writes)
        except trio.Cancelled:
            trio.lowlevel.spawn_system_task(self._land, list(writes))
            raise

    async def _land(self, writes: list[Write]) -> None:
        await trio.sleep(1)
        self.change_nowait(writes)


class BuriesASecondLater(LandsASecondLater):
    """The same, for tombstones alone."""

    async def _land(self, writes: list[Write]) -> None:
        await super()._land([one for one in writes if one.prepared.document.version.deleted])


class RemovesASecondLater(Right):
    """The same, for removals."""

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        try:
            return await super().remove(removals)
        except trio.Cancelled:
            trio.lowlevel.spawn_system_task(self._land, list(removals))
            raise

    async def _land(self, removals: list[Removal]) -> None:
        await trio.sleep(1)
        for one in removals:
            self._change(one.doc_id, one.token, None, None)


# Limits that are not true


class FewerCalls(Right):
    """Says that it takes 64 calls at once; its pool has 40 connections."""

    changed_traits: ClassVar[dict[str, Any]] = {"max_calls": 64}
    _under_way = 0

    async def _checkpoint(self, documents: int) -> None:
        if self._under_way >= 40:
            raise StoreUnavailable("text", "too many connections")
        self._under_way += 1
        try:
            await super()._checkpoint(documents)
        finally:
            self._under_way -= 1


class ScanWindow(Right):
    """A scan ends at ten thousand documents without a word, as a result of a search index does."""

    changed_traits: ClassVar[dict[str, Any]] = {"max_batch": 256}

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> Any:
        async with super().open_scan(after) as pages:

            async def give() -> AsyncIterator[Any]:
                left = 10_000
                async for page in pages:
                    yield page[:left]
                    left -= len(page)
                    if left <= 0:
                        return

            async with aclosing(give()) as open_pages:
                yield open_pages


class CountsInAByte(Right):
    """The token counts the changes of a document in one byte."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, int] = {}

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        super()._replace(doc_id, document)
        count = self._counts[doc_id] = (self._counts.get(doc_id, 0) + 1) % 256
        if doc_id in self._copies:
            self._copies[doc_id] = attrs.evolve(self._copies[doc_id], token=f"{count}")
        return self.observe_nowait(doc_id)


class WorksWhenClosed(Right):
    """Closing it changes nothing."""

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class CountsTheLiving(Right):
    """count leaves out tombstones."""

    async def count(self) -> int:
        await super().count()
        return sum(not copy.document.version.deleted for copy in self._copies.values())


# Numbers that pass the fence


class HighNumberPasses(Right):
    """A version far above the one held is written whatever the token says."""

    def _change(self, doc_id: str, expected: str, document: Document | None, held: Any) -> WriteAnswer:
        seen = self.observe_nowait(doc_id)
        numbers = [0 if one is None or one.number is None else one.number for one in (seen.version, _version(document))]
        return super()._change(doc_id, seen.token if numbers[1] > numbers[0] + 1000 else expected, document, held)


class KeepsHighNumber(Right):
    """A version far below the one held is thrown away, and answers LANDED."""

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        held = self.get_nowait(doc_id)
        numbers = [0 if one is None or one.number is None else one.number for one in map(_version, (held, document))]
        if document is not None and numbers[1] < numbers[0] - 1000:
            return self.observe_nowait(doc_id)
        return super()._replace(doc_id, document)


def _version(document: Document | None) -> Any:
    return None if document is None else document.version


# Texts in errors


class QuotesInNotes(Right):
    """A note on the error of a rejected document quotes it."""

    def _prepare(self, document: Document) -> Prepared | StoreError:
        answer = super()._prepare(document)
        if isinstance(answer, StoreError):
            answer.add_note(f"in: {document.text}")
        return answer


class QuotesInOrigin(Right):
    """What the cause of the error came from quotes the document."""

    def _prepare(self, document: Document) -> Prepared | StoreError:
        answer = super()._prepare(document)
        if isinstance(answer, StoreError):
            answer.__cause__ = RuntimeError("insert failed")
            answer.__cause__.__context__ = ExceptionGroup("rows", [ValueError(f"bad row: {document.text}")])
        return answer


WRONG: list[tuple[type[Right], str]] = [
    (RemovesLater, "one-winner"),
    (RemovesLater, "no-lost-update"),
    (RemovesMuchLater, "one-winner"),
    (BuriesLater, "one-winner"),
    (BuriesLater, "no-lost-update"),
    (MixesLater, "one-winner"),
    (MixesLater, "no-lost-update"),
    (ReplacesGravesLater, "one-winner"),
    (BatchesLater, "one-winner"),
    (BatchesLater, "no-lost-update"),
    (GravesKeepChunks, "replaced-whole"),
    (BatchesOfGravesKeepChunks, "replaced-whole"),
    (SwallowsCancelled, "cancelled-told"),
    (AnswersUnknown, "cancelled-told"),
    (EndsScansWhenCancelled, "cancelled-told"),
    (GoesOnWaiting, "cancelled-told"),
    (TellsFalsely, "cancelled-told"),
    (LandsASecondLater, "cancelled-whole"),
    (BuriesASecondLater, "cancelled-whole"),
    (RemovesASecondLater, "cancelled-whole"),
    (FewerCalls, "max-calls-at-once"),
    (ScanWindow, "scan-complete"),
    (CountsInAByte, "token-moves"),
    (WorksWhenClosed, "closed-for-good"),
    (CountsTheLiving, "count-near"),
    (HighNumberPasses, "fence-everywhere"),
    (KeepsHighNumber, "write-is-seen"),
    (QuotesInNotes, "one-poison-alone"),
    (QuotesInOrigin, "one-poison-alone"),
]


@pytest.mark.parametrize(("kind", "promise"), WRONG, ids=[f"{kind.__name__}-{name}" for kind, name in WRONG])
def test_wrong_store_is_rejected_by_name(kind: type[Right], promise: str) -> None:
    """A store with one mistake breaks the promise that the mistake is about."""
    with pytest.raises(ContractBroken) as caught:
        in_virtual_time(kind, only=[promise])
    assert list(caught.value.breaches) == [promise]


@pytest.mark.parametrize("kind", [LandsAllTheSame, LandsAndRaises])
def test_cancelled_call_that_lands_is_right(kind: type[Right]) -> None:
    """The control: what a cancelled call has done in truth it may tell, or not."""
    in_virtual_time(kind)


@pytest.mark.parametrize("promise", ["one-winner", "no-lost-update"])
def test_removals_race_between_handles(promise: str) -> None:
    """A lock that other handles do not know guards removals within one handle, and is caught by a second."""
    first, again = two_handles(RemovesUnderItsOwnLock)
    check_in_virtual_time(first, only=[promise])
    with pytest.raises(ContractBroken) as caught:
        check_in_virtual_time(first, again=again, only=[promise])
    assert list(caught.value.breaches) == [promise]
