"""The command `trio-repair`. Needs the extra: ``pip install "trio-repair[cli]"``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

_NEEDED = frozenset({"cyclopts", "rich", "apsw", "sqlite_vec"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status (see `trio-repair --help`).

    Args:
        argv: the arguments without the program's name; None: those of the process.
    """
    try:
        # Imported here, so that importing this module, or running it without the extra, never ends in a traceback.
        from ._main import run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _NEEDED:
            raise
        print(
            f'trio-repair: the command needs {error.name}; install it with: pip install "trio-repair[cli]"',
            file=sys.stderr,
        )
        return 2
    return int(run(sys.argv[1:] if argv is None else argv))
