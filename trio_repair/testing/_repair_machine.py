"""A state machine that drives an engine over given stores as an application, an operator and bad luck would."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import types
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Final, TypeAlias

import hypothesis.strategies as st
import trio

from trio_repair import (
    AutoRepairConfig,
    EngineClosed,
    EventKind,
    InvalidValue,
    RepairExecutionEngine,
    RepairHandle,
    RepairJob,
    RepairPriority,
    RepairResult,
    Stores,
    SyncStrategy,
    open_repair_engine,
)
from trio_repair._model import check_doc_id, utc_now

from ._ailments import Crashable
from ._doubles import RecordingInstrument
from ._faults import FaultKind
from ._machine_calm import converge
from ._machine_world import World, check_claim
from ._strategies_values import DRAWN_FAULTS, faults
from ._trace import TraceChecker
from ._trio_machine import TrioStateMachine, initialize, invariant, precondition, rule

OpenStores: TypeAlias = Callable[[], AbstractAsyncContextManager[Stores]]

_EPSILON: Final = 1e-6
_REAL_TOLERANCE: Final = 5.0
"""Seconds by which a busy machine may be late."""
_TEXTS: Final = ("a text", "another text", "")


class RepairMachine(TrioStateMachine):
    """Drives an engine over stores and checks its invariants after each step. Made by `repair_machine`.

    Rules act as the application (writes and deletes documents in one store or all), as callers and operators (submit,
    cancel, resolve, pause, resume, change limits, clean up), as time (advance) and, where stores are `FaultyStore`s, as
    bad luck (inject, heal). Add rules and invariants in a subclass; `engine`, `world` and `events` are there.
    """

    open_stores: ClassVar[OpenStores]
    config: ClassVar[AutoRepairConfig]
    doc_ids: ClassVar[Sequence[str]]
    fault_kinds: ClassVar[Collection[FaultKind]]
    real_time: ClassVar[bool]
    waits: ClassVar[Sequence[float]]

    engine: RepairExecutionEngine
    """The engine, open from the first step to the end."""
    world: World
    """Its stores."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: list[RepairHandle] = []
        """All jobs submitted."""
        self.paused = False
        self._ill = False
        """A fault was injected since the last `heal`."""
        self._recorder = RecordingInstrument()
        self._seen = 0
        self._claims: dict[str, RepairResult] = {}
        """By document: what the last job that succeeded says. It is checked after each step, and at the end."""
        self._checker = TraceChecker(tolerance=_REAL_TOLERANCE if self.real_time else 0.0)

    @property
    def events(self) -> Sequence[Any]:
        """What the engine has told so far."""
        return self._recorder.events

    def clock(self) -> trio.abc.Clock | None:
        """Virtual time, unless `repair_machine` was told otherwise."""
        return None if self.real_time else super().clock()

    def now(self) -> dt.datetime:
        """The wall clock of the engine's host: it goes as Trio's does."""
        return self._opened_at + dt.timedelta(seconds=trio.current_time() - self._opened)

    @initialize(data=st.data(), seed=st.integers(0, 2**16))
    async def open(self, data: st.DataObject, seed: int) -> None:
        """Open the stores, fill them, and open an engine over them."""
        self._opened_at, self._opened = utc_now(), trio.current_time()
        stores = await self.stack.enter_async_context(type(self).open_stores())
        self.world = World(stores, self.config)
        for ground in self.world.grounds.values():
            await ground.begin(self.doc_ids)
        for doc_id in self.doc_ids:
            # As often as not an application has lost a write before it all begins.
            copies = data.draw(st.sampled_from([("text",), tuple(self.world.grounds), (), ("vector",)]))
            number = await self.world.highest(doc_id) + 1
            for name in copies:
                await self.world.write(name, self.world.document(doc_id, _TEXTS[0], number))
        self.engine = await self.stack.enter_async_context(
            open_repair_engine(
                self.world.stores,
                self.config,
                instruments=[self._recorder],
                rng=random.Random(seed),
                wall_clock=self.now,
            )
        )

    # The application

    @rule(data=st.data(), text=st.sampled_from(_TEXTS), newer=st.sampled_from([True, True, True, False]))
    async def put(self, data: st.DataObject, text: str, newer: bool) -> None:
        """Write a document to one store: a newer version, or the number that another version has already."""
        doc_id, name = self._doc_id(data), data.draw(st.sampled_from(sorted(self.world.grounds)))
        number = await self.world.highest(doc_id) + newer
        await self.world.write(name, self.world.document(doc_id, text, number))

    @rule(data=st.data(), text=st.sampled_from(_TEXTS))
    async def put_everywhere(self, data: st.DataObject, text: str) -> None:
        """Write a newer version to all stores, one after the other."""
        doc_id = self._doc_id(data)
        document = self.world.document(doc_id, text, await self.world.highest(doc_id) + 1)
        for name in self.world.grounds:
            await self.world.write(name, document)

    @rule(data=st.data())
    async def delete(self, data: st.DataObject) -> None:
        """Delete a document from one store, which keeps a tombstone if it keeps any."""
        doc_id, name = self._doc_id(data), data.draw(st.sampled_from(sorted(self.world.grounds)))
        await self.world.write(name, self.world.document(doc_id, None, await self.world.highest(doc_id) + 1))

    # Callers and operators

    @rule(
        data=st.data(),
        strategies=st.lists(st.sampled_from(SyncStrategy), min_size=1, max_size=4),
        priority=st.sampled_from(RepairPriority),
        timeout=st.sampled_from([None, None, 0.5]),
        retries=st.integers(0, 3),
    )
    async def submit(
        self,
        data: st.DataObject,
        strategies: list[SyncStrategy],
        priority: RepairPriority,
        timeout: float | None,  # noqa: ASYNC109 - the job's
        retries: int,
    ) -> None:
        """Submit some jobs at once, and let them run for a while, or not."""
        for strategy in strategies:
            job = RepairJob(
                doc_id=self._doc_id(data), strategy=strategy, priority=priority, timeout=timeout, max_retries=retries
            )
            with contextlib.suppress(trio.WouldBlock):
                self.handles.append(self.engine.submit_nowait(job))
        await trio.sleep(data.draw(st.sampled_from([0.0, 0.0, *self.waits])))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Withdraw a job, or try to withdraw one that has settled."""
        data.draw(st.sampled_from(self.handles)).cancel()

    @rule(data=st.data(), choice=st.sampled_from(["text", "vector", "delete"]), fenced=st.booleans())
    async def resolve(self, data: st.DataObject, choice: Any, fenced: bool) -> None:
        """Commit a person's choice, made by what the stores hold now."""
        doc_id = self._doc_id(data)
        expected = {name: view.token for name, view in (await self.world.look(doc_id)).items()} if fenced else None
        self.nursery.start_soon(self._resolve, doc_id, choice, expected)

    async def _resolve(self, doc_id: str, choice: Any, expected: dict[str, str] | None) -> None:
        try:
            await self.engine.resolve(doc_id, choice, expected=expected)
        except EngineClosed:
            return

    @precondition(lambda self: not self.paused and self.engine.statistics().queued)
    @rule(seconds=st.sampled_from([0.1, 1.0]))
    def pause(self, seconds: float) -> None:
        """Start nothing more for a while."""
        self.paused = True
        self.engine.pause()
        self.nursery.start_soon(self._resume, seconds)

    async def _resume(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self.engine.resume()
        self.paused = False

    @rule(limit=st.integers(1, 4))
    def change_limit(self, limit: int) -> None:
        """Let more, or fewer, repairs run at once."""
        self.engine.limits.max_concurrent_jobs = limit

    @precondition(lambda self: self.handles)
    @rule()
    def clean_up(self) -> None:
        """Cancel what is past its deadline."""
        self.engine.cleanup_timed_out_operations()

    # Time and bad luck

    @rule(data=st.data())
    async def advance(self, data: st.DataObject) -> None:
        """Let time pass."""
        await trio.sleep(data.draw(st.sampled_from(self.waits)))

    @precondition(lambda self: self.world.faulty and self.fault_kinds)
    @rule(data=st.data())
    def inject(self, data: st.DataObject) -> None:
        """Let up to three faults strike one store, from now on."""
        store = data.draw(st.sampled_from(list(self.world.faulty.values())))
        kinds = [kind for kind in self.fault_kinds if kind is not FaultKind.CRASH or isinstance(store.inner, Crashable)]
        store.add(*data.draw(st.lists(faults(kinds=kinds), min_size=1, max_size=3)))
        self._ill = True

    @precondition(lambda self: self._ill)
    @rule()
    def heal(self) -> None:
        """End all faults; calls that hang go on."""
        self.world.heal()
        self._ill = False

    def _doc_id(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.doc_ids))

    # What must hold after each step

    @invariant()
    async def keeps_its_promises(self) -> None:
        """I1, I3, I8, I9, I12, I13 and I15, by what the engine says and what the stores hold."""
        await self._judge()
        now, tolerance = trio.current_time(), _REAL_TOLERANCE if self.real_time else _EPSILON
        for row in self.engine.active_operations.values():
            late = now - row.timeout_at
            assert late <= tolerance, f"I15: {row.job.doc_id!r} is active {late:.3g} s past its timeout"

    async def _judge(self) -> None:
        self._distrust_crashed_stores()
        for event in self._recorder.events[self._seen :]:
            self._seen += 1
            self._checker.see(event)
            if event.kind is EventKind.SETTLED and event.result is not None and event.result.success:
                self._claims[event.result.doc_id] = event.result
        said = self.engine.statistics()
        settled = sum(said.outcomes.values())
        told = {kind: len(self._recorder.of(kind)) for kind in (EventKind.ACCEPTED, EventKind.SETTLED)}
        assert said.accepted == settled + said.queued + said.active, f"I9: the totals do not add up: {said}"
        assert (said.accepted, settled) == (told[EventKind.ACCEPTED], told[EventKind.SETTLED]), (
            f"I9: the statistics differ from the events, {told}: {said}"
        )
        for ground in self.world.grounds.values():
            await ground.verify()
        for line in self.world.broken:
            raise AssertionError(line)
        for claim in self._claims.values():
            await check_claim(claim, self.world)

    def _distrust_crashed_stores(self) -> None:
        for name, ground in self.world.grounds.items():
            if ground.crashes:
                self._checker.may_go_back(name)

    async def at_end(self) -> None:
        """No more faults: what can be decided converges (I11), and nothing outlives the engine (I9, I15)."""
        quiet = 0.0 if self.real_time else 60.0
        await converge(self.world, self.engine, self.config, self.doc_ids, quiet=quiet, now=self.now)
        await self._judge()
        await self.stack.aclose()
        self._distrust_crashed_stores()
        for event in self._recorder.events[self._seen :]:
            self._checker.see(event)
        self._checker.end()
        for handle in self.handles:
            assert handle.result is not None, f"I9: job {handle.job.id!r} was never settled"


def repair_machine(
    open_stores: OpenStores,
    *,
    config: AutoRepairConfig | None = None,
    doc_ids: Sequence[str] = ("a", "b", "c"),
    fault_kinds: Collection[FaultKind] = DRAWN_FAULTS | {FaultKind.CRASH},
    real_time: bool = False,
    waits: Sequence[float] | None = None,
) -> type[RepairMachine]:
    """Make a state machine for an engine over your stores.

    One line runs it under pytest::

        TestMyStores = repair_machine(open_my_stores).TestCase

    It finds what is wrong with a store that does not keep its contract, and with an engine that does not keep its
    promises, as the shortest program that shows it. How long it searches, Hypothesis' settings say:
    ``TestMyStores.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)``.

    Args:
        open_stores: a new set of empty stores, opened and closed by an async context manager. Wrap them in
            `FaultyStore` to have faults injected; time and states of memory are theirs.
        config: the engine's; None: the defaults.
        doc_ids: the documents that it deals with, at least one. Few of them meet each other more often. If stores hold
            them already, then undamaged.
        fault_kinds: what is injected; SHUFFLED_ANSWERS, which no engine can always see through, breaks I8.
        real_time: run on the real clock, for stores with threads, files or sockets. Then choose a `config` with short
            waits, `settle` above all, and few examples.
        waits: seconds that `advance` lets pass; None: up to a minute of virtual time, or 50 ms of real time.

    Raises:
        InvalidDocumentId: one of `doc_ids` is none.
        InvalidValue: there are no `doc_ids`, or BLOCKED_LOOP is injected into virtual time.
    """
    if not doc_ids:
        raise InvalidValue("doc_ids", "is empty; name at least one document")
    if FaultKind.BLOCKED_LOOP in fault_kinds and not real_time:
        raise InvalidValue("fault_kinds", "blocked-loop takes wall time, of which virtual time has none")
    if waits is None:
        waits = (0.0, 0.01, 0.05) if real_time else (0.01, 0.3, 2.0, 60.0)
    body = {
        "open_stores": staticmethod(open_stores),
        "config": AutoRepairConfig() if config is None else config,
        "doc_ids": tuple(check_doc_id(doc_id) for doc_id in doc_ids),
        "fault_kinds": tuple(sorted(fault_kinds, key=lambda kind: kind.value)),
        "real_time": real_time,
        "waits": tuple(waits),
        "step_timeout": 120.0 if real_time else TrioStateMachine.step_timeout,
        "__doc__": RepairMachine.__doc__,
        "__module__": __name__,
    }
    return types.new_class("RepairMachine", (RepairMachine,), exec_body=lambda space: space.update(body))
