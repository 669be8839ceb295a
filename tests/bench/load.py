"""Owns the load: requests made before the clock starts, a bounded number of connections, and what each answer took."""

import asyncio
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from service.kahuna.webhook import sign
from service.settings import Secret

CONNECTIONS = 32
KEY = Secret("bench-api-key")


class Taken(NamedTuple):
    """What a load took: seconds in all and of each answer in milliseconds, and the server's CPU per answer."""

    seconds: float
    milliseconds: list[float]
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.milliseconds) / self.seconds

    def percentile(self, percent: float) -> float:
        """Milliseconds within which so many of a hundred were answered."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)]

    @property
    def cpu_microseconds(self) -> float:
        """Microseconds of the server's CPU for one answer."""
        return self.cpu_seconds / len(self.milliseconds) * 1e6


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """One HTTP request, byte for byte."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def callback(addresses: Sequence[str]) -> bytes:
    """A signed callback that unsubscribes these addresses."""
    body = json.dumps([{"reason": "unsub", "email": a, "timestamp": 1_700_000_000} for a in addresses]).encode()
    return request("POST", "/api/email_callback", body, X_Kahuna_Signature=sign(addresses, KEY))


def callbacks(count: int, entries: int) -> list[bytes]:
    """So many callbacks of so many addresses each, none of which was ever seen."""
    salt = time.time_ns()
    return [callback([f"u{salt}x{n}x{m}@example.com" for m in range(entries)]) for n in range(count)]


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: bytes) -> bytes:
    """The body of the answer; anything but 200 ends the run."""
    writer.write(asked)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"{asked[:60]!r}: {head.splitlines()[0].decode()}")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return await reader.readexactly(int(length.split(b":")[1]))


async def ask(port: int, asked: bytes) -> bytes:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await exchange(reader, writer, asked)
    finally:
        writer.close()


async def pump(port: int, pid: int, requests: Iterable[bytes], seconds: float) -> Taken:
    """All connections ask as fast as they are answered, until the requests or the seconds are used up."""
    waiting = iter(requests)
    taken: list[float] = []
    started, cpu = time.perf_counter(), cpu_of(pid)

    async def talk() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for asked in waiting:
            before = time.perf_counter()
            await exchange(reader, writer, asked)
            after = time.perf_counter()
            taken.append((after - before) * 1000)
            if after > started + seconds:
                break
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(talk() for _ in range(CONNECTIONS)))
    return Taken(time.perf_counter() - started, taken, cpu_of(pid) - cpu)


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a living process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int, what: str) -> float:
    """Megabytes of a living process: VmRSS now, or VmHWM at most since `forget_peak`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def forget_peak(pid: int) -> None:
    """Lets the peak of a process begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
