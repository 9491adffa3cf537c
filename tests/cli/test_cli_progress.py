"""Progress: a total is never claimed that is not known, and asking for one disturbs nothing."""

from __future__ import annotations

import io

import pytest
import trio
import trio.testing
from rich.console import Console

from trio_repair import Stores, StoreUnavailable
from trio_repair.cli._output import Output
from trio_repair.cli._progress import UNKNOWN, Scale, estimate, show_progress
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import make_document


@pytest.mark.parametrize(
    ("scale", "done", "total", "words"),
    [
        (UNKNOWN, None, None, ""),
        (UNKNOWN, 7, None, "7 documents"),
        (Scale(total=10), None, 10, "of 10"),
        (Scale(total=10), 7, 10, "7 documents of 10"),
        (Scale(total=10), 10, 10, "10 documents of 10"),
        (Scale(total=10, is_estimate=True), 7, 10, "7 of about 10 documents"),
        (Scale(total=10, is_estimate=True), 10, None, "10 documents"),
        (Scale(total=10, is_estimate=True), 11, None, "11 documents"),
    ],
)
def test_the_words_of_progress(scale: Scale, done: int | None, total: int | None, words: str) -> None:
    """An estimate is called one, and dropped once it is passed: then nobody knows how much is left."""
    assert words == scale.words(done)
    assert total == scale.of(done)


class Counting(MemoryStore):
    def __init__(self, held: int, trouble: str = "") -> None:
        super().__init__()
        self.trouble = trouble
        for number in range(held):
            self.put_nowait(make_document(f"d{number}", "x"))

    async def count(self) -> int:
        if self.trouble == "fails":
            raise StoreUnavailable("text", "is down")
        if self.trouble == "breaks":
            raise ZeroDivisionError
        if self.trouble == "hangs":
            await trio.sleep_forever()
        return await super().count()


def estimated(*stores: Counting) -> tuple[Scale, float]:
    """The estimate, and how long it took."""

    async def main() -> tuple[Scale, float]:
        text, vector, cache = stores
        scale = await estimate(Stores(text=text, vector=vector, cache=cache), 30.0)
        return scale, trio.current_time()

    clock = trio.testing.MockClock(autojump_threshold=0)
    started = clock.current_time()
    scale, ended = trio.run(main, clock=clock)
    return scale, ended - started


def test_the_estimate_is_the_largest_count() -> None:
    """Stores may lack documents; the one with the most says how many there are at least, about."""
    assert (Scale(total=5, is_estimate=True), 0.0) == estimated(Counting(3), Counting(5), Counting(0))
    assert UNKNOWN == estimated(Counting(0), Counting(0), Counting(0))[0]


@pytest.mark.parametrize("trouble", ["fails", "breaks", "hangs"])
def test_a_store_that_does_not_count_is_passed_over(trouble: str) -> None:
    """Neither its error nor its silence is anybody's business here; the others still count."""
    scale, seconds = estimated(Counting(9, trouble), Counting(2), Counting(3))
    assert Scale(total=3, is_estimate=True) == scale
    assert seconds <= 2.0
    assert UNKNOWN == estimated(*(Counting(1, trouble) for _ in range(3)))[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_shown(terminal: bool) -> None:
    """On a terminal a bar that goes with the count, elsewhere a line now and then; both with the same words."""
    written = Terminal() if terminal else io.StringIO()
    output = Output(json=False)
    output.err = Console(file=written, force_terminal=terminal, width=100)
    count = 0

    async def main() -> None:
        nonlocal count
        async with show_progress(output, "checking", lambda: count, Scale(total=10, is_estimate=True)):
            for number in (4, 12):
                count = number
                await trio.sleep(11.0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    shown = written.getvalue()
    assert "4 of about 10 documents" in shown
    assert "12 documents" in shown
    assert "12 of about" not in shown
    if not terminal:
        assert ["checking: 4 of about 10 documents", "checking: 12 documents"] == [
            line.removeprefix("trio-repair: ") for line in shown.splitlines()
        ]
