"""Between the repairs and a store: gather what they ask for, and do it as one bulk call, outside their cancel scopes.

A repair that is cancelled takes back what was not sent; what was sent is never cut off in mid-call by a deadline of
one repair. While a store is busy, requests gather, and the next call takes them: no timer, no waiting for company.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Final, TypeAlias, cast

import attrs
import trio

from ._breaker import BreakerState, CircuitBreaker
from ._config import AutoRepairConfig
from ._errors import CircuitOpen, StoreError, StoreMisbehaved, StoreUnavailable
from ._events import EventKind
from ._model import Document
from ._requests import EFFECTS, Answer, Operation, Request, contract_problem, is_whole
from ._stepping import Gather
from ._store_call import StoreCall, Stretches
from ._suspects import Question, Suspects
from ._telling import unheard
from ._timetable import Timer, Timetable
from ._views import Prepared, Removal, StoredDocument, StoreTraits, WriteAnswer, WriteStatus, new_write
from ._waiting import WaitingRequests
from .abc import Store

# By names of their own: see `plain_members`.
_OBSERVE: Final = Operation.OBSERVE
_READ: Final = Operation.READ
_PREPARE: Final = Operation.PREPARE
_WRITE: Final = Operation.WRITE
_CLOSED: Final = BreakerState.CLOSED
_OPEN: Final = BreakerState.OPEN
_HALF_OPEN: Final = BreakerState.HALF_OPEN

logger = logging.getLogger("trio_repair")

MIN_STOPPING: Final = 0.1
"""A call that was told to stop is allowed so many seconds at least, however short the grace period is."""

_USUAL_TEXT_SIZE: Final = 16_384.0
"""Characters that a document is taken to have before any was read."""

_LATE: Final = 0.05
"""Seconds by which a timer may be late without anything being wrong."""

_ROUNDS_TO_TAKE_IN: Final = 10
"""An answer that came from a thread reaches its repair within half as many rounds of the scheduler."""

MAX_STUCK_PREPARES: Final = 8
"""So many preparations may be given up without ending before no more are begun."""

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
    overstayed: int
    """Calls that were told to stop and still ran `grace` seconds later: the adapter swallows cancellation, or its
    driver cannot be interrupted."""
    blocked: int
    """Calls that kept the event loop to themselves for `loop_block_seconds` or longer at a stretch."""
    breaker: str
    """"closed", "open" or "half-open"."""


class Batcher:
    """Serves one store.

    Invariants:
        - At most `max_calls` calls that reach the store are under way, and one more that only prepares.
        - A request is in at most one of: its queue (`queued`), a call under way.
    """

    def __init__(
        self, name: str, store: Store, config: AutoRepairConfig, timetable: Timetable, emit: Emit, *, fail_fast: bool
    ) -> None:
        self.name = name
        self.store = store
        self.traits: StoreTraits = store.traits
        self.breaker = CircuitBreaker(config.breaker_failures, config.breaker_reset)
        self.nursery: trio.Nursery
        self._now = trio.lowlevel.current_clock().current_time
        """The Trio clock, without the detour that every `trio.current_time` takes."""
        self._config = config
        self._timetable = timetable
        self._emit = emit
        self._heard = emit is not unheard
        self._fail_fast = fail_fast
        self._suspects = Suspects()
        self._waiting = WaitingRequests(self._suspects)
        self._calls: set[StoreCall] = set()
        self._busy = {True: 0, False: 0}
        """Calls under way: under True those that prepare, under False the others."""
        self._given_up = {True: 0, False: 0}
        """Calls among these that were given up and have not ended."""
        self._starting = 0
        self._starting_prepare = False
        self._suspect_calls = 0
        """Calls under way, and not given up, for one document that may hang the store again."""
        self._unavailable_timer: Timer | None = None
        self._text_size = _USUAL_TEXT_SIZE
        """How many characters a document that is read may be expected to have."""
        self._last_problem = ""
        """Why the last call that failed as a whole did, in the store's words."""
        self._counts = {"calls": 0, "documents": 0, "failures": 0, "abandoned": 0, "misbehaved": 0}
        self._counts |= {"overstayed": 0, "blocked": 0}
        self._grace_ends: float | None = None

    def statistics(self) -> StoreStatistics:
        """A snapshot."""
        return StoreStatistics(breaker=self.breaker.state.value, **self._counts)

    @property
    def reason(self) -> str:
        """Why the store is unreachable, to be put behind the words that say so."""
        return f": {self._last_problem}" if self._last_problem else ""

    def is_open(self) -> bool:
        """True while the circuit breaker keeps requests waiting."""
        return self.breaker.state is not _CLOSED

    # Asking

    def observe(self, doc_id: str, gather: Gather) -> Request:
        """Ask what the store holds of a document."""
        return self._submit(Request(_OBSERVE, doc_id, doc_id, gather))

    def read(self, doc_id: str, gather: Gather) -> Request:
        """Ask for a document."""
        return self._submit(Request(_READ, doc_id, doc_id, gather))

    def prepare(self, document: Document, gather: Gather) -> Request:
        """Ask for a document to be made ready."""
        return self._submit(Request(_PREPARE, document.doc_id, document, gather))

    def write(self, prepared: Prepared, token: str, gather: Gather) -> Request:
        """Ask for a conditional write."""
        doc_id = prepared.document.doc_id
        return self._submit(Request(_WRITE, doc_id, new_write(prepared, token), gather))

    def remove(self, doc_id: str, token: str, gather: Gather) -> Request:
        """Ask for a conditional removal."""
        return self._submit(Request(Operation.REMOVE, doc_id, Removal(doc_id=doc_id, token=token), gather))

    def _submit(self, request: Request) -> Request:
        if self._grace_ends is not None:
            request.settle(StoreUnavailable(self.name, "the engine is closing", request.doc_id))
            return request
        closed = self.breaker.state is _CLOSED
        prepares = request.operation is _PREPARE
        if prepares:
            if self._given_up[True] >= MAX_STUCK_PREPARES:
                request.settle(self._cannot_prepare(request))
                return request
        elif self._fail_fast and not closed and self._free() <= 0:
            # It would have to wait until the store is known to be back.
            request.settle(CircuitOpen(self.name, f"is unreachable{self.reason}", request.doc_id))
            return request
        now = self._now()
        if self._suspects.any and self._suspects.is_guilty(request.question, now):
            problem = f"does not answer {request.operation.value} for this document; not asked again for a while"
            request.settle(StoreUnavailable(self.name, problem, request.doc_id))
            return request
        waiting = self._waiting
        waiting.add(request, now)
        # Most requests come while the store is busy, and none of them can start a call.
        may_go_out = not closed or self._busy[False] + self._starting < self.traits.max_calls
        if prepares or (may_go_out and waiting.for_store > self._starting * self.traits.max_batch):
            self._pump()
        if not closed:
            self._watch_unavailable()
        return request

    # Sending

    def _pump(self) -> None:
        """Start calls while the store may be called and something is queued."""
        # Beside a preparation that was given up and does not end, the next one goes on.
        if self._waiting.prepares and not self._starting_prepare and self._busy[True] == self._given_up[True]:
            self._starting_prepare = True
            self.nursery.start_soon(self._prepare_call)
        if self._waiting.for_store <= self._starting * self.traits.max_batch:
            return
        free = self._free()
        if free <= 0:
            return
        # The batch is taken when the call's task first runs, so that everything asked for in this scheduling
        # round travels together; hence no more tasks than could find work.
        wanted = -(-self._waiting.for_store // self.traits.max_batch) - self._starting
        for _ in range(min(free, wanted)):
            self._starting += 1
            self.nursery.start_soon(self._store_call)

    def _free(self) -> int:
        """How many more calls may go out now. A probe goes out beside calls that were given up, where there is room."""
        state = self.breaker.state
        if state is _OPEN:
            return 0
        free = self.traits.max_calls - self._busy[False]
        if state is _HALF_OPEN:
            free = min(free, 1 + self._given_up[False] - self._busy[False])
        return free - self._starting

    async def _prepare_call(self) -> None:
        self._starting_prepare = False
        await self._make_call(_PREPARE)

    async def _store_call(self) -> None:
        self._starting -= 1
        # Where a store may be called more than once at a time, one place is kept free of documents that may hang it;
        # and whether it is back is better asked about another one.
        apart = 0 < self.traits.max_calls - 1 <= self._suspect_calls
        without_suspects = apart or self.breaker.state is _HALF_OPEN
        operation = self._waiting.oldest(without_suspects=without_suspects)
        if operation is None and not apart:
            without_suspects = False
            operation = self._waiting.oldest(without_suspects=False)
        if operation is not None:
            await self._make_call(operation, without_suspects=without_suspects)

    async def _make_call(self, operation: Operation, *, without_suspects: bool = False) -> None:
        state = self.breaker.state
        if state is _OPEN and operation is not _PREPARE:
            return
        limit = 1 if state is _HALF_OPEN else self.traits.max_batch
        max_bytes = self.traits.max_batch_bytes
        if operation is _READ:
            limit = min(limit, max(1, int(max_bytes / self._text_size)))
        requests = self._waiting.take(operation, limit, without_suspects=without_suspects, max_bytes=max_bytes)
        if not requests:
            self._pump()
            return
        preparing = operation is _PREPARE
        suspect = not preparing and len(requests) == 1 and self._suspects.may_hang(requests[0].question)
        call = StoreCall(operation, requests, suspect=suspect)
        for request in requests:
            request.was_sent = True
        self._calls.add(call)
        self._busy[preparing] += 1
        self._suspect_calls += suspect
        self._counts["calls"] += 1
        self._counts["documents"] += len(requests)
        answers: object = None
        failure: BaseException | None = None
        ask = methodcaller(operation.value, [request.arguments for request in requests])
        running = Stretches(ask, self.store)
        try:
            self._sent(call)
            with call.scope:
                answers = await running
                call.returned = True
        except (trio.Cancelled, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseExceptionGroup as group:
            if group.subgroup((trio.Cancelled, KeyboardInterrupt, SystemExit)) is not None:
                raise
            failure = group
        except BaseException as error:  # noqa: ASYNC103 - Cancelled went on above
            failure = error
        finally:
            if call.timer is not None:
                self._timetable.cancel(call.timer)
            self._calls.discard(call)
            self._busy[preparing] -= 1
            self._given_up[preparing] -= call.given_up
            self._suspect_calls -= suspect and not call.given_up
            if running.longest >= self._config.loop_block_seconds:
                self._blocked_the_loop(operation, running.longest)
            self._finish(call, answers, failure)
            self._pump()

    def _sent(self, call: StoreCall) -> None:
        """The call is about to be made."""
        if self._heard and call.operation in EFFECTS:
            for request in call.requests:
                self._emit(
                    EventKind.WRITE_SENT,
                    doc_id=request.doc_id,
                    store=self.name,
                    token=request.arguments.token,
                    version=None if request.removes else request.arguments.prepared.document.version,
                )
        call.due = self._now() + self._config.store_call_timeout
        call.timer = self._timetable.at(call.due, self._give_up, call)
        if self._grace_ends is not None:
            call.scope.deadline = self._grace_ends
            self._watch_stopping(call, self._grace_ends)
        # What else is queued may go out beside this call.
        self._pump()

    # Answering

    def _finish(self, call: StoreCall, answers: object, failure: BaseException | None) -> None:
        # Before anybody is answered, and takes the next step at once.
        for request in call.requests:
            request.ended = True
        if call.returned:
            problem = contract_problem(call.operation, call.requests, answers)
            if problem is None:
                self._answered(call, cast("Sequence[Answer]", answers))
            else:
                self._misbehaved(call, problem)
        elif failure is None:
            if not call.given_up:
                self._counts["abandoned"] += 1
                logger.warning("%s store: %s did not end within the grace period", self.name, call.operation.value)
                self._emit(EventKind.CALL_OVERDUE, store=self.name, detail=call.operation.value)
            self._fail(call, StoreUnavailable(self.name, "the call was given up"), given_up=True)
        elif isinstance(failure, StoreError) and is_whole(failure):
            self._failed(call, failure)
        else:
            problem = f"{call.operation.value} raised {type(failure).__name__}"
            self._misbehaved(call, problem, failure)
        for request in call.requests:
            if request.on_ended is not None and request.answer is not None:
                request.end()

    def _answered(self, call: StoreCall, answers: Sequence[Answer]) -> None:
        if call.operation is not _PREPARE and self.breaker.succeeded():
            self._emit(EventKind.BREAKER_CLOSED, store=self.name)
        if self._suspects.any:
            for request in call.requests:
                self._suspects.answered(request.question)
        if call.operation is _READ:
            self._learn_text_size(answers)
        if self._heard and call.operation in EFFECTS:
            for request, answer in zip(call.requests, answers, strict=True):
                self._tell(request, answer)
            return
        for request, answer in zip(call.requests, answers, strict=True):
            # `Request.settle`, without a call for each of so many.
            if request.answer is None:
                request.answer = answer
                request.gather.one_answered()

    def _learn_text_size(self, answers: Sequence[Answer]) -> None:
        """Half of it what this call tells, half what those before told."""
        documents = [answer.document for answer in answers if isinstance(answer, StoredDocument)]
        sizes = [len(document.text) for document in documents if document is not None and document.text is not None]
        if sizes:
            self._text_size = max(1.0, (self._text_size + sum(sizes) / len(sizes)) / 2)

    def _failed(self, call: StoreCall, error: StoreError) -> None:
        """The store says that the call as a whole failed and that nothing was written."""
        self._counts["failures"] += 1
        self._last_problem = error.problem
        unavailable = isinstance(error, StoreUnavailable)
        if len(call.requests) > 1 and not unavailable:
            self._send_again_in_smaller_company(call, broke=False)
            return
        self._suspects.failed(self._questions(call), max(1, len(call.requests) // 2))
        if unavailable and call.operation is not _PREPARE and self.breaker.failed():
            self._opened()
        for request in call.requests:
            self._tell(request, error)

    def _misbehaved(self, call: StoreCall, problem: str, cause: BaseException | None = None) -> None:
        """The adapter broke its contract: what it did to each document is not known."""
        self._counts["misbehaved"] += 1
        logger.error("%s store: broke its contract: %s", self.name, problem)
        self._emit(EventKind.STORE_MISBEHAVED, store=self.name, detail=problem)
        if len(call.requests) > 1:
            self._send_again_in_smaller_company(call, broke=True)
            return
        self._suspects.failed(self._questions(call), 1)
        error = StoreMisbehaved(self.name, problem, call.requests[0].doc_id)
        error.__cause__ = cause
        self._fail(call, error, given_up=False)

    def _fail(self, call: StoreCall, error: StoreError, *, given_up: bool) -> None:
        """End a call whose effect is not known."""
        if given_up:
            # It took the whole `store_call_timeout`: one document that hangs is not looked for by halving.
            self._suspects.hung(self._questions(call))
        for request in call.requests:
            effect = call.operation in EFFECTS
            self._tell(request, WriteAnswer(status=WriteStatus.UNKNOWN, error=error) if effect else error)

    def _tell(self, request: Request, answer: Answer) -> None:
        if self._heard and request.operation in EFFECTS and request.was_sent and request.answer is None:
            verdict = answer.status.value if isinstance(answer, WriteAnswer) else "failed"
            self._emit(
                EventKind.WRITE_SETTLED,
                doc_id=request.doc_id,
                store=self.name,
                token=request.arguments.token,
                detail=verdict,
            )
        request.settle(answer)

    @staticmethod
    def _questions(call: StoreCall) -> list[Question]:
        return [request.question for request in call.requests]

    def _send_again_in_smaller_company(self, call: StoreCall, *, broke: bool) -> None:
        """Bisect, so that one poison document fails alone. A write that did land is then refused by its fence.

        Unless the call `broke`, the store has said that nothing was written.
        """
        again: list[Request] = []
        for request in reversed(call.requests):
            if request.withdrawn:
                # Nobody waits for it: what its one sending did stays unknown.
                request.end()
            elif request.answer is None:
                request.company = max(1, len(call.requests) // 2)
                request.ended = False
                request.sent_again = request.sent_again or broke
                again.append(request)
        self._waiting.put_back(call.operation, again)

    # When a store does not answer

    def _give_up(self, call: StoreCall) -> None:
        """The call is overdue: answer its requests, stop calling the store, and tell the call to end."""
        if not call.excused and trio.current_time() - call.due > _LATE:
            call.excused = True
            self.nursery.start_soon(self._give_up_unless_answered, call)
            return
        call.given_up = True
        preparing = call.operation is _PREPARE
        self._given_up[preparing] += 1
        self._counts["abandoned"] += 1
        seconds = self._config.store_call_timeout
        logger.warning("%s store: %s did not answer within %g s", self.name, call.operation.value, seconds)
        self._emit(EventKind.CALL_OVERDUE, store=self.name, detail=call.operation.value)
        error = StoreUnavailable(self.name, f"{call.operation.value} did not answer within {seconds:g} s")
        if not preparing:
            self._last_problem = error.problem
        alone = call.requests[0].question if len(call.requests) == 1 else None
        if alone is not None and self._suspects.may_hang(alone) and (preparing or self.breaker.state is _CLOSED):
            # The store has answered for others since this one hung: it is the document, not the store.
            self._suspects.convict(alone, trio.current_time() + self._config.unavailable_timeout)
        elif not preparing and self.breaker.failed(given_up=True):
            self._opened()
        self._suspect_calls -= call.suspect
        self._fail(call, error, given_up=True)
        call.scope.cancel()
        self._watch_stopping(call, trio.current_time())
        if self._given_up[True] >= MAX_STUCK_PREPARES:
            for request in self._waiting.clear_prepares():
                request.settle(self._cannot_prepare(request))
                request.end()
        self._pump()

    async def _give_up_unless_answered(self, call: StoreCall) -> None:
        """It is overdue because something else kept the event loop to itself: take in first what has come meanwhile."""
        for _ in range(_ROUNDS_TO_TAKE_IN):
            await trio.lowlevel.cancel_shielded_checkpoint()
        if call in self._calls:
            self._give_up(call)

    def _cannot_prepare(self, request: Request) -> StoreUnavailable:
        problem = f"{self._given_up[True]} calls of prepare were given up and never ended; look at its embedder"
        return StoreUnavailable(self.name, problem, request.doc_id)

    def _watch_stopping(self, call: StoreCall, told_at: float) -> None:
        """The call was told to stop, or will be at `told_at`; take its time."""
        self._timetable.at(told_at + max(self._config.grace, MIN_STOPPING), self._overstayed, call)

    def _overstayed(self, call: StoreCall) -> None:
        if call not in self._calls:
            return
        self._counts["overstayed"] += 1
        logger.error(
            "%s store: %s was told to stop and goes on: the adapter swallows cancellation or waits for its driver; "
            "the engine cannot close before it returns",
            self.name,
            call.operation.value,
        )
        self._emit(EventKind.CALL_OVERSTAYED, store=self.name, detail=call.operation.value)

    def _blocked_the_loop(self, operation: Operation, seconds: float) -> None:
        self._counts["blocked"] += 1
        logger.error(
            "%s store: %s blocked the event loop for %.3g s; run it in a thread", self.name, operation.value, seconds
        )
        self._emit(EventKind.LOOP_BLOCKED, store=self.name, detail=f"{operation.value}: {seconds:.3g} s")

    def _opened(self) -> None:
        self._emit(EventKind.BREAKER_OPENED, store=self.name)
        seconds = self.breaker.reset_seconds
        logger.warning("%s store: unreachable, next try in %g s%s", self.name, seconds, self.reason)
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
        oldest = self._waiting.waiting_since()
        if oldest is not None:
            when = oldest + self._config.unavailable_timeout
            self._unavailable_timer = self._timetable.at(when, self._unavailable_check)

    def _unavailable_check(self) -> None:
        self._unavailable_timer = None
        if self.breaker.state is not _CLOSED:
            self._refuse_waiting(patience=self._config.unavailable_timeout)
            self._watch_unavailable()

    def _refuse_waiting(self, *, patience: float) -> None:
        now = trio.current_time()
        for request in self._waiting.take_due(now, patience):
            effect = request.was_sent and request.operation in EFFECTS
            problem = f"unreachable for {now - request.queued_at:.3g} s{self.reason}"
            error = CircuitOpen(self.name, problem, request.doc_id)
            self._tell(request, WriteAnswer(status=WriteStatus.UNKNOWN, error=error) if effect else error)
            request.end()

    def close(self, grace_ends: float) -> None:
        """Take no more requests; calls under way may go on until `grace_ends` on the Trio clock."""
        self._grace_ends = grace_ends
        for call in self._calls:
            call.scope.deadline = min(call.scope.deadline, grace_ends)
            if not call.given_up:
                self._watch_stopping(call, grace_ends)
        for request in self._waiting.clear():
            request.settle(StoreUnavailable(self.name, "the engine is closing", request.doc_id))
            request.end()
