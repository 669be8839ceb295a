"""The words of a reconciliation for tests: ask for a run, carry it on, look at it, decide."""

import uuid
from collections.abc import Sequence
from typing import Any

from service.domain.addresses import Channel
from service.domain.facts import Fact
from service.domain.runs import Guards
from service.flows import approve, rebuild, reconcile, revert
from service.flows.approve import Decided, Verdict
from service.flows.underway import Means
from service.store import access, differences, reconciliations, suppressions
from service.store.access import Deed
from service.store.differences import Selection
from service.store.reconciliations import Run
from service.store.suppressions import Entry, Provenance
from tests.flows.speaking import World

OPEN_DOOR = Guards(share=1.0, floor=10**9, most=10**9)
"""Guards that hold nothing for its number."""


def means(world: World, guards: Guards = OPEN_DOOR, **more: Any) -> Means:
    """What a worker would work with."""
    return Means(world.database, world.rules, world.clock, guards, **more)


async def asked(world: World, channel: Channel = "email", *, auto_approve: bool = False, **more: Any) -> uuid.UUID:
    """The id of a queued run."""
    run = Run(uuid.uuid4(), "default", channel, more.pop("source", "ledger"), auto_approve, "tester", **more)
    await reconcile.queue(world.database, run, world.clock)
    return run.id


async def found(world: World, run_id: uuid.UUID) -> Any:
    """The row of a run."""
    async with world.database.read() as connection:
        return await reconciliations.one(connection, run_id)


async def carried_on(world: World, run_id: uuid.UUID, guards: Guards = OPEN_DOOR, **more: Any) -> Any:
    """A run after a worker has done what there is to do; its row."""
    await reconcile.run_next(means(world, guards, **more), run_id=run_id)
    return await found(world, run_id)


async def planned(world: World, channel: Channel = "email", *, auto_approve: bool = False, **more: Any) -> Any:
    """The row of a new run that a worker has carried as far as it goes by itself."""
    guards = more.pop("guards", OPEN_DOOR)
    return await carried_on(world, await asked(world, channel, auto_approve=auto_approve, **more), guards)


async def decided(world: World, run_id: uuid.UUID, *, decline: bool = False, **chosen: Any) -> Decided:
    """A person's decision about these lines."""
    verdict = Verdict("tester", "declined" if decline else "approved", Selection(**chosen), "a note")
    return await approve.decide(world.database, run_id, verdict, world.clock, None)


async def approved(world: World, run_id: uuid.UUID, **chosen: Any) -> Any:
    """The row of a run once these lines are approved and carried out."""
    await decided(world, run_id, **chosen)
    return await carried_on(world, run_id)


async def reverted(world: World, run_id: uuid.UUID) -> Any:
    """The row of a run once it is taken back."""
    await revert.ask(world.database, run_id, "tester", None, world.clock, None)
    return await carried_on(world, run_id)


async def lines(world: World, run_id: uuid.UUID) -> dict[str, str]:
    """How each line of a run stands, by address: with why, if that is said."""
    rows = await lines_of(world, run_id)
    return {row.address: row.state + (f" ({row.why})" if row.why else "") for row in rows}


async def lines_of(world: World, run_id: uuid.UUID) -> Sequence[Any]:
    """The lines of a run, in order."""
    async with world.database.read() as connection:
        return await differences.page(connection, run_id, Selection(), ("", ""), 100_000)


async def pushed(world: World, channel: Channel = "email") -> None:
    """Everything that is due goes out."""
    while await world.push(channel):
        pass


async def load_behind_our_back(world: World, addresses: list[str], reason: str = "manual") -> None:
    """Facts that got into the list without their corrections, as after a restore of the outbox alone."""
    now = world.clock.seconds
    stated = [Fact("default", "email", a, reason, "suppress", now, "local") for a in addresses]
    async with world.database.begin() as connection:
        deed = Deed("somebody", "list.loaded", "default", "email", facts=stated)
        audit_id = await access.write_down(connection, deed, world.clock())
        provenance = Provenance("default", "email", "local", "operator", world.clock(), audit_id=audit_id)
        entries = [Entry(a, a, reason, "suppress", now) for a in addresses]
        await suppressions.apply(connection, entries, provenance, world.policy)


async def only_kahuna_knows(world: World, address: str, slot: str = "unsubscribe", channel: Channel = "email") -> None:
    """A stop that Kahuna holds by the ledger, and of which there is no fact."""
    at = world.clock.seconds - 100
    await world.execute(
        "insert into suppressions (address, channel, namespace, reason, held_stop_at) "
        f"values ('{address}', '{channel}', 'default', '{slot}', {at})"
    )


async def digest(world: World) -> str:
    """What the list says, in one word; it must be what its evidence says."""
    verified = await rebuild.verify(world.database, world.rules, lambda *_: None, lambda _: None)
    assert verified.agrees, verified
    return "".join(one.live.hexdigest() for _, one in sorted(verified.compared.items()) if one.causes)
