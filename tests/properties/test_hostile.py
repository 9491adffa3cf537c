"""I18 and I19: inputs that are hostile, and texts that nobody may tell."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from trio_repair import Observation, Removal, RepairJob, SyncStrategy, Write, open_repair_engine
from trio_repair.abc import Store, Stores
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector
from trio_repair.testing import make_document
from trio_repair.testing._samples import HOSTILE_IDS

from .laws import LAWS, examples
from .planted import Bug, planted
from .scenario import Scenario


@examples(40)
@given(LAWS["i18"].draw)
def test_i18_hostile_ids_touch_only_their_own_rows(scenario: Scenario) -> None:
    """Ids with quotes, patterns and look-alikes are repaired as any other, and their neighbours are left alone."""
    LAWS["i18"].holds(scenario)


@examples(40)
@given(LAWS["i19"].draw)
def test_i19_no_text_is_told(scenario: Scenario) -> None:
    """Events, results, receipts, reprs and logs hold no document text, even when a driver's errors quote it."""
    LAWS["i19"].holds(scenario)


async def _put(store: Store, ids: Sequence[str], number: int) -> None:
    held = await store.observe(ids)
    prepared = await store.prepare([make_document(doc_id, f"the text of {doc_id!r}", number=number) for doc_id in ids])
    answers = await store.write(
        [Write(prepared=ready, token=view.token) for ready, view in zip(prepared, held, strict=True)]  # type: ignore[union-attr, arg-type]  # no errors here
    )
    assert {"landed"} == {answer.status.value for answer in answers}


async def _held(stores: Stores, ids: Sequence[str]) -> Mapping[tuple[str, str], object]:
    return {
        (name, doc_id): view
        for name, store in stores.by_name.items()
        for doc_id, view in zip(ids, await store.observe(ids), strict=True)
    }


async def _repair_some(directory: Path, ids: Sequence[str], lost: Sequence[str], deleted: Sequence[str]) -> None:
    """Some ids are lost from the vector store and repaired, some are deleted; the rest is not named at all."""
    async with (
        open_sqlite_text(directory / "text.db", create=True) as text,
        open_sqlite_vector(
            directory / "vector.db", embedder=HashingEmbedder(16), chunker=WindowChunker(), create=True
        ) as vector,
        open_sqlite_cache(directory / "cache.db", create=True) as cache,
    ):
        stores = Stores(text=text, vector=vector, cache=cache)
        for store in stores.by_name.values():
            await _put(store, ids, 1)
        tokens = [view.token for view in await vector.observe(lost) if isinstance(view, Observation)]
        await vector.remove([Removal(doc_id=doc_id, token=token) for doc_id, token in zip(lost, tokens, strict=True)])
        before = await _held(stores, ids)
        async with open_repair_engine(stores) as engine:
            jobs = [RepairJob(doc_id=doc_id, strategy=SyncStrategy.MOST_RECENT) for doc_id in lost]
            async with engine.run(jobs) as results:
                assert [True] * len(lost) == [result.success async for result in results]
            for doc_id in deleted:
                assert (await engine.resolve(doc_id, "delete")).success
        after = await _held(stores, ids)
        touched = {*lost, *deleted}
        changed = {doc_id for (name, doc_id), view in after.items() if before[name, doc_id] != view}
        assert touched == changed
        for name, store in stores.by_name.items():
            for doc_id, stored in zip(ids, await store.read(ids), strict=True):
                document = getattr(stored, "document", None)
                if doc_id in deleted:
                    assert document is None or document.version.deleted
                else:
                    assert f"the text of {doc_id!r}" == document.text, f"{name}: {stored}"


_three_groups = st.lists(st.sampled_from(HOSTILE_IDS), min_size=6, max_size=12, unique=True)


@examples(6)
@given(_three_groups)
def test_i18_hostile_ids_touch_only_their_own_rows_in_files(ids: list[str]) -> None:
    """In the SQLite stores too: what is repaired or deleted changes, what is not named keeps its token and text."""
    with tempfile.TemporaryDirectory() as directory:
        trio.run(_repair_some, Path(directory), ids, ids[:3], ids[3:5])


def test_control_i18_ids_that_are_tidied_up_are_noticed(tmp_path: Path) -> None:
    """The same check fails for an engine that strips ids before it hands them over."""
    bug = Bug(
        "ids are tidied up",
        "_batching:Batcher.observe",
        "Request(_OBSERVE, doc_id, doc_id, gather)",
        "Request(_OBSERVE, doc_id, doc_id.strip().lower() or doc_id, gather)",
    )
    with planted(bug), pytest.raises(AssertionError):
        trio.run(_repair_some, tmp_path, ["a", "A", " a", "a ", "b", "B"], ["A", " a"], ["B"])
