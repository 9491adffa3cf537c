"""The garbage collector of the command's process, and of nobody else's."""

from __future__ import annotations

import gc
import subprocess
import sys

from trio_repair.cli import main
from trio_repair.cli._collector import THRESHOLDS

SCRIPT = (
    "import gc, sys; sys.argv[1:] = ['--version']; from trio_repair.cli import main; main(); print(gc.get_threshold())"
)


def test_a_process_of_our_own_collects_less_often() -> None:
    """As it is started from a shell."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert str(THRESHOLDS) == done.stdout.splitlines()[-1]


def test_a_host_keeps_its_collector(capsys) -> None:
    """Who calls `main` with arguments has a process of his own."""
    before = gc.get_threshold()
    own = (701, 11, 12)
    gc.set_threshold(*own)
    try:
        assert 0 == main(["--version"])
        assert own == gc.get_threshold()
    finally:
        gc.set_threshold(*before)
    capsys.readouterr()
