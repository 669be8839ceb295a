"""Owns how requests that come at the same time share one piece of work: a transaction, or a lookup.

Nobody waits for company. While nothing is under way, or only what takes unusually long, the next piece starts as soon
as the event loop has nobody else at hand who is about to ask; the others gather, and share the one after. Refuses to
know what the work is.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, Generic, Protocol, TypeVar

from service.errors import StorageUnavailable

QUIET: Final = 2
"""Turns of the event loop without a new question until those at hand have all been heard: a request that has just been
read asks in the next turn."""

TURNS: Final = 64
"""Turns after which the work starts, however many are still coming."""

LATE: Final = 0.02
"""Seconds after which work under way is waited for no longer, if more may be under way at once: it may wait for another
session's locks."""

Q = TypeVar("Q")
A = TypeVar("A")
A_contra = TypeVar("A_contra", contravariant=True)


class Waiter(Protocol[A_contra]):
    """Who waits for an answer, and is told once. A future is one. What others raise when they are told is told to the
    event loop alone."""

    def done(self) -> bool:
        """Whether it need not be told any more."""

    def set_result(self, result: A_contra, /) -> None:
        """Tells the answer."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Tells what the work raised instead."""

    def cancel(self) -> object:
        """Tells that the work was ended before there was an answer."""


class Together(Generic[Q, A]):
    """`work` takes some questions and gives as many answers, in their order; what it raises, all who shared it get.

    `at_once` pieces of work are under way at most, `most` questions share one, and `waiting` may gather: one more is
    told to come again. A crowd of more than `least` goes in `parts` by turns: while one is worked on elsewhere, another
    is heard and answered here, and a third one, where there is one, is at hand when the first is done.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Q]], Awaitable[Sequence[A]]],
        *,
        at_once: int,
        most: int,
        waiting: int,
        least: int = 1,
        parts: int = 2,
    ) -> None:
        self._work = work
        self._at_once = at_once
        self._most = most
        self._waiting = waiting
        self._least = least
        self._parts = parts
        self._asked: deque[tuple[Q, Waiter[A]]] = deque()
        self._under_way: dict[asyncio.Task[None], asyncio.TimerHandle | None] = {}
        """What is under way, each with the clock that runs until it is late, if another may then begin beside it."""
        self._answered = self._away = 0
        self._listening = False
        self.heard = self.pieces = 0
        """Questions so far, and the pieces of work that they shared."""

    async def ask(self, question: Q) -> A:
        """The answer, once the work that this question shares is done. StorageUnavailable if too many wait."""
        if self.full:
            raise StorageUnavailable("Too many wait already; try again.")
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self.enlist(question, answer)
        return await answer

    @property
    def full(self) -> bool:
        """Whether so many wait that the next is to come again."""
        return len(self._asked) >= self._waiting

    def enlist(self, question: Q, waiter: Waiter[A]) -> None:
        """The same for one who is no task and has seen that there is room: it is told in a later turn of the event
        loop, never before this returns."""
        self._asked.append((question, waiter))
        self._away = max(0, self._away - 1)
        self._start()

    def abandon(self) -> None:
        """Ends the work under way: for when it is known that it would never end. Whoever shares it is cancelled, and
        who waits for the next has that begin."""
        for task in self._under_way:
            task.cancel()

    def _start(self) -> None:
        """Starts a piece of work if it is time for one."""
        if self._asked and not self._listening and self._is_due():
            self._listening = True
            self._listen(len(self._asked), TURNS, QUIET)

    def _is_due(self) -> bool:
        """Whether none is under way, or those that are take unusually long, and one more is allowed."""
        return len(self._under_way) < self._at_once and not any(self._under_way.values())

    def _listen(self, heard: int, turns: int, quiet: int) -> None:
        """Lets those ask whom this process has already begun to read. Half of all groups would be of one without."""
        asked = len(self._asked)
        quiet = QUIET if asked > heard else quiet - 1
        if turns and quiet >= 0 and asked < self._most:
            asyncio.get_running_loop().call_soon(self._listen, asked, turns - 1, quiet)
            return
        self._listening = False
        self._begin()

    def _begin(self) -> None:
        task = asyncio.create_task(self._share())
        clock = asyncio.get_running_loop().call_later(LATE, self._on_late, task) if self._at_once > 1 else None
        self._under_way[task] = clock
        task.add_done_callback(self._on_gone)

    def _on_late(self, task: asyncio.Task[None]) -> None:
        self._under_way[task] = None
        self._start()

    def _end(self, task: Any) -> bool:
        """Lets go of one that has ended, and tells whether it was late."""
        clock = self._under_way.pop(task)
        if clock is not None:
            clock.cancel()
        return clock is None

    def _on_gone(self, task: asyncio.Task[None]) -> None:
        """One that was abandoned before its first step took nobody along, and never told that it ended: whoever waits
        goes with the next."""
        if task in self._under_way:
            self._end(task)
            self._start()

    def _on_end(self, task: Any, answered: int) -> None:
        """The next piece begins before anybody hears of this one, who will hear of it while the other is worked on."""
        was_late = self._end(task)
        # Whoever was told longer ago than the other parts take is not expected any more.
        self._away = min(self._away, self._answered * (self._parts - 1)) + answered
        self._answered = answered
        self.heard += answered
        self.pieces += 1
        # Beside one that is not late only where all are slow: else two at once, once begun, would last as a crowd does.
        if self._asked and not self._listening and (was_late or self._is_due()):
            self._begin()

    def _part(self) -> int:
        """How many share the next piece. Those who were answered and are still away are likely to ask again."""
        everyone = len(self._asked) + self._away
        return min(self._most, max(self._least, -(-everyone // self._parts)))

    async def _share(self) -> None:
        # Taken now and not when the task was made: whoever asked meanwhile comes along.
        sharing = [self._asked.popleft() for _ in islice(range(self._part()), len(self._asked))]
        waiting = [(question, answer) for question, answer in sharing if not answer.done()]
        try:
            answers = await self._work([question for question, _ in waiting]) if waiting else ()
            tell = partial(self._tell, iter(list(zip(waiting, answers, strict=True))))
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is theirs to hear; nobody may wait for ever)
            tell = partial(self._refuse, iter(waiting), error)
        self._on_end(asyncio.current_task(), len(waiting))
        asyncio.get_running_loop().call_soon(tell)

    @classmethod
    def _tell(cls, answered: Iterator[tuple[tuple[Q, Waiter[A]], A]]) -> None:
        try:
            for (_, waiter), answer in answered:
                if not waiter.done():
                    waiter.set_result(answer)
        except BaseException:
            # A bug of one who waits, which the loop reports; whoever comes after it is told all the same.
            asyncio.get_running_loop().call_soon(cls._tell, answered)
            raise

    @classmethod
    def _refuse(cls, waiting: Iterator[tuple[Q, Waiter[A]]], error: BaseException) -> None:
        try:
            for _, waiter in waiting:
                if waiter.done():
                    continue
                if isinstance(error, asyncio.CancelledError):
                    waiter.cancel()
                else:
                    waiter.set_exception(error)
        except BaseException:
            asyncio.get_running_loop().call_soon(cls._refuse, waiting, error)
            raise
