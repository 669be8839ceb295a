"""The client for Kahuna's REST APIs: a method for each of the sixteen that a customer calls, in the vendor's words.

Owns which API is asked how: path, body, cuts, pages and pace. Refuses what `calling` does for all of them, and to
remember anything between calls but when a job was last asked for.

How sure a fact is stands beside it: [DOC] is read on Kahuna's help page, [CODE] seen in public clients, [SIB] stated of
a sibling API, [DATA] an internal name, [ASSUME] our choice. What is not [DOC] or [CODE] can be mended by a `Contract`.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date, datetime
from functools import partial
from math import inf
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, urlencode

import httpx

from service.kahuna import answers, contract, paging, sending, wire
from service.kahuna.calling import Api, Call, Caller, Credentials, Request, Retry, Timeouts, checksum, unsent
from service.kahuna.contract import MAX_USERS, Contract
from service.kahuna.pacing import Pace, Times
from service.kahuna.paging import MAX_RECORDS, Pages, RawPage, Span
from service.kahuna.parts import Cut, Part, Progress, Stream, in_parts, whole
from service.kahuna.reading import read_each
from service.kahuna.retrieval import (
    CampaignFigures,
    CampaignQuery,
    EmailRecord,
    InAppRecord,
    LogRecord,
    MergeRecord,
    PushRecord,
    UserCampaignRecord,
    UserInfoAnswer,
    query_body,
    query_fault,
    written,
)
from service.kahuna.sending import (
    NOTHING,
    AdaptiveAnswer,
    CampaignConfig,
    DeleteAnswer,
    FlexAnswer,
    FlexConfig,
    FlexEvent,
    JobStatus,
    Outcome,
    Params,
    PushConfig,
    PushMessage,
    Recipient,
    ServerAnswer,
    ServerRequest,
    Unencodable,
    UserAttributes,
)
from service.settings import Secret

JOB_PACE: Final = 30.0
"""Seconds between two calls [DOC]. That they are two about one job is [ASSUME]."""

ANSWER_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of an answer that are read. None is asked for compressed."""

_SERVER: Final = Api("server", idempotent=False)
_USER_ATTRIBUTES: Final = Api("user_attributes")
_ADAPTIVE_CAMPAIGN: Final = Api("adaptive_campaign", idempotent=False, at_once=10)
_JOB_STATUS: Final = Api("job_status")
_PUSH: Final = Api("push", idempotent=False)
_EMAIL_SYNC: Final = Api("email_sync")
_SMS_SYNC: Final = Api("sms_sync")
_USER_DELETE: Final = Api("user_delete")
_FLEX: Final = Api("flex", idempotent=False, at_once=10)
_USER_CAMPAIGN: Final = Api("user_campaign")
_USER_INFO: Final = Api("user_info")
_USER_MERGE_LOGS: Final = Api("user_merge_logs")
_PUSH_LOGS: Final = Api("push_logs")
_IN_APP_LOGS: Final = Api("in_app_logs")
_EMAIL_LOGS: Final = Api("email_logs")
_CAMPAIGN_STATISTICS: Final = Api("campaign_statistics")

# With these a request for one user may fail for that user's sake: unknown, or not enabled for push [CODE].
_UNKNOWN_USER: Final = frozenset({404})
_UNKNOWN_OR_DISABLED: Final = frozenset({404, 409})

_FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}

_Logged = TypeVar("_Logged", bound=LogRecord)


class KahunaClient:
    """Speaks for one namespace. Use as an async context manager; safe for any number of concurrent calls.

    Every method raises KahunaErrors alone, of the tree in `errors`. Calls that may be repeated without a second effect
    are, as `retry` says; the others are repeated only when surely nothing was done, and end in Ambiguous otherwise.
    `proxy` is the URL of one that every request goes by, with user and password if it wants them: it sees no more of an
    https address than host and port, but all of an http one, keys included. Another `transport` takes its place.
    `observe` is told of every request, and must not raise. `concurrency` is how many are under way at most. The last
    four parameters are where time comes from: Unix seconds, seconds that never go back, sleep, and a number in [0, 1).
    """

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self,
        credentials: Credentials,
        *,
        proxy: Secret | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        timeouts: Timeouts = Timeouts(),
        retry: Retry = Retry(),
        observe: Callable[[Call], None] = lambda _: None,
        contract: Contract = Contract(),
        concurrency: int = 10,
        answer_limit: int = ANSWER_LIMIT,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._times = Times(clock, monotonic, sleep, jitter)
        self._credentials = credentials
        self.contract = contract
        self._job_pace = Pace(JOB_PACE, self._times)
        self._caller = Caller(
            credentials,
            proxy=proxy,
            transport=transport,
            timeouts=timeouts,
            retry=retry,
            times=self._times,
            observe=observe,
            concurrency=concurrency,
            answer_limit=answer_limit,
        )

    async def __aenter__(self) -> Self:
        await self._caller.http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._caller.http.__aexit__(kind, error, trace)

    # Sending.

    async def server(self, request: ServerRequest) -> ServerAnswer:
        """Record what a device did and who uses it, as the SDK does.

        Not idempotent. Kahuna takes it in later: wait about 60 s before the users are used elsewhere [DOC]. Raises
        Refused for `success: false`, under 200 [CODE] and under 400 [ASSUME]. Limits: not known.
        Page: https://support.kahuna.com/hc/en-us/articles/360008462593-Server-API.
        """
        key = self._credentials.secret_key.reveal()
        try:
            content = urlencode(sending.server_form(request, key, self._credentials.env)).encode()
        except (UnicodeEncodeError, Unencodable):
            content = b""
        if not content:
            raise unsent(_SERVER, "it cannot be written as UTF-8")
        asked = Request(api=_SERVER, path=contract.SERVER_PATH, content=content, headers=_FORM, open=True)
        return await self._caller.call(asked, answers.server)

    async def user_attributes(
        self, users: Stream[UserAttributes], *, progress: Progress | None = None
    ) -> tuple[Outcome, ...]:
        """Set, change or (None [ASSUME]) delete attributes of users that Kahuna knows.

        Any number of users, sent 100 at a time [DOC]; outcomes in their order [ASSUME]. An unknown user is an outcome,
        not an error [CODE]. An error says in `done` how far it got, and `progress` is told after each request how many
        users were answered. Idempotent.
        Page: https://support.kahuna.com/hc/en-us/articles/360008462633-User-Attribute-API.
        """
        opening = b'{"user_attributes_array":'
        cut = Cut[UserAttributes](MAX_USERS, envelope=len(opening) + 1)

        async def send(part: Part, _number: int) -> list[Outcome]:
            read = partial(answers.outcomes, count=part.count, of_one=_UNKNOWN_USER)
            return await self._caller.post(
                _USER_ATTRIBUTES, contract.USER_ATTRIBUTES_PATH, opening + part.body + b"}", read
            )

        return await in_parts(_USER_ATTRIBUTES, cut.parts(users), send, answers.joined, progress)

    async def adaptive_campaign(
        self,
        config: CampaignConfig,
        recipients: Sequence[Recipient],
        *,
        default_params: Params = NOTHING,
        start: int | None = None,
    ) -> AdaptiveAnswer:
        """Add users to an Adaptive campaign, by a job that `job_status` tells of.

        Not idempotent, and not cut: each request is a job of its own. `start` in Unix seconds [SIB]; at once if None.
        At most 10 at once, the client waits; body under 10 MB, about 100,000 users, else TooLarge [DOC].
        Page: https://support.kahuna.com/hc/en-us/articles/360008279554-Adaptive-Campaign-API.
        """
        body = sending.adaptive_body(config, recipients, default_params, start, self.contract)
        path = contract.ADAPTIVE_CAMPAIGN_PATH
        return await self._caller.post(_ADAPTIVE_CAMPAIGN, path, whole(_ADAPTIVE_CAMPAIGN, body), answers.adaptive)

    async def job_status(self, job_id: str) -> JobStatus:
        """How far the job of an Adaptive campaign is.

        At most one call in 30 s [DOC], taken as one for each job [ASSUME]: the client waits until then. BadRequest for
        an unknown job [DOC]. The names in the answer are [ASSUME]; unknown states are told as they are. Idempotent.
        Page: https://support.kahuna.com/hc/en-us/articles/360008462373-Job-Status-API.
        """
        return await self._look(job_id, inf)

    async def wait_for_job(
        self, job_id: str, *, progress: Callable[[JobStatus], None] | None = None, deadline: float = 3_600.0
    ) -> JobStatus:
        """Ask for a job every 30 s until it is complete or failed; `progress` is told of each answer.

        JobUnfinished as soon as the next look would be more than `deadline` seconds after the call. A job that failed
        is returned.
        """
        end = self._times.monotonic() + deadline
        while True:
            status = await self._look(job_id, end)
            if progress is not None:
                progress(status)
            if status.finished:
                return status

    async def _look(self, job_id: str, end: float) -> JobStatus:
        if job_id in ("", ".", ".."):
            raise unsent(_JOB_STATUS, "this is no job")
        asked = Request(
            api=_JOB_STATUS,
            path=f"{contract.ADAPTIVE_CAMPAIGN_PATH}/{quote(job_id, safe='', errors='replace')}",
            method="GET",
            turn=self._job_pace.turn(_JOB_STATUS.name, job_id, end),
        )
        return await self._caller.call(asked, partial(answers.job_status, job_id=job_id, names=self.contract))

    async def push(
        self,
        messages: Stream[PushMessage],
        *,
        default_params: Params = NOTHING,
        default_config: PushConfig | None = None,
        progress: Progress | None = None,
    ) -> tuple[Outcome, ...]:
        """Send push notifications to chosen users, iOS and Android.

        Any number, sent 100 at a time [CODE]; outcomes in their order. A user who is unknown or not enabled for push is
        an outcome, not an error [CODE]. Not idempotent: an error says in `done` how far it got, and if it is one that
        `may_have_worked`, the up to 100 pushes from there on may have gone out. Whatever else ends the call (it is
        cancelled, `messages` fail) leaves what `progress` was told: how many were answered. Requests a day: at most a
        quarter of the users [DOC].
        Page: https://support.kahuna.com/hc/en-us/articles/360008319734-Push-API.
        """
        opening, closing = sending.push_envelope(whole(_PUSH, sending.push_defaults(default_params, default_config)))
        cut = Cut[PushMessage](MAX_USERS, envelope=len(opening) + len(closing), plain=sending.push_item)

        async def send(part: Part, _number: int) -> list[Outcome]:
            read = partial(answers.outcomes, count=part.count, of_one=_UNKNOWN_OR_DISABLED)
            return await self._caller.post(_PUSH, contract.PUSH_PATH, opening + part.body + closing, read)

        return await in_parts(_PUSH, cut.parts(messages), send, answers.joined, progress)

    async def email_sync(
        self, entries: Stream[wire.EmailSyncEntry], *, request_id: str | None = None, progress: Progress | None = None
    ) -> wire.SyncAnswer:
        """Tell Kahuna about e-mail errors and unsubscribes.

        Any number of entries, cut under 10 MB and at 100,000 [DOC]. Counts and `errors` are those of all requests
        [SIB]; an answer whose counts do not add up is unreadable. An error says in `done` how far it got, and
        `progress` is told after each request how many entries were answered. Idempotent.
        Page: https://support.kahuna.com/hc/en-us/articles/360008461793-Email-Sync-API.
        """
        return await self._sync(_EMAIL_SYNC, contract.EMAIL_SYNC_PATH, entries, request_id, progress)

    async def sms_sync(
        self, entries: Stream[wire.SmsSyncEntry], *, request_id: str | None = None, progress: Progress | None = None
    ) -> wire.SyncAnswer:
        """Tell Kahuna which numbers must not be messaged, or opted in again.

        As `email_sync`; the limit of a body is [SIB]. Idempotent but for an opt-in without a time, which would count
        from its second receipt: a request with one is repeated only when surely nothing was done.
        Page: https://support.kahuna.com/hc/en-us/articles/360008462493-SMS-Sync-API.
        """
        return await self._sync(_SMS_SYNC, contract.SMS_SYNC_PATH, entries, request_id, progress)

    async def user_delete(self, cred_type: str, value: str) -> DeleteAnswer:
        """Delete a user's profile.

        Path, body, checksum header and answer are modelled on User Info [ASSUME]: see `Contract`, and try it on the
        sandbox. An unknown user is an answer. Idempotent.
        Page: https://kahuna.zendesk.com/hc/en-us/articles/360008462313 [DOC], which has its name alone.
        """
        names = self.contract
        headers = self._checksum(_USER_DELETE, value) if names.user_delete_checksum else {}
        body = whole(_USER_DELETE, {names.user_delete_target: {cred_type: value}})
        return await self._caller.post(_USER_DELETE, names.user_delete_path, body, answers.user_delete, headers=headers)

    async def flex(
        self, config: FlexConfig, events: Sequence[FlexEvent], *, default_params: Params = NOTHING
    ) -> FlexAnswer:
        """Fire an External Trigger campaign for events outside Kahuna.

        Not idempotent. At most 10 at once, the client waits [DOC]. The list of events, the limit of 10 MB and the
        answer are [ASSUME].
        Page: https://support.kahuna.com/hc/en-us/articles/360008319574-Flex-API.
        """
        body = whole(_FLEX, sending.flex_body(config, events, default_params, self.contract))
        return await self._caller.post(_FLEX, contract.FLEX_PATH, body, partial(answers.flex, names=self.contract))

    # Retrieval.

    def user_campaign(
        self, query: CampaignQuery | None = None, *, cursor: str | None = None
    ) -> Pages[UserCampaignRecord]:
        """Whom campaigns reached and what those users did.

        Up to 100 users; no sandbox, so BadRequest there without a call [DOC]. Give a query, or a cursor to go on. Names
        of fields but `suite_id`, `cursor` and `more_records` are [ASSUME]. Idempotent.
        Page: https://support.kahuna.com/hc/en-us/articles/360008462673-User-Campaign-API.
        """
        api = _USER_CAMPAIGN
        if self._credentials.env != "p":
            raise unsent(api, "the sandbox does not have this API")
        fault = query_fault(query, cursor)
        if fault is not None:
            raise unsent(api, fault)
        first = {} if query is None else query_body(query, self.contract)
        fetch = self._fetcher(api, contract.USER_CAMPAIGN_PATH, (self.contract.user_campaign_records,), first)
        return paging.single(api.name, fetch, cursor, answers.user_campaigns(self.contract))

    async def user_info(self, cred_type: str, value: str) -> UserInfoAnswer:
        """The profile and events that Kahuna stores of one user.

        One credential of one user, signed by a checksum header [DOC]. An unknown user is an answer [DOC]. The body of
        the answer is [ASSUME]: fields by other names are in `extra`. Idempotent.
        Page: https://support.kahuna.com/hc/en-us/articles/360008462733-User-Info-API.
        """
        body = whole(_USER_INFO, {"target_user": {cred_type: value}})
        headers = self._checksum(_USER_INFO, value)
        read = partial(answers.user_info, names=self.contract)
        return await self._caller.post(_USER_INFO, contract.USER_INFO_PATH, body, read, headers=headers)

    def user_merge_logs(
        self,
        since: datetime | None = None,
        *,
        until: datetime | None = None,
        cursor: str | None = None,
        page_size: int = MAX_RECORDS,
    ) -> Pages[MergeRecord]:
        """Which credentials were involved when two users became one.

        As `push_logs`. The category's word and the fields are [ASSUME].
        Page: https://support.kahuna.com/hc/en-us/articles/360008462433-Logs-API-for-User-Merge.
        """
        words = (self.contract.log_user_merge, *contract.USER_MERGE_WORDS)
        return self._logs(
            _USER_MERGE_LOGS, words, answers.merge_records(self.contract), Span(since, until, cursor, page_size)
        )

    def push_logs(
        self,
        since: datetime | None = None,
        *,
        until: datetime | None = None,
        cursor: str | None = None,
        page_size: int = MAX_RECORDS,
    ) -> Pages[PushRecord]:
        """What became of pushes: records or pages of them, for as long as there are any.

        Records from `since` on and before `until`, or all until now; with a time zone. Kahuna gives the rest of a day
        at a time [DOC], so a range is asked day by day (UTC). To go on after a page give its `position`, both parts; a
        `cursor` alone goes on to the end of its own day. A record that Kahuna writes down later than it happened may be
        missed by then: an `until` some time ago leaves it that. Up to 1,000 records a page [CODE]. Idempotent.
        Page: https://support.kahuna.com/hc/en-us/articles/360008319714-Logs-API-for-Push.
        """
        read = partial(read_each, PushRecord)
        return self._logs(_PUSH_LOGS, (self.contract.log_push,), read, Span(since, until, cursor, page_size))

    def in_app_logs(
        self,
        since: datetime | None = None,
        *,
        until: datetime | None = None,
        cursor: str | None = None,
        page_size: int = MAX_RECORDS,
    ) -> Pages[InAppRecord]:
        """What became of in-app messages.

        As `push_logs`. The category's word and the fields are [ASSUME].
        Page: https://support.kahuna.com/hc/en-us/articles/360008319694-Logs-API-for-In-app-Messages.
        """
        words, read = (self.contract.log_in_app, *contract.IN_APP_WORDS), answers.in_app_records(self.contract)
        return self._logs(_IN_APP_LOGS, words, read, Span(since, until, cursor, page_size))

    def email_logs(
        self,
        since: datetime | None = None,
        *,
        until: datetime | None = None,
        cursor: str | None = None,
        page_size: int = MAX_RECORDS,
    ) -> Pages[EmailRecord]:
        """What happened to emails, several records for each possible.

        As `push_logs`. The category's word is [DATA], the fields are [ASSUME].
        Page: https://support.kahuna.com/hc/en-us/articles/360008462393-Logs-API-for-Email.
        """
        read = answers.email_records(self.contract)
        return self._logs(_EMAIL_LOGS, (self.contract.log_email,), read, Span(since, until, cursor, page_size))

    def campaign_statistics(
        self,
        campaign_id: int | None = None,
        start: date | None = None,
        end: date | None = None,
        *,
        cursor: str | None = None,
    ) -> Pages[CampaignFigures]:
        """Figures of campaigns.

        From the first day to the last; what is None is left out. Give a cursor alone to go on. Path, body and answer
        are [ASSUME]: see `Contract`. Idempotent.
        Page: https://kahuna.zendesk.com/hc/en-us/articles/360008462313 [DOC], which has its name alone.
        """
        names = self.contract
        given = {
            names.statistics_campaign: campaign_id,
            names.statistics_start: start and start.strftime(names.statistics_date),
            names.statistics_end: end and end.strftime(names.statistics_date),
        }
        first = {name: value for name, value in given.items() if value is not None}
        path = names.campaign_statistics_path
        fetch = self._fetcher(_CAMPAIGN_STATISTICS, path, (names.statistics_records,), first)
        return paging.single(_CAMPAIGN_STATISTICS.name, fetch, cursor, answers.campaign_figures(names))

    # What several of them share.

    async def _sync(
        self, api: Api, path: str, entries: Stream[Any], request_id: str | None, progress: Progress | None
    ) -> wire.SyncAnswer:
        if request_id is not None and not (request_id.isascii() and request_id.isprintable()):
            raise unsent(api, "request_id must be printable ASCII")

        async def send(part: Part, number: int) -> wire.SyncAnswer:
            read = partial(answers.sync, count=part.count, names=self.contract)
            # Requests of one call are told apart by their number, but for the first: it is often the only one.
            headers = {} if request_id is None else {"X-Request-ID": request_id + (f"-{number}" if number else "")}
            return await self._caller.post(api, path, part.body, read, headers=headers, repeatable=part.repeatable)

        # A call without entries is a request too: it tells whether the keys are taken.
        cut = Cut[wire.SyncEntry](wire.MAX_ENTRIES, repeatable=wire.is_timed, at_least_one=True)
        return await in_parts(api, cut.parts(entries), send, wire.joined, progress)

    def _checksum(self, api: Api, value: str) -> Mapping[str, str]:
        try:
            return {contract.CHECKSUM_HEADER: checksum(self._credentials.api_key.reveal(), value)}
        except UnicodeEncodeError:
            pass  # and is not to be found in what is raised: it holds the key and the value
        raise unsent(api, "it cannot be written as UTF-8")

    def _fetcher(
        self, api: Api, path: str, lists: tuple[str, ...], first: Params, always: Params = NOTHING
    ) -> paging.Fetch:
        """How a page is fetched: by the cursor, or by what is asked first."""

        async def fetch(cursor: str | None) -> RawPage:
            body = {**always, **({"cursor": cursor} if cursor is not None else first)}
            return await self._caller.post(api, path, whole(api, body), partial(paging.raw_page, names=lists))

        return fetch

    def _logs(
        self,
        api: Api,
        words: tuple[str, ...],
        read: Callable[[list[Any]], list[_Logged]],
        span: Span,
    ) -> Pages[_Logged]:
        """Records of one category; `words` are what it may be called in the answer, the first is what is asked for."""
        span.check(api)
        always = {"categories_to_return": [words[0]], "number_of_records": span.page_size}

        def fetch_from(start: datetime | None) -> paging.Fetch:
            first = {} if start is None else {"timestamp": written(start, self.contract)}
            return self._fetcher(api, contract.LOGS_PATH, words, first, always)

        return paging.ranged(api.name, fetch_from, span, read, self._times.clock)
