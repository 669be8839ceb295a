"""Owns the commands: for each API its options, its call, and what its exit code means.

Refuses to know how a call is run, printed or ended: that is the same for all of them.
"""

from collections.abc import Awaitable, Callable, Iterator
from datetime import date, datetime
from functools import partial
from typing import IO, Any, Final, TypeVar

import click

from service.kahuna import (
    CampaignConfig,
    CampaignQuery,
    EmailSyncEntry,
    FlexConfig,
    FlexEvent,
    JobStatus,
    KahunaError,
    Outcome,
    Pages,
    PushConfig,
    PushMessage,
    Recipient,
    ServerRequest,
    SmsSyncEntry,
    SyncAnswer,
    UserAttributes,
    wire,
)
from service.shell import cursors, items
from service.shell.options import (
    CAMPAIGN,
    CREDENTIALS,
    CURSOR,
    FILE,
    FILE_OR_FLAGS,
    MOMENT,
    PARAMS,
    SKIP,
    START,
    Day,
    one,
    pairs,
    seconds,
)
from service.shell.printing import DONE, EXIT_CODES, NOT_ALL
from service.shell.running import Act, Order, Session, Surroundings, run

_T = TypeVar("_T")

_USERS: Final = 100
"""Users of one request: their outcomes are printed request by request."""

_ENTRIES: Final = 100_000
"""Entries of one call of a sync, all of which are held."""

_CODES: Final = "\b\nExit codes:\n" + "\n".join(f"  {code:3}  {says}" for code, says in EXIT_CODES.items())

_SHARED: Final = (
    click.Option(["--namespace"], help="Which namespace; needed only if there are several."),
    click.Option(["--dry-run"], is_flag=True, help="Print what would be sent, keys masked, and connect to nobody."),
)
_YES: Final = click.Option(["--yes"], is_flag=True, help="Do not ask, in production either.")


class Api(click.Command):
    """The command of one API."""

    def __init__(
        self, name: str, *, danger: str | None, repeatable: bool, act: Callable[..., Any], **more: Any
    ) -> None:
        params = [*more.pop("params"), *_SHARED, *([_YES] if danger else [])]
        super().__init__(name, params=params, callback=self._run, help=act.__doc__, epilog=_CODES, **more)
        self._act = act
        self._danger = danger
        self._repeatable = repeatable

    def _run(self, *, namespace: str | None, dry_run: bool, yes: bool = False, **given: Any) -> None:
        ctx = click.get_current_context()
        order = Order(ctx.info_name or "", namespace, dry_run, yes, self._danger, self._repeatable)
        act: Act = partial(self._act, **given)
        ctx.exit(run(ctx.find_object(Surroundings) or Surroundings(), order, act))


_Called = TypeVar("_Called", bound=Callable[..., Awaitable[int]])


@click.group("kahuna", epilog=_CODES)
def kahuna() -> None:
    """One call of any of Kahuna's APIs: JSON in and out.

    Input is a FILE, or - for standard input, with a JSON array or one JSON object a line. docs/kahuna.md has an example
    of each.
    """


@kahuna.group("logs", epilog=_CODES)
def logs() -> None:
    """Records of what became of messages and users. One JSON object a line."""


def _api(
    name: str, *params: click.Parameter, danger: str | None = None, repeatable: bool = True, group: click.Group = kahuna
) -> Callable[[_Called], _Called]:
    """Makes a command of a coroutine function that takes the session and its options and returns the exit code."""

    def add(act: _Called) -> _Called:
        group.add_command(Api(name, danger=danger, repeatable=repeatable, act=act, params=params))
        return act

    return add


# Data-sending APIs.


@_api(
    "server",
    FILE_OR_FLAGS,
    click.Option(["--dev-id"], help="A globally unique id of the device."),
    click.Option(["--event"], help="Name of the event, such as start."),
    pairs("--attribute", "user_info", "An attribute of the user"),
    *CREDENTIALS,
    SKIP,
    repeatable=False,
)
async def _server(session: Session, **given: Any) -> int:
    """Record what a device did and who uses it.

    Either FILE with items {"dev_id": …, "event": …, "credentials": {…}, …}, or --dev-id, --event and who uses it.
    """

    def single() -> ServerRequest:
        if not (given["dev_id"] and given["event"]):
            raise click.UsageError("Give FILE, or --dev-id and --event.")
        return ServerRequest(
            given["dev_id"], given["event"], credentials=given["credentials"], user_info=given["user_info"] or None
        )

    async def send(some: list[ServerRequest]) -> None:
        for request in some:
            session.print(await session.kahuna.server(request))

    flags = given["dev_id"] or given["event"] or given["user_info"] or given["credentials"]
    requests = _given(given["file"], ServerRequest, given["skip"], single, bool(flags))
    await session.in_requests(requests, 1, "requests", send, given["skip"])
    return DONE


@_api(
    "user-attributes",
    FILE_OR_FLAGS,
    *CREDENTIALS,
    pairs("--set", "set_", "An attribute and its value"),
    click.Option(["--unset"], multiple=True, metavar="NAME", help="An attribute to delete; may be repeated."),
    SKIP,
)
async def _user_attributes(
    session: Session,
    file: IO[bytes] | None,
    credentials: dict[str, str],
    set_: dict[str, str],
    unset: tuple[str, ...],
    skip: int,
) -> int:
    """Set, change or delete attributes of known users. Prints an outcome for each, in order.

    Either FILE with items {"target": {"email": …}, "attributes": {…}}, or one user by credentials, --set and --unset.
    """

    def single() -> UserAttributes:
        attributes = {**set_, **dict.fromkeys(unset)}
        if not (credentials and attributes):
            raise click.UsageError("Give FILE, or a credential such as --email with --set or --unset.")
        return UserAttributes(credentials, attributes)

    users = _given(file, UserAttributes, skip, single, bool(credentials or set_ or unset))
    return await _each(session, users, "users", session.kahuna.user_attributes, skip)


@_api(
    "adaptive-campaign",
    FILE,
    CAMPAIGN,
    click.Option(["--cred-type"], required=True, help="What the values of the recipients are, such as email."),
    click.Option(["--target-global-control"], is_flag=True, help="Reach the global control group too."),
    click.Option(["--observe-rate-limiting"], is_flag=True, help="Let the cooldown hold messages back."),
    PARAMS,
    START,
    click.Option(["--wait"], is_flag=True, help="Follow the job to its end; asks every 30 seconds."),
    click.Option(["--deadline"], type=float, default=3600.0, show_default=True, help="Seconds to wait at most."),
    danger="messages users",
    repeatable=False,
)
async def _adaptive_campaign(
    session: Session,
    file: IO[bytes],
    params: dict[str, str],
    start: datetime | None,
    wait: bool,
    deadline: float,
    **config: Any,
) -> int:
    """Add users to an Adaptive campaign, by a job. Prints the job, or its last status with --wait.

    FILE has items {"k_to": ["ann@example.com"], "params": {…}}. All go in one request.
    """
    with session.interrupts.reading():
        recipients = list(items.read(file, Recipient))
    if not recipients:
        raise click.UsageError("FILE has no recipients.")
    with session.interrupts.sending():
        answer = await session.kahuna.adaptive_campaign(
            CampaignConfig(**config), recipients, default_params=params, start=seconds(start)
        )
        session.notes.append(f"The job is {answer.job_id}; kahuna-sync kahuna job-status asks for it.")
        if not wait or session.rehearsing:
            session.print(answer)
            return DONE
    return await _wait_for(session, answer.job_id, deadline)


@_api(
    "job-status",
    click.Argument(["job_id"], metavar="JOB"),
    click.Option(["--wait"], is_flag=True, help="Follow it to its end; asks every 30 seconds."),
    click.Option(["--deadline"], type=float, default=3600.0, show_default=True, help="Seconds to wait at most."),
)
async def _job_status(session: Session, job_id: str, wait: bool, deadline: float) -> int:
    """How far the job of an Adaptive campaign is. Kahuna may be asked once in 30 seconds."""
    if wait and not session.rehearsing:
        return await _wait_for(session, job_id, deadline)
    status = await session.kahuna.job_status(job_id)
    session.print(status)
    return NOT_ALL if status.failed else DONE


@_api(
    "push",
    FILE_OR_FLAGS,
    *CREDENTIALS,
    click.Option(["--alert"], help="The text, for one user."),
    PARAMS,
    click.Option(["--campaign-name"], help="What the pushes are counted for."),
    click.Option(["--start"], type=MOMENT, help="When to send; at most 7 days ahead."),
    click.Option(["--optimal-hours"], type=click.IntRange(1, 24), help="Hours within which to find a good time."),
    SKIP,
    danger="messages users",
    repeatable=False,
)
async def _push(session: Session, file: IO[bytes] | None, skip: int, params: dict[str, str], **given: Any) -> int:
    """Send push notifications to chosen users. Prints an outcome for each, in order.

    Either FILE with items {"target": {"email": …}, "alert": …, "params": {…}, "config": {…}}, or one user by
    credentials and --alert.
    """
    credentials, alert = given["credentials"], given["alert"]

    def single() -> PushMessage:
        if not (credentials and alert):
            raise click.UsageError("Give FILE, or a credential such as --email and --alert.")
        return PushMessage(credentials, alert)

    config = PushConfig(
        start_time=seconds(given["start"]),
        optimal_hours=given["optimal_hours"],
        campaign_name=given["campaign_name"],
    )
    default = config if config != PushConfig() else None
    send = partial(session.kahuna.push, default_params=params, default_config=default)
    messages = _given(file, PushMessage, skip, single, bool(credentials or alert))
    return await _each(session, messages, "pushes", send, skip)


@_api("email-sync", FILE, SKIP)
async def _email_sync(session: Session, file: IO[bytes], skip: int) -> int:
    """Tell Kahuna about e-mail errors and unsubscribes. Prints the counts of all requests.

    FILE has items {"reason": "unsub", "email": …, "timestamp": Unix seconds}; the time may be left out.
    """
    return await _sync(session, items.read(file, EmailSyncEntry, skip), session.kahuna.email_sync, skip)


@_api("sms-sync", FILE, SKIP)
async def _sms_sync(session: Session, file: IO[bytes], skip: int) -> int:
    """Tell Kahuna which numbers to stop or opt in. Prints the counts of all requests.

    FILE has items {"number": …, "timestamp": Unix seconds, "opt-in": true}; without "opt-in" it is a stop. Sent again,
    an opt-in without a time counts from its second receipt.
    """

    def watched() -> Iterator[SmsSyncEntry]:
        for entry in items.read(file, SmsSyncEntry, skip):
            session.repeatable = session.repeatable and wire.is_timed(entry)
            yield entry

    return await _sync(session, watched(), session.kahuna.sms_sync, skip)


@_api("user-delete", *CREDENTIALS, danger="deletes a user's profile")
async def _user_delete(session: Session, credentials: dict[str, str]) -> int:
    """Delete a user's profile. No page of Kahuna's shows this API: try it on the sandbox first."""
    kind, value = one(credentials)
    with session.interrupts.sending():
        answer = await session.kahuna.user_delete(kind, value)
        session.print(answer)
    return DONE if answer.found else NOT_ALL


@_api("flex", FILE, CAMPAIGN, PARAMS, START, danger="messages users", repeatable=False)
async def _flex(
    session: Session, file: IO[bytes], campaign_id: int, params: dict[str, str], start: datetime | None
) -> int:
    """Fire an External Trigger campaign.

    FILE has items {"event": …, "params": {…}}. All go in one request.
    """
    with session.interrupts.reading():
        events = list(items.read(file, FlexEvent))
    if not events:
        raise click.UsageError("FILE has no events.")
    with session.interrupts.sending():
        answer = await session.kahuna.flex(FlexConfig(campaign_id, seconds(start)), events, default_params=params)
        session.print(answer)
    return DONE


# Data-retrieval APIs.


@_api(
    "user-campaign",
    FILE_OR_FLAGS,
    *CREDENTIALS,
    click.Option(["--campaign-name"], help="Of this campaign or Experience."),
    click.Option(["--suite-id"], type=int, help="Of this campaign suite."),
    click.Option(["--start"], type=MOMENT, help="From this time on."),
    click.Option(["--end"], type=MOMENT, help="Until this time."),
    click.Option(["--action"], help="Of this action, such as 'more engaged'."),
    CURSOR,
)
async def _user_campaign(
    session: Session, file: IO[bytes] | None, credentials: dict[str, str], cursor: str | None, **given: Any
) -> int:
    """Whom campaigns reached, and what those users did. One user a line; production only.

    Up to 100 users: FILE with items {"email": …}, or one by credentials. Give a question, or --cursor to go on.
    """
    with session.interrupts.reading():
        asked = (
            list(items.read(file, dict[str, str])) if file else [{kind: value} for kind, value in credentials.items()]
        )
    query = CampaignQuery(credentials=asked, **given)
    question = None if query == CampaignQuery() and not asked else query
    return await _pages(session, session.kahuna.user_campaign(question, cursor=cursor))


@_api("user-info", *CREDENTIALS)
async def _user_info(session: Session, credentials: dict[str, str]) -> int:
    """What Kahuna stores of one user: profile and events."""
    answer = await session.kahuna.user_info(*one(credentials))
    session.print(answer)
    return DONE if answer.found else NOT_ALL


@_api(
    "campaign-statistics",
    click.Option(["--campaign-id"], type=int, help="Of this campaign alone."),
    click.Option(["--start"], type=Day(), help="From this day on."),
    click.Option(["--end"], type=Day(), help="To this day."),
    CURSOR,
)
async def _campaign_statistics(
    session: Session, campaign_id: int | None, start: date | None, end: date | None, cursor: str | None
) -> int:
    """Figures of campaigns, one campaign a line. No page of Kahuna's shows this API."""
    return await _pages(session, session.kahuna.campaign_statistics(campaign_id, start, end, cursor=cursor))


def _log_command(name: str, method: str, says: str) -> None:
    async def act(session: Session, **given: Any) -> int:
        return await cursors.walk(session, name, getattr(session.kahuna, method), **given)

    act.__doc__ = f"""{says}, one record a line.

    Records from --since on and before --until. With --cursor-file they go on where the last run left off.
    """
    _api(name, *cursors.OPTIONS, group=logs)(act)


_log_command("push", "push_logs", "What became of pushes")
_log_command("in-app", "in_app_logs", "What became of in-app messages")
_log_command("email", "email_logs", "What happened to e-mails")
_log_command("user-merge", "user_merge_logs", "Which users became one")


# What several of them share.


def _given(file: IO[bytes] | None, shape: type[_T], skip: int, single: Callable[[], _T], flags: bool) -> Iterator[_T]:
    """The items of the file, or the one that the flags describe."""
    if file is None:
        return iter([single()])
    if flags:
        raise click.UsageError("Give FILE, or one item by options; not both.")
    return items.read(file, shape, skip)


async def _each(
    session: Session,
    some: Iterator[_T],
    unit: str,
    send: Callable[[list[_T]], Awaitable[tuple[Outcome, ...]]],
    skip: int,
) -> int:
    """Sends what has an outcome each, and prints them as they come."""
    failed = 0

    async def send_some(part: list[_T]) -> None:
        nonlocal failed
        outcomes = await send(part)
        session.print(*outcomes)
        failed += sum(not outcome.success for outcome in outcomes)

    await session.in_requests(some, _USERS, unit, send_some, skip)
    return _code(session, failed, f"{failed} of {session.done - skip} {unit} were refused; see the lines printed.")


async def _sync(
    session: Session, entries: Iterator[_T], send: Callable[[list[_T]], Awaitable[SyncAnswer]], skip: int
) -> int:
    """Sends entries, and prints what was said of all of them, also if it ends early."""
    said: list[SyncAnswer] = []

    async def send_some(part: list[_T]) -> None:
        try:
            said.append(await send(part))
        except KahunaError as error:
            if error.done and error.done.index:
                said.append(error.done.answer)
            raise

    try:
        await session.in_requests(entries, _ENTRIES, "entries", send_some, skip)
    finally:
        if said:
            session.print(wire.joined(said))
    rejected = sum(answer.rejected for answer in said)
    return _code(
        session, rejected, f"{rejected} of {session.done - skip} entries were refused; see the errors printed."
    )


def _code(session: Session, failed: int, says: str) -> int:
    if not failed or session.rehearsing:
        return DONE
    click.echo(f"kahuna-sync: {says}", err=True)
    return NOT_ALL


async def _wait_for(session: Session, job_id: str, deadline: float) -> int:
    session.tell(f"job {job_id}", lasting=True)

    def progress(status: JobStatus) -> None:
        session.tell(f"job {job_id}: {status.state}, {status.processed} of {status.total}", lasting=True)

    status = await session.kahuna.wait_for_job(job_id, progress=progress, deadline=deadline)
    session.print(status)
    return NOT_ALL if status.failed else DONE


async def _pages(session: Session, pages: Pages[Any]) -> int:
    """Prints records page by page, and says where to go on if it ends early."""
    count = 0
    async for page in pages.pages():
        session.print(*page.records)
        count += len(page.records)
        session.tell(f"{count} records")
        session.notes[:] = [f"--cursor {page.position.cursor} goes on."] if page.position.cursor else []
    return DONE
