"""Documents for which a store did not answer, and what company they may keep from then on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias, TypeVar

from ._requests import Operation

Question: TypeAlias = tuple[Operation, str]
"""What was asked of which document. A store may answer looks, and hang on writes."""

_V = TypeVar("_V", int, float)

MAX_REMEMBERED: Final = 4096
"""Of so many documents, the last ones, it is remembered that their call failed as a whole."""


class Suspects:
    """What is known of documents whose last call failed as a whole.

    A call that fails is not known to fail because of one document. So its documents travel in smaller company until
    the store has answered for them; those of a call that hung travel alone. One that hangs alone as well, while the
    store answers for others, is guilty: the store is not asked about it again for a while.

    Invariant: it names at most `MAX_REMEMBERED` documents of each kind, the last ones.
    """

    def __init__(self) -> None:
        self.any = False
        """False while nobody is suspected: then nothing else needs to be asked."""
        self._company: dict[Question, int] = {}
        self._hung: dict[Question, float] = {}
        """Until when the store is not asked: in the past for one that is only suspected."""

    def failed(self, questions: Iterable[Question], company: int) -> None:
        """A call for these failed; from now on they travel in calls of at most `company`."""
        for question in questions:
            _put(self._company, question, company)
            self.any = True

    def hung(self, questions: Iterable[Question]) -> None:
        """A call for these was given up; from now on they travel alone."""
        for question in questions:
            self._company.pop(question, None)
            _put(self._hung, question, self._hung.get(question, 0.0))
            self.any = True

    def answered(self, question: Question) -> None:
        """The store has answered for this one."""
        self._company.pop(question, None)
        self._hung.pop(question, None)
        self.any = bool(self._company) or bool(self._hung)

    def convict(self, question: Question, until: float) -> None:
        """It hung alone: do not ask about it before `until` on the Trio clock."""
        _put(self._hung, question, until)
        self.any = True

    def may_hang(self, question: Question) -> bool:
        """True if the last call for it was given up."""
        return question in self._hung

    def is_guilty(self, question: Question, now: float) -> bool:
        """True if the store is not to be asked about it now."""
        return self._hung.get(question, 0.0) > now

    def company(self, question: Question, limit: int) -> int:
        """How many documents may travel together with this one, itself included."""
        return 1 if question in self._hung else min(limit, self._company.get(question, limit))


def _put(remembered: dict[Question, _V], question: Question, value: _V) -> None:
    remembered.pop(question, None)
    remembered[question] = value
    while len(remembered) > MAX_REMEMBERED:
        del remembered[next(iter(remembered))]
