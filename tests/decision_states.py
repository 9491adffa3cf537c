"""A short notation for what stores hold, so that tables of decisions can be read.

``-`` absent; ``T2`` a tombstone at 2; ``L1a`` a live copy of version 1 with content a; ``?`` for no number;
``!`` after it: damaged; ``~`` after it: vectors of another model; ``None``: not observed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from trio_repair._divergence import Divergence
from trio_repair._model import DocumentVersion
from trio_repair._planning import CacheStep, PlanAction, Policy, RepairPlan
from trio_repair._views import AbsentMeans, EmbeddingIdentity, Fence, Observation, Presence, StoreTraits

MODEL = EmbeddingIdentity(model="new", dimension=8, chunking="windows")
OTHER_MODEL = EmbeddingIdentity(model="old", dimension=8, chunking="windows")


def traits_of(
    store: str,
    *,
    absent: AbsentMeans | None = None,
    keeps_tombstones: bool | None = None,
    holds_text: bool = True,
) -> StoreTraits:
    keeps = store != "cache" if keeps_tombstones is None else keeps_tombstones
    if absent is None:
        absent = AbsentMeans.MISSING if keeps else AbsentMeans.MANUAL
    return StoreTraits(
        fence=Fence.STRONG,
        holds_text=holds_text,
        keeps_tombstones=keeps,
        absent=absent,
        embedding=MODEL if store == "vector" else None,
    )


TRAITS: Mapping[str, StoreTraits] = {name: traits_of(name) for name in ("text", "vector", "cache")}
POLICY = Policy(traits=TRAITS)


def digest(letter: str) -> str:
    return letter * 64 if letter else ""


def see(store: str, notation: str) -> Observation:
    """What `notation` says of `store`."""
    if notation == "-":
        return Observation(presence=Presence.ABSENT, token=f"{store}:-")
    core = notation.rstrip("!~")
    number = None if core[1] == "?" else int(core.strip("LTabc"))
    deleted = core[0] == "T"
    embedding = OTHER_MODEL if "~" in notation else MODEL
    return Observation(
        presence=Presence.TOMBSTONE if deleted else Presence.LIVE,
        token=f"{store}:{notation}",
        version=DocumentVersion(number=number, digest="" if deleted else digest(core[-1]), deleted=deleted),
        intact="!" not in notation,
        embedding=embedding if store == "vector" and not deleted else None,
    )


def views_of(text: str, vector: str, cache: str | None = None) -> dict[str, Observation]:
    views = {"text": see("text", text), "vector": see("vector", vector)}
    if cache is not None:
        views["cache"] = see("cache", cache)
    return views


def describe(plan: RepairPlan) -> str:
    """``copy 2b vector,text->text``, ``delete 2->vector``, ``nothing``, ``manual``, ``nowhere``; then what else."""
    parts = [plan.action.value]
    if plan.action in (PlanAction.COPY, PlanAction.DELETE):
        assert plan.version is not None
        number = "?" if plan.version.number is None else str(plan.version.number)
        which = "" if plan.version.deleted else f"{plan.version.digest[:1]} {','.join(plan.sources)}"
        parts.append(f"{number}{which}->{','.join(write.store for write in plan.writes)}")
    if plan.settle_first:
        parts.append("settle")
    if plan.cache_step is not CacheStep.NONE:
        parts.append(plan.cache_step.value)
    return " ".join(parts)


def describe_findings(divergence: Divergence | None) -> str:
    """``stale vector, stale-cache cache``; empty for None."""
    if divergence is None:
        return ""
    return ", ".join(f"{finding.kind.value} {finding.store}" for finding in divergence.findings)


NUMBERS = ("?", "1", "2")
LIVE = tuple(f"L{number}{letter}" for number in NUMBERS for letter in "ab")
TOMBSTONES = tuple(f"T{number}" for number in NUMBERS)
TEXT_STATES = ("-", *TOMBSTONES, *LIVE, *(f"{live}!" for live in LIVE))
VECTOR_STATES = (*TEXT_STATES, *(f"{live}~" for live in LIVE), *(f"{live}!~" for live in LIVE))
CACHE_STATES = (None, "-", "T1", "L?a", "L1a", "L1a!", "L1b", "L2a", "L2b")


def all_states() -> Iterator[dict[str, Observation]]:
    """Every combination of the small states of three stores."""
    for text, vector, cache in itertools.product(TEXT_STATES, VECTOR_STATES, CACHE_STATES):
        yield views_of(text, vector, cache)


def apply(
    plan: RepairPlan, views: Mapping[str, Observation], traits: Mapping[str, StoreTraits]
) -> dict[str, Observation]:
    """What the stores hold after a plan was carried out without any trouble."""
    after = dict(views)
    for write in plan.writes:
        after[write.store] = _written(write.store, plan.version, traits[write.store])
    if plan.cache_step is CacheStep.REFRESH:
        after["cache"] = _written("cache", plan.version, traits["cache"])
    elif plan.cache_step is CacheStep.INVALIDATE:
        after["cache"] = see("cache", "-")
    return after


def _written(store: str, version: DocumentVersion | None, traits: StoreTraits) -> Observation:
    assert version is not None
    if version.deleted and not traits.keeps_tombstones:
        return see(store, "-")
    return Observation(
        presence=Presence.TOMBSTONE if version.deleted else Presence.LIVE,
        token=f"{store}:written",
        version=version,
        embedding=None if version.deleted else traits.embedding,
    )
