"""Documents held in every way, and the acts that a fence must refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from trio_repair import Document, Observation, Removal, Write, WriteAnswer

from ._subject import Subject


@attrs.frozen
class Held:
    """A document as it was brought about: what is held now (None: nothing), and the tokens it had before."""

    document: Document | None
    past: tuple[str, ...]


async def hold_every_presence(subject: Subject, name: str) -> dict[str, Held]:
    """By id: documents that are live, live without a number, deleted, and absent, each after a past of its own."""

    def live(doc_id: str, text: str, number: int | None) -> Document:
        return subject.document(doc_id, text, number=number)

    ways: dict[str, tuple[Document | None, ...]] = {
        doc_id: way(doc_id)
        for doc_id, way in (
            (f"{name}, live", lambda one: (live(one, "old", 1), live(one, "held", 2))),
            (f"{name}, live without a number", lambda one: (live(one, "old", None), live(one, "held", None))),
            (f"{name}, tombstone", lambda one: (live(one, "old", 1), Document.tombstone(one, number=2))),
            (
                f"{name}, tombstone without a number",
                lambda one: (live(one, "old", 1), Document.tombstone(one, number=None)),
            ),
            (f"{name}, absent", lambda one: (live(one, "old", 1), None)),
            (f"{name}, never there", lambda _one: ()),
        )
    }
    held: dict[str, Held] = {}
    for doc_id, steps in ways.items():
        past = [(await subject.look(doc_id)).token]
        for step in steps:
            landed = await subject.take_away(doc_id) if step is None else (await subject.put(step))[0]
            past.append(landed.token)
        last = steps[-1] if steps else None
        forgotten = last is not None and last.version.deleted and not subject.traits.keeps_tombstones
        held[doc_id] = Held(None if forgotten else last, tuple(past))
    return held


async def stale_tokens(subject: Subject, held: Held, now: Observation) -> list[str]:
    """Tokens that do not hold for a document: its own past, those of others, and such as never were."""
    (other,) = await subject.put(subject.document("another", "text"))
    nothing = await subject.look("nothing there")
    candidates = (*held.past, other.token, nothing.token, "no such token", "")
    return [token for token in dict.fromkeys(candidates) if token != now.token]


_HIGHEST: Final = 2**53 - 1
"""No number is a reason to pass the fence, however far it is above the one held."""

ACTS: Final = ("write", "write without a number", "delete", "delete without a number", "removal")


def outcome_of(subject: Subject, act: str, doc_id: str) -> Document | None:
    """What is held after an act; None: nothing."""
    match act:
        case "write":
            return subject.document(doc_id, "meant", number=_HIGHEST)
        case "write without a number":
            return subject.document(doc_id, "meant", number=None)
        case "delete":
            return Document.tombstone(doc_id, number=_HIGHEST)
        case "delete without a number":
            return Document.tombstone(doc_id, number=None)
        case _:
            return None


async def attempt(subject: Subject, act: str, tokens: Mapping[str, str]) -> list[WriteAnswer]:
    """Do one act to several documents in one call."""
    documents = [document for doc_id in tokens if (document := outcome_of(subject, act, doc_id)) is not None]
    if not documents:
        return await subject.remove(*(Removal(doc_id=doc_id, token=token) for doc_id, token in tokens.items()))
    prepared = await subject.prepare(*documents)
    writes = [Write(prepared=one, token=token) for one, token in zip(prepared, tokens.values(), strict=True)]
    return await subject.write(*writes)
