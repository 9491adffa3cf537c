"""Ids, texts and metadata that careless stores trip over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_LONGEST: Final = 2048  # bytes of UTF-8 in the longest document id

HOSTILE_IDS: Final = (
    "'",
    '"; DROP TABLE documents; --',
    "a' OR '1'='1",
    "%",
    "_",
    "*",
    "?",
    "[a-z]",
    "\\",
    "/etc/passwd",
    "../../up",
    "C:\\NUL",
    ".",
    "-",
    "--",
    "0",
    "00",
    "1e3",
    "null",
    "None",
    "true",
    " ",
    "a",
    "A",
    " a",
    "a ",
    "a\n",
    "a\r\n",
    "a\tb",
    "\x01",
    "\x7f",
    "{}",
    "{{0}}",
    "%s",
    "$1",
    ":id",
    "é",  # one code point
    "e\u0301",  # the same letter in two: another id
    "ß",
    "SS",
    "İ",
    "\u202eabc",
    "\ufeffa",
    "\uffff",
    "\uff5e",  # before the emoji in UTF-8, after it in UTF-16
    "😀",
    "k" * _LONGEST,
    "k" * (_LONGEST - 1),
    "é" * (_LONGEST // 2),
    "😀" * (_LONGEST // 4),
)
"""Document ids that the model accepts and careless stores trip over."""

TEXTS: Final[Mapping[str, str]] = {
    "plain": "The quick brown fox.",
    "empty": "",
    "spaces": "  leading, inner   and trailing \n\t ",
    "unicode": "Grüße, 世界! e\u0301 é \u202eright to left\u202c 😀👩‍👩‍👧",
    "lines": "one\ntwo\r\nthree\rfour\u2028five",
    "markup": "<b>'quoted' \"twice\" -- ; \\0 %s {}</b>",
    "long": " ".join(f"word{index}" for index in range(3_000)),
    "one word": "x" * 10_000,
}
"""Texts that every store takes and gives back."""

ODD_TEXTS: Final = ("a\0b", "\0", "\ufffe\uffff", "\x1b[0m\x08")
"""Texts that a store may reject, as long as it does so in prepare."""

METADATA: Final[Mapping[str, Mapping[str, Any]]] = {
    "none": {},
    "flat": {"title": "Grüße 😀", "count": 3, "ratio": 0.1, "flag": True, "nothing": None, "": "empty key"},
    "deep": {"list": [1, [2, {"three": [3]}], []], "map": {"a": {"b": {}}}, "large": 2**53, "negative": -1},
}
"""Metadata that every store takes and gives back: JSON."""
