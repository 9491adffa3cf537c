"""Exit statuses, the command's own errors, and how any error becomes one line and a status."""

from __future__ import annotations

import contextlib
import enum
import sys
import traceback
from collections.abc import Iterator
from typing import Final

from .. import CheckIncomplete, InvalidValue, StoreFileError, StoreMisbehaved, StoreUnavailable, TrioRepairError
from ._escape import one_line

_MOST_LINES: Final = 5
_NEEDED: Final = frozenset({"cyclopts", "rich", "apsw", "sqlite_vec"})
"""What the extra `cli` installs."""


class ExitStatus(enum.IntEnum):
    """What the command tells its caller."""

    OK = 0
    """All consistent, or done."""
    ATTENTION = 1
    """Divergences were found, something failed, or a person must decide."""
    USAGE = 2
    """The command line, the configuration or a named file cannot be used. Nothing was done."""
    COULD_NOT_LOOK = 3
    """A store could not be reached, or another run holds the configuration: a later try may succeed."""
    BUG = 70
    """An unexpected error, shown with where it was raised and without its message.

    Kept apart from 1, which monitoring reads as divergence.
    """
    INTERRUPTED = 130
    """SIGINT or SIGTERM."""


class UsageError(TrioRepairError):
    """The operator asked for something that cannot be done as asked."""


class AnotherRun(TrioRepairError):
    """Another process is repairing under this configuration."""


class OutputFailed(TrioRepairError):
    """Results could not be written where the operator wanted them, for instance because a disk is full."""


def missing_extra(error: BaseException) -> str | None:
    """What to install, if an error says that something of the extra is missing."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    module = error.name.partition(".")[0]
    if module not in _NEEDED:
        return None
    return f'the command needs {module}; install it with: pip install "trio-repair[cli]"'


def status_of(error: TrioRepairError) -> ExitStatus:
    """The exit status that an error stands for."""
    match error:
        case UsageError() | InvalidValue() | StoreFileError():
            return ExitStatus.USAGE
        case AnotherRun() | StoreUnavailable() | StoreMisbehaved() | CheckIncomplete():
            return ExitStatus.COULD_NOT_LOOK
        case _:
            return ExitStatus.ATTENTION


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group and in its groups, or the one that is none."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def _where(error: BaseException, seen: set[int]) -> Iterator[str]:
    if id(error) in seen:
        return
    seen.add(id(error))
    before = error.__cause__ if error.__suppress_context__ else error.__cause__ or error.__context__
    if before is not None:
        yield from _where(before, seen)
        yield "and from there:"
    yield "Traceback (most recent call last):"
    for entry in traceback.format_tb(error.__traceback__):
        yield from entry.splitlines()
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    # Our own messages quote neither documents nor credentials; nobody knows what others quote.
    yield f"{kind}: {error}" if isinstance(error, TrioRepairError) else f"{kind} (its message is not shown)"
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _where(inner, seen)


def show_where(error: BaseException) -> None:
    """On stderr, the traceback of an exception and of those before it, without their messages, notes and values."""
    with contextlib.suppress(OSError, ValueError):
        for line in _where(error, set()):
            print(one_line(line), file=sys.stderr)


def report(error: BaseException) -> ExitStatus:
    """Say on stderr what went wrong, one line for each distinct cause, and return the exit status.

    An exception that is not an operator's or a store's fault is a bug, and is shown with where it was raised.
    """
    causes = list(leaves(error))
    expected = [leaf for leaf in causes if isinstance(leaf, TrioRepairError)]
    rest = [leaf for leaf in causes if not isinstance(leaf, TrioRepairError)]
    if any(not isinstance(leaf, KeyboardInterrupt) for leaf in rest):
        show_where(error)
        say("this is a bug in trio-repair or in a store; the stores are fenced, so running again is safe")
        return ExitStatus.BUG
    if rest:
        return ExitStatus.INTERRUPTED
    lines = list(dict.fromkeys(str(leaf) for leaf in expected))
    for line in lines[:_MOST_LINES]:
        say(line)
    if len(lines) > _MOST_LINES:
        say(f"and {len(lines) - _MOST_LINES} more errors")
    # Wrong usage explains whatever else went wrong; "could not look" casts doubt on a verdict.
    for status in (ExitStatus.USAGE, ExitStatus.COULD_NOT_LOOK):
        if any(status_of(leaf) is status for leaf in expected):
            return status
    return ExitStatus.ATTENTION


def say(message: str) -> None:
    """One line on stderr. A stderr that is gone must not change what the command does."""
    try:
        print(f"trio-repair: {one_line(message)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return
