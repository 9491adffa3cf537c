"""Between the repairs and a store: gather what they ask for, and do it as one bulk call, outside their cancel scopes.

A repair that is cancelled takes back what was not sent; what was sent is never cut off in mid-call by a deadline of
one repair. While a store is busy, requests gather, and the next call takes them: no timer, no waiting for company.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import attrs
import trio

from ._breaker import BreakerState, CircuitBreaker
from ._config import AutoRepairConfig
from ._errors import CircuitOpen, StoreError, StoreMisbehaved, StoreUnavailable
from ._events import EventKind
from ._model import Document
from ._requests import EFFECTS, Answer, Gather, Operation, Request, contract_problem
from ._timetable import Timer, Timetable
from ._views import Prepared, Removal, StoreTraits, Write, WriteAnswer, WriteStatus
from .abc import Store

logger = logging.getLogger("trio_repair")

MAX_REMEMBERED: Final = 4096
"""Of so many documents, the last ones, a batcher remembers that their call failed as a whole."""

Emit: TypeAlias = Callable[..., None]


@attrs.frozen(kw_only=True)
class StoreStatistics:
    """What a store was asked so far."""

    calls: int
    """Bulk calls that were made."""
    documents: int
    """Documents that they named in all."""
    failures: int
    """Calls that failed as a whole."""
    abandoned: int
    """Calls that were given up at `store_call_timeout`, or at the end of the grace period."""
    misbehaved: int
    """Calls that broke the contract of `trio_repair.abc.Store`."""
    breaker: str
    """"closed", "open" or "half-open"."""


class _Call:
    """One bulk call under way."""

    __slots__ = ("given_up", "operation", "requests", "returned", "scope", "timer")

    def __init__(self, operation: Operation, requests: list[Request]) -> None:
        self.operation = operation
        self.requests = requests
        # Shielded: neither a repair's deadline nor a cancelled host cuts a write off before its grace is over.
        self.scope = trio.CancelScope(shield=True)
        self.timer: Timer | None = None
        self.given_up = False
        self.returned = False


class Batcher:
    """Serves one store.

    Invariants:
        - At most `max_calls` calls that reach the store are under way, and one more that only prepares.
        - A request is in at most one of: its queue (`queued`), a call under way.
        - `_group_limit` names only documents whose last call failed as a whole, the last `MAX_REMEMBERED` of them:
          they travel in smaller company until the store has answered for them.
    """

    def __init__(
        self, name: str, store: Store, config: AutoRepairConfig, timetable: Timetable, emit: Emit, *, fail_fast: bool
    ) -> None:
        self.name = name
        self.store = store
        self.traits: StoreTraits = store.traits
        self.breaker = CircuitBreaker(config.breaker_failures, config.breaker_reset)
        self.nursery: trio.Nursery
        self._config = config
        self._timetable = timetable
        self._emit = emit
        self._fail_fast = fail_fast
        self._queues: dict[Operation, deque[Request]] = {operation: deque() for operation in Operation}
        self._order = itertools.count()
        self._queued = 0
        """Requests in all queues but PREPARE's, withdrawn ones included."""
        self._calls: set[_Call] = set()
        self._busy = {True: 0, False: 0}
        """Calls under way: under True those that prepare, under False the others."""
        self._given_up = 0
        """Calls among the others that were given up and have not ended."""
        self._starting = 0
        self._starting_prepare = False
        self._group_limit: dict[str, int] = {}
        self._unavailable_timer: Timer | None = None
        self._counts = {"calls": 0, "documents": 0, "failures": 0, "abandoned": 0, "misbehaved": 0}
        self._grace_ends: float | None = None

    def statistics(self) -> StoreStatistics:
        """A snapshot."""
        return StoreStatistics(breaker=self.breaker.state.value, **self._counts)

    def is_open(self) -> bool:
        """True while the circuit breaker keeps requests waiting."""
        return self.breaker.state is not BreakerState.CLOSED

    # Asking

    def observe(self, doc_id: str, gather: Gather) -> Request:
        """Ask what the store holds of a document."""
        return self._submit(Request(Operation.OBSERVE, doc_id, doc_id, gather))

    def read(self, doc_id: str, gather: Gather) -> Request:
        """Ask for a document."""
        return self._submit(Request(Operation.READ, doc_id, doc_id, gather))

    def prepare(self, document: Document, gather: Gather) -> Request:
        """Ask for a document to be made ready."""
        return self._submit(Request(Operation.PREPARE, document.doc_id, document, gather))

    def write(self, prepared: Prepared, token: str, gather: Gather) -> Request:
        """Ask for a conditional write."""
        doc_id = prepared.document.doc_id
        return self._submit(Request(Operation.WRITE, doc_id, Write(prepared=prepared, token=token), gather))

    def remove(self, doc_id: str, token: str, gather: Gather) -> Request:
        """Ask for a conditional removal."""
        return self._submit(Request(Operation.REMOVE, doc_id, Removal(doc_id=doc_id, token=token), gather))

    def _submit(self, request: Request) -> Request:
        if self._grace_ends is not None:
            request.settle(StoreUnavailable(self.name, "the engine is closing", request.doc_id))
            return request
        if self._fail_fast and request.operation is not Operation.PREPARE and not self._may_probe():
            request.settle(CircuitOpen(self.name, "is unreachable", request.doc_id))
            return request
        request.order = next(self._order)
        request.queued = True
        request.queued_at = trio.current_time()
        self._queues[request.operation].append(request)
        self._queued += request.operation is not Operation.PREPARE
        self._pump()
        if self.breaker.state is not BreakerState.CLOSED:
            self._watch_unavailable()
        return request

    def _may_probe(self) -> bool:
        """False if a request would have to wait until the store is known to be back."""
        return self.breaker.state is BreakerState.CLOSED or self._free() > 0

    # Sending

    def _pump(self) -> None:
        """Start calls while the store may be called and something is queued."""
        prepares = self._queues[Operation.PREPARE]
        if prepares and not self._starting_prepare and not self._busy[True]:
            self._starting_prepare = True
            self.nursery.start_soon(self._prepare_call)
        free = self._free()
        if free <= 0 or not self._queued:
            return
        # The batch is taken when the call's task first runs, so that everything asked for in this scheduling
        # round travels together; hence no more tasks than could find work.
        wanted = -(-self._queued // self.traits.max_batch) - self._starting
        for _ in range(min(free, wanted)):
            self._starting += 1
            self.nursery.start_soon(self._store_call)

    def _free(self) -> int:
        """How many more calls may go out now. A probe goes out beside calls that were given up, where there is room."""
        if self.breaker.state is BreakerState.OPEN:
            return 0
        free = self.traits.max_calls - self._busy[False]
        if self.breaker.state is BreakerState.HALF_OPEN:
            free = min(free, 1 + self._given_up - self._busy[False])
        return free - self._starting

    async def _prepare_call(self) -> None:
        self._starting_prepare = False
        await self._make_call(Operation.PREPARE)

    async def _store_call(self) -> None:
        self._starting -= 1
        heads = [
            (queue[0].order, operation)
            for operation, queue in self._queues.items()
            if queue and operation is not Operation.PREPARE
        ]
        if heads:
            await self._make_call(min(heads, key=lambda head: head[0])[1])

    def _take(self, operation: Operation) -> list[Request]:
        """The next batch: in order, without two requests for one document, no larger than its members may travel in."""
        queue = self._queues[operation]
        limit = 1 if self.breaker.state is BreakerState.HALF_OPEN else self.traits.max_batch
        batch: list[Request] = []
        seen: set[str] = set()
        held_back: list[Request] = []
        before = len(queue)
        while queue and len(batch) < limit:
            request = queue.popleft()
            if request.withdrawn:
                request.queued = False
                continue
            own_limit = limit if request.company is None else request.company
            if self._group_limit:
                own_limit = min(own_limit, self._group_limit.get(request.doc_id, own_limit))
            if request.doc_id in seen or len(batch) >= own_limit:
                held_back.append(request)
                continue
            limit = min(limit, own_limit)
            seen.add(request.doc_id)
            batch.append(request)
        queue.extendleft(reversed(held_back))
        if operation is not Operation.PREPARE:
            self._queued += len(queue) - before
        return batch

    async def _make_call(self, operation: Operation) -> None:
        if self.breaker.state is BreakerState.OPEN and operation is not Operation.PREPARE:
            return
        requests = self._take(operation)
        if not requests:
            self._pump()
            return
        call = _Call(operation, requests)
        for request in requests:
            request.queued = False
            request.sent_again = request.was_sent
            request.was_sent = True
        self._calls.add(call)
        preparing = operation is Operation.PREPARE
        self._busy[preparing] += 1
        self._counts["calls"] += 1
        self._counts["documents"] += len(requests)
        if operation in EFFECTS:
            for request in requests:
                self._emit(
                    EventKind.WRITE_SENT,
                    doc_id=request.doc_id,
                    store=self.name,
                    token=request.arguments.token,
                    version=None if request.removes else request.arguments.prepared.document.version,
                )
        call.timer = self._timetable.at(trio.current_time() + self._config.store_call_timeout, self._give_up, call)
        if self._grace_ends is not None:
            call.scope.deadline = self._grace_ends
        # What else is queued may go out beside this call.
        self._pump()
        answers: Sequence[Answer] | None = None
        failure: Exception | None = None
        try:
            with call.scope:
                answers = await getattr(self.store, operation.value)([request.arguments for request in requests])
                call.returned = True
        except Exception as error:
            failure = error
        finally:
            self._timetable.cancel(call.timer)
            self._calls.discard(call)
            self._busy[preparing] -= 1
            self._given_up -= call.given_up and not preparing
            self._finish(call, answers, failure)
            self._pump()

    # Answering

    def _finish(self, call: _Call, answers: Sequence[Answer] | None, failure: Exception | None) -> None:
        if call.returned:
            problem = contract_problem(call.operation, call.requests, answers)
            if problem is None and answers is not None:
                self._answered(call, answers)
            else:
                self._misbehaved(call, str(problem))
        elif failure is None:
            if not call.given_up:
                self._counts["abandoned"] += 1
                logger.warning(
                    "%s store: a %s call did not end within the grace period", self.name, call.operation.value
                )
                self._emit(EventKind.CALL_OVERDUE, store=self.name, detail=call.operation.value)
            self._fail(call, StoreUnavailable(self.name, "the call was given up"), given_up=True)
        elif isinstance(failure, StoreError):
            self._failed(call, failure)
        else:
            logger.error(
                "%s store: %s raised %s, which is not a StoreError",
                self.name,
                call.operation.value,
                type(failure).__name__,
            )
            self._misbehaved(call, f"{call.operation.value} raised {type(failure).__name__}", failure)
        for request in call.requests:
            if request.answer is not None:
                request.end()

    def _answered(self, call: _Call, answers: Sequence[Answer]) -> None:
        if call.operation is not Operation.PREPARE and self.breaker.succeeded():
            self._emit(EventKind.BREAKER_CLOSED, store=self.name)
        for request, answer in zip(call.requests, answers, strict=True):
            if self._group_limit:
                self._group_limit.pop(request.doc_id, None)
            self._tell(request, answer)

    def _failed(self, call: _Call, error: StoreError) -> None:
        """The store says that the call as a whole failed and that nothing was written."""
        self._counts["failures"] += 1
        unavailable = isinstance(error, StoreUnavailable)
        if len(call.requests) > 1 and not unavailable:
            self._send_again_in_smaller_company(call)
            return
        self._remember(call, max(1, len(call.requests) // 2))
        if unavailable and call.operation is not Operation.PREPARE and self.breaker.failed():
            self._opened()
        for request in call.requests:
            self._tell(request, error)

    def _misbehaved(self, call: _Call, problem: str, cause: Exception | None = None) -> None:
        """The adapter broke its contract: what it did to each document is not known."""
        self._counts["misbehaved"] += 1
        self._emit(EventKind.STORE_MISBEHAVED, store=self.name, detail=problem)
        if len(call.requests) > 1:
            self._send_again_in_smaller_company(call)
            return
        self._remember(call, 1)
        error = StoreMisbehaved(self.name, problem, call.requests[0].doc_id)
        error.__cause__ = cause
        self._fail(call, error, given_up=False)

    def _fail(self, call: _Call, error: StoreError, *, given_up: bool) -> None:
        """End a call whose effect is not known."""
        for request in call.requests:
            effect = call.operation in EFFECTS
            self._tell(request, WriteAnswer(status=WriteStatus.UNKNOWN, error=error) if effect else error)
        if given_up:
            # It took the whole `store_call_timeout`: one document that hangs is not looked for by halving.
            self._remember(call, 1)

    def _tell(self, request: Request, answer: Answer) -> None:
        if request.operation in EFFECTS and request.was_sent and request.answer is None:
            verdict = answer.status.value if isinstance(answer, WriteAnswer) else "failed"
            self._emit(
                EventKind.WRITE_SETTLED,
                doc_id=request.doc_id,
                store=self.name,
                token=request.arguments.token,
                detail=verdict,
            )
        request.settle(answer)

    def _remember(self, call: _Call, limit: int) -> None:
        """When they come again, these documents travel in a call of at most `limit`."""
        for request in call.requests:
            self._group_limit.pop(request.doc_id, None)
            self._group_limit[request.doc_id] = limit
        while len(self._group_limit) > MAX_REMEMBERED:
            del self._group_limit[next(iter(self._group_limit))]

    def _send_again_in_smaller_company(self, call: _Call) -> None:
        """Bisect, so that one poison document fails alone. A write that did land is then refused by its fence."""
        queue = self._queues[call.operation]
        for request in reversed(call.requests):
            if request.withdrawn:
                # Nobody waits for it: what its one sending did stays unknown.
                request.end()
            elif request.answer is None:
                request.company = max(1, len(call.requests) // 2)
                request.queued = True
                queue.appendleft(request)
                self._queued += call.operation is not Operation.PREPARE

    # When a store does not answer

    def _give_up(self, call: _Call) -> None:
        """The call is overdue: answer its requests, stop calling the store, and tell the call to end."""
        call.given_up = True
        self._given_up += call.operation is not Operation.PREPARE
        self._counts["abandoned"] += 1
        seconds = self._config.store_call_timeout
        logger.warning("%s store: a %s call did not answer within %g s", self.name, call.operation.value, seconds)
        self._emit(EventKind.CALL_OVERDUE, store=self.name, detail=call.operation.value)
        error = StoreUnavailable(self.name, f"{call.operation.value} did not answer within {seconds:g} s")
        if call.operation is not Operation.PREPARE and self.breaker.failed(given_up=True):
            self._opened()
        self._fail(call, error, given_up=True)
        call.scope.cancel()

    def _opened(self) -> None:
        self._emit(EventKind.BREAKER_OPENED, store=self.name)
        logger.warning("%s store: unreachable, next try in %g s", self.name, self.breaker.reset_seconds)
        self._timetable.at(trio.current_time() + self.breaker.reset_seconds, self._probe)
        if self._fail_fast:
            self._refuse_waiting(patience=0.0)
        else:
            self._watch_unavailable()

    def _probe(self) -> None:
        self.breaker.half_open()
        self._pump()

    def _watch_unavailable(self) -> None:
        if self._unavailable_timer is not None:
            return
        oldest = min((queue[0].queued_at for queue in self._store_queues() if queue), default=None)
        if oldest is not None:
            when = oldest + self._config.unavailable_timeout
            self._unavailable_timer = self._timetable.at(when, self._unavailable_check)

    def _unavailable_check(self) -> None:
        self._unavailable_timer = None
        if self.breaker.state is not BreakerState.CLOSED:
            self._refuse_waiting(patience=self._config.unavailable_timeout)
            self._watch_unavailable()

    def _refuse_waiting(self, *, patience: float) -> None:
        now = trio.current_time()
        for queue in self._store_queues():
            # The same sum as in `_watch_unavailable`: `queued_at <= now - patience` rounds differently, and a timer
            # that finds nobody due would be set again for the same moment, for ever.
            while queue and queue[0].queued_at + patience <= now:
                request = queue.popleft()
                request.queued = False
                self._queued -= 1
                if not request.withdrawn:
                    problem = f"unreachable for {now - request.queued_at:.3g} s"
                    effect = request.was_sent and request.operation in EFFECTS
                    error = CircuitOpen(self.name, problem, request.doc_id)
                    self._tell(request, WriteAnswer(status=WriteStatus.UNKNOWN, error=error) if effect else error)
                    request.end()

    def _store_queues(self) -> list[deque[Request]]:
        return [queue for operation, queue in self._queues.items() if operation is not Operation.PREPARE]

    def close(self, grace_ends: float) -> None:
        """Take no more requests; calls under way may go on until `grace_ends` on the Trio clock."""
        self._grace_ends = grace_ends
        for call in self._calls:
            call.scope.deadline = min(call.scope.deadline, grace_ends)
        self._queued = 0
        for queue in self._queues.values():
            while queue:
                request = queue.popleft()
                request.queued = False
                request.settle(StoreUnavailable(self.name, "the engine is closing", request.doc_id))
                request.end()
