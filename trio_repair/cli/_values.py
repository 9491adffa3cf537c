"""The JSON forms of what the command writes: stable names, for programs."""

from __future__ import annotations

import datetime as dt
from typing import Any

from .. import Divergence, DocumentVersion, EmbeddingIdentity, Observation, RepairPlan, RepairResult, StoreError
from ._words import in_order


def _time(moment: dt.datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(dt.timezone.utc).isoformat()


def version_json(version: DocumentVersion | None) -> dict[str, Any] | None:
    """``{"number", "digest", "deleted", "updated_at"}``, or null."""
    if version is None:
        return None
    return {
        "number": version.number,
        "digest": version.digest,
        "deleted": version.deleted,
        "updated_at": _time(version.updated_at),
    }


def _embedding_json(embedding: EmbeddingIdentity | None) -> dict[str, Any] | None:
    if embedding is None:
        return None
    return {"model": embedding.model, "dimension": embedding.dimension, "chunking": embedding.chunking}


def observation_json(observation: Observation | StoreError) -> dict[str, Any]:
    """``{"presence", "version", "intact", "embedding", "token"}``, or ``{"error"}`` if the store could not say."""
    if isinstance(observation, StoreError):
        return {"error": str(observation)}
    return {
        "presence": observation.presence.value,
        "version": version_json(observation.version),
        "intact": observation.intact,
        "embedding": _embedding_json(observation.embedding),
        "token": observation.token,
    }


def findings_json(divergence: Divergence | None) -> list[dict[str, str]]:
    """``[{"kind", "store"}]``."""
    if divergence is None:
        return []
    return [{"kind": finding.kind.value, "store": finding.store} for finding in divergence.findings]


def divergence_json(divergence: Divergence) -> dict[str, Any]:
    """One line of ``check --json``."""
    return {
        "type": "divergence",
        "doc_id": divergence.doc_id,
        "findings": findings_json(divergence),
        "stores": {name: observation_json(view) for name, view in in_order(divergence.views)},
    }


def plan_json(plan: RepairPlan) -> dict[str, Any]:
    """What is planned for one document."""
    return {
        "doc_id": plan.doc_id,
        "action": plan.action.value,
        "version": version_json(plan.version),
        "sources": list(plan.sources),
        "writes": [{"store": write.store, "token": write.token} for write in plan.writes],
        "cache_step": plan.cache_step.value,
        "tokens": dict(plan.tokens),
        "reason": plan.reason,
        "settle_first": plan.settle_first,
    }


def result_json(result: RepairResult) -> dict[str, Any]:
    """One line of a receipts file."""
    return {
        "type": "result",
        "doc_id": result.doc_id,
        "job_id": result.job_id,
        "outcome": result.outcome.value,
        "success": result.success,
        "error": result.error,
        "warnings": list(result.warnings),
        "source": result.source,
        "version": version_json(result.version),
        "updated_systems": list(result.updated_systems),
        "attempts": result.attempts,
        "queued_seconds": round(result.queued_seconds, 6),
        "running_seconds": round(result.running_seconds, 6),
        "receipt": [
            {
                "store": step.store,
                "state": step.state.value,
                "before": version_json(step.before),
                "after": version_json(step.after),
                "token": step.token,
                "fence": step.fence,
                "detail": step.detail,
            }
            for step in result.receipt
        ],
    }
