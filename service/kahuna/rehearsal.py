"""A transport that reaches nobody: it shows what would be sent, and answers so that a call of several requests goes on.

Owns what is shown of a request, and what is masked in it: keys are, the caller's own input is not. Refuses to connect,
and to say anything about users: its one answer is the emptiest that every API takes.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

import httpx
import msgspec

from service.kahuna.contract import CHECKSUM_HEADER

MASK: Final = "***"

_SECRET_HEADERS: Final = frozenset({"authorization", CHECKSUM_HEADER.lower()})
_SECRET_FIELDS: Final = frozenset({"key"})
# What httpx adds for the connection says nothing about the request.
_DULL_HEADERS: Final = frozenset({"accept-encoding", "connection", "host", "user-agent"})


class Shown(msgspec.Struct, frozen=True):
    """A request as it may be shown. `body` is JSON as it would be sent, the fields of a form, or None without one."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Any

    def __repr__(self) -> str:
        return f"Shown({self.method} …)"


class Rehearsal(httpx.AsyncBaseTransport):
    """Put it behind a client as its `transport`. `show` is told of every request, in order."""

    def __init__(self, show: Callable[[Shown], None]) -> None:
        self._show = show

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Shows the request, and says yes to whatever it was."""
        content = await request.aread()
        is_form = request.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        body = _masked_form(content) if is_form else msgspec.Raw(content) if content else None
        self._show(Shown(request.method, str(request.url), _masked_headers(request.headers), body))
        return httpx.Response(200, json=_yes(0 if is_form else _count(content)))


def _yes(count: int) -> dict[str, Any]:
    """Of any API: it is done, all of it; there is a job, and there are no records."""
    return {"success": True, "accepted": count, "rejected": 0, "job_id": "rehearsal", "more_records": False}


def _count(content: bytes) -> int:
    """How many entries the syncs are to have accepted: their body is an array."""
    return len(msgspec.json.decode(content, type=list[msgspec.Raw])) if content.startswith(b"[") else 0


def _masked_headers(headers: httpx.Headers) -> dict[str, str]:
    names = {raw.decode("ascii").lower(): raw.decode("ascii") for raw, _ in headers.raw}
    return {
        names[name]: MASK if name in _SECRET_HEADERS else value
        for name, value in headers.items()
        if name not in _DULL_HEADERS
    }


def _masked_form(content: bytes) -> dict[str, str]:
    fields = parse_qsl(content.decode("ascii"), keep_blank_values=True)
    return {name: MASK if name in _SECRET_FIELDS else value for name, value in fields}
