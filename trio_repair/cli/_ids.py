"""Document ids from the command line, a file or stdin."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Final

import attrs

from .. import InvalidValue
from .._model import check_doc_id
from ._escape import one_line, printable
from ._status import UsageError

_MOST_NAMED: Final = 3
_LONGEST_SHOWN: Final = 60


def check_id(doc_id: str, *, what: str = "document id") -> str:
    """Return an id from the command line if it can be one; `what` says where it stood.

    Raises:
        UsageError: it is empty, too long, or not UTF-8.
    """
    try:
        return check_doc_id(doc_id)
    except InvalidValue as error:
        shown = printable(doc_id, _LONGEST_SHOWN)
        raise UsageError(f"{what} {shown}: {error.problem}") from None


def check_ids(doc_ids: Sequence[str]) -> Sequence[str]:
    """The same for several; each of them once."""
    for doc_id in doc_ids:
        check_id(doc_id)
    return list(dict.fromkeys(doc_ids))


def _parse_line(line: bytes, number: int) -> str | None:
    """The id on a line, None for an empty one.

    Raises:
        UsageError: the line holds no usable id.
    """
    line = line.removesuffix(b"\n")
    if not line:
        return None
    if line.endswith(b"\r"):
        raise UsageError("ends in a carriage return; convert the file to Unix line ends")
    if number == 1 and line.startswith(b"\xef\xbb\xbf"):
        raise UsageError("starts with a byte order mark; save the file without one")
    try:
        return check_id(line.decode())
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8") from None


def id_key(doc_id: str) -> bytes:
    """Stands for an id in 16 bytes, so that to remember many long ones takes little memory."""
    return hashlib.blake2b(doc_id.encode(), digest_size=16).digest()


def _is_new(doc_id: str | None, seen: set[bytes]) -> bool:
    if doc_id is None or (key := id_key(doc_id)) in seen:
        return False
    seen.add(key)
    return True


def _standard_input() -> IO[bytes]:
    """Stdin by a file object of our own.

    `sys.stdin` is not read here: the thread that does may be left behind in the middle of it, and Python, which wants
    that object's lock when it ends, would abort.
    """
    if sys.stdin is None:
        raise UsageError("--ids-file: standard input is closed; name a file instead")
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb")


@attrs.define
class IdFile:
    """Ids, one a line, each taken once. All lines are checked before the first is used: a bad file does nothing."""

    name: str
    _file: IO[bytes]
    count: int = 0
    """Of different ids."""

    @classmethod
    def open(cls, name: str) -> IdFile:
        """Open and check a file, or stdin for "-". Blocks until a pipe ends.

        Raises:
            UsageError: it cannot be read or holds bad lines, which are named by number.
        """
        try:
            file = _standard_input() if name == "-" else open(name, "rb")  # noqa: SIM115, PTH123
            if not file.seekable():
                # A pipe can be read once, and is to be read twice; it may be larger than memory.
                pipe, file = file, tempfile.TemporaryFile()  # noqa: SIM115
                shutil.copyfileobj(pipe, file)
                pipe.close()
        except OSError as error:
            raise UsageError(f"--ids-file: cannot read {name}: {error.strerror}") from error
        ids = cls("standard input" if name == "-" else name, file)
        try:
            ids._check()
        except UsageError:
            ids.close()
            raise
        return ids

    def _check(self) -> None:
        bad: list[str] = []
        more = 0
        seen: set[bytes] = set()
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            try:
                self.count += _is_new(_parse_line(line, number), seen)
            except UsageError as error:
                if len(bad) < _MOST_NAMED:
                    bad.append(f"line {number}: {error}")
                else:
                    more += 1
        if bad:
            rest = f"; and {more} more bad lines" if more else ""
            raise UsageError(f"{one_line(self.name)}: {'; '.join(bad)}{rest}")

    def __iter__(self) -> Iterator[str]:
        seen: set[bytes] = set()
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            doc_id = _parse_line(line, number)
            if doc_id is not None and _is_new(doc_id, seen):
                yield doc_id

    def close(self) -> None:
        """Close the file."""
        self._file.close()
