"""The stand-in: held against the contract, and against the client that it is there to test."""

import ast
import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from service import kahuna
from service.kahuna import simulator as simulator_package
from service.kahuna.simulator import SimulatorConfig, build_simulator
from service.kahuna.webhook import read, verify
from service.settings import Secret

NOW = 1_500_000_000
CONFIG = SimulatorConfig(Secret("the-secret-key"), Secret("demo-api-key"), max_body_bytes=1_000)
AUTH = ("the-secret-key", "demo-api-key")
ANN = kahuna.EmailSyncEntry("unsub", "Ann@Example.com", NOW)


class Receiver:
    """Where callbacks arrive. `answer` is what it says to each."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.answer: httpx.Response | httpx.RequestError = httpx.Response(200, json={"state": "applied"})

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self.answer, httpx.RequestError):
            raise self.answer
        return self.answer


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def simulator(receiver: Receiver) -> Starlette:
    return build_simulator(CONFIG, lambda: NOW + 0.5, transport=httpx.MockTransport(receiver))


@pytest.fixture
async def web(simulator: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """Plain requests to the stand-in, with the right credentials."""
    transport = httpx.ASGITransport(simulator)
    async with httpx.AsyncClient(transport=transport, base_url="http://kahuna.test", auth=AUTH) as client:
        yield client


@pytest.fixture
async def client(simulator: Starlette) -> AsyncIterator[kahuna.KahunaClient]:
    """The real client, in front of the stand-in."""
    credentials = kahuna.Credentials("http://kahuna.test", "s", Secret(AUTH[0]), Secret(AUTH[1]))
    transport = httpx.ASGITransport(simulator)
    async with kahuna.KahunaClient(credentials, transport=transport, retry=kahuna.NO_RETRY, clock=lambda: NOW) as one:
        yield one


async def slots(web: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    answer = await web.get("/simulator/state", params=query)
    found: list[dict[str, Any]] = answer.json()["slots"]
    return found


async def fail(web: httpx.AsyncClient, **fault: Any) -> None:
    assert (await web.put("/simulator/faults", json=fault)).status_code == 204


# The two APIs.


async def test_what_is_accepted_is_kept(web: httpx.AsyncClient, client: kahuna.KahunaClient) -> None:
    assert await client.email_sync([ANN]) == kahuna.SyncAnswer(1, 0)
    assert await client.sms_sync([kahuna.SmsSyncEntry("15550100001", 5, opt_in=True)]) == kahuna.SyncAnswer(1, 0)
    assert await slots(web) == [
        {
            "env": "s",
            "channel": "email",
            "address": "ann@example.com",
            "word": "unsub",
            "timestamp": NOW,
            "action": "stop",
        },
        {"env": "s", "channel": "sms", "address": "15550100001", "word": None, "timestamp": 5, "action": "opt-in"},
    ]
    assert len(await slots(web, channel="sms")) == 1
    assert len(await slots(web, address=" ANN@example.com")) == 1


async def test_the_newest_wins_and_the_time_of_receipt_fills_in(
    web: httpx.AsyncClient, client: kahuna.KahunaClient
) -> None:
    number = "15550100001"
    await client.sms_sync([kahuna.SmsSyncEntry(number, NOW - 1, opt_in=True), kahuna.SmsSyncEntry(number)])
    assert [(slot["timestamp"], slot["action"]) for slot in await slots(web)] == [(NOW, "stop")]
    await client.sms_sync([kahuna.SmsSyncEntry(number, NOW - 9, opt_in=True)])
    assert [slot["action"] for slot in await slots(web)] == ["stop"]
    await client.sms_sync([kahuna.SmsSyncEntry(number, NOW, opt_in=True)])
    assert [slot["action"] for slot in await slots(web)] == ["opt-in"]


EMAIL_FAULTS: list[object] = [
    5,
    None,
    {},
    {"reason": "unsub"},
    {"email": "ann@example.com"},
    {"reason": "unsubscribe", "email": "ann@example.com"},
    {"reason": ["unsub"], "email": "ann@example.com"},
    {"reason": "unsub", "email": "ann"},
    {"reason": "unsub", "email": "a@b@c"},
    {"reason": "unsub", "email": " @example.com"},
    {"reason": "unsub", "email": 5},
    {"reason": "unsub", "email": "ann@example.com", "timestamp": "5"},
    {"reason": "unsub", "email": "ann@example.com", "timestamp": None},
    {"reason": "unsub", "email": "ann@example.com", "timestamp": True},
    {"reason": "unsub", "email": "ann@example.com", "timestamp": 1.5},
]
SMS_FAULTS: list[object] = [
    [],
    {},
    {"number": 15550100001},
    {"number": "+15550100001"},
    {"number": ""},
    {"number": "٣٣٣٣٣"},
    {"number": "15550100001", "timestamp": "now"},
]


@pytest.mark.parametrize(
    ("path", "good", "bad"),
    [("emailsync", {"reason": "spam", "email": "bob@example.com"}, entry) for entry in EMAIL_FAULTS]
    + [("smssync", {"number": "15550100009"}, entry) for entry in SMS_FAULTS],
)
async def test_a_bad_entry_is_rejected_alone(web: httpx.AsyncClient, path: str, good: object, bad: object) -> None:
    answer = await web.post(f"/api/{path}?env=p", json=[bad, good])
    assert answer.status_code == 200
    document = answer.json()
    assert (document["accepted"], document["rejected"], len(document["errors"])) == (1, 1, 1)
    assert len(await slots(web)) == 1


async def test_the_errors_name_the_entries_as_they_were_sent(web: httpx.AsyncClient) -> None:
    answer = await web.post("/api/emailsync?env=s", json=[{"reason": "x", "email": " Ann@x"}, 5])
    assert answer.json()["errors"] == [{"email": " Ann@x", "reason": "x", "error": "Invalid reason"}, "Not an object"]


async def test_only_true_opts_in(web: httpx.AsyncClient) -> None:
    await web.post("/api/smssync?env=s", json=[{"number": "15550100001", "opt-in": "true"}])
    assert [slot["action"] for slot in await slots(web)] == ["stop"]


def test_the_contracts_limit_is_the_default() -> None:
    assert SimulatorConfig(Secret(""), Secret("")).max_body_bytes == 10_000_000


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("GET", "/api/emailsync?env=p", b"", 405),
        ("PUT", "/api/smssync?env=p", b"[]", 405),
        ("POST", "/api/nothing?env=p", b"[]", 404),
        ("POST", "/api/emailsync", b"[]", 400),
        ("POST", "/api/emailsync?env=x", b"[]", 400),
        ("POST", "/api/emailsync?env=p", b"", 400),
        ("POST", "/api/emailsync?env=p", b"{}", 400),
        ("POST", "/api/smssync?env=p", b"[", 400),
        ("POST", "/api/smssync?env=p", b"[" * 900, 400),
        ("POST", "/api/smssync?env=p", b"[" + b" " * 1000 + b"]", 413),
    ],
)
async def test_a_request_is_refused_with_the_common_error_object(
    web: httpx.AsyncClient, method: str, target: str, body: bytes, status: int
) -> None:
    answer = await web.request(method, target, content=body)
    assert answer.status_code == status
    document = answer.json()
    assert (document["success"], document["error_code"]) == (False, status)


@pytest.mark.parametrize("auth", [("the-secret-key", "wrong"), ("demo-api-key", "the-secret-key"), ("", "")])
async def test_other_credentials_are_refused(web: httpx.AsyncClient, auth: tuple[str, str]) -> None:
    answer = await web.post("/api/emailsync?env=p", json=[], auth=auth)
    assert (answer.status_code, answer.json()["error"]) == (401, "Authentication failed")


async def test_every_request_is_logged(web: httpx.AsyncClient, client: kahuna.KahunaClient) -> None:
    await client.email_sync([ANN])
    await web.post("/api/smssync?env=x", json=[])
    logged = (await web.get("/simulator/requests")).json()["requests"]
    assert logged == [
        {"api": "email_sync", "received_at": NOW, "entries": 1, "accepted": 1, "rejected": 0, "status": 200},
        {"api": "sms_sync", "received_at": NOW, "entries": None, "status": 400},
    ]
    assert (await web.get("/simulator/requests?limit=1")).json()["requests"] == logged[1:]
    assert (await web.get("/simulator/requests?limit=0")).json()["requests"] == []
    assert (await web.get("/simulator/requests?limit=x")).status_code == 400


# Faults.


async def test_a_status_is_answered_as_often_as_told(web: httpx.AsyncClient, client: kahuna.KahunaClient) -> None:
    await fail(web, status=503, times=2, retry_after=7)
    for _ in range(2):
        with pytest.raises(kahuna.Unavailable) as caught:
            await client.email_sync([ANN])
        assert (caught.value.status, caught.value.retry_after) == (503, 7)
    assert await slots(web) == []
    assert (await client.email_sync([ANN])).accepted == 1


async def test_a_fault_is_that_of_its_api(web: httpx.AsyncClient, client: kahuna.KahunaClient) -> None:
    await fail(web, api="sms_sync", status=401)
    assert (await client.email_sync([ANN])).accepted == 1
    with pytest.raises(kahuna.CredentialsRefused):
        await client.sms_sync([])
    await web.delete("/simulator/faults")
    assert (await client.sms_sync([])).accepted == 0


BOB, EVE = kahuna.EmailSyncEntry("spam", "bob@example.com"), kahuna.EmailSyncEntry("spam", "eve@example.com")


async def test_addresses_are_rejected_by_name(web: httpx.AsyncClient, client: kahuna.KahunaClient) -> None:
    await fail(web, reject=["ANN@example.com"])
    answer = await client.email_sync([BOB, ANN, EVE])
    assert (answer.accepted, answer.errors) == (
        2,
        [{"email": "Ann@Example.com", "reason": "unsub", "error": "Rejected on request"}],
    )
    assert len(await slots(web)) == 2


async def test_so_many_are_rejected_without_names(web: httpx.AsyncClient, client: kahuna.KahunaClient) -> None:
    await fail(web, reject_count=2, name_rejected=False)
    answer = await client.email_sync([BOB, ANN, EVE])
    assert (answer.accepted, answer.errors) == (1, ["Rejected on request"] * 2)
    assert [slot["address"] for slot in await slots(web)] == ["eve@example.com"]


async def test_a_dropped_answer_leaves_the_outcome_open(web: httpx.AsyncClient, client: kahuna.KahunaClient) -> None:
    await fail(web, drop_answer=True, times=1)
    with pytest.raises(kahuna.Ambiguous):
        await client.email_sync([ANN])
    assert len(await slots(web)) == 1
    assert (await web.get("/simulator/requests")).json()["requests"][0]["status"] is None


async def test_latency_is_felt(web: httpx.AsyncClient, client: kahuna.KahunaClient) -> None:
    await fail(web, latency_seconds=60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.email_sync([ANN]), 0.05)


@pytest.mark.parametrize(
    "fault",
    [{"api": "log"}, {"times": 0}, {"status": 200}, {"latency_seconds": -1}, {"reject_count": -1}, {"unknown": 1}, []],
)
async def test_a_fault_that_means_nothing_is_refused(web: httpx.AsyncClient, fault: object) -> None:
    assert (await web.put("/simulator/faults", json=fault)).status_code == 400


# Callbacks.

ENTRIES = [{"number": "15550100001", "opt-in": True}, {"number": 5}, "odd", {"number": "15550100000", "timestamp": 5}]


async def order(web: httpx.AsyncClient, **more: object) -> httpx.Response:
    document = {"channel": "sms", "entries": ENTRIES, "to": "https://receiver.test/sms"} | more
    return await web.post("/simulator/callbacks", json=document)


async def test_a_callback_is_signed_and_sent_as_kahuna_does(web: httpx.AsyncClient, receiver: Receiver) -> None:
    answer = await order(web)
    assert answer.json() == {"status": 200, "body": '{"state":"applied"}'}
    [request] = receiver.requests
    assert (request.method, str(request.url)) == ("POST", "https://receiver.test/sms")
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.content) == ENTRIES
    callback = read(request.content, "sms")
    assert verify(callback.signed_values, request.headers["X-Kahuna-Signature"], [Secret("demo-api-key")])
    assert await slots(web) == []


async def test_kahuna_may_know_what_it_tells(web: httpx.AsyncClient) -> None:
    await order(web, remember=True)
    assert [(slot["address"], slot["action"]) for slot in await slots(web)] == [
        ("15550100001", "opt-in"),
        ("15550100000", "stop"),
    ]


async def test_a_refusal_of_the_receiver_is_shown(web: httpx.AsyncClient, receiver: Receiver) -> None:
    receiver.answer = httpx.Response(503, text="later")
    assert (await order(web)).json() == {"status": 503, "body": "later"}


async def test_a_receiver_that_is_away_is_a_bad_gateway(web: httpx.AsyncClient, receiver: Receiver) -> None:
    receiver.answer = httpx.ConnectError("refused")
    answer = await order(web)
    assert (answer.status_code, answer.json()["error"]) == (502, "No answer from the receiver: ConnectError")


@pytest.mark.parametrize("more", [{"channel": "push"}, {"entries": {}}, {"unknown": 1}])
async def test_an_order_that_means_nothing_is_refused(web: httpx.AsyncClient, more: dict[str, object]) -> None:
    assert (await order(web, **more)).status_code == 400


async def test_an_address_that_is_no_url_is_refused(web: httpx.AsyncClient) -> None:
    assert (await order(web, to="https://receiver.test:port")).status_code == 502


# On a port.


@asynccontextmanager
async def on_a_port(app: Starlette) -> AsyncIterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    serving = asyncio.create_task(server.serve([listening]))
    port = listening.getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving


async def test_on_a_port_the_connection_is_really_cut(simulator: Starlette) -> None:
    async with on_a_port(simulator) as url, httpx.AsyncClient(base_url=url) as web:
        credentials = kahuna.Credentials(url, "p", Secret(AUTH[0]), Secret(AUTH[1]))
        async with kahuna.KahunaClient(credentials, retry=kahuna.NO_RETRY) as client:
            assert (await client.email_sync([BOB])).accepted == 1
            await fail(web, drop_answer=True, times=1)
            with pytest.raises(kahuna.Ambiguous, match="RemoteProtocolError"):
                await client.email_sync([ANN])
        assert len(await slots(web)) == 2
        await fail(web, drop_request=True, times=1)
        with pytest.raises(httpx.RemoteProtocolError):
            await web.post("/api/emailsync?env=p", auth=AUTH, json=[{"reason": "unsub", "email": "eve@example.com"}])
        assert len(await slots(web)) == 2


async def test_on_a_port_the_checksum_header_arrives(simulator: Starlette) -> None:
    async with on_a_port(simulator) as url, httpx.AsyncClient(base_url=url, auth=AUTH) as web:
        form = {"key": AUTH[0], "env": "p", "dev_id": "d", "event": "start", "username": "dana@example.com"}
        assert (await web.post("/log", data=form)).json() == {"success": True}
        headers = {"KAHUNA_API_CHECKSUM": "065e58b672d230042a64d2f63188e444"}
        body = {"target_user": {"username": "dana@example.com"}}
        assert (await web.post("/api/userinfo?env=p", json=body, headers=headers)).json()["success"] is True


# What it may know.


def test_it_knows_nothing_of_the_service_that_it_tests() -> None:
    allowed = {"service.kahuna.webhook", "service.settings", "service.domain.addresses"}
    folder = Path(simulator_package.__file__).parent
    imported = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
    own = {name for name in imported if name.startswith("service.") and "simulator" not in name}
    assert own == allowed
