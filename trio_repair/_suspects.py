"""Documents for which a store did not answer, and what company they may keep from then on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

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
        self._company: dict[str, int] = {}
        self._hung: dict[str, float] = {}
        """Until when the store is not asked: in the past for one that is only suspected."""

    def failed(self, doc_ids: Iterable[str], company: int) -> None:
        """A call for these failed; from now on they travel in calls of at most `company`."""
        for doc_id in doc_ids:
            _put(self._company, doc_id, company)
            self.any = True

    def hung(self, doc_ids: Iterable[str]) -> None:
        """A call for these was given up; from now on they travel alone."""
        for doc_id in doc_ids:
            self._company.pop(doc_id, None)
            _put(self._hung, doc_id, self._hung.get(doc_id, 0.0))
            self.any = True

    def answered(self, doc_id: str) -> None:
        """The store has answered for this one."""
        self._company.pop(doc_id, None)
        self._hung.pop(doc_id, None)
        self.any = bool(self._company) or bool(self._hung)

    def convict(self, doc_id: str, until: float) -> None:
        """It hung alone: do not ask about it before `until` on the Trio clock."""
        _put(self._hung, doc_id, until)
        self.any = True

    def may_hang(self, doc_id: str) -> bool:
        """True if the last call for it was given up."""
        return doc_id in self._hung

    def is_guilty(self, doc_id: str, now: float) -> bool:
        """True if the store is not to be asked about it now."""
        return self._hung.get(doc_id, 0.0) > now

    def company(self, doc_id: str, limit: int) -> int:
        """How many documents may travel together with this one, itself included."""
        return 1 if doc_id in self._hung else min(limit, self._company.get(doc_id, limit))


def _put(remembered: dict[str, float] | dict[str, int], doc_id: str, value: float) -> None:
    remembered.pop(doc_id, None)
    remembered[doc_id] = value  # type: ignore[assignment]
    while len(remembered) > MAX_REMEMBERED:
        del remembered[next(iter(remembered))]
