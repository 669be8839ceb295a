"""The calls that the stand-in makes: signed callbacks to whoever is registered.

Owns signing, the cutting into callbacks, and redelivery. Refuses to lose one unless a fault asks for it: what nobody
took stays, and can be delivered again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from service.domain.addresses import Channel
from service.kahuna.simulator.contract import ENVS, SIGNATURE_HEADER, Env, SimulatorConfig
from service.kahuna.simulator.faults import Faults
from service.kahuna.simulator.stops import ADDRESS_KEYS
from service.kahuna.webhook import sign


@dataclass(slots=True, eq=False)
class Callback:
    """One callback and what became of it. `to` is who was called last, or is registered. A status of None: nobody
    answered."""

    env: Env
    channel: Channel
    to: str
    entries: Sequence[Any]
    attempts: int = 0
    status: int | None = None
    error: str | None = field(default=None)

    @property
    def delivered(self) -> bool:
        """Whether the receiver took it: any 2xx, which is assumed."""
        return self.status is not None and 200 <= self.status < 300

    def told(self) -> dict[str, Any]:
        """The callback without its entries."""
        return {
            "env": self.env,
            "channel": self.channel,
            "to": self.to,
            "entries": len(self.entries),
            "attempts": self.attempts,
            "status": self.status,
            "error": self.error,
        }


class Webhooks:
    """Who is called, and what they are still to be told."""

    def __init__(self, config: SimulatorConfig, faults: Faults, transport: httpx.AsyncBaseTransport | None) -> None:
        self._config = config
        self._faults = faults
        self._transport = transport
        self._pending: list[Callback] = []
        self.targets: dict[tuple[Env, Channel], str] = {}
        for env in ENVS:
            self.register(env, "email", config.email_webhook)
            self.register(env, "sms", config.sms_webhook)

    def register(self, env: Env, channel: Channel, url: str | None) -> None:
        """Call this address from now on, or nobody."""
        self.targets.pop((env, channel), None)
        if url is not None:
            self.targets[env, channel] = url

    def queue(self, env: Env, channel: Channel, entries: Sequence[Any]) -> None:
        """To be told, in callbacks of so many entries. Where nobody is registered there is nobody to tell."""
        to = self.targets.get((env, channel))
        if to is not None:
            size = self._config.callback_entries
            parts = (entries[start : start + size] for start in range(0, len(entries), size))
            self._pending.extend(Callback(env, channel, to, part) for part in parts)

    @property
    def pending(self) -> list[Callback]:
        """What was not delivered yet, or not taken."""
        return list(self._pending)

    async def deliver(self) -> list[Callback]:
        """Deliver what is pending, each callback until it is taken or so many attempts were made; returns them all."""
        due, self._pending = self._pending, []
        if not due:
            return []
        ordered = self._spoilt(due)
        try:
            async with self._client() as client:
                for callback in ordered:
                    await self._deliver(client, callback)
        finally:
            # Also where whoever asked for it has gone away.
            told = {id(callback) for callback in ordered}
            self._pending[:0] = [one for one in due if id(one) in told and not one.delivered]
        return ordered

    async def send_once(self, channel: Channel, entries: Sequence[Any], to: str) -> httpx.Response:
        """One attempt at one callback, whoever is registered."""
        async with self._client() as client:
            return await self._post(client, channel, entries, to)

    def _spoilt(self, due: Sequence[Callback]) -> list[Callback]:
        """Lost, doubled and turned round, where a fault asks for it. A fault meets once what is due of a channel
        together."""
        by_channel: dict[Channel, list[Callback]] = defaultdict(list)
        for callback in due:
            by_channel[callback.channel].append(callback)
        ordered = []
        for channel, callbacks in by_channel.items():
            fault = self._faults.next_of_webhook(channel)
            if fault.lose:
                continue
            turned = callbacks[::-1] if fault.reorder else callbacks
            ordered += [callback for callback in turned for _ in range(2 if fault.duplicate else 1)]
        return ordered

    async def _deliver(self, client: httpx.AsyncClient, callback: Callback) -> None:
        for number in range(self._config.callback_attempts):
            if number:
                await asyncio.sleep(self._config.callback_pause_seconds)
            # Whoever is registered by now: a callback that waits is not for a receiver that was there before.
            to = self.targets.get((callback.env, callback.channel))
            if to is None:
                callback.status, callback.error = None, "NobodyRegistered"
                return
            callback.to = to
            callback.attempts += 1
            try:
                answer = await self._post(client, callback.channel, callback.entries, callback.to)
            except (httpx.RequestError, httpx.InvalidURL) as error:
                callback.status, callback.error = None, type(error).__name__
                continue
            callback.status, callback.error = answer.status_code, None
            if callback.delivered:
                return

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=self._transport, timeout=self._config.callback_timeout_seconds)

    async def _post(
        self, client: httpx.AsyncClient, channel: Channel, entries: Sequence[Any], to: str
    ) -> httpx.Response:
        key = ADDRESS_KEYS[channel]
        addresses = [entry[key] for entry in entries if isinstance(entry, dict) and isinstance(entry.get(key), str)]
        headers = {
            "Content-Type": "application/json",
            "Accept-Charset": "UTF-8",
            SIGNATURE_HEADER: sign(addresses, self._config.api_key),
        }
        return await client.post(to, content=msgspec.json.encode(entries), headers=headers)
