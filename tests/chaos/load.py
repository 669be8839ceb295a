"""Owns the load and the model: callbacks delivered again until they are acknowledged, as Kahuna would, and the list
that they must make, whatever happens on the way."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from service.domain.addresses import Channel
from service.domain.facts import Action, Fact
from service.domain.suppression import Cause, Policy, fold
from service.kahuna.webhook import sign
from service.kahuna.wire import EMAIL_WORDS
from service.settings import Secret

KEY = Secret("chaos-api-key")
PEOPLE = 2_000
WORDS = ("unsub", "hard_bounce", "soft_bounce", "spam")
PATIENCE = 120.0
"""Seconds within which a callback must be acknowledged: whatever was broken is mended long before."""


class NeverAcknowledged(Exception):
    """A callback was refused for so long that it counts as lost."""


@dataclass
class Load:
    """Callbacks of overlapping people to all replicas, and what came back."""

    ports: Sequence[int]
    chance: random.Random
    acknowledged: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    batches: set[str] = field(default_factory=set)
    bodies: set[bytes] = field(default_factory=set)
    facts: set[Fact] = field(default_factory=set)
    moments: list[float] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, connections: int) -> None:
        """Delivers until told to end; then finishes what is under way."""
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(self._deliver_on())

    async def _deliver_on(self) -> None:
        while not self.ended.is_set():
            channel: Channel = self.chance.choice(["email", "email", "sms"])
            entries = [self._entry(channel) for _ in range(self.chance.randrange(1, 20))]
            await self._until_acknowledged(channel, entries)

    def _entry(self, channel: Channel) -> dict[str, Any]:
        person = self.chance.randrange(PEOPLE)
        at = 1_700_000_000 + self.chance.randrange(10**6)
        if channel == "sms":
            return {"number": f"1555{person:07d}", "timestamp": at} | self.chance.choice([{}, {"opt-in": True}])
        return {"reason": self.chance.choice(WORDS), "email": f"p{person}@example.com", "timestamp": at}

    async def _until_acknowledged(self, channel: Channel, entries: list[dict[str, Any]]) -> None:
        body = json.dumps(entries).encode()
        addresses = [entry["email" if channel == "email" else "number"] for entry in entries]
        head = request_head(channel, len(body), sign(addresses, KEY))
        end = time.monotonic() + PATIENCE
        while True:
            status, answer = await self._send(head + body)
            if status == 200:
                break
            self.refused[str(status)] += 1
            if time.monotonic() > end:
                raise NeverAcknowledged(f"last answer: {status}")
            await asyncio.sleep(self.chance.uniform(0.05, 0.3))
        self.moments.append(time.monotonic())
        self.acknowledged[answer["state"]] += 1
        self.batches.add(answer["batch_id"])
        self.bodies.add(channel.encode() + body)
        self.facts |= {fact_of(channel, entry) for entry in entries}

    async def _send(self, request: bytes) -> tuple[int, dict[str, Any]]:
        """The status and the document; 0 for no whole answer."""
        try:
            async with asyncio.timeout(30):
                return await exchange(self.chance.choice(self.ports), request)
        except (OSError, EOFError, TimeoutError):
            return 0, {}

    def rates(self, since: float, until: float) -> list[int]:
        """Acknowledged callbacks in each whole second between two moments."""
        counts = Counter(int(moment - since) for moment in self.moments if since <= moment < until)
        return [counts[second] for second in range(int(until - since))]

    @property
    def expected(self) -> dict[tuple[str, str], dict[str, Cause]]:
        """The list that these facts make, by the rules of the domain."""
        people: dict[tuple[str, str], list[Fact]] = {}
        for fact in self.facts:
            people.setdefault((fact.channel, fact.address), []).append(fact)
        return {person: fold(facts, Policy()) for person, facts in people.items()}


def fact_of(channel: Channel, entry: dict[str, Any]) -> Fact:
    """The fact that an entry of the load states."""
    if channel == "sms":
        action: Action = "clear" if entry.get("opt-in") else "suppress"
        return Fact("default", "sms", entry["number"], "do_not_call", action, entry["timestamp"], "kahuna")
    reason = EMAIL_WORDS[entry["reason"]]
    return Fact("default", "email", entry["email"], reason, "suppress", entry["timestamp"], "kahuna")


def request_head(channel: Channel, length: int, signature: str) -> bytes:
    """What stands before the body of a callback."""
    lines = [f"POST /webhooks/default/{channel} HTTP/1.1", "Host: chaos", "Connection: close"]
    lines += [f"Content-Length: {length}", f"X-Kahuna-Signature: {signature}"]
    return "\r\n".join([*lines, "", ""]).encode()


async def exchange(port: int, request: bytes) -> tuple[int, dict[str, Any]]:
    """One request on a connection of its own. EOFError if the answer is not whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(length.split(b":")[1]))
        return int(head.split(b" ", 2)[1]), json.loads(body)
    finally:
        writer.close()
