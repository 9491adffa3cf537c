"""One attempt at one repair: observe, decide, read, prepare, write, read back, then the cache.

Everything is recorded in a `Progress` before it can have an effect, so that the receipt is true wherever the attempt
is cut off. All decisions are made in `_planning`; this module only does what they say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

import attrs

from ._batching import Batcher
from ._cache_repair import CacheRepair
from ._config import AutoRepairConfig
from ._divergence import CRITICAL_STORES, is_equal
from ._errors import InvalidValue, StoreError, StoreRejected, StoreUnavailable
from ._events import EventKind
from ._model import Document, DocumentVersion, RepairOutcome, RepairPhase
from ._planning import (
    MANUAL_REASON,
    PlanAction,
    PlannedWrite,
    Policy,
    RepairPlan,
    plan_repair,
    plan_resolution,
)
from ._progress import Progress, ToldProgress
from ._requests import Request
from ._stepping import Gather, Steps, Unwinding
from ._telling import PhaseTeller, unheard
from ._ticket import Entry, Mission
from ._verdict import MOVED_ERROR, UPDATE_FAILED, Ended, Moved, Verdict, store_failure, worst
from ._views import Observation, Prepared, Presence, StoredDocument, WriteAnswer, WriteStatus

# By names of their own: see `plain_members`.
_MANUAL: Final = PlanAction.MANUAL
_NOWHERE: Final = PlanAction.NOWHERE
_DELETE: Final = PlanAction.DELETE
_OBSERVE: Final = RepairPhase.OBSERVE
_READ: Final = RepairPhase.READ
_PREPARE: Final = RepairPhase.PREPARE
_WRITE: Final = RepairPhase.WRITE
_VERIFY: Final = RepairPhase.VERIFY
_REFUSED: Final = WriteStatus.REFUSED
_REJECTED: Final = WriteStatus.REJECTED
_REPAIRED: Final = RepairOutcome.REPAIRED


class Repairer:
    """Carries out repairs over the batchers of one engine. It keeps nothing between attempts but a count."""

    def __init__(
        self,
        batchers: Mapping[str, Batcher],
        policy: Policy,
        config: AutoRepairConfig,
        emit: Callable[..., None],
        wall: Callable[[], float] = time.time,
        tell_phase: PhaseTeller | None = None,
        *,
        cut_off: Callable[[Entry], bool],
    ) -> None:
        self._batchers = batchers
        self._text, self._vector = batchers["text"], batchers["vector"]
        self._policy = policy
        self._config = config
        self._emit = emit
        self._heard = emit is not unheard
        self._wall = wall
        self._tell_phase = tell_phase
        self._cut_off = cut_off
        self._unwinding = Unwinding()
        self._cache = (
            CacheRepair(batchers["cache"], policy, config, emit, wall, self._content) if "cache" in batchers else None
        )
        self.reobserved = 0
        """How often a document had moved and was looked at again."""
        self.fences = {name: batcher.traits.fence.value for name, batcher in batchers.items()}

    def attempt(self, entry: Entry) -> Coroutine[Any, Any, Verdict | None]:
        """Make one attempt. **If cancelled:** it gives None, or raises Cancelled if it was not begun; `entry.progress`
        says what was sent and what is known to have landed. `cut_off` is called in the step that cancels it, if it
        waits.
        """
        return Steps(self._attempt(entry), partial(self._cut_off, entry), self._unwinding).run()

    async def _attempt(self, entry: Entry) -> Verdict:
        progress = entry.progress
        if progress is None:
            tell, doc_id = self._tell_phase, entry.doc_id
            progress = Progress(self.fences) if tell is None else ToldProgress(self.fences, doc_id, tell)
            entry.progress = progress
        moved = ""
        looks = 1 + (self._config.max_reobserve if entry.mission.moves_with_the_document else 0)
        for look in range(looks):
            try:
                return await self._look_and_repair(entry, progress)
            except Ended as ended:
                return ended.verdict
            except Moved as change:
                moved = change.store
                progress.phase = _OBSERVE
                busy = progress.outstanding()
                if busy:
                    # Two writes of one document are never under way at once: look again when this one has ended.
                    problem = "an earlier write has not ended"
                    return Verdict(RepairOutcome.FAILED, f"{UPDATE_FAILED[busy[0][0]]}: {problem}", transient=True)
                if look + 1 < looks:
                    self.reobserved += 1
                    self._emit(EventKind.REOBSERVED, doc_id=entry.doc_id, job=entry.tickets[0].job, store=moved)
        return Verdict(RepairOutcome.FAILED, f"{moved} store: document {entry.doc_id!r} {MOVED_ERROR}; look again")

    async def _look_and_repair(self, entry: Entry, progress: Progress) -> Verdict:
        doc_id, mission = entry.doc_id, entry.mission
        progress.phase = _OBSERVE
        # The cache is looked at beside the others, but nothing waits for it until they are done.
        cache_gather = Gather(1)
        cache_request = None if self._cache is None else self._cache.look(doc_id, cache_gather)
        try:
            views = await self._observe_critical(doc_id, progress)
            nowhere = views["text"].version is None and views["vector"].version is None
            if nowhere and self._cache is not None and cache_request is not None:
                # Nowhere, or in the cache alone: only the cache can tell which.
                await self._cache.see(cache_gather, cache_request, progress, views)
            plan = self._decide(doc_id, mission, views, progress)
            if plan.action is _MANUAL:
                return await self._leave_to_a_person(plan, cache_gather, cache_request, progress)
            if plan.action is _NOWHERE:
                return Verdict(RepairOutcome.FAILED, plan.reason)
            progress.version = plan.version
            if plan.settle_first and progress.settled_tokens != plan.tokens:
                return self._settle_first(doc_id, plan, progress)
            document = None
            if plan.writes:
                document = await self._content(doc_id, plan, views, progress)
                await self._write_critical(plan, document, progress)
                views = await self._read_back(doc_id, plan, progress)
            else:
                self._see_equal(plan, views, progress)
            for name in CRITICAL_STORES:
                progress.stores[name].confirm(plan.version)
            progress.verified = True
            if self._cache is not None and cache_request is not None:
                planned = None if mission.plan is None else plan.cache_step
                await self._cache.mend(plan, planned, document, views, cache_gather, cache_request, progress)
        finally:
            if cache_request is not None:
                cache_request.withdraw()
        return self.finished(progress)

    def _see_equal(self, plan: RepairPlan, views: Mapping[str, Observation], progress: Progress) -> None:
        """Nothing is to be written: let that be so. A plan made earlier, or by a person, may have been mistaken."""
        for name in CRITICAL_STORES:
            if not is_equal(views[name], plan.version, self._policy.traits[name]):
                progress.stores[name].detail = "does not hold what the plan leaves as it is"
                raise Moved(name)

    @staticmethod
    def finished(progress: Progress) -> Verdict:
        """The verdict on a repair whose critical stores were read back equal."""
        return Verdict(_REPAIRED if progress.updated_systems() else RepairOutcome.ALREADY_CONSISTENT)

    def take_in_read_back(self, doc_id: str, progress: Progress) -> None:
        """The attempt was cut off while it waited for the read-back: what came in by then counts all the same."""
        if progress.phase is not _VERIFY:
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
            if self._heard:
                self._tell_seen(doc_id, name, view)
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
        gather = Gather(2)
        requests = {"text": self._text.observe(doc_id, gather), "vector": self._vector.observe(doc_id, gather)}
        await progress.answers(gather, requests)
        views: dict[str, Observation] = {}
        failures: list[StoreError] = []
        for name, request in requests.items():
            answer = request.answer
            if isinstance(answer, Observation):
                views[name] = answer
                progress.stores[name].saw(answer)
                if self._heard:
                    self._tell_seen(doc_id, name, answer)
            elif isinstance(answer, StoreError):
                progress.stores[name].detail = answer.problem
                failures.append(answer)
        if failures:
            raise Ended(worst([store_failure(failure) for failure in failures]))
        return views

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
            # The time of day costs as much as the decision, and matters to hybrid logical clocks only.
            now = self._wall() if self._policy.numbers == "hlc" else 0.0
            return plan_repair(doc_id, views, mission.strategy, self._policy, now=now)
        expected = plan.tokens if mission.expected is None else mission.expected
        decided = plan.action in (PlanAction.COPY, _DELETE, PlanAction.NOTHING)
        for name, view in views.items():
            if name not in CRITICAL_STORES or name not in expected or view.token == expected[name]:
                continue
            # A store that holds the decision already (our own earlier write, perhaps) has not moved away from it. What
            # a person chose was the very state that they saw: there, only our own write, or that there is nothing left
            # to write, excuses another one.
            ours = mission.choice is None or not plan.writes or bool(progress.stores[name].requests)
            if not (decided and ours and is_equal(view, plan.version, self._policy.traits[name])):
                progress.stores[name].detail = "changed since it was looked at"
                raise Moved(name)
        writes = tuple(
            PlannedWrite(store=write.store, token=views[write.store].token)
            for write in plan.writes
            if not is_equal(views[write.store], plan.version, self._policy.traits[write.store])
        )
        return attrs.evolve(plan, writes=writes, tokens={name: view.token for name, view in views.items()})

    async def _leave_to_a_person(
        self, plan: RepairPlan, gather: Gather, request: Request | None, progress: Progress
    ) -> Verdict:
        if self._cache is not None and request is not None and not progress.stores["cache"].observed:
            await self._cache.see(gather, request, progress, {})
        return Verdict(RepairOutcome.NEEDS_MANUAL, plan.reason)

    async def _content(
        self, doc_id: str, plan: RepairPlan, views: Mapping[str, Observation], progress: Progress
    ) -> Document:
        """The document to write: read from the best source that can prove it, or a tombstone."""
        version = plan.version
        if plan.action is _DELETE or version is None or version.deleted:
            return Document.tombstone(
                doc_id, number=version.number if version else None, updated_at=version.updated_at if version else None
            )
        progress.phase = _READ
        reasons: list[str] = []
        broken: StoreError | None = None
        for source in plan.sources:
            gather = Gather(1)
            request = self._batchers[source].read(doc_id, gather)
            await progress.answers(gather, {source: request})
            answer = request.answer
            if isinstance(answer, StoredDocument):
                if answer.token != views[source].token:
                    raise Moved(source)
                document = answer.document
                if document is not None and document.text is not None and self._is_of(document, version, source):
                    if self._proves(document):
                        progress.source = source
                        if source == "vector" and not self._policy.traits[source].keeps_metadata:
                            document = await self._with_metadata(document, views["text"], progress)
                        return document if document.version == version else attrs.evolve(document, version=version)
                    reasons.append(f"the {source} store's text does not match its digest")
                else:
                    reasons.append(f"the {source} store did not give the decided version")
            elif isinstance(answer, StoreRejected):
                reasons.append(f"the {source} store cannot give the text ({answer.problem})")
            elif isinstance(answer, StoreUnavailable):
                raise Ended(store_failure(answer))
            elif isinstance(answer, StoreError):
                broken = answer
        if broken is not None:
            # It may have the text, and nobody knows: nothing that a person could decide.
            raise Ended(store_failure(broken))
        why = "; ".join(reasons) if reasons else "no store can give the text"
        raise Ended(Verdict(RepairOutcome.NEEDS_MANUAL, f"{MANUAL_REASON}: {why}"))

    async def _with_metadata(self, document: Document, view: Observation, progress: Progress) -> Document:
        """The document of a vector store that keeps no metadata, with those that the text store has for it."""
        if not self._policy.traits["text"].keeps_metadata or view.presence is not Presence.LIVE:
            return document
        gather = Gather(1)
        request = self._text.read(document.doc_id, gather)
        await progress.answers(gather, {"text": request})
        answer = request.answer
        if isinstance(answer, StoreRejected):  # written without, they would be lost
            why = f"the vector store keeps no metadata, and the text store cannot give its own ({answer.problem})"
            raise Ended(Verdict(RepairOutcome.NEEDS_MANUAL, f"{MANUAL_REASON}: {why}"))
        if isinstance(answer, StoreError):
            raise Ended(store_failure(answer))
        if not isinstance(answer, StoredDocument) or answer.document is None or answer.token != view.token:
            raise Moved("text")
        return attrs.evolve(document, metadata=answer.document.metadata)

    def _is_of(self, document: Document, version: DocumentVersion, source: str) -> bool:
        """Whether a store gave what was decided: from one that keeps no numbers, its content."""
        if self._policy.traits[source].numbered:
            return document.version == version
        return document.version.digest == version.digest

    def _proves(self, document: Document) -> bool:
        try:
            return document.version.digest == self._config.content.digest(document.text or "", document.metadata)
        except InvalidValue:
            return False

    async def _write_critical(self, plan: RepairPlan, document: Document, progress: Progress) -> None:
        progress.phase = _PREPARE
        gather = Gather(len(plan.writes))
        requests = {write.store: self._batchers[write.store].prepare(document, gather) for write in plan.writes}
        await progress.answers(gather, requests)
        prepared: dict[str, Prepared] = {}
        failures: list[Verdict] = []
        for name, request in requests.items():
            if isinstance(request.answer, Prepared):
                prepared[name] = request.answer
            elif isinstance(request.answer, StoreError):
                progress.stores[name].detail = request.answer.problem
                failures.append(store_failure(request.answer, UPDATE_FAILED[name]))
        if failures:
            raise Ended(worst(failures))

        progress.phase = _WRITE
        gather = Gather(len(plan.writes))
        requests = {}
        for write in plan.writes:
            request = self._batchers[write.store].write(prepared[write.store], write.token, gather)
            progress.stores[write.store].wrote(request)
            requests[write.store] = request
        await progress.answers(gather, requests)
        moved: str | None = None
        for write in plan.writes:
            progress.stores[write.store].learn()
            answer = requests[write.store].answer
            if isinstance(answer, StoreError):
                failures.append(store_failure(answer, UPDATE_FAILED[write.store]))
            elif isinstance(answer, WriteAnswer):
                if answer.status is _REFUSED:
                    # Refused in favour of the decision itself (our own first sending, perhaps): read back and see.
                    held, traits = answer.observation, self._policy.traits[write.store]
                    if held is None or not is_equal(held, plan.version, traits):
                        moved = write.store
                elif answer.status is _REJECTED:
                    problem = "the store refuses the document" if answer.error is None else answer.error.problem
                    failures.append(Verdict(RepairOutcome.FAILED, f"{UPDATE_FAILED[write.store]}: {problem}"))
        if failures:
            raise Ended(worst(failures))
        if moved is not None:
            raise Moved(moved)

    async def _read_back(self, doc_id: str, plan: RepairPlan, progress: Progress) -> dict[str, Observation]:
        """Look at the critical stores again. Returns only if every one equals the decision."""
        progress.phase = _VERIFY
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
            raise Ended(Verdict(RepairOutcome.FAILED, f"{UPDATE_FAILED[no_effect]}: {problem}", transient=True))
        if moved is not None:
            raise Moved(moved)
        return views
