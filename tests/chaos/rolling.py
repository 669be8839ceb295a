"""Owns the arena behind a real nginx and a real PgBouncer in transaction mode, with the files of `deploy/`, and the
rolling restart of all of it."""

import asyncio
import os
import random
import re
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx

from tests.chaos.arena import PORTS, Arena

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DOOR, ADMIN, POOLER = 8760, 8761, 8762
NEEDS = ("nginx", "pgbouncer")
SETTINGS = {"DATABASE_POOLER": "transaction", "STOP_DELAY_SECONDS": "1", "DATABASE_POOL_SIZE": "10"}


def where(program: str) -> str | None:
    """Where a program is; those of servers are not in everybody's path."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Behind(Arena):
    """nginx before the web processes, PgBouncer between them and the database."""

    doors = (DOOR,)

    async def prepare(self) -> None:
        """Starts both."""
        self._pooler = await self._start_pooler()
        self._nginx = await self._start_nginx()
        self._settings |= {
            "DATABASE_URL": f"postgresql://kahuna_sync@127.0.0.1:{POOLER}/kahuna_sync",
            "DATABASE_DIRECT_URL": self.url,
        }

    async def dismiss(self) -> None:
        """Ends both."""
        for process in (self._nginx, self._pooler):
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()

    async def replace_pooler(self) -> None:
        """A second PgBouncer listens on the same port before the first lets its transactions end."""
        old = self._pooler
        self._pooler = await self._start_pooler()
        old.send_signal(signal.SIGINT)
        await asyncio.wait_for(old.wait(), 30)

    async def replace_nginx_workers(self) -> None:
        """As `nginx -s reload` does: new workers listen, the old ones end with their last answer."""
        self._nginx.send_signal(signal.SIGHUP)
        await asyncio.sleep(1)

    async def until_ready(self, port: int) -> None:
        """Returns once a web process says that it is ready."""
        async with httpx.AsyncClient() as client:
            for _ in range(600):
                with suppress(httpx.TransportError):
                    if (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.05)
        raise SystemExit(f"port {port} was not ready again")

    async def _start_pooler(self) -> asyncio.subprocess.Process:
        text = (DEPLOY / "pgbouncer" / "pgbouncer.ini").read_text(encoding="utf-8")
        server = f"host={self._folder / 'postgres'} port=5432 dbname=postgres user=postgres"
        for pattern, instead in (
            ("kahuna_sync = .*", f"kahuna_sync = {server}"),
            ("listen_addr = .*", "listen_addr = 127.0.0.1"),
            ("listen_port = .*", f"listen_port = {POOLER}"),
            ("auth_type = .*", "auth_type = any"),
            ("auth_file = .*", "so_reuseport = 1\nunix_socket_dir ="),
        ):
            text, found = re.subn(f"(?m)^{pattern}$", instead.replace("\\", ""), text)
            assert found == 1, pattern
        file = self._folder / "pgbouncer.ini"
        file.write_text(text, encoding="utf-8")
        # It refuses to be root, and the socket of the database is open to its owner alone.
        owner = (self._folder / "postgres").stat().st_uid if os.geteuid() == 0 else None
        started = await self._start(POOLER, [where("pgbouncer") or "", str(file)], user=owner)
        await self.ready(POOLER)
        return started

    async def _start_nginx(self) -> asyncio.subprocess.Process:
        included = (DEPLOY / "nginx" / "kahuna-sync.conf").read_text(encoding="utf-8")
        for number, port in enumerate(PORTS, 1):
            included = re.sub(f"web-{number}:870[01]", f"127.0.0.1:{port}", included)
        included = included.replace("listen 8080", f"listen 127.0.0.1:{DOOR}").replace(
            "listen 8081", f"listen 127.0.0.1:{ADMIN}"
        )
        for stream, log in (("/dev/stdout", "access.log"), ("/dev/stderr", "nginx.log")):
            included = included.replace(stream, str(self._folder / log))
        (self._folder / "kahuna-sync.conf").write_text(included, encoding="utf-8")
        temporary = "\n".join(
            f"{kind}_temp_path {self._folder}/nginx-{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = self._folder / "nginx.conf"
        file.write_text(
            f"daemon off;\nworker_processes 1;\npid {self._folder}/nginx.pid;\nerror_log {self._folder}/nginx.log;\n"
            f"{'user root;' if os.geteuid() == 0 else ''}\nevents {{ worker_connections 1024; }}\n"
            f"http {{\n{temporary}\ninclude {self._folder}/kahuna-sync.conf;\n}}\n",
            encoding="utf-8",
        )
        started = await self._start(DOOR, [where("nginx") or "", "-c", str(file), "-e", f"{self._folder}/nginx.log"])
        await self.ready(DOOR)
        return started

    async def _start(self, name: int, words: list[str], user: int | None = None) -> asyncio.subprocess.Process:
        with (self._folder / f"{name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(*words, stdout=log, stderr=log, user=user)


async def restart_all(arena: Arena, _chance: random.Random) -> None:
    """Everything but the database in turn, as often as the time allows, and each at least once."""
    assert isinstance(arena, Behind)
    end, turns = time.monotonic() + arena.seconds, 0
    while not turns or time.monotonic() < end:
        for port in PORTS:
            code = await arena.restart(f"web-{port}")
            assert code == 0, f"web ended with {code}"
            await arena.until_ready(port)
        await arena.restart("worker")
        await arena.replace_pooler()
        await arena.replace_nginx_workers()
        turns += 1
    print(f"{turns} times everything", file=sys.stderr)
