"""README and examples are run, and say what they print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def block_after(document: str, marker: str) -> str:
    """The fenced block that follows a marker comment."""
    found = re.search(rf"^<!-- {re.escape(marker)} -->\n```\w*\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no block is marked {marker!r}"
    return found.group(1)


def run(example: Path, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        check=False,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    """Every example ends well, in a directory of its own, and prints something."""
    assert run(example, tmp_path)


def test_readme_shows_the_example_and_what_it_prints(tmp_path: Path) -> None:
    """The embedding example in README is the file, word for word, and prints what README says."""
    readme = (ROOT / "README.md").read_text()
    example = ROOT / "examples" / "embed.py"
    assert example.read_text() == block_after(readme, "file: examples/embed.py")
    assert run(example, tmp_path) == block_after(readme, "output: examples/embed.py")


def test_the_example_that_is_shown_is_short() -> None:
    """Ten statements embed the engine."""
    body = (ROOT / "examples" / "embed.py").read_text().split("async def main() -> None:\n")[1].split("\n\n\n")[0]
    assert len(body.splitlines()) <= 10


def links(document: Path) -> list[tuple[str, str]]:
    """Relative links of a Markdown file, as (file, anchor)."""
    found = re.findall(r"\]\(\s*([^)#\s]*)#?([^)\s]*)\)", document.read_text())
    return [(target, anchor) for target, anchor in found if "://" not in target]


def anchors(document: Path) -> set[str]:
    """The anchors of a Markdown file's headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file that is there, and a heading in it."""
    for target, anchor in links(document):
        linked = (document.parent / target).resolve() if target else document
        assert linked.exists(), f"{document.name} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{document.name} links to {target}#{anchor}"


def test_control_a_dead_link_is_seen(tmp_path: Path) -> None:
    """The link test finds links, with anchors and across lines."""
    document = tmp_path / "a.md"
    document.write_text("# One two\n[a](missing.md) [b](a.md#one-two) [c](\n  other.md#x) [d](https://example.org)")
    assert [("missing.md", ""), ("a.md", "one-two"), ("other.md", "x")] == links(document)
    assert {"one-two"} == anchors(document)
