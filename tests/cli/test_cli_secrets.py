"""Settings from the environment: looked up, used, and never told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Done, configure, contents, environment, run
from hypothesis import given
from hypothesis import strategies as st

from trio_repair.cli._configuration import ConfigurationError, parse_configuration
from trio_repair.cli._secrets import Redactor

CANARY = "hunter2-c4n4ry-'\"\\-p4ssw0rd"

STORES = """\
[stores.text]
kind = "sqlite-text"
path = { env = "TEXT_FILE" }

[stores.vector]
kind = "mine"
hosts = ["a", { env = "HOST" }]

[stores.vector.embedder]
kind = "package:make"

[stores.vector.embedder.api_key]
env = "API_KEY"
"""
VARIABLES = {"TEXT_FILE": "text.db", "HOST": "b", "API_KEY": CANARY, "HOME": "/nowhere"}


def parse(text: str = STORES, variables: dict[str, str] | None = None) -> Any:
    """A configuration, and an environment."""
    return parse_configuration(Path("/x/y.toml"), text.encode(), VARIABLES if variables is None else variables)


def test_settings_come_from_the_environment() -> None:
    """Inline, as a table of its own, in a list; all other settings are left as they are."""
    stores = parse().stores
    assert {"path": "text.db"} == dict(stores["text"].settings)
    expected = {"hosts": ["a", "b"], "embedder": {"kind": "package:make", "api_key": CANARY}}
    assert expected == dict(stores["vector"].settings)


@pytest.mark.parametrize(
    ("variables", "old", "new", "complaint"),
    [
        ({"API_KEY": None}, "", "", "line 12: stores.vector.embedder.api_key: the environment variable API_KEY is not"),
        ({"TEXT_FILE": None}, "", "", "line 3: stores.text.path: the environment variable TEXT_FILE is not set"),
        ({"HOST": ""}, "", "", "line 7: stores.vector.hosts: the environment variable HOST is empty"),
        ({}, '{ env = "TEXT_FILE" }', "{ env = 3 }", "line 3: stores.text.path: env must be the name of"),
        ({}, '{ env = "TEXT_FILE" }', '{ env = "A=B" }', "line 3: stores.text.path: env must be the name of"),
        ({}, '"package:make"', '{ env = "HOST" }', "line 10: stores.vector.embedder.kind: must be written in the file"),
        ({}, '"sqlite-text"', '{ env = "HOST" }', "line 2: stores.text.kind: must be a string"),
    ],
)
def test_what_cannot_be_looked_up_is_named(
    variables: dict[str, str | None], old: str, new: str, complaint: str
) -> None:
    """The line, the key and the variable; no value of any other."""
    held = {name: value for name, value in (VARIABLES | variables).items() if value is not None}
    with pytest.raises(ConfigurationError) as caught:
        parse(STORES.replace(old, new), held)
    assert complaint in str(caught.value)
    assert CANARY not in str(caught.value)


def test_no_repr_and_no_complaint_tells_a_value() -> None:
    """Whatever quotes it, in whatever form, says the variable instead; a plan's fingerprint does not depend on it."""
    configuration = parse()
    assert "c4n4ry" not in repr(configuration)
    told = str(configuration.error(f"must be a number, not {CANARY!r}", "stores", "vector"))
    assert 'must be a number, not "<from $API_KEY>"' in told or "must be a number, not '<from $API_KEY>'" in told
    assert "c4n4ry" not in told
    assert configuration.fingerprint == parse(variables=VARIABLES | {"API_KEY": "another"}).fingerprint
    assert configuration.fingerprint != parse(STORES.replace("API_KEY", "HOME")).fingerprint  # the control


@given(st.text(min_size=8), st.text(), st.text())
def test_a_value_is_hidden_wherever_it_stands(secret: str, before: str, after: str) -> None:
    """As it is and as repr writes it, inside of any text."""
    redactor = Redactor.of({secret: "NAME"})
    told = redactor.text(f"{before}{secret}{after}{secret!r}")
    assert secret not in told.replace("<from $NAME>", "")
    assert 2 <= told.count("<from $NAME>")


def test_a_short_value_hides_no_part_of_a_word() -> None:
    """Whoever takes a database's name from the environment can still read what goes wrong."""
    redactor = Redactor.of({"db": "FILE"})
    assert "no such file: /x/<from $FILE>, add it" == redactor.text("no such file: /x/db, add it")
    assert "feedback" == redactor.text("feedback")


def test_documents_are_left_as_they_are_in_json() -> None:
    """A document may well hold what a variable holds, and programs need its id; and our own words are no secret."""
    redactor = Redactor.of({"a secret value": "NAME", "text": "STORE"})
    assert {"store": "text", "error": "<from $STORE>"} == redactor.record({"store": "text", "error": "text"})
    record = {"doc_id": "a secret value", "error": "a secret value", "stores": {"text": {"token": "a secret value"}}}
    expected = {"doc_id": "a secret value", "error": "<from $NAME>", "stores": {"text": {"token": "a secret value"}}}
    assert expected == redactor.record(record)


def test_a_store_opens_with_what_the_environment_says(damaged: Path) -> None:
    """The installed command, stores named by variables: it works, and neither tables nor JSON show a value."""
    (damaged / "text.db").rename(damaged / "canary-text.db")
    configure(damaged, 'path = "text.db"', 'path = { env = "TEXT_FILE" }')
    variables = environment(TEXT_FILE="canary-text.db")
    receipts = damaged / "receipts.jsonl"
    shown = run("show", "--dir", damaged, "doc-03", "--json", env=variables)
    done = run("repair", "--dir", damaged, "--strategy", "most-recent", "--json", "--receipts", receipts, env=variables)
    assert (1, 7) == (done.status, done.record["documents"])
    (damaged / "canary-text.db").rename(damaged / "elsewhere.db")
    gone = run("check", "--dir", damaged, env=variables)
    assert (2, True) == (gone.status, f"{damaged}/<from $TEXT_FILE> does not exist" in gone.complaint)
    told = shown.out + shown.err + done.out + done.err + receipts.read_text() + gone.err
    assert "canary" not in told
    control = run("check", "--dir", damaged, env=variables | {"TEXT_FILE": "text.db"})
    assert f"{damaged}/<from $TEXT_FILE> does not exist" in control.complaint


def test_a_variable_that_is_not_set_stops_the_command(damaged: Path, call: Callable[..., Done]) -> None:
    """One line, status 2, before the lock is taken or anything is written."""
    configure(damaged, 'path = "cache.db"', 'path = { env = "TRIO_REPAIR_TEST_UNSET" }')
    before = sorted(path.name for path in damaged.iterdir())
    receipts = damaged / "receipts.jsonl"
    for command in (
        ["check"],
        ["repair", "--strategy", "text", "--receipts", receipts],
        ["purge", "--older-than", "1d"],
    ):
        done = call(*command, "--dir", damaged)
        assert 2 == done.status
        assert (
            "line 21: stores.cache.path: the environment variable TRIO_REPAIR_TEST_UNSET is not set" in done.complaint
        )
    assert before == sorted(path.name for path in damaged.iterdir())


def test_a_wrong_value_is_not_quoted(damaged: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting's own complaint names the variable where it would have quoted the value."""
    configure(damaged, 'path = "text.db"', 'path = "text.db"\nsynchronous = { env = "SYNC" }')
    monkeypatch.setenv("SYNC", CANARY)
    done = call("check", "--dir", damaged)
    assert 2 == done.status
    assert "line 10: stores.text.synchronous: must be 'full' or 'normal', not " in done.complaint
    assert done.complaint.endswith("<from $SYNC>'")
    monkeypatch.setenv("SYNC", "normal")  # the control
    assert 1 == call("check", "--dir", damaged, "--summary").status
    configure(damaged, '{ env = "SYNC" }', "'hunter2-in-the-file'")
    assert "hunter2-in-the-file" in call("check", "--dir", damaged).complaint  # so it would have been quoted


EMBEDDER = """\
def reject(**settings):
    raise TypeError(f"cannot use {settings}")


def explode(**settings):
    raise RuntimeError(f"cannot use {settings}")
"""


@pytest.mark.parametrize("maker", ["reject", "explode"])
def test_an_embedder_that_quotes_its_settings_is_not_quoted(damaged: Path, tmp_path: Path, maker: str) -> None:
    """Neither its own TypeError nor an exception that nobody expected; the key and the place are named."""
    (tmp_path / "quoting.py").write_text(EMBEDDER)
    configure(damaged, 'kind = "hashing"', f'kind = "quoting:{maker}"\napi_key = {{ env = "API_KEY" }}')
    before = contents(damaged)
    done = run("check", "--dir", damaged, env=environment(PYTHONPATH=_with_path(tmp_path), API_KEY=CANARY))
    assert 2 == done.status
    assert f"line 16: stores.vector.embedder.kind: 'quoting:{maker}' could not make it: " in done.complaint
    assert f"Error was raised in {tmp_path / 'quoting.py'}, line " in done.complaint
    assert "c4n4ry" not in done.out + done.err
    assert before == contents(damaged)


def _with_path(directory: Path) -> str:
    return os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])
