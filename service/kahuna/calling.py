"""The one way to Kahuna and back: every request of every API goes through `Caller.call`.

Owns authentication, the environment, limits of time, size and number, retries, the translation of every outcome into
`errors`, and what an observer is told. Refuses to know any API's words, and to send twice what may not be.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from hashlib import md5
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

import httpx
import msgspec

from service.kahuna import errors
from service.kahuna.pacing import Times, Turn
from service.kahuna.salvage import SURROGATE
from service.settings import Secret, base_url_fault, proxy_url_fault

_T = TypeVar("_T")

# Raised before a byte of the request is written, or for want of anything to write it to.
_NEVER_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
# Whatever else a connection ends with: TLS raises errors of its own, and connecting groups of them.
_ON_THE_WAY: Final = (httpx.RequestError, httpx.InvalidURL, UnicodeError, OSError, ExceptionGroup)
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
_DETAIL_CHARACTERS: Final = 1_000


class WrongCredentials(ValueError):
    """An address that nothing can be sent to or by, or a key that cannot be written; its text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """One namespace of Kahuna in one environment: `p` for production, `s` for the sandbox.

    WrongCredentials, a ValueError, for a `base_url` that nothing can be sent to, and for a key that is no text.
    """

    base_url: str
    env: Literal["p", "s"]
    secret_key: Secret
    api_key: Secret

    def __post_init__(self) -> None:
        fault = base_url_fault(self.base_url)
        if fault is None:
            try:
                _ = httpx.URL(self.base_url).host
            except (httpx.InvalidURL, UnicodeError):
                fault = "be a URL"
        if fault is not None:
            raise WrongCredentials(f"base_url must {fault}")
        # As variables that are not UTF-8 come; found later, the error would show the key.
        if any(SURROGATE.search(key.reveal()) for key in (self.secret_key, self.api_key)):
            raise WrongCredentials("secret_key and api_key must be texts in UTF-8")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds. `read` and `write` are for each silence; `deadline` is for a whole request, however chatty.

    `pool` is for waiting until fewer than `concurrency` requests are under way. None has no end, since a caller may
    well start a thousand calls at once; over it a call is Unreachable. The waits that an API's own limits make do not
    count.
    """

    connect: float = 5.0
    pool: float | None = None
    write: float = 30.0
    read: float = 30.0
    deadline: float = 60.0


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a request is sent at most, and the seconds between: `first`, doubled each time, never over `longest`.

    A wait that Kahuna asks for counts if it is the longer one. Over `longest` it is the caller's: the error is raised
    at once, and has it as `retry_after`.
    """

    attempts: int = 4
    first: float = 1.0
    longest: float = 60.0

    @classmethod
    def none(cls) -> "Retry":
        """Every request is sent once."""
        return NO_RETRY

    def wait(self, attempt: int, asked: float | None, jitter: float) -> float | None:
        """Seconds to wait after this attempt, the first being 1; None if it is not to be repeated.

        `jitter` in [0, 1) takes up to half of our own wait away, and adds up to half to what was asked for, of which
        nothing may be missing.
        """
        if attempt >= self.attempts or (asked is not None and asked > self.longest):
            return None
        grown: float = min(self.first * 2 ** min(attempt - 1, 60), self.longest) * (1 - jitter / 2)
        return grown if asked is None else max(grown, min(asked * (1 + jitter / 2), self.longest))


NO_RETRY: Final = Retry(attempts=1)


@dataclass(frozen=True, slots=True)
class Call:
    """One request, for whoever counts them. `outcome` is `ok`, `cancelled` or an error's slug."""

    api: str
    outcome: str
    status: int | None
    seconds: float
    attempt: int
    bytes_out: int


@dataclass(frozen=True, slots=True)
class Api:
    """What is to be known of an API besides its shapes.

    Unless it is `idempotent`, a second request may have a second effect: after a failure that leaves open whether the
    first had one, the caller is told so and decides.
    """

    name: str
    idempotent: bool = True
    at_once: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status. `safe` is what its request is."""

    api: Api
    status: int
    body: bytes = field(repr=False)
    retry_after: float | None = None
    safe: bool = True

    @property
    def is_success(self) -> bool:
        """Whether the status says so; some bodies disagree."""
        return 200 <= self.status <= 299

    def document(self) -> Any:
        """The body as JSON; UnreadableAnswer if it is none."""
        try:
            return msgspec.json.decode(self.body)
        except (ValueError, RecursionError):
            pass  # and is not to be found in what is raised: it may hold the body
        raise self.unreadable("it is not JSON")

    def unreadable(self, cause: str) -> errors.UnreadableAnswer:
        """The error of a body that is not the contract's."""
        return errors.UnreadableAnswer(self.api.name, self.status, cause=cause)

    def refused(self, document: Mapping[str, Any]) -> errors.Refused:
        """The error of `success: false`."""
        return errors.Refused(self.api.name, self.status, self.retry_after, detail=_detail_of(document))

    def failure(self) -> errors.KahunaError:
        """The error of a status that is no success."""
        kind = _ERRORS.get(self.status, errors.Unavailable)
        # Half of the work may have been done before it broke.
        if not self.safe and (self.status >= 500 or self.status == 408):
            kind = errors.Ambiguous
        return kind(self.api.name, self.status, self.retry_after, detail=self._detail())

    def _detail(self) -> str | None:
        try:
            document = msgspec.json.decode(self.body)
        except (ValueError, RecursionError):
            return None
        return _detail_of(document) if isinstance(document, dict) else None


def _detail_of(document: Mapping[str, Any]) -> str | None:
    """What the common error object says in words."""
    texts = (document.get(name) for name in ("error", "error_message", "error_detail"))
    return ": ".join(text for text in texts if isinstance(text, str))[:_DETAIL_CHARACTERS] or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of an API. `repeatable` says whether this very request may be sent again after any failure.

    `turn` is taken by each attempt. `open` goes without authentication and `env`: its body has them.
    """

    api: Api
    path: str
    content: bytes = field(default=b"", repr=False)
    method: Literal["GET", "POST"] = "POST"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    repeatable: bool = True
    open: bool = False
    turn: Turn | None = None

    @property
    def safe(self) -> bool:
        """Whether a second one has no second effect."""
        return self.api.idempotent and self.repeatable

    def may_repeat(self, error: errors.KahunaError) -> bool:
        """Whether this failure may be followed by the same request."""
        if isinstance(error, errors.Unreachable | errors.RateLimited):
            return True
        if not self.safe:
            return False
        # A 404 or a redirect is about the set-up, and will be there after any wait.
        passing = error.status is None or error.status >= 500 or error.status == 408
        return isinstance(error, errors.Ambiguous | errors.Unavailable) and passing


class Caller:
    """Speaks for one namespace; safe for any number of concurrent calls, of which `concurrency` are under way."""

    def __init__(  # noqa: PLR0913 - what the client was given
        self,
        credentials: Credentials,
        *,
        proxy: Secret | None,
        transport: httpx.AsyncBaseTransport | None,
        timeouts: Timeouts,
        retry: Retry,
        times: Times,
        observe: Callable[[Call], None],
        concurrency: int,
        answer_limit: int,
    ) -> None:
        self._retry = retry
        self._times = times
        self._env = credentials.env
        self._deadline = timeouts.deadline
        self._pool = timeouts.pool
        self._observe = observe
        self._answer_limit = answer_limit
        self._slots = asyncio.Semaphore(concurrency)
        self._own_slots: dict[str, asyncio.Semaphore] = {}
        # The Secret Key is the user name and the API Key the password: not the order one would guess.
        self._auth = httpx.BasicAuth(credentials.secret_key.reveal(), credentials.api_key.reveal())
        self.http = httpx.AsyncClient(
            base_url=credentials.base_url,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(connect=timeouts.connect, read=timeouts.read, write=timeouts.write, pool=None),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            # A redirect would carry addresses, or the keys, to a host that nobody configured.
            follow_redirects=False,
            # Whatever sets cookies is no part of the contract, and would tie calls of one caller to another's.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            # A proxy that a variable of the surroundings names would see the keys on http, and nobody asked for it.
            # SSL_CERT_FILE and SSL_CERT_DIR count.
            trust_env=False,
            proxy=None if proxy is None or transport is not None else _proxy_at(proxy.reveal()),
            verify=httpx.create_ssl_context(),
            transport=transport,
        )

    async def call(self, request: Request, read: Callable[[Answer], _T]) -> _T:
        """What `read` makes of the answer, which may have any status; every failure is a KahunaError."""
        attempt = 1
        while True:
            try:
                return await self._attempt(request, read, attempt)
            except errors.KahunaError as error:
                wait = self._retry.wait(attempt, error.retry_after, self._times.jitter())
                if wait is None or not request.may_repeat(error):
                    raise
            await self._times.sleep(wait)
            attempt += 1

    async def post(
        self,
        api: Api,
        path: str,
        content: bytes,
        read: Callable[[Answer], _T],
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        repeatable: bool = True,
    ) -> _T:
        """A request as most are: a POST of JSON."""
        headers = {"Content-Type": "application/json", **headers}
        return await self.call(
            Request(api=api, path=path, content=content, headers=headers, repeatable=repeatable), read
        )

    async def _attempt(self, request: Request, read: Callable[[Answer], _T], attempt: int) -> _T:
        """One request, in its turn and its slots."""
        while True:
            # Whoever waits for a turn keeps no slot from others, so another may be faster once there is one.
            if request.turn is not None:
                await request.turn.wait()
            async with AsyncExitStack() as slots:
                await self._enter(slots, request.api)
                if request.turn is None or request.turn.take():
                    return await self._observed(request, read, attempt)

    async def _observed(self, request: Request, read: Callable[[Answer], _T], attempt: int) -> _T:
        """One request, and what the observer is told of it."""
        begun = self._times.monotonic()
        outcome, status = "cancelled", None
        try:
            answer = await self._exchange(request)
            outcome, status = "ok", answer.status
            return _read(read, answer)
        except errors.KahunaError as error:
            outcome, status = error.slug, error.status
            raise
        finally:
            seconds = self._times.monotonic() - begun
            self._observe(Call(request.api.name, outcome, status, seconds, attempt, len(request.content)))

    async def _enter(self, slots: AsyncExitStack, api: Api) -> None:
        """Its API's own slot, then one of all; Unreachable if that takes too long."""
        if api.at_once is not None:
            own = self._own_slots.setdefault(api.name, asyncio.Semaphore(api.at_once))
            await slots.enter_async_context(own)
        try:
            async with asyncio.timeout(self._pool):
                await slots.enter_async_context(self._slots)
                return
        except TimeoutError:
            pass
        raise errors.Unreachable(api.name, cause="too many requests are under way")

    async def _exchange(self, request: Request) -> Answer:
        """The only place that touches the network."""
        if self.http.is_closed:
            raise unsent(request.api, "the client is closed")
        answer: Answer | None = None
        try:
            async with asyncio.timeout(self._deadline), self._stream(request) as response:
                asked = retry_after(response.headers.get("Retry-After", ""), self._times.clock())
                answer = Answer(request.api, response.status_code, b"", asked, request.safe)
                return replace(answer, body=await self._body(answer, response))
        except _ON_THE_WAY as error:
            failure = _failure(request.api, error)
        if answer is not None and not answer.is_success:
            # The status says enough, and is what the caller decides by.
            return answer
        # Raised here and not where it was met, so that it does not carry that along, not even as its context: an httpx
        # error holds the request, and with it the keys and the addresses.
        raise failure

    def _stream(self, request: Request) -> AbstractAsyncContextManager[httpx.Response]:
        """The exchange as httpx has it."""
        return self.http.stream(
            request.method,
            request.path,
            content=request.content or None,
            headers=dict(request.headers),
            params=None if request.open else {"env": self._env},
            auth=None if request.open else self._auth,
        )

    async def _body(self, answer: Answer, response: httpx.Response) -> bytes:
        """The body as it comes. None was asked for in another encoding, whose first bytes may unpack to any number."""
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        body = bytearray()
        if encoding in ("", "identity"):
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > self._answer_limit:
                    break
            else:
                return bytes(body)
        if answer.is_success:
            raise answer.unreadable("it is too long" if body else "it is in an encoding that was not asked for")
        return b""


def _proxy_at(url: str) -> httpx.Proxy:
    """The proxy at this URL. One that speaks TLS shows a certificate, as Kahuna does."""
    fault = proxy_url_fault(url)
    if fault is None:
        try:
            return httpx.Proxy(url, ssl_context=httpx.create_ssl_context() if url.startswith("https:") else None)
        except (httpx.InvalidURL, UnicodeError):
            fault = "be a URL"
    raise WrongCredentials(f"proxy must {fault}")


def _cause_of(error: Exception) -> str:
    """The type of what broke, and the status with which a proxy refused to let us through."""
    status = str(error)[:3] if isinstance(error, httpx.ProxyError) else ""
    return f"{type(error).__name__} {status}" if status.isdigit() else type(error).__name__


def _failure(api: Api, error: Exception) -> errors.KahunaError:
    """The error of an exchange that broke. Of what broke it only the type is told."""
    if isinstance(error, httpx.InvalidURL | UnicodeError) and not isinstance(error, UnicodeDecodeError):
        return unsent(api, "it cannot be written as HTTP")
    if isinstance(error, _NEVER_SENT):
        return errors.Unreachable(api.name, cause=_cause_of(error))
    return errors.Ambiguous(api.name, cause="deadline" if type(error) is TimeoutError else type(error).__name__)


def unsent(api: Api, cause: str) -> errors.BadRequest:
    """The error of a request that is not sent, since it could not be taken."""
    return errors.BadRequest(api.name, cause=cause)


def checksum(api_key: str, value: str) -> str:
    """What User Info wants in a header: MD5 in hex of the reversed API Key and the credential's value [DOC]."""
    return md5((api_key[::-1] + value).encode(), usedforsecurity=False).hexdigest()


def _read(read: Callable[[Answer], _T], answer: Answer) -> _T:
    """What is made of the answer. Whatever it holds, a caller meets no error but those of the tree."""
    try:
        return read(answer)
    except (ValueError, OverflowError, RecursionError) as error:
        cause = type(error).__name__
    raise answer.unreadable(cause)


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
