"""Progress on stderr: a bar on a terminal, a line now and then otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import attrs
import trio
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from .. import Stores
from ..abc import Store
from ._output import Output

_REFRESH_SECONDS: Final = 0.1
_LINE_SECONDS: Final = 10.0
_ESTIMATE_SECONDS: Final = 2.0


@attrs.frozen(kw_only=True)
class Scale:
    """Of how many documents a count is shown."""

    total: int | None = None
    """None if that is not known."""
    is_estimate: bool = False
    """The true total may be smaller or greater: it is called "about" that many, and passing it is not the end."""

    def of(self, done: int | None) -> int | None:
        """The total, as long as nothing speaks against it."""
        passed = self.is_estimate and self.total is not None and done is not None and done >= self.total
        return None if passed else self.total

    def words(self, done: int | None) -> str:
        """How far the work is, for people."""
        if done is None:
            return "" if self.total is None else f"of {self.total}"
        total = self.of(done)
        if total is None:
            return f"{done} documents"
        return f"{done} of about {total} documents" if self.is_estimate else f"{done} documents of {total}"


UNKNOWN: Final = Scale()


async def estimate(stores: Stores, seconds: float) -> Scale:
    """About how many documents there are: what the store says that holds the most.

    A store that does not say is passed over, whatever is wrong with it: whoever looks at the documents finds out.

    Args:
        stores: not in use by anybody else meanwhile.
        seconds: how long they have for it.
    """
    held: list[int] = []

    async def count(store: Store) -> None:
        with suppress(Exception):
            held.append(await store.count())

    with trio.move_on_after(min(seconds, _ESTIMATE_SECONDS)):
        async with trio.open_nursery() as nursery:
            for store in stores.by_name.values():
                nursery.start_soon(count, store)
    return Scale(total=max(held), is_estimate=True) if any(held) else UNKNOWN


async def _refresh_bar(progress: Progress, task: TaskID, done: Callable[[], int] | None, scale: Scale) -> None:
    while True:
        count = None if done is None else done()
        # Without a total, the bar only shows that something is done.
        progress.update(task, completed=count, words=scale.words(count))
        progress.tasks[0].total = scale.of(count)
        progress.refresh()
        await trio.sleep(_REFRESH_SECONDS)


async def _say_lines(output: Output, what: str, done: Callable[[], int] | None, scale: Scale) -> None:
    while True:
        await trio.sleep(_LINE_SECONDS)
        words = scale.words(None if done is None else done())
        output.say(f"{what}: {words}" if words else what)


@asynccontextmanager
async def show_progress(
    output: Output, what: str, done: Callable[[], int] | None, scale: Scale = UNKNOWN
) -> AsyncIterator[None]:
    """Show how far a piece of work has come while the block runs.

    Args:
        output: whose stderr is written.
        what: the work, in a word or two.
        done: how many documents are done; None if that is not known.
        scale: of how many.
    """
    columns: list[ProgressColumn] = [TextColumn("{task.description}")]
    if scale.total is not None:
        columns += [BarColumn()]
    columns += [TextColumn("{task.fields[words]}"), TimeElapsedColumn()]
    async with trio.open_nursery() as nursery:
        # Not `is_terminal`, which a variable like FORCE_COLOR makes true of a pipe.
        if output.err.file.isatty():
            # Refreshed by a task of ours: Rich's own thread would print while we do.
            progress = Progress(*columns, console=output.err, auto_refresh=False, transient=True)
            with progress:
                task = progress.add_task(what, total=scale.total, words="")
                nursery.start_soon(_refresh_bar, progress, task, done, scale)
                yield
                nursery.cancel_scope.cancel()
        else:
            nursery.start_soon(_say_lines, output, what, done, scale)
            yield
            nursery.cancel_scope.cancel()
