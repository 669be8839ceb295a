"""Owns the state of one address at a past moment: what a query then would have said, or what was true then as known
today, each by the numbers that were in force.

Both are folded from the facts, which retention never drops; so the answer is as good for a moment before the oldest
month that the archive still has. What was taken back was known until then: a query of before would have told it. Of
what was true then as known today, it is no part.
"""

from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from service.domain.suppression import Cause, Policy, fold
from service.store import access, suppressions, withdrawals
from service.store.database import Database
from service.store.suppressions import CauseRow, FactRow, Subject

# The first years of the calendar, in some offsets, are none that the driver can send.
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)

Basis = Literal["recorded", "occurred"]


class State(NamedTuple):
    """The causes of an address at a moment, and the numbers by which they were judged."""

    causes: list[CauseRow]
    policy: Policy


async def state_at(database: Database, subject: Subject, at: datetime, basis: Basis, today: Policy) -> State:
    """The state at a moment. `today` are the numbers to go by if none were ever written down."""
    async with database.read() as connection:
        facts = await suppressions.facts_of(connection, *subject)
        if basis == "recorded":
            facts += [row for row, until in await withdrawals.about(connection, subject) if at < until]
        policy = await access.policy_at(connection, max(at, _LONG_AGO)) or today
    return State(_causes(_known(facts, at, basis), policy), policy)


def _known(facts: list[FactRow], at: datetime, basis: Basis) -> list[FactRow]:
    if basis == "recorded":
        return [row for row in facts if row.recorded_at <= at]
    return [row for row in facts if row.fact.occurred_at <= int(at.timestamp())]


def _causes(known: list[FactRow], policy: Policy) -> list[CauseRow]:
    return [_with_origin(cause, known) for cause in fold((row.fact for row in known), policy).values()]


def _with_origin(cause: Cause, known: list[FactRow]) -> CauseRow:
    """Of several facts that say what decided, the first that we heard of."""
    deciding = [
        r for r in known if r.fact.reason == cause.reason and (r.fact.action, r.fact.occurred_at) == cause.decided
    ]
    first = min(deciding, key=lambda row: row.recorded_at)
    return CauseRow(cause, first.recorded_at, first.origin, first.batch_id)
