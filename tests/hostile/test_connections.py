"""Everything that may come over a connection, to a real web process on a real database."""

import asyncio

from tests.hostile.server import Server, listening
from tests.hostile.wire import BODY, TALKS, Talk, fault_of, head, nested

TIME_OUT = 0.5
ABREAST = 12
ROOM = 150
"""MiB that all of it may take on top of what an idle process has, at any moment."""


async def faults_of(server: Server, talks: dict[str, Talk]) -> dict[str, str]:
    """How talks that did not end as they must did end."""
    turn = asyncio.Semaphore(ABREAST)

    async def one(name: str, talk: Talk) -> tuple[str, str | None]:
        async with turn:
            return name, await fault_of(server.port, talk, server.time_out)

    ended = await asyncio.gather(*(one(name, talk) for name, talk in talks.items()))
    return {name: fault for name, fault in ended if fault is not None}


async def test_every_talk_ends_as_it_must_and_leaves_nothing_behind(database_url: str) -> None:
    async with listening(database_url, TIME_OUT) as server:
        idle = server.memory
        large = "as many entries as there is room for"
        assert await faults_of(server, {**TALKS, **nested(1)} | {large: TALKS["as it should be"]}) == {}
        assert server.most_memory - idle < ROOM
        assert await fault_of(server.port, TALKS[large], TIME_OUT) is None
        assert server.most_memory - idle < 4 * ROOM


async def test_who_never_speaks_keeps_nobody_out(database_url: str) -> None:
    async with listening(database_url, TIME_OUT) as server:
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(300)]
        for _, writer in silent[::2]:
            writer.write(head()[:30])
        assert await fault_of(server.port, Talk([head() + BODY], [200]), TIME_OUT) is None
        said = await asyncio.gather(*(reader.read() for reader, _ in silent))
        assert {part[:12] for part in said[1::2]} == {b""}
        assert {part[:12] for part in said[::2]} == {b"HTTP/1.1 408"}
        for _, writer in silent:
            writer.close()
