"""One bulk call of a store, and what goes through the awaitable that measures it."""

from __future__ import annotations

import types
from collections.abc import Generator
from typing import Any

import pytest

from trio_repair._requests import Operation
from trio_repair._store_call import StoreCall, Stretches


@types.coroutine
def _trap(value: str) -> Generator[str, Any, Any]:
    return (yield value)


async def _call(first: str) -> str:
    try:
        answer = await _trap(first)
    except KeyError as error:
        answer = await _trap(f"caught {error}")
    return f"done with {answer}"


def _driven() -> Any:
    async def run() -> str:
        return await Stretches(_call, "trapped")

    return run()


@pytest.mark.parametrize("thrown", [False, True])
def test_what_is_sent_and_thrown_reaches_the_call(thrown: bool):
    """Whoever drives a coroutine by hand, or by throwing into it, sees what it would without being measured."""
    for coroutine in (_call("trapped"), _driven()):
        assert "trapped" == coroutine.send(None)
        if thrown:
            assert "caught 'mine'" == coroutine.throw(KeyError("mine"))
        with pytest.raises(StopIteration) as ended:
            coroutine.send("an answer")
        assert "done with an answer" == ended.value.value


def test_what_the_call_does_not_catch_comes_out():
    """And a coroutine that is closed closes the call."""
    coroutine = _driven()
    coroutine.send(None)
    with pytest.raises(ValueError, match="other"):
        coroutine.throw(ValueError("other"))
    coroutine = _driven()
    coroutine.send(None)
    coroutine.close()


async def test_a_call_that_was_not_made_has_no_history():
    """No timer, neither given up nor returned; a repair's deadline does not reach into it."""
    call = StoreCall(Operation.READ, [], suspect=True)
    assert (Operation.READ, [], True) == (call.operation, call.requests, call.suspect)
    assert (None, False, False, True) == (call.timer, call.given_up, call.returned, call.scope.shield)
