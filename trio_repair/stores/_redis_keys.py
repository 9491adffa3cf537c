"""Which key holds which document."""

from __future__ import annotations

import re
from typing import Final

import attrs

from trio_repair import InvalidDocumentId, InvalidValue
from trio_repair._model import check_doc_id, quoted

PLACE: Final = "{id}"
"""Where the document id stands in a pattern of keys."""

_SPECIAL: Final = re.compile(rb"[*?\[\]\\^-]")


@attrs.frozen(kw_only=True)
class Keys:
    """A pattern of keys: what stands before and behind the document id, and which ids there are."""

    before: bytes
    after: bytes = b""
    ids: re.Pattern[str] | None = None
    """Only ids that match as a whole are documents; None: all."""

    @classmethod
    def of_prefix(cls, prefix: str) -> Keys:
        """Keys that are a prefix and the id."""
        return cls(before=_encoded("prefix", prefix))

    @classmethod
    def of_pattern(cls, pattern: str, ids: str | None) -> Keys:
        """Keys of an application, such as "article:{id}".

        Raises:
            InvalidValue: the pattern has not exactly one place for the id, or `ids` is no regular expression.
        """
        raw = _encoded("key", pattern)
        place = PLACE.encode()
        if raw.count(place) != 1:
            raise InvalidValue("key", f"must hold {PLACE} once, where the document id stands, not {quoted(pattern)}")
        before, after = raw.split(place)
        try:
            expression = None if ids is None else re.compile(ids)
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidValue("id_pattern", f"is no regular expression: {error}") from None
        return cls(before=before, after=after, ids=expression)

    @property
    def glob(self) -> bytes:
        """What MATCH of a scan gets: these keys, and no other that only looks like them to a glob."""
        return _SPECIAL.sub(rb"\\\g<0>", self.before) + b"*" + _SPECIAL.sub(rb"\\\g<0>", self.after)

    def names(self, doc_id: str) -> bool:
        """Whether this id can be one of these documents."""
        return self.ids is None or self.ids.fullmatch(doc_id) is not None

    def key(self, doc_id: str) -> bytes:
        """The key of a document."""
        return self.before + doc_id.encode() + self.after

    def doc_id(self, key: bytes) -> str | None:
        """The document of a key; None if no document has that key."""
        if not (key.startswith(self.before) and key.endswith(self.after)):
            return None
        try:
            doc_id = check_doc_id(key[len(self.before) : len(key) - len(self.after)].decode())
        except (UnicodeDecodeError, InvalidDocumentId):
            return None
        return doc_id if self.names(doc_id) and self.key(doc_id) == key else None


def _encoded(field: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise InvalidValue(field, f"must be a string, not {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise InvalidValue(field, "holds a lone surrogate, which is not UTF-8") from None
