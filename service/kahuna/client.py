"""One thin client for Kahuna's REST APIs: one request, one answer, or one error that says what to think of it.

Owns authentication, the environment, time limits, and the translation of every outcome into `errors`. Refuses to
retry, to cut and to queue: those need a memory that outlives a call, and belong to whoever has one.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import MappingProxyType, TracebackType
from typing import Final, Literal, Self

import httpx

from service.kahuna import errors, wire
from service.settings import Secret

# Read on Kahuna's own help pages, verb and `env` parameter included. No path here is an assumption.
EMAIL_SYNC_PATH: Final = "/api/emailsync"
SMS_SYNC_PATH: Final = "/api/smssync"

# Raised before a byte of the request is written, or for want of anything to write it to.
_NEVER_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
# What is said of the entries themselves is 400 alone (and 422, which says the same more exactly). Everything else, such
# as the 404 of a wrong base URL, is about the caller or the moment: nothing that was sent may be condemned for it.
_ERRORS: Final = MappingProxyType(
    {
        400: errors.BadRequest,
        401: errors.CredentialsRefused,
        403: errors.NotPermitted,
        409: errors.NotPermitted,
        413: errors.TooLarge,
        422: errors.BadRequest,
        429: errors.RateLimited,
    }
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """One namespace of Kahuna in one environment: `p` for production, `s` for the sandbox."""

    base_url: str
    env: Literal["p", "s"]
    secret_key: Secret
    api_key: Secret


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds. `read` and `write` are for each silence; `deadline` is for the whole call, however chatty."""

    connect: float = 5.0
    pool: float = 10.0
    write: float = 30.0
    read: float = 30.0
    deadline: float = 60.0


class KahunaClient:
    """Speaks for one namespace. Use as an async context manager; safe for any number of concurrent calls."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        timeouts: Timeouts = Timeouts(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._deadline = timeouts.deadline
        self._clock = clock
        self._http = httpx.AsyncClient(
            base_url=credentials.base_url,
            # The Secret Key is the user name and the API Key the password: not the order one would guess.
            auth=httpx.BasicAuth(credentials.secret_key.reveal(), credentials.api_key.reveal()),
            params={"env": credentials.env},
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            timeout=httpx.Timeout(
                connect=timeouts.connect, read=timeouts.read, write=timeouts.write, pool=timeouts.pool
            ),
            # A redirect would carry addresses, or the keys, to a host that nobody configured.
            follow_redirects=False,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def email_sync(
        self, entries: Sequence[wire.EmailSyncEntry], *, request_id: str | None = None
    ) -> wire.SyncAnswer:
        """Tell Kahuna about e-mail errors and unsubscribes, in one request."""
        return await self._sync("email_sync", EMAIL_SYNC_PATH, entries, request_id)

    async def sms_sync(self, entries: Sequence[wire.SmsSyncEntry], *, request_id: str | None = None) -> wire.SyncAnswer:
        """Tell Kahuna which numbers must not be messaged, or opted in again, in one request."""
        return await self._sync("sms_sync", SMS_SYNC_PATH, entries, request_id)

    async def _sync(
        self, api: str, path: str, entries: Sequence[wire.SyncEntry], request_id: str | None
    ) -> wire.SyncAnswer:
        answer = await self._call(api, "POST", path, wire.encode(entries), request_id)
        return wire.read_sync_answer(answer.content, len(entries), api=api, status=answer.status_code)

    async def _call(
        self, api: str, method: str, path: str, content: bytes, request_id: str | None = None
    ) -> httpx.Response:
        """The one way out. Returns only an answer with a 2xx status; everything else is a KahunaError."""
        headers = {"X-Request-ID": request_id} if request_id is not None else None
        # Causes are cut off (`from None`) and only their type is told: an httpx error carries the request, and with it
        # the keys and the addresses.
        try:
            async with asyncio.timeout(self._deadline):
                answer = await self._http.request(method, path, content=content, headers=headers)
        except _NEVER_SENT as error:
            raise errors.Unreachable(api, cause=type(error).__name__) from None
        except httpx.RequestError as error:
            raise errors.Ambiguous(api, cause=type(error).__name__) from None
        except TimeoutError:
            raise errors.Ambiguous(api, cause="deadline") from None
        if not answer.is_success:
            raise self._refusal(api, answer)
        return answer

    def _refusal(self, api: str, answer: httpx.Response) -> errors.KahunaError:
        status = answer.status_code
        wait = retry_after(answer.headers.get("Retry-After", ""), self._clock())
        return _ERRORS.get(status, errors.Unavailable)(api, status, wait)


def retry_after(value: str, now: float) -> float | None:
    """Seconds to wait, from either form of the header: a count or an HTTP date. None for anything else.

    Unbounded above: how long is too long is the caller's to say.
    """
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        # An offset of -0000 gives a naive moment; HTTP dates are UTC whatever they say.
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, aware.timestamp() - now)
    except (ValueError, OverflowError):
        return None
