"""One run at a time: a lock beside the configuration file that dies with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ._status import AnotherRun, UsageError


def lock_path(configuration: Path) -> Path:
    """Where the lock of a configuration is. Symlinks are followed first, so that two names share one lock."""
    resolved = configuration.resolve()
    return resolved.with_name(resolved.name + ".lock")


@contextlib.contextmanager
def hold_lock(configuration: Path) -> Iterator[None]:
    """Hold the lock of a configuration.

    It is an flock, which the kernel drops when the process ends, however it ends. The file itself stays: unlinking it
    would let two processes lock two files of the same name.

    Raises:
        AnotherRun: another process holds it; the message names its pid.
        UsageError: the lock file cannot be opened.
    """
    path = lock_path(configuration)
    try:
        # O_NOFOLLOW: a planted symlink must not make us truncate some other file.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UsageError(f"cannot open the lock file {path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UsageError(f"cannot open the lock file {path}: it is not a regular file")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UsageError(f"cannot lock {path}: {error.strerror}") from error
            pid = os.read(descriptor, 32).decode("ascii", "replace").strip()
            who = f"process {pid}" if pid.isdigit() else "a process that has just started"
            raise AnotherRun(f"another run holds {path} ({who}); wait until it has ended") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
