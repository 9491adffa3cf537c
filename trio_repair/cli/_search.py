"""`trio-repair search`: ask the stores as an application would, and see what the other store knows of each hit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

import attrs

from .. import Document, Observation, Presence, StoreError, Stores
from ..abc import Store
from ._configuration import Configuration
from ._escape import one_line, printable
from ._look import Views, look
from ._opening import open_stores
from ._output import Output, table
from ._signals import open_interruption
from ._status import ExitStatus, UsageError
from ._values import observation_json, version_json
from ._words import held_words, number_words

Role: TypeAlias = Literal["text", "vector", "cache"]

_ID_WIDTH: Final = 40
_SNIPPET_WIDTH: Final = 60


class _Hit(Protocol):
    @property
    def doc_id(self) -> str: ...
    @property
    def score(self) -> float: ...


@runtime_checkable
class _Searchable(Protocol):
    async def search(self, query: str, limit: int = 10) -> Sequence[_Hit]: ...


@runtime_checkable
class _Near(Protocol):
    async def nearest(self, text: str, limit: int = 10) -> Sequence[_Hit]: ...


@runtime_checkable
class _Gets(Protocol):
    async def get(self, doc_id: str) -> Document | None: ...


@attrs.frozen
class _Found:
    role: Role
    doc_id: str
    score: float
    snippet: str
    others: Views
    """What the other stores hold of it."""


async def _ask(role: Role, store: Store, query: str, limit: int) -> Sequence[_Hit]:
    if role == "text" and isinstance(store, _Searchable):
        return await store.search(query, limit)
    if role == "vector" and isinstance(store, _Near):
        return await store.nearest(query, limit)
    raise UsageError(f"the {role} store is of a kind that cannot be searched from here")


async def _hits(stores: Stores, role: Role, query: str, limit: int, seconds: float) -> list[_Found]:
    hits = await _ask(role, stores.by_name[role], query, limit)
    found = []
    for hit, views in zip(hits, await look(stores, [hit.doc_id for hit in hits], seconds=seconds), strict=True):
        others = {name: view for name, view in views.items() if name != role}
        found.append(_Found(role, hit.doc_id, hit.score, getattr(hit, "snippet", ""), others))
    return found


async def _get(stores: Stores, doc_id: str, output: Output) -> ExitStatus:
    cache = stores.cache
    if cache is None:
        raise UsageError("the configuration names no cache")
    if not isinstance(cache, _Gets):
        raise UsageError("the cache is of a kind that cannot be read from here")
    document = await cache.get(doc_id)
    text = None if document is None else document.text
    if output.json:
        version = None if document is None else version_json(document.version)
        output.record({"type": "cached", "doc_id": doc_id, "version": version, "text": text})
    elif document is None:
        output.show(f"the cache does not hold {printable(doc_id)}")
    else:
        output.show(f"{printable(doc_id)}, version {number_words(document.version)}")
        for line in (text or "").splitlines():
            output.show(line)
    return ExitStatus.OK


def _warning(role: Role, others: Mapping[str, Observation | StoreError]) -> str:
    """Whether the other critical store agrees that there is such a document."""
    other = "vector" if role == "text" else "text"
    view = others.get(other)
    if isinstance(view, Observation) and view.presence is not Presence.LIVE:
        return f"{'deleted' if view.presence is Presence.TOMBSTONE else 'missing'} in {other}"
    return ""


def _show(output: Output, role: Role, found: Sequence[_Found]) -> None:
    if not found:
        output.show(f"{role}: no hits")
        return
    rows = []
    for hit in found:
        about = _warning(role, hit.others) or ", ".join(
            f"{name} {held_words(view)}" for name, view in hit.others.items()
        )
        snippet = one_line(" ".join(hit.snippet.split()))[:_SNIPPET_WIDTH]
        rows.append((printable(hit.doc_id, _ID_WIDTH), f"{hit.score:.3f}", about, snippet))
    output.show(table(("document", "score", "elsewhere", "passage"), rows, title=role, numbers=("score",)))


async def run_search(
    configuration: Configuration, output: Output, *, query: str, role: Role | None, limit: int
) -> ExitStatus:
    """Search, and show the hits of each store with what the other stores hold of them.

    Args:
        configuration: names the stores.
        output: where to.
        query: words, or a document id for the cache.
        role: one store; None: text and vector.
        limit: at most so many hits from each.
    """
    status = ExitStatus.OK
    async with open_interruption() as interruption:
        with interruption.scope:
            async with open_stores(configuration) as stores:
                if role == "cache":
                    status = await _get(stores, query, output)
                else:
                    roles: Sequence[Role] = ("text", "vector") if role is None else (role,)
                    for name in roles:
                        found = await _hits(stores, name, query, limit, configuration.engine.store_call_timeout)
                        if not output.json:
                            _show(output, name, found)
                        for hit in found if output.json else ():
                            others = {store: observation_json(view) for store, view in hit.others.items()}
                            output.record(
                                {
                                    "type": "hit",
                                    "store": name,
                                    "doc_id": hit.doc_id,
                                    "score": hit.score,
                                    "passage": hit.snippet,
                                    "elsewhere": others,
                                }
                            )
    return ExitStatus.INTERRUPTED if interruption.signals else status
