"""Owns the decision on an opt-in that waits: a person approves it, and it becomes a fact, or refuses it."""

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

from service.domain.suppression import Policy
from service.errors import Conflict, NotFound
from service.store import access, outbox, reviews, suppressions
from service.store.access import Deed
from service.store.database import Connection, Database, until_settled
from service.store.suppressions import Entry, Provenance
from service.telemetry import logger


async def decide(
    database: Database,
    review_id: uuid.UUID,
    decision: str,
    actor: str,
    note: str | None,
    policy: Policy,
    clock: Callable[[], datetime],
    allowed_namespace: str | None,
) -> dict[str, Any]:
    """Approves or refuses (`approved`, `refused`); returns the review. An approved opt-in takes its own time, or that
    of its receipt if it came without one: a stop since then still wins."""
    now = clock()

    async def transaction(connection: Connection) -> dict[str, Any]:
        review = await reviews.lock(connection, review_id)
        if review is None or allowed_namespace not in (None, review["namespace"]):
            raise NotFound("There is no such review; list them with GET /v1/admin/reviews.")
        if review["state"] != "pending":
            raise Conflict(f"This review is {review['state']} already; a decision stands.", "already-decided")
        await reviews.decide(connection, review_id, decision, actor, note, now)
        detail = {"review_id": str(review_id), "note": note}
        deed = Deed(actor, f"review.{decision}", review["namespace"], review["channel"], review["address"], detail)
        audit_id = await access.write_down(connection, deed, now)
        if decision == "approved":
            await _make_fact(connection, review, audit_id, policy, now)
        return dict(review) | {"state": decision, "decided_by": actor, "decided_at": now, "note": note}

    decided = await until_settled(database, transaction)
    logger().info(f"review.{decision}", review_id=str(review_id))
    return decided


async def _make_fact(connection: Connection, review: Any, audit_id: uuid.UUID, policy: Policy, now: datetime) -> None:
    at = int(review["received_at"].timestamp()) if review["occurred_at"] is None else review["occurred_at"]
    received = review["address_received"] or review["address"]
    entry = Entry(review["address"], received, review["reason"], "clear", at, review["entry_index"])
    provenance = Provenance(review["namespace"], review["channel"], "kahuna", "operator", now, audit_id=audit_id)
    await suppressions.apply(connection, [entry], provenance, policy)
    scope = outbox.Scope(review["namespace"], review["channel"], now, policy)
    await outbox.owe(connection, scope, {review["address"]})
