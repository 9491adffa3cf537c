"""Plan files: what a repair would do, one JSON line a document, to be looked at and then done exactly so.

The first line is a header: format, strategy, when it was made, for which stores, and the counts. A file is read twice:
every line is checked before the first document is touched.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import attrs

from .. import (
    CacheStep,
    DocumentVersion,
    InvalidValue,
    PlanAction,
    PlannedJob,
    PlannedWrite,
    RepairJob,
    RepairPlan,
    RepairTrigger,
    SyncStrategy,
)
from .._model import check_doc_id
from ._configuration import Configuration
from ._ids import id_key
from ._status import OutputFailed, UsageError
from ._values import plan_json

FORMAT: Final = 1

_CRITICAL: Final = ("text", "vector")
_Kind = TypeVar("_Kind")


@attrs.frozen(kw_only=True)
class PlanCounts:
    """What a plan amounts to, in documents."""

    documents: int
    """All that the stores hold together."""
    planned: int
    """Lines in the plan."""
    changes: int
    deletes: int
    """Documents that would lose a live copy."""
    manual: int


@attrs.frozen(kw_only=True)
class PlanHeader:
    """The first line of a plan file."""

    strategy: SyncStrategy
    created_at: str
    fingerprint: str
    """Of the configuration that it was made under."""
    counts: PlanCounts


@attrs.define
class PlanCounter:
    """Counts the lines of a plan as they are written or read."""

    planned: int = 0
    changes: int = 0
    deletes: int = 0
    manual: int = 0
    by_action: dict[PlanAction, int] = attrs.field(factory=lambda: dict.fromkeys(PlanAction, 0))

    def add(self, plan: RepairPlan, live: Collection[str]) -> None:
        """Count one document; `live` names the stores that hold a live copy of it."""
        self.planned += 1
        last_copy = plan.version is None and plan.cache_step is CacheStep.INVALIDATE  # as count_changes does
        self.changes += bool(plan.writes) or last_copy
        self.deletes += last_copy or (
            plan.action is PlanAction.DELETE and any(write.store in live for write in plan.writes)
        )
        self.manual += plan.action is PlanAction.MANUAL
        self.by_action[plan.action] += 1

    def counts(self, documents: int) -> PlanCounts:
        """The totals, given how many documents there are."""
        return PlanCounts(
            documents=documents,
            planned=self.planned,
            changes=self.changes,
            deletes=self.deletes,
            manual=self.manual,
        )


_BEGINNING: Final = b'{"type": "trio-repair-plan"'
"""What a plan begins with. Nothing else is ever replaced by one."""


class PlanWriter:
    """Writes a plan beside its destination and moves it there whole: no reader ever finds half a plan."""

    def __init__(self, path: Path, lines: IO[str]) -> None:
        self._path = path
        self._lines = lines
        self.counter = PlanCounter()

    @classmethod
    def open(cls, path: Path) -> PlanWriter:
        """Begin a plan.

        Raises:
            UsageError: nothing can be written there.
        """
        if path.is_dir():
            raise UsageError(f"--out: {path} is a directory")
        if path.exists() and not path.is_file():  # it would be replaced, which a pipe or a device does not expect
            raise UsageError(f"--out: {path} is not a regular file; name another")
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as present:
                first = present.read(len(_BEGINNING))
            if first != _BEGINNING:
                raise UsageError(f"--out: {path} exists and is no plan; name another file")
        try:
            # The header comes first and is known last, so the lines wait in a file without a name.
            return cls(path, tempfile.TemporaryFile("w+", dir=path.parent, encoding="ascii"))
        except OSError as error:
            raise UsageError(f"--out: cannot write in {path.parent}: {error.strerror}") from error

    def add(self, plan: RepairPlan, live: Collection[str]) -> None:
        """Add one document; `live` names the stores that hold a live copy of it.

        Raises:
            OutputFailed: the file cannot be written.
        """
        self.counter.add(plan, live)
        record = {"type": "document", **plan_json(plan), "live": sorted(live)}
        try:
            self._lines.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputFailed(f"{self._path}: cannot be written: {error.strerror}") from error

    def finish(self, configuration: Configuration, strategy: SyncStrategy, documents: int) -> PlanHeader:
        """Put the plan in its place, with mode 0600.

        Raises:
            OutputFailed: the file cannot be written; whatever was there before still is.
        """
        header = PlanHeader(
            strategy=strategy,
            created_at=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            fingerprint=configuration.fingerprint,
            counts=self.counter.counts(documents),
        )
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._lines.seek(0)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as out:
                out.write(json.dumps(_header_json(header)) + "\n")
                for line in self._lines:
                    out.write(line)
                out.flush()
                os.fsync(out.fileno())
            partial.replace(self._path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OutputFailed(f"{self._path}: cannot be written: {error.strerror}") from error
        return header

    def close(self) -> None:
        """Forget what was not finished."""
        self._lines.close()


def _header_json(header: PlanHeader) -> dict[str, Any]:
    return {
        "type": "trio-repair-plan",
        "format": FORMAT,
        "strategy": header.strategy.value,
        "created_at": header.created_at,
        "configuration": header.fingerprint,
        "counts": attrs.asdict(header.counts),
    }


class _Malformed(Exception):
    """A line is not what a plan holds there."""


def _take(record: Mapping[str, Any], key: str, *kinds: type[_Kind]) -> _Kind:
    if key not in record:
        raise _Malformed(f"lacks {key!r}")
    value = record[key]
    if type(value) not in kinds:
        raise _Malformed(f"{key!r} must be {' or '.join(kind.__name__ for kind in kinds)}")
    return value  # type: ignore[no-any-return]


def _choose(record: Mapping[str, Any], key: str, kind: type[_Kind]) -> _Kind:
    value = _take(record, key, str)
    try:
        return kind(value)  # type: ignore[call-arg]
    except ValueError:
        raise _Malformed(f"{key!r} is {value!r}, which this version does not know") from None


def _object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Malformed(
            f"is not JSON ({error})" if isinstance(error, ValueError) else "is nested too deeply"
        ) from None
    if not isinstance(record, dict):
        raise _Malformed("is not a JSON object")
    return record


def _parse_version(record: Mapping[str, Any] | None) -> DocumentVersion | None:
    if record is None:
        return None
    updated_at = _take(record, "updated_at", str, type(None))
    try:
        return DocumentVersion(
            number=_take(record, "number", int, type(None)),
            digest=_take(record, "digest", str),
            deleted=_take(record, "deleted", bool),
            updated_at=None if updated_at is None else dt.datetime.fromisoformat(updated_at),
        )
    except ValueError as error:
        raise _Malformed(f"'version': {error}") from None


def _parse_header(line: bytes) -> PlanHeader:
    record = _object(line)
    if record.get("type") != "trio-repair-plan":
        raise _Malformed("is not the header of a plan; `trio-repair plan --out FILE` writes one")
    if _take(record, "format", int) != FORMAT:
        raise _Malformed(f"says format {record['format']}; this version reads format {FORMAT}; make the plan again")
    counts = _take(record, "counts", dict)
    return PlanHeader(
        strategy=_choose(record, "strategy", SyncStrategy),
        created_at=_take(record, "created_at", str),
        fingerprint=_take(record, "configuration", str),
        counts=PlanCounts(**{field.name: _take(counts, field.name, int) for field in attrs.fields(PlanCounts)}),
    )


def _parse_plan(line: bytes, strategy: SyncStrategy) -> tuple[RepairPlan, Collection[str]]:
    record = _object(line)
    if record.get("type") != "document":
        raise _Malformed("is not a planned document")
    tokens = _take(record, "tokens", dict)
    writes = []
    for write in _take(record, "writes", list):
        if not isinstance(write, dict):
            raise _Malformed("'writes' must hold objects")
        planned = PlannedWrite(store=_take(write, "store", str), token=_take(write, "token", str))
        if planned.store not in _CRITICAL:
            raise _Malformed(f"'writes' names a store {planned.store!r}")
        if tokens.get(planned.store) != planned.token:
            raise _Malformed(f"'writes' and 'tokens' disagree about the {planned.store} store")
        writes.append(planned)
    if not all(isinstance(token, str) for token in tokens.values()) or not set(_CRITICAL) <= tokens.keys():
        raise _Malformed("'tokens' must hold a string for the text and the vector store")
    sources = _take(record, "sources", list)
    if not all(source in _CRITICAL for source in sources):
        raise _Malformed("'sources' must name the text or the vector store")
    plan = RepairPlan(
        doc_id=check_doc_id(_take(record, "doc_id", str)),
        strategy=strategy,
        action=_choose(record, "action", PlanAction),
        version=_parse_version(_take(record, "version", dict, type(None))),
        sources=tuple(sources),
        writes=tuple(writes),
        cache_step=_choose(record, "cache_step", CacheStep),
        tokens=tokens,
        reason=_take(record, "reason", str, type(None)),
        settle_first=_take(record, "settle_first", bool),
    )
    if plan.writes and (plan.action not in (PlanAction.COPY, PlanAction.DELETE) or plan.version is None):
        raise _Malformed(f"'action' is {plan.action.value!r}, which writes nothing, or 'version' is missing")
    if plan.version is not None and plan.writes and plan.version.deleted != (plan.action is PlanAction.DELETE):
        raise _Malformed("'action' and 'version' disagree about whether the document is deleted")
    return plan, _take(record, "live", list)


@attrs.frozen(kw_only=True)
class PlanFile:
    """A plan that was read to its end and found whole."""

    path: Path
    header: PlanHeader
    counts: PlanCounts
    """Counted anew from the lines."""
    identity: tuple[int, ...]
    """Which file it was when it was read, and in which state."""

    def plans(self) -> Iterator[RepairPlan]:
        """What is planned, document by document.

        Raises:
            UsageError: the file has changed since it was read.
        """
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if _identity(lines) != self.identity:
                    raise UsageError(f"{self.path}: changed while it was being carried out; make the plan again")
                if number > 1:
                    try:
                        yield _parse_plan(line, self.header.strategy)[0]
                    except (_Malformed, InvalidValue) as error:
                        raise UsageError(f"{self.path}, line {number}: {error}") from None

    def jobs(self, *, max_retries: int) -> Iterator[PlannedJob]:
        """The same as jobs."""
        for plan in self.plans():
            job = RepairJob(
                doc_id=plan.doc_id,
                strategy=self.header.strategy,
                trigger=RepairTrigger.MANUAL,
                max_retries=max_retries,
            )
            yield PlannedJob(job, plan)


def _refuse_twice(doc_id: str, planned: set[bytes]) -> None:
    key = id_key(doc_id)
    if key in planned:
        raise _Malformed("is about a document that a line before is about")
    planned.add(key)


def _identity(file: IO[bytes]) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_plan(path: Path, configuration: Configuration) -> PlanFile:
    """Check a whole plan file, before anything in it is done.

    Raises:
        UsageError: it cannot be read, is malformed (the line is named), cut short, or of another configuration.
    """
    counter = PlanCounter()
    header: PlanHeader | None = None
    planned: set[bytes] = set()
    if path.exists() and not path.is_file():
        raise UsageError(f"--plan: {path} is not a regular file; a plan is read twice, which no pipe can be")
    try:
        with path.open("rb") as lines:
            identity = _identity(lines)
            for number, line in enumerate(lines, start=1):
                try:
                    if header is None:
                        header = _parse_header(line)
                    else:
                        plan, live = _parse_plan(line, header.strategy)
                        counter.add(plan, live)
                        _refuse_twice(plan.doc_id, planned)
                except (_Malformed, InvalidValue) as error:
                    raise UsageError(f"{path}, line {number}: {error}") from None
    except OSError as error:
        raise UsageError(f"--plan: cannot read {path}: {error.strerror}") from error
    if header is None:
        raise UsageError(f"{path}, line 1: is empty; `trio-repair plan --out FILE` writes a plan")
    counts = counter.counts(header.counts.documents)
    if counts != header.counts or not 0 <= counts.planned <= counts.documents:
        raise UsageError(
            f"{path}: its header announces {header.counts.planned} documents ({header.counts.changes} changes), "
            f"and it holds {counts.planned} ({counts.changes} changes): it was cut short or edited; make the plan again"
        )
    if header.fingerprint != configuration.fingerprint:
        raise UsageError(f"{path}: was made for other stores than {configuration.path} names; make the plan again")
    return PlanFile(path=path, header=header, counts=counts, identity=identity)
