"""`trio-repair search`: ask the stores as an application would, and see what the other store knows of each hit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

import attrs

from .. import Document, InvalidValue, Observation, Presence, StoreError, Stores
from ..abc import Store
from ._configuration import Configuration
from ._escape import one_line, printable
from ._look import Views, look
from ._opening import open_stores
from ._output import Output, table
from ._patience import patience
from ._signals import open_interruption
from ._status import ExitStatus, UsageError, report
from ._values import observation_json, version_json
from ._words import held_words, number_words

Role: TypeAlias = Literal["text", "vector", "cache"]

_ID_WIDTH: Final = 96
_PASSAGE_WIDTH: Final = 60


class _TextHit(Protocol):
    @property
    def doc_id(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def snippet(self) -> str: ...


class _VectorHit(Protocol):
    @property
    def doc_id(self) -> str: ...
    @property
    def distance(self) -> float: ...
    @property
    def text(self) -> str: ...


@runtime_checkable
class _Searchable(Protocol):
    async def search(self, query: str, limit: int = 10) -> Sequence[_TextHit]: ...


@runtime_checkable
class _Near(Protocol):
    async def nearest(self, text: str, limit: int = 10) -> Sequence[_VectorHit]: ...


@runtime_checkable
class _Gets(Protocol):
    async def get(self, doc_id: str) -> Document | None: ...


@attrs.frozen
class _Hit:
    doc_id: str
    measure: float
    """The text store's score, the greater the better; the vector store's distance, the smaller the better."""
    passage: str


@attrs.frozen
class _Found:
    hit: _Hit
    others: Views
    """What the other stores hold of it."""


MEASURE: Final = {"text": "score", "vector": "distance"}


async def _ask(role: Role, store: Store, query: str, limit: int) -> list[_Hit]:
    if role == "text" and isinstance(store, _Searchable):
        return [_Hit(hit.doc_id, hit.score, hit.snippet) for hit in await store.search(query, limit)]
    if role == "vector" and isinstance(store, _Near):
        return [_Hit(hit.doc_id, hit.distance, hit.text) for hit in await store.nearest(query, limit)]
    raise UsageError(f"the {role} store is of a kind that cannot be searched from here")


async def _hits(stores: Stores, role: Role, query: str, limit: int, seconds: float) -> list[_Found]:
    """The hits of one store, and what the others hold of them.

    Raises:
        UsageError: the store cannot be searched, or not for so many hits.
        StoreError: it failed, or did not answer in time.
    """
    try:
        with patience(role, seconds):
            hits = await _ask(role, stores.by_name[role], query, limit)
    except InvalidValue as error:
        if error.field == "limit":
            raise UsageError(f"--limit: {error.problem} (the {role} store)") from error
        raise
    found = []
    for hit, views in zip(hits, await look(stores, [hit.doc_id for hit in hits], seconds=seconds), strict=True):
        others = {name: view for name, view in views.items() if name != role}
        found.append(_Found(hit, others))
    return found


async def _get(stores: Stores, doc_id: str, output: Output, seconds: float) -> ExitStatus:
    cache = stores.cache
    if cache is None:
        raise UsageError("the configuration names no cache")
    if not isinstance(cache, _Gets):
        raise UsageError("the cache is of a kind that cannot be read from here")
    with patience("cache", seconds):
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
    for one in found:
        held = ", ".join(f"{name} {held_words(view)}" for name, view in one.others.items())
        about = _warning(role, one.others) or held
        passage = one_line(" ".join(one.hit.passage.split()))[:_PASSAGE_WIDTH]
        rows.append((printable(one.hit.doc_id, _ID_WIDTH), f"{one.hit.measure:.3f}", about, passage))
    columns = ("document", MEASURE[role], "elsewhere", "passage")
    output.show(table(columns, rows, title=role, numbers=(MEASURE[role],)))


def _record(output: Output, role: Role, found: Sequence[_Found]) -> None:
    for one in found:
        output.record(
            {
                "type": "hit",
                "store": role,
                "doc_id": one.hit.doc_id,
                MEASURE[role]: one.hit.measure,
                "passage": one.hit.passage,
                "elsewhere": {store: observation_json(view) for store, view in one.others.items()},
            }
        )


async def _search(
    stores: Stores, roles: Sequence[Role], query: str, limit: int, seconds: float, output: Output
) -> ExitStatus:
    """Ask all before anything is shown, so that what none of them takes is refused as a whole."""
    found: dict[Role, list[_Found]] = {}
    failures: list[StoreError] = []
    for role in roles:
        try:
            found[role] = await _hits(stores, role, query, limit, seconds)
        except StoreError as error:
            failures.append(error)
    for role, hits in found.items():
        (_record if output.json else _show)(output, role, hits)
    return report(ExceptionGroup("stores that could not be searched", failures)) if failures else ExitStatus.OK


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
    seconds = configuration.engine.store_call_timeout
    async with open_interruption() as interruption:
        with interruption.scope:
            async with open_stores(configuration) as stores:
                if role == "cache":
                    status = await _get(stores, query, output, seconds)
                else:
                    roles: Sequence[Role] = ("text", "vector") if role is None else (role,)
                    status = await _search(stores, roles, query, limit, seconds, output)
    return ExitStatus.INTERRUPTED if interruption.signals else status
