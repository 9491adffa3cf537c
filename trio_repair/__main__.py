"""``python -m trio_repair`` is the command `trio-repair`."""

from __future__ import annotations

from trio_repair.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
