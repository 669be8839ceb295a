"""The way to Kahuna when it is bad or hostile: whatever breaks is an error of the tree that carries nothing along."""

import asyncio
import gzip
import ssl
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest

from service import kahuna
from service.kahuna import KahunaClient
from service.settings import Secret
from tests.kahuna.calls import ADDRESS, EVERY, MESSAGE, OPT_IN, TIMED, Calling
from tests.kahuna.listening import API_KEY, SECRET_KEY, Half, listening, raw, said

TOKEN = b64encode(f"{SECRET_KEY}:{API_KEY}".encode()).decode()
CREDENTIALS = kahuna.Credentials("http://kahuna.test", "p", Secret(SECRET_KEY), Secret(API_KEY))


async def failure(client: KahunaClient, call: Calling) -> kahuna.KahunaError:
    """The error that a call ends with."""
    async with client:
        with pytest.raises(kahuna.KahunaError) as caught:
            await call(client)
    return caught.value


class Broken(httpx.AsyncBaseTransport):
    """A transport that fails in its own way."""

    def __init__(self, error: Callable[[httpx.Request], Exception]) -> None:
        self._error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self._error(request)


def broken(error: Callable[[httpx.Request], Exception]) -> KahunaClient:
    return KahunaClient(CREDENTIALS, transport=Broken(error), retry=kahuna.NO_RETRY)


# What is carried along.


def carried(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and all that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def told(error: BaseException) -> str:
    """Everything that a reporter of errors finds in this one."""
    request = getattr(error, "_request", None)
    sent = [] if request is None else [request.headers.raw, request.content]
    return repr([error, error.args, [value for name, value in vars(error).items() if name != "detail"], sent]) + repr(
        getattr(error, "object", "")
    )


@pytest.mark.parametrize("api", EVERY)
@pytest.mark.parametrize(
    "answer", [None, Half(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), raw(b"{ann@example.com")]
)
async def test_neither_key_nor_address_is_carried_along(api: str, answer: bytes | None) -> None:
    async with listening(lambda _: answer) as vendor:
        error = await failure(vendor.client(retry=kahuna.NO_RETRY), EVERY[api])
    everything = "".join(told(one) for one in carried(error))
    assert [secret for secret in (TOKEN, SECRET_KEY, API_KEY, ADDRESS) if secret in everything] == []


UNSAYABLE = f"{ADDRESS}\ud800"


@pytest.mark.parametrize(
    "call",
    [
        lambda k: k.server(kahuna.ServerRequest(dev_id=UNSAYABLE, event="e")),
        lambda k: k.server(kahuna.ServerRequest(dev_id="d", credentials={"email": UNSAYABLE})),
        lambda k: k.push([kahuna.PushMessage({"email": UNSAYABLE}, "Hi")]),
        lambda k: k.user_info("email", UNSAYABLE),
        lambda k: k.user_delete("email", UNSAYABLE),
        lambda k: k.flex(kahuna.FlexConfig(1), [kahuna.FlexEvent(UNSAYABLE)]),
    ],
)
async def test_an_address_that_cannot_be_written_is_not_carried_along(call: Calling) -> None:
    error = await failure(broken(lambda _: AssertionError()), call)
    assert isinstance(error, kahuna.BadRequest)
    assert [one for one in carried(error) if ADDRESS in told(one) or API_KEY[::-1] in told(one)] == []


# What breaks.


@asynccontextmanager
async def tls_that_breaks(last: bytes) -> AsyncIterator[str]:
    """A server that agrees on TLS and then ends with bytes that are none of it. It needs no certificate, since it is
    nobody: the cipher is an anonymous one."""
    side = anonymous(ssl.PROTOCOL_TLS_SERVER)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
        layer = side.wrap_bio(coming, going, server_side=True)
        while layer.version() is None or coming.pending:
            try:
                layer.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(going.read())
                coming.write(await reader.read(65_536))
        writer.write(going.read())
        await reader.read(65_536)
        writer.write(last)
        await writer.drain()
        await reader.read(65_536)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def anonymous(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return context


@pytest.mark.parametrize("api", ["push", "email_sync"])
@pytest.mark.parametrize("last", [b"\x17\x03\x03\x00\x20" + b"A" * 32, b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_what_breaks_tls_leaves_the_outcome_open(last: bytes, api: str) -> None:
    async with tls_that_breaks(last) as url:
        transport = httpx.AsyncHTTPTransport(verify=anonymous(ssl.PROTOCOL_TLS_CLIENT))
        credentials = kahuna.Credentials(url, "p", Secret("a"), Secret("b"))
        error = await failure(KahunaClient(credentials, transport=transport, retry=kahuna.NO_RETRY), EVERY[api])
    assert isinstance(error, kahuna.Ambiguous)
    assert "SSLError" in str(error)


async def test_what_speaks_no_tls_is_not_reached() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        credentials = kahuna.Credentials(url, "p", Secret("a"), Secret("b"))
        error = await failure(KahunaClient(credentials, retry=kahuna.NO_RETRY), EVERY["push"])
    assert isinstance(error, kahuna.Unreachable)


def test_the_vendors_certificate_is_checked() -> None:
    # No other place tells.
    context = KahunaClient(CREDENTIALS)._caller.http._transport._pool._ssl_context  # type: ignore[attr-defined] # noqa: SLF001
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


async def test_every_silence_has_its_limit() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"success": True})

    timeouts = kahuna.Timeouts(connect=1.0, write=2.0, read=3.0)
    async with KahunaClient(CREDENTIALS, transport=httpx.MockTransport(answer), timeouts=timeouts) as client:
        await client.user_info("email", ADDRESS)
    assert seen[0].extensions["timeout"] == {"connect": 1.0, "write": 2.0, "read": 3.0, "pool": None}


@pytest.mark.parametrize(
    "error", [ConnectionResetError("ann@"), ssl.SSLError("ann@"), ExceptionGroup("ann@", [OverflowError()])]
)
async def test_whatever_the_transport_raises_is_ambiguous(error: Exception) -> None:
    raised = await failure(broken(lambda _: error), EVERY["push"])
    assert type(raised) is kahuna.Ambiguous
    assert str(raised).endswith(f"came back: {type(error).__name__}")


async def test_a_host_that_cannot_be_looked_up_was_sent_nothing() -> None:
    raised = await failure(broken(lambda _: UnicodeError("label too long")), EVERY["push"])
    assert type(raised) is kahuna.BadRequest


@pytest.mark.parametrize("api", EVERY)
async def test_a_closed_client_says_so(api: str) -> None:
    client = broken(lambda _: AssertionError())
    async with client:
        pass
    with pytest.raises(kahuna.BadRequest, match="the client is closed"):
        await EVERY[api](client)


BASE_URLS = [
    *("", "kahuna.test", "ftp://kahuna.test", "http://", "https://kahuna.test:99999", "https://kahuna.test:0"),
    *(
        "https://kahuna.test:port",
        "https://xn--.com",
        f"https://{'a' * 70}.test",
        "https://[::1",
        "https://ka huna.test",
    ),
    *("https://user:password@kahuna.test", "https://kahuna.test?a=1", "https://kahuna.test/#a", "https://ka\x00huna"),
]


@pytest.mark.parametrize("base_url", BASE_URLS)
def test_a_wrong_address_is_refused_at_once(base_url: str) -> None:
    with pytest.raises(kahuna.WrongCredentials, match="base_url must ") as caught:
        kahuna.Credentials(base_url, "p", Secret("a"), Secret("b"))
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("keys", [("sec\udcffret", "b"), ("a", "sec\udcffret")])
def test_a_key_that_is_no_text_is_refused_and_not_shown(keys: tuple[str, str]) -> None:
    with pytest.raises(kahuna.WrongCredentials, match="must be texts") as caught:
        kahuna.Credentials("https://kahuna.test", "p", *map(Secret, keys))
    assert not any("sec" in told(one).replace("secret_key", "") for one in carried(caught.value))


@pytest.mark.parametrize("base_url", ["https://kahuna.test/behind/a/path", "http://[::1]:8701/", "http://kahuna_1:80"])
async def test_an_address_may_have_a_port_and_a_path(base_url: str) -> None:
    urls: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        urls.append(str(request.url))
        return httpx.Response(200, json={"success": True})

    credentials = kahuna.Credentials(base_url, "p", Secret("a"), Secret("b"))
    async with KahunaClient(credentials, transport=httpx.MockTransport(answer)) as client:
        await client.user_info("email", ADDRESS)
    assert urls == [f"{base_url.rstrip('/').removesuffix(':80')}/api/userinfo?env=p"]


# What is answered.


def bomb(layers: int) -> bytes:
    inner = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(inner.compress(bytes(1_000_000)) for _ in range(20)) + inner.flush()
    return packed if layers == 1 else gzip.compress(packed, 9)


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "identity, gzip", "deflate", "br", "x-own"])
async def test_a_body_in_another_encoding_is_not_unpacked(encoding: str) -> None:
    packed = bomb(2 if encoding == "gzip, gzip" else 1)
    calls: list[kahuna.Call] = []
    async with listening(lambda _: raw(packed, content_encoding=encoding)) as vendor:
        async with vendor.client(answer_limit=100_000) as client:
            with pytest.raises(kahuna.UnreadableAnswer, match="encoding that was not asked for"):
                await client.user_info("email", ADDRESS)
        vendor.answering = lambda _: raw(packed, 401, content_encoding=encoding)
        async with vendor.client(answer_limit=100_000, observe=calls.append) as client:
            with pytest.raises(kahuna.CredentialsRefused):
                await client.user_info("email", ADDRESS)
    assert {seen.headers["accept-encoding"] for seen in vendor.seen} == {"identity"}
    assert len(vendor.seen) == 2


@pytest.mark.parametrize("status", [400, 401, 409])
@pytest.mark.parametrize("api", EVERY)
async def test_a_status_counts_though_its_body_breaks(api: str, status: int) -> None:
    cut = Half(f"HTTP/1.1 {status} X\r\nContent-Length: 9\r\n\r\n{{".encode())
    async with listening(lambda _: cut) as vendor:
        error = await failure(vendor.client(), EVERY[api])
    assert (error.status, len(vendor.seen)) == (status, 1)


async def test_a_status_counts_though_its_body_never_ends() -> None:
    class Silent(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

    transport = httpx.MockTransport(lambda _: httpx.Response(401, stream=Silent()))
    client = KahunaClient(CREDENTIALS, transport=transport, timeouts=kahuna.Timeouts(deadline=0.02))
    assert type(await failure(client, EVERY["push"])) is kahuna.CredentialsRefused


@pytest.mark.parametrize("status", [500, 503, 408])
async def test_an_opt_in_without_a_time_that_may_have_worked_is_ambiguous(status: int) -> None:
    async with listening(lambda _: raw(b"", status)) as vendor:
        error = await failure(vendor.client(), lambda k: k.sms_sync([TIMED, OPT_IN]))
    assert type(error) is kahuna.Ambiguous
    assert len(vendor.seen) == 1


# What nobody asked for.


async def test_cookies_are_not_kept() -> None:
    answer = said({"success": True}, set_cookie="session=secret; Path=/")
    async with listening(lambda _: answer) as vendor, vendor.client() as client:
        for _ in range(2):
            await client.user_info("email", ADDRESS)
    assert [seen.headers.get("cookie") for seen in vendor.seen] == [None, None]


async def test_a_proxy_of_the_surroundings_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        listening(lambda _: said({"success": True})) as proxy,
        listening(lambda _: said({"success": True})) as true,
    ):
        for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        async with true.client() as client:
            await client.user_info("email", ADDRESS)
    assert (len(proxy.seen), len(true.seen)) == (0, 1)


# Waiting for a place.


async def test_a_wait_for_a_place_ends_where_that_is_wanted() -> None:
    gate = asyncio.Event()

    async def answer(_: httpx.Request) -> httpx.Response:
        await gate.wait()
        return httpx.Response(200, json={"success": True})

    transport, timeouts = httpx.MockTransport(answer), kahuna.Timeouts(pool=0.01)
    async with KahunaClient(
        CREDENTIALS, transport=transport, timeouts=timeouts, retry=kahuna.NO_RETRY, concurrency=1
    ) as client:
        first = asyncio.create_task(client.user_info("email", ADDRESS))
        await asyncio.sleep(0)
        with pytest.raises(kahuna.Unreachable, match="too many requests are under way"):
            await client.push([MESSAGE])
        gate.set()
        assert (await first).found
        assert (await client.user_info("email", ADDRESS)).found
