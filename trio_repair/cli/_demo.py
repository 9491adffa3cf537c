"""`trio-repair demo`: real documents in three real stores, damaged, found, repaired, and proved."""

from __future__ import annotations

import functools
import platform
import shlex
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
import trio
from rich.console import Console

from .. import (
    AutoRepairConfig,
    Divergence,
    DivergenceKind,
    InvalidValue,
    RepairJob,
    RepairOutcome,
    RepairResult,
    RepairTrigger,
    Stores,
    SyncStrategy,
    TrioRepairError,
    check,
    count_changes,
    open_repair_engine,
)
from ..demo.build import CONFIGURATION, DATABASES, claim_directory, clear_directory, create_stores, fill_stores
from ..demo.corpus import stdlib_documents
from ..demo.damage import MIN_DOCUMENTS, STORIES, Damage, damage_stores
from ..demo.proof import Held, Proof, fingerprint, prove
from ..demo.workshop import open_workshop
from ..demo.writing import read_documents
from ._apart import in_process_of_its_own
from ._configuration import load_configuration
from ._escape import one_line, printable
from ._lock import hold_lock
from ._opening import open_stores
from ._output import Output, table
from ._progress import Scale, show_progress
from ._signals import open_interruption
from ._status import ExitStatus, UsageError

DEFAULT_DIRECTORY: Final = Path("trio-repair-demo")

_WIDTH: Final = 78
_INDENT: Final = " " * 9
_SETTLE: Final = 0.1
"""Seconds between the two looks of a check. Nobody writes here, so that there is nothing to wait for."""
_SHOWN: Final = 3
"""How many conflicts are shown in full."""


class NotProved(TrioRepairError):
    """The demo did not end as it must; the message says what is wrong."""


@attrs.define
class _Narrator:
    """Tells what happens, in lines that fit 80 columns."""

    output: Output
    done: int = 0
    _stage_began: float = attrs.field(factory=trio.current_time)

    def count(self) -> int:
        """How many documents the present stage has dealt with."""
        return self.done

    @asynccontextmanager
    async def stage(
        self, what: str, total: int | None = None, *, count: Callable[[], int] | None = None
    ) -> AsyncIterator[None]:
        """Show progress while the block runs: `count` of `total` documents, as far as these are known."""
        self.done = 0
        self._stage_began = trio.current_time()
        async with show_progress(self.output, what, count, Scale(total=total)):
            yield

    def tell(self, stage: str, sentence: str) -> None:
        """What a stage did, and how long it took."""
        seconds = f"{trio.current_time() - self._stage_began:6.1f} s"
        lines = textwrap.wrap(one_line(sentence), _WIDTH - len(_INDENT) - len(seconds) - 1)
        lines[0] = f"{stage:<{len(_INDENT)}}{lines[0]}"
        lines[0] = f"{lines[0]:<{_WIDTH - len(seconds)}}{seconds}"
        self.output.show(lines[0])
        for line in lines[1:]:
            self.output.show(f"{_INDENT}{line}")

    def add(self, line: str = "") -> None:
        """A line that belongs to the stage before."""
        self.output.show(f"{_INDENT}{line}" if line else "")


@attrs.frozen(kw_only=True)
class _Place:
    """The demo's directory."""

    directory: Path

    def file(self, role: str) -> Path:
        return self.directory / DATABASES[role]

    def command(self, name: str, *arguments: str) -> list[str]:
        """A command for this directory, to be typed into a shell; in two lines if one would be too long."""
        start, rest = shlex.join(["trio-repair", name, "--dir", str(self.directory)]), shlex.join(arguments)
        if len(_INDENT) + len(start) + len(rest) + 3 > _WIDTH:
            return [f"{start} \\", f"  {rest}"]
        return [f"{start} {rest}".rstrip()]

    async def prove(self, stores: Stores) -> Proof:
        """Read the files directly. The stores are asked for nothing but the name of their embedding."""
        embedding = stores.vector.traits.embedding
        assert embedding is not None
        identity = (embedding.model, embedding.dimension, embedding.chunking)
        files = {role: self.file(role) for role in DATABASES}
        return await trio.to_thread.run_sync(
            in_process_of_its_own, functools.partial(prove, **files, embedding=identity)
        )

    async def fingerprint(self) -> str:
        """Of all rows in the three files."""
        files = [self.file(role) for role in DATABASES]
        return await trio.to_thread.run_sync(in_process_of_its_own, functools.partial(fingerprint, *files))


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise NotProved(f"demo: {problem}; this is a bug, please report it together with the seed")


async def run_demo(directory: Path | None, documents: int | None, seed: int, console: Console) -> int:
    """Make three stores, damage them, repair them, and prove that all is well.

    Args:
        directory: where to; None: `DEFAULT_DIRECTORY`.
        documents: how many; None: all docstrings of the standard library.
        seed: decides which documents are damaged and, if not all are taken, which are taken.
        console: for what is told; progress goes to stderr.

    Returns:
        An exit status: OK only if everything was proved.

    Raises:
        UsageError: too few documents, or a directory that is not the demo's.
        NotProved: something did not turn out as it must.
        StoreError: a store could not be used.

    **If cancelled:** the stores are valid, with some of the documents in some of the states.
    """
    if documents is not None and documents < MIN_DOCUMENTS:
        raise UsageError(f"--documents: {documents} are too few to show each kind of damage; at least {MIN_DOCUMENTS}")
    place = _Place(directory=DEFAULT_DIRECTORY if directory is None else directory)
    narrator = _Narrator(Output(json=False, out=console))
    try:
        claim_directory(place.directory)
    except InvalidValue as error:
        raise UsageError(f"--dir: {error.problem}") from error
    async with open_interruption() as interruption:
        with interruption.scope, hold_lock(place.directory / CONFIGURATION):
            clear_directory(place.directory)
            await _tell_it_all(place, narrator, documents, seed)
    if interruption.signals:
        narrator.output.say("interrupted; the stores are valid, and the demo can be run again")
        return ExitStatus.INTERRUPTED
    return ExitStatus.OK


async def _tell_it_all(place: _Place, narrator: _Narrator, documents: int | None, seed: int) -> None:
    began = trio.current_time()
    narrator.output.show(f"Three SQLite stores in {place.directory}:")
    narrator.output.show("text (full-text index FTS5), vector (sqlite-vec) and cache.")
    narrator.output.show("")
    before, damages = await _make_and_damage(place, narrator, documents, seed)
    configuration = load_configuration(place.directory / CONFIGURATION)
    config = attrs.evolve(configuration.engine, settle=_SETTLE)
    async with open_stores(configuration) as stores:
        total = len(before.text)
        found = await _check(stores, config, narrator, total)
        _tell_found(narrator, damages, found)
        await _repair(stores, config, narrator, found)
        await _decide(place, stores, config, narrator, damages, total)
        left = await _check(stores, config, narrator, total)
        _require(not left, f"{len(left)} documents still diverge, the first is {next(iter(left), None)!r}")
        narrator.tell("check", "No divergence is left.")
        await _prove_end(place, stores, config, narrator, _expected(before, damages))
    narrator.output.show("")
    narrator.output.show(f"All of it is proved, in {trio.current_time() - began:.1f} s. Try next:")
    narrator.output.show("")
    for command in (
        place.command("check"),
        place.command("search", "parse a date"),
        place.command("show", next(one.doc_id for one in damages if DivergenceKind.CONFLICT in one.kinds)),
    ):
        for line in command:
            narrator.output.show(f"  {line}")


async def _make_and_damage(
    place: _Place, narrator: _Narrator, documents: int | None, seed: int
) -> tuple[Proof, Sequence[Damage]]:
    async with create_stores(place.directory) as stores:
        async with narrator.stage("making", documents, count=narrator.count):

            def progress(filled: int) -> None:
                narrator.done = filled

            corpus = stdlib_documents(documents=documents, seed=seed)
            filled = await fill_stores(stores, corpus, seed=seed, progress=progress)
        narrator.tell(
            "make",
            f"{filled.documents:,} docstrings of Python {platform.python_version()} written to text and vector store, "
            f"{filled.cached:,} of them to the cache.",
        )
        async with narrator.stage("proving"):
            before = await place.prove(stores)
        _require(before.holds, f"the new stores disagree: {before.disagreements[:1]}")
        async with (
            narrator.stage("damaging"),
            open_workshop(stores, vector_file=place.file("vector")) as shop,
        ):
            damages = await damage_stores(shop, seed=seed)
    narrator.tell("damage", f"{len(damages):,} documents, as dual writes do when they fail half-way:")
    counts = Counter(damage.story.told for damage in damages)
    for story in STORIES:
        narrator.add(f"{counts[story.told]:5,}  {story.kind.value:<16} {story.told}")
    return before, damages


async def _check(stores: Stores, config: AutoRepairConfig, narrator: _Narrator, total: int) -> dict[str, Divergence]:
    """All divergences, by ascending doc_id."""
    async with check(stores, config) as checking:

        def count() -> int:
            return checking.statistics().documents

        async with narrator.stage("checking", total, count=count):
            found = {divergence.doc_id: divergence async for divergence in checking}
        _require(checking.statistics().unsettled == 0, "somebody else writes to the demo's stores")
    return dict(sorted(found.items()))


def _tell_found(narrator: _Narrator, damages: Sequence[Damage], found: Mapping[str, Divergence]) -> None:
    expected = {damage.doc_id: damage.kinds for damage in damages}
    actual = {doc_id: divergence.kinds for doc_id, divergence in found.items()}
    narrator.tell("check", f"{len(found):,} documents on which the stores do not agree.")
    done, seen = (Counter(kind for kinds in side.values() for kind in kinds) for side in (expected, actual))
    rows = [(f"{_INDENT}{kind.value}", f"{done[kind]:,}", f"{seen[kind]:,}") for kind in DivergenceKind]
    narrator.output.show(table((f"{_INDENT}kind", "damaged", "found"), rows, numbers=("damaged", "found")))
    narrator.output.show("")
    wrong = sorted(doc_id for doc_id in expected | actual if expected.get(doc_id) != actual.get(doc_id))
    _require(not wrong, f"check found not exactly the damage, {len(wrong)} documents differ, first {wrong[:1]}")
    narrator.add("Every damaged document was found, with what is wrong, and no other.")
    narrator.add("(Some are of two kinds: an outdated copy in the cache as well.)")


async def _run_jobs(
    stores: Stores, config: AutoRepairConfig, narrator: _Narrator, doc_ids: Sequence[str], what: str
) -> list[RepairResult]:
    """Repair documents by MOST_RECENT."""
    jobs = (
        RepairJob(doc_id=doc_id, strategy=SyncStrategy.MOST_RECENT, trigger=RepairTrigger.CONSISTENCY_CHECK)
        for doc_id in doc_ids
    )
    done: list[RepairResult] = []
    async with (
        narrator.stage(what, len(doc_ids), count=narrator.count),
        open_repair_engine(stores, config) as engine,
        engine.run(jobs) as results,
    ):
        async for result in results:
            done.append(result)
            narrator.done += 1
    return done


async def _repair(
    stores: Stores, config: AutoRepairConfig, narrator: _Narrator, found: Mapping[str, Divergence]
) -> None:
    counts = await count_changes(stores, SyncStrategy.MOST_RECENT, config)
    counts.guard(config)
    results = await _run_jobs(stores, config, narrator, list(found), "repairing")
    manual = [result for result in results if result.outcome is RepairOutcome.NEEDS_MANUAL]
    failed = [result for result in results if not result.success and result not in manual]
    _require(not failed, f"{len(failed)} repairs failed, the first because: {failed[0].error if failed else None}")
    narrator.tell(
        "repair",
        f"{len(results) - len(manual):,} documents repaired, the most recent version wins; "
        f"{len(manual):,} left to a person.",
    )


async def _decide(
    place: _Place,
    stores: Stores,
    config: AutoRepairConfig,
    narrator: _Narrator,
    damages: Sequence[Damage],
    total: int,
) -> None:
    """Resolve what is left, as a person would who has looked at it."""
    left = await _check(stores, config, narrator, total)
    conflicts = [damage.doc_id for damage in damages if DivergenceKind.CONFLICT in damage.kinds]
    wrong = [doc_id for doc_id, divergence in left.items() if divergence.kinds != {DivergenceKind.CONFLICT}]
    _require(list(left) == conflicts and not wrong, "a first repair left something else than the conflicts")
    narrator.tell(
        "check",
        f"Conflicts left: {len(left):,}. One version number, two contents; only a person can say which is right:",
    )
    for doc_id in conflicts[:_SHOWN]:
        narrator.add()
        narrator.add(printable(doc_id, _WIDTH - len(_INDENT)))
        for role, store in stores.critical.items():
            (copy,) = await read_documents(store, [doc_id], role=role)
            last = (copy.text or "").splitlines()[-1]
            narrator.add(f"  {role:<7} version {copy.version.number}: … {one_line(last)[:50]}")
        for line in place.command("resolve", doc_id, "--take", "text"):
            narrator.add(f"  {line}")
    if len(conflicts) > _SHOWN:
        narrator.add()
        narrator.add(f"and {len(conflicts) - _SHOWN:,} more like these.")
    narrator.add()
    async with (
        narrator.stage("resolving", len(left), count=narrator.count),
        open_repair_engine(stores, config) as engine,
    ):
        for doc_id, divergence in left.items():
            # The tokens are those of the copies that were looked at: if one changed since, the choice is refused.
            tokens = {name: view.token for name, view in divergence.views.items()}
            result = await engine.resolve(doc_id, "text", expected=tokens)
            _require(result.success, f"a choice was not carried out: {result.error}")
            narrator.done += 1
    narrator.tell("resolve", f"Choices carried out: {len(left):,}, each of them to take the copy of the text store.")


def _expected(before: Proof, damages: Sequence[Damage]) -> dict[str, Held]:
    """What every document must be in the end: untouched, or what its damage calls for."""
    expected = dict(before.text)
    for damage in damages:
        if damage.after is None:
            del expected[damage.doc_id]
        else:
            expected[damage.doc_id] = Held(damage.after.number, damage.after.digest, damage.after.deleted)
    return expected


async def _prove_end(
    place: _Place, stores: Stores, config: AutoRepairConfig, narrator: _Narrator, expected: Mapping[str, Held]
) -> None:
    rows_before = await place.fingerprint()
    results = await _run_jobs(stores, config, narrator, sorted(expected), "repairing again")
    idle = all(result.outcome is RepairOutcome.ALREADY_CONSISTENT and not result.updated_systems for result in results)
    _require(idle and len(results) == len(expected), "a second repair found something to do")
    _require(rows_before == await place.fingerprint(), "a second repair wrote something")
    narrator.tell("repair", f"A second repair, of all {len(results):,} documents, wrote nothing: no row has changed.")
    async with narrator.stage("proving"):
        proof = await place.prove(stores)
    first = proof.disagreements[:1]
    _require(proof.holds, f"the files disagree: {first[0].doc_id!r}: {first[0].problem}" if first else "")
    _require(proof.text == expected, "a document is not what it must be")
    narrator.tell(
        "prove",
        f"Read from the files by plain SQL, without engine and stores: {proof.live:,} documents and "
        f"{proof.tombstones:,} tombstones, each the same in text and vector store; all {proof.chunks:,} chunks have a "
        f"vector and give back the text that the digest says; all {proof.cached:,} cached copies are equal; undamaged "
        "documents are what they were, damaged ones the version that had to win.",
    )
