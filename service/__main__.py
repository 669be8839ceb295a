"""The command line, and the only reader of its arguments: `kahuna-sync`, the same as `python -m service`."""

import asyncio
import errno
import gc
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import click
import httpx
import uvicorn
from rich.console import Console
from rich.table import Column, Table

from service import (
    app,
    cases,
    demo,
    desk,
    doctor,
    embedded,
    operation,
    reconciling,
    reverting,
    settings,
    shell,
    up,
    worker,
)
from service.domain.addresses import CHANNELS, Channel
from service.errors import KahunaSyncError, SettingsError
from service.flows import ingest, upkeep
from service.front import FrontConfig
from service.kahuna import webhook
from service.kahuna.simulator import SimulatorConfig, build_simulator
from service.operation import NAMESPACE, started, with_database
from service.settings import Secret, Settings
from service.store import access, migrations
from service.store.database import Database
from service.telemetry import logger, set_up_logging

try:
    import uvloop

    _NEW_LOOP: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
except ImportError:  # not made for every system
    _NEW_LOOP = asyncio.new_event_loop

SWITCH_SECONDS = 0.0005
"""For how long a thread of ours computes before another has its turn."""

_PARENT = click.option("--parent", type=int, hidden=True, help="End when this process does.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kahuna-sync", message="kahuna-sync %(version)s")
def cli() -> None:
    """Keeps a company's suppression list and Kahuna's in agreement."""


COMMANDS = (*operation.COMMANDS, *reconciling.COMMANDS, *desk.COMMANDS, *cases.COMMANDS, reverting.revert_command)
for command in (*COMMANDS, shell.kahuna, doctor.doctor_command):
    cli.add_command(command)


def main() -> None:
    """Runs a command. What a person can mend is one sentence on standard error, and exit code 2."""
    try:
        cli(prog_name="kahuna-sync")
    except KahunaSyncError as error:
        click.echo(f"kahuna-sync: {error}", err=True)
        sys.exit(2)


@cli.command("up")
@click.option("--port", type=int, help="Port of the web process (default: PORT, 8700).")
@click.option("--demo", "demonstrate", is_flag=True, help="Also start a stand-in Kahuna and walk through the loop.")
@click.option("--simulator-port", type=int, default=8701, show_default=True, help="Port of the stand-in, with --demo.")
def up_command(port: int | None, demonstrate: bool, simulator_port: int) -> None:
    """Everything on this machine. PostgreSQL if needed, migrations, web and worker."""
    environ = dict(os.environ) | ({"PORT": str(port)} if port else {})
    if demonstrate:
        environ = demo.environ_of(environ, simulator_port)
    embeds = settings.load(environ).database_url is None
    with ExitStack() as stack:
        loaded = stack.enter_context(started(environ, namespaces=True, speaker="up"))
        _refuse_taken(loaded.host, loaded.port)
        environ["DATABASE_URL"] = loaded.database_url or ""
        environ["SPOOL_DIR"] = str(loaded.spool_dir or loaded.data_dir / "spool")
        asyncio.run(_migrate(loaded))
        stack.enter_context(up.only_one(loaded.data_dir))
        commands = [["web"], ["worker"]]
        walk: Coroutine[Any, Any, None] | None = None
        if demonstrate:
            _refuse_taken("127.0.0.1", simulator_port, "--simulator-port")
            url = f"http://{loaded.host}:{loaded.port}"
            commands.append(demo.simulator(url, simulator_port))
            walk = demo.walk(loaded, url, f"http://127.0.0.1:{simulator_port}")
        else:
            _say_where(loaded, embeds=embeds)
        revive = partial(embedded.revive, loaded.data_dir, environ["DATABASE_URL"]) if embeds else None
        code = asyncio.run(_up(commands, environ, walk, revive))
    sys.exit(code)


def _say_where(loaded: Settings, *, embeds: bool) -> None:
    url = f"http://{f'[{loaded.host}]' if ':' in loaded.host else loaded.host}:{loaded.port}"
    namespace = loaded.main_namespace or loaded.namespaces[0]
    token = "/$CALLBACK_TOKEN" if namespace.callback_token else ""
    where = f"database and spool are in {loaded.data_dir}" if embeds else "the database is that of DATABASE_URL"
    click.echo(f"Kahuna Sync starts on {url}; {where}.", err=True)
    click.echo("Next, in another shell with the same variables:", err=True)
    click.echo("  kahuna-sync token create --name me --scopes read,write,admin", err=True)
    click.echo(f"  kahuna-sync send email FILE --to {url}/webhooks/{namespace.name}/email{token}", err=True)


@cli.command("web")
@_PARENT
def web_command(parent: int | None) -> None:
    """The web process: callbacks and queries."""
    with started(os.environ, namespaces=True, speaker="web") as loaded:
        _refuse_taken(loaded.host, loaded.port)
        if loaded.admin_port is not None:
            _refuse_taken(loaded.host, loaded.admin_port, "ADMIN_PORT or HOST")
        application = app.build(loaded)
        # The event loop waits so long for its turn while a large body is read, at each of its own.
        sys.setswitchinterval(SWITCH_SECONDS)
        # What start-up made stays for good: looked through again and again, it costs a tenth of every callback.
        gc.freeze()
        gc.set_threshold(20_000, 50, 100)
        _run(_web(loaded, application, parent))


@cli.command("worker")
@_PARENT
def worker_command(parent: int | None) -> None:
    """The worker process: corrections, reconciliations, leftovers."""

    async def work(loaded: Settings) -> None:
        stop = asyncio.Event()
        up.stop_on_signals(stop)
        watch = asyncio.create_task(up.watch_parent(parent, stop.set))
        if loaded.worker_port is None:
            await worker.run(loaded, stop)
        else:
            await worker.run(loaded, stop, show=partial(_shown, loaded, loaded.worker_port))
        watch.cancel()

    with started(os.environ, namespaces=True, speaker="worker") as loaded:
        if loaded.worker_port is not None:
            _refuse_taken(loaded.host, loaded.worker_port, "WORKER_PORT or HOST")
        _run(work(loaded))


@cli.command("migrate")
def migrate_command() -> None:
    """Bring the database to the newest schema."""
    with started(os.environ) as loaded:
        asyncio.run(_migrate(loaded))
        click.echo(f"The database is at revision {migrations.head()}.", err=True)


async def _migrate(loaded: Settings) -> None:
    """The newest schema, and the partitions of now and soon, so that not even the first callback goes astray."""
    await migrations.upgrade(loaded.database_direct_url or loaded.database_url or "")
    async with Database.of(loaded) as database:
        await upkeep.make_ahead(database, ingest.rules_of(loaded), app.utc_now)


@cli.command("simulator")
@click.option("--port", type=int, default=8701, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides everything that is left to chance.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens: elsewhere, others can ask too.")
@click.option("--email-webhook", help="Where its Email Sync callbacks go; can be changed while it runs.")
@click.option("--sms-webhook", help="Where its SMS Sync callbacks go; can be changed while it runs.")
@_PARENT
def simulator_command(
    port: int, seed: int, host: str, email_webhook: str | None, sms_webhook: str | None, parent: int | None
) -> None:
    """A stand-in Kahuna. Faults can be switched on."""
    loaded = settings.load(os.environ)
    set_up_logging(loaded.log_level, loaded.log_format, "simulator")
    namespace = loaded.main_namespace or loaded.namespaces[0]
    secret_key = namespace.secret_key or Secret(demo.SECRET_KEY)
    api_key = namespace.api_key[0] if namespace.api_key else Secret(demo.API_KEY)
    config = SimulatorConfig(secret_key, api_key, seed=seed, email_webhook=email_webhook, sms_webhook=sms_webhook)
    simulator = build_simulator(config, time.time)
    click.echo(f"A stand-in Kahuna listens on http://{host}:{port}", err=True)
    secret_from = demo.SECRET_KEY if secret_key.reveal() == demo.SECRET_KEY else "that of KAHUNA_SECRET_KEY"
    api_from = demo.API_KEY if api_key.reveal() == demo.API_KEY else "that of KAHUNA_API_KEY"
    click.echo(f"Its Secret Key is {secret_from}, its API Key {api_from}", err=True)
    _run(_serve(FrontConfig(simulator, host, port), parent))


@cli.group("token")
def token_group() -> None:
    """API tokens of the services that query."""


@token_group.command("create")
@click.option("--name", required=True, help="Who will use it; shown in lists and in the audit log.")
@click.option("--scopes", required=True, help="Comma-separated, of: read, write, admin.")
@click.option("--namespace", help="The only namespace that it may speak of.")
@click.option("--channel", type=click.Choice(CHANNELS), help="The only channel that it may speak of; not with admin.")
@click.option("--expires", help="When it ends: in days (90d) or hours (12h), or a time (2027-01-31T12:00:00Z).")
def token_create(name: str, scopes: str, namespace: str | None, channel: Channel | None, expires: str | None) -> None:
    """Print a new token, once: only its hash is stored."""
    wanted = list(dict.fromkeys(scope.strip() for scope in scopes.split(",") if scope.strip()))
    if not wanted or set(wanted) - set(access.SCOPES):
        raise click.BadParameter(f"must be some of {', '.join(access.SCOPES)}", param_hint="--scopes")
    if channel is not None and "admin" in wanted:
        raise click.BadParameter("cannot limit the scope admin, which is about both channels", param_hint="--channel")
    if not name.strip():
        raise click.BadParameter("must say who will use it", param_hint="--name")
    if namespace is not None:
        settings.chosen(settings.load(os.environ), namespace)
    now = datetime.now(UTC)
    ends = None if expires is None else _end(expires, now)

    async def create(database: Database) -> str:
        async with database.begin() as connection:
            _tell_of_others(name, now, await access.all_tokens(connection))
            token = await access.create_token(
                connection, name, wanted, namespace, now, channel=channel, expires_at=ends
            )
            detail = {"name": name, "scopes": wanted, "channel": channel, "expires_at": ends and ends.isoformat()}
            await access.write_down(connection, access.Deed("shell", "token.created", namespace, detail=detail), now)
            (made,) = await access.callers_of(connection, [access.digest_of(token)])
        if made is not None:
            click.echo(f"Its id is {str(made.token_id)[:8]}.", err=True)
        return token

    click.echo(with_database(create))


def _end(text: str, now: datetime) -> datetime:
    """When a token ends: so long from now, or at a time."""
    try:
        if re.fullmatch(r"[0-9]{1,5}[dh]", text):
            ends = now + timedelta(**{"days" if text.endswith("d") else "hours": int(text[:-1])})
        else:
            said = datetime.fromisoformat(text)
            ends = now if said.tzinfo is None else said.astimezone(UTC)
    except (ValueError, OverflowError):
        ends = now
    if ends <= now:
        raise click.BadParameter(
            "must be such as 90d, 12h or 2027-01-31T12:00:00Z, and to come", param_hint="--expires"
        )
    return ends


def _tell_of_others(name: str, now: datetime, tokens: Sequence[Any]) -> None:
    """Two live tokens of a name are how one is replaced, so that is allowed, and said."""
    others = [str(one.id)[:8] for one in tokens if one.name == name and _state(one, now) == "live"]
    if others:
        says = f"both work. Once the new one is in use: kahuna-sync token revoke {' '.join(others)}"
        click.echo(f"There is a live token of this name already; {says}", err=True)


def _state(token: Any, now: datetime) -> str:
    if token.revoked_at is not None:
        return f"revoked {token.revoked_at:%Y-%m-%d}"
    return "expired" if token.expires_at is not None and token.expires_at <= now else "live"


@token_group.command("list")
def token_list() -> None:
    """Show all tokens, without what would let one use them."""

    async def read(database: Database) -> Any:
        async with database.read() as connection:
            return await access.all_tokens(connection)

    table = Table(Column("id", no_wrap=True), Column("name", no_wrap=True), "scopes", "namespace", "channel")
    for title in ("created", "last used", "expires", "state"):
        table.add_column(title)
    for row in with_database(read):
        times = [f"{at:%Y-%m-%d %H:%M}Z" if at else "" for at in (row.created_at, row.last_used_at, row.expires_at)]
        limits = (row.namespace or "all", row.channel or "all")
        state = _state(row, datetime.now(UTC))
        table.add_row(str(row.id)[:8], row.name, ",".join(row.scopes), *limits, *times, state)
    # What reads a file or a pipe wants whole lines.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@token_group.command("revoke")
@click.argument("which", nargs=-1, required=True)
def token_revoke(which: tuple[str, ...]) -> None:
    """End every token of a name, or one by its id. WHICH is a name, or an id as `token list` shows it.

    Every web process knows it within TOKEN_CACHE_SECONDS.
    """

    async def revoke(database: Database) -> list[str]:
        ended = []
        async with database.begin() as connection:
            for one in which:
                for row in await access.revoke_tokens(connection, one, datetime.now(UTC)):
                    deed = access.Deed("shell", "token.revoked", detail={"name": row.name, "id": str(row.id)})
                    await access.write_down(connection, deed, datetime.now(UTC))
                    ended.append(row.name)
        return ended

    ended = with_database(revoke)
    if not ended:
        raise SettingsError("There is no live token of this name or id; see kahuna-sync token list.")
    click.echo(f"Revoked {len(ended)}: {', '.join(ended)}.", err=True)


@cli.command("send")
@click.argument("channel", type=click.Choice(["email", "sms"]))
@click.argument("file", type=click.File("rb"))
@click.option("--to", required=True, help="The webhook's URL, with the callback token if it has one.")
@NAMESPACE
def send_command(channel: str, file: Any, to: str, namespace: str | None) -> None:
    """Sign a body as Kahuna does and post it. The smoke test of a deployment."""
    loaded = settings.load(os.environ)
    keys = settings.chosen(loaded, namespace).api_key
    if not keys:
        raise SettingsError("KAHUNA_API_KEY is not set: the body cannot be signed.")
    body = file.read()
    try:
        callback = webhook.read(body, "email" if channel == "email" else "sms")
    except ValueError as error:
        raise SettingsError(f"{file.name} is no callback body: {error}.") from None
    headers = {"Content-Type": "application/json", "X-Kahuna-Signature": webhook.sign(callback.signed_values, keys[0])}
    try:
        answer = httpx.post(to, content=body, headers=headers, timeout=60)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise SettingsError(f"Nothing could be sent ({type(error).__name__}): check the URL behind --to.") from None
    click.echo(f"{answer.status_code} {answer.text}")
    other = "sms" if channel == "email" else "email"
    if not answer.is_success and re.search(rf"/{other}(_callback)?(/|$)", to):
        click.echo(f"This was signed as a callback of {channel}, but the URL is the webhook of {other}.", err=True)
    sys.exit(0 if answer.is_success else 1)


async def _up(
    commands: list[list[str]],
    environ: dict[str, str],
    walk: Coroutine[Any, Any, None] | None,
    revive: Callable[[], bool] | None,
) -> int:
    stop = asyncio.Event()
    up.stop_on_signals(stop)
    looking = None if revive is None else asyncio.create_task(up.look_after(revive, stop))
    try:
        return await _run_all(commands, environ, walk, stop)
    finally:
        stop.set()
        if looking is not None:
            await looking


async def _run_all(
    commands: list[list[str]], environ: dict[str, str], walk: Coroutine[Any, Any, None] | None, stop: asyncio.Event
) -> int:
    running = asyncio.create_task(up.run(commands, environ, stop))
    if walk is None:
        return await running
    walking = asyncio.create_task(walk)
    await asyncio.wait([running, walking], return_when=asyncio.FIRST_COMPLETED)
    # Told to stop, the processes end under the walk: what it says of that is of no use to anybody.
    failed = not stop.is_set() and walking.done() and walking.exception() is not None
    if failed:
        stop.set()
    code = await running
    walking.cancel()
    await asyncio.wait([walking])
    if failed:
        walking.result()
    return code


class _Server(uvicorn.Server):
    """A server that ends well when it is told to: the library's own would end by the signal that it caught."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen, and says so."""
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to us."""
        yield

    def end(self) -> None:
        """Drains and ends."""
        self.should_exit = True

    def part_with_callers(self) -> None:
        """Has every connection end with its next answer, so that few are left when the end comes. Known to be so within
        a second, when the library looks."""
        self.config.encoded_headers.append((b"connection", b"close"))


async def _web(loaded: Settings, application: app.Application, parent: int | None) -> None:
    """Serves callbacks and, at their port, the other calls until a signal, or until the parent is gone. Not ready comes
    first, then what is under way may finish."""
    parts = [(application, loaded.port), (app.desk_of(application), loaded.admin_port or 0)]
    servers = [_Server(_config_of(loaded, one, port)) for one, port in parts if one is not None]
    stop = asyncio.Event()
    up.stop_on_signals(stop)
    ending = asyncio.create_task(_end_after(stop, loaded, application, servers))
    watch = asyncio.create_task(up.watch_parent(parent, stop.set))
    serving = [asyncio.create_task(servers[0].serve())]
    # Not before: where the public port cannot be listened on, the application has to end at once.
    if len(servers) > 1 and await _first(servers[0].listening.wait(), serving[0]):
        app.desk_is_open(application)
        serving.append(asyncio.create_task(servers[1].serve()))
        serving[1].add_done_callback(lambda _: app.desk_is_closed(application))
    # None is of use without the other: if one cannot go on, the process ends, and is started again.
    await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
    for server in servers:
        server.end()
    app.end_waits(application)
    await asyncio.gather(*serving)
    for task in (ending, watch):
        task.cancel()


async def _first(one: Coroutine[Any, Any, object], other: asyncio.Task[None]) -> bool:
    """Waits for either, and tells whether the first was the first."""
    waiting = asyncio.create_task(one)
    await asyncio.wait([waiting, other], return_when=asyncio.FIRST_COMPLETED)
    return waiting.done() or not waiting.cancel()


async def _end_after(
    stop: asyncio.Event, loaded: Settings, application: app.Application, servers: Sequence[_Server]
) -> None:
    """What a signal begins: not ready, then no new connections once the load balancer had its time."""
    await stop.wait()
    app.leave(application)
    if loaded.stop_delay_seconds is not None:
        logger().info("web.leaving", seconds=loaded.stop_delay_seconds)
        for server in servers:
            server.part_with_callers()
        await asyncio.sleep(loaded.stop_delay_seconds)
    app.end_waits(application)
    for server in servers:
        server.end()


def _config_of(loaded: Settings, application: Any, port: int) -> FrontConfig:
    """How a web process listens. Without trusted proxies nobody's word is taken for where a request came from."""
    limit, seconds = loaded.head_limit_bytes, loaded.head_timeout_seconds
    config = FrontConfig(application, loaded.host, port, head_limit=limit, head_seconds=seconds)
    config.proxy_headers = bool(loaded.trusted_proxies)
    config.forwarded_allow_ips = list(loaded.trusted_proxies)
    return config


@asynccontextmanager
async def _shown(loaded: Settings, port: int, application: Any) -> AsyncIterator[None]:
    """Serves an application beside the block."""
    server = _Server(_config_of(loaded, application, port))
    serving = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        server.end()
        await serving


async def _serve(config: uvicorn.Config, parent: int | None) -> None:
    """Serves until a signal, or until the parent is gone. What is under way may finish first."""
    server = _Server(config)
    stop = asyncio.Event()
    up.stop_on_signals(stop)
    watches = [asyncio.create_task(up.watch_parent(parent, stop.set)), asyncio.create_task(_end_on(stop, server))]
    await server.serve()
    for watch in watches:
        watch.cancel()


async def _end_on(stop: asyncio.Event, server: _Server) -> None:
    await stop.wait()
    server.end()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a long-lived process on the quicker event loop, where there is one."""
    with asyncio.Runner(loop_factory=_NEW_LOOP) as runner:
        runner.run(work)


def _refuse_taken(host: str, port: int, means: str = "--port (of up), PORT or HOST") -> None:
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror})"
        raise SettingsError(f"{host}:{port} {reason}: choose another with {means}.") from None


if __name__ == "__main__":
    main()
