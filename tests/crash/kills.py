"""Kill repairs over the three SQLite stores at every point there is, the same statement at each of its turns.

``python -m tests.crash.kills`` in a checkout. Exit status 1: something was lost, or told falsely.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from .deaths import DOCUMENTS, Death, open_cemetery


def main() -> int:
    begun = time.monotonic()
    deaths: list[Death] = []
    survived = 0
    with tempfile.TemporaryDirectory() as directory, open_cemetery(Path(directory)) as cemetery:
        for doc_ids in (list(DOCUMENTS), *([doc_id] for doc_id in DOCUMENTS)):
            for statements in (False, True):
                here: list[Death] = []
                for point, times in cemetery.points(doc_ids, statements=statements).items():
                    here += [cemetery.die(doc_ids, point, nth, statements=statements) for nth in range(times)]
                died = [death for death in here if death.point is not None]
                survived += len(here) - len(died)
                deaths += died
                where = "statements of writes" if statements else "store calls and receipts"
                print(f"{', '.join(doc_ids)}: {len(died)} deaths at {where}", flush=True)
    wrong = [death for death in deaths if death.wrong]
    before, between = sum(not death.landed for death in deaths), sum(bool(death.landed) for death in deaths)
    print(
        f"deaths: {len(deaths)}, {before} before anything had landed, {between} after; {survived} did not come so far"
    )
    print(f"receipts on disk: {sum(len(death.results) for death in deaths)}")
    print(f"lost, torn or told falsely: {len(wrong)} times ({time.monotonic() - begun:.0f} s)")
    for death in wrong[:20]:
        print(death.point, death.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
