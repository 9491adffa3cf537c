"""The way in of the installed command `trio-repair`, outside of the package, whose import is most of a short run.

Python answers Ctrl-C with a traceback. Until there is something to interrupt, the process ends without a word and
with the status that the command documents.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

_INTERRUPTED = 130


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)  # nothing was begun, and an exception may be lost in the middle of an import


def main() -> int:
    """Load the command and run it; returns its exit status."""
    # A process that was started to ignore Ctrl-C, as by nohup, goes on doing so.
    guarded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if guarded:
        signal.signal(signal.SIGINT, _leave)
    from trio_repair.cli import main as run  # noqa: PLC0415 - this is the import that is guarded

    with contextlib.suppress(ImportError):  # the command says better what is missing
        import trio_repair.cli._main  # noqa: F401, PLC0415
    try:
        if guarded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return _INTERRUPTED
