"""The circuit breaker, as a table of what happens and a model that checks its invariant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_repair._breaker import MAX_RESET_SECONDS, BreakerState, CircuitBreaker


def _breaker(failures: int = 3, reset: float = 1.0) -> CircuitBreaker:
    return CircuitBreaker(failures, reset)


def test_it_opens_at_so_many_failures_in_a_row():
    """The last of `failures_to_open` failures opens it, and only that one says so."""
    breaker = _breaker()
    assert [False, False, True, False] == [breaker.failed() for _ in range(4)]
    assert BreakerState.OPEN is breaker.state


def test_a_success_starts_the_count_again():
    """Failures that are not in a row never open it."""
    breaker = _breaker()
    for _ in range(10):
        assert not breaker.failed()
        assert not breaker.failed()
        assert not breaker.succeeded()
    assert BreakerState.CLOSED is breaker.state


def test_one_call_that_was_given_up_opens_it():
    """A call that took too long is worth any number of failures."""
    breaker = _breaker(failures=1_000)
    assert breaker.failed(given_up=True)
    assert BreakerState.OPEN is breaker.state


def test_the_wait_doubles_while_probes_fail_and_starts_again_after_a_success():
    """1, 2, 4 ... 30 seconds; a success closes it and resets the wait."""
    breaker = _breaker()
    breaker.failed(given_up=True)
    waits = []
    for _ in range(7):
        waits.append(breaker.reset_seconds)
        breaker.half_open()
        assert BreakerState.HALF_OPEN is breaker.state
        assert breaker.failed()
    assert [1, 2, 4, 8, 16, 30, 30] == waits
    assert MAX_RESET_SECONDS == breaker.reset_seconds
    breaker.half_open()
    assert breaker.succeeded()
    assert (BreakerState.CLOSED, 1.0, 0) == (breaker.state, breaker.reset_seconds, breaker.failures)


def test_a_reset_longer_than_the_cap_is_kept():
    """The cap never shortens what the settings ask for."""
    breaker = _breaker(reset=60.0)
    breaker.failed(given_up=True)
    breaker.half_open()
    breaker.failed()
    assert 60.0 == breaker.reset_seconds


def test_half_opening_a_closed_breaker_does_nothing():
    """A probe timer that comes late must not throttle a store that is back."""
    breaker = _breaker()
    breaker.half_open()
    assert BreakerState.CLOSED is breaker.state


@given(st.lists(st.sampled_from(["ok", "fail", "give up", "probe"]), max_size=60), st.integers(1, 5))
def test_it_is_closed_if_and_only_if_the_invariant_says_so(events: list[str], failures: int):
    """CLOSED means: fewer than `failures_to_open` failures since the last success, and none of them given up."""
    breaker = CircuitBreaker(failures, 1.0)
    failed, given_up = 0, False
    for event in events:
        if event == "ok":
            breaker.succeeded()
            failed, given_up = 0, False
        elif event == "probe":
            breaker.half_open()
        else:
            breaker.failed(given_up=event == "give up")
            failed += 1
            given_up = given_up or event == "give up"
        assert (failed < failures and not given_up) == (breaker.state is BreakerState.CLOSED)
