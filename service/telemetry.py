"""Owns what the service says about itself: log lines, the request id and the metrics.

One log line per outcome, named in the past tense, with counts and ids. No address, key or token is ever passed in.
"""

import asyncio
import itertools
import logging
import re
import sys
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Final

import structlog
from prometheus_client import CollectorRegistry

from service.boards import BUCKETS, Board, Level, Tally, Timings
from service.errors import KahunaSyncError

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)

_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def sane_request_id(received: str | None) -> str | None:
    """The id that a caller gave a request, if we took it for that of the request; never an e-mail address."""
    return received if received and _SANE_REQUEST_ID.fullmatch(received) else None


class RequestIds:
    """Ids for the requests of one process: the caller's own where it is sane, else the next of ours. A prefix that is
    drawn once and a number cost a tenth of what a draw for each request would."""

    def __init__(self) -> None:
        self._prefix = uuid.uuid4().hex[:20]
        self._numbers = itertools.count()

    def next(self, received: str) -> str:
        """The id of one more request, which came with `received` (empty if with none)."""
        return sane_request_id(received) or f"{self._prefix}{next(self._numbers):012x}"


def set_up_logging(level: str, form: str, speaker: str | None = None) -> None:
    """Sends every log line, ours and the libraries', to standard error in one form; each says which process speaks,
    where several may write to one place. What has no value is left out."""
    shared: list[structlog.typing.Processor] = [
        partial(_add_speaker, speaker),
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_request_id,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _tell_exception,
    ]
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[_drop_meta, last])
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


FilteringBoundLogger = structlog.typing.FilteringBoundLogger

_LOGGER: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()


def logger() -> structlog.typing.FilteringBoundLogger:
    """The one logger. It looks at how it is set up whenever it is used, so that tests and processes can each do so."""
    return _LOGGER


def _add_speaker(
    speaker: str | None, _logger: structlog.typing.WrappedLogger, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {key: value for key, value in {**event, "process": speaker}.items() if value is not None}


def _add_request_id(
    _logger: structlog.typing.WrappedLogger, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    request_id = REQUEST_ID.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


def _tell_exception(
    _logger: structlog.typing.WrappedLogger, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Where and what kind, never the message: that of a database error can hold an address."""
    given = event.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["exception"] = told(error)
    return event


def told(error: BaseException) -> str:
    """Where an error arose and of what kind it is; its message only if it is one of ours, which hold no address."""
    if isinstance(error, KahunaSyncError):
        return f"{type(error).__name__}: {error}"
    return "\n".join(_told(error))


def _told(error: BaseException) -> Iterator[str]:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _told(cause)
    for frame in traceback.extract_tb(error.__traceback__):
        yield f"  {frame.filename}:{frame.lineno} in {frame.name}"
    state = getattr(error, "sqlstate", None)
    yield type(error).__name__ + (f" ({state})" if isinstance(state, str) else "")


def _drop_meta(
    _logger: structlog.typing.WrappedLogger, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    event.pop("_record", None)
    event.pop("_from_structlog", None)
    return event


BEAT: Final = 0.5
"""Seconds between two looks at how late the event loop is."""


async def watch_loop(lag: Timings) -> None:
    """Notes, until it is cancelled, by how much the event loop is late: what holds it up, holds up every request."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + BEAT
        await asyncio.sleep(BEAT)
        lag.add(max(loop.time() - due, 0.0))


GROUPS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Callbacks of one transaction up to which they are counted together."""


class Metrics:
    """The counters of one process, in a registry of their own; with a board that siblings read, theirs are added to
    what is shown."""

    def __init__(self, board: Board | None = None) -> None:
        self.registry = CollectorRegistry()
        self._board = Board() if board is None else board
        self._count_receiving()
        self._count_working()
        self.requests = self._timings("request_seconds", "Seconds to answer, by route and status", "route", "status")
        self.lag = self._timings("loop_lag_seconds", "Seconds by which the event loop was late, twice a second")
        self.starts = self._tally("process_starts", "Processes that were started to do what this one does")
        self.spans = self._tally(
            "spans", "Spans of traces by what became of them: sent, or dropped since nobody took them", "outcome"
        )
        self.pool = self._level(
            "pool_connections",
            "Database connections of this process: busy, idle, or free (may still be opened)",
            "state",
        )

    def _count_receiving(self) -> None:
        self.callbacks = self._tally(
            "callbacks",
            "Callbacks by channel and answer: the status, or for a 200 the batch's state (applied, recorded, spooled)",
            "channel",
            "answer",
        )
        self.entries = self._tally(
            "entries",
            "Entries of applied callbacks by channel and outcome: accepted, duplicates or rejected",
            "channel",
            "outcome",
        )
        self.facts = self._tally(
            "facts",
            "Facts that batches (callbacks, lists, pages of Kahuna's logs) told when they were applied, by channel, "
            "reason and outcome: new, known, or, where one of several reasons told some of both, mixed",
            "channel",
            "reason",
            "outcome",
        )
        self.groups = self._timings("group_callbacks", "Callbacks that shared a transaction", "channel", bounds=GROUPS)
        self.imported = self._tally(
            "imported_lines",
            "Lines of imported lists by channel and outcome: accepted, duplicates or rejected",
            "channel",
            "outcome",
        )
        self.lookups = self._tally("lookups", "Questions about one address that were looked up")
        self.lookup_statements = self._tally("lookup_statements", "Statements that they shared")
        self.feed_waiting = self._level("feed_waiting", "Followers of the feed that wait in this process")

    def _count_working(self) -> None:
        self.pushed = self._tally(
            "pushed_corrections",
            "What came of corrections at Kahuna: sent, rejected, dead, or postponed (tried again)",
            "namespace",
            "channel",
            "outcome",
        )
        self.pushes = self._timings(
            "push_seconds",
            "Seconds that calls of Kahuna's Sync APIs took, by answer: ok, or the slug of what was wrong",
            "namespace",
            "channel",
            "answer",
        )
        self.steps = self._tally(
            "worker_steps", "Turns of the worker's loops by outcome: worked, idle or failed", "loop", "outcome"
        )

    def _tally(self, name: str, meaning: str, *labels: str) -> Tally:
        return Tally(self.registry, f"kahuna_sync_{name}", meaning, *labels, board=self._board)

    def _level(self, name: str, meaning: str, *labels: str) -> Level:
        return Level(self.registry, f"kahuna_sync_{name}", meaning, *labels, board=self._board)

    def _timings(self, name: str, meaning: str, *labels: str, bounds: Sequence[float] = BUCKETS) -> Timings:
        return Timings(self.registry, f"kahuna_sync_{name}", meaning, *labels, board=self._board, bounds=bounds)
