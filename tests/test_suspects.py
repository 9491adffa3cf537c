"""What is remembered of documents whose calls failed."""

from __future__ import annotations

from trio_repair._requests import Operation
from trio_repair._suspects import MAX_REMEMBERED, Suspects

a, b, c = ((Operation.OBSERVE, doc_id) for doc_id in "abc")


def test_who_failed_travels_in_smaller_company_until_answered():
    """Half of the company after a failure, alone after a hang, anybody after an answer; others as they like."""
    suspects = Suspects()
    assert not suspects.any
    suspects.failed([a, b], 8)
    assert suspects.any
    assert (8, 4, 64) == (suspects.company(a, 64), suspects.company(b, 4), suspects.company(c, 64))
    suspects.hung([a])
    assert 1 == len(suspects._company)
    assert (1, True, False) == (suspects.company(a, 64), suspects.may_hang(a), suspects.may_hang(b))
    suspects.answered(a)
    assert suspects.any
    suspects.answered(b)
    assert not suspects.any
    assert 64 == suspects.company(a, 64)


def test_the_last_failure_counts():
    """A second failure in smaller company makes the company smaller still."""
    suspects = Suspects()
    suspects.failed([a], 8)
    suspects.failed([a], 4)
    assert 4 == suspects.company(a, 64)


def test_guilt_lasts_until_its_time_is_over():
    """The store is not asked before that time, is asked at it, and an answer ends it at once."""
    suspects = Suspects()
    suspects.hung([a])
    assert not suspects.is_guilty(a, 0.0)
    suspects.convict(a, 15.0)
    assert suspects.any
    assert [True, True, False] == [suspects.is_guilty(a, now) for now in (0.0, 14.9, 15.0)]
    assert suspects.may_hang(a)
    suspects.hung([a])
    assert suspects.is_guilty(a, 14.9)
    suspects.answered(a)
    assert not suspects.is_guilty(a, 1.0)
    assert not suspects.any


def test_it_remembers_so_many_and_the_last_ones():
    """However many documents fail and hang, the memory of them is bounded; one that fails again is young again."""
    suspects = Suspects()
    ids = [(Operation.WRITE, f"d{index}") for index in range(MAX_REMEMBERED + 1)]
    suspects.hung(ids[:-1])
    suspects.failed(ids[:-1], 2)
    suspects.hung(ids[:1])
    suspects.failed(ids[:1], 2)
    suspects.hung(ids[-1:])
    suspects.failed(ids[-1:], 2)
    assert [True, False, True] == [suspects.may_hang(question) for question in (ids[0], ids[1], ids[-1])]
    suspects.answered(ids[0])
    assert 64 == suspects.company(ids[1], 64)
    assert (MAX_REMEMBERED - 1, MAX_REMEMBERED - 1) == (len(suspects._hung), len(suspects._company))


def test_each_operation_is_suspected_for_itself():
    """A document whose writes hang may be looked at in any company, and an answer to a look does not clear it."""
    suspects = Suspects()
    look, write = (Operation.OBSERVE, "d"), (Operation.WRITE, "d")
    suspects.hung([write])
    suspects.answered(look)
    assert (False, True) == (suspects.may_hang(look), suspects.may_hang(write))
    assert (64, 1) == (suspects.company(look, 64), suspects.company(write, 64))
