"""Owns the question about many addresses: may we message them? One statement for a group, answered in its order.

What is done to more than a thousand at a time is done beside the event loop, a few groups at a time. Refuses to know
how questions and answers travel.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from service.domain.addresses import Channel, ImpossibleAddress, normalise_many
from service.domain.suppression import Policy, Purpose, counts
from service.store import reading
from service.store.database import SEPARATOR, Database, aside

_NONE: Final[tuple[str, ...]] = ()


class Asking(NamedTuple):
    """What is asked about every address of a call. `at` is now, in Unix seconds."""

    namespace: str
    channel: Channel
    purpose: Purpose
    at: int
    policy: Policy


class Checked(msgspec.Struct, frozen=True):
    """May this address, spelt as it was sent, be messaged? If not, the reasons that count for the purpose. Of what
    cannot be an address of the channel there is nothing but the `error`."""

    address: str
    suppressed: bool | msgspec.UnsetType = msgspec.UNSET
    reasons: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    error: str | msgspec.UnsetType = msgspec.UNSET


async def check(database: Database, asking: Asking, addresses: Sequence[str]) -> list[Checked]:
    """The answers in the order of the addresses, whatever is repeated or impossible among them."""
    normal, keys = await aside(len(addresses), _keys, asking.channel, addresses)
    found: dict[str, str] = {}
    if keys:
        async with database.begin() as connection:
            found = await reading.in_force(connection, asking.namespace, asking.channel, keys, asking.at, asking.policy)
    return await aside(len(addresses), _answers, addresses, normal, found, asking.purpose)


def _keys(channel: Channel, addresses: Sequence[str]) -> tuple[list[str | ImpossibleAddress], list[str]]:
    """The normal form of each, and those to look for."""
    normal = normalise_many(channel, addresses)
    return normal, [one for one in normal if isinstance(one, str)]


def _answers(
    addresses: Sequence[str], normal: Sequence[str | ImpossibleAddress], found: dict[str, str], purpose: Purpose
) -> list[Checked]:
    """Only what is in the list costs more than a look."""
    against: dict[str | ImpossibleAddress, tuple[str, ...]] = {}
    for reason in sorted(found):
        if counts(reason, purpose):
            told = (reason,)
            for address in found[reason].split(SEPARATOR):
                against[address] = against[address] + told if address in against else told
    stopped = against.get
    return [
        Checked(address, error=one.slug)
        if isinstance(one, ImpossibleAddress)
        else Checked(address, one in against, stopped(one, _NONE))
        for address, one in zip(addresses, normal, strict=True)
    ]
