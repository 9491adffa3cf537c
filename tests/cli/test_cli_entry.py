"""The installed command's way in: quiet when it is interrupted early, and the same command in every installation."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from cli_support import environment

PROJECT = Path(__file__).parents[2]


def entry() -> tuple[str, str]:
    """The module and the function that the console script calls."""
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["trio-repair"].partition(":")
    return module, name


SCRIPT = """
import signal, sys
class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == {interrupted!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupter())
sys.argv = ["trio-repair", "--version"]
{before}
from {module} import {name}
{after}
status = {name}()
assert signal.default_int_handler is signal.getsignal(signal.SIGINT) or {before!r}
sys.exit(status)
"""


def enter(
    interrupted: str | None = None, *, before: str = "", after: str = "", by: tuple[str, str] | None = None
) -> tuple[int, str, str]:
    """Run the command as the console script does; Ctrl-C comes as a module is about to be imported."""
    module, name = entry() if by is None else by
    script = SCRIPT.format(interrupted=interrupted, before=before, module=module, name=name, after=after)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env=environment(), check=False, timeout=50, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("module", ["trio_repair", "trio", "trio_repair.cli._main", "cyclopts"])
def test_an_early_interrupt_is_quiet(module: str) -> None:
    """Whatever is being imported: status 130, not a word."""
    assert (130, "", "") == enter(module)


def test_control_the_package_itself_is_not_quiet() -> None:
    """Entered by the package, whose import comes first, the same interrupt is a traceback."""
    status, _, err = enter("trio", by=("trio_repair.cli", "main"))
    assert (-2, True) == (status, "Traceback" in err)


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    """As nohup starts it."""
    status, out, err = enter("trio", before="signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert (0, True, "") == (status, out.startswith("trio-repair "), err)


def test_once_loaded_the_command_hears_interrupts_itself() -> None:
    """The handler is Python's own again; an interrupt that nobody took is status 130 without a traceback."""
    later = "import trio_repair.cli; trio_repair.cli.main = lambda: signal.raise_signal(signal.SIGINT)"
    assert (130, "", "") == enter(after=later)
    status, out, _ = enter()
    assert (0, True) == (status, out.startswith("trio-repair "))


def test_the_core_alone_names_what_to_install() -> None:
    """Without the extra: one line, status 2, no traceback."""
    status, out, err = enter(before='sys.modules["cyclopts"] = None')
    needed = 'trio-repair: the command needs cyclopts; install it with: pip install "trio-repair[cli]"\n'
    assert (2, "", needed) == (status, out, err)


@pytest.mark.parametrize("version", ["standard", "editable"])
def test_every_installation_has_the_way_in(version: str, tmp_path: Path) -> None:
    """The wheel holds the module; an editable one leads to the directory that does."""
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(PROJECT)).build(directory=str(tmp_path), versions=[version])
    module, name = entry()
    with zipfile.ZipFile(wheel) as held:
        names = held.namelist()
        (entry_points,) = [one for one in names if one.endswith(".dist-info/entry_points.txt")]
        assert f"trio-repair = {module}:{name}" in held.read(entry_points).decode()
        if version == "standard":
            assert {f"{module}.py", "trio_repair/cli/_main.py"} <= set(names)
        else:
            (path,) = [one for one in names if one.endswith(".pth")]
            assert all((Path(line) / f"{module}.py").is_file() for line in held.read(path).decode().split("\n"))
