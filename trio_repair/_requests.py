"""One document's part in a bulk call."""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from ._enums import plain_members
from ._errors import StoreError
from ._model import Document, DocumentVersion
from ._stepping import Gather
from ._views import Observation, Prepared, Presence, StoredDocument, WriteAnswer, WriteStatus

# By names of their own: see `plain_members`.
_LANDED: Final = WriteStatus.LANDED
_UNKNOWN: Final = WriteStatus.UNKNOWN

Answer: TypeAlias = Observation | StoredDocument | Prepared | WriteAnswer | StoreError


@plain_members
class Operation(enum.Enum):
    """The calls that a store is asked to make."""

    # Members are looked up for every request; Enum's own hash is a Python function.
    __hash__ = object.__hash__

    OBSERVE = "observe"
    READ = "read"
    PREPARE = "prepare"
    WRITE = "write"
    REMOVE = "remove"


_PREPARE: Final = Operation.PREPARE
_WRITE: Final = Operation.WRITE

_MANY: Final = 8
"""So many answers are looked through sooner by loops of C than one by one."""
_TOKEN: Final = operator.attrgetter("token")
_PRESENCE: Final = operator.attrgetter("presence")
_VERSION: Final = operator.attrgetter("version")
_PLAIN: Final = (list, tuple)
_VERSION_TYPES: Final = {DocumentVersion, type(None)}

EFFECTS: Final = frozenset({Operation.WRITE, Operation.REMOVE})
CARRIES_TEXT: Final = frozenset({Operation.WRITE, Operation.PREPARE})
_ANSWER_TYPES: Final[dict[Operation, type]] = {
    Operation.OBSERVE: Observation,
    Operation.READ: StoredDocument,
    Operation.PREPARE: Prepared,
    Operation.WRITE: WriteAnswer,
    Operation.REMOVE: WriteAnswer,
}


class Request:
    """One document's part in a bulk call.

    It is queued, then sent, then answered; a call that is given up answers its requests before it has `ended`.
    """

    __slots__ = (
        "answer",
        "arguments",
        "company",
        "disproved",
        "doc_id",
        "ended",
        "gather",
        "on_ended",
        "operation",
        "order",
        "queued",
        "queued_at",
        "sent_again",
        "was_sent",
        "withdrawn",
    )

    def __init__(self, operation: Operation, doc_id: str, arguments: Any, gather: Gather) -> None:
        self.operation = operation
        self.doc_id = doc_id
        self.arguments = arguments
        self.gather = gather
        self.answer: Answer | None = None
        self.order: int
        self.queued = False
        """It waits in its queue, for the first time or to be sent again."""
        self.queued_at: float
        self.company: int | None = None
        """So many requests at most may travel in its call, since a larger call failed; None: any number."""
        self.was_sent = False
        """True from just before the store is called: from here on it may have an effect."""
        self.sent_again = False
        """A call that carried it broke, so that nobody knows its effect, and it is to be sent, or was sent, again."""
        self.ended = False
        """The call that carried it has returned."""
        self.withdrawn = False
        """Nobody waits for it any more."""
        self.disproved = False
        """A later look, after its call had ended, found no effect. What is still on its way may land after that."""
        self.on_ended: Callable[[], None] | None = None

    @property
    def question(self) -> tuple[Operation, str]:
        """What is asked of which document."""
        return self.operation, self.doc_id

    @property
    def text_size(self) -> int:
        """How many characters of text it carries."""
        if self.operation is _WRITE:
            text = self.arguments.prepared.document.text
        elif self.operation is _PREPARE:
            text = self.arguments.text
        else:
            return 0
        return 0 if text is None else len(text)

    @property
    def removes(self) -> bool:
        """True if it takes the document's rows away."""
        return self.operation is Operation.REMOVE

    @property
    def landed(self) -> bool:
        """The store said that it landed."""
        return isinstance(self.answer, WriteAnswer) and self.answer.status is _LANDED

    @property
    def refused(self) -> bool:
        """The store said that its fence refused it."""
        return isinstance(self.answer, WriteAnswer) and self.answer.status is WriteStatus.REFUSED

    @property
    def verdict_unknown(self) -> bool:
        """It was sent, and nobody knows whether it landed."""
        if not self.was_sent or self.disproved:
            return False
        if self.answer is None:
            return True
        if isinstance(self.answer, WriteAnswer) and self.answer.status is _UNKNOWN:
            return True
        # Sent twice, and the second time to no effect: the first one may have had it, and be what the second one was
        # refused for.
        return self.sent_again and not self.landed

    @property
    def effect_untold(self) -> bool:
        """It was sent, and the store did not say, or not reliably, that it had no effect."""
        return self.was_sent and (self.verdict_unknown or self.disproved or isinstance(self.answer, StoreError))

    def may_explain(self, version: DocumentVersion | None) -> bool:
        """Whether it may be by this write, or removal, that the store holds `version` now.

        A store that raised an error promised that nothing was written, and one that was looked at held nothing new;
        what was found there is the stronger evidence.
        """
        if not self.effect_untold:
            return False
        return version == (None if self.removes else self.arguments.prepared.document.version)

    def withdraw(self) -> None:
        """Nobody waits for it any more: if it is not under way, it will not be sent, or not again."""
        if self.answer is None:
            self.withdrawn = True
            if self.queued:
                self.ended = True

    def settle(self, answer: Answer) -> None:
        """Give the answer, once; a later one is dropped."""
        if self.answer is None:
            self.answer = answer
            self.gather.one_answered()

    def end(self) -> None:
        """The call has returned."""
        self.ended = True
        if self.on_ended is not None:
            self.on_ended()
            self.on_ended = None


def contract_problem(operation: Operation, requests: Sequence[Request], answers: object) -> str | None:
    """What is wrong with a store's answers; None if they are what the contract says, down to the types of fields."""
    try:
        return _contract_problem(operation, requests, answers)
    except Exception as error:  # an adapter's own class may raise anything when it is looked at
        return f"{operation.value} answered with what cannot be read ({type(error).__name__})"


def _contract_problem(operation: Operation, requests: Sequence[Request], answers: object) -> str | None:
    if not isinstance(answers, Sequence):
        return f"{operation.value} answered with {type(answers).__name__}, not a sequence"
    if len(answers) != len(requests):
        return f"{operation.value} answered {len(answers)} of {len(requests)} documents"
    wanted = _ANSWER_TYPES[operation]
    if wanted is Observation and len(answers) >= _MANY and _all_observed(answers):
        return None
    fields_fit, has_document = _FIELDS_FIT[wanted], wanted in (StoredDocument, Prepared)
    for request, answer in zip(requests, answers, strict=True):
        if isinstance(answer, wanted):
            if not fields_fit(answer):
                return f"{operation.value} answered with {wanted.__name__} whose fields have wrong types"
            document = answer.document if has_document else None  # type: ignore[attr-defined] # of these two
            if document is not None and document.doc_id != request.doc_id:
                return f"{operation.value} answered for document {document.doc_id!r}, asked for another"
        elif not isinstance(answer, StoreError):
            return f"{operation.value} answered with {type(answer).__name__}"
        elif not is_whole(answer):
            return f"{operation.value} answered with a {type(answer).__name__} that was not made by its constructor"
    return None


def is_whole(error: StoreError) -> bool:
    """Whether an error can be told: a subclass may have forgotten to call its base class."""
    return isinstance(getattr(error, "problem", None), str)


def _all_observed(answers: Sequence[Any]) -> bool:
    """Whether all are observations with fields that fit: what most answers are, found out in loops of C."""
    return (
        type(answers) in _PLAIN  # another sequence may have another length than its iterator
        and set(map(type, answers)) == {Observation}
        and set(map(type, map(_TOKEN, answers))) == {str}
        and set(map(type, map(_PRESENCE, answers))) == {Presence}
        and set(map(type, map(_VERSION, answers))) <= _VERSION_TYPES
    )


def _observation_fits(view: Any) -> bool:
    version = view.version
    return (
        type(view) is Observation
        and isinstance(view.token, str)
        and isinstance(view.presence, Presence)
        and (version is None or isinstance(version, DocumentVersion))
    )


def _verdict_fits(answer: Any) -> bool:
    if not isinstance(answer.status, WriteStatus):
        return False
    held = answer.observation
    if held is None:
        return answer.error is None or (isinstance(answer.error, StoreError) and is_whole(answer.error))
    return _observation_fits(held) and (answer.error is None or isinstance(answer.error, StoreError))


_FIELDS_FIT: Final[dict[type, Callable[[Any], bool]]] = {
    Observation: _observation_fits,
    StoredDocument: lambda answer: isinstance(answer.token, str) and isinstance(answer.document, Document | None),
    Prepared: lambda answer: isinstance(answer.document, Document),
    WriteAnswer: _verdict_fits,
}
