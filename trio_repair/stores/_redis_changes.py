"""Writes and removals: one script for each document, many to a call, and what became of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio

from trio_repair import (
    ContentDefinition,
    Observation,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    WriteAnswer,
    WriteStatus,
)

from ._fence import ABSENT, ABSENT_TOKEN, Change
from ._redis_connections import Command, Connections, Reply
from ._redis_entries import Entry, Form, Seen
from ._redis_errors import is_reply, is_too_large
from ._redis_keys import Keys
from ._redis_scripts import Scripts

_KEYS_PER_LOOK: Final = 64
"""Keys in one run of a script; between two runs, the server serves others."""
_LATE: Final = "was reached too late by this write, which then did nothing"


class Ledger:
    """What one store keeps on a server, looked at and changed.

    Args:
        ttl: seconds after which an entry that is written now expires; None: `lasting` says.
        lasting: without `ttl`, whether an entry that is written never expires, or when the one before it would have.
    """

    def __init__(
        self,
        store: str,
        connections: Connections,
        form: Form,
        keys: Keys,
        content: ContentDefinition,
        *,
        ttl: float | None,
        lasting: bool,
    ) -> None:
        self._store = store
        self._connections = connections
        self._form = form
        self._keys = keys
        self._content = content
        self._scripts: Scripts = form.scripts
        milliseconds = (-1 if lasting else 0) if ttl is None else max(1, round(ttl * 1000))
        self._ttl = b"%d" % milliseconds
        self._salt = os.urandom(8).hex()
        self._written = 0

    def looks(self, doc_ids: Sequence[str], *, content: bool) -> list[Command]:
        """The commands that look at these documents."""
        layout = self._form.layout(content=content)
        return [
            Command.run(
                self._scripts.look,
                [self._keys.key(doc_id) for doc_id in doc_ids[start : start + _KEYS_PER_LOOK]],
                layout,
            )
            for start in range(0, len(doc_ids), _KEYS_PER_LOOK)
        ]

    async def look(self, doc_ids: Sequence[str], *, content: bool) -> list[Entry | StoreError | None]:
        """What is held of each; None: nothing.

        Raises:
            StoreUnavailable: the server could not be asked.

        **If cancelled:** nothing has changed.
        """
        named = [doc_id for doc_id in doc_ids if self._keys.names(doc_id)]
        replies = await self._connections.call(self.looks(named, content=content))
        found = dict(zip(named, await self.entries(named, replies, content=content), strict=True))
        return [found[doc_id] if doc_id in found else self._not_named(doc_id) for doc_id in doc_ids]

    async def entries(
        self, doc_ids: Sequence[str], replies: Sequence[Reply], *, content: bool
    ) -> list[Entry | StoreError | None]:
        """What the looks at these documents show. **If cancelled:** nothing has changed."""
        self._connections.refuse_errors(replies)
        found: list[Entry | StoreError | None] = []
        for reply in replies:
            for seen in reply:
                found.append(self._entry(doc_ids[len(found)], seen, content=content))
            await trio.lowlevel.checkpoint()  # digests of many texts take their time
        return found

    def _entry(self, doc_id: str, seen: Seen, *, content: bool) -> Entry | StoreError | None:
        if seen[0] == b"held":
            return self._form.entry(seen, content=content)
        return None if seen[0] == b"absent" else self._foreign(doc_id, seen)

    def _foreign(self, doc_id: str, seen: Seen) -> StoreRejected:
        kind, wanted = str(seen[1], "ascii", "replace"), self._form.kind.decode()
        problem = f"its key holds a {kind}, not a {wanted}, and so is not an entry of this cache; it is left alone"
        return StoreRejected(self._store, problem, doc_id)

    def _not_named(self, doc_id: str) -> StoreRejected:
        return StoreRejected(self._store, "no document of this cache has such an id (id_pattern)", doc_id)

    async def change(self, changes: Sequence[Change]) -> list[WriteAnswer]:
        """Make these changes, each of which still holds its token, or say why not.

        Raises:
            StoreUnavailable: nothing was written.

        **If cancelled:** each document may have changed, or not. None changes later than the deadline of this call.
        """
        answers: dict[int, WriteAnswer] = {}
        held = await self._held(changes, answers)
        if len(answers) == len(changes):
            await trio.lowlevel.checkpoint()
            return _in_order(answers)
        deadline = b"%d" % await self._connections.deadline()
        sent: list[tuple[int, Command, Observation]] = []
        for index, change in enumerate(changes):
            if index not in answers:
                command, outcome = self._command(change, held.get(index), deadline)
                sent.append((index, command, outcome))
        replies = await self._connections.call([command for _, command, _ in sent], effect=True)
        unwritten: dict[int, StoreUnavailable] = {}
        for (index, _, outcome), reply in zip(sent, replies, strict=True):
            verdict = self._verdict(changes[index].doc_id, reply, outcome)
            if isinstance(verdict, StoreUnavailable):
                unwritten[index] = verdict
            else:
                answers[index] = verdict
        if unwritten:
            # Nothing of these was written. That can be said of a whole call only.
            if not any(one.status in (WriteStatus.LANDED, WriteStatus.UNKNOWN) for one in answers.values()):
                raise next(iter(unwritten.values()))
            for index, error in unwritten.items():
                answers[index] = WriteAnswer(status=WriteStatus.UNKNOWN, error=error)
        return _in_order(answers)

    async def _held(self, changes: Sequence[Change], answers: dict[int, WriteAnswer]) -> Mapping[int, Entry]:
        """The entries of which a write keeps what it does not know; answers those that have changed already."""
        for index, change in enumerate(changes):
            if not self._keys.names(change.doc_id):
                error = self._not_named(change.doc_id)
                answers[index] = WriteAnswer(status=WriteStatus.REJECTED, error=error)
        if not self._form.reads_to_write:
            return {}
        wanted = [
            index
            for index, change in enumerate(changes)
            if index not in answers and change.prepared is not None and change.token != ABSENT_TOKEN
        ]
        found = await self.look([changes[index].doc_id for index in wanted], content=True)
        held: dict[int, Entry] = {}
        for index, entry in zip(wanted, found, strict=True):
            if isinstance(entry, Entry) and entry.observation.token == changes[index].token:
                held[index] = entry
            elif isinstance(entry, StoreError):
                answers[index] = WriteAnswer(status=WriteStatus.REJECTED, error=entry)
            else:
                view = ABSENT if entry is None else entry.observation
                answers[index] = WriteAnswer(status=WriteStatus.REFUSED, observation=view)
        return held

    def _command(self, change: Change, held: Entry | None, deadline: bytes) -> tuple[Command, Observation]:
        layout = self._form.layout(content=self._form.reads_to_observe)
        key = [self._keys.key(change.doc_id)]
        if change.prepared is None or change.prepared.document.version.deleted:
            return Command.run(self._scripts.remove, key, [_told(change.token), deadline, *layout]), ABSENT
        self._written += 1
        putting = self._form.putting(change.prepared, held, f"{self._salt}{self._written:x}")
        arguments = [_told(change.token), deadline, self._ttl, *layout, *putting.arguments]
        return Command.run(self._scripts.write, key, arguments), putting.observation

    def _verdict(self, doc_id: str, reply: Reply, outcome: Observation) -> WriteAnswer | StoreUnavailable:
        """What became of one change; StoreUnavailable: nothing, and a later try may succeed."""
        if isinstance(reply, BaseException):
            if is_too_large(reply):
                error = StoreRejected(self._store, "it is larger than a value may be on this server", doc_id)
                return WriteAnswer(status=WriteStatus.REJECTED, error=error)
            problem = self._connections.translate(reply)
            if is_reply(reply):
                return problem
            return WriteAnswer(status=WriteStatus.UNKNOWN, error=problem)
        said: Any = reply
        if said[0] == b"done":
            return WriteAnswer(status=WriteStatus.LANDED, observation=outcome)
        if said[0] == b"late":
            self._connections.forget_time()
            return self._connections.unavailable(_LATE)
        entry = self._entry(doc_id, said[1], content=self._form.reads_to_observe)
        if isinstance(entry, StoreError):
            return WriteAnswer(status=WriteStatus.REJECTED, error=entry)
        return WriteAnswer(status=WriteStatus.REFUSED, observation=ABSENT if entry is None else entry.observation)


def _in_order(answers: Mapping[int, WriteAnswer]) -> list[WriteAnswer]:
    return [answers[index] for index in sorted(answers)]


def _told(token: str) -> bytes:
    """A token as it is compared. Nobody has one that cannot be encoded."""
    return token.encode(errors="surrogatepass")
