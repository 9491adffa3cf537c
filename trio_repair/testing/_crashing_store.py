"""A store that forgets, when it crashes, what it had confirmed and not yet committed."""

from __future__ import annotations

from collections import Counter, deque

import trio

from trio_repair import (
    ContentDefinition,
    Document,
    EmbeddingIdentity,
    InvalidValue,
    Observation,
    StoreTraits,
    StoreUnavailable,
)
from trio_repair.stores.memory import MemoryCopy, MemoryStore


class CrashingStore(MemoryStore):
    """A `MemoryStore` that commits what it holds some time after it has confirmed it, as a database with relaxed
    durability does.

    `crash` takes it back to the last commit; calls under way raise `StoreUnavailable`, and have done nothing that
    lasts. It serves again at once: let `FaultyStore` with `FaultKind.CRASH` decide, by its seed, when it crashes and
    for how long it refuses calls then. Tokens made before a crash are never made again after it.

    Args:
        name, traits, embedding, content: as for `MemoryStore`.
        commit_after: seconds on Trio's clock after which a change is on disk; None: only `commit` commits.

    Raises:
        InvalidValue: `commit_after` is negative.
    """

    def __init__(
        self,
        name: str = "text",
        *,
        traits: StoreTraits | None = None,
        embedding: EmbeddingIdentity | None = None,
        content: ContentDefinition | None = None,
        commit_after: float | None = None,
    ) -> None:
        if commit_after is not None and commit_after < 0:
            raise InvalidValue("commit_after", f"must be None or seconds of at least 0, not {commit_after}")
        super().__init__(name, traits=traits, embedding=embedding, content=content)
        self.commit_after = commit_after
        self.crashes = 0
        self.lost: Counter[str] = Counter()
        """By document: changes that crashes took back."""
        # Each change that is not on disk: when it was made, of what, and what was held before. Oldest first.
        self._undo: deque[tuple[float, str, MemoryCopy | None]] = deque()

    @property
    def uncommitted(self) -> int:
        """Changes that a crash would take back now."""
        self._flush()
        return len(self._undo)

    def commit(self) -> None:
        """Put everything that is held on disk."""
        self._undo.clear()

    def crash(self) -> None:
        """Fail the calls under way, and hold again what was committed last."""
        self._flush()
        self.crashes += 1
        while self._undo:
            _, doc_id, copy = self._undo.pop()
            self.lost[doc_id] += 1
            if copy is None:
                self._copies.pop(doc_id, None)
            else:
                self._copies[doc_id] = copy

    def damage(self, doc_id: str, *, intact: bool = False, embedding: EmbeddingIdentity | None = None) -> Observation:
        """As `MemoryStore`; a crash takes the damage back, too, if it is not committed."""
        before = self._copies.get(doc_id)
        after = super().damage(doc_id, intact=intact, embedding=embedding)
        self._remember(doc_id, before)
        return after

    async def _checkpoint(self, documents: int) -> None:
        crashes = self.crashes
        await super()._checkpoint(documents)
        if self.crashes != crashes:
            raise StoreUnavailable(self.name, "has crashed; the call had no effect")

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        before = self._copies.get(doc_id)
        after = super()._replace(doc_id, document)
        self._remember(doc_id, before)
        return after

    def _remember(self, doc_id: str, before: MemoryCopy | None) -> None:
        self._flush()
        # Without a time for commits nothing is read from the clock: tests fill stores before Trio runs.
        now = 0.0 if self.commit_after is None else _now()
        if self.commit_after != 0:
            self._undo.append((now, doc_id, before))

    def _flush(self) -> None:
        if self.commit_after is not None:
            horizon = _now() - self.commit_after
            while self._undo and self._undo[0][0] <= horizon:
                self._undo.popleft()


def _now() -> float:
    """Trio's time; what is written before Trio runs is as old as can be."""
    try:
        return trio.current_time()
    except RuntimeError:
        return float("-inf")
