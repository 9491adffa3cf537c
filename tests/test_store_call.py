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


def test_what_another_call_waits_in_stays_with_it():
    """An adapter that gives one coroutine to two calls: the second one is told so, and the first one is answered."""
    shared = _call("trapped")

    async def run() -> str:
        return await Stretches(lambda _argument: shared, None)

    first, second = run(), run()
    assert "trapped" == first.send(None)
    with pytest.raises(RuntimeError, match="being awaited already"):
        second.send(None)
    with pytest.raises(StopIteration) as ended:
        first.send("an answer")
    assert "done with an answer" == ended.value.value


def test_whatever_can_be_awaited_is_a_call():
    """A coroutine, one that is made of a generator, and what has an `__await__`."""

    class Other:
        def __await__(self) -> Generator[str, Any, str]:
            return _call("trapped").__await__()

    @types.coroutine
    def generator(first: str) -> Generator[Any, Any, str]:
        return (yield from _call(first).__await__())

    for call in (_call, generator, lambda _first: Other()):

        async def run(call: Any = call) -> str:
            return await Stretches(call, "trapped")

        coroutine = run()
        assert "trapped" == coroutine.send(None)
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
