"""The benchmark of alternatives: its judge is not to be fooled, and it runs without the tools that it compares with."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest

from benchmarks import _harness, alternatives
from benchmarks._alternatives import ours
from benchmarks._alternatives import scenario as scenarios
from benchmarks._alternatives.judge import Chunks, Copies, Judgement, judge
from benchmarks._alternatives.scenario import Scenario, Way, make_scenario
from benchmarks._alternatives.vectors import Row, open_vectors
from trio_repair import DivergenceKind

KINDS = tuple(DivergenceKind)
DAMAGED = {kind: [kind.value] for kind in KINDS}
SYNCED = {kind.value: f"text of {kind.value}" for kind in KINDS} | {"other": "text of other"}
GONE = frozenset({DivergenceKind.ORPHAN.value, DivergenceKind.UNDELETED.value})
BEFORE = {doc_id: text for doc_id, text in SYNCED.items() if doc_id not in GONE}
NOT_IN_VECTORS = frozenset({DivergenceKind.STALE_CACHE})


def chunked(text: str) -> Chunks:
    """One chunk for each word, with its hash as a vector."""
    return Counter((word, word.encode()) for word in text.split())


def right() -> Copies:
    """Stores in which everything is right."""
    return Copies(chunks={doc_id: chunked(text) for doc_id, text in BEFORE.items()}, cache=dict(BEFORE))


def judged(copies: Copies, *, source: dict[str, str] = BEFORE, left: frozenset[str] = frozenset()) -> Judgement:
    """The judgement on some stores."""
    return judge(DAMAGED, synced=SYNCED, before=BEFORE, source=source, copies=copies, chunked=chunked, left=left)


def test_what_is_right_is_judged_repaired() -> None:
    """All kinds repaired, the other document left alone."""
    assert judged(right()) == Judgement(
        repaired=dict.fromkeys(KINDS, 1), left=dict.fromkeys(KINDS, 0), others=1, others_right=1
    )


WRONG: dict[str, Chunks] = {
    "another text": chunked("something else"),
    "a chunk too few": chunked("text of"),
    "a chunk too many": chunked("text of text of too"),
    "a vector of another model": Counter({("text", b"other"): 1}),
    "no vector": Counter({("text", None): 1}),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_control_what_is_wrong_is_judged_unrepaired(kind: DivergenceKind, wrong: Chunks) -> None:
    """Chunks that the source's text does not have, or has otherwise: that kind, and no other, is not repaired."""
    copies = attrs.evolve(right(), chunks={**right().chunks, kind.value: wrong})
    expected = {one: int(one is not kind) for one in KINDS}
    assert expected == judged(copies).repaired


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_control_a_wrong_cache_entry_is_judged_unrepaired(kind: DivergenceKind) -> None:
    """Whatever the damage was, an outdated text in the cache is part of it."""
    copies = attrs.evolve(right(), cache={kind.value: "older"})
    assert judged(copies).repaired[kind] == 0
    assert judged(attrs.evolve(copies, cache={})).repaired[kind] == 1
    assert judged(attrs.evolve(copies, cache=None)).repaired[kind] == (None if kind in NOT_IN_VECTORS else 1)


def test_a_source_that_was_bent_to_the_store_is_no_repair() -> None:
    """Only an orphan may come back to the source, as it was synced."""
    restored = SYNCED | {doc_id: f"{text} bent" for doc_id, text in BEFORE.items()}
    copies = Copies(chunks={doc_id: chunked(text) for doc_id, text in restored.items()}, cache=None)
    judgement = judged(copies, source=restored)
    expected = {kind: int(kind is DivergenceKind.ORPHAN) for kind in KINDS if kind not in NOT_IN_VECTORS}
    assert expected | {DivergenceKind.STALE_CACHE: None} == judgement.repaired
    assert judgement.others_right == 0


def test_what_is_left_to_a_person_counts_only_if_it_is_not_repaired() -> None:
    """It stands beside what is repaired, never in both."""
    copies = attrs.evolve(right(), chunks={**right().chunks, "conflict": chunked("another")})
    judgement = judged(copies, left=frozenset({"conflict", "missing"}))
    assert {kind: int(kind is DivergenceKind.CONFLICT) for kind in KINDS} == judgement.left
    assert "0 (1)" == alternatives.cell(judgement, DivergenceKind.CONFLICT)


def test_strays_and_spoiled_bystanders_are_seen() -> None:
    """Vectors that belong to no chunk, and a document that was right before."""
    copies = attrs.evolve(right(), chunks={**right().chunks, "": Counter({("", b"stray"): 1}), "other": Counter()})
    judgement = judged(copies)
    assert (judgement.others, judgement.others_right) == (2, 0)


def test_the_worst_round_counts() -> None:
    """A tool that repairs only sometimes does not get the better round."""
    spoiled = judged(attrs.evolve(right(), chunks={}))
    assert spoiled.repaired[DivergenceKind.MISSING] == 0
    assert alternatives.worst([judged(right()), spoiled]).repaired == spoiled.repaired


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """As few documents as can be damaged in every way."""
    return make_scenario(200, 1, seed=1)


def test_the_damage_to_other_tools_stores_is_what_it_should_be(scenario: Scenario, tmp_path: Path) -> None:
    """The judge sees what is done to plain chunks, and that putting the right ones back repairs it."""
    synced = {one.doc_id: one.text or "" for one in scenario.documents}
    rows = [
        Row(f"{doc_id} {number}", doc_id, text, "{}", vector or b"")
        for doc_id, whole in synced.items()
        for number, (text, vector) in enumerate(alternatives.right_chunks(whole).elements())
    ]
    with open_vectors(tmp_path) as file:

        def repaired() -> dict[DivergenceKind, int | None]:
            copies = file.copies()
            assert copies.cache is None
            judgement = judge(
                scenario.damaged,
                synced=synced,
                before=synced,
                source=synced,
                copies=copies,
                chunked=alternatives.right_chunks,
            )
            assert judgement.others_right == judgement.others == len(synced) - len(KINDS)
            return dict(judgement.repaired)

        hit = {
            DivergenceKind.MISSING,
            DivergenceKind.CONFLICT,
            DivergenceKind.INCOMPLETE,
            DivergenceKind.STALE_EMBEDDING,
        }
        every = {kind: None if kind in NOT_IN_VECTORS else 1 for kind in KINDS}
        file.put(rows)
        assert every == repaired()
        file.damage(scenario)
        assert every | dict.fromkeys(hit, 0) == repaired()
        file.put(rows)
        assert every == repaired()


class Untouched:
    """This project's stores, to which nothing happens but at the source."""

    ways: Sequence[Way] = ()
    sync = ours.TOOL.sync
    copies = ours.TOOL.copies

    def damage(self, folder: Path, scenario: Scenario) -> None:
        """Nothing."""


def test_control_damage_that_was_not_done_ends_the_run(scenario: Scenario, tmp_path: Path) -> None:
    """A benchmark that would count as repaired what never broke does not begin."""
    arena = alternatives.Arena(
        scenario=scenario, directory=tmp_path, synced={one.doc_id: one.text or "" for one in scenario.documents}
    )
    with pytest.raises(SystemExit, match="the damage to untouched is not what it should be"):
        arena.prepare("untouched", Untouched())


def test_it_runs_without_the_tools(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are left out, with the reason; our own rows are judged, and every damaged document is accounted for."""
    for name in ("langchain_classic", "langchain_core", "langchain_text_splitters", "llama_index"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("langchain_indexing", "llama_ingestion"):
        monkeypatch.delitem(sys.modules, f"benchmarks._alternatives.{name}", raising=False)
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    alternatives.main(["--documents", "200", "--each", "1", "--rounds", "1"])
    said = capsys.readouterr().out
    figures = json.loads((tmp_path / "alternatives.json").read_text())
    assert ["langchain", "llamaindex"] == sorted(figures["left_out"])
    mended, embedded_part = alternatives.shown(figures).findings
    assert (1, figures["ways"][alternatives.BASELINE]["chunks_embedded"] / figures["chunks"]) == (
        mended.ratio.median,
        embedded_part.ratio.median,
    )
    for name, reason in figures["left_out"].items():
        assert f"{name} is left out: {reason}" in said
        assert "ModuleNotFoundError" in reason
    assert [way.name for way in ours.TOOL.ways] == list(figures["ways"])
    expected_left = {"trio_repair text": {"orphan"}, "trio_repair most-recent": {"conflict"}}
    for name, row in figures["ways"].items():
        left = {kind for kind, count in row["left_to_a_person"].items() if count}
        assert expected_left.get(name, set()) == left
        assert {kind.value: int(kind.value not in left) for kind in KINDS} == row["repaired"]
        assert row["others_right"] == row["others"] == 192
        assert row["steady"]
        assert row["seconds"]["min"] > 0
    embedded = {name: row["chunks_embedded"] for name, row in figures["ways"].items()}
    # All but the few passages that stand in several documents: those are embedded once.
    assert 0.95 < embedded["trio_repair anew"] / figures["chunks"] <= 1
    assert max(embedded["trio_repair text"], embedded["trio_repair most-recent"]) < figures["chunks"] / 10


@pytest.mark.parametrize("each", [0, 2])
def test_damage_that_would_stop_a_repair_is_refused(each: int) -> None:
    """None at all, or too much of it for so few documents."""
    with pytest.raises(ValueError, match=f"1 to 1 can be damaged in each way, not {each}"):
        make_scenario(200, each, seed=0)


def test_more_documents_than_there_are_are_refused(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not measure fewer than it says."""
    monkeypatch.setattr(scenarios, "stdlib_documents", lambda **_options: iter(scenario.documents))
    with pytest.raises(ValueError, match="has 200 documents, not 201"):
        make_scenario(201, 1, seed=0)
