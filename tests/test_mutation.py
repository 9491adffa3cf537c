"""The plan of the mutation tests is complete."""

from __future__ import annotations

from pathlib import Path

from mutation import LEFT_OUT, TESTS
from test_layers import LAYERS


def test_every_module_of_layers_2_and_3_is_mutated_and_tested():
    """A module that is added names the tests that hold it, and those exist."""
    assert LAYERS[2] | LAYERS[3] == set(TESTS)
    assert [] == [
        name for names in TESTS.values() for name in names if not Path(__file__).with_name(f"{name}.py").exists()
    ]


def test_what_is_left_out_exists():
    """No part of a test's name is left out that no test has."""
    sources = "".join(Path(__file__).with_name(f"{name}.py").read_text() for names in TESTS.values() for name in names)
    assert [] == [part for part in LEFT_OUT if part not in sources]
