"""Requests that wait for a store, and which of them its next call takes along. Synchronous; time is passed in."""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from ._requests import CARRIES_TEXT, Operation, Request
from ._suspects import Suspects

# By names of their own: see `plain_members`.
_PREPARE: Final = Operation.PREPARE

_WITHDRAWN: Final = operator.attrgetter("withdrawn")
_COMPANY: Final = operator.attrgetter("company")
_DOC_ID: Final = operator.attrgetter("doc_id")
_TEXT_SIZE: Final = operator.attrgetter("text_size")


class WaitingRequests:
    """The requests of one store that are not under way, in order of asking.

    Invariants:
        - A request in here is `queued`, and no other is.
        - `for_store` counts all of them, withdrawn ones included, but those that only prepare.
    """

    def __init__(self, suspects: Suspects) -> None:
        self._suspects = suspects
        self._queues: dict[Operation, deque[Request]] = {operation: deque() for operation in Operation}
        self.prepares = self._queues[_PREPARE]
        """Those that only prepare; for looking at."""
        self._for_store = [queue for queue in self._queues.values() if queue is not self.prepares]
        self._order = itertools.count()
        self.for_store = 0

    def add(self, request: Request, now: float) -> None:
        """Put one last."""
        operation = request.operation
        request.order = next(self._order)
        request.queued = True
        request.queued_at = now
        self._queues[operation].append(request)
        if operation is not _PREPARE:
            self.for_store += 1

    def put_back(self, operation: Operation, requests: Iterable[Request]) -> None:
        """Return requests of one call to the front, the first one last."""
        queue = self._queues[operation]
        for request in requests:
            request.queued = True
            queue.appendleft(request)
            self.for_store += operation is not _PREPARE

    def oldest(self, *, without_suspects: bool) -> Operation | None:
        """The operation of the store that was asked for first. O(1) unless suspects to be left out are in front."""
        oldest: Operation | None = None
        order = 0
        for queue in self._for_store:
            for request in queue:
                if without_suspects and self._suspects.may_hang(request.question):
                    continue
                if oldest is None or request.order < order:
                    oldest, order = request.operation, request.order
                break
        return oldest

    def take(
        self, operation: Operation, limit: int, *, without_suspects: bool, max_bytes: int | None = None
    ) -> list[Request]:
        """The next batch: in order, no document twice, and no larger than its members may travel in.

        More than `max_bytes` of text only if the first document alone has that much.
        """
        queue = self._queues[operation]
        first = self._first(queue, operation, limit, max_bytes)
        if first is not None:
            return first
        batch: list[Request] = []
        seen: set[str] = set()
        held_back: list[Request] = []
        before = len(queue)
        suspects = self._suspects if self._suspects.any else None
        room = max_bytes if operation in CARRIES_TEXT else None
        while queue and len(batch) < limit:
            request = queue.popleft()
            doc_id = request.doc_id
            if request.withdrawn:
                request.queued = False
                continue
            if request.company is not None or suspects is not None:
                own_limit = limit if request.company is None else request.company
                if suspects is not None:
                    own_limit = suspects.company(request.question, own_limit)
                    if without_suspects and suspects.may_hang(request.question):
                        own_limit = 0
                if len(batch) >= own_limit or doc_id in seen:
                    held_back.append(request)
                    continue
                limit = min(limit, own_limit)
            elif doc_id in seen:
                held_back.append(request)
                continue
            if room is not None:
                room -= request.text_size
                if room < 0 and batch:
                    queue.appendleft(request)
                    break
            seen.add(doc_id)
            request.queued = False
            batch.append(request)
        queue.extendleft(reversed(held_back))
        if operation is not _PREPARE:
            self.for_store += len(queue) - before
        return batch

    def _first(
        self, queue: deque[Request], operation: Operation, limit: int, max_bytes: int | None
    ) -> list[Request] | None:
        """The first `limit` requests, taken out, if they are a batch as they stand: found out in loops of C."""
        if self._suspects.any:
            return None
        if (limit == 1 or len(queue) == 1) and queue:
            return self._alone(queue, operation)
        first = list(itertools.islice(queue, limit))
        if any(map(_WITHDRAWN, first)) or any(map(_COMPANY, first)) or len(set(map(_DOC_ID, first))) < len(first):
            return None
        if max_bytes is not None and operation in CARRIES_TEXT and sum(map(_TEXT_SIZE, first)) > max_bytes:
            return None
        if len(first) == len(queue):
            queue.clear()
        else:
            for _ in first:
                queue.popleft()
        for request in first:
            request.queued = False
        if operation is not _PREPARE:
            self.for_store -= len(first)
        return first

    def _alone(self, queue: deque[Request], operation: Operation) -> list[Request] | None:
        """The first request, taken out, if it may go as it stands: with what it carries, and no company to look at."""
        request = queue[0]
        if request.withdrawn:
            return None
        queue.popleft()
        request.queued = False
        if operation is not _PREPARE:
            self.for_store -= 1
        return [request]

    def waiting_since(self) -> float | None:
        """When the one that waits longest for the store was asked for."""
        return min((queue[0].queued_at for queue in self._for_store if queue), default=None)

    def take_due(self, now: float, patience: float) -> Iterator[Request]:
        """Take out those that have waited for the store for `patience` seconds, but withdrawn ones."""
        for queue in self._for_store:
            # The sum that a timer is set for: `queued_at <= now - patience` rounds differently, and a timer that finds
            # nobody due would be set again for the same moment, for ever.
            while queue and queue[0].queued_at + patience <= now:
                request = queue.popleft()
                request.queued = False
                self.for_store -= 1
                if not request.withdrawn:
                    yield request

    def clear_prepares(self) -> Iterator[Request]:
        """Take out those that only prepare, but withdrawn ones."""
        while self.prepares:
            request = self.prepares.popleft()
            request.queued = False
            if not request.withdrawn:
                yield request

    def clear(self) -> Iterator[Request]:
        """Take out all."""
        self.for_store = 0
        for queue in self._queues.values():
            while queue:
                request = queue.popleft()
                request.queued = False
                yield request
