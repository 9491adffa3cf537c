"""Documents, jobs and results: plain values that every layer shares.

Values are frozen and keyword-only. Wall time is timezone-aware UTC; durations are float seconds.
"""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

from ._enums import plain_members
from ._errors import InvalidDocumentId, InvalidValue
from ._job_ids import new_job_id
from ._unchecked import unchecked

MAX_DOC_ID_BYTES: Final = 2048
"""A document id is 1 to this many bytes of UTF-8."""

MAX_JOB_ID_BYTES: Final = 2048
"""So is the id of a job."""

MAX_VERSION_NUMBER: Final = 2**53 - 1
"""Version numbers stay exact in an IEEE double, which Redis scripts and JSON readers use."""


@plain_members
class SyncStrategy(enum.Enum):
    """Which copy a repair believes."""

    # Looked up for every job; Enum's own hash is a Python function.
    __hash__ = object.__hash__

    TEXT_SOURCE_OF_TRUTH = "text"
    VECTOR_SOURCE_OF_TRUTH = "vector"
    MOST_RECENT = "most-recent"
    MANUAL_RESOLUTION = "manual"


@plain_members
class RepairPriority(enum.IntEnum):
    """How urgent a job is; a smaller rank starts sooner. Waiting jobs age, so that none starves."""

    CRITICAL = 0
    HIGH = 1
    MEDIUM = 2
    LOW = 3


@plain_members
class RepairTrigger(enum.Enum):
    """Why a job was made. It is carried into events and results and decides nothing."""

    SCHEDULED = "scheduled"
    CONSISTENCY_CHECK = "consistency-check"
    SEARCH_FAILURE = "search-failure"
    CACHE_MISS = "cache-miss"
    MANUAL = "manual"
    HEALTH_CHECK = "health-check"


@plain_members
class RepairOutcome(enum.Enum):
    """How a job ended. Every accepted job ends in exactly one of these."""

    # Looked up for every job; Enum's own hash is a Python function.
    __hash__ = object.__hash__

    REPAIRED = "repaired"
    ALREADY_CONSISTENT = "already-consistent"
    NEEDS_MANUAL = "needs-manual"
    TIMED_OUT = "timed-out"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def success(self) -> bool:
        """True if the critical stores were read back equal to the decision."""
        return self is RepairOutcome.REPAIRED or self is RepairOutcome.ALREADY_CONSISTENT


@plain_members
class StepState(enum.Enum):
    """What is known about one store at the end of a repair."""

    CONSISTENT = "consistent"
    """Nothing to do, or no longer: seen equal to the decision, and no write of this job is known to have landed. If one
    was sent, and somebody else has written since, nobody can tell what became of it; then `detail` says so."""
    VERIFIED = "verified"
    """Written, and read back equal to the decision."""
    APPLIED = "applied"
    """A write landed; it was not read back."""
    INVALIDATED = "invalidated"
    """The cache entry was removed."""
    REFUSED = "refused"
    """The fence refused the write: the store had changed since it was looked at."""
    FAILED = "failed"
    """The store said that nothing was written, or could not be asked."""
    UNKNOWN = "unknown"
    """A write was sent and no verdict came."""
    UNTOUCHED = "untouched"
    """No write was ever sent."""


@plain_members
class RepairPhase(enum.Enum):
    """Where a running repair is."""

    OBSERVE = "observe"
    READ = "read"
    PREPARE = "prepare"
    WRITE = "write"
    VERIFY = "verify"
    CACHE = "cache"


_LONGEST_QUOTED: Final = 60


def quoted(value: object) -> str:
    """A value as an error can quote it: in little space, and without failing over it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return f"an {type(value).__name__} that is too long to be shown"
    return text if len(text) <= _LONGEST_QUOTED else f"{text[: _LONGEST_QUOTED - 1]}…"


def check_doc_id(doc_id: object) -> str:
    """Return `doc_id` if it is a usable document id.

    Raises:
        InvalidDocumentId: it is not a str of 1 to 2,048 bytes of UTF-8 without NUL.
    """
    if not isinstance(doc_id, str):
        raise InvalidDocumentId("doc_id", f"must be a str, not {type(doc_id).__name__}")
    if not doc_id:
        raise InvalidDocumentId("doc_id", "is empty; give 1 to 2048 bytes of UTF-8")
    if "\0" in doc_id:
        raise InvalidDocumentId("doc_id", "holds a NUL character; remove it")
    try:
        size = len(doc_id.encode())
    except UnicodeEncodeError:
        raise InvalidDocumentId("doc_id", "holds a lone surrogate and is not valid UTF-8") from None
    if size > MAX_DOC_ID_BYTES:
        raise InvalidDocumentId("doc_id", f"is {size} bytes of UTF-8; at most {MAX_DOC_ID_BYTES} are allowed")
    return doc_id


def check_seconds(field: str, value: object, *, positive: bool = True) -> float:
    """Return `value` as float seconds.

    Raises:
        InvalidValue: it is not a number, not finite as a float, or negative, or (with `positive`) zero.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValue(field, f"must be a number of seconds, not {type(value).__name__}")
    try:
        seconds = float(value)
    except OverflowError:  # an integer may be larger than every float
        seconds = math.inf
    if not math.isfinite(seconds):
        raise InvalidValue(field, f"must be a finite number of seconds, not {quoted(value)}")
    if seconds < 0 or (positive and seconds == 0):
        bound = "more than" if positive else "at least"
        raise InvalidValue(field, f"must be {bound} 0 seconds, not {quoted(value)}")
    return seconds


def _valid_doc_id(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    check_doc_id(value)


def _valid_number(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_VERSION_NUMBER:
        raise InvalidValue("number", f"must be None or an int from 0 to 2**53 - 1, not {quoted(value)}")


def _valid_aware(_instance: object, attribute: attrs.Attribute[Any], value: dt.datetime | None) -> None:
    if value is not None and (not isinstance(value, dt.datetime) or value.tzinfo is None):
        raise InvalidValue(attribute.name, "must be a timezone-aware datetime; use datetime.now(timezone.utc)")


def _valid_enum(kind: type[enum.Enum]) -> Any:
    def validate(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            names = ", ".join(member.name for member in kind)
            raise InvalidValue(attribute.name, f"must be one of {kind.__name__}.{{{names}}}, not {quoted(value)}")

    return validate


@attrs.frozen(kw_only=True)
class DocumentVersion:
    """Which content a store holds, in a form that can be compared across stores.

    Two versions are the same if `number`, `digest` and `deleted` are equal; `updated_at` is for people.
    """

    number: int | None = attrs.field(default=None, validator=_valid_number)
    """Orders versions of one document; None is never ordered. 0 <= number < 2**53."""
    digest: str = ""
    """SHA-256 of the content in lower-case hexadecimal (see `ContentDefinition`); "" for a tombstone."""
    deleted: bool = False
    """True for a tombstone."""
    updated_at: dt.datetime | None = attrs.field(default=None, eq=False, validator=_valid_aware)
    """When the application says it wrote this. It orders nothing."""


new_version: Final = unchecked(DocumentVersion)


def _sorted_keys(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(keys)))


@attrs.frozen(kw_only=True)
class ContentDefinition:
    """What counts as the content of a document: its text, or its text and named metadata.

    Every store of one engine uses the same definition, or their digests cannot agree.
    """

    metadata_keys: tuple[str, ...] = attrs.field(default=(), converter=_sorted_keys)
    """The metadata keys that are part of the content; () for the text alone."""

    def digest(self, text: str, metadata: Mapping[str, Any]) -> str:
        """SHA-256 in lower-case hexadecimal of the text's UTF-8, or of canonical JSON of text and metadata.

        Canonical JSON is an array ``[text, {named metadata}]`` with sorted keys, no spaces, and non-ASCII unescaped.

        Raises:
            InvalidValue: the text or metadata cannot be encoded (a lone surrogate, a value that JSON lacks).
        """
        try:
            if not self.metadata_keys:
                return hashlib.sha256(text.encode()).hexdigest()
            named = {key: metadata[key] for key in self.metadata_keys if key in metadata}
            content = json.dumps(
                [text, named], sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
            )
            return hashlib.sha256(content.encode()).hexdigest()
        except (UnicodeEncodeError, TypeError, ValueError) as error:
            raise InvalidValue("document", f"its content has no canonical form ({type(error).__name__})") from None


def _frozen_mapping(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(value))


_NO_METADATA: Final[Mapping[str, Any]] = MappingProxyType({})


@attrs.frozen(kw_only=True)
class Document:
    """A document as one store holds it, or a tombstone (`version.deleted`, no text)."""

    doc_id: str = attrs.field(validator=_valid_doc_id)
    text: str | None = attrs.field(default=None, repr=False)
    metadata: Mapping[str, Any] = attrs.field(default=_NO_METADATA, converter=_frozen_mapping, repr=False)
    version: DocumentVersion

    def __attrs_post_init__(self) -> None:
        if self.version.deleted != (self.text is None):
            raise InvalidValue("text", "a tombstone has no text, and every other document has one")

    @classmethod
    def tombstone(cls, doc_id: str, *, number: int | None, updated_at: dt.datetime | None = None) -> Document:
        """A record that the document was deleted at version `number`."""
        return cls(doc_id=doc_id, version=DocumentVersion(number=number, deleted=True, updated_at=updated_at))


def utc_now() -> dt.datetime:
    """The wall clock, timezone-aware."""
    return dt.datetime.now(dt.timezone.utc)


def _job_timeout(value: float | None) -> float | None:
    return None if value is None else check_seconds("timeout", value)


def _valid_job_id(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidValue("id", "must be a str that is not empty")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise InvalidValue("id", "holds a lone surrogate and is not valid UTF-8") from None
    if size > MAX_JOB_ID_BYTES:
        raise InvalidValue("id", f"is {size} bytes of UTF-8; at most {MAX_JOB_ID_BYTES} are allowed")


def _valid_count(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidValue(attribute.name, f"must be an int of at least 0, not {quoted(value)}")


@attrs.frozen(kw_only=True)
class RepairJob:
    """A request to make the copies of one document agree. It carries identity, never content."""

    id: str = attrs.field(factory=new_job_id, validator=_valid_job_id)
    """Unique among the jobs that are queued or running; 1 to 2,048 bytes of UTF-8."""
    doc_id: str = attrs.field(validator=_valid_doc_id)
    strategy: SyncStrategy = attrs.field(validator=_valid_enum(SyncStrategy))
    priority: RepairPriority = attrs.field(default=RepairPriority.MEDIUM, validator=_valid_enum(RepairPriority))
    trigger: RepairTrigger = attrs.field(default=RepairTrigger.MANUAL, validator=_valid_enum(RepairTrigger))
    created_at: dt.datetime = attrs.field(factory=utc_now, validator=_valid_aware)
    deadline: dt.datetime | None = attrs.field(default=None, validator=_valid_aware)
    """Bounds the whole job, queueing and retries included. Converted once, when the job is accepted."""
    timeout: float | None = attrs.field(default=None, converter=_job_timeout)
    """Seconds that one attempt may take, from the moment it gets a slot; None: the engine's `job_timeout_seconds`."""
    retry_count: int = attrs.field(default=0, validator=_valid_count)
    """Attempts already used up elsewhere; they count against `max_retries`."""
    max_retries: int = attrs.field(default=3, validator=_valid_count)
    """How often a transient failure may be tried again."""


@attrs.frozen(kw_only=True)
class ReceiptStep:
    """What a repair knows about one store."""

    store: str
    state: StepState
    before: DocumentVersion | None = None
    """The version first observed; None if absent or never observed."""
    after: DocumentVersion | None = None
    """The version last observed or confirmed by the store; None if absent or never observed."""
    token: str | None = None
    """The store's opaque token at the last look, usable as `expected` in `resolve`; None if never observed."""
    fence: str = "strong"
    """"strong": compare-and-set in the store. "weak": the check and the write are two steps."""
    detail: str | None = None
    """Why, if it is not plain from the state: an error without document text."""


new_receipt_step: Final = unchecked(ReceiptStep)


@attrs.frozen(kw_only=True)
class RepairResult:
    """How one job ended, with a receipt for each store."""

    doc_id: str
    job_id: str
    outcome: RepairOutcome
    updated_systems: tuple[str, ...] = ()
    """The stores where a write of this job is known to have landed, in the order text, vector, cache."""
    error: str | None = None
    """Why it did not succeed; None if it did."""
    warnings: tuple[str, ...] = ()
    source: str | None = None
    """The store whose content was copied, if any."""
    version: DocumentVersion | None = None
    """The version that was decided on, if a decision was reached."""
    receipt: tuple[ReceiptStep, ...] = ()
    attempts: int = 0
    """How often the repair was started; 0 if it never left the queue."""
    queued_seconds: float = 0.0
    """From acceptance to the start of the first attempt, or to the end if there was none."""
    running_seconds: float = 0.0
    """Time spent in attempts, back-off not included."""

    @property
    def success(self) -> bool:
        """True if and only if every critical store was read back equal to the decision."""
        return self.outcome.success

    def step(self, store: str) -> ReceiptStep:
        """The receipt of one store.

        Raises:
            KeyError: the engine has no such store.
        """
        for step in self.receipt:
            if step.store == store:
                return step
        raise KeyError(store)


new_result: Final = unchecked(RepairResult)


@attrs.frozen(kw_only=True)
class ActiveRepair:
    """A job whose repair is running.

    `started_at` and `timeout_at` are on the clock of `trio.current_time()`; they mean nothing in another process.
    """

    job: RepairJob
    started_at: float
    timeout_at: float
    phase: RepairPhase
