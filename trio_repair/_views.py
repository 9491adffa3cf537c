"""What stores say, and what they are told: the vocabulary of the seam `trio_repair.abc.Store`."""

from __future__ import annotations

import enum
import hashlib
from typing import Any, Final

import attrs

from ._enums import plain_members
from ._errors import InvalidValue, StoreError
from ._model import Document, DocumentVersion
from ._unchecked import unchecked


@plain_members
class Presence(enum.Enum):
    """Whether a store holds a document."""

    ABSENT = "absent"
    TOMBSTONE = "tombstone"
    LIVE = "live"


_ABSENT: Final = Presence.ABSENT
"""By a name of its own: see `plain_members`."""


@plain_members
class Fence(enum.Enum):
    """How safe a store's conditional write is."""

    STRONG = "strong"
    """Check and write are one atomic step in the store."""
    WEAK = "weak"
    """Another writer can slip in between the check and the write."""


@plain_members
class AbsentMeans(enum.Enum):
    """How MOST_RECENT reads that a store does not hold a document."""

    MISSING = "missing"
    DELETED = "deleted"
    MANUAL = "manual"


@plain_members
class WriteStatus(enum.Enum):
    """A store's verdict on one write."""

    LANDED = "landed"
    REFUSED = "refused"
    """The store no longer held the expected token; nothing was written."""
    REJECTED = "rejected"
    """The store will never take this document; nothing was written."""
    UNKNOWN = "unknown"
    """The store cannot say whether it landed."""


@attrs.frozen(kw_only=True)
class EmbeddingIdentity:
    """What made the vectors. The same text embedded under another identity is drift."""

    model: str
    dimension: int
    chunking: str


@attrs.frozen(kw_only=True)
class Observation:
    """What one store holds of one document, without its content."""

    presence: Presence
    token: str
    """Opaque. It changes whenever the state described here changes; the fence compares nothing else."""
    version: DocumentVersion | None = None
    """None if and only if absent."""
    intact: bool = True
    """False if part of the copy is missing or damaged, for instance a chunk row."""
    embedding: EmbeddingIdentity | None = None
    """What made the vectors that are stored; None for stores without vectors and for tombstones."""

    def __attrs_post_init__(self) -> None:
        if (self.version is None) != (self.presence is _ABSENT):
            raise InvalidValue("version", "is None if and only if the document is absent")


new_observation: Final = unchecked(Observation)


@attrs.frozen(kw_only=True)
class StoredDocument:
    """The answer to a read: the content and the token it was read under, in one consistent look."""

    document: Document | None
    """None if the store holds nothing; a tombstone if it holds one."""
    token: str


new_stored_document: Final = unchecked(StoredDocument)


@attrs.frozen(kw_only=True)
class Prepared:
    """A document made ready to be written: everything slow or fallible is done, and no store was touched."""

    document: Document
    payload: Any = attrs.field(default=None, repr=False)
    """The store's own business."""


new_prepared: Final = unchecked(Prepared)


@attrs.frozen(kw_only=True)
class Write:
    """Replace what the store holds, if it still holds `token`."""

    prepared: Prepared
    token: str


new_write: Final = unchecked(Write)


@attrs.frozen(kw_only=True)
class Removal:
    """Take the document's rows away, leaving no tombstone, if the store still holds `token`."""

    doc_id: str
    token: str


@attrs.frozen(kw_only=True)
class WriteAnswer:
    """A verdict on one write or removal."""

    status: WriteStatus
    observation: Observation | None = None
    """LANDED: what the store holds now. REFUSED: what it holds instead. Else None."""
    error: StoreError | None = None
    """REJECTED or UNKNOWN: why."""


new_write_answer: Final = unchecked(WriteAnswer)


@attrs.frozen(kw_only=True)
class StoreTraits:
    """What a store can promise. The contract suite holds it to each of these."""

    fence: Fence
    holds_text: bool
    """`read` gives the text back, so that the store can be a source."""
    keeps_tombstones: bool
    """A tombstone that is written can be observed later; if False, writing one removes the document."""
    absent: AbsentMeans
    """How MOST_RECENT reads absence. MISSING is safe only if deletes leave tombstones."""
    max_calls: int = 1
    """How many calls may be under way at once."""
    max_batch: int = 256
    """How many documents one call may name."""
    max_batch_bytes: int = 8 * 2**20
    """How much text one call carries, counted in characters, unless a single document is larger. Of what is still to
    be read, the size is estimated by what was read before."""
    embedding: EmbeddingIdentity | None = None
    """The identity that the store embeds with now; None for stores without vectors."""
    numbered: bool = True
    """It keeps the numbers of versions. If False, all that it holds has the number None, and is compared by digest."""
    keeps_metadata: bool = True
    """If False, it knows nothing of metadata: what the text store has of them stays if a vector store is its source."""

    def __attrs_post_init__(self) -> None:
        if self.max_calls < 1:
            raise InvalidValue("max_calls", "must be at least 1")
        if self.max_batch < 1:
            raise InvalidValue("max_batch", "must be at least 1")
        if self.max_batch_bytes < 1:
            raise InvalidValue("max_batch_bytes", "must be at least 1")


@attrs.frozen(kw_only=True)
class RangeDigest:
    """What a store holds of a range of ids, in so few words that two stores are compared without a look at it."""

    count: int
    """How many documents and tombstones."""
    odd: int
    """How many of them have "" for a summary, and so must be looked at. With any, the range agrees with no other."""
    digest: bytes
    """SHA-256 of the entries: doc_id, NUL, summary, NUL for each document, in order of doc_id, in UTF-8."""

    @classmethod
    def of(cls, entries: bytes) -> RangeDigest:
        """The digest of these entries, for stores that make them on this side."""
        return cls(
            count=entries.count(0) // 2,
            odd=entries.count(b"\0\0"),  # no id is empty, so only an empty summary stands between two NULs
            digest=hashlib.sha256(entries).digest(),
        )


@attrs.frozen(kw_only=True)
class RangeListing:
    """The entries of a range, or of its first documents."""

    entries: bytes
    """What `RangeDigest.digest` is made of: doc_id, NUL, summary, NUL for each document, in order of doc_id."""
    more: bool
    """False if these are all of the range; True if there may be more, which then follow the last of these."""
