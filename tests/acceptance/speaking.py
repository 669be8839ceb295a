"""What the two parties say to the service: signed callbacks (kahuna-api.md 14) and calls under /v1 (design.md 2.3)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import secrets
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx

KEYS = {"email": "email", "sms": "number"}
RUN = secrets.token_hex(3)
NUMBERS = secrets.randbelow(900) + 100
count = itertools.count(1)
DAY = 86_400


def sign(key: str, addresses: Iterable[str]) -> str:
    """kahuna-api.md section 14: sort, join, HMAC-SHA1 with the API key, base64."""
    joined = "".join(sorted(addresses)).encode("utf-8", "surrogatepass")
    return base64.b64encode(hmac.new(key.encode(), joined, hashlib.sha1).digest()).decode()


def addresses_in(channel: str, entries: Iterable[object]) -> list[str]:
    """The signed values: every string address; an entry without one contributes nothing."""
    found = [one.get(KEYS[channel]) for one in entries if isinstance(one, dict)]
    return [one for one in found if isinstance(one, str)]


def an_email(name: str = "u") -> str:
    """An address that no other test uses."""
    return f"{name}{next(count)}.{RUN}@example.com"


def a_number() -> str:
    """A number that no other test uses, as digits."""
    return f"1555{NUMBERS}{next(count):05d}"


def an_address(channel: str) -> str:
    """An unused address of either channel."""
    return an_email() if channel == "email" else a_number()


def ago(seconds: int) -> int:
    """Unix seconds in the past."""
    return int(time.time()) - seconds


def rfc(moment: float) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return datetime.fromtimestamp(int(moment), UTC).isoformat().replace("+00:00", "Z")


def seconds_of(text: str) -> float:
    """Unix seconds of an RFC 3339 text, which has to say its zone."""
    moment = datetime.fromisoformat(text)
    assert moment.utcoffset() is not None, f"no zone: {text}"
    return moment.timestamp()


def told(address: str, timestamp: int, reason: str = "unsub") -> dict[str, Any]:
    """An e-mail entry."""
    return {"reason": reason, "email": address, "timestamp": timestamp}


def stopped(number: str, timestamp: int) -> dict[str, Any]:
    """An SMS entry of somebody who texted STOP."""
    return {"number": number, "timestamp": timestamp}


def started(number: str, timestamp: int) -> dict[str, Any]:
    """An SMS entry of somebody who texted START."""
    return {"number": number, "timestamp": timestamp, "opt-in": True}


def rows_of(body: object) -> list[Any]:
    """The rows of a listing, whatever its one list is called."""
    if isinstance(body, list):
        return body
    assert isinstance(body, dict), body
    lists = [one for one in body.values() if isinstance(one, list)]
    assert len(lists) == 1, f"a listing with one list was expected: {str(body)[:300]}"
    return list(lists[0])


class Voice:
    """Speaks for one namespace: as the vendor (signed) and as an internal caller (bearer token)."""

    def __init__(self, url: str, token: str, namespace: str, key: str) -> None:
        self.url, self.token, self.namespace, self.key = url, token, namespace, key
        self.http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def close(self) -> None:
        """Give the connections back."""
        self.http.close()

    # the vendor's side ------------------------------------------------------------------------------------------

    def post(self, path: str, raw: bytes, signature: str | None, **headers: str) -> httpx.Response:
        """Post a body as it is."""
        sent = {"Content-Type": "application/json", **{name.replace("_", "-"): one for name, one in headers.items()}}
        if signature is not None:
            sent["X-Kahuna-Signature"] = signature
        return self.http.post(path, content=raw, headers=sent)

    def deliver(self, channel: str, entries: list[Any], **headers: str) -> httpx.Response:
        """A signed callback, ASCII JSON, whatever the answer."""
        raw = json.dumps(entries).encode()
        return self.post(self.path(channel), raw, sign(self.key, addresses_in(channel, entries)), **headers)

    def deliver_to(self, path: str, channel: str, entries: list[Any]) -> httpx.Response:
        """A signed callback to another path than this namespace's own."""
        return self.post(path, json.dumps(entries).encode(), sign(self.key, addresses_in(channel, entries)))

    def deliver_raw(self, channel: str, raw: str | bytes, signed: list[str], **headers: str) -> httpx.Response:
        """A body spelt out by hand, signed over the addresses given."""
        body = raw.encode() if isinstance(raw, str) else raw
        return self.post(self.path(channel), body, sign(self.key, signed), **headers)

    def callback(self, channel: str, entries: list[Any]) -> dict[str, Any]:
        """A signed callback that has to be applied."""
        answer = self.deliver(channel, entries)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        assert found["state"] == "applied", found
        return found

    def path(self, channel: str) -> str:
        """The webhook of this namespace."""
        return f"/webhooks/{self.namespace}/{channel}"

    # the company's side -----------------------------------------------------------------------------------------

    def call(
        self,
        verb: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        json: object = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """One call under /v1 with the token and the namespace."""
        asked = {"namespace": self.namespace, **(params or {})}
        sent = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        return self.http.request(verb, path, params=asked, headers=sent, json=json, content=content)

    def where(self, channel: str, address: str) -> str:
        """The path of one status document."""
        return f"/v1/suppressions/{channel}/{quote(address, safe='')}"

    def status(self, channel: str, address: str, **params: str) -> dict[str, Any]:
        """The status document of one address."""
        answer = self.call("GET", self.where(channel, address), params=params)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def suppressed(self, channel: str, address: str, **params: str) -> bool:
        """The verdict alone."""
        return bool(self.status(channel, address, **params)["suppressed"])

    def reasons(self, channel: str, address: str) -> set[str]:
        """The reasons in force."""
        return {one["reason"] for one in self.status(channel, address)["causes"] if one["active"]}

    def cause(self, channel: str, address: str, reason: str) -> dict[str, Any]:
        """The one cause of that reason."""
        causes = self.status(channel, address)["causes"]
        found: list[dict[str, Any]] = [one for one in causes if one["reason"] == reason]
        assert len(found) == 1, causes
        return found[0]

    def put(self, channel: str, address: str, reason: str, occurred: int | None = None) -> httpx.Response:
        """A local stop, whatever the answer."""
        body = {"reason": reason, **({} if occurred is None else {"occurred_at": rfc(occurred)})}
        return self.call("PUT", self.where(channel, address), json=body)

    def stop(self, channel: str, address: str, reason: str, occurred: int | None = None) -> dict[str, Any]:
        """A local stop that has to succeed."""
        answer = self.put(channel, address, reason, occurred)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def reactivate(self, channel: str, address: str, occurred: int) -> httpx.Response:
        """New consent, whatever the answer."""
        body = {"evidence": "ticket 4711, written consent", "occurred_at": rfc(occurred)}
        return self.call("POST", self.where(channel, address) + "/reactivate", json=body)

    def listing(self, path: str, **params: str) -> list[Any]:
        """All rows of a listing, following its cursor when it has one."""
        found: list[Any] = []
        cursor: str | None = None
        while True:
            answer = self.call("GET", path, params={**params, **({"cursor": cursor} if cursor else {})})
            assert answer.status_code == 200, answer.text
            body = answer.json()
            found += rows_of(body)
            cursor = next((str(body[key]) for key in ("next", "next_cursor", "cursor") if body.get(key)), None)
            if not cursor:
                return found

    def corrections(self, state: str, address: str) -> list[Any]:
        """The corrections of one address in one state."""
        rows = self.listing("/v1/admin/corrections", state=state)
        return [one for one in rows if address.lower() in json.dumps(one).lower()]

    def reviews(self, address: str) -> list[Any]:
        """The held opt-ins of one address."""
        return [one for one in self.listing("/v1/admin/reviews") if address in json.dumps(one)]
