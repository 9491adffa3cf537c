"""Options that several commands have, and how what is typed for them is read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import attrs
from cyclopts import Parameter, Token

from ._configuration import Configuration, load_configuration, locate
from ._durations import parse_duration
from ._status import UsageError

StrategyName: TypeAlias = Literal["text", "vector", "most-recent", "manual"]


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Where:
    """Which stores."""

    config: Path | None = None
    """The configuration file (TOML)."""
    dir: Path | None = None
    """A directory with a trio-repair.toml; without either option, the current one."""

    def load(self) -> Configuration:
        """Read the configuration."""
        return load_configuration(locate(self.config, self.dir))


HERE: Final = Where()

Json: TypeAlias = Annotated[
    bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON lines on stdout.")
]
_WHOLE: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)
_MOST_DIGITS: Final = 18


def whole_number(_type: object, tokens: Sequence[Token]) -> int:
    """An integer in digits. Left to itself, the parser rounds 1.5, and reads 0x10 and 1_0."""
    text = tokens[0].value
    if _WHOLE.fullmatch(text) is None:
        raise ValueError(f"must be an integer, not {text!r}")
    if len(text.lstrip("+-")) > _MOST_DIGITS:
        # More fits no counter, and Python itself refuses numbers of thousands of digits.
        raise ValueError(f"must be an integer of at most {_MOST_DIGITS} digits")
    return int(text)


Whole: TypeAlias = Annotated[int, Parameter(converter=whole_number)]
Limit: TypeAlias = Annotated[int, Parameter(converter=whole_number, help="How many documents to list.")]
Flag: TypeAlias = Annotated[bool, Parameter(negative="", show_default=False)]
Text: TypeAlias = Annotated[str | None, Parameter(allow_leading_hyphen=True)]


def examples(*lines: str) -> str:
    """What stands below the help of a command."""
    return "\n".join(["Examples:\n", *(f"  trio-repair {line}" for line in lines)])


def check_limit(limit: int) -> int:
    """Return what was given for --limit.

    Raises:
        UsageError: it is negative.
    """
    if limit < 0:
        raise UsageError(f"--limit: must be at least 0, not {limit}")
    return limit


def seconds(option: str, text: str | None) -> float | None:
    """What was given for an option that takes a duration.

    Raises:
        UsageError: it is none.
    """
    return None if text is None else parse_duration(option, text)


def refuse_together(**given: bool) -> None:
    """Of these options, one at most.

    Raises:
        UsageError: several were given.
    """
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        options = " and ".join(
            f"--{name.replace('_', '-')}" if name != "documents" else "document ids" for name in names
        )
        raise UsageError(f"{options} cannot be combined")


def refuse_same_file(receipts: Path | None, **read: Path | None) -> None:
    """What is read while receipts are written must be another file, by whatever name.

    Raises:
        UsageError: it is the same.
    """
    for name, path in read.items():
        with contextlib.suppress(OSError):  # one of them does not exist, or the next to open it says why it cannot
            if receipts is not None and path is not None and receipts.samefile(path):
                raise UsageError(f"--{name.replace('_', '-')} and --receipts are the same file, {receipts}")
