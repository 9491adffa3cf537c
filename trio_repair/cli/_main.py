"""One run of the command: whatever goes wrong becomes one line and an exit status."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from cyclopts import CycloptsError

from ._app import app
from ._output import abandon_stdout
from ._secrets import hide
from ._status import ExitStatus, OutputFailed, UsageError, missing_extra, report, say, show_where


def _flush() -> None:
    """What is still buffered for stdout, now, where its failure can be told."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        abandon_stdout()
    except OSError as error:
        with suppress(OSError):
            abandon_stdout()
        raise OutputFailed(f"cannot write to standard output: {error.strerror}") from error


class _Complaints(logging.Handler):
    """What the engine logs, in the form of everything else on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            show_where(record.exc_info[1])


_COMPLAINTS: Final = _Complaints(logging.WARNING)


def _prepare_streams() -> None:
    """Make sure that there is something to write to, and that no character can make writing fail."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free, which is this one
    if sys.stdout is None:  # closed by the caller; now a database cannot become file descriptor 1
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(tokens: Sequence[str]) -> ExitStatus:
    """Run one command, and turn whatever goes wrong into one line and a status."""
    _prepare_streams()
    hide({})
    logging.getLogger("trio_repair").addHandler(_COMPLAINTS)
    try:
        status: ExitStatus | None = app(tokens, exit_on_error=False, print_error=False)
        _flush()
    except CycloptsError as error:
        return report(UsageError(f"{error} See `trio-repair --help`."))
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        return report(error if missing is None else UsageError(missing))
    except (Exception, KeyboardInterrupt, SystemExit, BaseExceptionGroup) as error:
        if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
            return ExitStatus.OK  # whoever asked for the help has read enough of it
        return report(error)  # also what a store raises that is no Exception, alone or in a group
    if status is None and not tokens:
        # Only the help was asked for, and not even that.
        return ExitStatus.USAGE
    return ExitStatus.OK if status is None else status
