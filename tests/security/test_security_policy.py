"""SECURITY.md names tests that exist, where it says that they are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def missing(text: str) -> list[str]:
    """Files that a text links to and tests that it names that are not there; a test must be in a file it links to."""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    sources = {link: (ROOT / link).read_text() for link in links if (ROOT / link).is_file()}
    tests = re.findall(r"`(test_\w+)`", text)
    lost = [name for name in tests if not any(f"def {name}(" in source for source in sources.values())]
    return [*(link for link in links if link not in sources), *lost]


def test_every_guarantee_names_a_test_that_exists() -> None:
    """No link is dead and no test was renamed."""
    assert [] == missing((ROOT / "SECURITY.md").read_text())


def test_control_a_dead_link_and_a_test_that_is_gone_are_noticed() -> None:
    """Both are reported."""
    assert ["no/file.py", "test_that_is_gone"] == missing("[x](no/file.py) and `test_that_is_gone`")
