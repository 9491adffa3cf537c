"""Hypothesis state machines whose steps run inside Trio: one run of Trio for one example, in virtual time.

Hypothesis calls the steps of a machine one after the other, and is not async. Trio's guest mode lets it stay in charge:
Trio advances only while a step runs, in the same thread, so that an async step may draw, too, and between two steps
time stands still. (Earlier answers, greenlets or a copy of Hypothesis' loop, need its internals.)
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import queue
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, TypeVar

import hypothesis.stateful
import hypothesis.strategies as st
import trio
import trio.testing
from hypothesis.errors import InvalidDefinition
from hypothesis.stateful import RuleBasedStateMachine

from ._shields import remove_shields

_F = TypeVar("_F", bound=Callable[..., Any])

_ATTEMPTS: Final = 20
_BETWEEN: Final = 0.05
"""Seconds of real time between two attempts to end a run by force."""


class StepTimeout(AssertionError):
    """A step of a machine, or the end of an example, took longer than `TrioStateMachine.step_timeout` on the clock of
    the run, or than `TrioStateMachine.real_timeout`.
    """


def rule(**arguments: Any) -> Callable[[_F], Any]:
    """As `hypothesis.stateful.rule`, for functions of a `TrioStateMachine`, async or not. They run inside Trio."""
    decorate: Callable[[Any], Any] = hypothesis.stateful.rule(**arguments)
    return lambda function: decorate(_driven(function))


def initialize(**arguments: Any) -> Callable[[_F], Any]:
    """As `hypothesis.stateful.initialize`, for functions of a `TrioStateMachine`, async or not."""
    decorate: Callable[[Any], Any] = hypothesis.stateful.initialize(**arguments)
    return lambda function: decorate(_driven(function))


def invariant(*, check_during_init: bool = False) -> Callable[[_F], Any]:
    """As `hypothesis.stateful.invariant`, for functions of a `TrioStateMachine`, async or not."""
    return lambda function: hypothesis.stateful.invariant(check_during_init=check_during_init)(_driven(function))


def precondition(predicate: Callable[[Any], bool | Awaitable[bool]]) -> Callable[[_F], _F]:
    """As `hypothesis.stateful.precondition`, for predicates that are async or not."""
    asks: Any = _driven(predicate) if inspect.iscoroutinefunction(predicate) else predicate
    return hypothesis.stateful.precondition(asks)


def _driven(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def step(machine: TrioStateMachine, *args: Any, **kwargs: Any) -> Any:
        return machine._step(functools.partial(function, machine, *args, **kwargs))

    return step


class TrioStateMachine(RuleBasedStateMachine):
    """A `RuleBasedStateMachine` whose rules, invariants and preconditions may be async.

    Use `rule`, `initialize`, `invariant` and `precondition` of `trio_repair.testing.stateful`, and Hypothesis' own
    ``Bundle``, ``consumes`` and ``multiple``. Every example is one run of Trio; the run ends with it, and with it every
    task, even if a step fails, or if one is shielded (see `real_timeout`). Steps run in one task, one after the other,
    and at least one round of the scheduler passes between two: what background tasks can do at once, they do. A step
    that calls another awaits it, if that is async, like any function.

    An exception in a step, in a task of `nursery`, in `at_end`, or while `stack` closes fails the example.
    Interleavings are drawn: Trio's scheduler is seeded by a step of its own.
    """

    step_timeout: ClassVar[float] = 100_000.0
    """Seconds on the run's clock. A step that takes longer fails: it waits for something that nobody does."""
    real_timeout: ClassVar[float] = 60.0
    """Seconds of real time for one step, and for what comes after the last; `math.inf`: no limit. Whoever takes longer
    is cancelled, shielded or not, and the example fails: a step that only lets others go on keeps a virtual clock from
    going on, and one that is shielded does not hear that its time is up. A step that blocks the thread is not stopped.
    """

    nursery: trio.Nursery
    """For tasks that go on beside the steps. They are cancelled when the machine ends."""
    stack: contextlib.AsyncExitStack
    """What a step enters here stays open until the machine ends. It is left before `nursery` is cancelled: normally if
    all went well, else cancelled."""

    def __init__(self) -> None:
        super().__init__()
        steps: list[Any] = [*self.rules, *self._initialize_rules_to_run, *self.invariants]
        for step in steps:
            if inspect.iscoroutinefunction(inspect.unwrap(step.function)) and not hasattr(step.function, "__wrapped__"):
                raise InvalidDefinition(
                    f"{step.function.__qualname__} is async: decorate it with trio_repair.testing.stateful"
                )
        self._run: _Run | None = None
        self._failed = False

    def clock(self) -> trio.abc.Clock | None:
        """The clock of a run. Override it to return None, the real clock, for what uses threads or sockets."""
        return trio.testing.MockClock(autojump_threshold=0)

    async def at_end(self) -> None:
        """Override it to check what must hold at the end. It is called after the last step, unless a step failed, or
        Hypothesis stopped before every `initialize` had its turn.
        """

    @initialize(interleaving=st.random_module())
    def schedule(self, interleaving: object) -> None:
        """Trio's scheduler takes its order from the generators that Hypothesis seeds."""

    def teardown(self) -> None:
        """End the run. Override `at_end` instead."""
        try:
            if not self._failed and not self._initialize_rules_to_run:
                self._step(self.at_end)
        finally:
            if self._run is not None:
                self._run.close(cancel=self._failed)

    def _step(self, function: Callable[[], Any]) -> Any:
        if self._run is None:
            self._run = _Run(self, self.clock())
        if self._run.stepping:
            return function()
        try:
            return self._run.step(function)
        except BaseException:
            self._failed = True
            raise


class _Run:
    """One run of Trio, as a guest of whoever calls `step`."""

    def __init__(self, machine: TrioStateMachine, clock: trio.abc.Clock | None) -> None:
        self.stepping = False
        self._machine = machine
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._wake = trio.Event()
        self._next: Callable[[], Any] | None = None
        self._answer: tuple[Any, BaseException | None] | None = None
        self._over = False
        self._expired = False
        self._task: trio.lowlevel.Task | None = None
        self._scope: trio.CancelScope | None = None
        self._crash: BaseException | None = None
        trio.lowlevel.start_guest_run(
            self._main, run_sync_soon_threadsafe=self._calls.put, done_callback=self._done, clock=clock
        )

    def step(self, function: Callable[[], Any]) -> Any:
        """Let Trio run until `function` has returned, and awaited what it returned."""
        if not self._over:
            self._answer, self._next = None, function
            self._wake.set()
            self.stepping = True
            try:
                self._advance(lambda: self._answer is not None)
            finally:
                self.stepping = False
        if self._expired:
            raise self._too_long("a step")
        if self._answer is not None:
            value, error = self._answer
            if error is not None:
                raise error
            return value
        if self._crash is not None:
            raise self._crash
        raise StepTimeout(f"a step did not end within {self._machine.step_timeout:g} s; does it wait for nobody?")

    def _too_long(self, what: str) -> StepTimeout:
        limit = f"{self._machine.real_timeout:g} s of real time"
        if self._over:
            return StepTimeout(f"{what} did not end within {limit}, and was ended; does it wait for nobody?")
        return StepTimeout(
            f"{what} did not end within {limit}, and cannot be ended: a task catches Cancelled and goes on. Trio cannot"
            " run in this thread any more"
        )

    def _advance(self, enough: Callable[[], bool]) -> None:
        """Let Trio run until then, or until the run is over. What takes too much real time is ended by force."""
        limit = time.monotonic() + (0.0 if self._expired else self._machine.real_timeout)
        attempts = 0
        while not self._over and not enough():
            left = limit - time.monotonic()
            if left > 0:
                with contextlib.suppress(queue.Empty):
                    self._calls.get(timeout=None if left == float("inf") else left)()
                continue
            if attempts == _ATTEMPTS:
                return
            attempts += 1
            limit += _BETWEEN
            self._force()

    def _force(self) -> None:
        self._expired = True
        if self._scope is not None and self._task is not None:
            self._scope.cancel()
            remove_shields(self._task)

    def close(self, *, cancel: bool) -> None:
        """End the run, and every task in it. After a failed step nothing is raised: that step tells more."""
        crash_is_news = not self._over
        if cancel and self._scope is not None:
            self._scope.cancel()
        self._next = None
        self._wake.set()
        self._advance(lambda: False)
        if cancel or not crash_is_news:
            return
        if self._expired:
            raise self._too_long("the end of an example")
        if self._crash is not None:
            raise self._crash

    def _done(self, outcome: Any) -> None:
        self._over = True
        try:
            outcome.unwrap()
        except BaseException as error:  # noqa: ASYNC103 - the run is over; raised in the thread that drives it
            # One failed task is one exception, by which Hypothesis tells failures apart.
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            self._crash = error

    async def _main(self) -> None:
        machine = self._machine
        async with trio.open_nursery() as nursery:
            self._task = trio.lowlevel.current_task()
            self._scope = nursery.cancel_scope
            machine.nursery = nursery
            async with contextlib.AsyncExitStack() as machine.stack:
                while True:
                    await self._wake.wait()
                    self._wake = trio.Event()
                    if self._next is None:
                        break
                    await self._take(self._next, nursery.cancel_scope)
                nursery.cancel_scope.deadline = trio.current_time() + machine.step_timeout
            nursery.cancel_scope.cancel()

    async def _take(self, function: Callable[[], Any], scope: trio.CancelScope) -> None:
        # A scope around the step would be left before those that the step enters on the stack.
        scope.deadline = trio.current_time() + self._machine.step_timeout
        try:
            value = function()
            if inspect.isawaitable(value):
                value = await value
        except BaseException as error:  # noqa: ASYNC103 - Cancelled goes on; the rest is raised where the step was asked
            if _holds_cancelled(error):
                raise
            self._answer = None, error
        else:
            self._answer = value, None
        scope.deadline = float("inf")


def _holds_cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)
