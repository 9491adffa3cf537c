"""Progress on stderr: a bar on a terminal, a line now and then otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from ._output import Output

_REFRESH_SECONDS: Final = 0.1
_LINE_SECONDS: Final = 10.0


async def _refresh_bar(progress: Progress, task: TaskID, done: Callable[[], int] | None) -> None:
    while True:
        if done is not None:
            progress.update(task, completed=done())
        progress.refresh()
        await trio.sleep(_REFRESH_SECONDS)


async def _say_lines(output: Output, what: str, done: Callable[[], int] | None, total: int | None) -> None:
    while True:
        await trio.sleep(_LINE_SECONDS)
        count = "" if done is None else f": {done()} documents"
        output.say(f"{what}{count}" + ("" if total is None else f" of {total}"))


@asynccontextmanager
async def show_progress(
    output: Output, what: str, done: Callable[[], int] | None, total: int | None
) -> AsyncIterator[None]:
    """Show how far a piece of work has come while the block runs.

    Args:
        output: whose stderr is written.
        what: the work, in a word or two.
        done: how many documents are done; None if that is not known.
        total: of how many; None if that is not known.
    """
    columns: list[ProgressColumn] = [TextColumn("{task.description}")]
    if total is not None:
        columns += [BarColumn(), MofNCompleteColumn()]
    elif done is not None:
        columns += [TextColumn("{task.completed} documents")]
    columns += [TimeElapsedColumn()]
    async with trio.open_nursery() as nursery:
        # Not `is_terminal`, which a variable like FORCE_COLOR makes true of a pipe.
        if output.err.file.isatty():
            # Refreshed by a task of ours: Rich's own thread would print while we do.
            progress = Progress(*columns, console=output.err, auto_refresh=False, transient=True)
            with progress:
                task = progress.add_task(what, total=total)
                nursery.start_soon(_refresh_bar, progress, task, done)
                yield
                nursery.cancel_scope.cancel()
        else:
            nursery.start_soon(_say_lines, output, what, done, total)
            yield
            nursery.cancel_scope.cancel()
