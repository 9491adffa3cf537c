"""Whether rows of somebody else's table are what was written there: triggers, rules and types have their say too."""

from __future__ import annotations

from collections.abc import Sequence

from trio_repair import Document, Observation

from ._postgres import Session
from ._postgres_layout import View
from ._postgres_writing import RowRefused


def prove_gone(session: Session, view: View, doc_ids: Sequence[str]) -> None:
    """See that documents whose rows were deleted are gone.

    Raises:
        RowRefused: one is not.
    """
    if view.rows(session, doc_ids):
        raise RowRefused("its rows are still there after they were deleted; does a trigger or a rule keep them?")


def difference(seen: Observation, document: Document, *, numbered: bool) -> str | None:
    """In what a row that was just written is not the document; None if in nothing."""
    version, held = document.version, seen.version
    if held is None:
        return "its row is none of those that table.where names; give new rows their values by table.insert"
    if held.deleted != version.deleted:
        return "its row reads back as " + ("deleted" if held.deleted else "not deleted") + "; does a trigger set that?"
    if numbered and held.number != version.number:
        return (
            f"its row reads back with the number {held.number}, not {version.number}; does a trigger or a type set it?"
        )
    if held.digest != version.digest or not seen.intact:
        return "its row reads back with other content; does a trigger, or a column's type, change it?"
    return None
