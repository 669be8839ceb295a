"""By a proxy: what it is asked, what it gets to see, and what is said when it is in the way."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, create_subprocess_exec
from base64 import b64encode

import httpx
import pytest

from service import kahuna
from service.kahuna import KahunaClient
from service.settings import Secret
from tests.commands import ended
from tests.kahuna.listening import API_KEY, SECRET_KEY, Seen, listening, said
from tests.kahuna.test_network import failure
from tests.proxying import WANTED, WRITTEN, proxying

KEYS = b64encode(f"{SECRET_KEY}:{API_KEY}".encode()).decode()
ENTRY = kahuna.SmsSyncEntry("15550100001", 1_700_000_000)


def taken(_: Seen) -> bytes:
    return said({"accepted": 1, "rejected": 0, "errors": []})


async def test_a_plain_address_is_asked_for_as_a_whole() -> None:
    async with listening(taken) as vendor, proxying() as proxy:
        async with vendor.client(proxy=Secret(proxy.url)) as client:
            assert (await client.sms_sync([ENTRY])).accepted == 1
        [head] = proxy.heads
        assert head.startswith(f"POST {vendor.url}/api/smssync?env=p HTTP/1.1")
        [seen] = vendor.seen
        assert (seen.target, seen.headers["authorization"]) == ("/api/smssync?env=p", f"Basic {KEYS}")


async def test_of_an_https_address_it_sees_host_and_port_alone() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, proxying() as proxy:
        place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        credentials = kahuna.Credentials(f"https://{place}", "p", Secret(SECRET_KEY), Secret(API_KEY))
        client = KahunaClient(credentials, proxy=Secret(proxy.url), retry=kahuna.NO_RETRY)
        error = await failure(client, lambda client: client.sms_sync([ENTRY]))
    # Who listens there speaks no TLS: the tunnel stands, and nothing was said in it.
    assert isinstance(error, kahuna.Unreachable)
    [head] = proxy.heads
    assert head.startswith(f"CONNECT {place} HTTP/1.1\r\n")
    names = {line.partition(":")[0].lower(): line.partition(": ")[2] for line in head.split("\r\n")[1:] if line}
    assert (names["proxy-authorization"], "authorization" in names) == (WANTED, False)
    assert proxy.passed[:2] == b"\x16\x03", "the first bytes in the tunnel are those of TLS"
    for secret in (KEYS, SECRET_KEY, API_KEY, "15550100001"):
        assert secret not in head
        assert secret.encode() not in proxy.passed


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_one_that_does_not_let_us_through_is_told_without_its_password(scheme: str) -> None:
    async with listening(taken) as vendor, proxying() as proxy:
        url = vendor.url.replace("http", scheme, 1)
        credentials = kahuna.Credentials(url, "p", Secret(SECRET_KEY), Secret(API_KEY))
        wrong = Secret(proxy.url.replace("sync:", "nobody:"))
        client = KahunaClient(credentials, proxy=wrong, retry=kahuna.NO_RETRY)
        error = await failure(client, lambda client: client.sms_sync([ENTRY]))
    assert (vendor.seen, len(proxy.heads), "407" in str(error)) == ([], 1, True)
    assert isinstance(error, kahuna.Unreachable if scheme == "https" else kahuna.Unavailable)
    assert WRITTEN not in repr(error) + repr(client.__dict__)


async def test_one_that_is_not_there_is_unreachable() -> None:
    async with proxying() as gone:
        url = gone.url
    async with listening(taken) as vendor:
        client = vendor.client(proxy=Secret(url), retry=kahuna.NO_RETRY)
        error = await failure(client, lambda client: client.sms_sync([ENTRY]))
    assert isinstance(error, kahuna.Unreachable)
    assert vendor.seen == []


async def test_another_transport_takes_its_place() -> None:
    answer = httpx.MockTransport(lambda _: httpx.Response(200, content=b'{"accepted":1,"rejected":0,"errors":[]}'))
    credentials = kahuna.Credentials("http://kahuna.test", "p", Secret("a"), Secret("b"))
    async with KahunaClient(credentials, proxy=Secret("http://nobody.test:1"), transport=answer) as client:
        assert (await client.sms_sync([ENTRY])).accepted == 1


@pytest.mark.parametrize(
    "url",
    [
        *("socks5://proxy.test", "proxy.test:3128", "http://:80", "http://proxy.test:x", "http://proxy.test/way"),
        *(
            "http://me:a/b@proxy.test",
            "http://me:a?b@proxy.test",
            "http://me:a b@proxy.test",
            "http://me:\udce9@proxy.test",
        ),
        *("http://me:s3cr3t\n@proxy.test", "http://prox\u2100.test"),
    ],
)
def test_an_impossible_one_is_refused_without_being_repeated(url: str) -> None:
    credentials = kahuna.Credentials("http://kahuna.test", "p", Secret("a"), Secret("b"))
    with pytest.raises(kahuna.WrongCredentials, match=r"^proxy must ") as caught:
        KahunaClient(credentials, proxy=Secret(url))
    assert url not in str(caught.value)


async def test_the_shell_goes_by_it() -> None:
    async with listening(lambda _: said({"success": True})) as vendor, proxying() as proxy:
        environ = {
            "PATH": os.environ["PATH"],
            "KAHUNA_BASE_URL": vendor.url,
            "KAHUNA_SECRET_KEY": SECRET_KEY,
            "KAHUNA_API_KEY": API_KEY,
            "KAHUNA_PROXY_URL": proxy.url,
        }
        words = ("kahuna", "user-info", "--email", "ann@example.com")
        command = (sys.executable, "-m", "service", *words)
        process = await create_subprocess_exec(*command, env=environ, stdout=PIPE, stderr=PIPE)
        _, out, err = await ended(process)
        assert [head.split(" ")[1].startswith(vendor.url) for head in proxy.heads] == [True], err
        assert WRITTEN not in out + err
