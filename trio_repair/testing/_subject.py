"""The store under test, called with care, and the register of what it has promised."""

from __future__ import annotations

import datetime as dt
import reprlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import attrs
import trio

from trio_repair import (
    ContentDefinition,
    Document,
    DocumentVersion,
    Observation,
    Prepared,
    Presence,
    Removal,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreTraits,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.abc import Store

from ._doubles import make_document

Factory: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]
"""Opens a store."""

_T = TypeVar("_T")
_Item = TypeVar("_Item")


class Breach(Exception):
    """A promise was seen broken. `promise` is None for the one being checked."""

    def __init__(self, detail: str, promise: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.promise = promise


def broken(detail: str, promise: str | None = None) -> NoReturn:
    """Report a broken promise."""
    raise Breach(detail, promise)


def require(holds: bool, detail: str) -> None:
    """Report the promise being checked as broken unless `holds`."""
    if not holds:
        broken(detail)


@attrs.define
class Subject:
    """A store under test. Calls respect its `max_calls` and `max_batch`, and every answer is checked for its form."""

    store: Store
    content: ContentDefinition
    traits: StoreTraits
    again: Factory | None
    """Opens another handle on the same contents; None if the user named none."""
    _slots: trio.CapacityLimiter

    @classmethod
    def of(cls, store: Store, content: ContentDefinition, again: Factory | None) -> Subject:
        """Wrap `store`, whose traits are read once."""
        traits = store.traits
        return cls(store, content, traits, again, trio.CapacityLimiter(traits.max_calls))

    @asynccontextmanager
    async def open_handles(self) -> AsyncGenerator[list[Subject], None]:
        """This handle and, if there can be one, another on the same contents."""
        if self.again is None:
            yield [self]
            return
        async with self.again() as store:
            yield [self, Subject.of(store, self.content, self.again)]

    def document(
        self,
        doc_id: str,
        text: str = "",
        *,
        number: int | None = 1,
        metadata: Mapping[str, Any] | None = None,
        updated_at: dt.datetime | None = None,
    ) -> Document:
        """A document with a true digest under the definition in use."""
        return make_document(
            doc_id, text, number=number, metadata=metadata, updated_at=updated_at, content=self.content
        )

    def kept(self, version: DocumentVersion) -> DocumentVersion:
        """What the store makes of a version that it is given."""
        return version if self.traits.numbered else attrs.evolve(version, number=None)

    async def observe_raw(self, doc_ids: Sequence[str]) -> list[Observation | StoreError]:
        """What `observe` answers, errors too."""
        return await self._call("observe", doc_ids, self.store.observe, (Observation, StoreError))

    async def observe(self, *doc_ids: str) -> list[Observation]:
        """What `observe` answers; an error is a breach."""
        return [
            _good("observe", doc_id, one) for doc_id, one in zip(doc_ids, await self.observe_raw(doc_ids), strict=True)
        ]

    async def look(self, doc_id: str) -> Observation:
        """One observation."""
        return (await self.observe(doc_id))[0]

    async def read_raw(self, doc_ids: Sequence[str]) -> list[StoredDocument | StoreError]:
        """What `read` answers, errors too."""
        return await self._call("read", doc_ids, self.store.read, (StoredDocument, StoreError))

    async def read(self, *doc_ids: str) -> list[StoredDocument]:
        """What `read` answers; an error is a breach."""
        return [_good("read", doc_id, one) for doc_id, one in zip(doc_ids, await self.read_raw(doc_ids), strict=True)]

    async def prepare_raw(self, documents: Sequence[Document]) -> list[Prepared | StoreError]:
        """What `prepare` answers, errors too."""
        return await self._call("prepare", documents, self.store.prepare, (Prepared, StoreError))

    async def prepare(self, *documents: Document) -> list[Prepared]:
        """What `prepare` answers; an error is a breach."""
        answers = await self.prepare_raw(documents)
        return [_good("prepare", document.doc_id, one) for document, one in zip(documents, answers, strict=True)]

    async def write(self, *writes: Write) -> list[WriteAnswer]:
        """What `write` answers."""
        return _explained("write", await self._call("write", writes, self.store.write, (WriteAnswer,)))

    async def remove(self, *removals: Removal) -> list[WriteAnswer]:
        """What `remove` answers."""
        return _explained("remove", await self._call("remove", removals, self.store.remove, (WriteAnswer,)))

    async def scan(self, after: str | None = None) -> list[tuple[str, Observation]]:
        """A whole scan, its pages joined."""
        async with self.store.open_scan(after) as pages:
            return [entry async for page in pages for entry in page]

    async def put(self, *documents: Document) -> list[Observation]:
        """Write documents over whatever is held; anything but LANDED is a breach."""
        held = await self.observe(*(document.doc_id for document in documents))
        prepared = await self.prepare(*documents)
        answers = await self.write(
            *(Write(prepared=one, token=seen.token) for one, seen in zip(prepared, held, strict=True))
        )
        return [_landed(document.doc_id, answer) for document, answer in zip(documents, answers, strict=True)]

    async def put_over(self, document: Document, token: str) -> WriteAnswer:
        """Write one document on a token that the caller names."""
        (prepared,) = await self.prepare(document)
        return (await self.write(Write(prepared=prepared, token=token)))[0]

    async def take_away(self, doc_id: str) -> Observation:
        """Remove one document on its present token; anything but LANDED is a breach."""
        seen = await self.look(doc_id)
        (answer,) = await self.remove(Removal(doc_id=doc_id, token=seen.token))
        return _landed(doc_id, answer)

    async def require_held(self, *documents: Document) -> None:
        """Each document, live or tombstone, is held exactly as given, by observation and (if promised) by content."""
        ids = [document.doc_id for document in documents]
        seen = await self.observe(*ids)
        read = await self.read_raw(ids)
        for document, observation, answer in zip(documents, seen, read, strict=True):
            name = _brief(document.doc_id)
            version = self.kept(document.version)
            presence = Presence.TOMBSTONE if version.deleted else Presence.LIVE
            require(observation.presence is presence, f"{name} is {observation.presence}, not {presence}")
            require(observation.version == version, f"{name} has {observation.version}, not {version}")
            require(observation.intact, f"{name} was written and is not intact")
            if not version.deleted and not self.traits.holds_text:
                require(
                    isinstance(answer, StoreRejected), f"{name}: holds_text is False, and read gave {_brief(answer)}"
                )
                continue
            held = _good("read", document.doc_id, answer)
            require(held.token == observation.token, f"{name}: read and observe show different tokens")
            got = held.document
            if got is None:
                broken(f"{name} is {presence}, and read gave no document")
            require(got.doc_id == document.doc_id, f"{name}: read gave {_brief(got.doc_id)}")
            require(
                got.text == document.text, f"{name}: read gave the text {_brief(got.text)}, not {_brief(document.text)}"
            )
            require(
                dict(got.metadata) == dict(document.metadata),
                f"{name}: read gave the metadata {_brief(dict(got.metadata))}, not {_brief(dict(document.metadata))}",
            )
            require(got.version == version, f"{name}: read gave {got.version}, not {version}")

    async def together(self, acts: Iterable[Callable[[], Awaitable[_T]]]) -> list[_T]:
        """Run these at once and give their results, in the order given."""
        results: dict[int, _T] = {}

        async def run(index: int, act: Callable[[], Awaitable[_T]]) -> None:
            results[index] = await act()

        async with trio.open_nursery() as nursery:
            for index, act in enumerate(acts):
                nursery.start_soon(run, index, act)
        return [results[index] for index in sorted(results)]

    async def _call(
        self,
        operation: str,
        items: Sequence[_Item],
        act: Callable[[Sequence[_Item]], Awaitable[Sequence[_T]]],
        kinds: tuple[type, ...],
    ) -> list[_T]:
        answers: list[_T] = []
        size = self.traits.max_batch
        for start in range(0, max(len(items), 1), size):
            batch = items[start : start + size]
            async with self._slots:
                got = await act(batch)
            if len(got) != len(batch):
                broken(f"{operation} of {len(batch)} documents gave {len(got)} answers", "one-answer-each")
            for one in got:
                if not isinstance(one, kinds):
                    broken(f"{operation} answered with a {type(one).__name__}", "one-answer-each")
            answers.extend(got)
        return answers


_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_brief: Final = _SHORT.repr


def _good(operation: str, doc_id: str, answer: _T | StoreError) -> _T:
    if isinstance(answer, StoreError):
        broken(f"{operation} of {_brief(doc_id)} answered {type(answer).__name__}: {answer.problem}")
    return answer


def _landed(doc_id: str, answer: WriteAnswer) -> Observation:
    if answer.status is not WriteStatus.LANDED or answer.observation is None:
        why = "" if answer.error is None else f": {answer.error.problem}"
        broken(f"{_brief(doc_id)}: a write on the current token was {answer.status}{why}")
    return answer.observation


def _explained(operation: str, answers: list[WriteAnswer]) -> list[WriteAnswer]:
    for answer in answers:
        shows_state = answer.status in (WriteStatus.LANDED, WriteStatus.REFUSED)
        if shows_state and answer.observation is None:
            broken(f"{operation} answered {answer.status} without an observation", "verdicts-explained")
        if not shows_state and answer.error is None:
            broken(f"{operation} answered {answer.status} without an error", "verdicts-explained")
    return answers


Check: TypeAlias = Callable[[Subject], Awaitable[None]]


@attrs.frozen
class Promise:
    """One sentence of the contract and how it is checked."""

    name: str
    sentence: str
    check: Check


def promise(into: list[Promise], name: str, sentence: str) -> Callable[[Check], Check]:
    """Append a check to `into`, under the name that `ContractBroken` will show."""

    def register(check: Check) -> Check:
        into.append(Promise(name, sentence, check))
        return check

    return register
