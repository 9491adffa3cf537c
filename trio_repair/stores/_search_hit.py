"""What a text store's search answers with, whatever finds it."""

from __future__ import annotations

import attrs


@attrs.frozen
class SearchHit:
    """A document that a full-text search found."""

    doc_id: str
    score: float
    """How well it fits, by BM25, or by PostgreSQL's ts_rank_cd; greater is better. Comparable within one search."""
    snippet: str = attrs.field(repr=False)
    """The passage that fits best, the found words in [brackets]."""
