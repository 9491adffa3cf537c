"""What three stores hold together, as a value: to draw, to print, and to put into memory stores."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from trio_repair import ContentDefinition, DivergenceKind, Document, EmbeddingIdentity
from trio_repair.stores.memory import MemoryStore

EMBEDDING: Final = EmbeddingIdentity(model="test-model", dimension=8, chunking="whole")
"""What the vector store of `StoreContents.memory_stores` embeds with."""

OTHER_EMBEDDING: Final = EmbeddingIdentity(model="model-before", dimension=8, chunking="whole")
"""What made a stale copy's vectors: of the same dimension, so that nothing but its name gives it away."""


@attrs.frozen(kw_only=True)
class HeldCopy:
    """What one store holds of a document."""

    document: Document
    intact: bool = True
    stale_embedding: bool = False
    """Its vectors were made under `OTHER_EMBEDDING`."""


def _frozen_copies(copies: Mapping[str, HeldCopy]) -> Mapping[str, HeldCopy]:
    return MappingProxyType(dict(copies))


@attrs.frozen(kw_only=True)
class HeldDocument:
    """A document as the stores together hold it."""

    doc_id: str
    kind: DivergenceKind | None
    """What is wrong with it, and nothing else is; None: nothing, or nothing in particular (an arbitrary state)."""
    copies: Mapping[str, HeldCopy] = attrs.field(converter=_frozen_copies)
    """By store ("text", "vector", "cache"); a store that is not named does not hold it."""


@attrs.frozen(kw_only=True)
class StoreContents:
    """What the stores hold: documents with ids of their own."""

    documents: tuple[HeldDocument, ...]
    content: ContentDefinition = attrs.field(factory=ContentDefinition)

    @property
    def kinds(self) -> Mapping[str, DivergenceKind | None]:
        """What is wrong with each document."""
        return {document.doc_id: document.kind for document in self.documents}

    def memory_stores(self) -> dict[str, MemoryStore]:
        """New stores "text", "vector" and "cache" that hold this; the vector store embeds with `EMBEDDING`."""
        stores = {
            "text": MemoryStore("text", content=self.content),
            "vector": MemoryStore("vector", content=self.content, embedding=EMBEDDING),
            "cache": MemoryStore("cache", content=self.content),
        }
        self.fill(stores)
        return stores

    def fill(self, stores: Mapping[str, MemoryStore]) -> None:
        """Write all of it into `stores`, over what they hold of the same documents.

        Raises:
            KeyError: a store is missing, or a copy is damaged that the store has deleted.
        """
        for document in self.documents:
            for name, copy in document.copies.items():
                store = stores[name]
                store.put_nowait(copy.document)
                if not copy.intact or copy.stale_embedding:
                    embedding = OTHER_EMBEDDING if copy.stale_embedding else None
                    store.damage(document.doc_id, intact=copy.intact, embedding=embedding)
