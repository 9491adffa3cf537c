"""`trio-repair purge`: forget deletes that every store has taken in."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import attrs
import trio

from .. import Observation, Presence, Removal, StoreError, Stores, TrioRepairError, WriteStatus
from ..abc import Store
from ._configuration import Configuration
from ._lock import hold_lock
from ._look import judge, look, seen
from ._opening import open_stores
from ._output import Output, table
from ._patience import Patience, patience
from ._signals import open_interruption
from ._status import ExitStatus, UsageError, report

_BATCH: Final = 256


@attrs.define
class Purge:
    """What a purge has done so far; every tombstone that it met is in one of these, in documents."""

    purged: int = 0
    younger: int = 0
    """Not old enough; counted only where the store itself cannot say when it took the tombstone in."""
    undated: int = 0
    """The tombstone carries no time, and the store does not keep one either."""
    unsynchronised: int = 0
    """Not every store holds the tombstone yet, or one holds something else."""
    changed: int = 0
    """It was written to while it was being purged, and was left as it is now."""
    errors: list[str] = attrs.field(factory=list)
    """Refusals of single documents."""

    def as_json(self) -> dict[str, Any]:
        """The counts."""
        return attrs.asdict(self)


def _deleted_at(views: Mapping[str, Observation]) -> dt.datetime | None:
    """When the newest tombstone was written; None if none says."""
    times = [
        view.version.updated_at
        for view in views.values()
        if view.version is not None and view.version.updated_at is not None
    ]
    return max(times, default=None)


def select(
    doc_ids: Sequence[str],
    found: Sequence[Mapping[str, Observation]],
    stores: Stores,
    purge: Purge,
    *,
    before: dt.datetime | None,
    undated: bool,
) -> dict[str, Mapping[str, Observation]]:
    """Those of some deleted documents that may be forgotten; the others are counted in `purge`.

    A delete may be forgotten once no store could bring the document back: every store that keeps tombstones holds
    this one, and the others hold nothing. For a cache, nothing is as good as a tombstone. `before` is None if all are
    known to be old enough.
    """
    ready = {}
    for doc_id, views in zip(doc_ids, found, strict=True):
        live = any(view.presence is Presence.LIVE for view in views.values())
        if live or set(views) != set(stores.by_name) or judge(doc_id, views, stores) is not None:
            purge.unsynchronised += 1
            continue
        deleted_at = _deleted_at(views)
        if before is not None and deleted_at is None and not undated:
            purge.undated += 1
        elif before is not None and deleted_at is not None and deleted_at > before:
            purge.younger += 1
        else:
            ready[doc_id] = views
    return ready


async def _remove(
    stores: Stores, ready: Mapping[str, Mapping[str, Observation]], scanned: str, purge: Purge, seconds: float
) -> None:
    # The store that is scanned goes last: if this is cut off, the next purge or repair finds the document again.
    order = sorted(stores.by_name, key=lambda name: (name == scanned, name != "cache"))
    left = dict(ready)
    for name in order:
        removals = [
            Removal(doc_id=doc_id, token=views[name].token)
            for doc_id, views in left.items()
            if views[name].presence is Presence.TOMBSTONE
        ]
        size = stores.by_name[name].traits.max_batch
        for start in range(0, len(removals), size):
            batch = removals[start : start + size]
            with patience(name, seconds):
                answers = await stores.by_name[name].remove(batch)
            for removal, answer in zip(batch, answers, strict=True):
                if answer.status is WriteStatus.LANDED:
                    continue
                del left[removal.doc_id]
                if answer.error is None:
                    purge.changed += 1
                else:
                    purge.errors.append(str(answer.error))
    purge.purged += len(left)


@runtime_checkable
class _DatesTombstones(Protocol):
    """A store that knows when each tombstone was written to it; the embedded stores do."""

    async def tombstones(
        self, before: dt.datetime | None = None, *, after: str | None = None, limit: int = 1000
    ) -> Sequence[str]: ...


async def _next_tombstones(
    store: Store, before: dt.datetime, after: str | None, waiting: Patience
) -> tuple[Sequence[str], str | None, bool]:
    """Some deleted documents, where to go on (None at the end), and whether they are known to be old enough."""
    if isinstance(store, _DatesTombstones):
        old = await store.tombstones(before, after=after, limit=_BATCH)
        return old, old[-1] if old else None, True
    found: list[str] = []
    # Closed before anything is removed, so that no snapshot is held open over the writes.
    async with store.open_scan(after) as pages:
        waiting.renew()
        async for page in pages:
            waiting.renew()
            found.extend(doc_id for doc_id, view in page if view.presence is Presence.TOMBSTONE)
            if page and len(found) >= _BATCH:
                return found, page[-1][0], False
    return found, None, False


async def purge_stores(
    stores: Stores, purge: Purge, *, before: dt.datetime, undated: bool, dry_run: bool, seconds: float, stop: trio.Event
) -> None:
    """Purge the tombstones that were written before a moment.

    Args:
        stores: the stores.
        purge: takes the counts in as it goes.
        before: a younger tombstone is kept.
        undated: purge those that carry no time as well.
        dry_run: count only.
        seconds: how long a store may take to answer one call.
        stop: ends it after the batch under way.

    Raises:
        StoreError: a store could not be read, or did not answer in time; unknown is never absent.

    **If cancelled:** each document's tombstone is gone from some stores or from none; `check` finds it if it is some.
    """
    scanned = next((name for name, store in stores.by_name.items() if store.traits.keeps_tombstones), None)
    after: str | None = None
    while scanned is not None and not stop.is_set():
        with patience(scanned, seconds) as waiting:
            doc_ids, after, old = await _next_tombstones(stores.by_name[scanned], before, after, waiting)
        found = []
        for views in await look(stores, doc_ids, seconds=seconds):
            for view in views.values():
                # Here a cache counts like the others: what it holds could be served again.
                if isinstance(view, StoreError):
                    raise view
            found.append(seen(views))
        ready = select(doc_ids, found, stores, purge, before=None if old else before, undated=undated)
        if dry_run:
            purge.purged += len(ready)
        else:
            await _remove(stores, ready, scanned, purge, seconds)
        if after is None:
            return


def _moment_ago(seconds: float) -> dt.datetime:
    now = dt.datetime.now(dt.timezone.utc)
    try:
        return now - dt.timedelta(seconds=seconds)
    except OverflowError:
        raise UsageError("--older-than: reaches back to before the calendar begins, which is the year 1") from None


async def run_purge(
    configuration: Configuration, output: Output, *, older_than: float, undated: bool, dry_run: bool
) -> ExitStatus:
    """Purge tombstones older than so many seconds."""
    purge = Purge()
    stop = trio.Event()
    failure: BaseException | None = None
    before = _moment_ago(older_than)
    with hold_lock(configuration.path):
        async with open_interruption() as interruption:
            interruption.on_first = stop.set
            try:
                with interruption.scope:
                    async with open_stores(configuration) as stores:
                        await purge_stores(
                            stores,
                            purge,
                            before=before,
                            undated=undated,
                            dry_run=dry_run,
                            seconds=configuration.engine.store_call_timeout,
                            stop=stop,
                        )
            except (TrioRepairError, BaseExceptionGroup) as error:
                if not purge.purged and not interruption.signals:
                    raise
                failure = error
    if output.json:
        output.record({"type": "purge", "dry_run": dry_run, "older_than_seconds": older_than, **purge.as_json()})
    else:
        _show(purge, output, dry_run=dry_run)
    status = ExitStatus.OK if failure is None else report(failure)
    if interruption.signals:
        output.say("interrupted")
        return ExitStatus.INTERRUPTED
    if status is ExitStatus.OK and (purge.unsynchronised or purge.changed or purge.errors):
        return ExitStatus.ATTENTION
    return status


def _show(purge: Purge, output: Output, *, dry_run: bool) -> None:
    rows = [
        ("would be purged" if dry_run else "purged", purge.purged),
        ("kept: younger", purge.younger),
        ("kept: carries no time (see --undated)", purge.undated),
        ("kept: not in every store yet, or written again; run repair", purge.unsynchronised),
        ("kept: changed meanwhile", purge.changed),
        ("kept: a store refused", len(purge.errors)),
    ]
    shown = [row for index, row in enumerate(rows) if row[1] or index == 0]
    output.show(table(("tombstones", "documents"), shown, numbers=("documents",)))
    for error in purge.errors[:3]:
        output.say(error)
