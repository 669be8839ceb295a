"""Owns the decision on an opt-in that waits: a person approves it, and it becomes a fact, or refuses it."""

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

from service.domain.facts import Fact
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
        review = await _locked(connection, review_id)
        if review is None or allowed_namespace not in (None, review["namespace"]):
            raise NotFound("There is no such review; list them with GET /v1/admin/reviews.")
        if review["state"] != "pending":
            raise Conflict(f"This review is {review['state']} already; a decision stands.", "already-decided")
        detail = {"review_id": str(review_id), "note": note}
        facts = [_fact_of(review)] if decision == "approved" else []
        deed = Deed(
            actor, f"review.{decision}", review["namespace"], review["channel"], review["address"], detail, facts
        )
        audit_id = await access.write_down(connection, deed, now)
        for fact in facts:
            await _make_fact(connection, review, fact, audit_id, policy, now)
        await reviews.decide(connection, review_id, decision, actor, note, now)
        return dict(review) | {"state": decision, "decided_by": actor, "decided_at": now, "note": note}

    decided = await until_settled(database, transaction)
    logger().info(f"review.{decision}", review_id=str(review_id))
    return decided


async def _locked(connection: Connection, review_id: uuid.UUID) -> Any:
    """The review, and before it the rows of its address, as whoever brings the same opt-in again locks them."""
    found = await reviews.one(connection, review_id)
    if found is None:
        return None
    await suppressions.lock(connection, found["namespace"], found["channel"], [found["address"]])
    return await reviews.lock(connection, review_id)


def _fact_of(review: Any) -> Fact:
    at = int(review["received_at"].timestamp()) if review["occurred_at"] is None else review["occurred_at"]
    return Fact(review["namespace"], review["channel"], review["address"], review["reason"], "clear", at, "kahuna")


async def _make_fact(
    connection: Connection, review: Any, fact: Fact, audit_id: uuid.UUID, policy: Policy, now: datetime
) -> None:
    received = review["address_received"] or fact.address
    entry = Entry(fact.address, received, fact.reason, fact.action, fact.occurred_at, review["entry_index"])
    provenance = Provenance(fact.namespace, fact.channel, fact.source, "operator", now, audit_id=audit_id)
    await suppressions.apply(connection, [entry], provenance, policy, locked=True)
    scope = outbox.Scope(fact.namespace, fact.channel, now, policy)
    await outbox.owe(connection, scope, {fact.address})
