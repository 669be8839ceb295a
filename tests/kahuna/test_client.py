"""The client: what it sends, and which error each outcome becomes."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import kahuna
from service.kahuna.calling import retry_after
from service.settings import Secret

NOW = 1_500_000_000.0
CREDENTIALS = kahuna.Credentials("https://kahuna.test", "s", Secret("the-secret-key"), Secret("the-api-key"))
ENTRIES = [kahuna.EmailSyncEntry("unsub", "ann@example.com", 1500000000)]
TAKEN = {"accepted": 1, "rejected": 0}

Answering = Callable[[httpx.Request], Any]


def client(answering: Answering, **timeouts: float) -> kahuna.KahunaClient:
    """A client whose requests are answered by a function, at a fixed time."""
    return kahuna.KahunaClient(
        CREDENTIALS,
        transport=httpx.MockTransport(answering),
        timeouts=kahuna.Timeouts(**timeouts),
        retry=kahuna.NO_RETRY,
        clock=lambda: NOW,
    )


async def failure(answering: Answering, **timeouts: float) -> kahuna.KahunaError:
    """The error that a call ends with."""
    async with client(answering, **timeouts) as one:
        with pytest.raises(kahuna.KahunaError) as caught:
            await one.email_sync(ENTRIES)
    return caught.value


# Requests.


async def test_a_call_is_one_authenticated_request() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=TAKEN)

    async with client(answer) as one:
        assert await one.email_sync(ENTRIES, request_id="abc") == kahuna.SyncAnswer(1, 0)
    [request] = seen
    assert (request.method, str(request.url)) == ("POST", "https://kahuna.test/api/emailsync?env=s")
    assert request.headers["Authorization"] == f"Basic {b64encode(b'the-secret-key:the-api-key').decode()}"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["X-Request-ID"] == "abc"
    assert json.loads(request.content) == [{"reason": "unsub", "email": "ann@example.com", "timestamp": 1500000000}]


async def test_numbers_go_to_their_own_path() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/smssync"
        assert "X-Request-ID" not in request.headers
        return httpx.Response(200, json=TAKEN)

    async with client(answer) as one:
        answer_ = await one.sms_sync([kahuna.SmsSyncEntry("15550100001", opt_in=True)])
    assert answer_.accepted == 1


async def test_calls_may_run_at_once() -> None:
    async with client(lambda _: httpx.Response(200, json=TAKEN)) as one:
        answers = await asyncio.gather(*(one.email_sync(ENTRIES) for _ in range(20)))
    assert answers == [kahuna.SyncAnswer(1, 0)] * 20


# Statuses.

STATUSES: list[tuple[int, type[kahuna.KahunaError]]] = [
    (302, kahuna.Unavailable),
    (400, kahuna.BadRequest),
    (401, kahuna.CredentialsRefused),
    (403, kahuna.NotPermitted),
    (404, kahuna.Unavailable),
    (405, kahuna.Unavailable),
    (408, kahuna.Unavailable),
    (409, kahuna.NotPermitted),
    (413, kahuna.TooLarge),
    (422, kahuna.BadRequest),
    (429, kahuna.RateLimited),
    (500, kahuna.Unavailable),
    (502, kahuna.Unavailable),
    (503, kahuna.Unavailable),
    (599, kahuna.Unavailable),
]


@pytest.mark.parametrize(("status", "kind"), STATUSES)
async def test_a_status_becomes_its_error(status: int, kind: type[kahuna.KahunaError]) -> None:
    body = {"success": False, "error_code": status, "error": "ann@example.com is not welcome"}
    error = await failure(lambda _: httpx.Response(status, json=body, headers={"Location": "https://elsewhere.test"}))
    assert type(error) is kind
    assert (error.api, error.status) == ("email_sync", status)
    assert "ann@" not in str(error)


async def test_a_redirect_is_not_followed() -> None:
    calls: list[httpx.URL] = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request.url)
        return httpx.Response(307, headers={"Location": "https://elsewhere.test/"})

    await failure(answer)
    assert [url.host for url in calls] == ["kahuna.test"]


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'{"accepted": 1, "rejected": 1}'])
async def test_success_without_the_contracts_counts_is_unreadable(body: bytes) -> None:
    error = await failure(lambda _: httpx.Response(202, content=body))
    assert isinstance(error, kahuna.UnreadableAnswer)
    assert error.status == 202


# Failures on the way.


def failing(kind: type[httpx.RequestError]) -> Answering:
    """An answering that fails as the network would, and whose message tells too much."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise kind("the-api-key ann@example.com", request=request)

    return answer


@pytest.mark.parametrize(
    "kind", [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol]
)
async def test_without_a_connection_nothing_was_sent(kind: type[httpx.RequestError]) -> None:
    error = await failure(failing(kind))
    assert isinstance(error, kahuna.Unreachable)
    assert str(error) == f"email_sync: no connection to Kahuna: {kind.__name__}"


@pytest.mark.parametrize(
    "kind",
    [
        httpx.ReadTimeout,
        httpx.WriteTimeout,
        httpx.ReadError,
        httpx.WriteError,
        httpx.CloseError,
        httpx.RemoteProtocolError,
        httpx.LocalProtocolError,
        httpx.DecodingError,
    ],
)
async def test_a_connection_lost_leaves_the_outcome_open(kind: type[httpx.RequestError]) -> None:
    error = await failure(failing(kind))
    assert isinstance(error, kahuna.Ambiguous)
    assert error.status is None
    assert "ann@" not in str(error)
    assert "key" not in str(error)


async def test_an_answer_that_drips_meets_the_deadline() -> None:
    class Dripping(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.01)
                yield b" "

    error = await failure(lambda _: httpx.Response(200, stream=Dripping()), deadline=0.1)
    assert isinstance(error, kahuna.Ambiguous)
    assert "deadline" in str(error)


async def test_a_cancelled_call_is_cancelled() -> None:
    async def forever(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    async with client(forever) as one:
        call = asyncio.create_task(one.email_sync(ENTRIES))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


# Retry-After.


async def test_the_wait_that_kahuna_asks_for_is_told() -> None:
    error = await failure(lambda _: httpx.Response(503, headers={"Retry-After": "17"}))
    assert error.retry_after == 17


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("9" * 400, float("inf")),
        (formatdate(NOW + 90, usegmt=True), 90),
        (formatdate(NOW + 90, localtime=False), 90),
        (formatdate(NOW - 90, usegmt=True), 0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("nan", None),
        ("Fri, 99 Jul 2017 02:40:00 GMT", None),
    ],
)
def test_retry_after_is_a_count_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@given(st.text() | st.text("0123456789 :,+-JanGMT"))
def test_no_retry_after_breaks_the_call(value: str) -> None:
    seconds = retry_after(value, NOW)
    assert seconds is None or seconds >= 0


# Secrets.


def test_credentials_do_not_show_themselves() -> None:
    assert "the-" not in repr(CREDENTIALS)
    assert "the-" not in str(vars(client(failing(httpx.ReadError))))
