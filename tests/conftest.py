"""Hypothesis profiles for every test of the project."""

from __future__ import annotations

import os

from hypothesis import settings

# Virtual time makes examples fast and the wall clock meaningless to them.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")
