"""Owns what the service says about itself: log lines, the request id and the metrics.

One log line per outcome, named in the past tense, with counts and ids. No address, key or token is ever passed in.
"""

import itertools
import logging
import re
import sys
import traceback
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram

from service.errors import KahunaSyncError

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)

_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestIds:
    """Ids for the requests of one process: the caller's own where it is sane, else the next of ours. A prefix that is
    drawn once and a number cost a tenth of what a draw for each request would."""

    def __init__(self) -> None:
        self._prefix = uuid.uuid4().hex[:20]
        self._numbers = itertools.count()

    def next(self, received: str) -> str:
        """The id of one more request, which came with `received` (empty if with none)."""
        if received and _SANE_REQUEST_ID.fullmatch(received):
            return received
        return f"{self._prefix}{next(self._numbers):012x}"


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
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[_drop_meta, last])
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


def logger() -> structlog.typing.FilteringBoundLogger:
    """The one logger. Asked for where it is used, so that tests and processes can each set it up."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return log


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


class Metrics:
    """The counters of one process, in a registry of their own. Labels are from closed lists, never an address."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.callbacks = Counter(
            "kahuna_sync_callbacks",
            "Callbacks by channel and answer: the status, or for a 200 the batch's state (applied, recorded, spooled)",
            ["channel", "answer"],
            registry=self.registry,
        )
        self.entries = Counter(
            "kahuna_sync_entries",
            "Entries of callbacks by channel and outcome: accepted, duplicates or rejected",
            ["channel", "outcome"],
            registry=self.registry,
        )
        self._requests = Histogram(
            "kahuna_sync_request_seconds",
            "Seconds to answer, by route and status",
            ["route", "status"],
            registry=self.registry,
        )
        self._timed: dict[tuple[str, int], Histogram] = {}
        self._counted: dict[tuple[Counter, str, str], Counter] = {}

    def note_request(self, route: str, status: int, seconds: float) -> None:
        """How long a request took."""
        timed = self._timed.get((route, status))
        if timed is None:
            timed = self._timed[route, status] = self._requests.labels(route, str(status))
        timed.observe(seconds)

    def count(self, counter: Counter, channel: str, label: str, count: int = 1) -> None:
        """Adds to a counter of this channel. What labels stand for is looked up once: it is half the price."""
        counted = self._counted.get((counter, channel, label))
        if counted is None:
            counted = self._counted[counter, channel, label] = counter.labels(channel, label)
        counted.inc(count)
