"""Whom Kahuna knows: users with their credentials, attributes, devices and events.

Owns that a credential belongs to one person, and therefore the merging of users. Refuses to know of campaigns.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.kahuna.simulator.contract import folded
from service.kahuna.simulator.records import MICROSECONDS, Campaign, Device, Log, MergeRecord


@dataclass(slots=True, eq=False)
class Person:
    """One user. Times are in microseconds; `labels` are the credentials as the logs print them."""

    id: int
    created: int
    modified: int
    credentials: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    labels: tuple[str, ...] = ()
    last_push: int | None = None
    # The last campaign that reached this person, by channel: what is done later is counted for it.
    last_campaigns: dict[str, Campaign] = field(default_factory=dict)

    def set_attributes(self, attributes: Mapping[str, Any], at: int) -> None:
        """Adds and changes; null deletes, which is assumed."""
        self.modified = at
        for name, value in attributes.items():
            if value is None:
                self.attributes.pop(name, None)
            else:
                self.attributes[name] = value


class People:
    """The users of one environment."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._by_id: dict[int, Person] = {}
        self._by_credential: dict[tuple[str, str], Person] = {}
        self._by_device: dict[str, Person] = {}
        self._merged_into: dict[int, int] = {}
        self._ids = itertools.count(1)

    def __iter__(self) -> Iterator[Person]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def of(self, kind: str, value: str) -> Person | None:
        """Whose credential this is."""
        return self._by_credential.get(_key(kind, value))

    def find(self, credentials: Mapping[str, str]) -> list[Person]:
        """Everybody who has one of these credentials, the oldest first."""
        found = {id(person): person for kind, value in credentials.items() if (person := self.of(kind, value))}
        return sorted(found.values(), key=lambda person: (person.created, person.id))

    def current(self, user_id: int) -> Person | None:
        """Who has this id, or had it before a merge."""
        while user_id in self._merged_into:
            user_id = self._merged_into[user_id]
        return self._by_id.get(user_id)

    def meet(self, credentials: Mapping[str, str], at: int, device: str | None = None) -> Person:
        """The person with these credentials, one record from now on, and new if nobody has them."""
        matching = self.find(credentials)
        person = matching[0] if matching else self._owner(device, credentials) or self._new(at)
        for newer in matching[1:]:
            self._merge(person, newer, credentials, at)
        self._give(person, credentials, at)
        return person

    def keep_device(self, person: Person, device: Device) -> None:
        """This device is this person's now, and nobody else's."""
        before = self._by_device.get(device.id)
        if before is not None and before is not person:
            before.devices.pop(device.id, None)
        person.devices[device.id] = device
        self._by_device[device.id] = person

    def delete(self, person: Person) -> None:
        """Forget a profile. The logs and the stops of its addresses stay: whether Kahuna's do is not known."""
        self._by_id.pop(person.id)
        for kind, value in person.credentials.items():
            self._by_credential.pop(_key(kind, value))
        for device in person.devices:
            self._by_device.pop(device)

    def _new(self, at: int) -> Person:
        person = Person(next(self._ids), at, at)
        self._by_id[person.id] = person
        return person

    def _owner(self, device: str | None, credentials: Mapping[str, str]) -> Person | None:
        """Who was last seen with the device, unless the credentials are plainly another person's."""
        owner = self._by_device.get(device) if device is not None else None
        if owner is None or any(kind in owner.credentials for kind in credentials):
            return None
        return owner

    def _give(self, person: Person, credentials: Mapping[str, str], at: int) -> None:
        """Of each type a person has one credential; that the newest replaces it is assumed."""
        for kind, value in credentials.items():
            old = person.credentials.get(kind)
            if old is not None:
                del self._by_credential[_key(kind, old)]
            person.credentials[kind] = value
            self._by_credential[_key(kind, value)] = person
        person.modified = at
        if credentials:
            person.labels = _labels(person.credentials)

    def _merge(self, older: Person, newer: Person, incoming: Mapping[str, str], at: int) -> None:
        """Everything goes to the older record. Where both have something, the older's is kept; assumed."""
        self._write_merge(older, newer, incoming, at)
        self.delete(newer)
        self._merged_into[newer.id] = older.id
        self._give(older, {k: v for k, v in newer.credentials.items() if k not in older.credentials}, at)
        older.attributes = newer.attributes | older.attributes
        older.events = sorted(older.events + newer.events, key=lambda event: event["time"])
        older.last_campaigns = newer.last_campaigns | older.last_campaigns
        pushes = [pushed for pushed in (older.last_push, newer.last_push) if pushed is not None]
        older.last_push = max(pushes, default=None)
        for device in newer.devices.values():
            self.keep_device(older, device)

    def _write_merge(self, older: Person, newer: Person, incoming: Mapping[str, str], at: int) -> None:
        common = _labels(incoming)
        alone = [tuple(label for label in one.labels if label not in common) for one in (older, newer)]
        self._log.add(MergeRecord(at, older.id, common, alone[0], alone[1]))


def profile(person: Person) -> dict[str, Any]:
    """What is known of a person. The contract shows no field of it: the names are of Kahuna's internal tables."""
    return {
        "user_id": person.id,
        "created": person.created // MICROSECONDS,
        "modified": person.modified // MICROSECONDS,
        "last_push_sent": None if person.last_push is None else person.last_push // MICROSECONDS,
        "credentials": person.credentials,
        "attributes": person.attributes,
        "devices": [
            {
                "id": device.id,
                "os_name": device.os_name,
                "push_enabled": device.push_enabled,
                "push_token": device.push_token,
                "last_seen": device.last_seen,
            }
            for device in person.devices.values()
        ],
        "events": person.events,
    }


def _key(kind: str, value: str) -> tuple[str, str]:
    match kind:
        case "email":
            return kind, folded(value)
        case "mobile_number":
            # A number is the same with its plus sign and without; assumed, as the Sync API knows it only without.
            return kind, value.strip().removeprefix("+")
        case _:
            return kind, value


def _labels(credentials: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{kind}:{value}" for kind, value in credentials.items())
