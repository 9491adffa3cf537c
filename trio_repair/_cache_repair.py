"""The cache's part of a repair: never critical, never a source; failing at it is a warning."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from ._batching import Batcher
from ._config import AutoRepairConfig
from ._errors import StoreError
from ._events import EventKind
from ._model import Document, RepairPhase, SyncStrategy
from ._planning import CacheStep, Policy, RepairPlan, cache_step, plan_repair
from ._progress import Progress
from ._requests import Request
from ._stepping import Gather
from ._telling import unheard
from ._verdict import MOVED_ERROR, Ended, Moved
from ._views import Observation, Prepared, WriteAnswer, WriteStatus

# By names of their own: see `plain_members`.
_CACHE: Final = RepairPhase.CACHE
_NONE: Final = CacheStep.NONE
_REFRESH: Final = CacheStep.REFRESH
_INVALIDATE: Final = CacheStep.INVALIDATE
_LANDED: Final = WriteStatus.LANDED


class CacheRepair:
    """Brings the cache in line with the critical stores.

    Args:
        batcher: the cache's.
        content: gives the document to write, as `Repairer` reads it from a source.
    """

    def __init__(
        self,
        batcher: Batcher,
        policy: Policy,
        config: AutoRepairConfig,
        emit: Callable[..., None],
        wall: Callable[[], float],
        content: Callable[[str, RepairPlan, Mapping[str, Observation], Progress], Awaitable[Document]],
    ) -> None:
        self._batcher = batcher
        self._policy = policy
        self._config = config
        self._emit = emit
        self._heard = emit is not unheard
        self._wall = wall
        self._content = content

    def look(self, doc_id: str, gather: Gather) -> Request:
        """Ask what the cache holds."""
        return self._batcher.observe(doc_id, gather)

    async def see(self, gather: Gather, request: Request, progress: Progress, views: dict[str, Observation]) -> None:
        """Add the cache to the views, or a warning that it could not be looked at."""
        await progress.answers(gather, {"cache": request})
        if isinstance(request.answer, Observation):
            views["cache"] = request.answer
            progress.stores["cache"].saw(request.answer)
            view = request.answer
            if self._heard:
                doc_id, token, version = request.doc_id, view.token, view.version
                self._emit(EventKind.OBSERVED, doc_id=doc_id, store="cache", token=token, version=version)
        elif isinstance(request.answer, StoreError):
            progress.stores["cache"].detail = request.answer.problem
            progress.warn(f"Cache update warning: {request.answer}")

    async def mend(
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
        progress.phase = _CACHE
        doc_id = plan.doc_id
        seen: dict[str, Observation] = {}
        for _ in range(1 + self._config.max_reobserve):
            await self.see(gather, request, progress, seen)
            if "cache" not in seen:
                return
            view = seen["cache"]
            step = cache_step(view, plan.version, self._policy)
            if step is _NONE:
                progress.stores["cache"].confirm(plan.version)
                return
            if planned is _NONE:
                progress.warn(f"Cache update warning: cache store: document {doc_id!r} differs, outside the plan")
                return
            if planned is _INVALIDATE:
                step = _INVALIDATE
            if await self._change(plan, step, document, view, views, progress):
                return
            gather = Gather(1)
            request = self._batcher.observe(doc_id, gather)
        progress.warn(f"Cache update warning: cache store: document {doc_id!r} {MOVED_ERROR}; its entry may be stale")

    async def _change(
        self,
        plan: RepairPlan,
        step: CacheStep,
        document: Document | None,
        view: Observation,
        views: Mapping[str, Observation],
        progress: Progress,
    ) -> bool:
        """Replace the entry, or else remove it, or else warn. False if it changed meanwhile."""
        store = progress.stores["cache"]
        problem = "the entry may be stale"
        if step is _REFRESH:
            prepared = await self._prepare(plan.doc_id, document, {**views, "cache": view}, progress)
            if isinstance(prepared, Prepared):
                gather = Gather(1)
                request = self._batcher.write(prepared, view.token, gather)
                store.wrote(request)
                await progress.answers(gather, {"cache": request})
                store.learn()
                verdict = _cache_verdict(request)
                if verdict is not None:
                    return verdict
                problem = "the entry may be stale" if store.detail is None else store.detail
                if any(name == "cache" for name, _request in progress.outstanding()):
                    # The call was given up and goes on: a removal now would be a second write beside it.
                    progress.warn(f"Cache update warning: cache store: document {plan.doc_id!r}: {problem}")
                    return True
            else:
                problem = prepared
            if view.version is None:
                progress.warn(f"Cache update warning: cache store: {problem}")
                return True
        gather = Gather(1)
        request = self._batcher.remove(plan.doc_id, view.token, gather)
        store.wrote(request)
        await progress.answers(gather, {"cache": request})
        store.learn()
        verdict = _cache_verdict(request)
        if verdict is not None:
            if verdict and step is _REFRESH:
                progress.warn(f"Cache update warning: cache store: entry removed, not refreshed: {problem}")
            return verdict
        problem = problem if store.detail is None else store.detail
        progress.warn(f"Cache update warning: cache store: document {plan.doc_id!r}: {problem}")
        return True

    async def _prepare(
        self, doc_id: str, document: Document | None, views: Mapping[str, Observation], progress: Progress
    ) -> Prepared | str:
        if document is None:
            source = progress.source
            # The critical stores agree: whom to believe makes no difference, but for who is asked for the text.
            plan = plan_repair(doc_id, views, SyncStrategy.TEXT_SOURCE_OF_TRUTH, self._policy, now=self._wall())
            try:
                document = await self._content(doc_id, plan, views, progress)
            except Ended as ended:
                return str(ended.verdict.error)
            except Moved:
                return "the source changed meanwhile"
            finally:
                progress.phase = _CACHE
                if source is not None:
                    progress.source = source
        gather = Gather(1)
        request = self._batcher.prepare(document, gather)
        await progress.answers(gather, {"cache": request})
        if isinstance(request.answer, Prepared):
            return request.answer
        return request.answer.problem if isinstance(request.answer, StoreError) else "it could not be prepared"


def _cache_verdict(request: Request) -> bool | None:
    """True: done. False: the entry changed meanwhile, look again. None: it failed."""
    if isinstance(request.answer, WriteAnswer):
        if request.answer.status is _LANDED:
            return True
        if request.answer.status is WriteStatus.REFUSED:
            return False
    return None
