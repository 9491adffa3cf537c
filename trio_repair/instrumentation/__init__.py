"""Instruments: ready-made watchers of an engine."""

from ._logging import LoggingInstrument

__all__ = ["LoggingInstrument"]
