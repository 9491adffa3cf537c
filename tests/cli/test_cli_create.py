"""`trio-repair create`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cli_support import DOCUMENTS, Done, findings


def test_a_store_that_was_lost_is_made_anew_and_filled(sound: Path, call: Callable[..., Done]) -> None:
    """Made, and empty; what is there is left as it is; a repair, told that this is meant, fills it."""
    before = (sound / "text.db").read_bytes()
    for lost in sound.glob("vector.db*"):
        lost.unlink()
    complaint = call("check", "--dir", sound).complaint
    assert "vector.db does not exist; look at the path, or make one with: trio-repair create vector" in complaint
    done = call("create", "--dir", sound)
    assert (0, ["text: is there", "vector: made, and empty", "cache: is there"]) == (done.status, done.out.splitlines())
    assert "--allow-mass" in done.err
    assert before == (sound / "text.db").read_bytes()
    assert 0o600 == (sound / "vector.db").stat().st_mode & 0o777
    assert DOCUMENTS == len(findings(sound))
    refused = call("repair", "--dir", sound, "--strategy", "text")
    assert (1, DOCUMENTS) == (refused.status, len(findings(sound)))
    assert 0 == call("repair", "--dir", sound, "--strategy", "text", "--allow-mass").status
    assert {} == findings(sound)


def test_only_the_stores_that_are_named_are_made(sound: Path, call: Callable[..., Done]) -> None:
    """One line for each, whether it was made or not."""
    for lost in (*sound.glob("vector.db*"), *sound.glob("cache.db*")):
        lost.unlink()
    records = call("create", "--dir", sound, "--json", "cache", "text", "cache").records
    assert [("cache", True), ("text", False)] == [(record["store"], record["made"]) for record in records]
    assert (True, False) == ((sound / "cache.db").exists(), (sound / "vector.db").exists())


def test_what_cannot_be_made_is_refused(sound: Path, call: Callable[..., Done]) -> None:
    """An unknown store, a foreign file, and a directory that is not there: one line, status 2, nothing is changed."""
    unknown = call("create", "--dir", sound, "vectr")
    assert (2, True) == (unknown.status, unknown.complaint.endswith("did you mean 'vector'?"))
    (sound / "cache.db").write_text("a letter, and no database")
    foreign = call("create", "--dir", sound, "cache")
    assert 2 == foreign.status
    assert "cache.db" in foreign.complaint
    assert "a letter, and no database" == (sound / "cache.db").read_text()
    configuration = sound / "trio-repair.toml"
    configuration.write_text(configuration.read_text().replace('"text.db"', '"nowhere/text.db"'))
    nowhere = call("create", "--dir", sound, "text")
    assert 2 == nowhere.status
    assert "nowhere" in nowhere.complaint
    assert not (sound / "nowhere").exists()
