"""InProcess: an embedding function in processes of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_parallel

from trio_repair import InvalidValue, Prepared, StoreUnavailable
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.embedding.processes import InProcess
from trio_repair.stores._settings import embedder_setting
from trio_repair.stores.sqlite_vector import open_sqlite_vector
from trio_repair.testing import make_document


def ids_of_processes(texts: Sequence[str]) -> list[list[float]]:
    time.sleep(0.2)  # so that one process cannot do the work of two
    return [[float(os.getpid())] for _ in texts]


def refuse(texts: Sequence[str]) -> list[list[float]]:
    raise ValueError(f"refused {len(texts)}")


def die(_texts: Sequence[str]) -> list[list[float]]:
    os._exit(3)


def too_few(texts: Sequence[str]) -> list[list[float]]:
    return [[1.0]] * (len(texts) - 1)


def hang(texts: Sequence[str]) -> list[list[float]]:
    Path(texts[0]).write_text(str(os.getpid()))
    time.sleep(60)
    return []


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
async def test_vectors_are_those_of_the_function(processes: int, count: int) -> None:
    """However texts are divided among processes, their vectors come in order."""
    inner = HashingEmbedder(32)
    embedder = InProcess(inner.model, inner.dimension, inner.embed_all, max_processes=processes)
    texts = [f"text number {number}" for number in range(count)]
    assert list(await inner.embed(texts)) == list(await embedder.embed(texts))
    assert (inner.model, 32, "InProcess('feature-hashing-v1', 32)") == (
        embedder.model,
        embedder.dimension,
        repr(embedder),
    )


@pytest.mark.parametrize("processes", [1, 2])
async def test_it_runs_in_so_many_processes(processes: int) -> None:
    """None of which is this one."""
    embedder = InProcess("pids", 1, ids_of_processes, max_processes=processes)
    pids = {pid for (pid,) in await embedder.embed(["text"] * 8)}
    assert os.getpid() not in pids
    assert processes == len(pids)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("function", "error"),
    [(refuse, ValueError), (die, trio_parallel.BrokenWorkerError)],
)
async def test_what_goes_wrong_is_raised(processes: int, function: Callable[..., Any], error: type[Exception]) -> None:
    """What the function raises, or that its process died; the next call has another process."""
    embedder = InProcess("wrong", 1, function, max_processes=processes)
    for _ in range(2):
        with pytest.raises(error):
            await embedder.embed(["a", "b"])


async def test_too_few_vectors_are_not_given_to_other_texts() -> None:
    """Divided texts have their own vectors, or none."""
    with pytest.raises(ValueError, match="not as many vectors as texts"):
        await InProcess("too few", 1, too_few, max_processes=2).embed(["a", "b", "c", "d"])


async def test_cancelled(tmp_path: Path) -> None:
    """It returns at once, and its process ends."""
    told = tmp_path / "pid"
    began = trio.current_time()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(InProcess("hangs", 1, hang).embed, [str(told)])
            while not told.exists() or not told.read_text():  # noqa: ASYNC110 - another process writes it
                await trio.sleep(0.01)
            scope.cancel()
    assert scope.cancelled_caught
    assert trio.current_time() - began < 30
    pid = int(told.read_text())
    with trio.fail_after(10):
        while is_alive(pid):  # noqa: ASYNC110 - nobody here is told
            await trio.sleep(0.01)


async def test_a_process_that_dies_is_a_failure_that_may_pass(tmp_path: Path) -> None:
    """A vector store tells it of each document; nothing is written."""
    embedder = InProcess("dies", 1, die)
    async with open_sqlite_vector(
        tmp_path / "vector.db", embedder=embedder, chunker=WindowChunker(), create=True
    ) as store:
        (answer,) = await store.prepare([make_document("a", "text")])
        assert isinstance(answer, StoreUnavailable)
        assert "raised BrokenWorkerProcessError" in answer.problem


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"model": ""}, "model"),
        ({"dimension": 0}, "dimension"),
        ({"max_processes": 0}, "max_processes"),
        ({"max_processes": True}, "max_processes"),
        ({"function": lambda texts: texts}, "function"),
    ],
)
def test_arguments_that_cannot_be(changed: Mapping[str, Any], field: str) -> None:
    """They are refused when it is made, and not in a call."""
    arguments = {"model": "m", "dimension": 1, "function": refuse, "max_processes": 1, **changed}
    with pytest.raises(InvalidValue) as caught:
        InProcess(**arguments)
    assert field == caught.value.field


async def test_a_configuration_may_ask_for_processes(tmp_path: Path) -> None:
    """`processes` of the hashing embedder; the vectors stay the same, and so nothing counts as stale."""
    plain = embedder_setting({"embedder": {"kind": "hashing", "dimension": 16}})
    apart = embedder_setting({"embedder": {"kind": "hashing", "dimension": 16, "processes": 1}})
    assert isinstance(plain, HashingEmbedder)
    assert isinstance(apart, InProcess)
    assert (plain.model, plain.dimension) == (apart.model, apart.dimension)
    async with open_sqlite_vector(tmp_path / "v.db", embedder=apart, chunker=WindowChunker(), create=True) as store:
        (answer,) = await store.prepare([make_document("a", "some text")])
        assert isinstance(answer, Prepared)
        assert [vector.tobytes() for vector in plain.embed_all(["some text"])] == list(answer.payload.vectors)


@pytest.mark.parametrize("processes", [-1, True, False, "2", 1.5, 0.0])
def test_a_configuration_with_wrong_processes(processes: Any) -> None:
    """The key is named."""
    with pytest.raises(InvalidValue) as caught:
        embedder_setting({"embedder": {"kind": "hashing", "processes": processes}})
    assert "embedder.processes" == caught.value.field


def test_without_trio_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is said."""
    monkeypatch.setitem(__import__("sys").modules, "trio_repair.embedding.processes", None)
    with pytest.raises(InvalidValue, match=r'pip install "trio-repair\[parallel\]"') as caught:
        embedder_setting({"embedder": {"processes": 1}})
    assert "embedder.processes" == caught.value.field
