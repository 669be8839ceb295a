"""Owns what our own people and services say about an address: a stop, or the new consent that ends one."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from service.domain.addresses import Channel, ImpossibleAddress, normalise
from service.domain.facts import FUTURE_TOLERANCE, Action, Fact, Origin, reasons_of
from service.domain.suppression import Policy, verdict
from service.errors import Conflict, Unprocessable
from service.store import access, outbox, suppressions
from service.store.access import Deed
from service.store.database import Connection, Database, until_settled
from service.store.suppressions import CauseRow, Entry, Provenance
from service.telemetry import logger


class Statement(NamedTuple):
    """What somebody says: who, about which address, and when it happened (Unix seconds; None: now)."""

    actor: str
    namespace: str
    channel: Channel
    address: str
    occurred_at: int | None
    origin: Origin = "api"


async def suppress(
    database: Database, said: Statement, reason: str, note: str | None, policy: Policy, clock: Callable[[], datetime]
) -> list[CauseRow]:
    """Stops messages to an address for a reason; returns its causes. Saying the same again changes nothing."""
    if reason not in reasons_of(said.channel):
        allowed = ", ".join(reasons_of(said.channel))
        raise Unprocessable(f"No {said.channel} address has this reason; send one of {allowed}.", "unknown-reason")
    return await _say(database, said, "suppress", [reason], {"reason": reason, "note": note}, policy, clock)


async def reactivate(
    database: Database, said: Statement, evidence: str, policy: Policy, clock: Callable[[], datetime]
) -> list[CauseRow]:
    """Ends every stop of the channel up to the time of the new consent. A stop at or after it stands: Conflict."""
    reasons = reasons_of(said.channel)
    return await _say(database, said, "clear", reasons, {"evidence": evidence}, policy, clock)


async def _say(
    database: Database,
    said: Statement,
    action: Action,
    reasons: Sequence[str],
    detail: dict[str, Any],
    policy: Policy,
    clock: Callable[[], datetime],
) -> list[CauseRow]:
    now = clock()
    claimed = _occurred_at(said, now)
    address = normalised(said.channel, said.address)
    # A mailbox goes out as it was given to us. A number does not: Kahuna's own samples are digits, without a plus sign.
    received = said.address.strip() if said.channel == "email" else address

    async def transaction(connection: Connection) -> list[CauseRow]:
        at = claimed
        if at is None:
            await suppressions.lock(connection, said.namespace, said.channel, [address])
            at = _now(await suppressions.causes_of(connection, said.namespace, said.channel, address), now)
        entries = [Entry(address, received, reason, action, at) for reason in reasons]
        noted = detail | {"occurred_at": at}
        stated = [Fact(said.namespace, said.channel, address, reason, action, at, "local") for reason in reasons]
        deed = Deed(said.actor, f"address.{action}", said.namespace, said.channel, address, noted, stated)
        audit_id = await access.write_down(connection, deed, now)
        provenance = Provenance(said.namespace, said.channel, "local", said.origin, now, audit_id=audit_id)
        await suppressions.apply(connection, entries, provenance, policy, locked=claimed is None)
        causes = await suppressions.causes_of(connection, said.namespace, said.channel, address)
        if action == "clear":
            _refuse_if_stopped_since(causes, at, now, policy)
        scope = outbox.Scope(said.namespace, said.channel, now, policy)
        await outbox.owe(connection, scope, {address})
        return causes

    causes = await until_settled(database, transaction)
    logger().info(f"address.{'suppressed' if action == 'suppress' else 'reactivated'}", namespace=said.namespace)
    return causes


def normalised(channel: Channel, address: str) -> str:
    """The normal form, or the refusal that a caller sees."""
    try:
        return normalise(channel, address)
    except ImpossibleAddress as error:
        raise Unprocessable(f"This cannot be an address of this channel: {error.slug}.", "impossible-address") from None


def _occurred_at(said: Statement, now: datetime) -> int | None:
    if said.occurred_at is not None and not 0 < said.occurred_at <= int(now.timestamp()) + FUTURE_TOLERANCE:
        raise Unprocessable("occurred_at is no time at which this can have happened.", "impossible-time")
    return said.occurred_at


def _now(causes: list[CauseRow], now: datetime) -> int:
    """The time of what is said without one: now, and not before an opt-in that is dated a little ahead of our clock."""
    return max([int(now.timestamp()), *(row.cause.clear_at or 0 for row in causes)])


def _refuse_if_stopped_since(causes: list[CauseRow], at: int, now: datetime, policy: Policy) -> None:
    standings = verdict({row.cause.reason: row.cause for row in causes}, int(now.timestamp()), policy).standings
    newer = [s.cause.reason for s in standings if s.active and (s.cause.stop_at or 0) >= at]
    if newer:
        raise Conflict(
            f"A stop at or after this consent stands ({', '.join(newer)}); only a newer consent ends it.", "newer-stop"
        )
