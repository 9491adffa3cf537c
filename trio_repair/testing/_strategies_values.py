"""Strategies for single values: ids, texts, documents, jobs, faults."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Collection
from typing import Any, Final

import hypothesis.strategies as st

from trio_repair import (
    ContentDefinition,
    Document,
    DocumentVersion,
    RepairJob,
    RepairPriority,
    RepairTrigger,
    SyncStrategy,
)

from ._doubles import make_document
from ._faults import Fault, FaultKind
from ._samples import HOSTILE_IDS, TEXTS

MAX_NUMBER: Final = 2**53 - 1
_MAX_DOC_ID_BYTES: Final = 2048
_CHARACTERS: Final = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@functools.cache
def hostile_doc_ids() -> st.SearchStrategy[str]:
    """Valid ids that careless code trips over: quotes, patterns, paths, look-alikes, the longest possible."""
    any_text = st.text(_CHARACTERS, min_size=1, max_size=40)
    long = st.integers(1_000, _MAX_DOC_ID_BYTES).map(lambda size: "x" * size)
    return st.sampled_from(HOSTILE_IDS) | any_text | long


@functools.cache
def doc_ids() -> st.SearchStrategy[str]:
    """Valid document ids, mostly short and plain, some hostile."""
    return st.integers(0, 9_999).map(lambda number: f"doc-{number}") | hostile_doc_ids()


@functools.cache
def invalid_doc_ids() -> st.SearchStrategy[Any]:
    """What the model must refuse as a document id."""
    surrogate = st.characters(categories=["Cs"]).map(lambda character: f"a{character}")
    with_nul = st.text(_CHARACTERS, max_size=5).map(lambda text: f"{text}\0")
    long = st.integers(1, 50).map(lambda more: "é" * (_MAX_DOC_ID_BYTES // 2) + "x" * more)
    return st.sampled_from(["", None, 0, b"a", ("a",)]) | surrogate | with_nul | long


@functools.cache
def texts(*, max_size: int = 200) -> st.SearchStrategy[str]:
    """Texts of up to `max_size` characters, empty ones too, that every store takes."""
    awkward = st.sampled_from([text for text in TEXTS.values() if len(text) <= max_size])
    return st.text(_CHARACTERS, max_size=max_size) | awkward


@functools.cache
def metadata() -> st.SearchStrategy[dict[str, Any]]:
    """Small JSON objects."""
    words = st.text(_CHARACTERS, max_size=8)
    numbers = st.integers(-MAX_NUMBER, MAX_NUMBER) | st.floats(allow_nan=False, allow_infinity=False)
    leaves = st.none() | st.booleans() | numbers | words
    values = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=5
    )
    return st.dictionaries(words, values, max_size=3)


@functools.cache
def version_numbers(*, none: bool = True) -> st.SearchStrategy[int | None]:
    """Version numbers, small ones mostly, so that two that are drawn are often equal or neighbours.

    Args:
        none: whether None, "never ordered", is among them.
    """
    numbers: st.SearchStrategy[int | None] = st.integers(0, 5) | st.sampled_from([MAX_NUMBER - 1, MAX_NUMBER])
    return st.none() | numbers if none else numbers


@functools.cache
def _moments() -> st.SearchStrategy[dt.datetime | None]:
    return st.none() | st.datetimes(timezones=st.just(dt.timezone.utc))


@functools.cache
def _deadlines() -> st.SearchStrategy[dt.datetime | None]:
    """None first, so that examples shrink towards it."""
    return st.none() | st.sampled_from([dt.datetime(year, 1, 1, tzinfo=dt.timezone.utc) for year in (2200, 2001)])


def documents(
    *,
    ids: st.SearchStrategy[str] | None = None,
    text: st.SearchStrategy[str] | None = None,
    numbers: st.SearchStrategy[int | None] | None = None,
    content: ContentDefinition | None = None,
) -> st.SearchStrategy[Document]:
    """Live documents with true digests.

    Args:
        ids: None: `doc_ids()`.
        text: None: `texts()`.
        numbers: None: `version_numbers()`.
        content: what the digest covers; None: the text alone.
    """
    return st.builds(
        make_document,
        doc_ids() if ids is None else ids,
        texts() if text is None else text,
        number=version_numbers() if numbers is None else numbers,
        metadata=metadata(),
        updated_at=_moments(),
        content=st.just(content),
    )


def tombstones(
    *, ids: st.SearchStrategy[str] | None = None, numbers: st.SearchStrategy[int | None] | None = None
) -> st.SearchStrategy[Document]:
    """Tombstones; `ids` and `numbers` as in `documents`."""
    return st.builds(
        Document.tombstone,
        doc_ids() if ids is None else ids,
        number=version_numbers() if numbers is None else numbers,
        updated_at=_moments(),
    )


def versions(*, numbers: st.SearchStrategy[int | None] | None = None) -> st.SearchStrategy[DocumentVersion]:
    """Versions, of tombstones too, out of few digests, so that equal ones are common."""
    given = version_numbers() if numbers is None else numbers
    digests = st.sampled_from([digit * 64 for digit in "abc"])
    live = st.builds(DocumentVersion, number=given, digest=digests, updated_at=_moments())
    return live | st.builds(DocumentVersion, number=given, deleted=st.just(value=True), updated_at=_moments())


def jobs(
    *,
    ids: st.SearchStrategy[str] | None = None,
    strategies: Collection[SyncStrategy] = tuple(SyncStrategy),
    deadlines: st.SearchStrategy[dt.datetime | None] | None = None,
) -> st.SearchStrategy[RepairJob]:
    """Repair jobs. Each has an id of its own; without a deadline is the simplest.

    Args:
        ids: of the documents; None: `doc_ids()`.
        strategies: which ones to draw from.
        deadlines: None: none at all, or one that is long past, or one that is far off, so that what a job does never
            depends on the wall clock; under a clock of your own, draw moments of that.
    """
    return st.builds(
        RepairJob,
        id=st.uuids().map(lambda drawn: drawn.hex),
        doc_id=doc_ids() if ids is None else ids,
        strategy=st.sampled_from(sorted(strategies, key=lambda strategy: strategy.value)),
        priority=st.sampled_from(RepairPriority),
        trigger=st.sampled_from(RepairTrigger),
        created_at=st.just(dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)),
        deadline=_deadlines() if deadlines is None else deadlines,
        timeout=st.none() | st.floats(0.01, 100),
        retry_count=st.integers(0, 4),
        max_retries=st.integers(0, 4),
    )


DRAWN_FAULTS: Final = frozenset(FaultKind) - {FaultKind.BLOCKED_LOOP, FaultKind.SHUFFLED_ANSWERS, FaultKind.CRASH}


@st.composite
def faults(draw: st.DrawFn, *, kinds: Collection[FaultKind] = DRAWN_FAULTS, max_times: int = 3) -> Fault:
    """A fault that strikes up to `max_times` calls, of any operation that it can strike.

    Args:
        kinds: which ones to draw from; by default all but BLOCKED_LOOP, which takes wall time, SHUFFLED_ANSWERS, a lie
            that an engine cannot always see through, and CRASH, of which not every store is capable.
        max_times: at least 1.
    """
    kind = draw(st.sampled_from(sorted(kinds, key=lambda kind: kind.value)))
    return Fault(
        kind,
        draw(st.none() | st.sampled_from(sorted(kind.operations))),
        times=draw(st.integers(1, max_times)),
        probability=draw(st.sampled_from([1.0, 0.5])),
        delay=draw(st.floats(0.01, 10)) * (draw(st.sampled_from([1, -1])) if kind is FaultKind.CLOCK_SKEW else 1),
    )
