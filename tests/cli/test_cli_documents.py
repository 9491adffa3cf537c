"""`show`, `resolve`, `purge`, `search` and `init`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import (
    Application,
    Done,
    Fifo,
    configure,
    contents,
    doc_id,
    document,
    findings,
    with_database,
    with_stores,
)

from trio_repair import Document


def test_show_says_what_is_held_and_what_would_be_done(damaged: Path, call: Callable[..., Done]) -> None:
    """Each store's version and digest, the finding, and each strategy's plan; status 1 for a divergence."""
    done = call("show", "--dir", damaged, doc_id(3))
    assert 1 == done.status
    assert "finding: vector stale" in done.out
    assert document(3, 2).version.digest[:12] in done.out
    assert "copy version 1 to text from vector" in done.out
    record = call("show", "--dir", damaged, doc_id(3), "--json").record
    assert (doc_id(3), [{"kind": "stale", "store": "vector"}]) == (record["doc_id"], record["findings"])
    assert ["text", "vector", "most-recent", "manual"] == list(record["strategies"])
    assert ["copy", "copy", "copy", "manual"] == [plan["action"] for plan in record["strategies"].values()]
    assert "text.db" not in done.out


def test_show_tells_consistent_from_nowhere(sound: Path, call: Callable[..., Done]) -> None:
    """Status 0 for a consistent document, 1 for one that no store holds."""
    assert 0 == call("show", "--dir", sound, doc_id(0)).status
    done = call("show", "--dir", sound, "nowhere")
    assert 1 == done.status
    assert "finding: in no store" in done.out


def test_a_person_resolves_a_conflict(damaged: Path, call: Callable[..., Done]) -> None:
    """Before and after are shown; afterwards the document is consistent."""
    done = call("resolve", "--dir", damaged, doc_id(11), "--take", "vector")
    assert 0 == done.status
    assert ["taking vector: copy version 1 to text from vector"] == [
        line for line in done.out.splitlines() if line.startswith("taking")
    ]
    assert done.out.endswith("repaired\n")
    assert doc_id(11) not in findings(damaged)
    deleted = call("resolve", "--dir", damaged, doc_id(7), "--take", "delete", "--json").record
    assert ("repaired", "tombstone") == (deleted["outcome"], deleted["after"]["text"]["presence"])
    assert "live" == deleted["before"]["vector"]["presence"]
    assert doc_id(7) not in findings(damaged)


def test_a_choice_that_cannot_be_taken_is_left_open(damaged: Path, call: Callable[..., Done]) -> None:
    """The text store holds no copy of an orphan: status 1, nothing written."""
    before = contents(damaged)
    done = call("resolve", "--dir", damaged, doc_id(7), "--take", "text")
    assert 1 == done.status
    assert "needs-manual" in done.out
    assert before == contents(damaged)


def test_a_text_that_does_not_have_its_digest_is_left_to_a_person(damaged: Path, call: Callable[..., Done]) -> None:
    """A row that claims a digest that is not its own, and no other store to take it from: `show` says what repair will.

    And it says what a person can do: each of the ways that it names is gone here.
    """
    with_database(
        damaged / "text.db",
        lambda connection: (
            connection.execute(f"UPDATE documents SET digest = '{'0' * 64}' WHERE doc_id = 'doc-01'").get
        ),
    )
    shown = call("show", "--dir", damaged, doc_id(1))
    cannot = "the text store cannot give the text (its content does not have the digest that is stored with it"
    assert (1, 2) == (shown.status, " ".join(shown.out.split()).count(cannot))
    assert "write the document anew, or delete it with trio-repair resolve --take delete" in " ".join(shown.out.split())
    assert "copy version" not in shown.out
    strategies = call("show", "--dir", damaged, doc_id(1), "--json").record["strategies"]
    assert ["manual", []] == [strategies["text"][key] for key in ("action", "writes")]
    repaired = call("repair", "--dir", damaged, "--strategy", "text", doc_id(1), "--json").record
    assert (1, True) == (repaired["outcomes"]["needs-manual"], cannot in repaired["failures"][0]["error"])
    taken = call("resolve", "--dir", damaged, doc_id(1), "--take", "text")
    assert (1, True) == (taken.status, "taking text: Manual resolution required" in taken.out)
    assert "needs-manual" in taken.out
    with_database(
        damaged / "text.db",
        lambda connection: connection.execute("UPDATE documents SET digest = NULL WHERE doc_id = 'doc-01'").get,
    )
    assert "copy version 1 to vector from text" in call("show", "--dir", damaged, doc_id(1)).out  # written anew
    with_database(
        damaged / "text.db",
        lambda connection: (
            connection.execute(f"UPDATE documents SET digest = '{'0' * 64}' WHERE doc_id = 'doc-01'").get
        ),
    )
    assert 0 == call("resolve", "--dir", damaged, doc_id(1), "--take", "delete").status
    assert "consistent" in call("show", "--dir", damaged, doc_id(1)).out


def test_a_source_that_cannot_be_read_is_not_named(damaged: Path, call: Callable[..., Done]) -> None:
    """Where another store has the text, it is taken from there."""
    with_database(
        damaged / "text.db",
        lambda connection: (
            connection.execute(f"UPDATE documents SET digest = '{'0' * 64}', number = 7 WHERE doc_id = 'doc-13'").get
        ),
    )
    assert "copy version 1 to text from vector" in call("show", "--dir", damaged, doc_id(13)).out
    assert 0 == call("resolve", "--dir", damaged, doc_id(13), "--take", "vector").status
    assert "consistent" in call("show", "--dir", damaged, doc_id(13)).out


def test_a_choice_holds_only_for_what_the_person_saw(damaged: Path, call: Callable[..., Done]) -> None:
    """With what `show --json` wrote, a document that moved since is refused; unmoved, it is resolved."""
    seen = damaged / "seen.json"
    seen.write_text(call("show", "--dir", damaged, doc_id(11), "--json").out)

    async def move(application: Application) -> None:
        await application.put(application.stores.vector, document(11, 1, "a third content"))

    command = ["resolve", "--dir", damaged, doc_id(11), "--take", "text", "--expected-from", seen]
    with_stores(damaged, move)
    refused = call(*command)
    assert 1 == refused.status
    assert "changed" in refused.out
    seen.write_text(call("show", "--dir", damaged, doc_id(11), "--json").out)
    assert 0 == call(*command).status
    assert doc_id(11) not in findings(damaged)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b'{"stores": {}, "doc_id": "x"}', b'{"stores": [], "doc_id": 1}']
)
def test_a_file_of_expectations_that_is_something_else_is_refused(
    damaged: Path, call: Callable[..., Done], content: bytes
) -> None:
    """Not JSON, of another shape, or about another document: status 2."""
    (damaged / "seen.json").write_bytes(content)
    done = call("resolve", "--dir", damaged, doc_id(11), "--take", "text", "--expected-from", damaged / "seen.json")
    assert 2 == done.status
    assert done.complaint.startswith("--expected-from: ")


async def _delete(application: Application) -> None:
    """One delete that reached every store, and one that reached the text store only."""
    for store in application.stores.critical.values():
        await application.put(store, Document.tombstone(doc_id(1), number=2))
    await application.put(application.stores.text, Document.tombstone(doc_id(2), number=2))


def held_of(directory: Path, one: str) -> dict[str, str]:
    """What each store holds of a document."""

    async def look(application: Application) -> dict[str, str]:
        return {
            name: (await store.observe([one]))[0].presence.value  # type: ignore[union-attr]  # no errors here
            for name, store in application.stores.by_name.items()
        }

    held: dict[str, str] = with_stores(directory, look)
    return held


def test_purge_forgets_what_every_store_has_deleted(sound: Path, call: Callable[..., Done]) -> None:
    """A tombstone that is not everywhere is kept, a young one is kept, a dry run keeps all."""
    with_stores(sound, _delete)
    before = contents(sound)
    assert {"purged": 0} == {"purged": call("purge", "--dir", sound, "--older-than", "1d", "--json").record["purged"]}
    dry = call("purge", "--dir", sound, "--older-than", "0s", "--dry-run", "--json")
    assert (1, 1, 1) == (dry.status, dry.record["purged"], dry.record["unsynchronised"])
    assert before == contents(sound)
    done = call("purge", "--dir", sound, "--older-than", "0s")
    assert 1 == done.status
    assert ["purged", "1"] in [line.split() for line in done.out.splitlines()]
    assert {"text": "absent", "vector": "absent", "cache": "absent"} == held_of(sound, doc_id(1))
    assert {"text": "tombstone", "vector": "live", "cache": "live"} == held_of(sound, doc_id(2))
    assert 0 == call("repair", "--dir", sound, "--strategy", "most-recent").status
    assert 0 == call("purge", "--dir", sound, "--older-than", "0s").status
    assert {"text": "absent", "vector": "absent", "cache": "absent"} == held_of(sound, doc_id(2))


def test_search_asks_the_stores_as_an_application_would(damaged: Path, call: Callable[..., Done]) -> None:
    """Hits of both stores with what the other one knows: a deleted document that is still found is named."""
    done = call("search", "--dir", damaged, "document speaks of topic3", "--limit", "40")
    assert 0 == done.status
    text, vector = done.out.split("\nvector")
    assert doc_id(3) in text
    assert doc_id(9) not in text
    assert ["deleted in text"] == [
        line[line.index("deleted in text") :][:15] for line in vector.splitlines() if doc_id(9) in line
    ]
    hits = call("search", "--dir", damaged, "topic3", "--in", "text", "--json").records
    assert {"text"} == {hit["store"] for hit in hits}
    assert all("topic3" in hit["passage"] for hit in hits)
    assert {doc_id(number) for number in (3, 10, 17, 24, 31, 38)} == {hit["doc_id"] for hit in hits}
    nearest = call("search", "--dir", damaged, "document 20 speaks of topic6 in version 1", "--in", "vector", "--json")
    assert doc_id(20) == nearest.records[0]["doc_id"]
    cached = call("search", "--dir", damaged, "--in", "cache", doc_id(0), "--json").record
    assert (document(0).text, 1) == (cached["text"], cached["version"]["number"])
    assert "the cache does not hold doc-01\n" == call("search", "--dir", damaged, "--in", "cache", doc_id(1)).out


def test_searching_what_is_not_there(sound: Path, call: Callable[..., Done]) -> None:
    """No cache in the configuration is wrong usage; no hit is no error."""
    configure(sound, '[stores.cache]\nkind = "sqlite-cache"\npath = "cache.db"\n', "")
    done = call("search", "--dir", sound, "--in", "cache", "x")
    assert (2, "the configuration names no cache") == (done.status, done.complaint)
    assert "text: no hits\n" == call("search", "--dir", sound, "--in", "text", "zebra").out
    assert {} == {record["doc_id"]: record for record in call("check", "--dir", sound, "--json").records[:-1]}


def test_init_writes_a_configuration_to_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Done]
) -> None:
    """It is found without an option, needs the stores to exist, and is never overwritten."""
    monkeypatch.chdir(tmp_path)
    done = call("init")
    assert (0, "") == (done.status, done.out)
    assert "trio-repair check --config trio-repair.toml" in done.err
    check = call("check")
    assert 2 == check.status
    assert "text.db does not exist" in check.complaint
    (tmp_path / "trio-repair.toml").write_text("mine")
    again = call("init")
    assert 2 == again.status
    assert "exists already" in again.complaint
    assert "mine" == (tmp_path / "trio-repair.toml").read_text()


def test_an_interrupted_purge_says_what_it_did(
    sound: Path,
    troubled: Callable[..., dict[str, str]],
    start: Callable[..., subprocess.Popen[bytes]],
    fifo: Callable[[str], Fifo],
) -> None:
    """The second Ctrl-C cancels it: status 130 and a true count."""
    with_stores(sound, _delete)
    reached = fifo("reached")
    env = troubled(sound, method="observe", reached=str(reached.path), hangs=True)
    process = start("purge", "--dir", sound, "--older-than", "0s", "--json", env=env)
    reached.wait()
    process.send_signal(2)
    process.send_signal(15)
    out, err = process.communicate(timeout=30)
    assert (130, b"trio-repair: interrupted\n") == (process.returncode, err)
    assert 0 == json.loads(out)["purged"]
