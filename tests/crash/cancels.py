"""Cancel repairs at random moments over the three SQLite stores, and hold what was told against what is stored.

``python -m tests.crash.cancels --cancels 10000 --seed 1`` in a checkout. Exit status 1: there is a difference.
"""

from __future__ import annotations

import argparse
import datetime as dt
import enum
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from trio_repair import (
    AutoRepairConfig,
    Document,
    EventKind,
    RepairExecutionEngine,
    RepairJob,
    RepairOutcome,
    RepairResult,
    Stores,
    SyncStrategy,
    open_repair_engine,
)
from trio_repair.testing import RecordingInstrument

from .held import NAMES, Files, Holdings
from .judging import differences, losses
from .scenarios import Copy, put
from .sqlite_files import open_stores
from .witness import Witness

DOC_IDS = [f"document-{number}" for number in range(24)]
MOST_ROUNDS = 8
"""Of one engine."""


class Way(enum.Enum):
    """How a repair is cut off."""

    JOB = "engine.cancel"
    CALLER = "the caller is cancelled"
    TIMEOUT = "timeout"
    DEADLINE = "deadline"
    HOST = "the engine's host is cancelled"
    CLOSED = "an exception leaves the engine's block"


OF_ONE_JOB = (Way.JOB, Way.CALLER, Way.TIMEOUT, Way.DEADLINE)
OF_ALL_JOBS = (Way.HOST, Way.CLOSED)


class _Leave(Exception):
    """What leaves the engine's block."""


@attrs.define
class Report:
    hits: Counter[Way] = attrs.field(factory=Counter)
    """Cancels that came while their repair was running."""
    phases: Counter[str] = attrs.field(factory=Counter)
    """In which phase they found it; a timeout finds it without being seen."""
    misses: int = 0
    """Cancels that came too early or too late."""
    given_up: int = 0
    """Store calls that took longer than an engine was told to wait."""
    results: int = 0
    outcomes: Counter[str] = attrs.field(factory=Counter)
    states: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    """By store and state of its receipt."""
    seconds: float = 0.0
    differences: list[str] = attrs.field(factory=list)

    def show(self) -> str:
        lines = [
            f"cancels that hit a running repair: {self.hits.total()} (and {self.misses} that came too early or too late)",
            "  by way: " + _counts({way.value: count for way, count in self.hits.items()}),
            "  by phase, where it is known: " + _counts(self.phases),
            f"store calls that were given up beside these: {self.given_up}",
            f"receipts: {self.results}; outcomes: {_counts(self.outcomes)}",
        ]
        for store in NAMES:
            states = {state: count for (name, state), count in self.states.items() if name == store}
            lines.append(f"  {store}: {_counts(states)}")
        lines.append(f"told and stored differ: {len(self.differences)} times ({self.seconds:.0f} s)")
        return "\n".join([*lines, *self.differences[:20]])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


@attrs.define
class _Storm:
    """Engines over the same stores, one after the other, in each some rounds of repairs that are cut off."""

    stores: Mapping[str, Any]
    files: Files
    rng: random.Random
    report: Report = attrs.field(factory=Report)
    truth: dict[str, Copy] = attrs.field(factory=dict)
    """What the text store holds."""
    number: int = 0
    typical: float = 0.02
    """What a repair takes that is left alone, in seconds; learnt."""

    async def blow(self, cancels: int, *, at_first_difference: bool) -> None:
        begun = time.monotonic()
        await self._write({doc_id: self._next("first") for doc_id in DOC_IDS})
        while self.report.hits.total() < cancels and not (at_first_difference and self.report.differences):
            await self._one_engine()
        if not self.report.differences:
            await self._converge()
        self.report.seconds = time.monotonic() - begun

    async def _one_engine(self) -> None:
        rng = self.rng
        witnesses = {name: Witness(store, checkpoints=0) for name, store in self.stores.items()}
        impatient = rng.random() < 0.1
        config = AutoRepairConfig(
            grace=rng.choice([0.0, 0.002, 2.0]),
            store_call_timeout=rng.uniform(0.1, 1.0) * self.typical if impatient else 10.0,
            breaker_reset=0.01,
            unavailable_timeout=0.5,
            backoff_base=0.005,
            settle=0.0,
            max_concurrent_jobs=rng.choice([2, 8, 64]),
        )
        heard = RecordingInstrument()
        engine: RepairExecutionEngine | None = None
        with trio.CancelScope() as host:
            try:
                async with open_repair_engine(Stores(**witnesses), config, instruments=[heard]) as engine:
                    for _ in range(rng.randint(1, MOST_ROUNDS)):
                        jobs = await self._jobs(witnesses, heard)
                        before = self.files.held(DOC_IDS)
                        async with trio.open_nursery() as nursery:
                            for job in jobs:
                                nursery.start_soon(self._cut_one, engine, job)
                        await engine.drain()
                        # Nothing tells of the end of a write that nobody waits for.
                        while engine.statistics().locked:  # noqa: ASYNC110 - as said above
                            await trio.sleep(0.0005)
                        self._judge(before, heard, witnesses)
                    way = rng.choice(OF_ALL_JOBS)
                    jobs = await self._jobs(witnesses, heard)
                    before = self.files.held(DOC_IDS)
                    for job in jobs:
                        engine.submit_nowait(job)
                    await self._moment()
                    for job in jobs:
                        self._cancels(engine, job, way)
                    if way is Way.CLOSED:
                        raise _Leave  # noqa: TRY301 - the way out of the block that is tested
                    host.cancel()
            except _Leave:
                pass
        assert engine is not None
        statistics = engine.statistics()
        self.report.given_up += sum(store.abandoned for store in statistics.stores.values())
        # A thread that was left behind commits or not, and its receipt says that nobody knows.
        while any(store._thread._stuck for store in self.stores.values()):  # noqa: ASYNC110 - a thread that was left behind tells nobody
            await trio.sleep(0.001)
        self._judge(before, heard, witnesses)
        if statistics.locked or statistics.active or statistics.queued:
            self.report.differences.append(f"left behind: {statistics}")

    def _next(self, word: str | None) -> Copy:
        self.number += 1
        return Copy(self.number, word)

    async def _write(self, copies: Mapping[str, Copy]) -> None:
        """The application writes to the text store, as the source of truth."""
        self.truth.update(copies)
        documents: list[Document] = [copy.document(doc_id) for doc_id, copy in copies.items()]
        await put(self.stores["text"], documents)

    async def _jobs(self, witnesses: Mapping[str, Witness], heard: RecordingInstrument) -> list[RepairJob]:
        """Make some documents differ from store to store, and a job for each of them."""
        rng = self.rng
        doc_ids = rng.sample(DOC_IDS, rng.choice([1, 3, 8, len(DOC_IDS)]))
        copies: dict[str, Copy] = {}
        for doc_id in doc_ids:
            if rng.random() < 0.5 and (held := self.truth[doc_id]).word is not None:
                document = held.document(doc_id)  # by now an old one
                self.files.execute(
                    "cache",
                    "INSERT INTO documents (doc_id, number, text) VALUES (?, ?, ?)"
                    " ON CONFLICT (doc_id) DO UPDATE SET number = excluded.number, text = excluded.text",
                    [doc_id, held.number, document.text],
                )
            kind = rng.random()
            if kind < 0.1:
                self.files.execute("vector", "DELETE FROM chunks WHERE doc_id = ? AND ordinal = 1", [doc_id])
            else:
                copies[doc_id] = self._next(None if kind < 0.3 else f"word {rng.randrange(100)}")
        if copies:
            await self._write(copies)
        for witness in witnesses.values():
            witness.sent.clear()
        heard.events.clear()
        return [
            RepairJob(doc_id=doc_id, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH, timeout=10.0, max_retries=1)
            for doc_id in doc_ids
        ]

    async def _moment(self) -> None:
        """A random while: so many rounds of the scheduler, or so many seconds."""
        if self.rng.random() < 0.3:
            for _ in range(self.rng.randrange(150)):
                await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(self.rng.uniform(0.0, 1.2 * self.typical))

    async def _cut_one(self, engine: RepairExecutionEngine, job: RepairJob) -> None:
        if self.rng.random() < 0.1:
            result = await engine.execute_repair_job(job)
            if result.outcome is RepairOutcome.REPAIRED:
                self.typical += 0.1 * (min(result.running_seconds, 0.2) - self.typical)
            return
        way = self.rng.choice(OF_ONE_JOB)
        seconds = self.rng.uniform(0.0001, 1.2 * self.typical)
        match way:
            case Way.JOB:
                handle = engine.submit_nowait(job)
                await self._moment()
                self._cancels(engine, job, way)
                engine.cancel(job.id)
                await handle.wait()
            case Way.CALLER:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(engine.execute_repair_job, job)
                    await self._moment()
                    self._cancels(engine, job, way)
                    nursery.cancel_scope.cancel()
            case Way.TIMEOUT:
                self._cut_off(await engine.execute_repair_job(attrs.evolve(job, timeout=seconds)), way)
            case Way.DEADLINE:
                deadline = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=seconds)
                self._cut_off(await engine.execute_repair_job(attrs.evolve(job, deadline=deadline)), way)
            case _:
                raise AssertionError(way)

    def _cancels(self, engine: RepairExecutionEngine, job: RepairJob, way: Way) -> None:
        """To be called right before a cancel."""
        row = engine.active_operations.get(job.id)
        if row is None:
            self.report.misses += 1
        else:
            self.report.hits[way] += 1
            self.report.phases[row.phase.value] += 1

    def _cut_off(self, result: RepairResult, way: Way) -> None:
        if result.outcome is RepairOutcome.TIMED_OUT and result.attempts:
            self.report.hits[way] += 1
        else:
            self.report.misses += 1

    def _judge(
        self,
        before: Mapping[str, Holdings],
        heard: RecordingInstrument,
        witnesses: Mapping[str, Witness],
    ) -> None:
        report, after = self.report, self.files.held(DOC_IDS)
        for result in heard.results:
            sent = {name for name, witness in witnesses.items() if witness.sent[result.doc_id]}
            report.differences += differences(result, before[result.doc_id], after[result.doc_id], sent)
            report.results += 1
            report.outcomes[result.outcome.value] += 1
            report.states.update((step.store, step.state.value) for step in result.receipt)
        accepted = sorted(event.job.id for event in heard.of(EventKind.ACCEPTED))
        if accepted != sorted(result.job_id for result in heard.results):
            report.differences.append(f"{len(accepted)} jobs were accepted, and there are {len(heard.results)} results")
        for doc_id in DOC_IDS:
            deletes = self.truth[doc_id].word is None
            report.differences += losses(doc_id, before[doc_id], after[doc_id], deletes=deletes)
        for witness in witnesses.values():
            report.differences += [f"{doc_id}: two changes under way at once" for doc_id in witness.overlaps]
            witness.overlaps.clear()

    async def _converge(self) -> None:
        """Left alone, one engine makes all good, and the next one finds nothing to do."""
        for last in (False, True):
            witnesses = {name: Witness(store, checkpoints=0) for name, store in self.stores.items()}
            async with open_repair_engine(Stores(**witnesses), AutoRepairConfig(settle=0.0)) as engine:
                for doc_id in DOC_IDS:
                    engine.submit_nowait(RepairJob(doc_id=doc_id, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH))
            if last and any(witness.sent for witness in witnesses.values()):
                self.report.differences.append("a repair of what was repaired writes")
        for doc_id, held in self.files.held(DOC_IDS).items():
            version = self.truth[doc_id].document(doc_id).version
            if not (held["text"].holds(version) and held["vector"].holds(version)):
                self.report.differences.append(f"{doc_id} is not repaired: {held}")
            if held["cache"].present and not held["cache"].holds(version):
                self.report.differences.append(f"{doc_id} is stale in the cache: {held}")
        self.report.differences += self.files.unsound()


async def storm(directory: Path, *, cancels: int, seed: int, at_first_difference: bool = False) -> Report:
    """Until so many cancels have hit a running repair.

    Args:
        directory: empty; the stores' files are made there.
        seed: decides what is asked and cancelled, and after how long. What that meets, the threads decide.
    """
    async with open_stores(directory, create=True) as stores:
        files = Files(directory)
        try:
            one = _Storm(stores, files, random.Random(seed))
            await one.blow(cancels, at_first_difference=at_first_difference)
            return one.report
        finally:
            files.close()


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m tests.crash.cancels", description=__doc__.splitlines()[0])
    parser.add_argument("--cancels", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # thousands of calls that are given up
    with tempfile.TemporaryDirectory() as directory:

        async def run() -> Report:
            return await storm(Path(directory), cancels=arguments.cancels, seed=arguments.seed)

        report = trio.run(run)
    print(report.show())
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
