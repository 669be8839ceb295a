"""Owns the page health of the console."""

from typing import Final

from starlette.responses import Response

from service.web.console.visiting import Action, Page, Visit


async def health(visit: Visit) -> Response:
    """The page."""
    return visit.page("health.html", title="Health")


PAGES: Final[tuple[Page, ...]] = (Page("/console/health", health),)

ACTIONS: Final[tuple[Action, ...]] = ()
