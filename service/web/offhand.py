"""Owns the usual question about one address, answered offhand: by plain calls, from the connection to the shared lookup
and back, without a task of its own. It answers what the ordinary way would, byte for byte.

Refuses whatever is not quite usual, and whatever has to be refused: that goes the ordinary way, which has the words.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from time import perf_counter
from typing import Final, TypeAlias
from urllib.parse import unquote

from starlette.responses import Response

from service.domain.addresses import LONGEST_RAW
from service.errors import KahunaSyncError
from service.store.access import Caller
from service.store.suppressions import CauseRow, Subject
from service.telemetry import RequestIds, logger
from service.web.callers import token_in
from service.web.http import Service, namespace_for, problem, problem_of
from service.web.problems import PROBLEMS
from service.web.subject import subject_at
from service.web.suppressions import PREFIX, STATUS_PATH, place_in, status_now, tagged

Tell: TypeAlias = Callable[[int, bytes, bytes], None]
"""Sends an answer: its status, its headers as they are written, each with the end of its line, and its body."""

Take: TypeAlias = Callable[[bytes, Mapping[bytes, bytes], Tell], bool]
"""Takes a request, by its target and its headers, or leaves it."""

_PREFIX: Final = PREFIX.encode()


class Offhand:
    """Takes questions from connections. What it needs to know of the caller it must know already: who is not known, or
    not any more, is asked about on the ordinary way."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ids = RequestIds()

    def take(self, target: bytes, headers: Mapping[bytes, bytes], tell: Tell) -> bool:
        """Takes a GET without a body, which will be told its answer once, in a later turn of the event loop; or leaves
        it as it came, counted nowhere."""
        if not target.startswith(_PREFIX) or b"?" in target or b"#" in target:
            return False
        try:
            subject = self._subject(target, headers)
        except Exception:  # noqa: BLE001 (whatever is wrong with it: the ordinary way has the words)
            return False
        if subject is None:
            return False
        request_id = self._ids.next(headers.get(b"x-request-id", b"").decode("latin-1"))
        has = headers.get(b"if-none-match", b"").decode("latin-1")
        self._service.lookups.enlist(subject, _Question(self._service, subject, request_id, has, tell))
        return True

    def _subject(self, target: bytes, headers: Mapping[bytes, bytes]) -> Subject | None:
        """What is asked about. The call is counted with it."""
        service, place = self._service, place_in(unquote(target.decode("ascii")))
        now = service.now
        caller = self._caller(headers, now)
        if place is None or len(place[1]) > LONGEST_RAW or caller is None or service.lookups.full:
            return None
        subject = subject_at(*place, target, caller, namespace_for(service, caller, None))
        service.callers.count(caller, now)
        return subject

    def _caller(self, headers: Mapping[bytes, bytes], now: datetime) -> Caller | None:
        """Who is calling, if that is known, and may ask."""
        token = token_in(headers.get(b"authorization", b"").decode("latin-1"))
        caller = self._service.callers.known(token, now)
        return caller if caller is not None and "read" in caller.scopes else None


class _Question:
    """A request that waits for the shared lookup. `has` is its `If-None-Match`."""

    __slots__ = ("_has", "_id", "_service", "_started", "_subject", "_tell")

    def __init__(self, service: Service, subject: Subject, request_id: str, has: str, tell: Tell) -> None:
        self._service = service
        self._subject = subject
        self._id = request_id
        self._has = has
        self._tell = tell
        self._started = perf_counter()

    def done(self) -> bool:
        """It is told in any case: also one that nobody listens to any more counts as answered."""
        return False

    def set_result(self, causes: list[CauseRow]) -> None:
        """Answers with the status."""
        try:
            response: Response = tagged(self._has, status_now(self._service, self._subject, causes))
        except Exception as error:  # noqa: BLE001 (it is this question's alone, and no other hears of it)
            self._fail(error)
        else:
            self._send(response)

    def set_exception(self, error: BaseException) -> None:
        """Answers with the problem that it is."""
        if isinstance(error, KahunaSyncError):
            self._send(problem_of(error))
        else:
            self._fail(error)

    def cancel(self) -> None:
        """Answers that nobody will find out."""
        self._send(problem(500, "internal-error", PROBLEMS["internal-error"].says))

    def _send(self, response: Response) -> None:
        status = response.status_code
        lines = [b"%b: %b\r\n" % header for header in response.raw_headers]
        self._tell(status, b"%bx-request-id: %b\r\n" % (b"".join(lines), self._id.encode()), bytes(response.body))
        self._service.metrics.requests.add(perf_counter() - self._started, STATUS_PATH, str(status))

    def _fail(self, error: BaseException) -> None:
        """Answers that it is a fault of ours. First of all: where nothing can be logged, they wait all the same."""
        self.cancel()
        logger().error("request.failed", request_id=self._id, route=STATUS_PATH, exc_info=error)
