"""Runs of the command in this process, with everything that it says caught."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "cli"))  # stores, configurations and damage are those of its tests

from security_support import Told


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Told]]:
    """Run the command with logging at DEBUG; gives its status and all that anybody could read of it."""
    from trio_repair.cli import main

    records: list[str] = []

    class Everything(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(logging.Formatter("%(name)s %(message)s").format(record))

    handler, root = Everything(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)

    def run(*arguments: str | Path) -> Told:
        records.clear()
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Told(status=status, out=out, err=err, log="\n".join(records))

    yield run
    root.setLevel(level)
    root.removeHandler(handler)
