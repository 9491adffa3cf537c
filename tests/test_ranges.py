"""Ranges of entries: compared in few steps, and exactly as one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_repair import (
    AbsentMeans,
    DocumentVersion,
    Fence,
    Observation,
    Presence,
    RangeDigest,
    StoreTraits,
)
from trio_repair._ranges import BadEntries, Found, agree, check_entries, compare, entry, joined, take

TRAITS = StoreTraits(fence=Fence.STRONG, holds_text=True, keeps_tombstones=True, absent=AbsentMeans.MISSING)
ROLES = ("text", "vector", "cache")


def made(held: Mapping[str, str]) -> bytes:
    """Entries, from summaries by id."""
    return b"".join(f"{doc_id}\0{held[doc_id]}\0".encode() for doc_id in sorted(held))


def one_by_one(stores: Mapping[str, Mapping[str, str]]) -> Found:
    """What a comparison has to find, in the slowest way."""
    text, vector, cache = stores["text"], stores["vector"], stores.get("cache", {})
    ids = sorted({*text, *vector, *cache})
    suspects = [
        doc_id
        for doc_id in ids
        if text.get(doc_id) != vector.get(doc_id)
        or (doc_id in cache and cache[doc_id] != text.get(doc_id))
        or "" in {text.get(doc_id), vector.get(doc_id), cache.get(doc_id)}
    ]
    return Found(len(ids), suspects)


def test_an_entry_is_id_and_summary() -> None:
    """Each ends with NUL, and is in UTF-8."""
    view = Observation(presence=Presence.LIVE, token="1", version=DocumentVersion(number=7, digest="ab"))
    assert "é\0ab 7\0".encode() == entry("é", view, TRAITS)


def test_the_digest_of_entries() -> None:
    """It counts documents, those that must be looked at, and covers every byte."""
    entries = made({"a": "x 1", "b": "", "c": ""})
    assert RangeDigest(count=3, odd=2, digest=hashlib.sha256(entries).digest()) == RangeDigest.of(entries)
    assert RangeDigest(count=0, odd=0, digest=hashlib.sha256(b"").digest()) == RangeDigest.of(b"")


# Few and similar letters, so that ids and summaries share beginnings and ends, and are each other's parts.
words = st.text("ab", min_size=1, max_size=3)
contents = st.dictionaries(words, st.text("ab", max_size=3), max_size=6)


@given(contents, contents, contents)
@example({"a": "b"}, {"aa": "b"}, {})
@example({"a": "", "b": ""}, {"b": ""}, {"b": ""})
@example({"a": "a", "b": "b"}, {"a": "a"}, {"b": "b"})
def test_comparing_finds_what_looking_at_each_finds(
    text: dict[str, str], vector: dict[str, str], cache: dict[str, str]
) -> None:
    """Exactly the documents on which stores disagree or that are odd, and how many there are."""
    stores = dict(zip(ROLES, (text, vector, cache), strict=True))
    assert one_by_one(stores) == compare({role: made(held) for role, held in stores.items()}, None, None)
    del stores["cache"]
    assert one_by_one(stores) == compare({role: made(held) for role, held in stores.items()}, None, "bbb")


@given(contents, st.dictionaries(words, st.text("ab", max_size=3), max_size=2), st.sets(words, max_size=2))
def test_comparing_what_is_almost_equal(base: dict[str, str], changed: dict[str, str], lost: set[str]) -> None:
    """The same where most of the entries are shared, at the beginning, at the end, or around a difference."""
    other = {doc_id: summary for doc_id, summary in {**base, **changed}.items() if doc_id not in lost}
    for stores in (
        {"text": base, "vector": other, "cache": other},
        {"text": other, "vector": base, "cache": base},
        {"text": base, "vector": base, "cache": other},
    ):
        assert one_by_one(stores) == compare({role: made(held) for role, held in stores.items()}, None, None)


def digest(held: Mapping[str, str]) -> RangeDigest:
    return RangeDigest.of(made(held))


@given(contents, contents, contents)
def test_digests_agree_only_if_there_is_nothing_to_find(
    text: dict[str, str], vector: dict[str, str], cache: dict[str, str]
) -> None:
    """A range is passed only if a comparison of its entries would find nothing; control: some are passed."""
    for stores in (
        {"text": text, "vector": vector, "cache": cache},
        {"text": text, "vector": text, "cache": cache},
        {"text": text, "vector": text, "cache": text},
        {"text": text, "vector": text, "cache": {}},
        {"text": text, "vector": vector},
    ):
        if agree({role: digest(held) for role, held in stores.items()}):
            assert not one_by_one(stores).suspects
    plain = {doc_id: summary or "x" for doc_id, summary in text.items()}
    for cached in ({}, plain):
        assert agree({"text": digest(plain), "vector": digest(plain), "cache": digest(cached)})
    assert agree({"text": digest(plain), "vector": digest(plain)})


def test_what_is_not_known_agrees_with_nothing() -> None:
    """Not even with what is not known either."""
    known = digest({"a": "x"})
    for role in ROLES:
        assert not agree({**dict.fromkeys(ROLES, known), role: None})
    assert not agree(dict.fromkeys(ROLES))
    assert agree(dict.fromkeys(ROLES, known))


GOOD = made({"a": "1", "c": "1", "e": "1"})


@pytest.mark.parametrize(
    "bad",
    [
        b"a\0001\0e\0001\0c\0001\0",
        b"c\0001\0a\0001\0e\0001\0",
        b"a\0001\0c\0001\0c\0002\0",
        b"a\0001\0c\0001",
        b"a\0001\0c\0",
        b"a\0001\0c",
        b"\0\0",
        b"\0001\0a\0001\0",
        b"a\0001\0\0\0c\0001\0",
        b"a\0001\0g\0001\0",
        b"0\0001\0c\0001\0",
        b"a\0001\0b\xff\0001\0",
        b"a\0001\0b\xff\0\0",
    ],
)
def test_bad_entries_are_refused(bad: bytes) -> None:
    """Out of order, twice, cut short, without an id, not UTF-8, or out of their range; and the store is named."""
    for role in ("vector", "cache"):
        held = {"text": GOOD, "vector": GOOD, role: bad}
        with pytest.raises(BadEntries) as caught:
            compare(held, "0", "e")
        assert role == caught.value.role
    with pytest.raises(BadEntries) as caught:
        compare({"text": bad, "vector": GOOD}, "0", "e")
    assert "text" == caught.value.role
    with pytest.raises(BadEntries):
        check_entries("text", bad, "0", "e")


def test_good_entries_are_taken_apart() -> None:
    """A record for each document; as many are taken as reach a bound."""
    records = check_entries("text", GOOD, "0", "e")
    assert [(b"a", b"1"), (b"c", b"1"), (b"e", b"1")] == records
    assert GOOD == joined(records)
    assert [0, 1, 1, 2, 3, 3] == [take(records, bound) for bound in ("A", "a", "b", "c", "e", "f")]
    assert [] == check_entries("text", b"", None, None)


@given(st.dictionaries(st.text("a\x01\x7f\x80é𝄞", min_size=1, max_size=3), st.just("x")))
def test_entries_are_in_order_of_ids(held: dict[str, str]) -> None:
    """The order of the bytes is the order of the ids."""
    assert sorted(held) == [doc_id.decode() for doc_id, _ in check_entries("text", made(held), None, None)]


@pytest.mark.parametrize("every", [1, 2, 7, 50, 400])
def test_comparing_many(every: int) -> None:
    """Whether differences are few or many, whether documents are missing, changed or odd: exactly those are found."""
    text = {f"document {number:04}": f"{'x' * 64} {number}" for number in range(1000)}
    ids = list(text)
    vector = {doc_id: summary for index, (doc_id, summary) in enumerate(text.items()) if index % every}
    cache = {
        doc_id: "0" if index % every == 1 % every else summary for index, (doc_id, summary) in enumerate(text.items())
    }
    partial = {doc_id: summary for index, (doc_id, summary) in enumerate(cache.items()) if index % 3 == 0}
    odd = {**text, ids[0]: "", ids[500]: "", ids[-1]: ""}
    more = {**text, **{f"{doc_id} and more": "x" for doc_id in ids[::every]}}
    for other in (vector, odd, more):
        for cached in (text, cache, partial, odd, {}):
            for stores in (
                {"text": text, "vector": other, "cache": cached},
                {"text": other, "vector": text, "cache": cached},
            ):
                assert one_by_one(stores) == compare(
                    {role: made(held) for role, held in stores.items()}, None, ids[-1] + "~"
                )
