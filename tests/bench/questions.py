"""Owns what questions cost: one address, ten thousand in one call, and lines without end, beside the bare SQL."""

import asyncio
import json
import random
import time
from collections.abc import Iterable, Sequence
from hashlib import md5
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from tests.bench.load import ask, forget_peak, memory_of, request

CHECKED: Final = 10_000
ROUNDS_OF_CHECK: Final = 9

# The index is walked as the service walks it: left alone, the planner may read the whole list for ten thousand rows.
_BY_KEY: Final = "set plan_cache_mode = force_custom_plan; set enable_seqscan = off; set enable_bitmapscan = off"
_BARE: Final = """
    select address, reason from suppressions
    where address = any($1::text[]) and channel = 'email' and namespace = 'default'
"""


def grown(number: int) -> str:
    """The address that the growing of the list made of a number."""
    return f"g{md5(str(number).encode(), usedforsecurity=False).hexdigest()}@example.com"


def addresses(listed: int, count: int, seed: float) -> list[str]:
    """So many addresses, every other one of which is in a list of that many."""
    chance = random.Random(seed)
    return [grown(chance.randrange(listed) if n % 2 else -1 - chance.randrange(10**9)) for n in range(count)]


async def bare_seconds(connection: AsyncConnection, asked: Sequence[str]) -> float:
    """Seconds of the bare SQL for these addresses, in groups."""
    raw: Any = (await connection.get_raw_connection()).driver_connection
    await raw.execute(_BY_KEY)
    began = time.perf_counter()
    for start in range(0, len(asked), CHECKED):
        await raw.fetch(_BARE, list(asked[start : start + CHECKED]))
    seconds = time.perf_counter() - began
    await raw.execute("reset all")
    return seconds


async def check_seconds(port: int, authorization: str, asked: Sequence[str]) -> float:
    """Seconds of one call about these addresses."""
    body = json.dumps({"channel": "email", "addresses": asked}).encode()
    call = request("POST", "/v1/suppressions/check", body, Authorization=authorization)
    began = time.perf_counter()
    answer = await ask(port, call)
    seconds = time.perf_counter() - began
    if answer.count(b'"suppressed":') != len(asked):
        raise SystemExit(f"the check answered {answer[:200]!r}")
    return seconds


async def lines_seconds(port: int, authorization: str, parts: Iterable[bytes], count: int) -> float:
    """Seconds until so many lines, sent as fast as they are taken, are all answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = request(
        "POST", "/v1/suppressions/check?channel=email", Authorization=authorization, Content_Type="text/plain"
    )
    writer.write(head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
    began = time.perf_counter()

    async def send() -> None:
        for part in parts:
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    sending = asyncio.create_task(send())
    answered, seen = 0, b""
    while not seen.endswith(b"\r\n0\r\n\r\n"):
        part = await reader.read(1 << 18)
        if not part:
            raise SystemExit(f"the stream ended after {answered} answers: {seen[-200:]!r}")
        # Of what two parts share, only what the second completes is counted.
        answered += (seen[-12:] + part).count(b'"suppressed":') - seen[-12:].count(b'"suppressed":')
        seen = (seen + part)[-64:]
    await sending
    seconds = time.perf_counter() - began
    writer.close()
    if answered != count:
        raise SystemExit(f"{answered} of {count} lines were answered")
    return seconds


async def stream(
    port: int, pid: int, authorization: str, connection: AsyncConnection, listed: int, count: int
) -> dict[str, float]:
    """A stream of so many lines, beside the bare SQL, and the memory that it took."""
    asked = addresses(listed, count, 1)
    bare = await bare_seconds(connection, asked)
    ready = ["".join(f"{one}\n" for one in asked[start : start + 2000]).encode() for start in range(0, count, 2000)]
    del asked
    before = memory_of(pid, "VmRSS")
    forget_peak(pid)
    seconds = await lines_seconds(port, authorization, ready, count)
    growth = memory_of(pid, "VmHWM") - before
    return {"per_second": count / seconds, "ratio": bare / seconds, "peak_over_idle_mb": growth}
