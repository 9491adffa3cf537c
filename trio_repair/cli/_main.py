"""One run of the command: whatever goes wrong becomes one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress

from cyclopts import CycloptsError

from ._app import app
from ._output import abandon_stdout
from ._status import ExitStatus, OutputFailed, UsageError, missing_extra, report


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


def run(tokens: Sequence[str]) -> ExitStatus:
    """Run one command, and turn whatever goes wrong into one line and a status."""
    try:
        status: ExitStatus | None = app(tokens, exit_on_error=False, print_error=False)
        _flush()
    except CycloptsError as error:
        return report(UsageError(f"{error} See `trio-repair --help`."))
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        return report(error if missing is None else UsageError(missing))
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    if status is None and not tokens:
        # Only the help was asked for, and not even that.
        return ExitStatus.USAGE
    return ExitStatus.OK if status is None else status
