"""What instruments are told, and what becomes of one that raises."""

from __future__ import annotations

import attrs
import trio
from engine_world import job

from trio_repair import EngineEvent, EventKind, RepairOutcome, RepairResult
from trio_repair._telling import Telling
from trio_repair.testing import RecordingInstrument, make_document


async def test_an_event_carries_all_that_was_told_and_the_time_since_opening(autojump_clock):
    """Each field arrives under its own name; what was not told is None; seconds count from the opening."""
    await trio.sleep(5.0)
    listener = RecordingInstrument()
    telling = Telling([listener])
    await trio.sleep(2.5)
    told = {
        "doc_id": "d",
        "job": job("d"),
        "store": "text",
        "token": "t",
        "version": make_document("d", "text", number=1).version,
        "attempt": 3,
        "limit": 4,
        "timeout": 1.5,
        "detail": "why",
        "result": RepairResult(doc_id="d", job_id="j", outcome=RepairOutcome.FAILED),
    }
    telling.emit(EventKind.SETTLED, **told)
    telling.emit(EventKind.OVERDUE)
    full, empty = (attrs.asdict(event, recurse=False) for event in listener.events)
    assert {"kind": EventKind.SETTLED, "at": 2.5, **told} == full
    assert {"kind": EventKind.OVERDUE, "at": 2.5, **dict.fromkeys(told)} == empty


async def test_an_instrument_that_raises_is_logged_and_dropped(caplog):
    """It hears nothing more, also if it raised in an event of its own making; the others hear everything."""

    class Broken:
        heard = 0

        def __repr__(self) -> str:
            return "<Broken>"

        def on_event(self, event: EngineEvent) -> None:
            self.heard += 1
            if event.kind is EventKind.OVERDUE:
                telling.emit(EventKind.RETRY)
            raise ValueError("broken")

    broken, listener = Broken(), RecordingInstrument()
    telling = Telling([broken, listener])
    assert telling
    telling.emit(EventKind.OVERDUE)
    telling.emit(EventKind.LOCKED)
    assert 2 == broken.heard
    assert {EventKind.OVERDUE, EventKind.RETRY, EventKind.LOCKED} == {event.kind for event in listener.events}
    (record,) = caplog.records
    assert ("trio_repair", "<Broken> raised and is dropped") == (record.name, record.getMessage())
    assert record.exc_info is not None


async def test_without_instruments_nothing_is_told():
    """The engine asks first, and need not."""
    telling = Telling([])
    assert not telling
    telling.emit(EventKind.OVERDUE)
