"""Hypothesis profiles for every test of the project."""

from __future__ import annotations

import os

from hypothesis import settings

# Virtual time makes examples fast and the wall clock meaningless to them.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
# One mutant after another, each with the same few examples; see "Mutation testing" in docs/testing.md.
settings.register_profile("mutation", deadline=None, derandomize=True, max_examples=15)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")
