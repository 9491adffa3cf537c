"""Claim: a check of the stores and a repair mend what a re-sync by ledger passes over, and re-index nothing else.

What would be used instead: LangChain's indexing API (`index` with an `SQLRecordManager`) and LlamaIndex's
`IngestionPipeline` with its document store. They are made to keep a vector store up to date with a source without
embedding anything twice, and do so by a ledger of what they wrote. They never look at the store, which is what makes
them fast and lets them work with any store, and they do not claim to find what went wrong behind their backs; for that
the remedy is to index everything again, which is measured too: by `force_update` where there is such a thing, and by
removing vectors and ledger. This project looks at the stores, and needs adapters that can tell what is in them.

Everybody syncs the same documents, the docstrings of the standard library, from an equal source into a vector store
of its own. Then the same damage is done to each, of each kind to as many documents:

    missing          the chunks are deleted from the vector store behind the tool's back
    stale            the text was changed at the source, and the tool was not told
    orphan           gone from the source without a tombstone, still in the vector store
    undeleted        deleted at the source, which keeps a tombstone; still in the vector store
    conflict         the vector store holds other content under the version that the source has too: the same number
                     for this project, the same hash in the ledger for the others. (Had the source changed too, it
                     would be stale to them, and they would mend it.)
    incomplete       the last chunk and its vector are gone
    stale-embedding  the vectors were made by another model
    stale-cache      the cache holds an older text; tools without a cache have nothing to repair there (n/a)

Each tool re-syncs, in interleaved rounds, on a copy of its damaged files, and is timed from opening its stores and its
ledger to closing them. A judge then reads source, vector store and cache by plain SQL, makes chunks and vectors anew of
the texts that the source has, and counts the documents for which the stores hold exactly these. What is left to a
person is not counted as repaired but stands in brackets. "Others" are the documents that were not damaged. Before the
first round the judge must find every damaged document wrong, and all others right. How many chunks were embedded is
told beside the seconds, because the embedder here is a cheap one: with a real model that is most of the cost.

The same for all: texts, chunks (each tool's own splitter interface over one chunker), vectors (each tool's own embedder
interface over `HashingEmbedder`), kept in sqlite-vec with commits that reach the disk. Not the same: this project's
vector store is its own, with versions and digests beside the chunks, and it keeps a cache of every third document,
which the others lack. LangChain's own sqlite-vec store needs a `sqlite3` module that can load extensions, ignores ids
and cannot delete, so that `index` refuses it, and LlamaIndex has none: both get a minimal adapter of their vector store
interface over apsw and sqlite-vec. LlamaIndex's document store is the one of its documentation, a JSON file; its cache
of transformations is switched off, since it could not be hit. This project's check leaves out the wait between its two
looks (`settle`, a second by default), because nobody writes meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from benchmarks import _harness
from benchmarks._alternatives.judge import Chunks, Judgement, judge
from benchmarks._alternatives.scenario import (
    CHUNKER,
    EMBEDDER,
    Account,
    Scenario,
    Tool,
    Way,
    damage_source,
    make_scenario,
    make_source,
    read_source,
)
from benchmarks._figures import Finding, Listing, Shown, Spread, bars, number
from trio_repair import AutoRepairConfig, DivergenceKind

TOOLS: Final = {
    "trio_repair": ("benchmarks._alternatives.ours", ("trio", "apsw", "sqlite-vec")),
    "langchain": (
        "benchmarks._alternatives.langchain_indexing",
        ("langchain-core", "langchain-classic", "langchain-text-splitters", "sqlalchemy"),
    ),
    "llamaindex": ("benchmarks._alternatives.llama_ingestion", ("llama-index-core",)),
}
"""By name, the module that drives a tool, and the packages whose versions are told."""

BASELINE: Final = "trio_repair text"


@functools.cache
def right_chunks(text: str) -> Chunks:
    """The chunks and vectors that a text should have."""
    pieces = [chunk.text for chunk in CHUNKER.chunk(text)]
    vectors = EMBEDDER.embed_all(pieces)
    return Counter((piece, vector.tobytes()) for piece, vector in zip(pieces, vectors, strict=True))


@attrs.define
class Arena:
    """Each tool's damaged files, and what came of every re-sync so far."""

    scenario: Scenario
    directory: Path
    synced: Mapping[str, str]
    before: Mapping[str, str] = attrs.field(factory=dict)
    accounts: dict[str, Account] = attrs.field(factory=dict)
    embedded: dict[str, int] = attrs.field(factory=dict)
    judgements: dict[str, list[Judgement]] = attrs.field(factory=dict)

    def prepare(self, name: str, tool: Tool) -> None:
        """Sync, damage, and make sure that the judge sees all of it and nothing else."""
        folder = self.directory / name
        folder.mkdir()
        trio.run(make_source, folder, self.scenario.documents)
        tool.sync(folder, self.scenario)
        trio.run(damage_source, folder, self.scenario)
        tool.damage(folder, self.scenario)
        self.before = dict(read_source(folder))
        judgement = self.judge(tool, folder, Account(said={}))
        if any(judgement.repaired.values()) or judgement.others_right != judgement.others:
            raise SystemExit(f"alternatives: the damage to {name} is not what it should be: {judgement}")

    def resync(self, name: str, tool: Tool, way: Way) -> float:
        """Re-sync a copy of a tool's files, judge it, and return the seconds that the re-sync took."""
        folder = self.directory / "work"
        shutil.copytree(self.directory / name, folder)

        def work() -> None:
            self.accounts[way.name] = way.resync(folder)

        EMBEDDER.calls.clear()
        seconds = _harness.stopwatch(work)
        self.embedded[way.name] = sum(EMBEDDER.calls)
        judgement = self.judge(tool, folder, self.accounts[way.name])
        self.judgements.setdefault(way.name, []).append(judgement)
        shutil.rmtree(folder)
        return seconds

    def judge(self, tool: Tool, folder: Path, account: Account) -> Judgement:
        """What is right in a folder."""
        return judge(
            self.scenario.damaged,
            synced=self.synced,
            before=self.before,
            source=dict(read_source(folder)),
            copies=tool.copies(folder),
            chunked=right_chunks,
            left=account.left,
        )


def import_tools() -> tuple[dict[str, Tool], dict[str, str]]:
    """The tools that can be imported, and why others cannot."""
    tools: dict[str, Tool] = {}
    left_out: dict[str, str] = {}
    for name, (module, _packages) in TOOLS.items():
        try:
            tools[name] = importlib.import_module(module).TOOL
        except ImportError as error:
            left_out[name] = f"{type(error).__name__}: {error}"
    return tools, left_out


def worst(judgements: Sequence[Judgement]) -> Judgement:
    """What holds in every round: for each count, the lowest. They are the same, unless a tool is unsteady."""

    def lowest(counts: Sequence[int | None]) -> int | None:
        known = [count for count in counts if count is not None]
        return min(known) if known else None

    first = judgements[0]
    return Judgement(
        repaired={kind: lowest([one.repaired[kind] for one in judgements]) for kind in first.repaired},
        left={kind: min(one.left[kind] for one in judgements) for kind in first.left},
        others=max(one.others for one in judgements),
        others_right=min(one.others_right for one in judgements),
    )


def told(repaired: int | None, left: int) -> str:
    """How many are repaired, and in brackets how many are left to a person."""
    return "n/a" if repaired is None else f"{repaired} ({left})" if left else str(repaired)


def cell(judgement: Judgement, kind: DivergenceKind) -> str:
    """What came of a kind."""
    return told(judgement.repaired[kind], judgement.left[kind])


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *others in rows:
        cells = (f"{text:>{width + 2}}" for text, width in zip(others, widths[1:], strict=True))
        print(f"  {first:{widths[0]}}" + "".join(cells))


def versions(tools: Mapping[str, Tool]) -> dict[str, str]:
    """What was measured."""
    return {package: importlib.metadata.version(package) for name in tools for package in TOOLS[name][1]}


def main(arguments: list[str]) -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks alternatives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--each", type=int, default=10, help="documents that are damaged in each way")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="which documents")
    options = parser.parse_args(arguments)
    try:
        scenario = make_scenario(options.documents, options.each, seed=options.seed)
    except ValueError as error:
        parser.error(str(error))
    tools, left_out = import_tools()
    with tempfile.TemporaryDirectory(prefix="trio-repair-") as directory:
        synced = {document.doc_id: document.text or "" for document in scenario.documents}
        arena = Arena(scenario=scenario, directory=Path(directory), synced=synced)
        contenders: dict[str, Callable[[], float]] = {}
        ways: dict[str, Way] = {}
        for name, tool in tools.items():
            arena.prepare(name, tool)
            for way in tool.ways:
                ways[way.name] = way
                contenders[way.name] = partial(arena.resync, name, tool, way)
        comparison = _harness.interleave(contenders, baseline=BASELINE, rounds=options.rounds)
    chunks = sum(right_chunks(text).total() for text in arena.before.values())
    settle = AutoRepairConfig().settle
    print(
        f"{options.documents} documents, {chunks} chunks; {options.each} documents damaged in each way;"
        f" {options.rounds} interleaved rounds\n"
    )
    figures = report(arena, ways, comparison, options.documents)
    print(f"\n  trio_repair without the {settle:g} s that a check waits between its two looks by default")
    for name, reason in left_out.items():
        print(f"  {name} is left out: {reason}")
    saved = {
        "documents": options.documents,
        "chunks": chunks,
        "each": options.each,
        "rounds": options.rounds,
        "seed": options.seed,
        "versions": versions(tools),
        "left_out": left_out,
        "settle_seconds_not_waited": settle,
        "baseline": BASELINE,
        "ways": figures,
    }
    print(f"written to {_harness.save('alternatives', saved, prog=parser.prog, options=options)}")


def report(
    arena: Arena, ways: Mapping[str, Way], comparison: _harness.Comparison, documents: int
) -> dict[str, dict[str, Any]]:
    """Print what is repaired and what it took; returns the figures."""
    kinds = list(DivergenceKind)
    repaired = [["repaired (left to a person)", *(kind.value for kind in kinds), "others right"]]
    taken = [["", "seconds", "min", "max", "ms/document", f"over {BASELINE}", "embedded", "it said"]]
    figures: dict[str, dict[str, Any]] = {}
    for name, way in ways.items():
        judgement = worst(arena.judgements[name])
        seconds = _harness.spread(list(comparison.seconds[name]))
        each = _harness.spread([value / documents for value in comparison.seconds[name]])
        ratio = _harness.spread(comparison.ratios(name))
        others = f"{judgement.others_right} of {judgement.others}"
        repaired.append([name, *(cell(judgement, kind) for kind in kinds), others])
        said = arena.accounts[name].said
        taken.append(
            [
                name,
                f"{seconds['median']:.3f}",
                f"{seconds['min']:.3f}",
                f"{seconds['max']:.3f}",
                f"{each['median'] * 1000:.3f}",
                f"{ratio['median']:.2f}",
                str(arena.embedded[name]),
                ", ".join(f"{word} {count}" for word, count in said.items()),
            ]
        )
        figures[name] = {
            "how": way.how,
            "repaired": {kind.value: judgement.repaired[kind] for kind in kinds},
            "left_to_a_person": {kind.value: judgement.left[kind] for kind in kinds},
            "steady": all(one == judgement for one in arena.judgements[name]),
            "others": judgement.others,
            "others_right": judgement.others_right,
            "said": dict(said),
            "chunks_embedded": arena.embedded[name],
            "seconds": seconds,
            "seconds_per_document": each,
            "over_baseline": ratio,
        }
    print_table(repaired)
    print()
    print_table(taken)
    return figures


def accounted(saved: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Damaged documents that a way repairs or leaves to a person, and how many of them its stores can have."""
    row = saved["ways"][name]
    held = [kind for kind, count in row["repaired"].items() if count is not None]
    return sum(row["repaired"][kind] + row["left_to_a_person"][kind] for kind in held), saved["each"] * len(held)


def shown(saved: Mapping[str, Any]) -> Shown:
    """Claims: how much is mended, by us and by the best way of each other tool that does not embed most chunks."""
    ways, chunks = saved["ways"], saved["chunks"]
    best: dict[str, str] = {BASELINE.split()[0]: BASELINE}
    for name, row in ways.items():
        tool = name.split()[0]
        # Who embeds most of all there is has indexed anew, whether or not equal chunks were embedded once.
        if tool == BASELINE.split()[0] or row["chunks_embedded"] > chunks / 2:
            continue
        if tool not in best or accounted(saved, name)[0] > accounted(saved, best[tool])[0]:
            best[tool] = name
    findings = []
    for name in best.values():
        done, damaged = accounted(saved, name)
        findings.append(
            Finding(
                what=f"damaged documents that {name} repairs or leaves to a person (the worst round)",
                against=f"the {damaged} that were damaged",
                ratio=Spread.only(done / damaged),
            )
        )
    findings.append(
        Finding(
            what=f"chunks that {BASELINE} embeds",
            against=f"all {chunks:,} chunks",
            ratio=Spread.only(ways[BASELINE]["chunks_embedded"] / chunks),
        )
    )
    kinds = [kind.value for kind in DivergenceKind]

    repaired = Listing(
        title=f"Repaired, of {saved['each']} of each kind (in brackets: left to a person)",
        header=("", *kinds, "others right"),
        rows=[
            [
                name,
                *(told(row["repaired"][kind], row["left_to_a_person"][kind]) for kind in kinds),
                f"{row['others_right']} of {row['others']}",
            ]
            for name, row in ways.items()
        ],
    )
    did = Listing(
        title="What each did",
        header=("", "how", "chunks embedded", "part of all", "it said", "the same in every round"),
        rows=[
            [
                name,
                row["how"],
                f"{row['chunks_embedded']:,}",
                number(row["chunks_embedded"] / chunks),
                ", ".join(f"{word} {times}" for word, times in row["said"].items()),
                "yes" if row["steady"] else "no",
            ]
            for name, row in ways.items()
        ],
    )
    return Shown(
        findings=findings,
        panels=[
            bars("Time of a re-sync", "s", {name: row["seconds"] for name, row in ways.items()}),
            bars(f"Time, over {BASELINE}", "times", {name: row["over_baseline"] for name, row in ways.items()}),
        ],
        listings=[repaired, did],
        notes=[
            f"{saved['documents']:,} documents, {chunks:,} chunks, {saved['rounds']} interleaved rounds",
            f"this project without the {saved['settle_seconds_not_waited']:g} s that a check waits between two looks",
            ", ".join(f"{package} {version}" for package, version in saved["versions"].items()),
            *(f"{name} is left out: {reason}" for name, reason in saved["left_out"].items()),
        ],
    )
