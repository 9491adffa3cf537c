"""Instruments: ready-made watchers of an engine.

Those in `prometheus` and `opentelemetry` need the extras ``trio-repair[prometheus]`` and ``trio-repair[otel]``.
"""

from ._json_lines import JsonLinesInstrument, read_events
from ._logging import LoggingInstrument

__all__ = ["JsonLinesInstrument", "LoggingInstrument", "read_events"]
