"""`trio-repair check`: find what is inconsistent, and change nothing."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Final

import attrs
import trio

from .. import CheckStatistics, Divergence, DivergenceKind, TrioRepairError, check
from ..abc import Stores
from ._configuration import Configuration
from ._escape import printable
from ._opening import open_stores
from ._output import Output, table
from ._progress import UNKNOWN, estimate, show_progress
from ._signals import open_interruption
from ._status import ExitStatus, report
from ._values import divergence_json
from ._words import finding_words, holdings_words

_ID_WIDTH: Final = 96
_STORES: Final = ("text", "vector", "cache")
_DIGEST: Final = "digest"
_COMPARED: Final = {
    "text": "by digests of the texts that their chunks make",
    "digest": "by digests",
    "version": "by version numbers; what the chunks hold is not looked at",
    "chunks": "by the chunks that the source's text is cut into",
    "presence": "by presence; what the chunks hold is not looked at",
}


def _comparisons(stores: Stores) -> dict[str, str]:
    """What the copies in each store are compared by, for those whose tables are not this library's own."""
    found = {role: getattr(store, "comparison", None) for role, store in stores.by_name.items()}
    return {role: what for role, what in found.items() if isinstance(what, str)}


@attrs.define
class Findings:
    """What a check has found so far."""

    most_shown: int
    first: list[Divergence] = attrs.field(factory=list)
    divergent: int = 0
    by_kind: Counter[DivergenceKind] = attrs.field(factory=Counter)
    """Documents."""
    by_store: Counter[tuple[DivergenceKind, str]] = attrs.field(factory=Counter)

    def add(self, divergence: Divergence) -> None:
        """Take in one divergence."""
        self.divergent += 1
        self.by_kind.update(divergence.kinds)
        self.by_store.update((finding.kind, finding.store) for finding in divergence.findings)
        if len(self.first) < self.most_shown:
            self.first.append(divergence)

    def show(self, output: Output, *, documents: bool = True) -> None:
        """Tables for people; without `documents` the counts only."""
        if not self.divergent:
            return
        rows = [
            (kind.value, self.by_kind[kind], *(self.by_store[kind, store] or "" for store in _STORES))
            for kind in DivergenceKind
            if self.by_kind[kind]
        ]
        output.show(table(("kind", "documents", *_STORES), rows, numbers=("documents", *_STORES)))
        if documents and self.first:
            shown = [
                (printable(divergence.doc_id, _ID_WIDTH), finding_words(divergence), holdings_words(divergence))
                for divergence in self.first
            ]
            title = f"the first {len(shown)} of {self.divergent}" if self.divergent > len(shown) else None
            output.show(table(("document", "what is wrong", "versions held"), shown, title=title))


def _summary_json(findings: Findings, statistics: CheckStatistics, seconds: float) -> dict[str, object]:
    return {
        "type": "summary",
        "documents": statistics.documents,
        "divergent": findings.divergent,
        "by_kind": {kind.value: findings.by_kind[kind] for kind in DivergenceKind},
        "by_store": {
            store: {kind.value: count for (kind, where), count in findings.by_store.items() if where == store}
            for store in _STORES
        },
        "unsettled": statistics.unsettled,
        "complete": statistics.complete,
        "last_id": statistics.last_id,
        "seconds": round(seconds, 3),
    }


def _verdict(findings: Findings, statistics: CheckStatistics, after: str | None) -> list[str]:
    counted = f"{statistics.documents} documents" + ("" if after is None else f" after {printable(after, _ID_WIDTH)}")
    if not findings.divergent and statistics.complete and not statistics.unsettled:
        return [f"all {counted} are consistent"]
    words = f"{findings.divergent} of {counted} diverge"
    if statistics.unsettled:
        words += f"; {statistics.unsettled} kept changing and could not be judged"
    if statistics.complete:
        return [words]
    return [f"{words}; the check did not come to its end", *_how_to_go_on(statistics.last_id)]


def _how_to_go_on(last_id: str | None) -> list[str]:
    """What to type, if that can be shown: control characters cannot be taken from a terminal."""
    if last_id is None:
        return []
    if printable(last_id) != last_id:
        return [f"to go on behind {printable(last_id, _ID_WIDTH)}, pass --after the last_id that --json gives"]
    return [f"to go on from there: --after={shlex.quote(last_id)}"]


async def run_check(
    configuration: Configuration, output: Output, *, summary: bool, limit: int, after: str | None = None
) -> ExitStatus:
    """Check all documents, and show what diverges.

    Args:
        configuration: names the stores.
        output: with `json`, a line for each divergence (unless `summary`) and one for the summary.
        summary: counts only.
        limit: how many divergent documents the table for people shows.
        after: check documents with a greater id only.
    """
    findings = Findings(most_shown=limit)
    started = trio.current_time()
    statistics: CheckStatistics | None = None
    comparisons: dict[str, str] = {}
    failure: Exception | None = None
    async with open_interruption() as interruption:
        try:
            with interruption.scope:
                async with open_stores(configuration) as stores:
                    comparisons = _comparisons(stores)
                    # How many there are behind an id, no store can say.
                    scale = UNKNOWN if after else await estimate(stores, configuration.engine.store_call_timeout)
                    async with check(stores, configuration.engine, after=after) as checking:
                        try:
                            async with show_progress(
                                output, "checking", lambda: checking.statistics().documents, scale
                            ):
                                async for divergence in checking:
                                    findings.add(divergence)
                                    if output.json and not summary:
                                        output.record(divergence_json(divergence))
                                    if output.closed:
                                        break
                        finally:
                            statistics = checking.statistics()
        except (TrioRepairError, ExceptionGroup) as error:
            failure = error
    if statistics is not None:
        if output.json:
            summary_line = _summary_json(findings, statistics, trio.current_time() - started)
            output.record({**summary_line, "comparison": dict.fromkeys(configuration.stores, _DIGEST) | comparisons})
        else:
            findings.show(output, documents=not summary)
            for role, what in comparisons.items():
                output.show(f"{role}: copies are compared {_COMPARED.get(what, f'by {what}')}")
            for line in _verdict(findings, statistics, after):
                output.show(line)
    if failure is not None:
        return report(failure)
    if interruption.signals:
        output.say("interrupted")
        return ExitStatus.INTERRUPTED
    unclear = statistics is None or statistics.unsettled
    return ExitStatus.ATTENTION if findings.divergent or unclear else ExitStatus.OK
