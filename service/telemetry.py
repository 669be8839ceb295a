"""Owns what the service says about itself: log lines, the request id and the metrics.

One log line per outcome, named in the past tense, with counts and ids. No address, key or token is ever passed in.
"""

import logging
import re
import sys
import uuid
from contextvars import ContextVar
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)

_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id_of(received: str | None) -> str:
    """The caller's request id if it is sane, else a new one."""
    return received if received and _SANE_REQUEST_ID.fullmatch(received) else uuid.uuid4().hex


def set_up_logging(level: str, form: str) -> None:
    """Sends every log line, ours and the libraries', to standard error in one form."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_request_id,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
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


def _add_request_id(
    _logger: structlog.typing.WrappedLogger, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    request_id = REQUEST_ID.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


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
            "Callbacks by channel and answer",
            ["channel", "answer"],
            registry=self.registry,
        )
        self.entries = Counter(
            "kahuna_sync_entries",
            "Entries of callbacks by channel and outcome: accepted, duplicates or rejected",
            ["channel", "outcome"],
            registry=self.registry,
        )
        self.requests = Histogram(
            "kahuna_sync_request_seconds",
            "Seconds to answer, by route and status",
            ["route", "status"],
            registry=self.registry,
        )
