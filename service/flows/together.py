"""Owns how requests that come at the same time share one piece of work: a transaction, or a lookup.

Nobody waits for company. While fewer pieces than allowed are under way, the next one starts as soon as the event loop
has nobody else at hand who is about to ask; the others gather, and share the one after. Refuses to know what the work
is.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, Generic, TypeVar

from service.errors import StorageUnavailable

QUIET: Final = 2
"""Turns of the event loop without a new question until those at hand have all been heard: a request that has just been
read asks in the next turn."""

TURNS: Final = 64
"""Turns after which the work starts, however many are still coming."""

Q = TypeVar("Q")
A = TypeVar("A")


class Together(Generic[Q, A]):
    """`work` takes some questions and gives as many answers, in their order; what it raises, all who shared it get.

    `at_once` pieces of work are under way at most, `most` questions share one, and `waiting` may gather: one more is
    told to come again.
    """

    def __init__(
        self, work: Callable[[Sequence[Q]], Awaitable[Sequence[A]]], *, at_once: int, most: int, waiting: int
    ) -> None:
        self._work = work
        self._at_once = at_once
        self._most = most
        self._waiting = waiting
        self._asked: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._listening = False
        self.answered = self.pieces = 0
        """Questions that were answered, and the pieces of work that they shared."""

    async def ask(self, question: Q) -> A:
        """The answer, once the work that this question shares is done. StorageUnavailable if too many wait."""
        if len(self._asked) >= self._waiting:
            raise StorageUnavailable("Too many wait already; try again.")
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._asked.append((question, answer))
        self._start()
        return await answer

    def abandon(self) -> None:
        """Ends the work under way: for when it is known that it would never end. Whoever still waits is cancelled."""
        for task in self._under_way:
            task.cancel()

    def _start(self) -> None:
        if self._asked and len(self._under_way) < self._at_once and not self._listening:
            self._listening = True
            self._listen(len(self._asked), TURNS, QUIET)

    def _listen(self, heard: int, turns: int, quiet: int) -> None:
        """Lets those ask whom this process has already begun to read. Half of all groups would be of one without."""
        asked = len(self._asked)
        quiet = QUIET if asked > heard else quiet - 1
        if turns and quiet >= 0 and asked < self._most:
            asyncio.get_running_loop().call_soon(self._listen, asked, turns - 1, quiet)
            return
        self._listening = False
        task = asyncio.create_task(self._share())
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._start()

    async def _share(self) -> None:
        # Taken now and not when the task was made: whoever asked meanwhile comes along.
        sharing = [self._asked.popleft() for _ in islice(range(self._most), len(self._asked))]
        waiting = [(question, answer) for question, answer in sharing if not answer.done()]
        if not waiting:
            return
        try:
            answers = await self._work([question for question, _ in waiting])
            answered = list(zip(waiting, answers, strict=True))
            self.answered += len(waiting)
            self.pieces += 1
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is theirs to hear; nobody may wait for ever)
            self._tell(waiting, error)
            return
        for (_, future), answer in answered:
            if not future.done():
                future.set_result(answer)

    @staticmethod
    def _tell(waiting: Sequence[tuple[Q, asyncio.Future[A]]], error: BaseException) -> None:
        for _, future in waiting:
            if future.done():
                continue
            if isinstance(error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(error)
