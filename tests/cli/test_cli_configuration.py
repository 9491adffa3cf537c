"""The configuration file: what is taken, and what is refused with file, line and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_support import CONFIGURATION

from trio_repair import SyncStrategy
from trio_repair.cli._configuration import ConfigurationError, find_line, load_configuration, parse_configuration
from trio_repair.cli._status import UsageError
from trio_repair.cli._template import TEMPLATE, write_template

PATH = Path("/somewhere/search.toml")


def parse(text: str):
    return parse_configuration(PATH, text.encode())


def test_everything_that_can_be_set_is_taken() -> None:
    """Strategy, aliases, engine settings, content and store settings arrive where they belong."""
    configuration = parse(
        """
        [repair]
        strategy = "most-recent"
        timeout = 5
        concurrency = 7
        max_retries = 0
        max_deletes = 0.5
        cache = "fill"
        [content]
        metadata_keys = ["title", "author"]
        [stores.text]
        kind = "sqlite-text"
        path = "a.db"
        [stores.vector]
        kind = "other"
        deep = {x = 1}
        """
    )
    assert SyncStrategy.MOST_RECENT is configuration.strategy
    assert (5, 7, 0.5, "fill") == (
        configuration.engine.job_timeout_seconds,
        configuration.engine.max_concurrent_jobs,
        configuration.engine.max_deletes,
        configuration.engine.cache,
    )
    assert 0 == configuration.max_retries
    assert ("author", "title") == configuration.engine.content.metadata_keys
    assert ["text", "vector"] == list(configuration.stores)
    assert ("other", {"deep": {"x": 1}}) == (
        configuration.stores["vector"].kind,
        dict(configuration.stores["vector"].settings),
    )


def test_nothing_but_the_stores_is_needed() -> None:
    """No strategy is assumed; the rest has defaults."""
    configuration = parse('[stores.text]\nkind = "a"\n[stores.vector]\nkind = "b"\n')
    assert configuration.strategy is None
    assert 3 == configuration.max_retries
    assert 30.0 == configuration.engine.job_timeout_seconds


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("[repare]\n", "line 1: repare: unknown section; did you mean 'repair'?"),
        ("[zzz]\n", "line 1: zzz: unknown section; known are content, repair, stores"),
        ("[repair]\n\nstratgy = 'text'\n", "line 3: repair.stratgy: unknown key; did you mean 'strategy'?"),
        (
            "[repair]\nstrategy = 'newest'\n",
            "line 2: repair.strategy: must be one of text, vector, most-recent, manual",
        ),
        ("[repair]\nstrategy = 3\n", "line 2: repair.strategy: must be one of"),
        ("[repair]\ntimeout = -1\n", "line 2: repair.timeout: must be more than 0 seconds, not -1"),
        ("[repair]\ntimeout = nan\n", "line 2: repair.timeout: must be a finite number of seconds, not nan"),
        ("[repair]\ntimeout = inf\n", "line 2: repair.timeout: must be a finite number of seconds, not inf"),
        ("[repair]\ntimeout = '5s'\n", "line 2: repair.timeout: must be a number of seconds, not str"),
        ("[repair]\ntimeout = true\n", "line 2: repair.timeout: must be a number of seconds, not bool"),
        ("[repair]\nconcurrency = 0\n", "line 2: repair.concurrency: must be an int of at least 1, not 0"),
        ("[repair]\nmax_concurrent_jobs = 1.5\n", "line 2: repair.max_concurrent_jobs: must be an int of at least 1"),
        ("[repair]\nmax_retries = -1\n", "line 2: repair.max_retries: must be an int of at least 0, not -1"),
        ("[repair]\nmax_deletes = 2\n", "line 2: repair.max_deletes: must be a fraction from 0 to 1, not 2"),
        ("[repair]\nmax_changed = nan\n", "line 2: repair.max_changed: must be a fraction from 0 to 1, not nan"),
        ("[repair]\ncache = 'forget'\n", "line 2: repair.cache: must be one of 'refresh', 'invalidate', 'fill'"),
        ("[repair]\nallow_mass = 'yes'\n", "line 2: repair.allow_mass: must be True or False, not 'yes'"),
        ("[repair]\ncontent = 1\n", "line 2: repair.content: unknown key"),
        (
            "[repair]\ntimeout = 1\njob_timeout_seconds = 2\n",
            "line 3: repair.job_timeout_seconds: is another name of timeout",
        ),
        (f"[repair]\ntimeout = 1{'0' * 400}\n", "line 2: repair.timeout: is an integer of more than 64 bits"),
        (f"[repair]\n\ngrace = -1{'0' * 400}\n", "line 3: repair.grace: is an integer of more than 64 bits"),
        (f"[repair]\nmax_retries = {2**63}\n", "line 2: repair.max_retries: is an integer of more than 64 bits"),
        (f"[repair]\ntimeout = {'9' * 4400}\n", "line 2: repair.timeout: is an integer of more than 64 bits"),
        (f"[repair]\ntimeout = 1{'_0' * 4400}\n", "line 2: repair.timeout: is an integer of more than 64 bits"),
        (f"[repair]\ntimeout = 0x{'f' * 4000}\n", "line 2: repair.timeout: is an integer of more than 64 bits"),
        (
            f"[content]\nmetadata_keys = [\n{'9' * 4400}]\n",
            "line 3: content.metadata_keys: is an integer of more than 64 bits",
        ),
        ("repair = 3\n", "line 1: repair: must be a table, [repair]"),
        ("[content]\nmetadata = []\n", "line 2: content.metadata: unknown key; did you mean 'metadata_keys'?"),
        ("[content]\nmetadata_keys = 'title'\n", "line 2: content.metadata_keys: must be a list of strings"),
        ("[content]\nmetadata_keys = [1]\n", "line 2: content.metadata_keys: must be a list of strings"),
        ("[stores.vectro]\nkind = 'a'\n", "line 1: stores.vectro: unknown store; did you mean 'vector'?"),
    ],
)
def test_mistakes_are_named_with_file_line_and_key(change: str, complaint: str) -> None:
    """Each wrong key or value is refused by one line that says where it stands and what would be right."""
    text = change + '\n[stores.text]\nkind = "a"\n[stores.vector]\nkind = "b"\n'
    with pytest.raises(ConfigurationError, match=re.escape(f"{PATH}, {complaint}")):
        parse(text)
    parse(text.removeprefix(change))  # the control: it is this that was refused


def test_the_largest_integers_are_taken() -> None:
    """The bound is TOML's own; what is within it is judged by whoever uses it."""
    stores = '[stores.text]\nkind = "a"\n[stores.vector]\nkind = "b"\n'
    assert 2**63 - 1 == parse(f"[repair]\nmax_retries = {2**63 - 1}\n{stores}").max_retries
    assert -(2**63) == parse(f"{stores}depth = [{-(2**63)}]\n").stores["vector"].settings["depth"][0]
    with pytest.raises(
        ConfigurationError, match=r"line 5: stores\.vector\.depth\.x: is an integer of more than 64 bits"
    ):
        parse(f"{stores}depth = [{{x = {-(2**63) - 1}}}]\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", f"{PATH}: stores.text: is missing; add a table [stores.text]"),
        ("[stores.text]\nkind='a'\n", "stores.vector: is missing"),
        ("[stores]\ntext = 3\n", "line 2: stores.text: must be a table, [stores.text]"),
        ("[stores.text]\npath='a'\n[stores.vector]\nkind='b'", "line 1: stores.text.kind: is missing"),
        ("[stores.text]\nkind=3\n[stores.vector]\nkind='b'", "line 2: stores.text.kind: must be a string"),
        ("[[stores.text]]\nkind='a'\n", "stores.text: must be a table"),
        ("[repair\n", "line 1: is not valid TOML"),
        ("[repair]\nstrategy = \n", "line 2: is not valid TOML"),
        ("[repair]\ntimeout = 1\ntimeout = 2\n", "line 3: is not valid TOML"),
        ("[repair]\ncache = '''", "line 2: is not valid TOML"),
        ("x = " + "[" * 5000, "is nested too deeply"),
    ],
)
def test_incomplete_and_malformed_files_are_refused(text: str, complaint: str) -> None:
    """A missing store, a wrong shape, or broken TOML: one line that names the place."""
    with pytest.raises(ConfigurationError, match=re.escape(complaint)) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf_8_is_refused_by_line() -> None:
    """Bytes that are no text are found and their line is named."""
    with pytest.raises(ConfigurationError, match="line 2: is not UTF-8"):
        parse_configuration(PATH, b"# fine\n# \xff\n")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, and a directory: both say what to do or what is wrong."""
    with pytest.raises(ConfigurationError, match="there is no such configuration file; `trio-repair init"):
        load_configuration(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        load_configuration(tmp_path)


def test_lines_are_found_in_the_layouts_that_people_write() -> None:
    """Headers, keys, dotted and quoted keys, inline tables (by their own line), and silence where two fit."""
    text = '[a]\nx = 1\n[a."b"]\ny = 2\nc.d = 3\nt = {z = 1}\n# x = 9\n[q]\nx = 1\nx = 2\n'
    found = {
        keys: find_line(text, keys)
        for keys in [
            ("a",),
            ("a", "x"),
            ("a", "b"),
            ("a", "b", "y"),
            ("a", "b", "c", "d"),
            ("a", "b", "t", "z"),
            ("q", "x"),
            ("w",),
        ]
    }
    expected = [1, 2, 3, 4, 5, 6, None, None]
    assert expected == list(found.values())


def test_the_fingerprint_tells_other_stores_apart() -> None:
    """It changes with a store, the content or the directory, and not with how repairs are done."""
    first = parse(CONFIGURATION).fingerprint
    assert first == parse(CONFIGURATION.replace("settle = 0.05", "settle = 0.06")).fingerprint
    others = {
        parse(CONFIGURATION.replace("text.db", "other.db")).fingerprint,
        parse(CONFIGURATION.replace("dimension = 32", "dimension = 64")).fingerprint,
        parse(CONFIGURATION + '[content]\nmetadata_keys = ["title"]\n').fingerprint,
        parse_configuration(Path("/elsewhere/search.toml"), CONFIGURATION.encode()).fingerprint,
    }
    assert 5 == len({first, *others})


def test_store_settings_are_not_shown() -> None:
    """A setting may be a password: neither repr nor the fingerprint gives it away."""
    configuration = parse('[stores.text]\nkind="a"\npassword="hunter2"\n[stores.vector]\nkind="b"\n')
    assert "hunter2" not in repr(configuration) + configuration.fingerprint


def test_the_template_loads_and_names_no_strategy(tmp_path: Path) -> None:
    """What `init` writes is a valid configuration, and the commented lines are valid too."""
    path = tmp_path / "search.toml"
    write_template(path)
    assert load_configuration(path).strategy is None
    assert load_configuration(path).engine == load_configuration(path).engine
    uncommented = re.sub(r"(?m)^# (\w+ = )", r"\1", TEMPLATE)
    defaults = parse(uncommented)
    assert SyncStrategy.MOST_RECENT is defaults.strategy
    assert ("title",) == defaults.engine.content.metadata_keys


def test_the_template_states_the_true_defaults() -> None:
    """The commented lines say what is done without them."""
    uncommented = re.sub(r"(?m)^# (?!metadata|strategy)(\w+ = )", r"\1", TEMPLATE)
    assert parse(TEMPLATE).engine == parse(uncommented).engine
    assert parse(TEMPLATE).max_retries == parse(uncommented).max_retries


def test_the_template_overwrites_nothing(tmp_path: Path) -> None:
    """An existing file stays as it is; a place that cannot be written is named."""
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        write_template(path)
    assert "mine" == path.read_text()
    with pytest.raises(UsageError, match="No such file or directory"):
        write_template(tmp_path / "none" / "x.toml")


def test_the_documented_configuration_loads_and_every_command_is_documented() -> None:
    """docs/command.md: its examples are valid, and its table has a row for each command."""
    from trio_repair.cli._app import app

    document = Path(__file__).parents[2].joinpath("docs", "command.md").read_text()
    example, embedder = re.findall(r"```toml\n(.*?)```", document, re.DOTALL)
    assert SyncStrategy.MOST_RECENT is parse(example).strategy
    stores = '[stores.text]\nkind = "a"\n[stores.vector]\nkind = "b"\n'
    secret = parse_configuration(PATH, (stores + embedder).encode(), {"EMBEDDING_KEY": "k"})
    assert "k" == secret.stores["vector"].settings["embedder"]["api_key"]
    rows = set(re.findall(r"(?m)^\| `(\w+)", document))
    assert {name for name in app if not name.startswith("-")} <= rows
