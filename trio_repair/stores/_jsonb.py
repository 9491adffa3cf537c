"""What PostgreSQL's jsonb makes of JSON: it keeps values, and not how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from trio_repair import ContentDefinition, Document, StoreRejected


def holds_nul(value: object) -> bool:
    """Whether a string in it, or a key, holds NUL, which jsonb refuses."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, Mapping):
        return any(holds_nul(key) or holds_nul(held) for key, held in value.items())
    return isinstance(value, (list, tuple)) and any(map(holds_nul, value))


def as_read_back(value: Any) -> Any:
    """A JSON value as Python reads it after jsonb has held it.

    Its numbers are decimal, without an exponent: 1e16 comes back as the integer 10000000000000000, and -0.0 as 0.0.
    """
    if isinstance(value, float):
        written = format(Decimal(repr(value)), "f")
        return abs(float(written)) if value == 0 else float(written) if "." in written else int(written)
    if isinstance(value, Mapping):
        return {key: as_read_back(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_read_back(held) for held in value]
    return value


def check_jsonb(store: str, content: ContentDefinition, document: Document) -> StoreRejected | None:
    """Why the metadata of a document cannot be held as jsonb; None if it can."""
    if holds_nul(document.metadata):
        return StoreRejected(store, "its metadata holds NUL, which PostgreSQL cannot store", document.doc_id)
    if document.text is None or not content.metadata_keys:
        return None
    if content.digest(document.text, as_read_back(document.metadata)) != document.version.digest:
        problem = "its metadata holds a number that jsonb does not give back as it was, such as 1e16 or -0.0"
        return StoreRejected(store, problem, document.doc_id)
    return None
