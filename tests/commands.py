"""What a command of the shell that runs apart says in the end."""

from asyncio.subprocess import Process


async def ended(process: Process) -> tuple[int, str, str]:
    """Its exit code, and what it said: the answer, and what it told beside it."""
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


def figures(out: str) -> dict[str, int]:
    """The table, from its sentences to their numbers."""
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in out.splitlines() if line.startswith("│")]
    return {says: int(count) for count, says in rows}
