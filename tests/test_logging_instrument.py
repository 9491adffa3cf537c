"""The logging instrument: one record for each event, at the level that its meaning has."""

from __future__ import annotations

import logging
import random

import pytest
from engine_world import World, config, job

from trio_repair import EngineEvent, EventKind, RepairOutcome, RepairResult, open_repair_engine
from trio_repair.instrumentation import LoggingInstrument
from trio_repair.testing import Fault, FaultKind


async def test_a_repair_in_the_log(autojump_clock, caplog):
    """What happened is there by name, as sentence and as object, and no text of the document."""
    world = World()
    world.drift()
    with caplog.at_level(logging.DEBUG, logger="trio_repair.events"):
        async with open_repair_engine(world.stores, instruments=[LoggingInstrument()]) as engine:
            repair = job()
            await engine.execute_repair_job(repair)
    records = [record for record in caplog.records if record.name == "trio_repair.events"]
    assert [EventKind.ACCEPTED, EventKind.STARTED] == [record.trio_repair_event.kind for record in records[:2]]
    settled = records[-1]
    assert (logging.INFO, EventKind.SETTLED) == (settled.levelno, settled.trio_repair_event.kind)
    assert f"settled doc_id='d' job_id={repair.id} outcome=repaired updated=vector,cache" == settled.getMessage()
    sent = [record for record in records if record.trio_repair_event.kind is EventKind.WRITE_SENT]
    assert (logging.DEBUG, "write-sent store=vector doc_id='d'") == (sent[0].levelno, sent[0].getMessage())
    assert "d at 2" not in caplog.text


async def test_failures_are_louder(autojump_clock, caplog):
    """A failed repair is an error with its reason; a retry is an INFO; a warning stands in its settled record."""
    world = World()
    world.drift()
    world.faulty["vector"].add(Fault(FaultKind.UNAVAILABLE, "prepare", times=1))
    world.faulty["cache"].add(Fault(FaultKind.UNAVAILABLE, "observe"))
    with caplog.at_level(logging.DEBUG, logger="trio_repair.events"):
        async with open_repair_engine(
            world.stores, config(), instruments=[LoggingInstrument()], rng=random.Random(1)
        ) as engine:
            await engine.execute_repair_job(job())
            await engine.execute_repair_job(job("nowhere"))
    by_level = {
        (record.trio_repair_event.kind, record.levelno) for record in caplog.records if record.name.endswith("events")
    }
    assert (EventKind.RETRY, logging.INFO) in by_level
    assert (EventKind.SETTLED, logging.ERROR) in by_level
    assert "warning='Cache update warning" in caplog.text
    assert "error='in no store" in caplog.text


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        (RepairOutcome.REPAIRED, logging.INFO),
        (RepairOutcome.ALREADY_CONSISTENT, logging.INFO),
        (RepairOutcome.CANCELLED, logging.INFO),
        (RepairOutcome.NEEDS_MANUAL, logging.WARNING),
        (RepairOutcome.TIMED_OUT, logging.WARNING),
        (RepairOutcome.FAILED, logging.ERROR),
    ],
)
def test_the_level_of_each_outcome(caplog, outcome: RepairOutcome, level: int):
    """Who looks at warnings sees what needs somebody."""
    logger = logging.getLogger("somewhere.else")
    result = RepairResult(doc_id="d", job_id="j", outcome=outcome)
    with caplog.at_level(logging.DEBUG):
        LoggingInstrument(logger).on_event(EngineEvent(kind=EventKind.SETTLED, at=0.0, doc_id="d", result=result))
    assert [("somewhere.else", level)] == [(record.name, record.levelno) for record in caplog.records]


def test_what_is_not_wanted_is_not_written(caplog):
    """A DEBUG event costs no record where DEBUG is off."""
    with caplog.at_level(logging.INFO):
        LoggingInstrument().on_event(EngineEvent(kind=EventKind.STARTED, at=0.0))
    assert not caplog.records
