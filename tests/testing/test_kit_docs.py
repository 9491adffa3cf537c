"""The examples of machines in docs/testing.md run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

TESTING = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()


def block_below(heading: str) -> str:
    """The first piece of Python under a heading."""
    found = re.search(rf"^## {re.escape(heading)}\n.*?^```python\n(.*?)^```$", TESTING, re.MULTILINE | re.DOTALL)
    assert found is not None, f"nothing stands under {heading!r}"
    return found.group(1)


@pytest.mark.parametrize(
    ("heading", "name"),
    [("A machine that drives your stores", "TestMyStores"), ("State machines inside Trio", "TestMailbox")],
)
def test_machines_in_the_docs_run(heading: str, name: str) -> None:
    """What is shown is a test, and passes."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    exec(compile(block_below(heading), "docs/testing.md", "exec"), namespace)
    case = namespace[name]
    # `TestCase` keeps the machine to itself; running it is what pytest does.
    case.settings = settings(
        max_examples=5, stateful_step_count=8, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    case("runTest").runTest()


async def test_the_other_pieces_of_the_kit_run() -> None:
    """The plan of faults and the turns in the docs mean what they say."""
    for heading in ("Faults", "Turns"):
        namespace: dict[str, Any] = {"__name__": "docs"}
        exec(compile(block_below(heading), "docs/testing.md", "exec"), namespace)
        await namespace["my_scenario" if heading == "Faults" else "main"]()
