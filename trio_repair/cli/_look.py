"""Look at named documents in all stores, without an engine and without effect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TypeAlias

import trio

from .. import (
    ContentDefinition,
    Divergence,
    DocumentVersion,
    Observation,
    StoredDocument,
    StoreError,
    StoreRejected,
    Stores,
    diagnose,
)
from ..abc import Store
from ._patience import StoreHung, patience

Views: TypeAlias = Mapping[str, Observation | StoreError]
"""What each store says of one document."""


async def _observe(
    name: str,
    store: Store,
    doc_ids: Sequence[str],
    seconds: float,
    answers: dict[str, Sequence[Observation | StoreError]],
) -> None:
    error: StoreError = StoreHung(name, seconds)
    found: list[Observation | StoreError] = []
    with trio.move_on_after(seconds):
        try:
            for start in range(0, len(doc_ids), store.traits.max_batch):
                found.extend(await store.observe(doc_ids[start : start + store.traits.max_batch]))
        except StoreError as raised:
            error = raised
    answers[name] = found + [error] * (len(doc_ids) - len(found))


async def look(stores: Stores, doc_ids: Sequence[str], *, seconds: float) -> list[Views]:
    """What every store holds of some documents, in the order asked.

    Args:
        stores: the stores.
        doc_ids: distinct ids.
        seconds: how long one store may take for all of them; what it did not say by then is a StoreHung.

    **If cancelled:** nothing has changed.
    """
    answers: dict[str, Sequence[Observation | StoreError]] = {}
    async with trio.open_nursery() as nursery:
        for name, store in stores.by_name.items():
            nursery.start_soon(_observe, name, store, doc_ids, seconds, answers)
    return [{name: answers[name][row] for name in stores.by_name} for row in range(len(doc_ids))]


async def look_in_batches(
    stores: Stores, doc_ids: Iterable[str], *, seconds: float, size: int = 256
) -> AsyncIterator[tuple[str, Views]]:
    """`look` at any number of documents, a batch at a time."""
    batch: list[str] = []
    for doc_id in doc_ids:
        batch.append(doc_id)
        if len(batch) == size:
            for pair in zip(batch, await look(stores, batch, seconds=seconds), strict=True):
                yield pair
            batch.clear()
    for pair in zip(batch, await look(stores, batch, seconds=seconds), strict=True):
        yield pair


async def count_held(stores: Stores, *, seconds: float) -> Mapping[str, int]:
    """How many documents and tombstones each store holds. A cache that cannot say is left out.

    Raises:
        StoreError: a critical store could not say, or not within `seconds`.
    """
    held: dict[str, int] = {}
    for name, store in stores.by_name.items():
        try:
            with patience(name, seconds):
                held[name] = await store.count()
        except StoreError:
            if name in stores.critical:
                raise
    return held


async def unreadable(
    stores: Stores, content: ContentDefinition, doc_id: str, versions: Mapping[str, DocumentVersion], *, seconds: float
) -> Mapping[str, str]:
    """Why stores cannot give the text of the version that they hold, by store; those that can are left out.

    An observation trusts the digest that is stored; only to read the text proves it, and a repair will. A store that
    does not answer, or holds something else by now, is left out too.

    Args:
        stores: the stores.
        content: what a digest covers.
        doc_id: the document.
        versions: by store, what it was seen to hold.
        seconds: how long each may take.

    **If cancelled:** nothing has changed.
    """
    found: dict[str, str] = {}
    for name, version in versions.items():
        try:
            with patience(name, seconds):
                (answer,) = await stores.by_name[name].read([doc_id])
        except StoreError:
            continue
        if isinstance(answer, StoreRejected):
            found[name] = answer.problem
        elif isinstance(answer, StoredDocument) and answer.document is not None and answer.document.version == version:
            text = answer.document.text
            if text is None:
                found[name] = "it keeps none"
            elif content.digest(text, answer.document.metadata) != version.digest:
                found[name] = "its content does not have the digest that is stored with it"
    return found


def seen(views: Views) -> Mapping[str, Observation]:
    """The observations among the views.

    Raises:
        StoreError: a critical store could not say; it is unknown, never absent. A cache that could not is left out.
    """
    for name, view in views.items():
        if name != "cache" and isinstance(view, StoreError):
            raise view
    return {name: view for name, view in views.items() if isinstance(view, Observation)}


def judge(doc_id: str, views: Mapping[str, Observation], stores: Stores) -> Divergence | None:
    """What is wrong with a document."""
    return diagnose(doc_id, views, {name: store.traits for name, store in stores.by_name.items()})
