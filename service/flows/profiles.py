"""Owns spot checks: what Kahuna's User Info says of some addresses, given or drawn at random from the list.

One call an address, within a budget of calls. Refuses to conclude: what no page of Kahuna's confirms is an observation
with the fields that it rests on, and None where they do not say.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from service.domain.addresses import Channel
from service.domain.facts import home_of, standing_time
from service.kahuna import CredentialsRefused, KahunaClient, KahunaError, NotPermitted, UserInfoAnswer
from service.kahuna.contract import Contract
from service.store import reading
from service.store.database import Database
from service.telemetry import logger

AT_ONCE: Final = 10

_CREDENTIALS: Final[dict[Channel, str]] = {"email": "email", "sms": "mobile_number"}
_SLOTS: Final[dict[Channel, str]] = {"email": "unsubscribe", "sms": home_of("sms", "do_not_call")}


class Observation(NamedTuple):
    """What Kahuna says of one address. User Info has one state for a channel, told here as that of its main slot;
    `suppressed` is None if it does not say, `at` (Unix seconds) if it does not say since when. `evidence` holds when it
    was asked and what it rests on, or why there was no answer."""

    address: str
    slot: str
    suppressed: bool | None
    at: int | None
    evidence: dict[str, Any]


async def spot_check(
    database: Database,
    client: KahunaClient,
    namespace: str,
    channel: Channel,
    addresses: Sequence[str] | int,
    budget: int,
    clock: Callable[[], datetime],
    between: Callable[[], Awaitable[None]] | None = None,
) -> list[Observation]:
    """Asks Kahuna about these addresses, in their normal form, or so many at random of those on the list; about the
    first `budget` of them at most.

    `between` is awaited before every few calls, and what it raises ends it. An address that Kahuna fails to answer
    about is an observation without a state. CredentialsRefused and NotPermitted end it, since no call would do better.
    """
    if isinstance(addresses, int):
        async with database.begin() as connection:
            asked = await reading.sample(connection, namespace, channel, min(addresses, budget))
    else:
        asked = list(dict.fromkeys(addresses))[:budget]
    observed: list[Observation] = []
    for start in range(0, len(asked), AT_ONCE):
        if between is not None:
            await between()
        some = asked[start : start + AT_ONCE]
        observed += await _together(client, channel, some, clock)
    unknown = sum(one.suppressed is None for one in observed)
    logger().info("profiles.checked", namespace=namespace, channel=channel, calls=len(observed), unknown=unknown)
    return observed


async def _together(
    client: KahunaClient, channel: Channel, some: Sequence[str], clock: Callable[[], datetime]
) -> list[Observation]:
    tasks = [asyncio.create_task(_observe(client, channel, address, clock)) for address in some]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _observe(client: KahunaClient, channel: Channel, address: str, clock: Callable[[], datetime]) -> Observation:
    asked_at = clock()
    slot, seen = _SLOTS[channel], {"asked_at": asked_at}
    try:
        answer = await client.user_info(_CREDENTIALS[channel], address)
    except (CredentialsRefused, NotPermitted):
        raise
    except KahunaError as error:
        return Observation(address, slot, None, None, seen | {"failed": error.slug})
    suppressed, at, said = _state(answer, channel, client.contract, int(asked_at.timestamp()))
    return Observation(address, slot, suppressed, at, seen | said)


def _state(
    answer: UserInfoAnswer, channel: Channel, names: Contract, asked_at: int
) -> tuple[bool | None, int | None, dict[str, Any]]:
    """What the answer says of the channel: no page shows such a field, so its name is a guess of the contract. Its
    value is taken only if it is true or false, or a time since when it is true that could stand in a callback too: a
    stop of the future could never be lifted again."""
    if answer.user is None:
        return None, None, {"found": False}
    field = names.user_info_email_stop if channel == "email" else names.user_info_sms_stop
    held = answer.user.extra | (answer.user.attributes or {})
    value = answer.user.extra.get(field, held.get(field))
    said = {"found": True, "field": field, "value": value if isinstance(value, bool | int) else None}
    if isinstance(value, bool):
        return value, None, said
    at = standing_time(value, asked_at) if isinstance(value, int) else None
    return None if at is None else True, at, said
