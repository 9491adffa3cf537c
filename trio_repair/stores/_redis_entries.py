"""What an entry looks like on the server, in the layout of this library and in those of applications."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

import attrs

from trio_repair import (
    ContentDefinition,
    Document,
    DocumentVersion,
    InvalidValue,
    Observation,
    Prepared,
    Presence,
    StoredDocument,
    StoreRejected,
)

from ._encoding import load_metadata, moment_text, parse_moment
from ._redis_scripts import HASH_SCRIPTS, Scripts, token_of

NOT_PROVEN: Final = "its content does not have the digest that is stored with it; repair it from another store"

Seen: TypeAlias = Sequence[Any]
"""What a look shows of one key: see `_redis_scripts`."""


@attrs.frozen(kw_only=True)
class Entry:
    """An entry that is held."""

    observation: Observation
    text: str | None = attrs.field(default=None, repr=False)
    """None if the look did not show it, or it is not one."""
    metadata: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    raw: Sequence[bytes | None] = attrs.field(default=(), repr=False)
    """The values as they are held."""

    def read(self, store: str, content: ContentDefinition, doc_id: str) -> StoredDocument | StoreRejected:
        """The document, if its digest proves it."""
        view = self.observation
        assert view.version is not None
        if self.text is not None and self.metadata is not None and view.version.digest:
            try:
                if content.digest(self.text, self.metadata) == view.version.digest:
                    document = Document(doc_id=doc_id, text=self.text, metadata=self.metadata, version=view.version)
                    return StoredDocument(document=document, token=view.token)
            except InvalidValue:
                pass
        return StoreRejected(store, NOT_PROVEN, doc_id)


@attrs.frozen
class Putting:
    """What a write script gets behind its layout, and what a look shows once it has landed."""

    arguments: Sequence[bytes]
    observation: Observation


class Form(Protocol):
    """How entries are written."""

    @property
    def scripts(self) -> Scripts:
        """The scripts that know this kind of value."""
        ...

    @property
    def kind(self) -> bytes:
        """The type of the keys, as TYPE and SCAN call it."""
        ...

    @property
    def numbered(self) -> bool:
        """Whether entries have a place for the number of a version."""
        ...

    @property
    def reads_to_observe(self) -> bool:
        """Whether an observation takes the content."""
        ...

    @property
    def reads_to_write(self) -> bool:
        """Whether a write takes what is held, to keep what it does not know."""
        ...

    def layout(self, *, content: bool) -> Sequence[bytes]:
        """What the scripts are told of it."""
        ...

    def entry(self, seen: Seen, *, content: bool) -> Entry:
        """What a look at a key shows that is held."""
        ...

    def putting(self, prepared: Prepared, held: Entry | None, revision: str) -> Putting:
        """How to write a live document over what is held."""
        ...


_NUMBER: Final = re.compile(rb"0|[1-9][0-9]{0,15}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def version_number(raw: bytes | None) -> int | None:
    """A number as it is stored; no value, or an empty one, is no number.

    Raises:
        InvalidValue: it is something else.
    """
    if not raw:
        return None
    if _NUMBER.fullmatch(raw) is None:
        raise InvalidValue("number", "is not a number of a version")
    return int(raw)


def stored_digest(raw: str | None) -> str | None:
    """A digest as it is stored; None if it is not one."""
    return raw if raw is not None and _DIGEST.fullmatch(raw) is not None else None


def as_text(raw: bytes | None) -> str | None:
    """Text as it is stored; None if it is not UTF-8."""
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return None


def live(token: str, version: DocumentVersion | None, *, intact: bool) -> Observation:
    """An entry that is held; without a version, it is damaged beyond telling which."""
    known = version if version is not None else DocumentVersion()
    return Observation(
        presence=Presence.LIVE, token=token, version=known, intact=intact and version is not None and known.digest != ""
    )


def make_version(number: bytes | None, digest: str | None, updated_at: dt.datetime | None) -> DocumentVersion | None:
    """A version of values as they are stored; None if they make none."""
    if digest is None:
        return None
    try:
        return DocumentVersion(number=version_number(number), digest=digest, updated_at=updated_at)
    except InvalidValue:
        return None


def moment_bytes(moment: dt.datetime | None) -> bytes:
    """A moment as it is stored; empty for none."""
    return b"" if moment is None else moment_text(moment).encode()


class OwnHash:
    """The layout of this library: a hash of `number`, `digest`, `updated_at`, `rev`, `text`, `metadata` and `seal`.

    `rev` is never the same twice. `seal` is the token of the other six when they were written: who changes one of them
    and not the seal leaves an entry that is seen to be damaged, without that its text leaves the server.
    """

    scripts = HASH_SCRIPTS
    kind = b"hash"
    numbered = True
    reads_to_observe = False
    reads_to_write = False

    _FIELDS: Final = (b"number", b"digest", b"updated_at", b"rev", b"text", b"metadata")
    _SHOWN: Final = 3

    def layout(self, *, content: bool) -> Sequence[bytes]:
        """See `Form`."""
        count = b"%d" % len(self._FIELDS)
        shown = count if content else b"%d" % self._SHOWN
        return shown, b"seal", count, *self._FIELDS

    def entry(self, seen: Seen, *, content: bool) -> Entry:
        """See `Form`."""
        token = str(seen[1], "ascii")
        raw: Sequence[bytes | None] = seen[2:]
        moment = as_text(raw[2])
        version = make_version(raw[0], stored_digest(as_text(raw[1])), parse_moment(moment))
        view = live(token, version, intact="." not in token)
        if not content:
            return Entry(observation=view)
        return Entry(observation=view, text=as_text(raw[4]), metadata=load_metadata(as_text(raw[5])), raw=raw)

    def putting(self, prepared: Prepared, held: Entry | None, revision: str) -> Putting:  # noqa: ARG002
        """See `Form`."""
        document, version = prepared.document, prepared.document.version
        assert document.text is not None
        values = [
            b"" if version.number is None else b"%d" % version.number,
            version.digest.encode(),
            moment_bytes(version.updated_at),
            revision.encode(),
            document.text.encode(),
            prepared.payload.encode(),
        ]
        token = token_of([*values])
        pairs = [part for pair in zip(self._FIELDS, values, strict=True) for part in pair]
        arguments = [b"%d" % (len(pairs) + 2), *pairs, b"seal", token.encode()]
        return Putting(arguments, live(token, version, intact=True))


def digest_hex(raw: bytes) -> str:
    """The token of a plain value."""
    return hashlib.sha1(raw, usedforsecurity=False).hexdigest()
