"""What a description makes of a request: parameters, bodies by their kind, methods, answers."""

import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.errors import BadRequest, KahunaSyncError, RequestError, Unprocessable
from service.web import contract
from service.web.contract import Answer, AnyOperation, Call, Moment, Nothing, Operation, Parameters
from service.web.http import on_error, on_http_exception


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    word: Annotated[str | None, msgspec.Meta(examples=["blue"])] = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    dry_run: bool = False
    at: Moment | None = None
    id: uuid.UUID | None = None
    channel: Literal["email", "sms"]


FILTER = Parameters(Filter)


def test_parameters_become_what_they_are_described_as() -> None:
    query = (
        b"word=a%2Bb&limit=7&dry_run=true&at=2026-01-31T13:00:00+01:00&channel=sms&id=" + str(uuid.UUID(int=5)).encode()
    )
    found = FILTER.read(query)
    assert (found.word, found.limit, found.dry_run, found.channel, found.id) == (
        "a+b",
        7,
        True,
        "sms",
        uuid.UUID(int=5),
    )
    assert found.at == datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_what_is_left_out_has_its_default() -> None:
    assert FILTER.read(b"channel=email") == Filter(channel="email")
    assert Parameters(Nothing).read(b"") == Nothing()


@pytest.mark.parametrize(
    ("query", "slug", "says"),
    [
        (b"", "invalid-parameter", "channel is missing: channel must be one of email, sms"),
        (b"channel=fax", "invalid-parameter", "channel must be one of email, sms"),
        (b"channel=", "invalid-parameter", "channel must be one of email, sms"),
        (b"channel=sms&limit=0", "invalid-parameter", "limit must be a whole number from 1 to 1000"),
        (b"channel=sms&limit=1e2", "invalid-parameter", "limit must be a whole number"),
        (b"channel=sms&limit=null", "invalid-parameter", "limit must be a whole number"),
        (b"channel=sms&limit=%D9%A3", "invalid-parameter", "limit must be a whole number"),
        (b"channel=sms&limit=" + b"9" * 5000, "invalid-parameter", "limit must be a whole number"),
        (b"channel=sms&dry_run=1", "invalid-parameter", "dry_run must be true or false"),
        (b"channel=sms&at=noon", "invalid-time", "at must be an RFC 3339 time with an offset, such as 2026"),
        (b"channel=sms&at=2026-01-31T12:00:00", "invalid-time", "at must be an RFC 3339 time"),
        (b"channel=sms&id=7", "invalid-parameter", "id must be an id as answers show it"),
        (b"channel=sms&word=a%00b", "invalid-parameter", "word must be a text such as blue"),
        (
            b"chanel=sms",
            "unknown-parameter",
            "Unknown query parameter chanel; allowed: word, limit, dry_run, at, id, channel",
        ),
        (b"channel=sms&channel=sms", "repeated-parameter", "channel is given twice"),
    ],
)
def test_a_parameter_that_cannot_be_read_is_refused_with_what_to_send(query: bytes, slug: str, says: str) -> None:
    with pytest.raises((BadRequest, Unprocessable)) as refused:
        FILTER.read(query)
    error: RequestError = refused.value
    assert error.reason == slug
    assert says in str(error)


@pytest.mark.parametrize("name", ["ann%40example.com", "15550100001", "a" * 41, "A", ""])
def test_a_name_that_may_be_an_address_is_not_told(name: str) -> None:
    with pytest.raises(BadRequest, match=r"^Unknown query parameter; allowed: word"):
        FILTER.read(f"channel=sms&{name}=1".encode())


# Serving.


class Counted(msgspec.Struct):
    count: int


async def count(_call: Call[Nothing, None]) -> Counted:
    """A number."""
    return Counted(3)


async def lines(_call: Call[Nothing, None]) -> Response:
    """Lines."""
    return Response(b"lines", media_type="text/plain")


def described(method: str, path: str, handler: Any, **more: Any) -> AnyOperation:
    return Operation(
        method, path, handler, **{"scope": None, "query": Nothing, "answers": [Answer(202, Counted, "")]} | more
    )


def client_of(*operations: AnyOperation) -> httpx.AsyncClient:
    application = Starlette(
        routes=contract.routes(operations),
        exception_handlers={KahunaSyncError: on_error, HTTPException: on_http_exception},
    )

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        await application({**scope, "state": {"service": None}}, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app=wrapped), base_url="http://sync.test")


async def test_a_document_is_answered_with_the_status_that_is_described() -> None:
    async with client_of(described("POST", "/count", count)) as client:
        answer = await client.post("/count")
        assert (answer.status_code, answer.json()) == (202, {"count": 3})


async def test_methods_of_one_path_are_named_by_a_405_wherever_they_were_described() -> None:
    operations = [described("GET", "/a", count), described("GET", "/b", count), described("PUT", "/a", count)]
    async with client_of(*operations) as client:
        answer = await client.delete("/a")
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, PUT")
        assert (await client.head("/a")).status_code == 202


async def test_a_path_that_takes_everything_does_not_hide_those_below_it() -> None:
    operations = [described("GET", "/a/{rest:path}", lines), described("GET", "/a/{rest:path}/count", count)]
    async with client_of(*operations) as client:
        assert (await client.get("/a/b/c/count")).json() == {"count": 3}
        assert (await client.get("/a/b/c")).text == "lines"


async def test_the_kind_of_the_body_chooses_among_operations() -> None:
    streamed = described("POST", "/a", lines, streams={"text/csv": "Rows."})
    async with client_of(described("POST", "/a", count), streamed) as client:
        answer = await client.post("/a", content=b"", headers={"Content-Type": "Text/CSV; charset=utf-8"})
        assert answer.text == "lines"
        for kind in ("application/json", "text/html"):
            assert (await client.post("/a", content=b"{}", headers={"Content-Type": kind})).json() == {"count": 3}


async def test_a_stream_of_another_kind_is_refused_with_what_to_send() -> None:
    async with client_of(described("POST", "/a", lines, streams={"text/csv": "Rows."})) as client:
        answer = await client.post("/a", content=b"{}", headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["type"]) == (415, "unsupported-media-type")
        assert "Content-Type: text/csv" in answer.json()["detail"]


def test_an_operation_that_nobody_serves_is_a_fault() -> None:
    with pytest.raises(TypeError, match="POST /a"):
        contract.routes([described("POST", "/a", None)])
