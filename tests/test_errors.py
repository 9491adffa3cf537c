"""Errors: one clear line, fields to act on, and a place in the hierarchy that says who is at fault."""

from __future__ import annotations

import copy
import pickle

import pytest

import trio_repair
from trio_repair import (
    CheckIncomplete,
    CircuitOpen,
    DuplicateJob,
    EngineClosed,
    InvalidDocumentId,
    InvalidValue,
    MassChangeRefused,
    StoreError,
    StoreFileError,
    StoreMisbehaved,
    StoreRejected,
    StoreUnavailable,
    TrioRepairError,
)

EXAMPLES = [
    InvalidValue("timeout", "must be more than 0"),
    InvalidDocumentId("doc_id", "is empty"),
    EngineClosed("the engine takes no more jobs; open a new one"),
    DuplicateJob("job-1"),
    StoreError("text", "went away"),
    StoreUnavailable("text", "went away", "doc"),
    CircuitOpen("text", "is unreachable", "doc"),
    StoreRejected("vector", "too large", "doc"),
    StoreFileError("cache", "not a database"),
    StoreMisbehaved("text", "answered 1 of 2 documents", "doc"),
    MassChangeRefused("too many", documents=10, changes=9, deletes=8),
    CheckIncomplete("could not read", stores=["text"]),
]


def test_there_is_an_example_of_every_error():
    """A new error without a test would show up."""
    named = {
        value for value in vars(trio_repair).values() if isinstance(value, type) and issubclass(value, TrioRepairError)
    }
    assert named == {type(error) for error in EXAMPLES} | {TrioRepairError}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_is_one_line(error: TrioRepairError):
    """So that it fits into a log line and a table."""
    assert str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_travel(error: TrioRepairError):
    """Copied and pickled they are the same: type, words and fields. A worker process hands them to its parent."""
    for same in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(error), str(error), vars(error)) == (type(same), str(same), vars(same))


def test_store_errors_name_store_and_document():
    """The document only where the error concerns one."""
    assert "text store: went away" == str(StoreError("text", "went away"))
    assert 'text store, document "it\'s": too large' == str(StoreRejected("text", "too large", "it's"))


def test_who_is_at_fault():
    """The caller's mistakes are ValueErrors; an open circuit is unavailability; a rejection is not."""
    assert issubclass(InvalidValue, ValueError)
    assert issubclass(CircuitOpen, StoreUnavailable)
    assert not issubclass(StoreRejected, StoreUnavailable)
    assert not issubclass(StoreError, ValueError)


def test_the_fields():
    """What a program needs to act is not only in the message."""
    assert "job-1" == DuplicateJob("job-1").job_id
    assert ("text",) == CheckIncomplete("x", stores=["text"]).stores
    refused = MassChangeRefused("x", documents=10, changes=9, deletes=8)
    assert (10, 9, 8) == (refused.documents, refused.changes, refused.deletes)
