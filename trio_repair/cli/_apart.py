"""Calling a function in a process of its own."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_process_of_its_own(fn: Callable[[], T]) -> T:
    """Call `fn`, which can be pickled and whose result can, in a new interpreter; blocks until it is done.

    Ctrl-C in the terminal reaches that process too, and is left to this one.
    """
    with ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as processes:
        return processes.submit(fn).result()
