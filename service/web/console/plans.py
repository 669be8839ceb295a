"""Owns the reconciliation plans: the runs, one of them with its lines, and what a person decides of it.

A line's address is in the place where a page of lines ends, so the next page is asked for by a form.
"""

from typing import Any, Final

from starlette.responses import Response

from service.domain.addresses import CHANNELS
from service.domain.drift import KINDS
from service.domain.runs import DECIDABLE, LINE_STATES, RUN_STATES
from service.domain.runs import REVERTIBLE as REVERTIBLE_STATES
from service.errors import Conflict, Unprocessable
from service.web import reconciliations as routes
from service.web import report
from service.web.console.asking import Filter, as_body, call, filtered, further, ticked, written
from service.web.console.visiting import Action, Form, Page, Visit
from service.web.contract import Asked, Parameters
from service.web.reconciliations import (
    LineDecision,
    LineFilters,
    LinesDecided,
    RunFilters,
    RunRequest,
    Undoing,
    WholeRun,
)
from service.web.report import GroupShown, Report

_RUNS: Final = Parameters(RunFilters)
_LINES: Final = Parameters(LineFilters)
_REPORT: Final = Parameters(Report)

_MEANT: Final = ("kind", "reason", "slot", "action")
"""What a decision may ask for of its lines."""

_PATH: Final = "/console/plans"


async def plans(visit: Visit) -> Response:
    """The newest runs."""
    asked = filtered(visit, _RUNS)
    found = await routes.list_runs(call(visit, asked.query, None))
    values: dict[str, Any] = {
        "asked": asked,
        "runs": found.reconciliations,
        "states": RUN_STATES,
        "channels": CHANNELS,
        "further": further(visit, _PATH, asked, found.next),
    }
    return visit.page("plans.html", title="Reconciliation plans", **values)


async def start(visit: Visit, form: Form) -> Response:
    """Queues a run."""
    wanted = as_body(
        RunRequest, written(form, "channel", "source", "since") | {"auto_approve": form.get("auto_approve") == "yes"}
    )
    run = await routes.queue_run(call(visit, Asked(namespace=visit.namespace), wanted))
    return visit.back(
        f"{_PATH}/{run.id}", "The run is queued; a worker compares both lists. Reload to see how far it is."
    )


async def plan(visit: Visit) -> Response:
    """One run, with its lines."""
    return await _plan(visit, filtered(visit, _LINES), is_first=True)


async def lines(visit: Visit, form: Form) -> Response:
    """One run, with a further page of its lines."""
    said = [(name, form[name]) for name in (*_MEANT, "state", "direction", "cursor") if name in form]
    return await _plan(visit, filtered(visit, _LINES, said), is_first="cursor" not in form)


async def _plan(visit: Visit, asked: Filter[LineFilters], *, is_first: bool) -> Response:
    run = await _run(visit)
    found = await routes.list_differences(call(visit, asked.query, None))
    values: dict[str, Any] = {
        "run": run,
        "says": RUN_STATES[run.state],
        "asked": asked,
        "differences": found.differences,
        "cursor": found.next,
        "is_first": is_first,
        "states": LINE_STATES,
        "kinds": KINDS,
        "nothing": report.nothing_found(run),
        "decidable": run.state in DECIDABLE and run.planned_at is not None,
        "stoppable": run.state in ("queued", "running"),
        "revertible": run.state in REVERTIBLE_STATES,
    }
    return visit.page("plan.html", title=f"Plan for {run.channel}", **values)


async def _run(visit: Visit) -> WholeRun:
    return await routes.one_run(call(visit, Asked(namespace=visit.namespace), None))


async def choose(visit: Visit, form: Form) -> Response:
    """Which lines are meant, in numbers, and what can be decided of them."""
    fields = _fields(form)
    body = as_body(LineDecision, _body(fields))
    run = await _run(visit)
    waiting = [group for group in run.groups if group.state == "proposed" and _is_meant(group, body)]
    count = len(body.lines) if body.lines is not None else sum(group.count for group in waiting)
    values: dict[str, Any] = {"run": run, "fields": fields, "count": count, "lines": body.lines, "groups": waiting}
    return visit.page("plan_chosen.html", title="Decide about lines", **values)


def _is_meant(group: GroupShown, chosen: LineDecision) -> bool:
    names = ("kind", "reason", "action")
    return all(getattr(chosen, name) in (None, getattr(group, name)) for name in names)


def _fields(form: Form) -> dict[str, str]:
    """What a form means, as hidden fields carry it on: the ticked lines, or all that wait of a filter."""
    if form.get("which") == "all":
        return written(form, "which", *_MEANT)
    chosen = {f"line-{name}": form[f"line-{name}"] for name in ticked(form, "line-")}
    if not chosen:
        raise Unprocessable("Nothing is ticked. Go back, and tick the lines that you mean.", "nothing-chosen")
    return chosen


def _body(fields: Form) -> dict[str, Any]:
    """The same as the API takes it."""
    named = [fields[f"line-{name}"].partition(" ") for name in ticked(fields, "line-")]
    if named:
        return {"lines": [{"slot": slot, "address": address} for slot, _, address in named]}
    return {name: fields[name] for name in _MEANT if name in fields}


async def approve(visit: Visit, form: Form) -> Response:
    """Has the lines that are meant carried out."""
    body = as_body(LineDecision, _body(_fields(form)) | written(form, "note"))
    decided = await routes.approve_run(call(visit, Asked(namespace=visit.namespace), body))
    return _decided(visit, decided, "approved; a worker carries them out")


async def reject(visit: Visit, form: Form) -> Response:
    """Has the lines that are meant never carried out."""
    body = as_body(LineDecision, _body(_fields(form)) | written(form, "note"))
    decided = await routes.reject_run(call(visit, Asked(namespace=visit.namespace), body))
    return _decided(visit, decided, "rejected; nothing is done about them")


async def call_off(visit: Visit, form: Form) -> Response:
    """Ends a run that is no plan yet: nobody has seen lines of it, so none may be decided by this."""
    if (await _run(visit)).planned_at is not None:
        raise Conflict("There is a plan by now. Go back to it, look at its lines, and reject those that you mean.")
    await routes.reject_run(call(visit, Asked(namespace=visit.namespace), as_body(LineDecision, written(form, "note"))))
    return visit.back(f"{_PATH}/{visit.request.path_params['id']}", "The run is called off.")


def _decided(visit: Visit, decided: LinesDecided, what: str) -> Response:
    passed = len(decided.passed_over)
    more = f" {passed} of those that were ticked waited for no decision any more." if passed else ""
    plural = "1 line is" if decided.lines == 1 else f"{decided.lines:,} lines are"
    return visit.back(f"{_PATH}/{decided.id}", f"{plural} {what}.{more}")


async def revert(visit: Visit, form: Form) -> Response:
    """Takes back what a run recorded here."""
    body = as_body(Undoing, written(form, "note"))
    await routes.revert_run(call(visit, Asked(namespace=visit.namespace), body))
    place = f"{_PATH}/{visit.request.path_params['id']}"
    return visit.back(place, "A worker takes it back. Reload to see how far it is.")


async def told(visit: Visit) -> Response:
    """The report of a run, in the form that is asked for."""
    return await routes.report_run(call(visit, filtered(visit, _REPORT).query, None))


PAGES: Final = (
    Page(_PATH, plans),
    Page(f"{_PATH}/{{id}}", plan),
    Page(f"{_PATH}/{{id}}/report", told),
)

ACTIONS: Final = (
    Action(f"{_PATH}/start", start),
    Action(f"{_PATH}/{{id}}/lines", lines, audited=False),
    Action(f"{_PATH}/{{id}}/choose", choose, audited=False),
    Action(f"{_PATH}/{{id}}/approve", approve),
    Action(f"{_PATH}/{{id}}/reject", reject),
    Action(f"{_PATH}/{{id}}/call-off", call_off),
    Action(f"{_PATH}/{{id}}/revert", revert),
)
