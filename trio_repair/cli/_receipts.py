"""Receipts: one JSON line for each result, appended to a file and whole whatever happens to the process."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Self

from .. import RepairResult
from ._status import OutputFailed, UsageError
from ._values import result_json


def _refuse_foreign(path: Path) -> None:
    """Receipts are appended to receipts, never to a store or to anything else that happens to be there."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as present:
            first = present.read(1)
        if first != b"{":
            raise UsageError(f"--receipts: {path} exists and holds no receipts; name another file")


class ReceiptFile:
    """Appends receipts. Each line is one `os.write`, so that a killed process leaves no half line behind."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open for appending.

        Raises:
            UsageError: nothing can be appended there.
        """
        _refuse_foreign(path)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(f"--receipts: cannot write {path}: {error.strerror}") from error
        return cls(path, descriptor)

    def append(self, result: RepairResult) -> None:
        """Write one receipt.

        Raises:
            OutputFailed: it could not be written whole; the part that was is taken back.
        """
        line = (json.dumps(result_json(result)) + "\n").encode()
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise OutputFailed(f"{self._path}: receipts cannot be written: {error.strerror}") from error
        if written != len(line):
            # A disk that fills up takes the beginning of a line. Only we write here: the run holds a lock.
            with contextlib.suppress(OSError):  # a pipe cannot take anything back
                os.ftruncate(self._descriptor, size)
            raise OutputFailed(f"{self._path}: receipts cannot be written: the disk is full")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
