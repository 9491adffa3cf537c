"""What `FaultyStore` answers: which documents a call is not asked about, and what becomes of true answers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import attrs

from trio_repair import StoreError, StoreRejected, StoreUnavailable, WriteAnswer, WriteStatus

from ._ailments import Ailment, Strike
from ._faults import PER_DOCUMENT, FaultKind

_T = TypeVar("_T")

COUNTED_WHEN_STRUCK: Final = frozenset(
    {
        FaultKind.UNAVAILABLE,
        FaultKind.DRIVER_ERROR,
        FaultKind.CRASH,
        FaultKind.LATENCY,
        FaultKind.HANG,
        FaultKind.STUCK,
        FaultKind.BLOCKED_LOOP,
    }
)
"""Kinds that have their effect on every call that they reach."""
COUNTED_WHEN_WITHHELD: Final = PER_DOCUMENT | {FaultKind.REQUEST_LOST}
"""Kinds whose whole effect is what they withhold."""
COUNTED_AFTERWARDS: Final = frozenset({FaultKind.HANG_AFTER, FaultKind.LATE_ERROR, FaultKind.PARTIAL_BULK})
"""Kinds that have their effect on every call that has had its own."""
_WITHHOLD_ALL: Final = {
    FaultKind.REQUEST_LOST: "injected: the request was lost",
    FaultKind.LATE_LANDING: "injected: no answer yet",
}


def decide_withheld(struck: Sequence[Strike], doc_ids: Sequence[str]) -> dict[int, Ailment]:
    """By index: the first of the faults that keep the store from being asked about that document."""
    withheld: dict[int, Ailment] = {}
    for ailment, victim in struck:
        for index in range(len(doc_ids)):
            if _withholds(ailment.fault.kind, index, doc_ids, victim):
                withheld.setdefault(index, ailment)
    return withheld


def _withholds(kind: FaultKind, index: int, doc_ids: Sequence[str], victim: str | None) -> bool:
    if kind in _WITHHOLD_ALL:
        return True
    if kind in PER_DOCUMENT:
        return doc_ids[index] == victim
    if kind is FaultKind.PARTIAL_BULK and victim is not None:
        broken = list(doc_ids).index(victim)
        return index >= broken if broken else index == 0
    return False


def explain_withheld(kind: FaultKind, store: str, doc_id: str) -> StoreError:
    """What is said of a document that the store was not asked about."""
    if kind is FaultKind.REJECTED:
        return StoreRejected(store, "injected: never", doc_id)
    return StoreUnavailable(store, _WITHHOLD_ALL.get(kind, "injected: not now"), doc_id)


@attrs.define
class Spoilt(Generic[_T]):
    """Answers on their way to the caller, and what becomes of them."""

    _store: str
    _answers: list[tuple[str | None, _T]]
    """With the document that each is about; None: about none."""
    _as_answer: Callable[[StoreError], _T]
    _shuffled: bool = False

    @classmethod
    def of(
        cls, store: str, doc_ids: Sequence[str], answers: Sequence[_T], as_answer: Callable[[StoreError], _T]
    ) -> Spoilt[_T]:
        """Answers as the store gave them: one for each document, or one about none."""
        ids: Sequence[str | None] = doc_ids if len(doc_ids) == len(answers) else [None] * len(answers)
        return cls(store, list(zip(ids, answers, strict=True)), as_answer)

    @property
    def answers(self) -> list[_T]:
        """What the caller gets."""
        return [answer for _, answer in self._answers]

    def suffer(self, kind: FaultKind) -> bool:
        """Spoil them, if a fault of this kind does; False if it changed nothing."""
        before = self._answers
        match kind:
            case FaultKind.ACK_LOST:
                self._answers = [self._lose(doc_id, answer) for doc_id, answer in before]
            case FaultKind.WRONG_LENGTH:
                self._answers = before[:-1]
            case FaultKind.SHUFFLED_ANSWERS if not self._shuffled:
                # Once: shuffled again, two would be in order.
                self._answers = [*before[1:], *before[:1]]
                self._shuffled = True
        return self._answers != before

    def _lose(self, doc_id: str | None, answer: _T) -> tuple[str | None, _T]:
        if isinstance(answer, WriteAnswer) and answer.status is WriteStatus.UNKNOWN:
            return doc_id, answer  # nothing to lose
        return doc_id, self._as_answer(StoreUnavailable(self._store, "injected: the answer was lost", doc_id))


def as_error(error: StoreError) -> StoreError:
    """The answer of a look, a read or a preparation."""
    return error


def as_verdict(error: StoreError) -> WriteAnswer:
    """The answer of a write or a removal."""
    status = WriteStatus.REJECTED if isinstance(error, StoreRejected) else WriteStatus.UNKNOWN
    return WriteAnswer(status=status, error=error)


def no_answer(error: StoreError) -> int:
    """Of a count: there is none.

    Raises:
        StoreError: always.
    """
    raise error
