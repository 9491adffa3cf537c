"""What a run did, heard from the engine itself, so that the summary is true however the run ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import attrs

from .. import EngineEvent, EventKind, RepairOutcome, RepairResult
from ._escape import printable
from ._output import Output, table
from ._receipts import ReceiptFile
from ._status import OutputFailed

_ID_WIDTH: Final = 96


@attrs.define
class Tally:
    """An instrument that counts results, keeps the first failures, and writes receipts."""

    most_failures: int
    """How many failures are kept for the summary."""
    receipts: ReceiptFile | None = None
    on_receipts_failed: Callable[[], None] | None = None
    """Called once, when a receipt could not be written."""
    outcomes: Counter[RepairOutcome] = attrs.field(factory=Counter)
    written: Counter[str] = attrs.field(factory=Counter)
    """Documents written, by store."""
    failures: list[RepairResult] = attrs.field(factory=list)
    warnings: list[RepairResult] = attrs.field(factory=list)
    warned: int = 0
    hung: Counter[str] = attrs.field(factory=Counter)
    """Calls that were given up, by store."""
    live: set[str] = attrs.field(factory=set)
    """Ids of the jobs that are accepted and not settled."""
    receipts_failed: OutputFailed | None = None
    receipts_lost: int = 0

    def on_event(self, event: EngineEvent) -> None:
        """Take note of one event."""
        match event.kind:
            case EventKind.ACCEPTED if event.job is not None:
                self.live.add(event.job.id)
            case EventKind.SETTLED if event.result is not None:
                self.live.discard(event.result.job_id)
                self._settled(event.result)
            case EventKind.CALL_OVERDUE if event.store is not None:
                self.hung[event.store] += 1
            case _:
                pass

    def _settled(self, result: RepairResult) -> None:
        self.outcomes[result.outcome] += 1
        self.written.update(result.updated_systems)
        if not result.success and len(self.failures) < self.most_failures:
            self.failures.append(result)
        if result.warnings:
            self.warned += 1
            if len(self.warnings) < self.most_failures:
                self.warnings.append(result)
        if self.receipts is None:
            return
        if self.receipts_failed is not None:
            self.receipts_lost += 1
            return
        try:
            self.receipts.append(result)
        except OutputFailed as error:
            self.receipts_failed = error
            self.receipts_lost += 1
            if self.on_receipts_failed is not None:
                self.on_receipts_failed()

    @property
    def total(self) -> int:
        """Settled jobs."""
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """Settled jobs that did not succeed."""
        return sum(count for outcome, count in self.outcomes.items() if not outcome.success)

    def as_json(self) -> dict[str, Any]:
        """The part of a JSON summary that is about results."""
        return {
            "documents": self.total,
            "outcomes": {outcome.value: self.outcomes[outcome] for outcome in RepairOutcome},
            "written": {name: self.written[name] for name in ("text", "vector", "cache")},
            "with_warnings": self.warned,
            "failures": [
                {"doc_id": result.doc_id, "outcome": result.outcome.value, "error": result.error}
                for result in self.failures
            ],
            "warnings": [{"doc_id": result.doc_id, "warnings": list(result.warnings)} for result in self.warnings],
            "hung_stores": dict(self.hung),
            "receipts_lost": self.receipts_lost,
        }

    def show(self, output: Output) -> None:
        """The summary for people, on stdout."""
        rows = [(outcome.value, count) for outcome in RepairOutcome if (count := self.outcomes[outcome])]
        output.show(table(("outcome", "documents"), rows, numbers=("documents",)))
        if self.written:
            wrote = ", ".join(f"{name} {self.written[name]}" for name in ("text", "vector", "cache"))
            output.show(f"documents written: {wrote}")
        if self.failures:
            failures = [
                (printable(result.doc_id, _ID_WIDTH), result.outcome.value, result.error or "")
                for result in self.failures
            ]
            output.show(table(("document", "outcome", "reason"), failures, title=self._title("not repaired")))
        if self.outcomes[RepairOutcome.NEEDS_MANUAL]:
            output.show(
                "decide what only you can decide: trio-repair show DOC_ID, "
                "then trio-repair resolve DOC_ID --take text|vector|delete"
            )
        if self.warnings:
            warnings = [(printable(result.doc_id, _ID_WIDTH), "; ".join(result.warnings)) for result in self.warnings]
            output.show(table(("document", "warning"), warnings, title=f"with warnings: {self.warned}"))

    def _title(self, what: str) -> str:
        shown = len(self.failures)
        return f"{what}: {self.failed}" + ("" if shown == self.failed else f" (the first {shown})")
