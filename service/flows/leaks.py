"""Owns the search of a log page for messages that Kahuna sent against a stop, and what is kept as proof of each."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from service.domain.addresses import ImpossibleAddress, normalise
from service.domain.leaks import leak
from service.domain.suppression import Policy
from service.kahuna import logs
from service.kahuna.logs import Sent
from service.store import violations
from service.store.database import Connection
from service.store.violations import Proved, Violation
from service.telemetry import logger


async def note(
    connection: Connection, namespace: str, sent: Iterable[Sent], policy: Policy, now: datetime
) -> Counter[str]:
    """Keeps those of these messages that went out against a stop; returns how many were new, as `violations`."""
    messages: defaultdict[str, list[Sent]] = defaultdict(list)
    for message in sent:
        try:
            messages[normalise("email", message.address)].append(message)
        except ImpossibleAddress:
            continue  # whoever that is, no stop is of it
    proofs = await violations.proofs(connection, namespace, messages)
    found = [one for address, known in proofs.items() for one in _among(address, messages[address], known, policy)]
    new = Counter(await violations.write(connection, namespace, found, now))
    if new:
        logger().warning("violations.found", namespace=namespace, known_to_kahuna=new["kahuna"], known_to_us=new["us"])
    return Counter(violations=new.total())


def _among(address: str, messages: Sequence[Sent], known: Sequence[Proved], policy: Policy) -> Iterable[Violation]:
    where = {one.told: one.where for one in known}
    for message in messages:
        found = leak(where, message.at, policy)
        if found is None:
            continue
        fact = found.told.fact
        stop: dict[str, Any] = {"reason": fact.reason, "source": fact.source} | where[found.told]
        yield Violation(
            address,
            logs.digest_of(message.record),
            _moment(message.at),
            message.campaign,
            message.campaign_id,
            found.known_by,
            _moment(found.known_since),
            fact.reason,
            fact.occurred_at,
            {"message": message.record, "stop": stop | {"occurred_at": _moment(fact.occurred_at)}},
        )


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
