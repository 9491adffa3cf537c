"""What a repair has done so far, kept so that a receipt can be written at any moment, without awaiting anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ._errors import StoreError
from ._model import DocumentVersion, ReceiptStep, RepairPhase, StepState, new_receipt_step
from ._requests import Operation, Request
from ._stepping import Gather
from ._views import Observation, WriteAnswer, WriteStatus

# By names of their own: see `plain_members`.
_LANDED: Final = WriteStatus.LANDED
_REMOVE: Final = Operation.REMOVE
_OBSERVE: Final = RepairPhase.OBSERVE
_CONSISTENT: Final = StepState.CONSISTENT
_VERIFIED: Final = StepState.VERIFIED
_APPLIED: Final = StepState.APPLIED

UNTOLD: Final = "an earlier write of this job got no verdict; what the store holds now is not by it"


class StoreProgress:
    """What is known about one store. Facts only go in; `state` is derived from them."""

    __slots__ = (
        "after",
        "before",
        "confirmed",
        "detail",
        "landed",
        "learned",
        "observed",
        "removed",
        "requests",
        "token",
    )

    def __init__(self) -> None:
        self.observed = False
        self.before: DocumentVersion | None = None
        self.after: DocumentVersion | None = None
        self.token: str | None = None
        self.confirmed = False
        """The last look, which came after the last write, found it equal to the decision."""
        self.landed = False
        """A write of this job is known to have landed."""
        self.removed = False
        """The last thing that landed was the removal of the entry."""
        self.detail: str | None = None
        self.learned = False
        """The verdict on the last request was taken in; what was seen since is newer."""
        self.requests: Sequence[Request] = ()
        """Writes and removals, oldest first."""

    def saw(self, observation: Observation) -> None:
        """Note a look at the store."""
        if not self.observed:
            self.observed = True
            self.before = observation.version
        self.after = observation.version
        self.token = observation.token
        if not self.requests:
            # All that went wrong so far was looking, and now it has not.
            self.detail = None

    def wrote(self, request: Request) -> None:
        """Note that a write is about to be asked for. Called before it can be sent."""
        self.requests = (*self.requests, request)
        self.confirmed = False
        self.learned = False

    def learn(self) -> None:
        """Take in the verdict on the last write, if it has come."""
        if self.learned or not self.requests:
            return
        request = self.requests[-1]
        answer = request.answer
        self.learned = answer is not None
        if isinstance(answer, WriteAnswer):
            if answer.status is _LANDED:
                self.landed = True
                self.removed = request.operation is _REMOVE
            if answer.observation is not None:
                self.saw(answer.observation)
            if answer.error is not None:
                self.detail = answer.error.problem
        elif isinstance(answer, StoreError):
            self.detail = answer.problem

    def confirm(self, version: DocumentVersion | None) -> None:
        """A look after the last write found the store equal to the decision: `version`, or nothing at all."""
        self.confirmed = True
        self.detail = None
        for request in self.requests:
            if request.may_explain(version):
                # What we sent is there, and was not before: it landed.
                self.landed = True
            elif not self.landed and request.effect_untold:
                self.detail = UNTOLD
        if self.landed:
            self.detail = None

    @property
    def state(self) -> StepState:
        """The receipt's word for all this. Each test in turn, the strongest knowledge first."""
        if self.confirmed:
            return _VERIFIED if self.landed else _CONSISTENT
        sent = [request for request in self.requests if request.was_sent]
        if not sent:
            return StepState.UNTOUCHED if self.detail is None or self.requests else StepState.FAILED
        for request in reversed(sent):
            if request.landed:
                # Its fence held: whatever was sent before it is over.
                break
            if request.verdict_unknown:
                return StepState.UNKNOWN
        if self.landed:
            return StepState.INVALIDATED if self.removed else _APPLIED
        return StepState.REFUSED if sent[-1].refused else StepState.FAILED


class Progress:
    """The progress of one repair through all its attempts."""

    __slots__ = (
        "fences",
        "parks",
        "phase",
        "settled_tokens",
        "source",
        "stores",
        "verified",
        "version",
        "waits_for",
        "warnings",
    )

    def __init__(self, fences: Mapping[str, str]) -> None:
        self.fences = fences
        self.phase = _OBSERVE
        self.stores = {name: StoreProgress() for name in fences}
        self.source: str | None = None
        self.version: DocumentVersion | None = None
        self.verified = False
        """Every critical store was read back equal to the decision."""
        self.warnings: Sequence[str] = ()
        self.settled_tokens: Mapping[str, str] | None = None
        """What the stores held when the wait before overwriting a higher number began."""
        self.parks = 0
        """How often such a wait began."""
        self.waits_for: Mapping[str, Request] = {}
        """By store, the requests whose answers the attempt was last waiting for."""

    def warn(self, warning: str) -> None:
        """Add a warning to the result, once."""
        if warning not in self.warnings:
            self.warnings = (*self.warnings, warning)

    def answers(self, gather: Gather, requests: Mapping[str, Request]) -> Gather:
        """To be awaited: the answers, by store. **If cancelled:** what is not under way is taken back."""
        self.waits_for = requests
        gather.requests = requests
        return gather

    def outstanding(self) -> list[tuple[str, Request]]:
        """Writes that a store is still working on."""
        return [
            (name, request)
            for name, store in self.stores.items()
            for request in store.requests
            if request.was_sent and not request.ended
        ]

    def unended(self) -> Sequence[tuple[str, Request]]:
        """Writes that wait to be sent, or that a store is still working on."""
        found: Sequence[tuple[str, Request]] = ()
        for name, store in self.stores.items():
            for request in store.requests:
                if not request.ended:
                    found = (*found, (name, request))
        return found

    @property
    def is_untouched(self) -> bool:
        """True if no store was seen, written to, or failed: the receipt is that of a job that never started."""
        for store in self.stores.values():  # noqa: SIM110 - a generator costs more than all of this
            if store.observed or store.requests or store.detail is not None:
                return False
        return True

    def receipt(self) -> tuple[ReceiptStep, ...]:
        """A step for each store, in the order text, vector, cache."""
        self._learn()
        steps = [
            new_receipt_step(name, store.state, store.before, store.after, store.token, self.fences[name], store.detail)
            for name, store in self.stores.items()
        ]
        return tuple(steps)

    def updated_systems(self) -> tuple[str, ...]:
        """The stores where a write is known to have landed."""
        self._learn()
        return tuple([name for name, store in self.stores.items() if store.landed])

    def _learn(self) -> None:
        # One of several jobs may be withdrawn when a store has answered and the repair still waits for another one.
        for store in self.stores.values():
            if not store.learned:
                store.learn()


class ToldProgress(Progress):
    """A progress that tells each phase that its repair comes to.

    It is made only where somebody asks for phases; elsewhere, `phase` is a plain attribute and costs nothing more.
    """

    __slots__ = ("_doc_id", "_phase", "_tell_phase")

    def __init__(self, fences: Mapping[str, str], doc_id: str, tell_phase: Callable[[str, RepairPhase], None]) -> None:
        self._doc_id = doc_id
        self._tell_phase: Callable[[str, RepairPhase], None] = _untold
        super().__init__(fences)
        self._tell_phase = tell_phase

    @property
    def phase(self) -> RepairPhase:
        """Where the repair is."""
        return self._phase

    @phase.setter
    def phase(self, phase: RepairPhase) -> None:
        self._phase = phase
        self._tell_phase(self._doc_id, phase)


def _untold(_doc_id: str, _phase: RepairPhase) -> None:
    """That it is made is no step of the repair."""


def untouched_receipt(fences: Mapping[str, str]) -> tuple[ReceiptStep, ...]:
    """The receipt of a job that never started."""
    return tuple(ReceiptStep(store=name, state=StepState.UNTOUCHED, fence=fence) for name, fence in fences.items())
