"""Entries that an application writes: plain text, JSON objects, or hashes with fields of its own.

Whether the content is what a digest says is seen in each look, on this side, because the server has no SHA-256. What is
not named in the mapping stays as it is, to the byte.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from trio_repair import ContentDefinition, DocumentVersion, InvalidValue, Prepared
from trio_repair._model import MAX_VERSION_NUMBER

from ._encoding import load_metadata, moment_text, parse_moment
from ._redis_entries import Entry, Putting, Seen, as_text, digest_hex, live, moment_bytes, stored_digest, version_number
from ._redis_scripts import HASH_SCRIPTS, STRING_SCRIPTS, token_of

_NO_METADATA: Final[Mapping[str, Any]] = {}


@attrs.frozen(kw_only=True)
class FieldNames:
    """Which field of an application's entry is what; None: there is none."""

    text: str = "text"
    metadata: str | None = None
    version: str | None = None
    updated_at: str | None = None
    digest: str | None = None
    write_digest: bool = False
    """Add the digest where an entry has none; else it is only kept true."""


@attrs.frozen(kw_only=True)
class _Parts:
    """What an entry says, as far as it can be understood."""

    text: str | None
    metadata: Mapping[str, Any] | None
    number: int | None = None
    updated_at: dt.datetime | None = None
    digest: str | None = None
    """None if the entry has none."""
    sound: bool = True
    """False if a mapped field holds what it cannot hold."""

    def entry(self, content: ContentDefinition, token: str, raw: Sequence[bytes | None]) -> Entry:
        """The entry, with the digest of what it holds now."""
        digest = None
        if self.text is not None and self.metadata is not None:
            try:
                digest = content.digest(self.text, self.metadata)
            except InvalidValue:  # JSON can spell lone surrogates
                digest = None
        version = None
        if digest is not None:
            version = DocumentVersion(number=self.number, digest=digest, updated_at=self.updated_at)
        intact = self.sound and (self.digest is None or self.digest == digest)
        view = live(token, version, intact=intact)
        # What its own digest does not prove is not given to anybody.
        return Entry(observation=view, text=self.text if intact else None, metadata=self.metadata, raw=raw)


class _Adopted:
    reads_to_observe = True

    def __init__(self, content: ContentDefinition, mapping: FieldNames) -> None:
        self._content = content
        self._mapping = mapping
        self.numbered = mapping.version is not None

    def _shown(self, version: DocumentVersion) -> DocumentVersion:
        """The version as a look shows it: only what has a field is kept."""
        return DocumentVersion(
            number=version.number if self.numbered else None,
            digest=version.digest,
            updated_at=version.updated_at if self._mapping.updated_at is not None else None,
        )


class PlainText(_Adopted):
    """The value is the text."""

    scripts = STRING_SCRIPTS
    kind = b"string"
    reads_to_write = False

    def layout(self, *, content: bool) -> Sequence[bytes]:  # noqa: ARG002
        """See `Form`."""
        return ()

    def entry(self, seen: Seen, *, content: bool) -> Entry:  # noqa: ARG002
        """See `Form`."""
        raw: bytes = seen[2]
        parts = _Parts(text=as_text(raw), metadata=_NO_METADATA)
        return parts.entry(self._content, str(seen[1], "ascii"), [raw])

    def putting(self, prepared: Prepared, held: Entry | None, revision: str) -> Putting:  # noqa: ARG002
        """See `Form`."""
        assert prepared.document.text is not None
        raw = prepared.document.text.encode()
        return Putting([raw], live(digest_hex(raw), self._shown(prepared.document.version), intact=True))


class JsonObject(_Adopted):
    """The value is a JSON object; text and the rest are members of it."""

    scripts = STRING_SCRIPTS
    kind = b"string"
    reads_to_write = True

    def layout(self, *, content: bool) -> Sequence[bytes]:  # noqa: ARG002
        """See `Form`."""
        return ()

    def entry(self, seen: Seen, *, content: bool) -> Entry:  # noqa: ARG002
        """See `Form`."""
        raw: bytes = seen[2]
        return self._parts(raw).entry(self._content, str(seen[1], "ascii"), [raw])

    def _parts(self, raw: bytes) -> _Parts:
        fields = self._mapping
        held = _load_object(as_text(raw))
        if held is None:
            return _Parts(text=None, metadata=None)
        text = held.get(fields.text)
        metadata = _NO_METADATA if fields.metadata is None else held.get(fields.metadata, _NO_METADATA)
        number = None if fields.version is None else held.get(fields.version)
        moment = None if fields.updated_at is None else held.get(fields.updated_at)
        digest = None if fields.digest is None else held.get(fields.digest)
        good_number = number is None or (
            isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= MAX_VERSION_NUMBER
        )
        good_digest = digest is None or (isinstance(digest, str) and stored_digest(digest) is not None)
        return _Parts(
            text=text if isinstance(text, str) else None,
            metadata=metadata if isinstance(metadata, Mapping) else None,
            number=number if good_number else None,
            updated_at=parse_moment(moment),
            digest=digest if good_digest else None,
            sound=good_number and good_digest,
        )

    def putting(self, prepared: Prepared, held: Entry | None, revision: str) -> Putting:  # noqa: ARG002
        """See `Form`."""
        fields, document, version = self._mapping, prepared.document, prepared.document.version
        before = None if held is None or not held.raw else as_text(held.raw[0])
        known = _load_object(before)
        members: dict[str, str] = {fields.text: json.dumps(document.text, ensure_ascii=False)}
        if fields.metadata is not None:
            members[fields.metadata] = prepared.payload
        if fields.version is not None and (version.number is not None or fields.version in (known or {})):
            members[fields.version] = json.dumps(version.number)
        if fields.updated_at is not None:
            moment = None if version.updated_at is None else moment_text(version.updated_at)
            if moment is not None or fields.updated_at in (known or {}):
                members[fields.updated_at] = json.dumps(moment)
        if fields.digest is not None and (fields.write_digest or fields.digest in (known or {})):
            members[fields.digest] = json.dumps(version.digest)
        raw = spliced("{}" if known is None or before is None else before, members).encode()
        return Putting([raw], live(digest_hex(raw), self._shown(version), intact=True))


class FieldsOfHash(_Adopted):
    """The value is a hash; text and the rest are fields of it, metadata as JSON."""

    scripts = HASH_SCRIPTS
    kind = b"hash"

    @property
    def reads_to_write(self) -> bool:
        """A digest that is not to be added is kept true where there is one; and that has to be seen."""
        return self._mapping.digest is not None and not self._mapping.write_digest

    @property
    def _fields(self) -> dict[str, bytes]:
        one = self._mapping
        named = {
            "text": one.text,
            "metadata": one.metadata,
            "version": one.version,
            "updated_at": one.updated_at,
            "digest": one.digest,
        }
        return {what: field.encode() for what, field in named.items() if field is not None}

    def layout(self, *, content: bool) -> Sequence[bytes]:  # noqa: ARG002
        """See `Form`."""
        fields = self._fields
        count = b"%d" % len(fields)
        return count, b"", count, *fields.values()

    def entry(self, seen: Seen, *, content: bool) -> Entry:  # noqa: ARG002
        """See `Form`."""
        raw: Sequence[bytes | None] = seen[2:]
        held = dict(zip(self._fields, raw, strict=True))
        metadata = held.get("metadata")
        sound = True
        number = None
        try:
            number = version_number(held.get("version"))
            if number is not None and number > MAX_VERSION_NUMBER:
                sound, number = False, None
        except InvalidValue:
            sound = False
        stated = held.get("digest")
        digest = stored_digest(as_text(stated)) if stated else None
        parts = _Parts(
            text=as_text(held.get("text")),
            metadata=_NO_METADATA if not metadata else load_metadata(as_text(metadata)),
            number=number,
            updated_at=parse_moment(as_text(held.get("updated_at"))),
            digest=digest,
            sound=sound and bool(stated) == (digest is not None),
        )
        return parts.entry(self._content, str(seen[1], "ascii"), raw)

    def putting(self, prepared: Prepared, held: Entry | None, revision: str) -> Putting:  # noqa: ARG002
        """See `Form`."""
        fields, document, version = self._fields, prepared.document, prepared.document.version
        assert document.text is not None
        before = {} if held is None else dict(zip(fields, held.raw, strict=True))
        number = b"" if version.number is None else b"%d" % version.number
        after: dict[str, bytes | None] = {
            "text": document.text.encode(),
            "metadata": prepared.payload.encode(),
            "version": number or None,
            "updated_at": moment_bytes(version.updated_at) or None,
            "digest": version.digest.encode()
            if self._mapping.write_digest or before.get("digest") is not None
            else None,
        }
        values = {what: after[what] for what in fields}
        put = [part for what, value in values.items() if value is not None for part in (fields[what], value)]
        gone = [fields[what] for what, value in values.items() if value is None]
        token = token_of(list(values.values()))
        return Putting([b"%d" % len(put), *put, *gone], live(token, self._shown(version), intact=True))


_DECODER: Final = json.JSONDecoder()
_BLANKS: Final = " \t\n\r"


def _load_object(text: str | None) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        held = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return held if isinstance(held, dict) else None


def spliced(text: str, members: Mapping[str, str]) -> str:
    """A JSON object with these members set, each to a value in JSON; all the rest is as it was, to the character.

    Reading the object and writing it anew would change how its numbers are spelled, and lose members that stand twice.
    """
    missing = dict(members)
    parts: list[str] = []
    kept = 0
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, start)
        if name in members:
            parts += [text[kept:start], members[name]]
            kept = end
            missing.pop(name, None)
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    more = ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {value}" for name, value in missing.items())
    head = "".join([*parts, text[kept:at]])
    if not more:
        return head + text[at:]
    return f"{head}{more if head.strip(_BLANKS) == '{' else f', {more}'}{text[at:]}"


def _skip(text: str, at: int) -> int:
    while text[at] in _BLANKS:
        at += 1
    return at
