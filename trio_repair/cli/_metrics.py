"""`--metrics-port`: what a run does, for Prometheus to read while it lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from ..abc import Instrument
from ._output import Output
from ._status import UsageError

_LOOPBACK: Final = "127.0.0.1"
_OPTION: Final = "--metrics-port"


def check_port(port: int) -> int:
    """Return a port, 0 for any that is free.

    Raises:
        UsageError: it is none.
    """
    if not 0 <= port <= 65_535:
        raise UsageError(f"{_OPTION}: must be from 0 (any that is free) to 65535, not {port}")
    return port


@contextmanager
def serving_metrics(port: int | None, output: Output) -> Iterator[Sequence[Instrument]]:
    """Serve metrics on this machine's loopback alone, in a thread; gives the instruments that count them.

    Args:
        port: None: nothing is served, and nothing is imported for it.
        output: is told the address.

    Raises:
        UsageError: the library is not installed, or the port cannot be had.
    """
    if port is None:
        yield ()
        return
    try:
        from prometheus_client import start_http_server  # noqa: PLC0415 - an extra, and not needed otherwise

        from ..instrumentation.prometheus import PrometheusInstrument  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("prometheus_client"):
            raise
        raise UsageError(
            f'{_OPTION}: needs prometheus-client; install it with: pip install "trio-repair[prometheus]"'
        ) from None
    instrument = PrometheusInstrument()
    try:
        server, thread = start_http_server(port, addr=_LOOPBACK, registry=instrument.registry)
    except OSError as error:
        raise UsageError(
            f"{_OPTION}: cannot listen on {_LOOPBACK}:{port} ({error.strerror}); name another port"
        ) from error
    try:
        output.say(f"metrics: http://{_LOOPBACK}:{server.server_port}/metrics")
        yield (instrument,)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
