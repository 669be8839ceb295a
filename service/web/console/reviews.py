"""Owns the page of opt-ins that wait for a person."""

from typing import Final

from starlette.responses import Response

from service.web import admin
from service.web.admin import Decision, Reviews
from service.web.console.asking import as_body, call, filtered, further, written
from service.web.console.visiting import Action, Form, Page, Visit
from service.web.contract import Asked, Parameters

_REVIEWS: Final = Parameters(Reviews)


async def reviews(visit: Visit) -> Response:
    """Opt-ins that wait, the oldest first, or were decided."""
    asked = filtered(visit, _REVIEWS)
    found = await admin.list_reviews(call(visit, asked.query, None))
    onward = further(visit, "/console/reviews", asked, found.next)
    return visit.page("reviews.html", title="Reviews", asked=asked, reviews=found.reviews, further=onward)


async def approve(visit: Visit, form: Form) -> Response:
    """This opt-in is genuine."""
    said = as_body(Decision, written(form, "note"))
    await admin.approve_review(call(visit, Asked(namespace=visit.namespace), said))
    return visit.back("/console/reviews", "Approved: the opt-in counts from its own time; a newer stop still wins.")


async def refuse(visit: Visit, form: Form) -> Response:
    """This opt-in is not to be believed."""
    said = as_body(Decision, written(form, "note"))
    await admin.refuse_review(call(visit, Asked(namespace=visit.namespace), said))
    return visit.back("/console/reviews", "Refused: the stop stands.")


PAGES: Final = (Page("/console/reviews", reviews),)

ACTIONS: Final = (
    Action("/console/reviews/{id}/approve", approve),
    Action("/console/reviews/{id}/refuse", refuse),
)
