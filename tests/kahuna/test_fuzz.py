"""Whatever an answer holds: a typed answer, or an error of the tree."""

import gzip
from contextlib import suppress
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service import kahuna
from service.kahuna import Contract, KahunaClient
from service.settings import Secret
from tests.kahuna.calls import EVERY
from tests.kahuna.listening import Clock

WORDS = [
    *("success", "error", "error_code", "error_detail", "error_message", "accepted", "rejected", "errors", "job_id"),
    *("push", "in_app", "email", "user_merge", "records", "campaigns", "credentials", "more_records", "cursor"),
    *("user", "attributes", "devices", "events", "timestamp", "status", "processed", "stats", "extra", "found"),
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
    | st.sampled_from(["0001-01-01 00:00:00", "9999-12-31T23:59:59-14:00", 2**80, 404]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(WORDS), JSON, max_size=9) | st.fixed_dictionaries(
    {"success": st.booleans(), "more_records": st.booleans(), "push": st.lists(JSON, max_size=3)},
    optional={word: JSON for word in WORDS if word not in ("success", "more_records", "push")},
)
DOCUMENTS = (OBJECTS | JSON | st.lists(OBJECTS, max_size=2)).map(msgspec.json.encode)
TRUNCATED = st.builds(lambda body, cut: body[: max(0, len(body) - cut)], DOCUMENTS, st.integers(1, 20))
BODIES = DOCUMENTS | TRUNCATED | st.binary(max_size=60)
STATUSES = st.sampled_from([200, 200, 200, 201, 202, 204, 301, 400, 404, 409, 429, 500, 599])
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Content-Encoding": st.sampled_from(["gzip", "deflate", "zstd", "br", "identity", "what"]),
        "Retry-After": st.sampled_from(["1", "soon", "9" * 99, "Fri, 31 Dec 9999 23:59:59 -2359"]),
        "Content-Type": st.sampled_from(["text/html", "application/json; charset=what"]),
        "Location": st.sampled_from(["https://", "http://[", "//a:b", "\x7f", "/elsewhere"]),
    },
)


class Saying(httpx.AsyncBaseTransport):
    """A transport that always gives the same."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._said = (status, headers, body)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        status, headers, body = self._said
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))


async def outcome(api: str, status: int, headers: dict[str, str], body: bytes) -> Any:
    clock = Clock()
    credentials = kahuna.Credentials("http://kahuna.test", "p", Secret("a"), Secret("b"))
    transport = Saying(status, headers, body)
    async with KahunaClient(
        credentials, transport=transport, clock=clock, monotonic=clock, sleep=clock.sleep, answer_limit=100_000
    ) as client:
        try:
            return await EVERY[api](client)
        except kahuna.KahunaError as error:
            return error


DEEP = b"[" * 50_000
DEEP_OBJECT = b'{"success":true,"accepted":1,"rejected":0,"more_records":false,"push":[' + b'{"a":' * 15_000


@pytest.mark.parametrize("api", EVERY)
@settings(max_examples=40, deadline=None)
@given(status=STATUSES, headers=HEADERS, body=BODIES)
@example(200, {}, b"<html><body>502 Bad Gateway</body></html>")
@example(200, {}, b"")
@example(200, {}, b"\xff\xfe\x00")
@example(200, {}, b'{"success": "\xff"}')
@example(200, {}, b" " * 100_001)
@example(200, {}, DEEP)
@example(200, {}, DEEP + b"]" * 50_000)
@example(200, {}, DEEP_OBJECT + b"1" + b"}" * 15_000 + b"]}")
@example(200, {}, b'{"success":true,"job_id":1e999,"accepted":1e999}')
@example(200, {"Content-Encoding": "gzip"}, b'{"success": true}')
@example(200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 10_000_000))
@example(302, {"Location": "http://["}, b"")
async def test_no_answer_breaks_a_method(api: str, status: int, headers: dict[str, str], body: bytes) -> None:
    result = await outcome(api, status, headers, body)
    repr(result)
    if isinstance(result, kahuna.KahunaError):
        assert result.api == api


@given(st.text(max_size=60) | st.lists(st.sampled_from([*Contract.__slots__]), max_size=3).map("=x,".join))
def test_no_correction_breaks_the_contract(text: str) -> None:
    with suppress(kahuna.WrongCorrection):
        assert isinstance(Contract.corrected(text), Contract)
