"""StoreThread: deadlines are kept, abandoned calls never commit, nothing that waits is lost."""

from __future__ import annotations

import contextvars
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trio_repair import StoreUnavailable
from trio_repair.stores._thread import Call, CallAbandoned, StoreThread

GENEROUS = 30.0


@attrs.define(eq=False)
class Resource:
    """Stands for a connection: remembers what lasted and what was done to it."""

    thread: int
    committed: list[str] = attrs.field(factory=list)
    interrupted: int = 0
    closed: bool = False


@attrs.define
class World:
    """A StoreThread, its resources, and gates on which calls hang."""

    resources: list[Resource] = attrs.field(factory=list)
    gates: list[threading.Event] = attrs.field(factory=list)
    threads: list[StoreThread[Resource]] = attrs.field(factory=list)
    refuse_to_open: int = 0
    patience: float = 0.05

    def thread(self, name: str = "text") -> StoreThread[Resource]:
        thread: StoreThread[Resource] = StoreThread(
            name,
            open_resource=self._open,
            close_resource=lambda resource: setattr(resource, "closed", True),
            interrupt=lambda resource: setattr(resource, "interrupted", resource.interrupted + 1),
            patience=self.patience,
        )
        self.threads.append(thread)
        return thread

    def gate(self) -> threading.Event:
        self.gates.append(threading.Event())
        return self.gates[-1]

    def _open(self) -> Resource:
        if self.refuse_to_open:
            self.refuse_to_open -= 1
            raise OSError("not now")
        self.resources.append(Resource(threading.get_ident()))
        return self.resources[-1]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for gate in world.gates:
        gate.set()
    for owner in world.threads:
        if owner._worker is not None:  # a failed test did not come to close it
            owner._worker.calls.put(None)
    for thread in store_threads():
        thread.join(GENEROUS)
    assert [] == store_threads()


def store_threads() -> list[threading.Thread]:
    found = [thread for thread in threading.enumerate() if thread.name.startswith("trio_repair ")]
    return sorted(found, key=lambda thread: thread.name)


def commit(call: Call[Resource], value: str) -> str:
    call.begin_commit()
    call.resource.committed.append(value)
    return value


def hang_then_commit(call: Call[Resource], started: threading.Event, gate: threading.Event) -> None:
    started.set()
    gate.wait()
    commit(call, "late")


def hang_then_commit_unasked(call: Call[Resource], started: threading.Event, gate: threading.Event) -> None:
    """The control: a driver call that does not pass `begin_commit`."""
    started.set()
    gate.wait()
    call.resource.committed.append("late")


async def wait_for(event: threading.Event) -> None:
    with trio.fail_after(GENEROUS):
        await trio.to_thread.run_sync(event.wait, abandon_on_cancel=True)


async def hang(
    thread: StoreThread[Resource], world: World, function: Callable[..., None] = hang_then_commit
) -> tuple[threading.Event, trio.CancelScope]:
    """Run a call into a hang, cancel it, and see that its caller is free."""
    started, gate = threading.Event(), world.gate()
    with trio.fail_after(GENEROUS), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.run, function, started, gate)
            await wait_for(started)
            scope.cancel()
    return gate, scope


async def test_result_and_exception(world: World) -> None:
    """A call gives what its function returns, or raises what it raises."""
    thread = world.thread()
    assert "x" == await thread.run(commit, "x")

    def fail(_call: Call[Resource]) -> None:
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        await thread.run(fail)
    await thread.aclose()


async def test_a_call_runs_in_a_copy_of_its_callers_context(world: World) -> None:
    """It finds what is set where `run` is called, each call its own, and what it sets itself stays with it."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")

    def look(_call: Call[Resource]) -> str:
        seen = variable.get()
        variable.set("by the thread")
        return seen

    thread = world.thread()
    seen = []
    for value in ("one", "two"):
        token = variable.set(value)
        seen.append(await thread.run(look))
        assert value == variable.get()
        variable.reset(token)
    seen.append(await thread.run(look))
    assert ["one", "two", "nothing"] == seen
    await thread.aclose()


async def test_one_thread_and_none_too_early(world: World) -> None:
    """No thread starts before the first call; then all calls share one daemon thread and one resource."""
    thread = world.thread()
    assert [] == store_threads()
    idents = {await thread.run(lambda _call: threading.get_ident()) for _ in range(5)}
    assert 1 == len(idents) == len(world.resources) == len(store_threads())
    assert store_threads()[0].daemon
    assert "text" in store_threads()[0].name
    await thread.aclose()
    assert world.resources[0].closed


async def test_calls_run_in_order(world: World) -> None:
    """Calls run one after the other, first come first served."""
    thread = world.thread()
    async with trio.open_nursery() as nursery:
        for index in range(20):
            nursery.start_soon(thread.run, commit, str(index))
            await trio.testing.wait_all_tasks_blocked()
    assert [str(index) for index in range(20)] == world.resources[0].committed
    await thread.aclose()


async def test_cancelled_while_queued_never_runs(world: World) -> None:
    """A call that is cancelled before it started leaves at once and never runs."""
    thread = world.thread()
    started, gate = threading.Event(), world.gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.run, hang_then_commit, started, gate)
        await wait_for(started)
        with trio.move_on_after(0) as scope:
            await thread.run(commit, "second")
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_soon, scope)
            await thread.run(commit, "third")
        assert scope.cancelled_caught
        assert 0 == thread.abandoned
        gate.set()
    assert ["late"] == world.resources[0].committed
    await thread.aclose()


async def cancel_soon(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


@pytest.mark.parametrize(("function", "lasting"), [(hang_then_commit, []), (hang_then_commit_unasked, ["late"])])
async def test_hung_call_is_left_behind_and_never_commits(
    world: World, function: Callable[..., None], lasting: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A hung call is left within its patience, the next call gets a new thread, and the old one commits nothing.

    Control: without `begin_commit`, the late commit happens.
    """
    thread = world.thread()
    with caplog.at_level(logging.WARNING, "trio_repair.stores"):
        before = trio.current_time()
        gate, scope = await hang(thread, world, function)
    assert scope.cancelled_caught
    assert trio.current_time() - before < GENEROUS
    assert 1 == thread.abandoned
    assert 1 == world.resources[0].interrupted
    assert ["text store: a thread hangs in a driver call and was left behind (1 so far)"] == caplog.messages
    assert "new" == await thread.run(commit, "new")
    assert 2 == len(world.resources)
    (old, _new) = store_threads()
    gate.set()
    await trio.to_thread.run_sync(old.join, GENEROUS)
    assert lasting == world.resources[0].committed
    assert world.resources[0].closed
    assert ["new"] == world.resources[1].committed
    await thread.aclose()


async def test_call_that_comes_back_keeps_its_thread(world: World) -> None:
    """A cancelled call whose driver heeds the interrupt raises Cancelled, and its thread goes on."""
    started, gate = threading.Event(), world.gate()
    thread: StoreThread[Resource] = StoreThread(
        "text",
        open_resource=world._open,
        close_resource=lambda _: None,
        interrupt=lambda _: gate.set(),
        patience=GENEROUS,
    )
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.run, hang_then_commit, started, gate)
            await wait_for(started)
            scope.cancel()
    assert scope.cancelled_caught
    assert 0 == thread.abandoned
    assert [] == world.resources[0].committed
    await thread.run(commit, "next")
    assert 1 == len(world.resources)
    await thread.aclose()


async def test_commit_that_has_begun_is_told(world: World) -> None:
    """A call cancelled after its commit began gives its result, so that its caller knows what landed."""
    world.patience = GENEROUS
    thread = world.thread()
    begun, gate = threading.Event(), world.gate()
    told: list[str] = []

    def commit_slowly(call: Call[Resource]) -> str:
        call.begin_commit()
        begun.set()
        gate.wait()
        return "landed"

    async def caller() -> None:
        told.append(await thread.run(commit_slowly))

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller)
            await wait_for(begun)
            scope.cancel()
            gate.set()
    assert ["landed"] == told
    assert 0 == world.resources[0].interrupted
    await thread.aclose()


async def test_queue_behind_a_hung_call_is_handed_over(world: World) -> None:
    """What waits behind a call that hangs is run by the next thread, not lost."""
    thread = world.thread()
    started, gate = threading.Event(), world.gate()
    results: list[str] = []

    async def follow(value: str) -> None:
        results.append(await thread.run(commit, value))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as hanging:
                hanging.start_soon(thread.run, hang_then_commit, started, gate)
                await wait_for(started)
                for value in "abc":
                    nursery.start_soon(follow, value)
                    await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    assert ["a", "b", "c"] == sorted(results)
    assert ["a", "b", "c"] == world.resources[1].committed
    await thread.aclose()


async def test_interrupt_meets_only_the_call_that_runs(world: World) -> None:
    """Cancelling a call that waits does not interrupt the one that runs."""
    thread = world.thread()
    started, gate = threading.Event(), world.gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.run, hang_then_commit, started, gate)
        await wait_for(started)
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_soon, scope)
            await thread.run(commit, "withdrawn")
        assert 0 == world.resources[0].interrupted
        gate.set()
    assert ["late"] == world.resources[0].committed
    await thread.aclose()


async def test_failed_opening_is_that_calls_verdict(world: World) -> None:
    """A resource that cannot be opened fails the call; the next call tries again."""
    world.refuse_to_open = 1
    thread = world.thread()
    with pytest.raises(OSError, match="not now"):
        await thread.run(commit, "a")
    assert "b" == await thread.run(commit, "b")
    await thread.aclose()


async def test_stuck_threads_are_bounded(world: World) -> None:
    """A store whose calls hang for ever leaves eight threads behind, then refuses calls, and recovers with them."""
    world.patience = 0.001
    thread = world.thread()
    gates = [(await hang(thread, world))[0] for _ in range(8)]
    with pytest.raises(StoreUnavailable, match="8 of its threads hang"):
        await thread.run(commit, "one too many")
    hung = store_threads()
    assert 8 == len(hung) == thread.abandoned
    gates[0].set()
    await trio.to_thread.run_sync(hung[0].join, GENEROUS)
    assert "again" == await thread.run(commit, "again")
    await thread.aclose()


async def test_close_ends_everything(world: World) -> None:
    """Closing releases the resource and ends the thread; it is idempotent, and later calls are refused."""
    thread = world.thread()
    await thread.run(commit, "a")
    await thread.aclose()
    await thread.aclose()
    assert world.resources[0].closed
    for ended in store_threads():
        await trio.to_thread.run_sync(ended.join, GENEROUS)
    assert [] == store_threads()
    with pytest.raises(StoreUnavailable, match="is closed"):
        await thread.run(commit, "b")
    thread.post(commit, "c")
    assert ["a"] == world.resources[0].committed


async def test_close_without_a_call_starts_no_thread(world: World) -> None:
    """A store that was never used is closed without a thread."""
    thread = world.thread()
    await thread.aclose()
    assert [] == world.resources


@pytest.mark.parametrize("cancelled", [False, True])
async def test_close_is_bounded_while_a_call_hangs(world: World, cancelled: bool) -> None:
    """Closing leaves a hung thread behind; its caller and those who wait get StoreUnavailable."""
    thread = world.thread()
    started, gate = threading.Event(), world.gate()
    errors: list[str] = []

    async def call(fn: Callable[..., Any], *args: Any) -> None:
        try:
            await thread.run(fn, *args)
        except StoreUnavailable as error:
            errors.append(error.problem)

    with trio.fail_after(GENEROUS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, hang_then_commit, started, gate)
            await wait_for(started)
            nursery.start_soon(call, commit, "waiting")
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                if cancelled:
                    scope.cancel()
                await thread.aclose(grace=0.01)
            assert cancelled == scope.cancelled_caught
    assert ["is closed; open it again"] * 2 == errors
    assert 1 == thread.abandoned
    gate.set()
    for ended in store_threads():
        await trio.to_thread.run_sync(ended.join, GENEROUS)
    assert [] == world.resources[0].committed


async def test_post_runs_without_waiting(world: World) -> None:
    """`post` does its work in the thread, before calls that come later."""
    thread = world.thread()
    await thread.run(commit, "a")
    thread.post(commit, "b")
    await thread.run(commit, "c")
    assert ["a", "b", "c"] == world.resources[0].committed
    await thread.aclose()


def test_verdict_after_the_loop_has_ended(world: World) -> None:
    """A thread that comes back when Trio has ended finds nobody to tell, and ends quietly."""
    thread = world.thread()

    async def main() -> threading.Event:
        gate, _scope = await hang(thread, world)
        return gate

    gate = trio.run(main)
    gate.set()
    for ended in store_threads():
        ended.join(GENEROUS)  # an exception in it would be an error of this test
    assert [] == world.resources[0].committed


def test_process_ends_while_a_thread_hangs() -> None:
    """A hung driver does not keep the process alive. Control: a thread that is no daemon does."""
    program = textwrap.dedent(
        """
        import sys, threading, trio
        from trio_repair.stores._thread import StoreThread
        if sys.argv[1] == "control":
            threading.Thread.daemon = property(lambda self: False, lambda self, value: None)
        started = threading.Event()
        def hang(call):
            started.set()
            threading.Event().wait()
        async def main():
            thread = StoreThread(
                "text", open_resource=object, close_resource=print, interrupt=lambda resource: None, patience=0.01
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(thread.run, hang)
                await trio.to_thread.run_sync(started.wait)
                nursery.cancel_scope.cancel()
        trio.run(main)
        print("done", flush=True)
        """
    )
    ended = subprocess.run([sys.executable, "-c", program, "test"], timeout=GENEROUS, capture_output=True, check=True)
    assert b"done" == ended.stdout.strip()
    control = subprocess.Popen([sys.executable, "-c", program, "control"], stdout=subprocess.PIPE)
    try:
        assert control.stdout is not None
        assert b"done" == control.stdout.readline().strip()
        with pytest.raises(subprocess.TimeoutExpired):
            control.wait(1)
    finally:
        control.kill()
        control.communicate()


def test_abandoned_call_is_told_in_its_thread() -> None:
    """A call that looks at its flag stops early; the flag cannot come once the commit has begun."""
    call: Call[object] = Call(lambda _call: None, (), None)
    call.raise_if_abandoned()
    call.abandon()
    with pytest.raises(CallAbandoned):
        call.raise_if_abandoned()
    with pytest.raises(CallAbandoned):
        call.begin_commit()
    late: Call[object] = Call(lambda _call: None, (), None)
    late.begin_commit()
    late.abandon()
    assert not late.abandoned
