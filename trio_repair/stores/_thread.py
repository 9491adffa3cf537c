"""One dedicated thread for one blocking driver.

`trio.to_thread` either makes a deadline wait for the driver, or lets a write land after the caller was told that
it timed out. A `StoreThread` does neither: a cancelled call is marked *abandoned*, the driver is interrupted, and
the call must pass `Call.begin_commit` before it makes anything permanent. That is one step under a lock, so an
abandoned call never commits, however late its driver comes back.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

import trio

from trio_repair import StoreUnavailable

logger = logging.getLogger("trio_repair.stores")

R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_MAX_STUCK = 8
"""Hung threads that one store may leave behind; with more, calls fail at once instead of adding another."""


class CallAbandoned(Exception):
    """Raised in the thread: the caller has gone, so nothing may be made permanent any more."""


class Call(Generic[R]):
    """One piece of work, handed to its function as first argument.

    `_lock` guards the transitions: waiting, running, then exactly one of committing and abandoned, then finished.
    """

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], token: trio.lowlevel.TrioToken | None) -> None:
        self.resource: R = cast("R", None)
        """The thread's own resource; set while the call runs."""
        self.done = trio.Event()
        """Set in the Trio thread once there is a verdict."""
        self._fn = fn
        self._args = args
        self._token = token
        self._context = contextvars.copy_context()
        """The caller's, as `trio.to_thread` has it: a driver's own tracing finds the span that it belongs to."""
        self._lock = threading.Lock()
        self._abandoned = False
        self._committing = False
        self._finished = False
        self._value: Any = None
        self._error: BaseException | None = None

    @property
    def abandoned(self) -> bool:
        """True if the caller has gone; what the call does now must not last."""
        return self._abandoned

    @property
    def succeeded(self) -> bool:
        """True if the function has returned."""
        return self._finished and self._error is None

    def raise_if_abandoned(self) -> None:
        """Stop early.

        Raises:
            CallAbandoned: the caller has gone.
        """
        if self._abandoned:
            raise CallAbandoned

    def begin_commit(self) -> None:
        """Pass the point after which the effect lasts; the caller can no longer abandon the call.

        Raises:
            CallAbandoned: the caller has gone. Undo everything.
        """
        with self._lock:
            if self._abandoned:
                raise CallAbandoned
            self._committing = True

    def abandon(self) -> None:
        """Forbid the commit, if it has not begun."""
        with self._lock:
            if not self._committing:
                self._abandoned = True

    def perform(self, resource: R) -> None:
        """Run the function and keep its verdict."""
        self.resource = resource
        try:
            self._value = self._context.run(self._fn, self, *self._args)
        except BaseException as error:  # noqa: ASYNC103 - in a thread; kept for the caller, whatever it is
            self._error = error
        finally:
            self.resource = cast("R", None)
            self._finished = True

    def set_error(self, error: BaseException) -> None:
        """The verdict of a call that could not run, or that nobody waits for any longer."""
        self._error = error
        self._finished = True

    def deliver(self) -> None:
        """Wake the caller, from any thread."""
        if self._token is not None:
            # RunFinishedError: the loop has ended, and with it everybody who could have waited.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.done.set)

    def result(self) -> Any:
        """What the function returned.

        Raises:
            BaseException: what the function raised.
        """
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            del self  # the error's traceback would keep this frame, and this frame the error


class _Worker(Generic[R]):
    """One thread's life. `current` and `retired` are guarded by the `StoreThread`'s lock."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Call[R] | None] = queue.SimpleQueue()
        self.current: Call[R] | None = None
        self.retired = False
        self.resource: R | None = None
        self.exited: list[Call[R]] = []


class StoreThread(Generic[R]):
    """Runs blocking calls one after the other in a daemon thread that owns a resource, such as a connection.

    No thread exists before the first call. A thread that does not come back from a cancelled call is left behind
    and counted; the next call, and those that were queued behind the hung one, get a new thread and a new resource.

    Args:
        store: the store's name, for errors and logs.
        open_resource: makes the resource, in the thread, before its first call.
        close_resource: releases it, in the thread, when the thread ends.
        interrupt: called from the Trio thread to make the driver give up the call under way.
        patience: seconds that a cancelled call gets to come back with a verdict.
    """

    def __init__(
        self,
        store: str,
        *,
        open_resource: Callable[[], R],
        close_resource: Callable[[R], None],
        interrupt: Callable[[R], None],
        patience: float = 0.1,
    ) -> None:
        self._store = store
        self._open_resource = open_resource
        self._close_resource = close_resource
        self._interrupt = interrupt
        self._patience = patience
        self._lock = threading.Lock()
        self._worker: _Worker[R] | None = None  # guarded by _lock, as are the four below
        self._stuck: set[_Worker[R]] = set()
        self._started = 0
        self._abandoned = 0
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"<StoreThread {self._store!r} started={self._started} abandoned={self._abandoned} stuck={len(self._stuck)}"
            f"{' closed' if self._closed else ''}>"
        )

    @property
    def abandoned(self) -> int:
        """How many threads did not come back in time, ever."""
        return self._abandoned

    async def run(self, fn: Callable[[Call[R], *Ts], T], *args: *Ts) -> T:
        """Run ``fn(call, *args)`` in the thread and return what it returns, or raise what it raises.

        Raises:
            StoreUnavailable: the store is closed, or too many of its threads hang.

        **If cancelled:** before it started, it never runs. While it runs, it is abandoned and interrupted, and gets
        `patience` seconds to come back: if it succeeded all the same, its result is returned (the cancellation comes
        at the next checkpoint); otherwise, Cancelled. A call that had not begun to commit never does so later.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        call: Call[R] = Call(fn, args, trio.lowlevel.current_trio_token())
        self._submit(call)
        try:
            await call.done.wait()
        except trio.Cancelled:  # noqa: ASYNC103 - a call that has landed is told to its caller
            await self._give_up(call)  # noqa: ASYNC102 - shielded in there, with a deadline
            if not call.succeeded:
                raise
        return cast("T", call.result())

    def post(self, fn: Callable[[Call[R], *Ts], object], *args: *Ts) -> None:
        """Run ``fn(call, *args)`` in the thread, some time, without waiting; nothing happens once closed."""
        with self._lock:
            if self._worker is not None:
                self._worker.calls.put(Call(fn, args, None))

    async def aclose(self, *, grace: float = 1.0) -> None:
        """End the thread: queued calls fail, the one under way has `grace` seconds, then it is left behind.

        **If cancelled:** it still closes, then raises Cancelled.
        """
        with self._lock:
            self._closed = True
            worker, self._worker = self._worker, None
            waiting = [] if worker is None else _drain(worker.calls)
            running = None if worker is None else worker.current
            if worker is not None:
                farewell: Call[R] = Call(_nothing, (), trio.lowlevel.current_trio_token())
                worker.exited.append(farewell)
                worker.calls.put(None)
        for call in waiting:
            self._fail(call, self._is_closed())
        if worker is not None:
            with trio.move_on_after(grace, shield=True):
                await farewell.done.wait()
            if not farewell.done.is_set() and running is not None:
                await self._give_up(running, worker)
                if not running.done.is_set():
                    self._fail(running, self._is_closed())
        await trio.lowlevel.checkpoint_if_cancelled()

    @staticmethod
    def _fail(call: Call[R], error: StoreUnavailable) -> None:
        call.set_error(error)
        call.deliver()

    def _is_closed(self) -> StoreUnavailable:
        return StoreUnavailable(self._store, "is closed; open it again")

    def _submit(self, call: Call[R]) -> None:
        with self._lock:
            if self._closed:
                raise self._is_closed()
            if self._worker is None:
                self._worker = self._start()
            self._worker.calls.put(call)

    def _start(self) -> _Worker[R]:
        if len(self._stuck) >= _MAX_STUCK:
            problem = f"{len(self._stuck)} of its threads hang in calls that never returned; look at its driver"
            raise StoreUnavailable(self._store, problem)
        worker: _Worker[R] = _Worker()
        self._started += 1
        name = f"trio_repair {self._store} store {self._started}"
        try:
            threading.Thread(target=self._work, args=(worker,), name=name, daemon=True).start()
        except RuntimeError as error:
            raise StoreUnavailable(self._store, "no thread could be started") from error
        return worker

    def _work(self, worker: _Worker[R]) -> None:
        """The thread's whole life."""
        while True:
            call = worker.calls.get()
            if call is None:
                break
            with self._lock:
                if call.abandoned:
                    continue  # cancelled before it started
                worker.current = call
            try:
                if worker.resource is None:
                    worker.resource = self._open_resource()
                call.perform(worker.resource)
            except BaseException as error:  # noqa: ASYNC103 - in a thread; opening failed: the verdict of this call
                call.set_error(error)
            with self._lock:
                worker.current = None  # from here on no interrupt is meant for this thread
                retired = worker.retired
            call.deliver()
            del call  # an idle thread must not keep the last call's documents alive
            if retired:
                break
        try:
            if worker.resource is not None:
                self._close_resource(worker.resource)
        except Exception:
            logger.exception("%s store: closing failed", self._store)
        finally:
            with self._lock:
                self._stuck.discard(worker)
            for farewell in worker.exited:
                farewell.deliver()

    async def _give_up(self, call: Call[R], worker: _Worker[R] | None = None) -> None:
        """Abandon a call; leave its thread behind if it does not come back within `patience`."""
        with self._lock:
            call.abandon()
            worker = self._worker if worker is None else worker
            running = worker is not None and worker.current is call
            if worker is not None and running and call.abandoned and worker.resource is not None:
                try:
                    self._interrupt(worker.resource)
                except Exception:
                    logger.exception("%s store: interrupting failed", self._store)
        if not running:
            return
        with trio.move_on_after(self._patience, shield=True):
            await call.done.wait()
        if not call.done.is_set():
            self._retire(call, worker)

    def _retire(self, call: Call[R], worker: _Worker[R] | None) -> None:
        """Leave a hung thread to itself and move what waits behind it to a new one."""
        with self._lock:
            if worker is None or worker.current is not call:
                return  # it came back this very moment
            worker.retired = True
            self._abandoned += 1
            self._stuck.add(worker)
            abandoned = self._abandoned
            moved = _drain(worker.calls)
            if self._worker is worker:
                self._worker = None
        logger.warning(
            "%s store: a thread hangs in a driver call and was left behind (%d so far)", self._store, abandoned
        )
        for waiting in moved:
            try:
                self._submit(waiting)
            except StoreUnavailable as error:
                self._fail(waiting, error)


def _nothing(_call: Call[Any]) -> None:
    """The function of a call that only carries a wake-up."""


def _drain(calls: queue.SimpleQueue[Call[R] | None]) -> list[Call[R]]:
    drained: list[Call[R]] = []
    while True:
        try:
            call = calls.get_nowait()
        except queue.Empty:
            return drained
        if call is not None:
            drained.append(call)
