"""Receipts: what may be said of a store, from the facts that are known about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_repair import (
    DocumentVersion,
    Observation,
    Prepared,
    Presence,
    ReceiptStep,
    Removal,
    RepairPhase,
    StepState,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair._progress import UNTOLD, Progress, StoreProgress, ToldProgress, untouched_receipt
from trio_repair._requests import Operation, Request
from trio_repair._stepping import Gather
from trio_repair.testing import make_document

DOCUMENT = make_document("d", "new", number=5)
OTHER = make_document("d", "somebody else's", number=6)


def _seen(token: str, version: DocumentVersion | None = None) -> Observation:
    return Observation(presence=Presence.LIVE if version else Presence.ABSENT, token=token, version=version)


def _write(document=DOCUMENT, token: str = "t0") -> Request:
    return Request(Operation.WRITE, "d", Write(prepared=Prepared(document=document), token=token), Gather(1))


def _removal(token: str = "t0") -> Request:
    return Request(Operation.REMOVE, "d", Removal(doc_id="d", token=token), Gather(1))


def _send(store: StoreProgress, request: Request, answer=None) -> Request:
    store.wrote(request)
    request.was_sent = True
    if answer is not None:
        request.settle(answer)
    store.learn()
    return request


def _verdict(status: WriteStatus, observation: Observation | None = None, error=None) -> WriteAnswer:
    return WriteAnswer(status=status, observation=observation, error=error)


LANDED = _verdict(WriteStatus.LANDED, _seen("t1", DOCUMENT.version))
UNKNOWN = _verdict(WriteStatus.UNKNOWN, error=StoreUnavailable("text", "no answer"))
REFUSED = _verdict(WriteStatus.REFUSED, _seen("t9", OTHER.version))
REJECTED = _verdict(WriteStatus.REJECTED, error=StoreUnavailable("text", "never"))


@pytest.mark.parametrize(
    ("answer", "expected", "detail"),
    [
        (LANDED, StepState.APPLIED, None),
        (UNKNOWN, StepState.UNKNOWN, "no answer"),
        (None, StepState.UNKNOWN, None),
        (REFUSED, StepState.REFUSED, None),
        (REJECTED, StepState.FAILED, "never"),
        (StoreUnavailable("text", "down"), StepState.FAILED, "down"),
    ],
)
def test_the_state_after_one_write(answer, expected: StepState, detail: str | None):
    """Each verdict, and none, in the receipt's words, and with the store's own word for what went wrong."""
    store = StoreProgress()
    _send(store, _write(), answer)
    assert (expected, detail) == (store.state, store.detail)


def test_a_repair_that_has_not_begun_claims_nothing():
    """Nothing seen, sent, learned, removed or confirmed: whatever is said later has been put in by somebody."""
    progress = Progress({"text": "strong"})
    (store,) = progress.stores.values()
    claims = {name: getattr(store, name) for name in StoreProgress.__slots__}
    flags = dict.fromkeys(("confirmed", "landed", "learned", "observed", "removed"), False)
    assert flags | dict.fromkeys(("after", "before", "detail", "token")) | {"requests": ()} == claims
    about_all = (progress.source, progress.version, progress.verified, progress.settled_tokens, progress.parks)
    assert (None, None, False, None, 0, {}) == (*about_all, progress.waits_for)


def test_a_write_that_was_not_sent_left_the_store_untouched():
    """I8: UNTOUCHED means that no write was ever sent there."""
    store = StoreProgress()
    store.wrote(_write())
    assert StepState.UNTOUCHED is store.state
    store.requests[0].was_sent = True
    assert StepState.UNKNOWN is store.state


def test_a_store_that_could_not_be_asked_failed():
    """An error and no write: FAILED, with the reason; nothing known at all: UNTOUCHED."""
    store = StoreProgress()
    assert StepState.UNTOUCHED is store.state
    store.detail = "down"
    assert StepState.FAILED is store.state


def test_an_error_of_a_look_is_forgotten_when_a_later_look_succeeds():
    """The first attempt could not look, the second could: the receipt does not call the store failed."""
    store = StoreProgress()
    store.detail = "down"
    store.saw(_seen("t0"))
    assert (StepState.UNTOUCHED, None) == (store.state, store.detail)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((UNKNOWN, LANDED), StepState.APPLIED),
        ((LANDED, UNKNOWN), StepState.UNKNOWN),
        ((UNKNOWN, REFUSED), StepState.UNKNOWN),
        ((LANDED, REFUSED), StepState.APPLIED),
        ((REFUSED, REJECTED), StepState.FAILED),
        ((LANDED, StoreUnavailable("text", "down")), StepState.APPLIED),
    ],
)
def test_the_state_after_two_writes(answers, expected: StepState):
    """A write that landed later tells more than the one before it, whose verdict never came."""
    store = StoreProgress()
    for answer in answers:
        _send(store, _write(), answer)
    assert expected is store.state


def test_a_removal_that_landed_after_an_unknown_write_invalidated_the_entry():
    """The fence of the removal held: whatever the write did, the entry is gone."""
    store = StoreProgress()
    _send(store, _write(), UNKNOWN)
    _send(store, _removal(), _verdict(WriteStatus.LANDED, _seen("absent")))
    assert StepState.INVALIDATED is store.state


def test_read_back():
    """Landed and confirmed: VERIFIED. Confirmed without a write: CONSISTENT. A later write takes the confirmation back."""
    store = StoreProgress()
    store.confirm(DOCUMENT.version)
    assert StepState.CONSISTENT is store.state
    _send(store, _write(), LANDED)
    assert (StepState.APPLIED, False) == (store.state, store.confirmed)
    store.confirm(DOCUMENT.version)
    assert StepState.VERIFIED is store.state


@pytest.mark.parametrize("answer", [UNKNOWN, None, StoreUnavailable("text", "raised after the effect")])
def test_what_was_sent_and_is_found_has_landed(answer):
    """No verdict, or a false one, and then the store holds exactly what was sent, which it did not before."""
    store = StoreProgress()
    _send(store, _write(), answer)
    store.confirm(DOCUMENT.version)
    assert (True, StepState.VERIFIED) == (store.landed, store.state)


@pytest.mark.parametrize("answers", [(UNKNOWN,), (UNKNOWN, REFUSED)])
def test_what_somebody_else_wrote_is_not_ours(answers):
    """The store equals a later decision that we never sent: no write of ours is known to have landed."""
    store = StoreProgress()
    for answer in answers:
        _send(store, _write(), answer)
    store.confirm(OTHER.version)
    assert (False, StepState.CONSISTENT) == (store.landed, store.state)


def test_a_lost_write_whose_content_is_found_after_a_second_one_was_refused_has_landed():
    """UNKNOWN, then REFUSED since the first had landed after all: it is ours."""
    store = StoreProgress()
    _send(store, _write(), UNKNOWN)
    _send(store, _write(), REFUSED)
    store.confirm(DOCUMENT.version)
    assert (True, StepState.VERIFIED) == (store.landed, store.state)


@pytest.mark.parametrize("again", [False, True])
def test_a_write_that_was_sent_twice_may_be_refused_because_of_itself(again: bool):
    """Its call broke, it was sent again, the fence refused: unknown until looked at. Control: sent once, refused."""
    store = StoreProgress()
    request = _write()
    request.sent_again = again
    _send(store, request, REFUSED)
    assert (StepState.UNKNOWN if again else StepState.REFUSED) is store.state
    store.confirm(DOCUMENT.version)
    assert again == store.landed


def test_a_write_that_a_look_disproved_has_not_landed():
    """The store still held the state before it, after its call had ended; nor is it taken for somebody else's write."""
    store = StoreProgress()
    _send(store, _write(), UNKNOWN).disproved = True
    assert StepState.FAILED is store.state
    store.confirm(OTHER.version)
    assert not store.landed


def test_a_write_that_lands_after_a_look_had_disproved_it_is_owned_up_to():
    """It was on its way still: what was sent is there, so it is no store that needed nothing."""
    store = StoreProgress()
    _send(store, _write(), UNKNOWN).disproved = True
    store.confirm(DOCUMENT.version)
    assert (True, StepState.VERIFIED) == (store.landed, store.state)


def test_a_write_without_a_verdict_that_others_wrote_over_is_told_of():
    """What the store holds is not by us, so nothing is claimed; but that a write was sent is said. Control: refused."""
    for answer, expected in ((UNKNOWN, UNTOLD), (REFUSED, None)):
        store = StoreProgress()
        _send(store, _write(), answer)
        store.confirm(OTHER.version)
        assert (False, StepState.CONSISTENT, expected) == (store.landed, store.state, store.detail)


def test_a_verdict_is_learned_once():
    """Closing the receipt does not put an old verdict over what was seen since."""
    store = StoreProgress()
    _send(store, _write(), LANDED)
    store.saw(_seen("t2", OTHER.version))
    store.learn()
    assert ("t2", OTHER.version) == (store.token, store.after)
    store = StoreProgress()
    _send(store, _write(), UNKNOWN)
    store.confirm(DOCUMENT.version)
    store.learn()
    assert store.detail is None


def test_i8_a_verdict_counts_from_the_moment_it_came():
    """One store has answered, and the repair still waits for the other: a receipt that is written now tells of it."""
    progress = Progress({"text": "strong", "vector": "strong"})
    for store in progress.stores.values():
        store.wrote(_write())
        store.requests[0].was_sent = True
    assert [StepState.UNKNOWN, StepState.UNKNOWN] == [step.state for step in progress.receipt()]
    progress.stores["text"].requests[0].settle(LANDED)
    assert [StepState.APPLIED, StepState.UNKNOWN] == [step.state for step in progress.receipt()]
    assert ("text",) == progress.updated_systems()


def test_before_is_the_first_look_and_after_the_last():
    """`before` never changes once it is known, not even for an absent document."""
    store = StoreProgress()
    store.saw(_seen("t0"))
    store.saw(_seen("t1", DOCUMENT.version))
    assert (None, DOCUMENT.version, "t1") == (store.before, store.after, store.token)


def test_progress_names_what_has_not_ended_and_what_is_under_way():
    """A queued write is not outstanding; one under way is until it ends."""
    progress = Progress({"text": "strong", "vector": "weak"})
    queued, sent = _write(), _write()
    progress.stores["text"].wrote(queued)
    progress.stores["vector"].wrote(sent)
    queued.queued = sent.was_sent = True
    assert ((("text", queued), ("vector", sent)), [("vector", sent)]) == (progress.unended(), progress.outstanding())
    queued.withdraw()
    sent.settle(LANDED)
    assert ((("vector", sent),), [("vector", sent)]) == (progress.unended(), progress.outstanding())
    sent.end()
    assert () == progress.unended()
    assert ([], ("vector",)) == (progress.outstanding(), progress.updated_systems())
    assert [StepState.UNTOUCHED, StepState.APPLIED] == [step.state for step in progress.receipt()]
    assert ["strong", "weak"] == [step.fence for step in progress.receipt()]
    assert RepairPhase.OBSERVE is progress.phase


def test_the_receipt_of_a_job_that_never_started():
    """Every store untouched, nothing known."""
    (step,) = untouched_receipt({"text": "weak"})
    assert ReceiptStep(store="text", state=StepState.UNTOUCHED, fence="weak") == step
    assert (None, None, None) == (step.before, step.after, step.token)


@given(st.sampled_from(["nothing", "seen", "absent", "asked", "sent", "failed", "mended"]))
def test_an_untouched_progress_has_the_receipt_of_a_job_that_never_started(happened: str):
    """Else its receipt says more, but after an error that a later look has mended, or a write that was taken back."""
    fences = {"text": "strong", "vector": "weak", "cache": "weak"}
    progress = Progress(fences)
    store = progress.stores["vector"]
    if happened in ("seen", "absent"):
        store.saw(_seen("t0", DOCUMENT.version if happened == "seen" else None))
    elif happened in ("asked", "sent"):
        request = _write()
        store.wrote(request)
        request.was_sent = happened == "sent"
    elif happened != "nothing":
        store.detail = "down"
        if happened == "mended":
            store.saw(_seen("t0"))
    assert progress.is_untouched == (happened == "nothing")
    assert (progress.receipt() == untouched_receipt(fences)) == (happened in ("nothing", "asked"))


ANSWERS = st.sampled_from([None, LANDED, UNKNOWN, REFUSED, REJECTED, StoreUnavailable("text", "down")])


@given(st.lists(st.tuples(st.booleans(), ANSWERS), max_size=5), st.booleans())
def test_i8_the_words_of_a_receipt_keep_their_meaning(history, confirmed: bool):
    """UNTOUCHED: nothing sent. Updated: something landed. VERIFIED and CONSISTENT: read back equal."""
    store = StoreProgress()
    for was_sent, answer in history:
        request = _write()
        store.wrote(request)
        if was_sent:
            request.was_sent = True
            if answer is not None:
                request.settle(answer)
        store.learn()
    if confirmed:
        store.confirm(DOCUMENT.version)
    state = store.state
    landed = any(was_sent and answer is LANDED for was_sent, answer in history)
    sent = any(was_sent for was_sent, _answer in history)
    assert (state in (StepState.VERIFIED, StepState.CONSISTENT)) == confirmed
    if not confirmed:
        assert (state is StepState.UNTOUCHED) == (not sent)
    if state in (StepState.VERIFIED, StepState.APPLIED, StepState.INVALIDATED):
        assert store.landed
    assert store.landed >= landed


def test_a_told_progress_tells_each_phase():
    """As often as it is set, the first time too; not that it was made. For the rest it is a progress."""
    told: list[tuple[str, RepairPhase]] = []
    progress = ToldProgress({"text": "strong"}, "d", lambda doc_id, phase: told.append((doc_id, phase)))
    assert RepairPhase.OBSERVE is progress.phase
    assert [] == told
    for phase in (RepairPhase.OBSERVE, RepairPhase.WRITE, RepairPhase.OBSERVE):
        progress.phase = phase
        assert phase is progress.phase
    assert [("d", RepairPhase.OBSERVE), ("d", RepairPhase.WRITE), ("d", RepairPhase.OBSERVE)] == told
    assert Progress({"text": "strong"}).receipt() == progress.receipt()
