"""What a store's error means for the attempt that met it."""

from __future__ import annotations

import pytest

from trio_repair import CircuitOpen, RepairOutcome, StoreMisbehaved, StoreRejected, StoreUnavailable
from trio_repair._verdict import Ended, Moved, Verdict, store_failure, worst


@pytest.mark.parametrize(
    ("kind", "transient"),
    [(StoreUnavailable, True), (CircuitOpen, False), (StoreRejected, False), (StoreMisbehaved, False)],
)
def test_only_a_store_that_may_come_back_is_tried_again(kind, transient):
    """Neither a refusal nor a broken contract passes by itself, and a store that stayed away had its chance."""
    verdict = store_failure(kind("vector", "no answer", "d"))
    assert Verdict(RepairOutcome.FAILED, "vector store, document 'd': no answer", transient=transient) == verdict


def test_what_was_tried_is_named_instead_of_the_store():
    """With a prefix the message says what was tried, and then what happened, once."""
    verdict = store_failure(StoreRejected("vector", "too long", "d"), "Vector store update failed")
    assert "Vector store update failed: too long" == verdict.error


def test_several_failures_are_one_and_final_if_any_is():
    """Every message is kept, in order; a failure that may pass does not hide one that will not."""
    passing = Verdict(RepairOutcome.FAILED, "one", transient=True)
    final = Verdict(RepairOutcome.FAILED, "two")
    assert Verdict(RepairOutcome.FAILED, "one; two") == worst([passing, final])
    assert Verdict(RepairOutcome.FAILED, "one; one", transient=True) == worst([passing, passing])


def test_what_ends_an_attempt_says_why():
    """Raised where nobody should let them pass, they still name the store, or the verdict."""
    verdict = Verdict(RepairOutcome.FAILED, "gone")
    assert ("vector", "vector") == (str(Moved("vector")), Moved("vector").store)
    assert (str(verdict), verdict) == (str(Ended(verdict)), Ended(verdict).verdict)
