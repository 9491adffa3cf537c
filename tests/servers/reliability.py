"""Let every fault happen on live servers, several times, and write the table into docs/reliability.md.

``python -m tests.servers.reliability [--rounds 5] [word ...]`` in a checkout, with `pip install -e '.[test]'` and
redis-server. With words, only the faults whose names hold one of them, and nothing is written. Exit status 1: a receipt
was wrong, an acknowledged write was lost, or the stores never came to agree.
"""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import trio

TOP = Path(__file__).parent.parent.parent
PAGE = TOP / "docs" / "reliability.md"
_BEGIN, _END = "<!-- table: faults -->\n", "<!-- end -->\n"
_HEAD = (
    "| fault | injected | outcomes of the repairs | receipts without a verdict | acknowledged writes lost |"
    " wrong receipts | runs until converged |\n| --- | --- | --- | --- | --- | --- | --- |\n"
)


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counted.items(), key=lambda one: (-one[1], one[0])))


def with_table(page: str, rows: Sequence[str], summary: str) -> str:
    """A page with this table in the place of the one before.

    Raises:
        ValueError: the page has no place for a table.
    """
    if _BEGIN not in page or _END not in page:
        raise ValueError(f"{PAGE} has lost its marks {_BEGIN.strip()} and {_END.strip()}")
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    table = "".join(f"{row}\n" for row in rows)
    return f"{before}{_BEGIN}{_HEAD}{table}\n{summary}\n\n{_END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each fault is played, at another moment each time"
    )
    parser.add_argument("words", nargs="*", help="only faults whose names hold one of these; nothing is written then")
    asked = parser.parse_args()
    sys.path.insert(0, str(TOP / "tests"))  # the tests' packages import each other as pytest has them
    from servers.faults import FAULTS
    from servers.ground import open_pair
    from servers.outages import NotPossibleHere
    from servers.running import Report, suffer

    logging.getLogger("trio_repair").setLevel(logging.CRITICAL)  # what is unreachable is told in the reports
    begun = time.monotonic()
    rows: list[str] = []
    total = Report()
    with tempfile.TemporaryDirectory() as directory, open_pair(Path(directory)) as pair:
        for fault in FAULTS:
            if asked.words and not any(word in fault.name for word in asked.words):
                continue
            report = Report()
            try:
                for number in range(asked.rounds):
                    report.add(trio.run(suffer, pair, fault, number))
            except NotPossibleHere as why:
                rows.append(f"| {fault.name} | 0 | not possible where this was run: {why} | | | | |")
                print(rows[-1], flush=True)
                continue
            converged = str(report.runs) if not report.disagreeing else "never"
            rows.append(
                f"| {fault.name} | {report.injected} | {_counts(report.outcomes)} | {report.states['unknown']}"
                f" | {len(report.lost)} | {len(report.wrong)} | {converged} |"
            )
            print(rows[-1], flush=True)
            for problem in [*report.wrong, *report.lost, *report.disagreeing][:10]:
                print(f"    {problem}", flush=True)
            total.add(report)
    failed = bool(total.wrong or total.lost or total.disagreeing)
    minutes = (time.monotonic() - begun) / 60
    summary = (
        f"{dt.datetime.now(dt.timezone.utc):%Y-%m-%d}, Python {platform.python_version()}: {len(rows)} faults,"
        f" {asked.rounds} rounds each, {total.outcomes.total()} repairs judged, {total.acknowledged:,} writes"
        f" acknowledged to the application meanwhile; {minutes:.0f} minutes."
    )
    print(summary)
    if not asked.words:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), rows, summary), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
