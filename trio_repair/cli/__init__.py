"""The command `trio-repair`. Needs the extra: ``pip install "trio-repair[cli]"``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._collector import settle_collector
from ._status import ExitStatus, missing_extra, say

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status (see `trio-repair --help`).

    Args:
        argv: the arguments without the program's name; None: those of the process.
    """
    try:
        # Imported here, so that importing this module, or running it without the extra, never ends in a traceback.
        from ._main import run  # noqa: PLC0415
    except KeyboardInterrupt:  # most of a short command's life is spent importing
        return ExitStatus.INTERRUPTED
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        say(missing)
        return ExitStatus.USAGE
    if argv is None:
        settle_collector()
    return int(run(sys.argv[1:] if argv is None else argv))
