"""Where results go: tables or JSON lines to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Final

import attrs
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._escape import one_line
from ._secrets import redacted_record
from ._status import OutputFailed

PIPED_WIDTH: Final = 160
"""Columns for tables that are not read on a terminal: a line that is cut cannot be searched."""


def abandon_stdout() -> None:
    """The reader of stdout has gone (`| head`): send the rest to nowhere, so that nothing fails on it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class _PatientConsole(Console):
    """A console whose reader may leave. Rich would end the process, in the middle of a repair."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        if not self.stderr:
            abandon_stdout()


def _console(stream: IO[str], *, stderr: bool) -> Console:
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    return _PatientConsole(
        stderr=stderr,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
        width=PIPED_WIDTH if piped else None,
    )


@attrs.define
class Output:
    """The two streams of one command."""

    json: bool
    """Results are JSON lines, and nothing else is written to stdout."""
    out: Console = attrs.field(factory=lambda: _console(sys.stdout, stderr=False))
    err: Console = attrs.field(factory=lambda: _console(sys.stderr, stderr=True))
    closed: bool = False
    """The reader of stdout has gone; a command whose only product is its output may stop."""
    _shown: bool = attrs.field(default=False, init=False)
    """Something was shown, from which a table is set off."""

    def record(self, record: Mapping[str, Any]) -> None:
        """One JSON line on stdout, in ASCII, so that no id can reach a terminal as a control sequence.

        Raises:
            OutputFailed: stdout cannot be written, other than because its reader has gone.
        """
        if self.closed:
            return
        try:
            sys.stdout.write(json.dumps(redacted_record(record), separators=(", ", ": ")) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            self.closed = True
            abandon_stdout()
        except OSError as error:
            raise OutputFailed(f"cannot write to standard output: {error.strerror}") from error

    def show(self, renderable: Table | str) -> None:
        """A table or a line of text on stdout.

        Raises:
            OutputFailed: stdout cannot be written, other than because its reader has gone.
        """
        if self.closed:
            return
        try:
            if isinstance(renderable, Table) and self._shown:
                self.out.print()
            self._shown = True
            if isinstance(renderable, Table):
                self.out.print(renderable)
            else:
                self.out.print(Text(one_line(renderable)), soft_wrap=True)
        except OSError as error:
            raise OutputFailed(f"cannot write to standard output: {error.strerror}") from error
        self.closed = self.out.quiet

    def say(self, message: str) -> None:
        """One line on stderr, above a progress bar if there is one. A stderr that is gone changes nothing."""
        with contextlib.suppress(OSError, ValueError):
            self.err.print(Text(f"trio-repair: {one_line(message)}"), soft_wrap=True)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None, numbers: Sequence[str] = ()
) -> Table:
    """A plain table; `numbers` names the columns that are right-aligned. Cells are text, never markup."""
    result = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False, show_edge=False
    )
    for column in columns:
        result.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(one_line(str(cell))) for cell in row))
    return result
