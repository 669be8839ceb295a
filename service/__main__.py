"""The command line, and the only reader of its arguments: `kahuna-sync`, the same as `python -m service`."""

import asyncio
import errno
import gc
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import click
import httpx
from rich.console import Console
from rich.table import Column, Table

from service import (
    app,
    cases,
    demo,
    desk,
    doctor,
    embedded,
    explaining,
    operation,
    reconciling,
    reverting,
    serving,
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
from service.loading import load
from service.operation import NAMESPACE, started, with_database
from service.settings import Secret, Settings
from service.store import access, migrations
from service.store.database import Database
from service.telemetry import Metrics, set_up_logging

try:
    import uvloop

    _NEW_LOOP: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
except ImportError:  # not made for every system
    _NEW_LOOP = asyncio.new_event_loop

SWITCH_SECONDS = 0.0005
"""For how long a thread of ours computes before another has its turn."""

_MEANS = "--port (of up), PORT or HOST"
_PARENT = click.option("--parent", type=int, hidden=True, help="End when this process does.")


SECTIONS: Final = {
    "Run": ("up", "web", "worker", "migrate", "token"),
    "Look": ("address", "clock", "circuits", "imports", "retractions", "violations", "quality", "doctor", "export"),
    "Decide": ("corrections", "quarantine", "reviews", "reconcile", "surges", "revert"),
    "Bring in, repair and prove": ("import", "backfill", "replay", "rebuild", "new-epoch"),
    "Try, and call Kahuna": ("simulator", "send", "kahuna"),
}
"""The commands, by what somebody is about to do."""


class Sectioned(click.Group):
    """Shows its commands by section, in the order of a day's work."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One list for each section; a command that is in none would come last."""
        named = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in named)
        limit = formatter.width - 6 - max(map(len, self.commands))
        for title, names in (*SECTIONS.items(), ("Others", others)):
            if names:
                with formatter.section(title):
                    formatter.write_dl([(name, self.commands[name].get_short_help_str(limit)) for name in names])


@click.group(cls=Sectioned, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kahuna-sync", message="kahuna-sync %(version)s")
def cli() -> None:
    """Keeps a company's suppression list and Kahuna's in agreement."""


COMMANDS = (
    *explaining.COMMANDS,
    *desk.COMMANDS,
    *cases.COMMANDS,
    *reconciling.COMMANDS,
    *operation.COMMANDS,
    reverting.revert_command,
)
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
    with ExitStack() as stack:
        loaded = stack.enter_context(started(environ, namespaces=True, speaker="up"))
        embeds = load(environ).database_url is None
        _refuse_ports(loaded)
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
        grace = serving.grace_of(loaded) + (serving.MARGIN if loaded.web_workers > 1 else 0.0)
        code = asyncio.run(_up(commands, environ, walk, revive, grace))
    sys.exit(code)


def _say_where(loaded: Settings, *, embeds: bool) -> None:
    url = f"http://{f'[{loaded.host}]' if ':' in loaded.host else loaded.host}:{loaded.port}"
    namespace = loaded.main_namespace or loaded.namespaces[0]
    token = "/$CALLBACK_TOKEN" if namespace.callback_token else ""
    where = (
        f"database and spool are in {loaded.data_dir.absolute()}" if embeds else "the database is that of DATABASE_URL"
    )
    click.echo(f"Kahuna Sync starts on {url}; {where}.", err=True)
    if loaded.admin_port is not None:
        click.echo(f"All but the callbacks is at port {loaded.admin_port} (ADMIN_PORT).", err=True)
    click.echo("Next, in another shell with the same variables:", err=True)
    click.echo("  kahuna-sync token create --name me --scopes read,write,admin", err=True)
    click.echo(f"  kahuna-sync send email FILE --to {url}/webhooks/{namespace.name}/email{token}", err=True)


@cli.command("web")
@click.option("--workers", type=click.IntRange(1), help="Processes that share the ports (default: WEB_WORKERS, 1).")
@click.option("--one-of", hidden=True, help="What one of several processes got from their parent.")
@_PARENT
def web_command(workers: int | None, one_of: str | None, parent: int | None) -> None:
    """The web process: callbacks and queries."""
    environ = dict(os.environ) | ({"WEB_WORKERS": str(workers)} if workers else {})
    inherited = None if one_of is None else serving.Inherited.read(one_of)
    with started(environ, namespaces=True, speaker="web" if inherited is None else inherited.speaker) as loaded:
        if loaded.web_workers > 1 and inherited is None:
            environ["DATABASE_URL"] = loaded.database_url or ""
            sys.exit(_share(loaded, environ, parent))
        if inherited is None:
            _refuse_taken(loaded.host, loaded.port)
            if loaded.admin_port is not None:
                _refuse_taken(loaded.host, loaded.admin_port, "ADMIN_PORT or HOST")
        trace = serving.spans_of(loaded, "web" if inherited is None else inherited.speaker)
        metrics = Metrics(None if inherited is None else inherited.board())
        # The event loop waits so long for its turn while a large body is read, at each of its own.
        sys.setswitchinterval(SWITCH_SECONDS)

        async def serve() -> None:
            async with trace(metrics) as tracer:
                application = app.build(loaded, metrics=metrics, tracer=tracer)
                # What start-up made stays for good: looked through again and again, it costs a tenth of every callback.
                gc.freeze()
                gc.set_threshold(20_000, 50, 100)
                await serving.web(loaded, application, parent, inherited)

        _run(serve())


def _share(loaded: Settings, environ: dict[str, str], parent: int | None) -> int:
    """Runs several web processes that share the ports; returns the exit code."""
    # Settings that a web process would refuse are refused here, before there are several to do so.
    app.build(loaded)
    serving.spans_of(loaded, "web")
    ports = [_listen(loaded.host, loaded.port)]
    if loaded.admin_port is not None:
        ports.append(_listen(loaded.host, loaded.admin_port, "ADMIN_PORT or HOST"))
    return asyncio.run(serving.several(loaded, environ, ports, parent))


@cli.command("worker")
@_PARENT
def worker_command(parent: int | None) -> None:
    """The worker process: corrections, reconciliations, leftovers."""

    async def work(loaded: Settings) -> None:
        stop = asyncio.Event()
        up.stop_on_signals(stop)
        watch = asyncio.create_task(up.watch_parent(parent, stop.set))
        trace = serving.spans_of(loaded, "worker")
        if loaded.worker_port is None:
            await worker.run(loaded, stop, trace=trace)
        else:
            await worker.run(loaded, stop, show=partial(serving.shown, loaded, loaded.worker_port), trace=trace)
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
    loaded = load(os.environ)
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
    _run(serving.serve(FrontConfig(simulator, host, port), parent))


@cli.group("token")
def token_group() -> None:
    """API tokens of the services that query."""


SCOPES_HELP: Final = (
    "Comma-separated, of: read (ask: status, check, export, feed, history), write (stop, reactivate, import), admin "
    "(everything under /v1/admin: look, decide, take back, the bodies of callbacks). None includes another."
)


@token_group.command("create")
@click.option("--name", required=True, help="Who will use it; shown in lists and in the audit log.")
@click.option("--scopes", required=True, help=SCOPES_HELP)
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
        settings.chosen(load(os.environ), namespace)
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
    loaded = load(os.environ)
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
    if "X-Request-ID" in answer.headers:
        click.echo(f"X-Request-ID: {answer.headers['X-Request-ID']}", err=True)
    other = "sms" if channel == "email" else "email"
    if not answer.is_success and re.search(rf"/{other}(_callback)?(/|$)", to):
        click.echo(f"This was signed as a callback of {channel}, but the URL is the webhook of {other}.", err=True)
    sys.exit(0 if answer.is_success else 1)


async def _up(
    commands: list[list[str]],
    environ: dict[str, str],
    walk: Coroutine[Any, Any, None] | None,
    revive: Callable[[], bool] | None,
    grace: float,
) -> int:
    stop = asyncio.Event()
    up.stop_on_signals(stop)
    looking = None if revive is None else asyncio.create_task(up.look_after(revive, stop))
    try:
        return await _run_all(commands, environ, walk, stop, grace)
    finally:
        stop.set()
        if looking is not None:
            await looking


async def _run_all(
    commands: list[list[str]],
    environ: dict[str, str],
    walk: Coroutine[Any, Any, None] | None,
    stop: asyncio.Event,
    grace: float,
) -> int:
    running = asyncio.create_task(up.run(commands, environ, stop, grace=grace))
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


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a long-lived process on the quicker event loop, where there is one."""
    with asyncio.Runner(loop_factory=_NEW_LOOP) as runner:
        runner.run(work)


def _refuse_ports(loaded: Settings) -> None:
    """What all of `up` listens on must be free, and apart: a child that cannot listen would say so again and again."""
    taken: dict[int, str] = {}
    ports = [("PORT", loaded.port), ("ADMIN_PORT", loaded.admin_port), ("WORKER_PORT", loaded.worker_port)]
    for name, port in ports:
        if port is None:
            continue
        if port in taken:
            raise SettingsError(f"{name} must be another port than {taken[port]}: both processes run on this machine.")
        taken[port] = name
        _refuse_taken(loaded.host, port, _MEANS if name == "PORT" else f"{name} or HOST")


def _refuse_taken(host: str, port: int, means: str = _MEANS) -> None:
    for one in _listen(host, port, means):
        one.close()


def _listen(host: str, port: int, means: str = _MEANS) -> list[socket.socket]:
    """Sockets at which connections wait to be accepted, at every address that the host's name has here."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return serving.listening_at([(family, address) for family, *_, address in found])
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror})"
        raise SettingsError(f"{host}:{port} {reason}: choose another with {means}.") from None


if __name__ == "__main__":
    main()
