"""What embedders that are made of a function have in common, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from trio_repair import InvalidValue

EmbeddingFunction: TypeAlias = Callable[[list[str]], Sequence[Sequence[float]]]


class FunctionEmbedder:
    """A function, and what it makes.

    Raises:
        InvalidValue: `model`, `dimension` or `texts_per_call` is not usable.
    """

    def __init__(self, model: str, dimension: int, function: EmbeddingFunction, texts_per_call: int) -> None:
        if not isinstance(model, str) or not model:
            raise InvalidValue("model", "must be a str that is not empty")
        self._model = model
        self._dimension = check_positive("dimension", dimension)
        self._function = function
        self._texts_per_call = check_positive("texts_per_call", texts_per_call)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._model!r}, {self._dimension})"

    @property
    def model(self) -> str:
        """Names what makes the vectors."""
        return self._model

    @property
    def dimension(self) -> int:
        """How many numbers one vector has."""
        return self._dimension

    @property
    def texts_per_call(self) -> int:
        """How many texts the function is given at most."""
        return self._texts_per_call


def check_positive(field: str, value: object) -> int:
    """Return `value` if it is an int of at least 1.

    Raises:
        InvalidValue: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidValue(field, f"must be an int of at least 1, not {value!r}")
    return value
