"""The other side of `mortal`: send processes to their deaths, and look at what they left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import attrs
import trio

from trio_repair import AutoRepairConfig, RepairResult, StepState, Stores, open_repair_engine
from trio_repair.instrumentation import read_events

from .held import NAMES, Files, Holdings
from .judging import LANDED, differences, losses
from .mortal import EVENTS, POINTS, RECEIPTS, Life
from .scenarios import SCENARIOS, Scenario, SqliteWorld
from .sqlite_files import open_stores
from .witness import Witness

DOCUMENTS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in SCENARIOS}
"""One document for each scenario, of its name."""


class Mortals:
    """A running `python -m crash.mortal`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def live(self, life: Life) -> str | None:
        """Let a process live. Returns the point at which it died; None: it came to its end."""
        stdin, stdout = self._pipes()
        stdin.write(json.dumps(attrs.asdict(life)) + "\n")
        stdin.flush()
        point: str | None = None
        while True:
            told: dict[str, Any] = json.loads(stdout.readline())
            if "killed" not in told:
                point = told["point"]
                continue
            assert told["killed"] == (point is not None), told
            assert point is not None or told["status"] == 0, "the process failed: look at its stderr"
            return point

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


@contextmanager
def open_mortals() -> Iterator[Mortals]:
    tests = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "crash.mortal"],
        cwd=tests,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield Mortals(process)
        assert process.stdin is not None
        process.stdin.close()


def make_template(directory: Path) -> dict[str, Holdings]:
    """Make the stores as every process finds them; what they hold."""

    async def main() -> None:
        async with open_stores(directory, create=True) as stores:
            files = Files(directory)
            try:
                for doc_id, scenario in DOCUMENTS.items():
                    await SqliteWorld(stores, files).set_up(scenario, doc_id)
            finally:
                files.close()

    trio.run(main)
    files = Files(directory)
    try:
        return files.held(list(DOCUMENTS))
    finally:
        files.close()


@attrs.define
class Death:
    """One process, and what it left."""

    point: str | None
    results: list[RepairResult] = attrs.field(factory=list)
    """The receipts on disk."""
    landed: set[tuple[str, str]] = attrs.field(factory=set)
    """Documents that were changed, with the store."""
    wrong: list[str] = attrs.field(factory=list)


def _rounded(result: RepairResult) -> RepairResult:
    """As a receipt has it."""
    return attrs.evolve(
        result,
        queued_seconds=round(result.queued_seconds, 6),
        running_seconds=round(result.running_seconds, 6),
    )


@attrs.frozen
class Cemetery:
    """Where processes live, die and are examined."""

    mortals: Mortals
    template: Path
    before: Mapping[str, Holdings]
    directory: Path
    """Made anew for every process."""

    def points(self, doc_ids: Sequence[str], *, statements: bool = False, planted: str | None = None) -> Counter[str]:
        """What a process passes that is not killed, and how often."""
        assert self._live(doc_ids, None, 0, statements=statements, planted=planted) is None
        return Counter((self.directory / POINTS).read_text().splitlines())

    def die(
        self,
        doc_ids: Sequence[str],
        dies_at: str,
        nth: int = 0,
        *,
        statements: bool = False,
        planted: str | None = None,
    ) -> Death:
        """Kill a process at a point, look at what it left, and repair the rest."""
        death = Death(self._live(doc_ids, dies_at, nth, statements=statements, planted=planted))
        files = Files(self.directory)
        try:
            death.wrong += files.unsound()
            now = files.held(list(DOCUMENTS))
            self.examine(death, now)
            trio.run(self._repair, doc_ids, files, death)
        finally:
            files.close()
        return death

    def _live(
        self, doc_ids: Sequence[str], dies_at: str | None, nth: int, *, statements: bool, planted: str | None
    ) -> str | None:
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.copytree(self.template, self.directory)
        return self.mortals.live(
            Life(
                directory=str(self.directory),
                doc_ids=[doc_id for doc_id in doc_ids if DOCUMENTS[doc_id].choice is None],
                choices=[(doc_id, choice) for doc_id in doc_ids if (choice := DOCUMENTS[doc_id].choice) is not None],
                dies_at=dies_at,
                nth=nth,
                statements=statements,
                planted=planted,
            )
        )

    def examine(self, death: Death, now: Mapping[str, Holdings]) -> None:
        """Hold what the last process wrote into the stores, and into its receipts, against what was there before."""
        for doc_id, scenario in DOCUMENTS.items():
            death.wrong += losses(doc_id, self.before[doc_id], now[doc_id], deletes=scenario.deletes)
            for name in NAMES:
                before, after = self.before[doc_id][name], now[doc_id][name]
                if before.stamp != after.stamp:
                    death.landed.add((doc_id, name))
                    goal = scenario.goal.get(name)
                    if not after.holds(None if goal is None else goal.document(doc_id).version):
                        death.wrong.append(f"{doc_id}: {name} became {after}")
        death.results = self._receipts(death)
        for result in death.results:
            death.wrong += differences(result, self.before[result.doc_id], now[result.doc_id])
        told = {
            (result.doc_id, step.store) for result in death.results for step in result.receipt if step.state in LANDED
        }
        if not told <= death.landed:
            death.wrong.append(f"told, and not stored: {sorted(told - death.landed)}")
        if any(step.state is StepState.UNKNOWN for result in death.results for step in result.receipt):
            death.wrong.append("UNKNOWN, although every store answered")

    def _receipts(self, death: Death) -> list[RepairResult]:
        """The results in the receipts file, after a look at it and at the log of events."""
        # A receipt has all that the result of an event has.
        receipts = [{"kind": "settled", "at": 0.0, "result": record} for record in self._records(RECEIPTS, death)]
        results, logged = (
            [event.result for event in read_events(map(json.dumps, records)) if event.result is not None]
            for records in (receipts, self._records(EVENTS, death))
        )
        # An event is logged after its receipt is written.
        if results[: len(results) - 1] != [_rounded(result) for result in logged][: len(results) - 1]:
            death.wrong.append(f"{len(results)} receipts, but {len(logged)} results in the log of events")
        return results

    def _records(self, name: str, death: Death) -> list[dict[str, Any]]:
        path = self.directory / name
        *lines, rest = (path.read_bytes() if path.exists() else b"").split(b"\n")
        if rest:
            death.wrong.append(f"{name} ends in the middle of a line")
        return [json.loads(line) for line in lines]

    async def _repair(self, doc_ids: Sequence[str], files: Files, death: Death) -> None:
        """The next process: it makes good what is left to do, and the one after it finds nothing to do."""
        config = AutoRepairConfig(settle=0.0)
        async with open_stores(self.directory) as stores:
            witnesses = {name: Witness(store, checkpoints=0) for name, store in stores.items()}
            async with open_repair_engine(Stores(**witnesses), config) as engine:
                for attempt in ("again", "once more"):
                    count = sum(witness.sent.total() for witness in witnesses.values())
                    async with trio.open_nursery() as nursery:
                        for doc_id in doc_ids:
                            job_id = f"{attempt}: {doc_id}"
                            nursery.start_soon(DOCUMENTS[doc_id].ask, engine, doc_id, job_id, 30.0)
                    held = files.held(doc_ids)
                    death.wrong += [
                        f"{attempt}: {doc_id} is not repaired: {held[doc_id]}"
                        for doc_id in doc_ids
                        if not DOCUMENTS[doc_id].is_reached(doc_id, held[doc_id])
                    ]
            if count != sum(witness.sent.total() for witness in witnesses.values()):
                death.wrong.append("a repair of what was repaired writes")


@contextmanager
def open_cemetery(directory: Path) -> Iterator[Cemetery]:
    """Everything that it takes, in an empty directory."""
    template = directory / "template"
    template.mkdir()
    before = make_template(template)
    with open_mortals() as mortals:
        yield Cemetery(mortals, template, before, directory / "life")
