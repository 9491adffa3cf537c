"""Damage of the eight kinds that dual writes leave behind, and the exact list of what it did.

Each story writes to the stores one by one, as applications do, and stops where things go wrong in real life. What
`check` must find, and what repairs and a person must make of it, is known beforehand, document by document.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import attrs

from trio_repair import ContentDefinition, DivergenceKind, Document, DocumentVersion, InvalidValue
from trio_repair._model import utc_now

from .workshop import Workshop
from .writing import live_ids, read_documents

SHARE: Final = 0.03
"""How many of the documents are damaged, all kinds together: far below the share at which a repair stops (10 %)."""

MIN_DOCUMENTS: Final = 200
"""With fewer, one document for each story would come near what a repair may change or delete without being asked."""


Outcomes: TypeAlias = Sequence[DocumentVersion | None]
"""What text and vector store must hold of each document in the end; None: nothing."""


@attrs.frozen(kw_only=True)
class Story:
    """One way in which copies come apart."""

    kind: DivergenceKind
    told: str
    """In a few words."""
    cached: bool | None = None
    """Whether it is about documents that are in the cache (True), that are not (False), or either (None)."""
    outdates_cache: bool = False
    """Whether a copy in the cache is wrong afterwards."""
    happen: Callable[[Workshop, Sequence[Document]], Awaitable[Outcomes]] = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Damage:
    """What happened to one document, and what is to come of it."""

    doc_id: str
    story: Story
    kinds: frozenset[DivergenceKind]
    """What `check` must find: the story's kind, and STALE_CACHE too if a copy in the cache was outdated."""
    after: DocumentVersion | None
    """What text and vector store must hold in the end, under MOST_RECENT and, for a conflict, "take text"; None:
    nothing."""


def edited(document: Document, remark: str) -> Document:
    """The document's next version, with a remark at the end."""
    text = f"{document.text}\n\n{remark}"
    version = DocumentVersion(
        number=_next(document), digest=ContentDefinition().digest(text, document.metadata), updated_at=utc_now()
    )
    return attrs.evolve(document, text=text, version=version)


def tombstone(document: Document) -> Document:
    """The delete that the document's next version is."""
    return Document.tombstone(document.doc_id, number=_next(document), updated_at=utc_now())


def _next(document: Document) -> int:
    return 1 if document.version.number is None else document.version.number + 1


async def _vector_write_failed(shop: Workshop, documents: Sequence[Document]) -> Outcomes:
    await shop.remove("vector", documents)
    return _versions(documents)


async def _died_after_text(shop: Workshop, documents: Sequence[Document]) -> Outcomes:
    newer = [edited(document, "Updated in the text store; then the process died.") for document in documents]
    await shop.write("text", newer)
    return _versions(newer)


async def _text_row_deleted(shop: Workshop, documents: Sequence[Document]) -> Outcomes:
    # The text store keeps tombstones, so a row that is simply gone was lost, not deleted: MOST_RECENT brings it back.
    await shop.remove("text", documents)
    return _versions(documents)


async def _only_cache_left(shop: Workshop, documents: Sequence[Document]) -> Outcomes:
    await shop.remove("text", documents)
    await shop.remove("vector", documents)
    return [None] * len(documents)


async def _delete_reached_text_only(shop: Workshop, documents: Sequence[Document]) -> Outcomes:
    deleted = [tombstone(document) for document in documents]
    await shop.write("text", deleted)
    return _versions(deleted)


async def _two_writers(shop: Workshop, documents: Sequence[Document]) -> Outcomes:
    first = [edited(document, "Updated by the first of two writers.") for document in documents]
    second = [edited(document, "Updated by the second of two writers.") for document in documents]
    await shop.write("text", first)
    await shop.write("vector", second)
    return _versions(first)


async def _chunks_lost(shop: Workshop, documents: Sequence[Document]) -> Outcomes:
    await shop.lose("chunk", documents)
    return _versions(documents)


async def _vectors_lost(shop: Workshop, documents: Sequence[Document]) -> Outcomes:
    await shop.lose("vector", documents)
    return _versions(documents)


async def _old_model(shop: Workshop, documents: Sequence[Document]) -> Outcomes:
    await shop.write_with_old_model(documents)
    return _versions(documents)


async def _cache_not_updated(shop: Workshop, documents: Sequence[Document]) -> Outcomes:
    newer = [edited(document, "Updated in text and vector store; the cache was forgotten.") for document in documents]
    await shop.write("text", newer)
    await shop.write("vector", newer)
    return _versions(newer)


async def _delete_missed_cache(shop: Workshop, documents: Sequence[Document]) -> Outcomes:
    deleted = [tombstone(document) for document in documents]
    await shop.write("text", deleted)
    await shop.write("vector", deleted)
    return _versions(deleted)


def _versions(documents: Sequence[Document]) -> Outcomes:
    return [document.version for document in documents]


STORIES: Final = (
    Story(
        kind=DivergenceKind.MISSING,
        told="written to text, the vector write failed",
        happen=_vector_write_failed,
    ),
    Story(
        kind=DivergenceKind.STALE,
        told="updated in text, died before vector",
        outdates_cache=True,
        happen=_died_after_text,
    ),
    Story(
        kind=DivergenceKind.ORPHAN,
        told="row gone from text without a trace",
        happen=_text_row_deleted,
    ),
    Story(
        kind=DivergenceKind.ORPHAN,
        told="gone from text and vector, left in cache",
        cached=True,
        happen=_only_cache_left,
    ),
    Story(
        kind=DivergenceKind.UNDELETED,
        told="deleted in text, vector was down",
        outdates_cache=True,
        happen=_delete_reached_text_only,
    ),
    Story(
        kind=DivergenceKind.CONFLICT,
        told="two writers, one version number",
        cached=False,
        happen=_two_writers,
    ),
    Story(
        kind=DivergenceKind.INCOMPLETE,
        told="a chunk lost from the vector store",
        happen=_chunks_lost,
    ),
    Story(
        kind=DivergenceKind.INCOMPLETE,
        told="a vector lost, its chunk still there",
        happen=_vectors_lost,
    ),
    Story(
        kind=DivergenceKind.STALE_EMBEDDING,
        told="embedded with the previous model",
        happen=_old_model,
    ),
    Story(
        kind=DivergenceKind.STALE_CACHE,
        told="updated in text and vector, not in cache",
        cached=True,
        happen=_cache_not_updated,
    ),
    Story(
        kind=DivergenceKind.STALE_CACHE,
        told="deleted in text and vector, not in cache",
        cached=True,
        happen=_delete_missed_cache,
    ),
)
"""All stories; each kind has at least one."""


def cast_stories(
    doc_ids: Sequence[str], cached: frozenset[str], rng: random.Random, stories: Sequence[Story] = STORIES
) -> list[tuple[Story, Sequence[str]]]:
    """Choose which documents each story happens to: `SHARE` of all, evenly over the stories, at least one each.

    Raises:
        InvalidValue: there are too few documents, or too few of them in the cache.
    """
    if len(doc_ids) < MIN_DOCUMENTS:
        raise InvalidValue("documents", f"{len(doc_ids)} are too few to be damaged; give at least {MIN_DOCUMENTS}")
    each = max(1, round(len(doc_ids) * SHARE / len(stories)))
    shuffled = rng.sample(doc_ids, len(doc_ids))
    pools = {
        True: iter([doc_id for doc_id in shuffled if doc_id in cached]),
        False: iter([doc_id for doc_id in shuffled if doc_id not in cached]),
    }
    roles: list[tuple[Story, Sequence[str]]] = []
    for story in stories:
        # A story that happens to either takes turns, so that it leaves outdated copies in the cache, and not only.
        wants = [turn % 3 == 1 if story.cached is None else story.cached for turn in range(each)]
        chosen = [doc_id for want in wants if (doc_id := next(pools[want], None)) is not None]
        if len(chosen) < each:
            raise InvalidValue("documents", "too few of them are in the cache, or too few are not")
        roles.append((story, chosen))
    return roles


async def damage_stores(shop: Workshop, *, seed: int, stories: Sequence[Story] = STORIES) -> list[Damage]:
    """Let stories happen to documents that are live in the text store.

    Args:
        shop: the stores, in which nothing diverges yet.
        seed: which documents.
        stories: what happens.

    Returns:
        Everything that was done, by ascending doc_id: `check` must find these documents, these kinds, and no others.

    Raises:
        InvalidValue: there are too few documents.
        StoreError: a store could not be used.

    **If cancelled:** some of the damage is done.
    """
    doc_ids = await live_ids(shop.stores.text)
    cached = frozenset() if shop.stores.cache is None else frozenset(await live_ids(shop.stores.cache))
    done: list[Damage] = []
    for story, chosen in cast_stories(doc_ids, cached, random.Random(seed), stories):
        documents = await read_documents(shop.stores.text, chosen, role="text")
        outcomes = await story.happen(shop, documents)
        for doc_id, after in zip(chosen, outcomes, strict=True):
            outdated = doc_id in cached and story.outdates_cache
            kinds = frozenset({story.kind, DivergenceKind.STALE_CACHE} if outdated else {story.kind})
            done.append(Damage(doc_id=doc_id, story=story, kinds=kinds, after=after))
    return sorted(done, key=lambda damage: damage.doc_id)
