"""Owns the way of corrections to Kahuna: claimed under a lease, sent in batches, each answer written down at once.

The vendor is called between transactions, never inside one. A lease is short, and renewed while the push is under way,
however long a call takes. Killed at any point, nothing is lost: what was claimed is free again when its lease ends, and
is then, at worst, sent twice.
"""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import perf_counter
from typing import Any, Final

from service.domain.addresses import Channel
from service.domain.corrections import Dead, Failure, Halt, Retry, RetryPolicy, Split, after_failure, halves
from service.domain.suppression import Policy
from service.errors import StorageUnavailable
from service.kahuna import errors, wire
from service.kahuna.client import KahunaClient
from service.kahuna.masking import masked, texts_in
from service.settings import Secret, Settings
from service.spans import TRACE, Tracer, places_of
from service.store import calls, circuits, outbox, proofs
from service.store.batches import new_id
from service.store.calls import Made
from service.store.circuits import Circuit
from service.store.database import Connection, Database, until_settled
from service.store.faults import is_conflict
from service.store.outbox import Claimed, Scope, Settlement
from service.telemetry import Metrics, logger

_FAILURES: Final[Mapping[type[errors.KahunaError], Failure]] = {
    errors.CredentialsRefused: "credentials",
    errors.NotPermitted: "credentials",
    errors.BadRequest: "body",
    errors.TooLarge: "size",
    errors.RateLimited: "busy",
    errors.Unavailable: "busy",
    errors.Unreachable: "busy",
    errors.Ambiguous: "unproved",
    errors.UnreadableAnswer: "unreadable",
}


REQUESTS_TOLD: Final = 10
"""Requests that a line of the log names at most, of those that corrections come from."""

BEATS: Final = 3
"""Renewals in the time of a lease: two may fail before it ends."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is claimed and spent: entries a claim, seconds a lease, calls a bisection."""

    entries: int
    lease: timedelta
    requests: int
    retry: RetryPolicy


def limits_of(settings: Settings) -> Limits:
    """The limits that these settings make."""
    retry = RetryPolicy(
        settings.push_first_delay_seconds, settings.push_longest_delay_seconds, settings.circuit_probe_seconds
    )
    lease = timedelta(seconds=settings.push_lease_seconds)
    return Limits(settings.push_batch_entries, lease, settings.push_request_budget, retry)


@dataclass(frozen=True, slots=True)
class Pusher:
    """What pushing needs for one namespace. `jitter` gives a number in [0, 1); `worker` is the name under which calls
    are written down, `secrets` what must be in none of them."""

    database: Database
    client: KahunaClient
    namespace: str
    policy: Policy
    limits: Limits
    clock: Callable[[], datetime]
    jitter: Callable[[], float]
    worker: str = "worker"
    secrets: tuple[Secret, ...] = ()
    metrics: Metrics = field(default_factory=Metrics)
    tracer: Tracer = field(default_factory=Tracer)


class _Claim:
    """The corrections of one lease on their way: the calls that are left for them, and what was learnt so far.

    `postponed` is set once nothing more may be sent: the vendor is away, or refuses the credentials. `refused` holds
    the entries whose body was refused when sent alone: whose fault that is shows only when all others were sent.
    `last_call` is the request id of the last call that was made for them.
    """

    def __init__(self, pusher: Pusher, channel: Channel, lease: uuid.UUID, *, probing: bool) -> None:
        self.pusher = pusher
        self.channel = channel
        self.lease = lease
        self.probing = probing
        self.calls = pusher.limits.requests
        self.postponed: Settlement | None = None
        self.any_accepted = False
        self.refused: list[Claimed] = []
        self.last_call: str | None = None

    async def settle(self, claimed: Sequence[Claimed], settlement: Settlement) -> None:
        """Writes down what came of these."""
        if not claimed:
            return
        self.any_accepted = self.any_accepted or settlement.state == "sent"
        scope = Scope(self.pusher.namespace, self.channel, self.pusher.clock(), self.pusher.policy)

        async def transaction(connection: Connection) -> int:
            settled = await outbox.settle(connection, scope, self.lease, claimed, settlement)
            if settlement.state in ("sent", "rejected"):
                await proofs.close_settled(connection, scope.now, [one.id for one in claimed])
            return settled

        settled = await until_settled(self.pusher.database, transaction)
        outcome = "postponed" if settlement.state == "pending" else settlement.state
        self.pusher.metrics.pushed.add(self.pusher.namespace, self.channel, outcome, count=settled)
        tell = logger().warning if settlement.state in ("rejected", "dead") else logger().info
        tell(
            f"corrections.{outcome}",
            namespace=self.pusher.namespace,
            channel=self.channel,
            count=settled,
            reason=settlement.reason,
            requests=_requests_of(claimed),
            call=(settlement.evidence or {}).get("request_id", self.last_call),
        )

    async def note(self, call_id: uuid.UUID, claimed: Sequence[Claimed], outcome: str, **came: Any) -> None:
        """Writes down that these were in a call, and what it came to."""
        pusher, sent = self.pusher, [c.id for c in claimed]
        said = " ".join(came.pop("said", ()))
        if said:
            hidden = [text for c in claimed for text in (c.address, c.received)]
            came["answer"] = masked(said, [*hidden, *(secret.reveal() for secret in pusher.secrets)])
        made = Made(call_id, pusher.namespace, self.channel, pusher.worker, pusher.clock(), sent, outcome, **came)
        await until_settled(pusher.database, lambda connection: calls.note(connection, made))

    async def hold(self) -> bool:
        """Renews the lease; False if nothing is under it, or somebody else has taken the corrections over."""
        until = self.pusher.clock() + self.pusher.limits.lease
        async with self.pusher.database.begin() as connection:
            return await outbox.renew(connection, self.lease, until) > 0

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Renews the lease again and again while the block lasts."""
        beating = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.pusher.limits.lease.total_seconds() / BEATS)
            try:
                await self.hold()
            except Exception as error:  # noqa: BLE001 (the push goes on; what it cannot settle another will)
                # A database that is away or busy has two beats more; then another worker takes over, as it must.
                if not isinstance(error, StorageUnavailable) and not is_conflict(error):
                    logger().error("lease.not_renewed", namespace=self.pusher.namespace, exc_info=error)


async def push_due(pusher: Pusher, channel: Channel) -> bool:
    """Sends the corrections of one channel that are due; tells whether there were any."""
    now, lease = pusher.clock(), uuid.uuid4()
    async with pusher.database.begin() as connection:
        circuit = (await circuits.all_open(connection)).get((pusher.namespace, channel))
        if circuit is not None and not await circuits.may_probe(connection, circuit, now):
            return False
        # While the circuit is open one correction goes ahead, to see whether the credentials are taken again.
        limit = pusher.limits.entries if circuit is None else 1
        until = now + pusher.limits.lease
        claimed = await outbox.claim(connection, pusher.namespace, channel, limit, lease, now, until)
        if circuit is not None and claimed:
            await circuits.probing(connection, circuit, now + _probe_lasts(pusher.limits))
    if not claimed:
        return False
    claim = _Claim(pusher, channel, lease, probing=circuit is not None)
    span = pusher.tracer.root("corrections.push", sure=any(one.because.traceparent for one in claimed))
    try:
        with pusher.tracer.within(span):
            async with claim.held():
                await _send_all(claim, claimed)
    except BaseException:
        # Told to stop, or the database is away: another worker need not wait for the lease, if this can still be said.
        with suppress(StorageUnavailable):
            async with pusher.database.begin() as connection:
                await outbox.release(connection, lease, pusher.clock())
        raise
    return True


def _probe_lasts(limits: Limits) -> timedelta:
    """After which the next probe is sent if nothing is heard of this one: its worker is gone."""
    return max(limits.lease, timedelta(seconds=limits.retry.circuit_probe))


async def release_expired(database: Database, clock: Callable[[], datetime]) -> int:
    """Frees what dead workers had claimed."""
    async with database.begin() as connection:
        freed = await outbox.release_expired(connection, clock())
    if freed:
        logger().warning("corrections.released", count=freed)
    return freed


async def _send_all(claim: _Claim, claimed: Sequence[Claimed]) -> None:
    """Cuts the claim into bodies that the vendor takes, and sends each with a budget of calls of its own."""
    start = 0
    for chunk in wire.cut([_entry(claim.channel, c) for c in claimed]):
        claim.calls = claim.pusher.limits.requests
        await _send(claim, claimed[start : start + len(chunk)])
        start += len(chunk)
    # Alone in being refused, while others were taken: the entry is at fault. All refused: the set-up may well be.
    at_fault: Settlement = Settlement("rejected" if claim.any_accepted else "dead", "bad-request", {"status": 400})
    await claim.settle(claim.refused, at_fault)


async def _send(claim: _Claim, claimed: Sequence[Claimed]) -> None:
    """Sends these in one call, and in halves where that finds who is refused."""
    if claim.postponed is not None:
        return await claim.settle(claimed, claim.postponed)
    if claim.calls == 0:
        return await claim.settle(claimed, Settlement("dead", "unattributed"))
    if claim.calls < claim.pusher.limits.requests and not await claim.hold():
        return None
    claim.calls -= 1
    entries = [_entry(claim.channel, c) for c in claimed]
    call_id = new_id(claim.pusher.clock(), secrets.randbits(74))
    request_id = claim.last_call = call_id.hex
    try:
        answer = await _call(claim, claimed, entries, request_id)
    except errors.KahunaError as error:
        await claim.note(call_id, claimed, error.slug, status=error.status, said=filter(None, [error.detail]))
        return await _failed(claim, claimed, error, request_id)
    counts = {"accepted": answer.accepted, "rejected": answer.rejected}
    await claim.note(call_id, claimed, "answered", status=200, said=texts_in(answer.errors), **counts)
    await _close_circuit(claim)
    return await _answered(claim, claimed, answer, wire.culprits(answer, entries), request_id)


async def _answered(
    claim: _Claim, claimed: Sequence[Claimed], answer: wire.SyncAnswer, culprits: frozenset[int] | None, request_id: str
) -> None:
    """Settles the entries apart if the answer tells them apart, else finds out by halves."""
    if culprits is None:
        return await _split(claim, claimed)
    evidence = _evidence(request_id, status=200, accepted=answer.accepted, rejected=answer.rejected)
    sent = [c for i, c in enumerate(claimed) if i not in culprits]
    await claim.settle(sent, Settlement("sent", None, evidence))
    rejected = [c for i, c in enumerate(claimed) if i in culprits]
    return await claim.settle(rejected, Settlement("rejected", "refused-by-kahuna", evidence))


async def _split(claim: _Claim, claimed: Sequence[Claimed]) -> None:
    for half in halves(claimed):
        await _send(claim, half)


async def _failed(claim: _Claim, claimed: Sequence[Claimed], error: errors.KahunaError, request_id: str) -> None:
    pusher = claim.pusher
    # A new correction must not wait as long as an old one that happens to travel with it.
    attempts = min(c.attempts for c in claimed)
    failure = _FAILURES[type(error)]
    decision = after_failure(failure, len(claimed), attempts, error.retry_after, pusher.jitter(), pusher.limits.retry)
    evidence = _evidence(request_id, status=error.status)
    match decision:
        case Split():
            return await _split(claim, claimed)
        case Dead("bad-request"):
            claim.refused += claimed
            return None
        case Dead(reason):
            return await claim.settle(claimed, Settlement("dead", reason, evidence))
        case Halt(delay):
            await _open_circuit(claim, error, delay)
            claim.postponed = Settlement("pending", error.slug, evidence, delay)
        case Retry(delay):
            if error.retry_after is not None:
                # Kahuna asks the caller to wait, not these entries: what comes after them waits too.
                await _open_circuit(claim, error, delay)
            claim.postponed = Settlement("pending", error.slug, evidence, delay)
    return await claim.settle(claimed, claim.postponed)


async def _call(claim: _Claim, claimed: Sequence[Claimed], entries: list[Any], request_id: str) -> wire.SyncAnswer:
    pusher, began, answer = claim.pusher, perf_counter(), "ok"
    call = pusher.client.email_sync if claim.channel == "email" else pusher.client.sms_sync
    with _calling(claim, claimed, request_id) as told:
        try:
            return await call(entries, request_id=request_id)
        except errors.KahunaError as error:
            answer = error.slug
            raise
        finally:
            told["kahuna_sync.answer"] = answer
            pusher.metrics.pushes.add(perf_counter() - began, pusher.namespace, claim.channel, answer)


@contextmanager
def _calling(claim: _Claim, claimed: Sequence[Claimed], request_id: str) -> Iterator[dict[str, Any]]:
    """The span of a call, with links to what caused its corrections; and in the traces of those a span that tells of
    it, so that each is whole."""
    tracer, told = claim.pusher.tracer, {"kahuna_sync.call": request_id, "kahuna_sync.entries": len(claimed)}
    told |= {"kahuna_sync.namespace": claim.pusher.namespace, "kahuna_sync.channel": claim.channel}
    span = tracer.child(f"kahuna {claim.channel} sync", TRACE.get(), "client")
    if span is None:
        yield told
        return
    causes = places_of([one.because.traceparent for one in claimed])
    span.links, span.told = causes, told
    try:
        with tracer.within(span):
            yield told
    finally:
        for cause in causes:
            tracer.note("correction.push", cause.traceparent, span.began, told, [span.place])


async def _open_circuit(claim: _Claim, error: errors.KahunaError, delay: float) -> None:
    now = claim.pusher.clock()
    circuit = Circuit(claim.pusher.namespace, claim.channel, error.slug, now + timedelta(seconds=delay))
    async with claim.pusher.database.begin() as connection:
        await circuits.open_one(connection, circuit, now)
    logger().error(
        "circuit.opened",
        namespace=circuit.namespace,
        channel=circuit.channel,
        reason=circuit.reason,
        until=circuit.probe_at.isoformat(timespec="seconds"),
        fix=fix_of(circuit.reason),
    )


def fix_of(reason: str) -> str:
    """What a person can do about an open circuit; corrections wait meanwhile, and none is lost."""
    if reason in (errors.CredentialsRefused.slug, errors.NotPermitted.slug):
        return "corrections wait; check KAHUNA_SECRET_KEY, KAHUNA_API_KEY and their permissions"
    return "corrections wait, as Kahuna asked"


async def _close_circuit(claim: _Claim) -> None:
    if not claim.probing:
        return
    async with claim.pusher.database.begin() as connection:
        closed = await circuits.close_one(connection, claim.pusher.namespace, claim.channel)
    if closed is not None:
        logger().info("circuit.closed", namespace=claim.pusher.namespace, channel=claim.channel)


def _requests_of(claimed: Sequence[Claimed]) -> list[str] | None:
    """The ids of the requests that these come from, the first few; None if there are none."""
    return sorted({one.because.request_id for one in claimed if one.because.request_id})[:REQUESTS_TOLD] or None


def _entry(channel: Channel, claimed: Claimed) -> Any:
    """The correction in the vendor's words, with the address as it was received."""
    at = claimed.correction.occurred_at
    if channel == "email":
        return wire.EmailSyncEntry(reason=wire.word_of(claimed.slot), email=claimed.received, timestamp=at)
    return wire.SmsSyncEntry(number=claimed.received, timestamp=at, opt_in=claimed.correction.action == "clear")


def _evidence(request_id: str, **facts: int | None) -> dict[str, Any]:
    return {"request_id": request_id} | {name: value for name, value in facts.items() if value is not None}
