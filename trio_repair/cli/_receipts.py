"""Receipts: one JSON line for each result, appended to a file and whole whatever happens to the process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from pathlib import Path
from typing import Final, Self

from .. import RepairResult
from ._secrets import redacted_record
from ._status import OutputFailed, UsageError
from ._values import result_json

_BEGINNING: Final = b'{"type": "result", "doc_id": "'
"""What every receipt begins with."""
_LONGEST_LINE: Final = 1 << 20


def _refuse_foreign(path: Path) -> None:
    """Receipts are appended to receipts, never to a store, a plan or anything else that happens to be there."""
    if path.is_file():
        with path.open("rb") as present:
            first = present.read(len(_BEGINNING))
        # Shorter is a first receipt that a power cut left.
        if not _BEGINNING.startswith(first):
            raise UsageError(f"--receipts: {path} exists and holds no receipts; name another file")


def _drop_torn_line(path: Path) -> None:
    """Take back a last line without its end: a power cut leaves one, or a kill in the middle of the kernel's write.

    Whatever is appended to it would be lost with it.
    """
    with path.open("r+b") as present:
        size = present.seek(0, os.SEEK_END)
        start = present.seek(max(0, size - _LONGEST_LINE))
        tail = present.read()
        whole = tail.rfind(b"\n") + 1
        torn = tail[whole:]
        if not torn:
            return
        if not (torn.startswith(_BEGINNING) or _BEGINNING.startswith(torn)):
            raise UsageError(f"--receipts: {path} ends in a line that is no receipt; name another file")
        present.truncate(start + whole)


def _no_file(path: Path) -> UsageError:
    return UsageError(f"--receipts: {path} is not a regular file; receipts must be kept where they can be read again")


class ReceiptFile:
    """Appends receipts. Each line is one `os.write`, so that a killed process leaves no half line behind."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open for appending; a new file has mode 0600.

        Raises:
            UsageError: nothing can be appended there.
        """
        try:
            _refuse_foreign(path)
            if path.is_file():
                _drop_torn_line(path)
            # O_NONBLOCK, because to open a pipe that nobody reads would wait for a reader, with the stores locked.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise _no_file(path) from None
            raise UsageError(f"--receipts: cannot write {path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _no_file(path)
        return cls(path, descriptor)

    def append(self, result: RepairResult) -> None:
        """Write one receipt.

        Raises:
            OutputFailed: it could not be written whole; the part that was is taken back.
        """
        line = (json.dumps(redacted_record(result_json(result))) + "\n").encode()
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise OutputFailed(f"{self._path}: receipts cannot be written: {error.strerror}") from error
        if written != len(line):
            # A disk that fills up takes the beginning of a line. Only we write here: the run holds a lock.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise OutputFailed(f"{self._path}: receipts cannot be written: the disk is full")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
