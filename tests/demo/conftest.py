"""Demo directories of 300 documents, made once and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
from demo_support import make


@pytest.fixture(scope="session")
def sound_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose stores agree."""
    directory = tmp_path_factory.mktemp("demo") / "sound"
    trio.run(make, directory)
    return directory


@pytest.fixture
def sound(sound_template: Path, tmp_path: Path) -> Path:
    """A directory of one's own whose stores agree."""
    return Path(shutil.copytree(sound_template, tmp_path / "demo"))
