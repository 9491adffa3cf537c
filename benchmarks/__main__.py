"""List the benchmarks, run one, or show what was measured: ``python -m benchmarks [NAME | report [OPTION ...]]``.

Python's garbage collector is set as the command `trio-repair` sets it, for everything that is compared alike;
``--default-collector`` in front of NAME leaves it as Python has it.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import benchmarks
from benchmarks import _report
from trio_repair.cli._collector import settle_collector


def names() -> list[str]:
    """Every benchmark of this package."""
    modules = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    return sorted(name for name in modules if not name.startswith("_"))


def main(arguments: list[str]) -> int:
    """Dispatch; returns the exit status."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print("usage: python -m benchmarks [--default-collector] NAME [OPTION ...]   (NAME --help for its options)\n")
        for name in names():
            claim = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").splitlines()[0]
            print(f"  {name:19} {claim}")
        print(f"\n  {'report':19} {(_report.__doc__ or '').splitlines()[0]}")
        return 0
    name, *rest = arguments
    if name == "report":
        return _report.main(rest)
    if name not in names():
        print(f"benchmarks: there is no {name!r}; there are: {', '.join(names())}; and report", file=sys.stderr)
        return 2
    importlib.import_module(f"benchmarks.{name}").main(rest)
    return 0


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] == ["--default-collector"]:
        given = given[1:]
    else:
        settle_collector()
    sys.exit(main(given))
