"""What a vector store's search answers with, whatever finds it."""

from __future__ import annotations

import attrs


@attrs.frozen
class NearestHit:
    """A document near a query, by its nearest chunk."""

    doc_id: str
    start: int
    """Where the chunk starts in the document's text, in characters."""
    text: str = attrs.field(repr=False)
    """The chunk."""
    distance: float
    """Euclidean; for vectors of length 1, the square root of 2 - 2 * cosine."""
