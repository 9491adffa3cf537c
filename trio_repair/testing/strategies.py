"""Hypothesis strategies for documents, jobs, faults and plans of faults, interleavings, and what stores hold.

They need Hypothesis, unlike their siblings.

Run Trio inside a `@given` test by ``trio.run(..., clock=MockClock(autojump_threshold=0))`` in a function that is not
async, and draw `hypothesis.strategies.random_module()`, or every example replays one and the same interleaving.
"""

from __future__ import annotations

from ._strategies_contents import arbitrary_documents, consistent_documents, damaged_documents, store_contents
from ._strategies_plans import fault_plans, interleavings
from ._strategies_values import (
    doc_ids,
    documents,
    faults,
    hostile_doc_ids,
    invalid_doc_ids,
    jobs,
    metadata,
    texts,
    tombstones,
    version_numbers,
    versions,
)

__all__ = [
    "arbitrary_documents",
    "consistent_documents",
    "damaged_documents",
    "doc_ids",
    "documents",
    "fault_plans",
    "faults",
    "hostile_doc_ids",
    "interleavings",
    "invalid_doc_ids",
    "jobs",
    "metadata",
    "store_contents",
    "texts",
    "tombstones",
    "version_numbers",
    "versions",
]
