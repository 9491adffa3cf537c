"""The reference store: documents in a dict, for tests and to learn from.

It keeps every promise of `trio_repair.abc.Store` and nothing survives its process. A store for a real database
has the same shape: decide on tokens in one indivisible step, answer per document, put the error of one document
*in* the answers and raise only what concerns the whole call.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final

import attrs
import trio

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    EmbeddingIdentity,
    Fence,
    InvalidValue,
    Observation,
    Prepared,
    Presence,
    Removal,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.abc import ScanPage

__all__ = ["MemoryCopy", "MemoryStore"]

_ABSENT_TOKEN: Final = "absent"  # noqa: S105 - a fence token, not a secret
"""One token for all absent documents: to be absent again is to be in the state that was observed. A document that is
written again after that gets a token that never existed before, so nothing *held* can be mistaken for its past."""


@attrs.frozen(kw_only=True)
class MemoryCopy:
    """What the store holds of one document. Values compare, so two snapshots can be compared with ``==``."""

    document: Document
    token: str
    intact: bool = True
    embedding: EmbeddingIdentity | None = None

    def observation(self) -> Observation:
        """This copy as `observe` shows it."""
        version = self.document.version
        return Observation(
            presence=Presence.TOMBSTONE if version.deleted else Presence.LIVE,
            token=self.token,
            version=version,
            intact=self.intact,
            embedding=self.embedding,
        )


class MemoryStore:
    """A store in this process' memory, for one Trio thread.

    Each async method checkpoints exactly once, before it acts, and acts in one step: other tasks can come between
    two calls, never into one. (With `Fence.WEAK` the tokens are compared *before* that checkpoint, so that the window
    which such stores have is a real one.) A scan checkpoints when it is opened and before each page.

    The methods ending in ``_nowait``, `snapshot`, `documents` and `damage` are for tests and demonstrations: they act
    at once, without a fence, as the application that owns the documents would. They work on a closed store too.

    Args:
        name: the role, for error messages: "text", "vector" or "cache".
        traits: what to promise. None: a strong fence, text is given back, up to 64 calls at once; tombstones are kept
            and absence means missing, except that a store named "cache" keeps none and its absence means nothing.
        embedding: the identity that live documents are written with; it replaces the one in `traits`.
        content: what a document's digest covers.
    """

    def __init__(
        self,
        name: str = "text",
        *,
        traits: StoreTraits | None = None,
        embedding: EmbeddingIdentity | None = None,
        content: ContentDefinition | None = None,
    ) -> None:
        self.name = name
        if traits is None:
            keeps = name != "cache"
            traits = StoreTraits(
                fence=Fence.STRONG,
                holds_text=True,
                keeps_tombstones=keeps,
                absent=AbsentMeans.MISSING if keeps else AbsentMeans.MANUAL,
                max_calls=64,
            )
        self._traits = traits if embedding is None else attrs.evolve(traits, embedding=embedding)
        self._content = ContentDefinition() if content is None else content
        self._copies: dict[str, MemoryCopy] = {}
        # Counts every change of any document and never goes back, not even when a document is removed: a token made
        # from it is never seen twice. A number kept *in* the row would start again after a removal (ABA).
        self._revision = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<MemoryStore {self.name!r}: {len(self._copies)} documents{', closed' if self._closed else ''}>"

    @property
    def traits(self) -> StoreTraits:
        """What this store promises; constant while it is open."""
        return self._traits

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """Look at documents without their content.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the store is closed.

        **If cancelled:** nothing has changed.
        """
        await self._checkpoint(len(doc_ids))
        return [self.observe_nowait(doc_id) for doc_id in doc_ids]

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """Read documents; `StoreRejected` for one that is damaged, or if this store does not give text back.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the store is closed.

        **If cancelled:** nothing has changed.
        """
        await self._checkpoint(len(doc_ids))
        return [self._read(doc_id) for doc_id in doc_ids]

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Validate documents; `StoreRejected` for one whose digest is not that of its content, or whose metadata is
        not JSON.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the store is closed.

        **If cancelled:** nothing has changed.
        """
        await self._checkpoint(len(documents))
        return [self._prepare(document) for document in documents]

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the store is closed.

        **If cancelled:** nothing has changed: the only checkpoint comes first.
        """
        held = self._early_tokens([write.prepared.document.doc_id for write in writes])
        await self._checkpoint(len(writes))
        return [
            self._change(write.prepared.document.doc_id, write.token, write.prepared.document, held) for write in writes
        ]

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """Forget each document whose expected token still holds, tombstones too.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the store is closed.

        **If cancelled:** nothing has changed: the only checkpoint comes first.
        """
        held = self._early_tokens([removal.doc_id for removal in removals])
        await self._checkpoint(len(removals))
        return [self._change(removal.doc_id, removal.token, None, held) for removal in removals]

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """One snapshot of all documents and tombstones with doc_id > `after`, in byte order of UTF-8.

        Pages have up to `traits.max_batch` documents. Leaving early is fine.

        Raises:
            StoreUnavailable: the store is closed.

        **If cancelled:** nothing has changed.
        """
        await self._checkpoint(0)
        # Byte order of UTF-8 and order of code points are the same; str comparison is by code points.
        ids = sorted(doc_id for doc_id in self._copies if after is None or doc_id > after)
        async with aclosing(self._pages([(doc_id, self.observe_nowait(doc_id)) for doc_id in ids])) as pages:
            yield pages

    async def count(self) -> int:
        """How many documents and tombstones the store holds.

        Raises:
            StoreUnavailable: the store is closed.

        **If cancelled:** nothing has changed.
        """
        await self._checkpoint(0)
        return len(self._copies)

    async def aclose(self) -> None:
        """Take no more calls. Idempotent.

        **If cancelled:** the store is closed all the same.
        """
        self._closed = True
        await trio.lowlevel.checkpoint()

    def observe_nowait(self, doc_id: str) -> Observation:
        """What the store holds of `doc_id` now."""
        copy = self._copies.get(doc_id)
        return Observation(presence=Presence.ABSENT, token=_ABSENT_TOKEN) if copy is None else copy.observation()

    def get_nowait(self, doc_id: str) -> Document | None:
        """The document or tombstone held, damaged or not; None if absent."""
        copy = self._copies.get(doc_id)
        return None if copy is None else copy.document

    def put_nowait(self, document: Document) -> Observation:
        """Write `document` whatever is held; an application's write.

        Raises:
            StoreRejected: its digest is not that of its content, or its metadata is not JSON.
        """
        prepared = self._prepare(document)
        if isinstance(prepared, StoreError):
            raise prepared
        return self._replace(document.doc_id, prepared.document)

    def delete_nowait(self, doc_id: str, *, number: int | None) -> Observation:
        """Write a tombstone at version `number`; a store that keeps none forgets the document."""
        return self._replace(doc_id, Document.tombstone(doc_id, number=number))

    def remove_nowait(self, doc_id: str) -> Observation:
        """Forget the document without a trace."""
        return self._replace(doc_id, None)

    def damage(self, doc_id: str, *, intact: bool = False, embedding: EmbeddingIdentity | None = None) -> Observation:
        """Spoil a live copy, as a lost chunk row or a change of model would. Its version stays; its token does not.

        Args:
            doc_id: a live document that this store holds.
            intact: False: part of the copy is gone, and `read` refuses it.
            embedding: the identity that its vectors now have; None: unchanged.

        Raises:
            KeyError: there is no live copy.
        """
        copy = self._copies[doc_id]
        if copy.document.version.deleted:
            raise KeyError(doc_id)
        self._copies[doc_id] = attrs.evolve(
            copy,
            token=self._next_token(),
            intact=intact,
            embedding=copy.embedding if embedding is None else embedding,
        )
        return self.observe_nowait(doc_id)

    def snapshot(self) -> dict[str, MemoryCopy]:
        """All that is held, tokens included: equal before and after means that nothing whatever was written."""
        return dict(self._copies)

    def documents(self) -> dict[str, Document]:
        """All documents and tombstones held, without tokens: for comparing stores with each other."""
        return {doc_id: copy.document for doc_id, copy in self._copies.items()}

    async def _checkpoint(self, documents: int) -> None:
        if documents > self._traits.max_batch:
            raise InvalidValue(
                "batch", f"names {documents} documents; the {self.name} store takes {self._traits.max_batch}"
            )
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise StoreUnavailable(self.name, "is closed; open it again")

    async def _pages(self, entries: list[tuple[str, Observation]]) -> AsyncGenerator[ScanPage, None]:
        size = self._traits.max_batch
        for start in range(0, len(entries), size):
            await self._checkpoint(0)
            yield entries[start : start + size]

    def _read(self, doc_id: str) -> StoredDocument | StoreError:
        copy = self._copies.get(doc_id)
        if copy is None:
            return StoredDocument(document=None, token=_ABSENT_TOKEN)
        if not copy.document.version.deleted:
            if not self._traits.holds_text:
                return StoreRejected(self.name, "keeps no text; read another store", doc_id)
            if not copy.intact:
                return StoreRejected(self.name, "the copy is damaged; repair it from another store", doc_id)
        return StoredDocument(document=copy.document, token=copy.token)

    def _prepare(self, document: Document) -> Prepared | StoreError:
        if document.text is None:
            return Prepared(document=document)
        try:
            if self._content.digest(document.text, document.metadata) != document.version.digest:
                return StoreRejected(
                    self.name, "its digest is not that of its content; use one ContentDefinition", document.doc_id
                )
            # Through JSON, as in a store with files: what is held shares no mutable part with the caller.
            metadata = json.loads(json.dumps(dict(document.metadata), allow_nan=False))
        except (InvalidValue, TypeError, ValueError) as error:
            return StoreRejected(
                self.name, f"its content is not text and JSON ({type(error).__name__})", document.doc_id
            )
        return Prepared(document=attrs.evolve(document, metadata=metadata))

    def _early_tokens(self, doc_ids: Sequence[str]) -> Mapping[str, str] | None:
        if self._traits.fence is Fence.STRONG:
            return None
        return {doc_id: self.observe_nowait(doc_id).token for doc_id in doc_ids}

    def _change(
        self, doc_id: str, expected: str, document: Document | None, held: Mapping[str, str] | None
    ) -> WriteAnswer:
        """Compare and set. `held` are the tokens of a weak store's earlier look; None: look now."""
        current = self.observe_nowait(doc_id)
        if expected != (current.token if held is None else held[doc_id]):
            return WriteAnswer(status=WriteStatus.REFUSED, observation=current)
        return WriteAnswer(status=WriteStatus.LANDED, observation=self._replace(doc_id, document))

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        if document is None or (document.version.deleted and not self._traits.keeps_tombstones):
            self._copies.pop(doc_id, None)
        else:
            if not self._traits.numbered and document.version.number is not None:
                document = attrs.evolve(document, version=attrs.evolve(document.version, number=None))
            self._copies[doc_id] = MemoryCopy(
                document=document,
                token=self._next_token(),
                embedding=None if document.version.deleted else self._traits.embedding,
            )
        return self.observe_nowait(doc_id)

    def _next_token(self) -> str:
        self._revision += 1
        return f"{self.name}:{self._revision}"
