"""Owns the page tokens of the console."""

from typing import Final

from starlette.responses import Response

from service.web.console.visiting import Action, Page, Visit


async def tokens(visit: Visit) -> Response:
    """The page."""
    return visit.page("tokens.html", title="Tokens")


PAGES: Final[tuple[Page, ...]] = (Page("/console/tokens", tokens),)

ACTIONS: Final[tuple[Action, ...]] = ()
