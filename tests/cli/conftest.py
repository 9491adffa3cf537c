"""Directories of small real stores, and ways to run the command on them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import CONFIGURATION, PLUGIN, Done, Fifo, configure, damage, environment, fill, with_stores


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A directory with consistent stores, and one with damaged ones."""
    sound = tmp_path_factory.mktemp("sound")
    (sound / "trio-repair.toml").write_text(CONFIGURATION)
    with_stores(sound, fill, create=True)
    damaged = tmp_path_factory.mktemp("damaged")
    shutil.copytree(sound, damaged, dirs_exist_ok=True)
    with_stores(damaged, damage)
    return sound, damaged


@pytest.fixture
def sound(templates: tuple[Path, Path], tmp_path: Path) -> Path:
    """Stores that agree on everything."""
    return Path(shutil.copytree(templates[0], tmp_path / "sound"))


@pytest.fixture
def damaged(templates: tuple[Path, Path], tmp_path: Path) -> Path:
    """Stores damaged as `DAMAGE` says."""
    return Path(shutil.copytree(templates[1], tmp_path / "damaged"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run the command in this process: for the many ways to be refused."""

    def call(*arguments: str | Path) -> Done:
        from trio_repair.cli import main

        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return call


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the command without waiting for it; whatever still runs at the end of the test is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        options.setdefault("env", environment())
        process = subprocess.Popen(
            [sys.executable, "-m", "trio_repair", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def troubled(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Wrap a store of a directory in one that makes trouble; gives the environment to run in."""

    def install(directory: Path, *, role: str = "vector", **settings: object) -> dict[str, str]:
        site = tmp_path / "site"
        info = site / "troubled-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "troubled_store.py").write_text(PLUGIN)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: troubled\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[trio_repair.stores]\ntroubled = troubled_store:troubled\n")
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
        configure(
            directory,
            f'[stores.{role}]\nkind = "sqlite-{role}"\npath = "{role}.db"\n',
            f'[stores.{role}]\nkind = "troubled"\naround = "sqlite-{role}"\n{lines}\n\n'
            f'[stores.{role}.inner]\npath = "{role}.db"\n',
        )
        if role == "vector":
            configure(directory, "[stores.vector.embedder]", "[stores.vector.inner.embedder]")
        return environment(PYTHONPATH=os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))

    return install


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Callable[[str], Fifo]]:
    """Make places where this process and the command meet."""
    made: list[Fifo] = []

    def make(name: str) -> Fifo:
        made.append(Fifo.make(tmp_path / name))
        return made[-1]

    yield make
    for one in made:
        one.close()
