"""Owns the page overview of the console."""

from typing import Final

from starlette.responses import Response

from service.web.console.visiting import Action, Page, Visit


async def overview(visit: Visit) -> Response:
    """The page."""
    return visit.page("overview.html", title="Overview")


PAGES: Final[tuple[Page, ...]] = (Page("/console", overview),)

ACTIONS: Final[tuple[Action, ...]] = ()
