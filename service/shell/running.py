"""Owns the run of one command: settings, client, rehearsal, progress, how far it got, and a polite end on Ctrl-C.

Refuses to know any API. The first Ctrl-C lets a request that sends something come to its end, so that it is known what
was done; the second one, or the first while nothing is being sent, ends at once.
"""

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from service import settings
from service.errors import SettingsError
from service.kahuna import Contract, Credentials, KahunaClient, KahunaError, WrongCorrection, WrongCredentials
from service.kahuna.rehearsal import Rehearsal
from service.loading import load
from service.settings import Namespace
from service.shell import printing
from service.shell.printing import Ended

_T = TypeVar("_T")


def _is_somebody_there() -> bool:
    return sys.stdin.isatty()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a command meets: variables, how a client is made, the time in Unix seconds, and whether somebody is there
    to be asked."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    connect: Callable[..., KahunaClient] = KahunaClient
    clock: Callable[[], float] = time.time
    may_ask: Callable[[], bool] = _is_somebody_there


@dataclass(frozen=True, slots=True)
class Order:
    """What every command is told beside its own options. `danger` says what a slip would do, if it would hurt;
    `repeatable` whether a second time does no harm."""

    name: str
    namespace: str | None
    dry_run: bool
    yes: bool
    danger: str | None
    repeatable: bool


class Session:
    """One command under way: its client, and how it tells of itself.

    `done` counts the items that were answered; `repeatable` is whether what was given may be sent again without harm.
    """

    def __init__(self, kahuna: KahunaClient, namespace: str, order: Order, clock: Callable[[], float]) -> None:
        self.kahuna = kahuna
        self.namespace = namespace
        self.rehearsing = order.dry_run
        self.repeatable = order.repeatable
        self.clock = clock
        self.interrupts = Interrupts()
        self.notes: list[str] = []
        self.done = 0
        self._progress = Progress()

    def print(self, *values: Any) -> None:
        """Results, each as a line on standard output. A rehearsal has none: its answers are nobody's."""
        if not self.rehearsing and values:
            click.echo(b"".join(map(printing.line, values)), nl=False)

    def tell(self, text: str, *, lasting: bool = False) -> None:
        """Progress on standard error; what is `lasting` also where nobody watches."""
        self._progress.show(text, lasting)

    async def in_requests(
        self, items: Iterator[_T], size: int, unit: str, send: Callable[[list[_T]], Awaitable[object]], skipped: int = 0
    ) -> None:
        """Sends items so many at a time, in order, and keeps count. No items are one empty call of `send`."""
        self.done = skipped
        while True:
            with self._counting(unit), self.interrupts.reading():
                some = list(itertools.islice(items, size))
            if not some and self.done:
                return
            with self._counting(unit), self.interrupts.sending():
                await send(some)
                self.done += len(some)
            self.tell(f"{self.done} {unit} answered")
            if len(some) < size:
                return

    @contextmanager
    def _counting(self, unit: str) -> Iterator[None]:
        """Says in a failure how far it got."""
        try:
            yield
        except KahunaError as error:
            self.done += error.done.index if error.done else 0
            self.notes.extend(self._far(unit))
            raise
        except (Interrupted, asyncio.CancelledError):
            self.notes.extend(self._far(unit))
            raise
        except click.UsageError as error:
            raise click.UsageError(" ".join([error.message, *self._far(unit)])) from None

    def _far(self, unit: str) -> list[str]:
        return [f"{self.done} {unit} were answered; --skip {self.done} goes on after them."] if self.done else []

    def end_progress(self) -> None:
        """Takes the progress off the screen."""
        self._progress.end()


class Progress:
    """One line on a terminal that changes; elsewhere only what is lasting, line by line."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._status: Status | None = None
        self._last = ""

    def show(self, text: str, lasting: bool) -> None:
        """This, instead of what was shown before. It may hold the vendor's words."""
        text = printing.printable(text)
        if not self._console.is_terminal:
            if lasting and text != self._last:
                click.echo(text, err=True)
            self._last = text
        elif self._status is None:
            self._status = self._console.status(Text(text))
            self._status.start()
        else:
            self._status.update(Text(text))

    def end(self) -> None:
        """Nothing is shown any more."""
        if self._status is not None:
            self._status.stop()


class Interrupted(Exception):
    """Ctrl-C came while nothing was under way, or what was has come to its end."""


class Interrupts:
    """What Ctrl-C does, by what is going on. Use as a context manager, in the task that is to be ended."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._before: Any = None
        self._is_reading = False
        self._is_sending = False
        self._asked = False
        self.cut_short = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Input may block for ever, the loop with it; nothing is lost by leaving it. Interrupted if it was left."""
        self._is_reading = True
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted from None
        finally:
            self._is_reading = False

    @contextmanager
    def sending(self) -> Iterator[None]:
        """A request may come to its end first. Interrupted after that."""
        self._is_sending = True
        try:
            yield
        finally:
            self._is_sending = False
        if self._asked:
            raise Interrupted

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        if self._is_reading:
            raise KeyboardInterrupt
        if self._is_sending and not self._asked:
            click.echo("Ending after the request that is under way; Ctrl-C again ends at once.", err=True)
        elif self._task is not None:
            self.cut_short = self._is_sending
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        self._asked = True


Act = Callable[[Session], Awaitable[int]]


def run(surroundings: Surroundings, order: Order, act: Act) -> int:
    """Runs a command and returns its exit code; Ended or a usage error where it has none to return."""
    try:
        loaded = load(surroundings.environ)
        namespace = settings.chosen(loaded, order.namespace)
        settings.check_namespaces(replace(loaded, namespaces=(namespace,), default_namespace=None))
        contract = _contract(namespace)
        credentials = _credentials(namespace)
    except SettingsError as error:
        raise Ended(str(error), printing.USAGE) from None
    if not order.dry_run and order.danger is not None and namespace.env == "p":
        _ask(order, namespace, surroundings.may_ask())
    more: dict[str, Any] = {"transport": Rehearsal(_show)} if order.dry_run else {"proxy": loaded.kahuna_proxy_url}
    kahuna = surroundings.connect(credentials, contract=contract, **more)
    session = Session(kahuna, namespace.name, order, surroundings.clock)
    return asyncio.run(_run(session, act))


async def _run(session: Session, act: Act) -> int:
    try:
        with session.interrupts:
            async with session.kahuna:
                return await act(session)
    except KahunaError as error:
        raise printing.ended(error, session.repeatable, session.notes) from None
    except (asyncio.CancelledError, Interrupted):
        raise Ended(" ".join(["Interrupted.", *_left_open(session)]), printing.INTERRUPTED) from None
    finally:
        session.end_progress()


def _left_open(session: Session) -> list[str]:
    """How far it got, and whether something may have gone out that nobody will tell of."""
    if not session.interrupts.cut_short:
        return session.notes
    then = "it is safe to send it again" if session.repeatable else "find out before you send it again"
    return [*session.notes, f"The request that was under way may have been processed: {then}."]


def _show(request: Any) -> None:
    click.echo(printing.line(request), nl=False)


def _ask(order: Order, namespace: Namespace, may_ask: bool) -> None:
    """What cannot be taken back, and would meet real users, needs a word."""
    if order.yes:
        return
    if not may_ask:
        raise click.UsageError(f"{order.name} {order.danger} in production: say --yes, or look first with --dry-run.")
    question = f"{order.name} {order.danger}, in production (namespace {namespace.name}). Go on?"
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        raise Ended("Interrupted. Nothing was sent.", printing.INTERRUPTED) from None
    if not agreed:
        raise Ended("Nothing was sent.", printing.USAGE)


def _credentials(namespace: Namespace) -> Credentials:
    if namespace.env is None or namespace.secret_key is None:
        raise SettingsError(f"Namespace {namespace.name} lacks KAHUNA_ENV or KAHUNA_SECRET_KEY.")
    try:
        return Credentials(namespace.base_url, namespace.env, namespace.secret_key, namespace.api_key[0])
    except WrongCredentials as error:
        raise SettingsError(f"KAHUNA_BASE_URL, KAHUNA_SECRET_KEY or KAHUNA_API_KEY: {error}.") from None


def _contract(namespace: Namespace) -> Contract:
    try:
        return Contract.corrected(namespace.contract or "")
    except WrongCorrection as error:
        raise SettingsError(f"KAHUNA_CONTRACT of namespace {namespace.name}: {error}.") from None
