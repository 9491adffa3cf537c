"""The lock of what a developer installs: complete, hashed, within the bounds, and from nowhere in particular."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OWN_NAME = "trio-repair"

UNLOCKED = frozenset({"bench"})
"""Extras that are no part of what a developer installs: other people's tools, which benchmarks compare with."""


def requirements(names: list[str], extras: dict[str, list[str]]) -> Iterator[Requirement]:
    """Requirements, those of our own extras in the place of their names."""
    for name in names:
        requirement = Requirement(name)
        if canonicalize_name(requirement.name) == OWN_NAME:
            for extra in sorted(requirement.extras):
                yield from requirements(extras[extra], extras)
        else:
            yield requirement


def declared(leaving_out: frozenset[str] = frozenset()) -> list[Requirement]:
    """Everything that pyproject.toml asks for: to run, for every extra but those left out, and to build."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = data["project"]
    extras = project["optional-dependencies"]
    wanted = (f"{OWN_NAME}[{extra}]" for extra in extras if extra not in leaving_out)
    named = [*project["dependencies"], *data["build-system"]["requires"], *wanted]
    return list(requirements(named, extras))


_LOCKED = r"^([\w.-]+)(?:\[[\w.,-]+\])?==(\S+)"
"""An entry with the extras that are asked for: without them, older versions of pip do not see that it is locked."""


def locked(text: str) -> dict[str, str]:
    """Versions by name."""
    return {canonicalize_name(name): version for name, version in re.findall(_LOCKED, text, re.MULTILINE)}


def problems(text: str, wanted: list[Requirement]) -> set[str]:
    """What is wrong with a lock."""
    versions = locked(text)
    found = {f"{one.name} is missing" for one in wanted if canonicalize_name(one.name) not in versions}
    found |= {
        f"{one.name} is out of bounds"
        for one in wanted
        if (version := versions.get(canonicalize_name(one.name))) is not None and version not in one.specifier
    }
    found |= {
        f"{one.name} has lost its extras"
        for one in wanted
        if one.extras
        and not re.search(rf"^{re.escape(one.name)}\[{','.join(sorted(one.extras))}\]==", text, re.MULTILINE)
    }
    for entry in re.split(r"\n(?=\S)", text.replace("\\\n", " ").strip()):
        if entry and not entry.startswith("#") and "--hash=sha256:" not in entry:
            found.add(f"{entry.split('=')[0]} has no hash")
    if re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host| @ ", text):
        found.add("it names a place to install from")
    return found


def test_the_lock_holds_everything_with_hashes() -> None:
    """Every direct dependency, within its bounds, each entry with hashes, and no address."""
    assert set() == problems((ROOT / "requirements-dev.txt").read_text(), declared(UNLOCKED))


def test_control_what_is_wrong_with_a_lock_is_found() -> None:
    """A dependency left out, one out of bounds, one without a hash, and an index are all noticed."""
    text = (ROOT / "requirements-dev.txt").read_text()
    wanted = [*declared(UNLOCKED), Requirement("left-out>=1"), Requirement("trio<0.1")]
    spoiled = f"--index-url https://example.org/simple\n{text}\nunhashed==1.0\n"
    expected = {"left-out is missing", "trio is out of bounds", "it names a place to install from"}
    assert {"psycopg has lost its extras"} == problems(text.replace("psycopg[binary]", "psycopg"), declared(UNLOCKED))
    assert expected <= problems(spoiled, wanted)
    assert "unhashed has no hash" in problems(spoiled, wanted)


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    """A version that nobody has tried is not installed, old or new."""
    for requirement in declared():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert {">=", "<"} == operators, requirement
