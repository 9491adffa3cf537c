"""Values that are made without their checks are the same values."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import attrs
import pytest

from trio_repair import (
    Document,
    DocumentVersion,
    EmbeddingIdentity,
    InvalidValue,
    Observation,
    Prepared,
    Presence,
    ReceiptStep,
    RepairOutcome,
    RepairResult,
    StepState,
    StoredDocument,
    SyncStrategy,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair._model import new_receipt_step, new_result, new_version
from trio_repair._plan import CacheStep, PlanAction, PlannedWrite, RepairPlan, new_plan, new_planned_write
from trio_repair._unchecked import unchecked
from trio_repair._views import new_observation, new_prepared, new_stored_document, new_write, new_write_answer

VERSION = DocumentVersion(number=3, digest="d" * 64)
DOCUMENT = Document(doc_id="a", text="text", version=VERSION)
PREPARED = Prepared(document=DOCUMENT, payload="{}")
VIEW = Observation(
    presence=Presence.LIVE,
    token="1.1",
    version=VERSION,
    intact=False,
    embedding=EmbeddingIdentity(model="m", dimension=2, chunking="c"),
)
STEP = ReceiptStep(
    store="text",
    state=StepState.APPLIED,
    before=None,
    after=VERSION,
    token="t",
    fence="weak",
    detail="why",
)
CHECKED: list[tuple[Callable[..., object], Any]] = [
    (new_version, VERSION),
    (new_observation, VIEW),
    (new_stored_document, StoredDocument(document=DOCUMENT, token="t")),
    (new_prepared, PREPARED),
    (new_write, Write(prepared=PREPARED, token="t")),
    (new_write_answer, WriteAnswer(status=WriteStatus.LANDED, observation=VIEW)),
    (new_receipt_step, STEP),
    (
        new_result,
        RepairResult(
            doc_id="a",
            job_id="j",
            outcome=RepairOutcome.FAILED,
            updated_systems=("vector",),
            error="why",
            warnings=("w",),
            source="text",
            version=VERSION,
            receipt=(STEP,),
            attempts=2,
            queued_seconds=0.5,
            running_seconds=1.5,
        ),
    ),
    (new_planned_write, PlannedWrite(store="text", token="t")),
    (
        new_plan,
        RepairPlan(
            doc_id="a",
            strategy=SyncStrategy.MOST_RECENT,
            action=PlanAction.COPY,
            version=VERSION,
            sources=("text",),
            writes=(PlannedWrite(store="vector", token="t"),),
            cache_step=CacheStep.REFRESH,
            tokens={"text": "t"},
            reason=None,
            settle_first=True,
        ),
    ),
]


@pytest.mark.parametrize(("make", "checked"), CHECKED, ids=[type(checked).__name__ for _, checked in CHECKED])
def test_an_unchecked_value_is_equal_to_the_checked_one(make: Callable[..., object], checked: Any) -> None:
    """Field by field, as a whole, in words, copied and pickled; and as frozen."""
    fields = [getattr(checked, field.name) for field in attrs.fields(type(checked))]
    made = make(*fields)
    assert type(made) is type(checked)
    assert fields == [getattr(made, field.name) for field in attrs.fields(type(checked))]
    assert (made, repr(made), copy.copy(made), attrs.evolve(made)) == (checked, repr(checked), checked, checked)  # type: ignore[misc]
    if not any(isinstance(value, MappingProxyType) for value in fields) and "Document(" not in repr(checked):
        assert pickle.loads(pickle.dumps(made)) == checked
        assert hash(made) == hash(checked)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(made, attrs.fields(type(checked))[0].name, None)


def test_control_nothing_is_checked() -> None:
    """A value that its class refuses is made all the same: whoever makes it answers for it."""
    with pytest.raises(InvalidValue):
        DocumentVersion(number=-1)
    assert new_version(-1, "", False, None).number == -1  # noqa: FBT003 - by position, as it is


def test_as_many_values_as_fields() -> None:
    """One too few is an error, and not a value with a hole."""
    with pytest.raises(TypeError):
        unchecked(Observation)(Presence.ABSENT, "t")
