"""Instruments: ready-made watchers of an engine."""

from ._json_lines import JsonLinesInstrument, read_events
from ._logging import LoggingInstrument

__all__ = ["JsonLinesInstrument", "LoggingInstrument", "read_events"]
