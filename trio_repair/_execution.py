"""One attempt at one repair: observe, decide, read, prepare, write, read back, then the cache.

Everything is recorded in a `Progress` before it can have an effect, so that the receipt is true wherever the attempt
is cut off. All decisions are made in `_planning`; this module only does what they say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import attrs

from ._batching import Batcher
from ._config import AutoRepairConfig
from ._divergence import CRITICAL_STORES, is_equal
from ._errors import CircuitOpen, InvalidValue, StoreError, StoreRejected, StoreUnavailable
from ._events import EventKind
from ._model import Document, RepairOutcome, RepairPhase, SyncStrategy
from ._planning import (
    MANUAL_REASON,
    CacheStep,
    PlanAction,
    PlannedWrite,
    Policy,
    RepairPlan,
    plan_repair,
    plan_resolution,
)
from ._progress import Progress
from ._requests import Gather, Request
from ._ticket import Entry, Mission
from ._views import Observation, Prepared, StoredDocument, WriteAnswer, WriteStatus

MOVED_ERROR = "changed while being repaired"
_UPDATE_FAILED = {
    "text": "Text search update failed",
    "vector": "Vector store update failed",
    "cache": "Cache update failed",
}


@attrs.frozen
class Verdict:
    """How an attempt ended."""

    outcome: RepairOutcome
    error: str | None = None
    transient: bool = False
    """It failed for a reason that may pass."""
    park: float | None = None
    """Run again after so many seconds; this was not a failure."""


class _Moved(Exception):
    """The document is not what it was when the plan was made."""

    def __init__(self, store: str) -> None:
        super().__init__(store)
        self.store = store


class _Ended(Exception):
    """The attempt cannot go on."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict


def _store_failure(error: StoreError, prefix: str | None = None) -> Verdict:
    message = str(error) if prefix is None else f"{prefix}: {error.problem}"
    # A store that stayed away for `unavailable_timeout` has had its chance.
    transient = isinstance(error, StoreUnavailable) and not isinstance(error, CircuitOpen)
    return Verdict(RepairOutcome.FAILED, message, transient=transient)


async def _answers(gather: Gather, requests: Mapping[str, Request], progress: Progress) -> None:
    """Wait for the answers, by store. **If cancelled:** what is not under way is taken back."""
    progress.waits_for = requests
    try:
        await gather.wait()
    except BaseException:
        for request in requests.values():
            request.withdraw()
        raise


class Repairer:
    """Carries out repairs over the batchers of one engine. It holds no state of its own between attempts."""

    def __init__(
        self,
        batchers: Mapping[str, Batcher],
        policy: Policy,
        config: AutoRepairConfig,
        emit: Callable[..., None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._batchers = batchers
        self._critical = {name: batchers[name] for name in CRITICAL_STORES}
        self._cache = batchers.get("cache")
        self._policy = policy
        self._config = config
        self._emit = emit
        self._wall = wall
        self.fences = {name: batcher.traits.fence.value for name, batcher in batchers.items()}

    async def attempt(self, entry: Entry) -> Verdict:
        """Make one attempt. **If cancelled:** `entry.progress` says what was sent and what is known to have landed."""
        progress = entry.progress
        if progress is None:
            progress = entry.progress = Progress(self.fences)
        moved = ""
        looks = 1 + (self._config.max_reobserve if entry.mission.moves_with_the_document else 0)
        for look in range(looks):
            try:
                return await self._look_and_repair(entry, progress)
            except _Ended as ended:
                return ended.verdict
            except _Moved as change:
                moved = change.store
                progress.phase = RepairPhase.OBSERVE
                busy = progress.outstanding()
                if busy:
                    # Two writes of one document are never under way at once: look again when this one has ended.
                    problem = "an earlier write has not ended"
                    return Verdict(RepairOutcome.FAILED, f"{_UPDATE_FAILED[busy[0][0]]}: {problem}", transient=True)
                if look + 1 < looks:
                    self._emit(EventKind.REOBSERVED, doc_id=entry.doc_id, job=entry.tickets[0].job, store=moved)
        return Verdict(RepairOutcome.FAILED, f"{moved} store: document {entry.doc_id!r} {MOVED_ERROR}; look again")

    async def _look_and_repair(self, entry: Entry, progress: Progress) -> Verdict:
        doc_id, mission = entry.doc_id, entry.mission
        progress.phase = RepairPhase.OBSERVE
        # The cache is looked at beside the others, but nothing waits for it until they are done.
        cache_gather = Gather(1)
        cache_request = None if self._cache is None else self._cache.observe(doc_id, cache_gather)
        try:
            views = await self._observe_critical(doc_id, progress)
            if cache_request is not None and not any(view.version for view in views.values()):
                # Nowhere, or in the cache alone: only the cache can tell which.
                await self._see_cache(cache_gather, cache_request, progress, views)
            plan = self._decide(doc_id, mission, views, progress)
            if plan.action is PlanAction.MANUAL:
                return await self._leave_to_a_person(plan, cache_gather, cache_request, progress)
            if plan.action is PlanAction.NOWHERE:
                return Verdict(RepairOutcome.FAILED, plan.reason)
            progress.version = plan.version
            if plan.settle_first and progress.settled_tokens != plan.tokens:
                return self._settle_first(doc_id, plan, progress)
            document = None
            if plan.writes:
                document = await self._content(doc_id, plan, views, progress)
                await self._write_critical(plan, document, progress)
                views = await self._read_back(doc_id, plan, progress)
            for name in CRITICAL_STORES:
                progress.stores[name].confirm(plan.version)
            progress.verified = True
            if cache_request is not None:
                planned = None if mission.plan is None else plan.cache_step
                await self._mend_cache(plan, planned, document, views, cache_gather, cache_request, progress)
        finally:
            if cache_request is not None:
                cache_request.withdraw()
        return self.finished(progress)

    @staticmethod
    def finished(progress: Progress) -> Verdict:
        """The verdict on a repair whose critical stores were read back equal."""
        return Verdict(RepairOutcome.REPAIRED if progress.updated_systems() else RepairOutcome.ALREADY_CONSISTENT)

    def take_in_read_back(self, progress: Progress) -> None:
        """The attempt was cut off while it waited for the read-back: what came in by then counts all the same."""
        if progress.phase is not RepairPhase.VERIFY:
            return
        views: dict[str, Observation] = {}
        for name, request in progress.waits_for.items():
            answer = request.answer
            if isinstance(answer, Observation) and is_equal(answer, progress.version, self._policy.traits[name]):
                views[name] = answer
        if views.keys() != set(CRITICAL_STORES):
            return
        for name, view in views.items():
            progress.stores[name].saw(view)
            progress.stores[name].confirm(progress.version)
        progress.verified = True

    def _settle_first(self, doc_id: str, plan: RepairPlan, progress: Progress) -> Verdict:
        """Wait before overwriting what may be newer; give up on a document that never stands still."""
        if progress.parks > self._config.max_reobserve:
            error = f"document {doc_id!r} {MOVED_ERROR}, each time it was to settle; repair again when it rests"
            return Verdict(RepairOutcome.FAILED, error)
        progress.parks += 1
        progress.settled_tokens = plan.tokens
        return Verdict(RepairOutcome.FAILED, park=self._config.settle)

    async def _observe_critical(self, doc_id: str, progress: Progress) -> dict[str, Observation]:
        gather = Gather(len(self._critical))
        requests = {name: batcher.observe(doc_id, gather) for name, batcher in self._critical.items()}
        await _answers(gather, requests, progress)
        views: dict[str, Observation] = {}
        failures: list[StoreError] = []
        for name, request in requests.items():
            answer = request.answer
            if isinstance(answer, Observation):
                views[name] = answer
                progress.stores[name].saw(answer)
                self._tell_seen(doc_id, name, answer)
            elif isinstance(answer, StoreError):
                progress.stores[name].detail = answer.problem
                failures.append(answer)
        if failures:
            raise _Ended(_worst([_store_failure(failure) for failure in failures]))
        return views

    async def _see_cache(
        self, gather: Gather, request: Request, progress: Progress, views: dict[str, Observation]
    ) -> None:
        """Add the cache to the views, or a warning that it could not be looked at."""
        await _answers(gather, {"cache": request}, progress)
        if isinstance(request.answer, Observation):
            views["cache"] = request.answer
            progress.stores["cache"].saw(request.answer)
            self._tell_seen(request.doc_id, "cache", request.answer)
        elif isinstance(request.answer, StoreError):
            progress.stores["cache"].detail = request.answer.problem
            _warn(progress, f"Cache update warning: {request.answer}")

    def _tell_seen(self, doc_id: str, store: str, view: Observation) -> None:
        self._emit(EventKind.OBSERVED, doc_id=doc_id, store=store, token=view.token, version=view.version)

    def _decide(
        self, doc_id: str, mission: Mission, views: Mapping[str, Observation], progress: Progress
    ) -> RepairPlan:
        if mission.plan is not None:
            plan = mission.plan
        elif mission.choice is not None:
            plan = plan_resolution(doc_id, views, mission.choice, self._policy)
        else:
            return plan_repair(doc_id, views, mission.strategy, self._policy, now=self._wall())
        expected = plan.tokens if mission.expected is None else mission.expected
        decided = plan.action in (PlanAction.COPY, PlanAction.DELETE, PlanAction.NOTHING)
        for name, view in views.items():
            if name not in CRITICAL_STORES or name not in expected or view.token == expected[name]:
                continue
            # A store that holds the decision already (our own earlier write, perhaps) has not moved away from it. What
            # a person chose was the very state that they saw: there, only our own write, or that there is nothing left
            # to write, excuses another one.
            ours = mission.choice is None or not plan.writes or bool(progress.stores[name].requests)
            if not (decided and ours and is_equal(view, plan.version, self._policy.traits[name])):
                progress.stores[name].detail = "changed since it was looked at"
                raise _Moved(name)
        writes = tuple(
            PlannedWrite(store=write.store, token=views[write.store].token)
            for write in plan.writes
            if not is_equal(views[write.store], plan.version, self._policy.traits[write.store])
        )
        return attrs.evolve(plan, writes=writes, tokens={name: view.token for name, view in views.items()})

    async def _leave_to_a_person(
        self, plan: RepairPlan, gather: Gather, request: Request | None, progress: Progress
    ) -> Verdict:
        if request is not None and not progress.stores["cache"].observed:
            await self._see_cache(gather, request, progress, {})
        return Verdict(RepairOutcome.NEEDS_MANUAL, plan.reason)

    async def _content(
        self, doc_id: str, plan: RepairPlan, views: Mapping[str, Observation], progress: Progress
    ) -> Document:
        """The document to write: read from the best source that can prove it, or a tombstone."""
        version = plan.version
        if plan.action is PlanAction.DELETE or version is None or version.deleted:
            return Document.tombstone(
                doc_id, number=version.number if version else None, updated_at=version.updated_at if version else None
            )
        progress.phase = RepairPhase.READ
        reasons: list[str] = []
        broken: StoreError | None = None
        for source in plan.sources:
            gather = Gather(1)
            request = self._batchers[source].read(doc_id, gather)
            await _answers(gather, {source: request}, progress)
            answer = request.answer
            if isinstance(answer, StoredDocument):
                if answer.token != views[source].token:
                    raise _Moved(source)
                document = answer.document
                if document is not None and document.text is not None and document.version == version:
                    if self._proves(document):
                        progress.source = source
                        return document
                    reasons.append(f"the {source} store's text does not match its digest")
                else:
                    reasons.append(f"the {source} store did not give the decided version")
            elif isinstance(answer, StoreRejected):
                reasons.append(f"the {source} store cannot give the text ({answer.problem})")
            elif isinstance(answer, StoreUnavailable):
                raise _Ended(_store_failure(answer))
            elif isinstance(answer, StoreError):
                broken = answer
        if broken is not None:
            # It may have the text, and nobody knows: nothing that a person could decide.
            raise _Ended(_store_failure(broken))
        why = "; ".join(reasons) if reasons else "no store can give the text"
        raise _Ended(Verdict(RepairOutcome.NEEDS_MANUAL, f"{MANUAL_REASON}: {why}"))

    def _proves(self, document: Document) -> bool:
        try:
            return document.version.digest == self._config.content.digest(document.text or "", document.metadata)
        except InvalidValue:
            return False

    async def _write_critical(self, plan: RepairPlan, document: Document, progress: Progress) -> None:
        progress.phase = RepairPhase.PREPARE
        gather = Gather(len(plan.writes))
        requests = {write.store: self._batchers[write.store].prepare(document, gather) for write in plan.writes}
        await _answers(gather, requests, progress)
        prepared: dict[str, Prepared] = {}
        failures: list[Verdict] = []
        for name, request in requests.items():
            if isinstance(request.answer, Prepared):
                prepared[name] = request.answer
            elif isinstance(request.answer, StoreError):
                progress.stores[name].detail = request.answer.problem
                failures.append(_store_failure(request.answer, _UPDATE_FAILED[name]))
        if failures:
            raise _Ended(_worst(failures))

        progress.phase = RepairPhase.WRITE
        gather = Gather(len(plan.writes))
        requests = {}
        for write in plan.writes:
            request = self._batchers[write.store].write(prepared[write.store], write.token, gather)
            progress.stores[write.store].wrote(request)
            requests[write.store] = request
        await _answers(gather, requests, progress)
        moved: str | None = None
        for write in plan.writes:
            progress.stores[write.store].learn()
            answer = requests[write.store].answer
            if isinstance(answer, StoreError):
                failures.append(_store_failure(answer, _UPDATE_FAILED[write.store]))
            elif isinstance(answer, WriteAnswer):
                if answer.status is WriteStatus.REFUSED:
                    # Refused in favour of the decision itself (our own first sending, perhaps): read back and see.
                    held, traits = answer.observation, self._policy.traits[write.store]
                    if held is None or not is_equal(held, plan.version, traits):
                        moved = write.store
                elif answer.status is WriteStatus.REJECTED:
                    problem = "the store refuses the document" if answer.error is None else answer.error.problem
                    failures.append(Verdict(RepairOutcome.FAILED, f"{_UPDATE_FAILED[write.store]}: {problem}"))
        if failures:
            raise _Ended(_worst(failures))
        if moved is not None:
            raise _Moved(moved)

    async def _read_back(self, doc_id: str, plan: RepairPlan, progress: Progress) -> dict[str, Observation]:
        """Look at the critical stores again. Returns only if every one equals the decision."""
        progress.phase = RepairPhase.VERIFY
        views = await self._observe_critical(doc_id, progress)
        fenced = {write.store: write.token for write in plan.writes}
        moved: str | None = None
        no_effect: str | None = None
        for name, view in views.items():
            store = progress.stores[name]
            if is_equal(view, plan.version, self._policy.traits[name]):
                continue
            last = store.requests[-1] if store.requests else None
            if name in fenced and last is not None and last.verdict_unknown and view.token == fenced[name]:
                # Nothing has landed. If the call has ended nothing will; else a late landing still meets the fence.
                last.disproved = last.ended
                no_effect = name
            else:
                moved = name
        if no_effect is not None:
            detail = progress.stores[no_effect].detail
            problem = "the store gave no verdict and holds nothing new" if detail is None else detail
            raise _Ended(Verdict(RepairOutcome.FAILED, f"{_UPDATE_FAILED[no_effect]}: {problem}", transient=True))
        if moved is not None:
            raise _Moved(moved)
        return views

    # The cache: never critical, never a source

    async def _mend_cache(
        self,
        plan: RepairPlan,
        planned: CacheStep | None,
        document: Document | None,
        views: Mapping[str, Observation],
        gather: Gather,
        request: Request,
        progress: Progress,
    ) -> None:
        """Bring the cache in line with the critical stores, if `planned` (None: anything) allows it.

        Failing at this is a warning.
        """
        progress.phase = RepairPhase.CACHE
        if self._cache is None:
            return
        doc_id = plan.doc_id
        seen: dict[str, Observation] = {}
        for _ in range(1 + self._config.max_reobserve):
            await self._see_cache(gather, request, progress, seen)
            if "cache" not in seen:
                return
            view = seen["cache"]
            settled = plan_repair(
                doc_id, {**views, **seen}, SyncStrategy.TEXT_SOURCE_OF_TRUTH, self._policy, now=self._wall()
            )
            if settled.cache_step is CacheStep.NONE:
                progress.stores["cache"].confirm(settled.version)
                return
            if planned is CacheStep.NONE:
                _warn(progress, f"Cache update warning: cache store: document {doc_id!r} differs, outside the plan")
                return
            if planned is CacheStep.INVALIDATE:
                settled = attrs.evolve(settled, cache_step=CacheStep.INVALIDATE)
            if await self._change_cache(settled, document, view, views, progress):
                return
            gather = Gather(1)
            request = self._cache.observe(doc_id, gather)
        _warn(progress, f"Cache update warning: cache store: document {doc_id!r} {MOVED_ERROR}; its entry may be stale")

    async def _change_cache(
        self,
        plan: RepairPlan,
        document: Document | None,
        view: Observation,
        views: Mapping[str, Observation],
        progress: Progress,
    ) -> bool:
        """Replace the entry, or else remove it, or else warn. False if it changed meanwhile."""
        assert self._cache is not None
        store = progress.stores["cache"]
        problem = "the entry may be stale"
        if plan.cache_step is CacheStep.REFRESH:
            prepared = await self._prepare_cache(plan, document, views, progress)
            if isinstance(prepared, Prepared):
                gather = Gather(1)
                request = self._cache.write(prepared, view.token, gather)
                store.wrote(request)
                await _answers(gather, {"cache": request}, progress)
                store.learn()
                verdict = _cache_verdict(request)
                if verdict is not None:
                    return verdict
                problem = "the entry may be stale" if store.detail is None else store.detail
            else:
                problem = prepared
            if view.version is None:
                _warn(progress, f"Cache update warning: cache store: {problem}")
                return True
        gather = Gather(1)
        request = self._cache.remove(plan.doc_id, view.token, gather)
        store.wrote(request)
        await _answers(gather, {"cache": request}, progress)
        store.learn()
        verdict = _cache_verdict(request)
        if verdict is not None:
            if verdict and plan.cache_step is CacheStep.REFRESH:
                _warn(progress, f"Cache update warning: cache store: entry removed, not refreshed: {problem}")
            return verdict
        problem = problem if store.detail is None else store.detail
        _warn(progress, f"Cache update warning: cache store: document {plan.doc_id!r}: {problem}")
        return True

    async def _prepare_cache(
        self, plan: RepairPlan, document: Document | None, views: Mapping[str, Observation], progress: Progress
    ) -> Prepared | str:
        assert self._cache is not None
        if document is None:
            source = progress.source
            try:
                document = await self._content(plan.doc_id, plan, views, progress)
            except _Ended as ended:
                return str(ended.verdict.error)
            except _Moved:
                return "the source changed meanwhile"
            finally:
                progress.phase = RepairPhase.CACHE
                if source is not None:
                    progress.source = source
        gather = Gather(1)
        request = self._cache.prepare(document, gather)
        await _answers(gather, {"cache": request}, progress)
        if isinstance(request.answer, Prepared):
            return request.answer
        return request.answer.problem if isinstance(request.answer, StoreError) else "it could not be prepared"


def _cache_verdict(request: Request) -> bool | None:
    """True: done. False: the entry changed meanwhile, look again. None: it failed."""
    if isinstance(request.answer, WriteAnswer):
        if request.answer.status is WriteStatus.LANDED:
            return True
        if request.answer.status is WriteStatus.REFUSED:
            return False
    return None


def _warn(progress: Progress, warning: str) -> None:
    if warning not in progress.warnings:
        progress.warnings.append(warning)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Several failures as one: final if any is."""
    error = "; ".join(verdict.error for verdict in verdicts if verdict.error is not None)
    return Verdict(RepairOutcome.FAILED, error, transient=all(verdict.transient for verdict in verdicts))
