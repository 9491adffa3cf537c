"""`check_store` can fail: a store that breaks one promise is rejected, and the promise is named.

Each wrong store is the reference store with one mistake that real adapters make.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, ClassVar

import attrs
import pytest
import trio
import trio.testing
from wrong_stores import Right, Shared, check_in_virtual_time, in_virtual_time, two_handles

from trio_repair import (
    Document,
    DocumentVersion,
    EmbeddingIdentity,
    Fence,
    InvalidValue,
    Observation,
    Prepared,
    Presence,
    RangeDigest,
    RangeListing,
    Removal,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
    summarize,
)
from trio_repair.abc import ScanPage
from trio_repair.stores.memory import MemoryCopy
from trio_repair.testing import PROMISES, ContractBroken, check_store

MODEL = EmbeddingIdentity(model="model", dimension=3, chunking="whole")


# Tokens and fence


class VersionAsToken(Right):
    """The token is the version number: it comes back when the document is recreated (ABA)."""

    def observe_nowait(self, doc_id: str) -> Observation:
        seen = super().observe_nowait(doc_id)
        return seen if seen.version is None else attrs.evolve(seen, token=f"v{seen.version.number}")


class RowCounterAsToken(Right):
    """The token counts changes in the row, and starts again when the row is removed (ABA)."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, int] = {}

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        super()._replace(doc_id, document)
        if doc_id not in self._copies:
            self._counts.pop(doc_id, None)
        else:
            count = self._counts[doc_id] = self._counts.get(doc_id, 0) + 1
            self._copies[doc_id] = attrs.evolve(self._copies[doc_id], token=f"row {count}")
        return self.observe_nowait(doc_id)


class DigestAsToken(Right):
    """The token is the digest: it does not move when the number or the metadata does."""

    def observe_nowait(self, doc_id: str) -> Observation:
        seen = super().observe_nowait(doc_id)
        return seen if seen.version is None else attrs.evolve(seen, token=f"d{seen.version.digest}")


class ScanCounterAsToken(Right):
    """The token is the revision of the whole store: writing one document moves the tokens of all."""

    def observe_nowait(self, doc_id: str) -> Observation:
        return attrs.evolve(super().observe_nowait(doc_id), token=f"all {self._revision}")


class NoFence(Right):
    """The token is ignored: the last writer wins."""

    def _change(self, doc_id: str, expected: str, document: Document | None, held: object) -> WriteAnswer:
        return WriteAnswer(status=WriteStatus.LANDED, observation=self._replace(doc_id, document))


class CreatesBlindly(Right):
    """The fence guards updates; an insert overwrites what somebody else inserted first."""

    def _change(self, doc_id: str, expected: str, document: Document | None, held: Any) -> WriteAnswer:
        if expected == "absent" and document is not None:
            return WriteAnswer(status=WriteStatus.LANDED, observation=self._replace(doc_id, document))
        return super()._change(doc_id, expected, document, held)


class CheckThenAct(Right):
    """Says that its fence is strong, and looks before the checkpoint that lets others in."""

    def _early_tokens(self, doc_ids: Sequence[str]) -> dict[str, str]:
        return {doc_id: self.observe_nowait(doc_id).token for doc_id in doc_ids}


class ChecksLongBefore(Right):
    """The fence is asked, the server takes its time, and then the write goes by the token of that later moment."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        early = [self.observe_nowait(write.prepared.document.doc_id) for write in writes]
        await trio.sleep(0.01)
        now = [self.observe_nowait(write.prepared.document.doc_id) for write in writes]
        return await super().write(
            [
                attrs.evolve(write, token=later.token) if write.token == first.token else write
                for write, first, later in zip(writes, early, now, strict=True)
            ]
        )


class RemovesBlindly(Right):
    """Writes are fenced, removals are not."""

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        return await super().remove(
            [Removal(doc_id=one.doc_id, token=self.observe_nowait(one.doc_id).token) for one in removals]
        )


class ReadTokenDiffers(Right):
    """read gives a token that observe does not know."""

    def _read(self, doc_id: str) -> StoredDocument | StoreError:
        answer = super()._read(doc_id)
        return answer if isinstance(answer, StoreError) else attrs.evolve(answer, token=f"read {answer.token}")


class GraveUnfenced(Right):
    """The fence is not asked when a tombstone is held: `WHERE token = ? OR deleted`."""

    def _change(self, doc_id: str, expected: str, document: Document | None, held: Any) -> WriteAnswer:
        seen = self.observe_nowait(doc_id)
        return super()._change(doc_id, seen.token if seen.presence is Presence.TOMBSTONE else expected, document, held)


class GraveUnfencedForCreators(Right):
    """Who saw the document absent may write over a tombstone."""

    def _change(self, doc_id: str, expected: str, document: Document | None, held: Any) -> WriteAnswer:
        seen = self.observe_nowait(doc_id)
        creates = expected == "absent" and seen.presence is Presence.TOMBSTONE
        return super()._change(doc_id, seen.token if creates else expected, document, held)


class NumberlessUnfenced(Right):
    """The fence is not asked when what is held has no number: `WHERE number IS NULL OR ...`."""

    def _change(self, doc_id: str, expected: str, document: Document | None, held: Any) -> WriteAnswer:
        seen = self.observe_nowait(doc_id)
        numberless = seen.version is not None and seen.version.number is None
        return super()._change(doc_id, seen.token if numberless else expected, document, held)


class CreatesUnfenced(Right):
    """The fence is not asked when nothing is held: a token from before a removal brings the document back."""

    def _change(self, doc_id: str, expected: str, document: Document | None, held: Any) -> WriteAnswer:
        seen = self.observe_nowait(doc_id)
        return super()._change(doc_id, seen.token if seen.presence is Presence.ABSENT else expected, document, held)


class DeletesUnfenced(Right):
    """Tombstones without a number are written whatever is held."""

    def _change(self, doc_id: str, expected: str, document: Document | None, held: Any) -> WriteAnswer:
        if document is not None and document.version.deleted and document.version.number is None:
            expected = self.observe_nowait(doc_id).token
        return super()._change(doc_id, expected, document, held)


class RemovesGravesBlindly(Right):
    """A removal of a tombstone is not fenced: nobody can miss it."""

    def _change(self, doc_id: str, expected: str, document: Document | None, held: Any) -> WriteAnswer:
        seen = self.observe_nowait(doc_id)
        purges = document is None and seen.presence is Presence.TOMBSTONE
        return super()._change(doc_id, seen.token if purges else expected, document, held)


# Batches


class LyingRemoval(Right):
    """In a batch, a stale removal says REFUSED and removes all the same."""

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        answers = await super().remove(removals)
        for removal, answer in zip(removals, answers, strict=True):
            if len(removals) > 1 and answer.status is WriteStatus.REFUSED:
                self._replace(removal.doc_id, None)
        return answers


class LyingWrite(Right):
    """In a batch of which one write landed, those that were REFUSED are written as well."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        answers = await super().write(writes)
        if any(answer.status is WriteStatus.LANDED for answer in answers):
            for write, answer in zip(writes, answers, strict=True):
                if answer.status is WriteStatus.REFUSED:
                    self._replace(write.prepared.document.doc_id, write.prepared.document)
        return answers


class LyingLanding(Right):
    """In a batch of which one removal was refused, the others say LANDED and are rolled back."""

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        before = self.snapshot()
        answers = await super().remove(removals)
        if any(answer.status is WriteStatus.REFUSED for answer in answers):
            self._copies = before
        return answers


class Shuffled(Right):
    """Answers come in the order of the index, as from `WHERE id IN (...)`."""

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        return await super().observe(sorted(doc_ids))


class LeavesOutAbsent(Right):
    """Documents that are not held get no answer."""

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        return await super().read([doc_id for doc_id in doc_ids if doc_id in self._copies])


class PoisonFailsBatch(Right):
    """One document that is rejected fails the whole call."""

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        answers = await super().prepare(documents)
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer
        return answers


class StaleFailsBatch(Right):
    """One stale token refuses the whole transaction."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        seen = [self.observe_nowait(write.prepared.document.doc_id) for write in writes]
        if any(one.token != write.token for one, write in zip(seen, writes, strict=True)):
            await trio.lowlevel.checkpoint()
            return [WriteAnswer(status=WriteStatus.REFUSED, observation=one) for one in seen]
        return await super().write(writes)


class FailsOnEmpty(Right):
    """A call without documents is malformed SQL."""

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        if not doc_ids:
            raise StoreUnavailable("text", "syntax error near ')'")
        return await super().observe(doc_ids)


class SmallerBatches(Right):
    """Takes fewer documents than it says."""

    @property
    def traits(self) -> StoreTraits:
        return attrs.evolve(self._traits, max_batch=17)


class SilentRefusal(Right):
    """A refusal does not say what is held instead."""

    def _change(self, doc_id: str, expected: str, document: Document | None, held: Any) -> WriteAnswer:
        answer = super()._change(doc_id, expected, document, held)
        return attrs.evolve(answer, observation=None) if answer.status is WriteStatus.REFUSED else answer


class StaleAnswer(Right):
    """A landed write shows what was held before it."""

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        before = self.observe_nowait(doc_id)
        super()._replace(doc_id, document)
        return before


# Content


class TextInErrors(Right):
    """The error of a rejected document quotes it."""

    def _prepare(self, document: Document) -> Prepared | StoreError:
        answer = super()._prepare(document)
        if isinstance(answer, StoreError):
            return StoreRejected("text", f"cannot take {document.text!r}", document.doc_id)
        return answer


class TakesAnyDigest(Right):
    """Believes the digest that it is given."""

    def _prepare(self, document: Document) -> Prepared | StoreError:
        return Prepared(document=document)


class PreparesByWriting(Right):
    """prepare stages the document where everybody can see it."""

    def _prepare(self, document: Document) -> Prepared | StoreError:
        self._copies.setdefault(document.doc_id, MemoryCopy(document=document, token=self._next_token()))
        return super()._prepare(document)


class StaleChunks(Right):
    """A shorter text replaces only the beginning of a longer one."""

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        old = self.get_nowait(doc_id)
        if document is not None and document.text is not None and old is not None and old.text is not None:
            document = attrs.evolve(document, text=document.text + old.text[len(document.text) :])
        return super()._replace(doc_id, document)


class MixedBatchesKeepTails(Right):
    """A text that becomes shorter in a call in which another one becomes longer keeps its end."""

    def change_nowait(self, writes: Sequence[Write]) -> list[WriteAnswer]:
        texts = {write.prepared.document.doc_id: write.prepared.document.text or "" for write in writes}
        held = {doc_id: one.text or "" if (one := self.get_nowait(doc_id)) else "" for doc_id in texts}
        if any(len(texts[doc_id]) > len(held[doc_id]) > 0 for doc_id in texts):
            writes = [self._with_tail(write, held[write.prepared.document.doc_id]) for write in writes]
        return super().change_nowait(writes)

    @staticmethod
    def _with_tail(write: Write, old: str) -> Write:
        document = write.prepared.document
        if document.text is None or len(document.text) >= len(old):
            return write
        longer = attrs.evolve(document, text=document.text + old[len(document.text) :])
        return attrs.evolve(write, prepared=attrs.evolve(write.prepared, document=longer))

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        await trio.lowlevel.checkpoint()
        return self.change_nowait(writes)


class MergesMetadata(Right):
    """Metadata keys that a new version lacks survive from the old one."""

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        old = self.get_nowait(doc_id)
        if document is not None and document.text is not None and old is not None:
            document = attrs.evolve(document, metadata={**old.metadata, **document.metadata})
        return super()._replace(doc_id, document)


class StripsText(Right):
    """White space at the ends is lost."""

    def _read(self, doc_id: str) -> StoredDocument | StoreError:
        answer = super()._read(doc_id)
        if isinstance(answer, StoredDocument) and answer.document is not None and answer.document.text is not None:
            stripped = attrs.evolve(answer.document, text=answer.document.text.strip())
            return StoredDocument(document=stripped, token=answer.token)
        return answer


class RoundsMoments(Right):
    """updated_at loses its microseconds."""

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        if document is not None and document.version.updated_at is not None:
            rounded = document.version.updated_at.replace(microsecond=0)
            document = attrs.evolve(document, version=attrs.evolve(document.version, updated_at=rounded))
        return super()._replace(doc_id, document)


class NumbersFromZero(Right):
    """A version without a number is stored as number 0."""

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        if document is not None and document.version.number is None:
            document = attrs.evolve(document, version=attrs.evolve(document.version, number=0))
        return super()._replace(doc_id, document)


class FoldsCase(Right):
    """Ids that differ only in case are one document (a NOCASE column)."""

    def observe_nowait(self, doc_id: str) -> Observation:
        return super().observe_nowait(doc_id.lower())

    def _read(self, doc_id: str) -> StoredDocument | StoreError:
        return super()._read(doc_id.lower())

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        return super()._replace(doc_id.lower(), document)


class RemovesByPattern(Right):
    """Removal treats the id as a LIKE pattern."""

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        if document is None and doc_id == "%":
            self._copies.clear()
        return super()._replace(doc_id, document)


# Deletes and traits


class DropsTombstones(Right):
    """Says that it keeps tombstones, and forgets deleted documents."""

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        return super()._replace(doc_id, None if document is not None and document.version.deleted else document)


class KeepsTombstones(Right):
    """Says that it keeps no tombstones, and shows them."""

    @property
    def traits(self) -> StoreTraits:
        return attrs.evolve(self._traits, keeps_tombstones=False)


class RemovesSoftly(Right):
    """remove leaves a tombstone."""

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        if document is None and doc_id in self._copies:
            document = Document.tombstone(doc_id, number=0)
        return super()._replace(doc_id, document)


class SaysItHoldsText(Right):
    """Says that it gives text back, and does not."""

    changed_traits: ClassVar[dict[str, Any]] = {"holds_text": False}

    @property
    def traits(self) -> StoreTraits:
        return attrs.evolve(self._traits, holds_text=True)


class SaysItEmbeds(Right):
    """Names an embedding that its copies do not have."""

    @property
    def traits(self) -> StoreTraits:
        return attrs.evolve(self._traits, embedding=MODEL)


class MovingTraits(Right):
    """Changes its mind about its traits."""

    @property
    def traits(self) -> StoreTraits:
        return attrs.evolve(self._traits, max_calls=1 + self._revision)


class ClosesOnce(Right):
    """Cannot be closed twice."""

    async def aclose(self) -> None:
        if self._closed:
            raise RuntimeError("already closed")
        await super().aclose()


# Scans


class ScansOwn(Right):
    """Base of stores whose scan is wrong: `entries` decides what it gives."""

    def entries(self, after: str | None) -> list[tuple[str, Observation]]:
        ids = sorted(doc_id for doc_id in self._copies if after is None or doc_id > after)
        return [(doc_id, self.observe_nowait(doc_id)) for doc_id in ids]

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> Any:
        async def pages() -> AsyncGenerator[ScanPage, None]:
            entries = self.entries(after)
            for start in range(0, len(entries), 5):
                await trio.lowlevel.checkpoint()
                yield entries[start : start + 5]

        async with aclosing(pages()) as open_pages:
            yield open_pages


class ScansUnsorted(ScansOwn):
    """A scan comes in order of insertion."""

    def entries(self, after: str | None) -> list[tuple[str, Observation]]:
        return [(doc_id, self.observe_nowait(doc_id)) for doc_id in self._copies if after is None or doc_id > after]


class ScansInUtf16Order(ScansOwn):
    """A scan comes in the order of UTF-16 units, as in Java or JavaScript."""

    def entries(self, after: str | None) -> list[tuple[str, Observation]]:
        return sorted(super().entries(after), key=lambda entry: entry[0].encode("utf-16-be"))


class ScanIgnoresAfter(ScansOwn):
    """A scan always starts at the beginning."""

    def entries(self, after: str | None) -> list[tuple[str, Observation]]:
        return super().entries(None)


class ScanRepeatsAfter(ScansOwn):
    """`after` is part of the scan."""

    def entries(self, after: str | None) -> list[tuple[str, Observation]]:
        return [entry for entry in super().entries(None) if after is None or entry[0] >= after]


class ScanHidesTombstones(ScansOwn):
    """A scan shows live documents only."""

    def entries(self, after: str | None) -> list[tuple[str, Observation]]:
        return [entry for entry in super().entries(after) if entry[1].presence is Presence.LIVE]


class ScanReadsLive(Right):
    """A scan asks for each page anew: there is no snapshot."""

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> Any:
        async def pages() -> AsyncGenerator[ScanPage, None]:
            last = after
            while True:
                await trio.lowlevel.checkpoint()
                ids = sorted(doc_id for doc_id in self._copies if last is None or doc_id > last)[:5]
                if not ids:
                    return
                last = ids[-1]
                yield [(doc_id, self.observe_nowait(doc_id)) for doc_id in ids]

        async with aclosing(pages()) as open_pages:
            yield open_pages


class ScanLocksForEver(Right):
    """A scan that is left early never gives its connection back."""

    def __init__(self) -> None:
        super().__init__()
        self._connections = trio.CapacityLimiter(10)

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> Any:
        await self._connections.acquire_on_behalf_of(object())
        async with super().open_scan(after) as pages:
            yield pages


class Snapshot:
    """`Ranges` of what a store holds at one moment; what a store that subclasses `Ranged` does wrong, it is asked."""

    def __init__(self, store: Ranged) -> None:
        self.store = store
        self.views = store.views()

    def between(self, after: str | None, bound: str | None) -> list[str]:
        return sorted(i for i in self.views if (after is None or i > after) and (bound is None or i <= bound))

    def entries(self, ids: Sequence[str]) -> bytes:
        return b"".join(f"{i}\0{self.store.summary(self.views[i])}\0".encode() for i in ids)

    async def ranges(self, after: str | None, size: int, count: int) -> list[tuple[str, RangeDigest]]:
        ids = self.between(after, None)
        some = [ids[start : start + size] for start in range(0, len(ids), size)][:count]
        return [(part[-1], self.store.digest(self.entries(part))) for part in some]

    async def digests(self, after: str | None, bounds: Sequence[str | None], most: int) -> list[RangeDigest | None]:
        found: list[RangeDigest | None] = []
        for bound in bounds:
            ids = self.between(after, bound)
            found.append(self.store.digest(self.entries(ids)) if len(ids) <= most else None)
            after = bound
        return found

    async def listing(self, after: str | None, bound: str | None) -> RangeListing:
        ids = self.between(after, bound)
        return RangeListing(entries=self.entries(ids[:70]), more=len(ids) > 70)

    async def look(self, doc_ids: Sequence[str]) -> list[Observation]:
        absent = Observation(presence=Presence.ABSENT, token="absent")
        return [self.views.get(doc_id, absent) for doc_id in doc_ids]


class Ranged(Right):
    """Has ranges."""

    snapshot: ClassVar[type[Snapshot]] = Snapshot

    def views(self) -> Any:
        return {doc_id: self.observe_nowait(doc_id) for doc_id in self.documents()}

    def summary(self, view: Observation) -> str:
        return summarize(view, self.traits)

    def digest(self, entries: bytes) -> RangeDigest:
        return RangeDigest.of(entries)

    @asynccontextmanager
    async def open_ranges(self, after: str | None = None) -> Any:
        await trio.lowlevel.checkpoint()
        yield self.snapshot(self)


class RangesWithoutNumbers(Ranged):
    """Two versions of one text have one summary."""

    def summary(self, view: Observation) -> str:
        return "" if view.version is None else str(view.version.digest)


class RangesWithNamelessGraves(Ranged):
    """A tombstone has the summary of no other store's tombstone."""

    def summary(self, view: Observation) -> str:
        return "gone" if view.presence is Presence.TOMBSTONE else super().summary(view)


class RangesHideOdd(Ranged):
    """What has to be looked at is not counted."""

    def summary(self, view: Observation) -> str:
        return "" if view.version is None or view.version.number is None else super().summary(view)

    def digest(self, entries: bytes) -> RangeDigest:
        return attrs.evolve(super().digest(entries), odd=0)


class RangesDigestIds(Ranged):
    """Digests are of ids alone: every version has the same."""

    def digest(self, entries: bytes) -> RangeDigest:
        return attrs.evolve(super().digest(entries), digest=RangeDigest.of(b"".join(entries.split(b"\0")[::2])).digest)


class RangesLookElsewhere(Ranged):
    """A look gives another token than a scan."""

    class snapshot(Snapshot):  # noqa: N801 - called like the method that it is
        async def look(self, doc_ids: Sequence[str]) -> list[Observation]:
            return [attrs.evolve(view, token=f"{view.token}'") for view in await super().look(doc_ids)]


class RangesEndEarly(Ranged):
    """Only the first range is given."""

    class snapshot(Snapshot):  # noqa: N801 - called like the method that it is
        async def ranges(self, after: str | None, size: int, count: int) -> list[tuple[str, RangeDigest]]:
            return (await super().ranges(after, size, count))[:1] if after is None else []


class RangesSkip(Ranged):
    """A range leaves out its first document, as one that takes `after` for the first one's own id."""

    class snapshot(Snapshot):  # noqa: N801 - called like the method that it is
        def between(self, after: str | None, bound: str | None) -> list[str]:
            return super().between(after, bound)[0 if after is None else 1 :]


class RangesInclude(Ranged):
    """A range includes `after`."""

    class snapshot(Snapshot):  # noqa: N801 - called like the method that it is
        def between(self, after: str | None, bound: str | None) -> list[str]:
            ids = super().between(after, bound)
            return ids if after not in self.views or not ids else [after, *ids]


class RangesIgnoreBounds(Ranged):
    """A digest is of a whole page, whatever its bound."""

    class snapshot(Snapshot):  # noqa: N801 - called like the method that it is
        async def digests(self, after: str | None, bounds: Sequence[str | None], most: int) -> list[RangeDigest | None]:
            return await super().digests(after, [None] * len(bounds), most)


class RangesIgnoreOpenEnds(Ranged):
    """The end of a range that is open is taken for nothing."""

    class snapshot(Snapshot):  # noqa: N801 - called like the method that it is
        async def digests(self, after: str | None, bounds: Sequence[str | None], most: int) -> list[RangeDigest | None]:
            return await super().digests(after, [bound or "" for bound in bounds], most)


class RangesListOnce(Ranged):
    """The first page of a listing says that it is all."""

    class snapshot(Snapshot):  # noqa: N801 - called like the method that it is
        async def listing(self, after: str | None, bound: str | None) -> RangeListing:
            return attrs.evolve(await super().listing(after, bound), more=False)


class RangesListForEver(Ranged):
    """A listing has always one more page, and it is empty."""

    class snapshot(Snapshot):  # noqa: N801 - called like the method that it is
        async def listing(self, after: str | None, bound: str | None) -> RangeListing:
            return attrs.evolve(await super().listing(after, bound), more=True)


class RangesUnsorted(Ranged):
    """Entries come as they lie."""

    class snapshot(Snapshot):  # noqa: N801 - called like the method that it is
        def entries(self, ids: Sequence[str]) -> bytes:
            return super().entries(sorted(ids, key=lambda doc_id: doc_id[::-1]))


class RangesReadLive(Ranged):
    """What is asked later shows what is held later."""

    class snapshot(Snapshot):  # noqa: N801 - called like the method that it is
        def between(self, after: str | None, bound: str | None) -> list[str]:
            self.views = self.store.views()
            return super().between(after, bound)


class ScanEndsEarly(ScansOwn):
    """A scan ends after 600 documents, as a result page of a server does."""

    def entries(self, after: str | None) -> list[tuple[str, Observation]]:
        return super().entries(after)[:600]


class ScanTurnsLive(ScansOwn):
    """The first thousand documents of a scan are a snapshot; what follows is asked for when it is needed."""

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> Any:
        async def pages() -> AsyncGenerator[ScanPage, None]:
            first = self.entries(after)[:1000]
            yield first
            await trio.lowlevel.checkpoint()
            if first:
                yield self.entries(first[-1][0])

        async with aclosing(pages()) as open_pages:
            yield open_pages


class CountsNothing(Right):
    """count is not implemented."""

    async def count(self) -> int:
        return 0


class CountsOnce(Right):
    """count is an estimate from statistics that are never brought up to date again."""

    _counted: int | None = None

    async def count(self) -> int:
        if self._counted is None:
            self._counted = await super().count()
        return self._counted


class CountsRows(Right):
    """count gives the number of chunks."""

    async def count(self) -> int:
        return 3 * await super().count()


# Cancellation, errors


class EmptiesFirst(Right):
    """An emptied text under a false digest is committed first, then the real write; a cancellation cannot part them."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        for write in writes:
            copy = self._copies.get(write.prepared.document.doc_id)
            if copy is not None and copy.token == write.token and copy.document.text is not None:
                version = attrs.evolve(copy.document.version, digest="0" * 64)
                self._copies[copy.document.doc_id] = attrs.evolve(
                    copy, document=attrs.evolve(copy.document, text="", version=version)
                )
        await trio.lowlevel.cancel_shielded_checkpoint()
        return self.change_nowait(writes)


class DeletesFirst(Right):
    """A document is deleted, and then inserted anew; a cancellation cannot part the two."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        held = self.snapshot()
        going = {one.prepared.document.doc_id for one in writes}
        self._copies = {doc_id: copy for doc_id, copy in held.items() if doc_id not in going}
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._copies = held
        return self.change_nowait(writes)


class ContentBeforeVersion(Right):
    """Texts and versions are in two tables, and one is committed before the other."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        for write in writes:
            document = write.prepared.document
            copy = self._copies.get(document.doc_id)
            if copy is not None and copy.token == write.token and None not in (copy.document.text, document.text):
                mixed = attrs.evolve(copy.document, text=document.text)
                self._copies[document.doc_id] = attrs.evolve(copy, document=mixed)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return self.change_nowait(writes)


class ReadsInTwoLooks(Right):
    """read looks for the token first and for the content later."""

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        tokens = self._tokens(doc_ids)
        return [
            one if isinstance(one, StoreError) else attrs.evolve(one, token=tokens[doc_id])
            for doc_id, one in zip(doc_ids, await super().read(doc_ids), strict=True)
        ]

    def _tokens(self, doc_ids: Sequence[str]) -> dict[str, str]:
        return {doc_id: self.observe_nowait(doc_id).token for doc_id in doc_ids}


class SlowlyEmptiesFirst(EmptiesFirst):
    """As its base, and every write takes ten seconds: readers that never pause would stop a virtual clock."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        await trio.sleep(10)
        return await super().write(writes)


class DeletesFirstAlone(Right):
    """One call at a time; a document is deleted and then inserted anew, and a cancellation can come between."""

    changed_traits: ClassVar[dict[str, Any]] = {"max_calls": 1}

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        held = self.snapshot()
        going = {one.prepared.document.doc_id for one in writes}
        self._copies = {doc_id: copy for doc_id, copy in held.items() if doc_id not in going}
        await trio.lowlevel.checkpoint()
        self._copies = held
        return await super().write(writes)


class BuriesInTwoSteps(Right):
    """One call at a time; a document that is deleted is emptied first, and a cancellation can come between."""

    changed_traits: ClassVar[dict[str, Any]] = {"max_calls": 1}

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        for write in writes:
            copy = self._copies.get(write.prepared.document.doc_id)
            if write.prepared.document.version.deleted and copy is not None:
                self._copies[copy.document.doc_id] = attrs.evolve(copy, intact=False)
        await trio.lowlevel.checkpoint()
        return await super().write(writes)


class RacesAlone(CheckThenAct):
    """Says that its fence is strong, and that it takes one call at a time: nothing shows that it looks too early."""

    changed_traits: ClassVar[dict[str, Any]] = {"max_calls": 1}


class TornWrites(Right):
    """A document's metadata is written in a second step: a cancelled call leaves half a document."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        answers = await super().write(writes)
        for write, answer in zip(writes, answers, strict=True):
            document = write.prepared.document
            if answer.status is WriteStatus.LANDED and document.text is not None:
                copy = self._copies[document.doc_id]
                self._copies[document.doc_id] = attrs.evolve(copy, intact=False)
                await trio.lowlevel.checkpoint()
                self._copies[document.doc_id] = copy
        return answers


class LandsLater(Right):
    """A cancelled write goes on in the background and lands when the caller has long gone on."""

    def __init__(self) -> None:
        super().__init__()
        self._late: list[Write] = []

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        try:
            return await super().write(writes)
        except trio.Cancelled:
            self._late.extend(writes)
            raise

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        for write in self._late:
            self._change(write.prepared.document.doc_id, write.token, write.prepared.document, None)
        self._late.clear()
        return await super().prepare(documents)


class LetsDriverErrorsOut(Right):
    """An id with a quote raises the driver's own exception."""

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        if any("'" in doc_id for doc_id in doc_ids):
            raise RuntimeError('near "\'": syntax error')
        return await super().read(doc_ids)


class Hangs(Right):
    """A read of a text never ends if the text is empty."""

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        if "text empty" in doc_ids:
            await trio.sleep_forever()
        return await super().read(doc_ids)


WRONG: list[tuple[type[Right], str]] = [
    (VersionAsToken, "no-aba"),
    (RowCounterAsToken, "no-aba"),
    (DigestAsToken, "token-moves"),
    (ScanCounterAsToken, "token-stable"),
    (NoFence, "stale-refused"),
    (CreatesBlindly, "one-creator"),
    (CheckThenAct, "one-winner"),
    (ChecksLongBefore, "one-winner"),
    (RemovesBlindly, "stale-refused"),
    (ReadTokenDiffers, "absent-is-absent"),
    (GraveUnfenced, "fence-everywhere"),
    (GraveUnfencedForCreators, "fence-everywhere"),
    (NumberlessUnfenced, "fence-everywhere"),
    (CreatesUnfenced, "fence-everywhere"),
    (DeletesUnfenced, "fence-everywhere"),
    (RemovesGravesBlindly, "fence-everywhere"),
    (LyingRemoval, "fence-everywhere"),
    (LyingRemoval, "answers-are-true"),
    (LyingWrite, "answers-are-true"),
    (LyingLanding, "answers-are-true"),
    (Shuffled, "answers-in-order"),
    (LeavesOutAbsent, "one-answer-each"),
    (PoisonFailsBatch, "one-poison-alone"),
    (StaleFailsBatch, "refused-alone"),
    (FailsOnEmpty, "empty-batches"),
    (SmallerBatches, "full-batches"),
    (SilentRefusal, "verdicts-explained"),
    (StaleAnswer, "write-is-seen"),
    (TextInErrors, "one-poison-alone"),
    (TakesAnyDigest, "prepare-proves-digest"),
    (PreparesByWriting, "prepare-has-no-effect"),
    (StaleChunks, "replaced-whole"),
    (MixedBatchesKeepTails, "replaced-whole"),
    (MergesMetadata, "replaced-whole"),
    (StripsText, "content-round-trip"),
    (RoundsMoments, "version-round-trip"),
    (NumbersFromZero, "version-round-trip"),
    (FoldsCase, "hostile-ids"),
    (RemovesByPattern, "hostile-ids"),
    (DropsTombstones, "tombstones"),
    (KeepsTombstones, "tombstones"),
    (RemovesSoftly, "removed-without-trace"),
    (SaysItHoldsText, "write-is-seen"),
    (SaysItEmbeds, "embedding-told"),
    (MovingTraits, "traits-constant"),
    (ClosesOnce, "closed-for-good"),
    (ScansUnsorted, "scan-order"),
    (ScansInUtf16Order, "scan-order"),
    (ScanIgnoresAfter, "scan-after"),
    (ScanRepeatsAfter, "scan-resumes"),
    (ScanHidesTombstones, "scan-complete"),
    (ScanReadsLive, "scan-snapshot"),
    (ScanLocksForEver, "scan-left-early"),
    (ScanEndsEarly, "scan-complete"),
    (RangesWithoutNumbers, "ranges-agree"),
    (RangesWithNamelessGraves, "ranges-agree"),
    (RangesHideOdd, "ranges-agree"),
    (RangesDigestIds, "ranges-agree"),
    (RangesLookElsewhere, "ranges-agree"),
    (RangesEndEarly, "ranges-agree"),
    (RangesSkip, "ranges-agree"),
    (RangesInclude, "ranges-agree"),
    (RangesIgnoreBounds, "ranges-agree"),
    (RangesIgnoreOpenEnds, "ranges-agree"),
    (RangesListOnce, "ranges-agree"),
    (RangesListForEver, "ranges-agree"),
    (RangesUnsorted, "ranges-agree"),
    (RangesReadLive, "ranges-snapshot"),
    (ScanTurnsLive, "scan-snapshot"),
    (CountsNothing, "count-near"),
    (CountsOnce, "count-near"),
    (CountsRows, "count-near"),
    (EmptiesFirst, "whole-beside-writers"),
    (DeletesFirst, "whole-beside-writers"),
    (ContentBeforeVersion, "whole-beside-writers"),
    (ReadsInTwoLooks, "whole-beside-writers"),
    (SlowlyEmptiesFirst, "whole-beside-writers"),
    (DeletesFirstAlone, "cancelled-whole"),
    (BuriesInTwoSteps, "cancelled-whole"),
    (RacesAlone, "fence-raced"),
    (TornWrites, "cancelled-whole"),
    (LandsLater, "cancelled-whole"),
    (LetsDriverErrorsOut, "hostile-ids"),
    (Hangs, "content-round-trip"),
]


@pytest.mark.parametrize(("kind", "promise"), WRONG, ids=[f"{kind.__name__}-{name}" for kind, name in WRONG])
def test_wrong_store_is_rejected_by_name(kind: type[Right], promise: str) -> None:
    """A store with one mistake breaks the promise that the mistake is about, and its message says so."""
    with pytest.raises(ContractBroken) as caught:
        in_virtual_time(kind, only=[promise])
    assert list(caught.value.breaches) == [promise]
    assert f"{promise}: " in str(caught.value)
    assert PROMISES[promise] in str(caught.value)


def test_right_store_is_accepted() -> None:
    """The control of the control: the base of all these wrong stores keeps every promise."""
    in_virtual_time(Right)


def test_wrong_stores_cover_the_promises() -> None:
    """Nearly every promise has a wrong store that it rejects; those without are listed with the reason."""
    uncovered = set(PROMISES) - {promise for _, promise in WRONG}
    assert uncovered == {
        "seen-elsewhere",  # needs a second handle: see test_second_handle
        "empty-at-first",  # about the factory: see test_factory_must_give_empty_stores
        "max-calls-at-once",  # see test_more_mistakes
        "no-lost-update",  # the same mistakes as one-winner: see test_more_mistakes and test_check_store_overlap
        "write-what-was-prepared",  # see test_more_mistakes
        "scans-at-once",  # see test_more_mistakes
        "cancelled-told",  # see test_check_store_overlap
    }


def test_all_breaches_are_reported() -> None:
    """Without `only`, every broken promise is named, not just the first."""
    with pytest.raises(ContractBroken) as caught:
        in_virtual_time(NoFence)
    assert {"stale-refused", "no-aba", "one-creator", "one-winner"} <= set(caught.value.breaches)
    assert len(str(caught.value).splitlines()) == len(caught.value.breaches)


def test_factory_must_give_empty_stores() -> None:
    """A factory that opens the same store again is caught at once, not by puzzling failures later."""
    same = Right()
    same.put_nowait(Document(doc_id="a", text="", version=DocumentVersion(digest=_EMPTY)))

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Right]:
        yield same

    with pytest.raises(ContractBroken) as caught:
        trio.run(check_store, open_store)
    assert next(iter(caught.value.breaches)) == "empty-at-first"


_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class MixesUpCalls(Right):
    """One buffer serves all calls that are under way."""

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        self._buffer = documents
        await trio.lowlevel.checkpoint()
        return await super().prepare(self._buffer)


class PreparesOnce(Right):
    """A prepared document is used up by its first write."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        if any(write.prepared.payload == "used" for write in writes):
            raise RuntimeError("already written")
        answers = await super().write(writes)
        for write in writes:
            object.__setattr__(write.prepared, "payload", "used")
        return answers


class OneCursor(ScansOwn):
    """All scans share a cursor."""

    _cursor: list[tuple[str, Observation]]

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> Any:
        async def pages() -> AsyncGenerator[ScanPage, None]:
            while self._cursor:
                await trio.lowlevel.checkpoint()
                page, self._cursor = self._cursor[:5], self._cursor[5:]
                yield page

        self._cursor = self.entries(after)
        async with aclosing(pages()) as open_pages:
            yield open_pages


@pytest.mark.parametrize(
    ("kind", "promise"),
    [
        (MixesUpCalls, "max-calls-at-once"),
        (CheckThenAct, "no-lost-update"),
        (PreparesOnce, "write-what-was-prepared"),
        (OneCursor, "scans-at-once"),
    ],
)
def test_more_mistakes(kind: type[Right], promise: str) -> None:
    """Mistakes that show only when calls overlap or repeat."""
    with pytest.raises(ContractBroken) as caught:
        in_virtual_time(kind, only=[promise])
    assert list(caught.value.breaches) == [promise]


def test_weak_fence_is_believed() -> None:
    """The store that races is accepted if it says that its fence is weak: the suite goes by the traits."""

    class HonestlyWeak(CheckThenAct):
        changed_traits: ClassVar[dict[str, Any]] = {"fence": Fence.WEAK}

    in_virtual_time(HonestlyWeak)


class CachesLooks(Shared):
    """A handle believes what it last wrote, and does not see what others write."""

    def __init__(self, first: Shared | None) -> None:
        super().__init__(first)
        self._believed: dict[str, Observation] = {}

    def observe_nowait(self, doc_id: str) -> Observation:
        return self._believed.get(doc_id, super().observe_nowait(doc_id))

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        self._believed.pop(doc_id, None)
        self._believed[doc_id] = super()._replace(doc_id, document)
        return self._believed[doc_id]


class LocksByItself(Shared):
    """Looks and then acts, under a lock that other handles do not know."""

    def __init__(self, first: Shared | None) -> None:
        super().__init__(first)
        self._lock = trio.Lock()

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        async with self._lock:
            held = {one.prepared.document.doc_id: self.observe_nowait(one.prepared.document.doc_id) for one in writes}
            tokens = {doc_id: seen.token for doc_id, seen in held.items()}
            await trio.lowlevel.checkpoint()
            documents = [one.prepared.document for one in writes]
            return [
                self._change(one.doc_id, write.token, one, tokens) for one, write in zip(documents, writes, strict=True)
            ]

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        async with self._lock:
            return await super().remove(removals)


class EmptiesFirstShared(Shared):
    """One call at a time on each handle; an emptied copy is committed first, then the real write."""

    changed_traits: ClassVar[dict[str, Any]] = {"max_calls": 1}

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        for write in writes:
            copy = self._copies.get(write.prepared.document.doc_id)
            if copy is not None and copy.token == write.token:
                self._copies[copy.document.doc_id] = attrs.evolve(copy, intact=False)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return self.change_nowait(writes)


class LooksThenWrites(Shared):
    """One call at a time on each handle; the token is compared in one transaction, and written in another."""

    changed_traits: ClassVar[dict[str, Any]] = {"max_calls": 1}

    def _early_tokens(self, doc_ids: Sequence[str]) -> dict[str, str]:
        return {doc_id: self.observe_nowait(doc_id).token for doc_id in doc_ids}


class CountsByItself(Shared):
    """Each handle counts revisions from its own start, so tokens come back."""

    def _next_token(self) -> str:
        self._revision += 1
        return f"mine {self._revision}"


class ForgetsOnClose(Shared):
    """What was written is gone when the store is closed."""

    async def aclose(self) -> None:
        self._copies.clear()
        await super().aclose()


@pytest.mark.parametrize(
    ("kind", "promise"),
    [
        (CachesLooks, "seen-elsewhere"),
        (LocksByItself, "one-winner"),
        (LocksByItself, "no-lost-update"),
        (LooksThenWrites, "one-winner"),
        (LooksThenWrites, "no-lost-update"),
        (EmptiesFirstShared, "whole-beside-writers"),
        (CountsByItself, "seen-elsewhere"),
        (ForgetsOnClose, "seen-elsewhere"),
    ],
)
async def test_second_handle(kind: type[Shared], promise: str) -> None:
    """Mistakes that show only between handles are found if the suite is given a second one, and only then."""
    first, again = two_handles(kind)
    await check_store(first, only=[promise])
    with pytest.raises(ContractBroken) as caught:
        await check_store(first, again=again, only=[promise])
    assert list(caught.value.breaches) == [promise]


def test_right_store_with_a_second_handle_is_accepted() -> None:
    """The control: handles that share contents and counter keep every promise."""
    first, again = two_handles(Shared)
    check_in_virtual_time(first, again=again)


def test_unraced_fence_is_accepted_only_when_said() -> None:
    """A right store with one call at a time passes with races=False, and one that can be raced needs no such word."""

    class OneAtATime(Right):
        changed_traits: ClassVar[dict[str, Any]] = {"max_calls": 1}

    in_virtual_time(OneAtATime, races=False)
    with pytest.raises(ContractBroken, match="again="):
        in_virtual_time(OneAtATime, only=["fence-raced"])
    with pytest.raises(ContractBroken, match="landed"):
        in_virtual_time(CheckThenAct, only=["one-winner"], races=False)


def test_slow_store_is_not_outrun_by_its_readers() -> None:
    """Readers beside a slow writer let a virtual clock go on: a right store that takes its time is accepted."""

    class Slow(Right):
        async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
            await trio.sleep(2)
            return await super().write(writes)

    in_virtual_time(Slow, only=["whole-beside-writers"])


def test_second_handle_races_a_store_that_takes_one_call_at_a_time() -> None:
    """With a second handle, one call at a time on each is no reason to doubt a fence that is right."""

    class OneAtATime(Shared):
        changed_traits: ClassVar[dict[str, Any]] = {"max_calls": 1}

    first, again = two_handles(OneAtATime)
    check_in_virtual_time(first, again=again)


def test_unknown_promise_is_refused() -> None:
    """A misspelt promise is an error, not a check that passes."""
    with pytest.raises(InvalidValue, match="no-abba"):
        in_virtual_time(Right, only=["no-abba"])


def test_a_store_with_right_ranges_is_right() -> None:
    """Control: true ranges break nothing, and neither do those that leave everything to listings and looks."""

    class Lazy(Ranged):
        class snapshot(Snapshot):  # noqa: N801 - called like the method that it is
            async def digests(
                self, after: str | None, bounds: Sequence[str | None], most: int
            ) -> list[RangeDigest | None]:
                return [None] * len(bounds)

        def summary(self, view: Observation) -> str:
            return ""

    in_virtual_time(Ranged, only=["ranges-agree", "ranges-snapshot"])
    in_virtual_time(Lazy, only=["ranges-agree", "ranges-snapshot"])
