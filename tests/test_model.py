"""Values: what is accepted, what is refused and in which words, and what two of them being equal means."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import pickle

import attrs
import pytest
from engine_world import job
from hypothesis import given
from hypothesis import strategies as st

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    DocumentVersion,
    Fence,
    InvalidDocumentId,
    InvalidValue,
    Observation,
    Presence,
    ReceiptStep,
    RepairJob,
    RepairOutcome,
    RepairPriority,
    RepairResult,
    RepairTrigger,
    StepState,
    StoreTraits,
    SyncStrategy,
)
from trio_repair._model import MAX_DOC_ID_BYTES, MAX_VERSION_NUMBER, check_doc_id, check_seconds

NAIVE = dt.datetime(2030, 1, 1)  # noqa: DTZ001 - naive on purpose


@pytest.mark.parametrize(
    ("doc_id", "problem"),
    [
        ("", "is empty"),
        ("a\0b", "NUL"),
        ("\ud800", "lone surrogate"),
        ("k" * 2049, "is 2049 bytes"),
        ("é" * 1025, "is 2050 bytes"),
        (b"bytes", "must be a str, not bytes"),
        (None, "not NoneType"),
    ],
)
def test_i18_bad_document_ids_are_refused_everywhere(doc_id, problem: str):
    """The check, the job and the document refuse them in the same words, and quote nothing of them."""
    for make in (
        lambda: check_doc_id(doc_id),
        lambda: job(doc_id),
        lambda: Document.tombstone(doc_id, number=1),
    ):
        with pytest.raises(InvalidDocumentId, match=problem) as caught:
            make()
        assert "doc_id" == caught.value.field


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=300))
def test_i18_every_other_id_is_accepted_as_it_is(doc_id: str):
    """Quotes, paths, newlines, anything of 1 to 2,048 bytes: neither changed nor normalised."""
    assert doc_id == check_doc_id(doc_id) == job(doc_id).doc_id


def test_the_longest_id():
    """Exactly 2,048 bytes are accepted."""
    assert MAX_DOC_ID_BYTES == len(check_doc_id("é" * 1024).encode())


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        -1,
        -0.001,
        "3",
        None,
        True,
        10**400,
        -(10**400),
        pytest.param(10**5000, id="long"),
        pytest.param(-(10**5000), id="-long"),
    ],
)
def test_durations_that_make_no_sense_are_refused(value):
    """NaN, infinite, negative, not a number: refused by name."""
    with pytest.raises(InvalidValue, match=r"^grace: must be"):
        check_seconds("grace", value, positive=False)


def test_zero_seconds():
    """Zero is refused where a duration must be positive, and kept where it need not be."""
    with pytest.raises(InvalidValue, match="more than 0 seconds"):
        check_seconds("timeout", 0)
    assert 0.0 == check_seconds("grace", 0, positive=False)
    assert isinstance(check_seconds("timeout", 3), float)


@pytest.mark.parametrize(
    ("given_", "problem"),
    [
        ({"strategy": "text"}, "strategy: must be one of SyncStrategy"),
        ({"priority": 1}, "priority: must be one of RepairPriority"),
        ({"trigger": None}, "trigger: must be one of RepairTrigger"),
        ({"timeout": 0}, "timeout: must be more than 0"),
        ({"timeout": float("nan")}, "timeout: must be a finite number"),
        ({"timeout": float("inf")}, "timeout: must be a finite number"),
        ({"timeout": -1}, "timeout: must be more than 0"),
        ({"max_retries": -1}, "max_retries: must be an int of at least 0"),
        ({"retry_count": 1.0}, "retry_count: must be an int of at least 0"),
        ({"retry_count": True}, "retry_count: must be an int"),
        ({"id": ""}, "id: must be a str that is not empty"),
        ({"id": 7}, "id: must be a str"),
        ({"id": "x" * 2049}, "id: is 2049 bytes of UTF-8; at most 2048 are allowed"),
        ({"id": "é" * 1025}, "id: is 2050 bytes of UTF-8; at most 2048 are allowed"),
        ({"id": "a\ud800"}, "id: holds a lone surrogate"),
        ({"timeout": 10**400}, "timeout: must be a finite number of seconds, not 1000"),
        ({"timeout": 10**5000}, "timeout: must be a finite number of seconds, not an int that is too long to be shown"),
        ({"max_retries": -(10**5000)}, "max_retries: must be an int of at least 0, not an int that is too long"),
        ({"retry_count": "x" * 10**6}, "retry_count: must be an int of at least 0, not 'xxx"),
        ({"deadline": NAIVE}, "deadline: must be a timezone-aware datetime"),
        ({"created_at": NAIVE}, "created_at: must be a timezone-aware datetime"),
        ({"deadline": 3.0}, "deadline: must be a timezone-aware datetime"),
    ],
)
def test_jobs_that_make_no_sense_are_refused(given_, problem: str):
    """Each field, in one line that names it."""
    with pytest.raises(InvalidValue, match=problem) as caught:
        job(**given_)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_longest_job_id():
    """Exactly 2,048 bytes are accepted, of one-byte characters and of longer ones."""
    for job_id in ("x" * 2048, "é" * 1024):
        assert job_id == job(id=job_id).id


def test_a_job_has_an_id_of_its_own_and_the_documented_defaults():
    """Two jobs never share an id; they carry no content."""
    first, second = (RepairJob(doc_id="d", strategy=SyncStrategy.MOST_RECENT) for _ in range(2))
    assert first.id != second.id
    assert (RepairPriority.MEDIUM, RepairTrigger.MANUAL, None, None, 0, 3) == (
        first.priority,
        first.trigger,
        first.deadline,
        first.timeout,
        first.retry_count,
        first.max_retries,
    )
    assert dt.timedelta(0) == first.created_at.utcoffset()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        first.doc_id = "e"


@pytest.mark.parametrize("number", [-1, 2**53, 1.0, "1", True])
def test_version_numbers_stay_exact_in_a_double(number):
    """Only None and 0 <= n < 2**53."""
    with pytest.raises(InvalidValue, match="number: must be None or an int"):
        DocumentVersion(number=number)
    assert MAX_VERSION_NUMBER == DocumentVersion(number=2**53 - 1).number == int(float(2**53 - 1))


def test_a_versions_time_is_for_people():
    """Two versions that differ in updated_at alone are the same."""
    now = dt.datetime.now(dt.timezone.utc)
    assert DocumentVersion(number=1, digest="a") == DocumentVersion(number=1, digest="a", updated_at=now)
    assert DocumentVersion(number=1, digest="a") != DocumentVersion(number=1, digest="b")
    assert DocumentVersion(number=1) != DocumentVersion(number=1, deleted=True)
    with pytest.raises(InvalidValue, match="updated_at"):
        DocumentVersion(updated_at=NAIVE)


def test_the_digest_of_a_text():
    """SHA-256 of its UTF-8, which every database can compute."""
    assert hashlib.sha256("Grüße".encode()).hexdigest() == ContentDefinition().digest("Grüße", {"ignored": 1})


def test_the_digest_of_a_text_and_named_metadata():
    """Canonical JSON: order of keys and of construction do not matter, a missing key is not null."""
    definition = ContentDefinition(metadata_keys=("b", "a", "b"))
    assert ("a", "b") == definition.metadata_keys
    expected = json.dumps(["t", {"a": "é", "b": [1]}], separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(expected.encode()).hexdigest() == definition.digest("t", {"b": [1], "c": 0, "a": "é"})
    assert definition.digest("t", {"a": None}) != definition.digest("t", {})


@pytest.mark.parametrize(
    ("keys", "text", "metadata"),
    [
        ((), "\ud800", {}),
        (("a",), "t", {"a": float("nan")}),
        (("a",), "t", {"a": object()}),
        (("a",), "t", {"a": "\ud800"}),
    ],
)
def test_content_without_a_canonical_form_is_refused_without_quoting_it(keys, text: str, metadata):
    """The error names the reason's type and none of the content."""
    with pytest.raises(InvalidValue, match="no canonical form") as caught:
        ContentDefinition(metadata_keys=keys).digest(text, metadata)
    assert caught.value.__cause__ is None


def test_a_document_and_a_tombstone():
    """A document has a text, be it empty; a tombstone has none; neither shows its content in repr."""
    version = DocumentVersion(number=1, digest="x")
    document = Document(doc_id="d", text="", version=version)
    assert "" == document.text
    assert Document.tombstone("d", number=None).version.deleted
    secret = Document(doc_id="d", text="MARKER", metadata={"k": "MARKER"}, version=version)
    assert "MARKER" not in repr(secret)
    for text, deleted in ((None, False), ("t", True)):
        with pytest.raises(InvalidValue, match="a tombstone has no text"):
            Document(doc_id="d", text=text, version=DocumentVersion(deleted=deleted))


def test_a_documents_metadata_cannot_be_changed_behind_its_back():
    """A copy is taken, and it is read-only."""
    metadata = {"a": 1}
    document = Document(doc_id="d", text="", metadata=metadata, version=DocumentVersion())
    metadata["a"] = 2
    assert {"a": 1} == document.metadata
    with pytest.raises(TypeError):
        document.metadata["a"] = 3


def test_success_is_derived_from_the_outcome():
    """Only REPAIRED and ALREADY_CONSISTENT are success."""
    good = {outcome for outcome in RepairOutcome if RepairResult(doc_id="d", job_id="j", outcome=outcome).success}
    assert {RepairOutcome.REPAIRED, RepairOutcome.ALREADY_CONSISTENT} == good


def test_the_step_of_a_store():
    """By name; a store that the engine lacks is a KeyError."""
    step = ReceiptStep(store="text", state=StepState.UNTOUCHED)
    result = RepairResult(doc_id="d", job_id="j", outcome=RepairOutcome.FAILED, receipt=(step,))
    assert step is result.step("text")
    with pytest.raises(KeyError, match="cache"):
        result.step("cache")


def test_an_observation_has_a_version_if_and_only_if_something_is_there():
    """Absence has none, presence has one."""
    for presence, version in ((Presence.ABSENT, DocumentVersion()), (Presence.LIVE, None)):
        with pytest.raises(InvalidValue, match="if and only if"):
            Observation(presence=presence, token="t", version=version)


@pytest.mark.parametrize("name", ["max_calls", "max_batch"])
def test_traits_that_make_no_sense_are_refused(name: str):
    """No store serves less than one call, or calls of less than one document."""
    with pytest.raises(InvalidValue, match=f"{name}: must be at least 1"):
        StoreTraits(fence=Fence.STRONG, holds_text=True, keeps_tombstones=True, absent=AbsentMeans.MISSING, **{name: 0})


def test_values_travel():
    """Results and what they hold survive pickling, so that they can be handed to another process."""
    result = RepairResult(
        doc_id="d",
        job_id="j",
        outcome=RepairOutcome.REPAIRED,
        version=DocumentVersion(number=1, digest="x"),
        receipt=(ReceiptStep(store="text", state=StepState.VERIFIED),),
    )
    assert result == pickle.loads(pickle.dumps(result))
    assert job(id="x", created_at=dt.datetime(2030, 1, 1, tzinfo=dt.timezone.utc)) == pickle.loads(
        pickle.dumps(job(id="x", created_at=dt.datetime(2030, 1, 1, tzinfo=dt.timezone.utc)))
    )


def test_ids_of_jobs_are_distinct_in_parent_and_child():
    """A process that is forked names its jobs anew, though ids are drawn many at a time."""
    made = [job().id for _ in range(1_000)]
    assert len(set(made)) == len(made)
    assert {32} == set(map(len, made))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, "".join(job().id for _ in range(600)).encode())
        os._exit(0)
    assert (child, 0) == os.waitpid(child, 0)
    drawn = os.read(reading, 600 * 32).decode()
    os.close(reading)
    os.close(writing)
    theirs = {drawn[start : start + 32] for start in range(0, len(drawn), 32)}
    ours = {job().id for _ in range(600)}
    assert (600, 600, set()) == (len(theirs), len(ours), theirs & ours)
