"""A stand-in Kahuna that knows only kahuna-api.md. It owns what was asked of it and the faults it was told to show.

It refuses to import anything of the service: what it accepts and records is the proof that a correction arrived.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PATHS = {"/api/emailsync": "email", "/api/smssync": "sms"}
KEYS = {"email": "email", "sms": "number"}
WORDS = {"unsub", "hard_bounce", "soft_bounce", "spam", "reject", "invalid", "blocked"}


@dataclass(frozen=True)
class Answer:
    """What the vendor says: a status, a body, extra headers; `drop` closes the line without a word."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


@dataclass(frozen=True)
class Seen:
    """One request as it arrived, with the status it was answered with."""

    at: float
    path: str
    env: str
    headers: dict[str, str]
    user: str
    password: str
    raw: bytes
    body: object
    status: int
    dropped: bool

    @property
    def channel(self) -> str:
        """`email`, `sms`, or nothing for the other APIs."""
        return PATHS.get(self.path, "")

    def addresses(self) -> list[str]:
        """The addresses of a sync body, in the order they were sent."""
        return addresses_of(self.channel, self.body)


@dataclass(frozen=True)
class Taken:
    """One entry that the vendor accepted."""

    at: float
    user: str
    channel: str
    entry: dict[str, Any]

    @property
    def address(self) -> str:
        """The address exactly as it was sent."""
        return str(self.entry[KEYS[self.channel]])

    @property
    def timestamp(self) -> int:
        """The entry's time; an entry without one counts as now, as the vendor is assumed to do."""
        return int(self.entry.get("timestamp", self.at))

    @property
    def is_stop(self) -> bool:
        """Everything but an SMS entry with `opt-in: true` is a stop."""
        return self.entry.get("opt-in") is not True


Fault = Callable[[str, object], Answer | None]


def addresses_of(channel: str, body: object) -> list[str]:
    """Every string address of a sync body."""
    if channel not in KEYS or not isinstance(body, list):
        return []
    return [str(one.get(KEYS[channel])) for one in body if isinstance(one, dict)]


def refusal(status: int, text: str) -> Answer:
    """The common error object of kahuna-api.md section 1."""
    return Answer(status, {"success": False, "error_code": status, "error": text})


def complaint_about(channel: str, entry: object) -> str:
    """Why this one entry is rejected, or nothing."""
    if not isinstance(entry, dict):
        return "Not an object"
    if not isinstance(entry.get(KEYS[channel]), str) or not entry[KEYS[channel]]:
        return "Invalid address"
    if channel == "email" and entry.get("reason") not in WORDS:
        return "Invalid reason"
    if not isinstance(entry.get("timestamp", 0), int) or isinstance(entry.get("timestamp"), bool):
        return "Invalid timestamp"
    return ""


def counted(channel: str, body: list[Any], refused: set[str], named: bool) -> Answer:
    """Accept what is sound, reject the rest; the culprits are named only when `named`."""
    errors = []
    for entry in body:
        cause = complaint_about(channel, entry)
        if not cause and entry[KEYS[channel]] in refused:
            cause = "Invalid number" if channel == "sms" else "Invalid email"
        if cause:
            errors.append(error_item(channel, entry, cause) if named else cause)
    answer: dict[str, Any] = {"accepted": len(body) - len(errors), "rejected": len(errors)}
    return Answer(200, {**answer, "errors": errors} if errors else answer)


def error_item(channel: str, entry: object, cause: str) -> dict[str, Any]:
    """The item that kahuna-api.md sections 7 and 8 assume for one refused entry."""
    sent = entry if isinstance(entry, dict) else {}
    keys = ("email", "reason") if channel == "email" else ("number",)
    return {**{key: sent.get(key) for key in keys}, "error": cause}


class Vendor:
    """The stand-in on a loopback port. Faults are asked in turn; the first that answers wins."""

    def __init__(self, accounts: dict[str, str]) -> None:
        self.accounts = dict(accounts)
        self.seen: list[Seen] = []
        self.taken: list[Taken] = []
        self.delay = 0.0
        self._faults: list[Fault] = []
        self._refused: set[str] = set()
        self._named = True
        self._lock = threading.Lock()
        self._server = Door(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> Vendor:
        """Begin to listen."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening and free the port."""
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()
        self._thread.join(timeout=10)

    # faults ------------------------------------------------------------------------------------------------------

    @contextmanager
    def fault(self, one: Fault) -> Iterator[None]:
        """Show this fault while the block runs."""
        with self._lock:
            self._faults.append(one)
        try:
            yield
        finally:
            with self._lock:
                self._faults.remove(one)

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Answer everything late while the block runs."""
        self.delay = seconds
        try:
            yield
        finally:
            self.delay = 0.0

    @contextmanager
    def rejecting(self, addresses: set[str], *, named: bool) -> Iterator[None]:
        """Reject these addresses, naming them or only counting them."""
        with self._lock:
            self._refused, self._named = set(addresses), named
        try:
            yield
        finally:
            with self._lock:
                self._refused, self._named = set(), True

    # what happened ----------------------------------------------------------------------------------------------

    def met(self, user: str, channel: str, entry: dict[str, Any]) -> None:
        """A fact that the vendor met by itself, as when somebody texts STOP to one of its campaigns."""
        with self._lock:
            self.taken.append(Taken(time.time(), user, channel, entry))

    def requests(self, channel: str, address: str) -> list[Seen]:
        """Every request that carried this address, however it was answered."""
        with self._lock:
            return [one for one in self.seen if one.channel == channel and address in one.addresses()]

    def accepted(self, channel: str, address: str) -> list[Taken]:
        """Every entry taken for this address, oldest arrival first."""
        with self._lock:
            return [one for one in self.taken if one.channel == channel and one.address == address]

    def newest(self, channel: str, address: str) -> Taken | None:
        """What the vendor holds for an address: the newest timestamp, the later arrival of two equal ones."""
        found = self.accepted(channel, address)
        return max(found, key=lambda one: (one.timestamp, one.at)) if found else None

    def all_seen(self) -> list[Seen]:
        """A copy of every request so far."""
        with self._lock:
            return list(self.seen)

    # answering --------------------------------------------------------------------------------------------------

    def receive(self, path: str, headers: dict[str, str], raw: bytes) -> Answer:
        """Judge one request and keep it."""
        arrived = time.time()
        parts = urlsplit(path)
        env = parse_qs(parts.query).get("env", [""])[0]
        user, password = basic(headers.get("authorization", ""))
        body = parsed(raw)
        with self._lock:
            answer = self._judge(parts.path, env, user, password, body)
            self.seen.append(
                Seen(arrived, parts.path, env, headers, user, password, raw, body, answer.status, answer.drop)
            )
            if answer.status == 200:
                self._take(arrived, user, PATHS.get(parts.path, ""), body)
        return answer

    def _judge(self, path: str, env: str, user: str, password: str, body: object) -> Answer:
        faulty = next((found for one in self._faults if (found := one(PATHS.get(path, ""), body)) is not None), None)
        if faulty is not None and not faulty.drop:
            return faulty
        normal = self._normal(path, env, user, password, body)
        return Answer(normal.status, normal.body, drop=True) if faulty is not None else normal

    def _normal(self, path: str, env: str, user: str, password: str, body: object) -> Answer:
        if user not in self.accounts or self.accounts[user] != password:
            return refusal(401, "Authentication failed")
        if env not in {"p", "s"}:
            return refusal(400, "Bad env")
        if path == "/api/kahunalogs":
            return self._logs(body)
        if path not in PATHS:
            return refusal(404, "Not found")
        if not isinstance(body, list):
            return refusal(400, "Not an array")
        return counted(PATHS[path], body, self._refused, self._named)

    def _logs(self, body: object) -> Answer:
        if not isinstance(body, dict) or not ("timestamp" in body or "cursor" in body):
            return refusal(400, "timestamp or cursor")
        asked: dict[str, list[object]] = {str(one): [] for one in body.get("categories_to_return", ["push"])}
        return Answer(200, {**asked, "more_records": False, "cursor": "end"})

    def _take(self, at: float, user: str, channel: str, body: object) -> None:
        if channel not in KEYS or not isinstance(body, list):
            return
        for entry in body:
            if not complaint_about(channel, entry) and entry[KEYS[channel]] not in self._refused:
                self.taken.append(Taken(at, user, channel, entry))


def basic(header: str) -> tuple[str, str]:
    """User name and password of a Basic header, or two empty texts."""
    kind, _, value = header.partition(" ")
    if kind.lower() != "basic":
        return "", ""
    user, _, password = base64.b64decode(value).decode().partition(":")
    return user, password


def parsed(raw: bytes) -> object:
    """The JSON of a body, or None."""
    try:
        return json.loads(raw)
    except ValueError:
        return None


def when(test: Callable[[list[str]], bool], answer: Answer, times: int = 10**9) -> Fault:
    """A fault for the sync requests whose addresses satisfy `test`, shown at most `times` times."""
    left = [times]

    def judge(channel: str, body: object) -> Answer | None:
        if left[0] <= 0 or not channel or not test(addresses_of(channel, body)):
            return None
        left[0] -= 1
        return answer

    return judge


def carrying(*addresses: str) -> Callable[[list[str]], bool]:
    """True for a request that carries any of these addresses."""
    return lambda sent: any(one in sent for one in addresses)


class Door(ThreadingHTTPServer):
    """The listening socket, which knows whose it is, and closes the connections that callers keep open."""

    def __init__(self, vendor: Vendor) -> None:
        super().__init__(("127.0.0.1", 0), Listener)
        self.vendor = vendor
        self._open: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Keep every connection until it is closed."""
        line, caller = super().get_request()
        self._open.add(line)
        return line, caller

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that is closed."""
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that callers keep open, so that their threads end."""
        for line in list(self._open):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)


class Listener(BaseHTTPRequestHandler):
    """One connection of the stand-in. It answers with send_response_only, which prints nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Judge, wait as long as told, answer or close."""
        assert isinstance(self.server, Door)
        vendor = self.server.vendor
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = vendor.receive(self.path, headers, self._read())
        if vendor.delay:
            time.sleep(vendor.delay)
        if answer.drop:
            self.close_connection = True
            return
        self._write(answer)

    def do_GET(self) -> None:
        """No API that the service needs is a GET."""
        self._write(refusal(404, "Not found"))

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _write(self, answer: Answer) -> None:
        body = json.dumps(answer.body).encode()
        try:
            self.send_response_only(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True
