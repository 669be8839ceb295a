"""Owns the walk: signs in, follows the links from page to page, does what pages offer, and notes what is amiss."""

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.console.browser import judging
from tests.console.browser.acting import Actor
from tests.console.browser.running import Deployment

LOOKS = tuple(
    (f"{scheme}-{name}", {"color_scheme": scheme, "viewport": size})
    for scheme in ("light", "dark")
    for name, size in (("desktop", {"width": 1280, "height": 900}), ("phone", {"width": 390, "height": 844}))
)

MOST_PAGES = 60

ROUNDS = 4
"""How often everything that offers something to do is gone over."""

REFUSED = "the server responded with a status of 4"
"""What the browser says of an answer such as 409, which a deed may well get."""


FILES = ("/body", "/report")
"""How the paths of what is no page end."""


def kind_of(path: str) -> str:
    """A page whatever it is about: ids are left out, and of what was asked for all but the state and the window."""
    parts = urlsplit(path)
    kept = re.findall(r"(?:state|window)=(\w+)", parts.query)
    return "?".join([re.sub(r"/[0-9a-f-]{36}|/\d+", "/{id}", parts.path), *kept])


@dataclass
class Walk:
    """One pair of eyes: how the browser is set up, what it has seen, and what was amiss."""

    browser: Any
    deployment: Deployment
    shots: Path | None
    name: str
    options: dict[str, Any]
    faults: list[str] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)
    acts: bool = False

    async def go(self) -> list[str]:
        """Every page that links lead to, once for each kind."""
        context = await self.browser.new_context(**self.options)
        try:
            page = await context.new_page()
            page.on("console", self._on_message)
            page.on("pageerror", lambda error: self._complain(str(error)))
            await self._sign_in(page)
            await self._follow(page)
            await self._search(page)
            if self.acts:
                await self._act(page)
            await self._leave(page)
        finally:
            await context.close()
        return self.faults

    def _on_message(self, message: Any) -> None:
        expected = self.acts and REFUSED in message.text
        self._complain(message.text, message.type == "error" and not expected)

    def _complain(self, what: str, holds: bool = True) -> None:
        if holds:
            self.faults.append(f"{self.name}: {what}")

    async def _sign_in(self, page: Any) -> None:
        await page.goto(f"{self.deployment.url}/console")
        await self._judge(page, "sign-in")
        await page.fill("#token", self.deployment.token)
        await page.click(".sign-in button")
        self._complain("not signed in", urlsplit(page.url).path != "/console")

    async def _follow(self, page: Any) -> None:
        waiting = ["/console"]
        while waiting and len(self.seen) < MOST_PAGES:
            path = waiting.pop(0)
            kind = kind_of(path)
            if kind in self.seen:
                continue
            self.seen[kind] = path
            if urlsplit(path).path.endswith(FILES):
                answer = await page.context.request.get(self.deployment.url + path)
                self._complain(f"{path} answered {answer.status}", answer.status != 200)
                continue
            answer = await page.goto(self.deployment.url + path)
            self._complain(f"{path} answered {answer.status}", answer.status != 200)
            waiting += await self._links(page)
            for fault in await judging.faults_of_focus(page):
                self._complain(f"{kind}: {fault}")
            await self._judge(page, kind)

    async def _links(self, page: Any) -> list[str]:
        hrefs = await page.eval_on_selector_all("a[href]", "(all) => all.map((one) => one.getAttribute('href'))")
        return [one for one in hrefs if one.startswith("/console")]

    async def _search(self, page: Any) -> None:
        """By the keyboard, where there are scripts."""
        await page.goto(f"{self.deployment.url}/console")
        if self.options.get("java_script_enabled", True):
            await page.keyboard.press("/")
        else:
            await page.focus("#search")
        await page.keyboard.type("carol@example.com")
        async with page.expect_navigation():
            await page.keyboard.press("Enter")
        self._complain("the address is in the URL", "carol" in page.url)
        await self._judge(page, "/console/address (found)")

    async def _act(self, page: Any) -> None:
        """All that pages offer to do, several times over: what was begun has something to offer the next time."""
        actor = Actor(page, self._judge)
        for _ in range(ROUNDS):
            actor.begin_again()
            self.seen.clear()
            await self._follow(page)
            for path in list(self.seen.values()):
                if not urlsplit(path).path.endswith(FILES):
                    await actor.act_on(self.deployment.url + path)
        for action in actor.left:
            self._complain(f"no page has offered {action}")

    async def _leave(self, page: Any) -> None:
        await page.goto(f"{self.deployment.url}/console")
        await page.click(".leave button")
        self._complain("not signed out", "Sign in" not in await page.title())

    async def _judge(self, page: Any, kind: str) -> None:
        for fault in await judging.faults_of(page):
            self._complain(f"{kind}: {fault}")
        # The picture comes last, and as people find it: to take one, the driver writes into the page.
        if self.shots is not None:
            await page.evaluate(judging.FOLD)
            name = re.sub(r"[^a-z0-9]+", "-", kind.removeprefix("/console")).strip("-") or "overview"
            await page.screenshot(path=self.shots / f"{name}-{self.name}.png", full_page=True)


async def walk_all(browser: Any, deployment: Deployment, shots: Path | None) -> tuple[list[str], set[str]]:
    """Every look, with scripts and without; what was amiss, and which kinds of pages there were."""
    walks = [Walk(browser, deployment, shots, name, options) for name, options in LOOKS]
    plain = {"java_script_enabled": False, "viewport": {"width": 1280, "height": 900}}
    walks.append(Walk(browser, deployment, None, "without-scripts", plain, acts=True))
    faults: list[str] = []
    for walk in walks:
        faults += await walk.go()
        await asyncio.sleep(0)
    return faults, {kind for walk in walks for kind in walk.seen}
