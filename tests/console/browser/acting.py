"""Owns doing what pages offer: each kind of form is found where it stands, filled in and sent, and what follows is
judged."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from service.web.console.frame import ACTIONS
from tests.console.browser.judging import UNFOLD

SAYS = {
    "address": "person7@example.com",
    "occurred_at": "2026-01-31T12:00:00",
    "evidence": "a signed form",
    "name": "made by a browser",
}
"""What is written into fields of these names; into others, why it is done."""

FORMS = """
() => [...document.querySelectorAll("form[method=post]")].map((one, at) =>
  [at, one.getAttribute("action").replace(/[?].*/, "")])
"""

BEGINS = {"/console/plans/start", "/console/plans/{id}/choose", "/console/corrections/choose"}
"""What is asked for again and again: it leads to several ways to decide, of which one is taken at a time."""

MOST_STEPS = 4
"""Pages that lead from one form to the next."""


def named(path: str) -> str:
    """The action that a path asks for."""
    for action in ACTIONS:
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", action.path), path):
            return action.path
    return ""


class Actor:
    """Sends each kind of form once. `judge` looks at the page that it leads to."""

    def __init__(self, page: Any, judge: Callable[[Any, str], Awaitable[None]]) -> None:
        self.done: set[str] = set()
        self._page = page
        self._judge = judge

    @property
    def left(self) -> list[str]:
        """The actions of the console that no page has offered."""
        return sorted({action.path for action in ACTIONS} - self.done)

    def begin_again(self) -> None:
        """Has what leads to more be sent once more."""
        self.done -= BEGINS

    async def act_on(self, url: str) -> None:
        """Every form of this page that was not sent yet, one after the other."""
        while True:
            await self._page.goto(url)
            if not await self._send_one(MOST_STEPS):
                return

    async def _send_one(self, steps: int) -> bool:
        for at, path in await self._page.evaluate(FORMS):
            action = named(path)
            if action and action not in self.done and await self._send(at, action):
                # The page that it led to may ask to go on.
                if steps:
                    await self._send_one(steps - 1)
                return True
        return False

    async def _send(self, at: int, action: str) -> bool:
        await self._page.evaluate(UNFOLD)
        form = self._page.locator("form[method=post]").nth(at)
        buttons = form.locator("button")
        if not await buttons.count():
            return False
        self.done.add(action)
        await self._tick(form)
        for field in await form.locator("input[required], textarea[required]").all():
            if not await field.input_value():
                await field.fill(SAYS.get(await field.get_attribute("name") or "", "looked at in a browser"))
        async with self._page.expect_navigation():
            await buttons.first.click()
        await self._judge(self._page, f"{action} (sent)")
        return True

    async def _tick(self, form: Any) -> None:
        """The first row of the list that a form is about: its boxes stand outside of it."""
        box = self._page.locator(f"input[type=checkbox][form='{await form.get_attribute('id')}']")
        if await box.count():
            await box.first.check()
