"""A stand-in for Kahuna that keeps what it is told, and fails on request.

Owns all APIs as the public contract describes them, a memory of what Kahuna would now hold, faults that can be switched
on, and callbacks that it signs and sends. Refuses to know this service: it is written from the contract alone, so that
an agreement between the two proves something. Where the contract is silent, a comment says what was chosen.

Everything under /simulator is open to whoever can reach the port, and sends requests to any URL it is given: listen on
loopback only.
"""

from collections.abc import Callable

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from service.kahuna.simulator import contract, figures, logs, sending, syncs, users
from service.kahuna.simulator.contract import SimulatorConfig
from service.kahuna.simulator.control import CallbackOrder, Control
from service.kahuna.simulator.door import Door, refuse
from service.kahuna.simulator.faults import Fault
from service.kahuna.simulator.webhooks import Webhooks
from service.kahuna.simulator.world import Kahuna

__all__ = ["CallbackOrder", "Fault", "SimulatorConfig", "build_simulator"]

_ANY_VERB = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def build_simulator(
    config: SimulatorConfig, clock: Callable[[], float], *, transport: httpx.AsyncBaseTransport | None = None
) -> Starlette:
    """The stand-in as an application, for a port or for `httpx.ASGITransport`. `transport` carries its callbacks."""
    kahuna = Kahuna(config, clock)
    control = Control(kahuna, Webhooks(config, kahuna.faults, transport))
    return Starlette(routes=[*_apis(Door(kahuna)), *control.routes()], exception_handlers={HTTPException: refuse})


def _apis(door: Door) -> list[Route]:
    """Kahuna's own endpoints. Other verbs than these get a 405, which is assumed, but Job Status says 400 itself."""
    post = {
        contract.SERVER_PATH: door.endpoint("server", users.take_log),
        contract.USER_ATTRIBUTES_PATH: door.endpoint("user_attributes", users.update_attributes),
        contract.USER_INFO_PATH: door.endpoint("user_info", users.tell_user),
        contract.USER_DELETE_PATH: door.endpoint("user_delete", users.delete_user),
        contract.ADAPTIVE_CAMPAIGN_PATH: door.limited("adaptive_campaign", sending.populate),
        contract.FLEX_PATH: door.limited("flex", sending.flex),
        contract.PUSH_PATH: door.endpoint("push", sending.push),
        contract.EMAIL_SYNC_PATH: door.endpoint("email_sync", syncs.sync_email),
        contract.SMS_SYNC_PATH: door.endpoint("sms_sync", syncs.sync_sms),
        contract.LOGS_PATH: door.of_logs(logs.read_logs),
        contract.USER_CAMPAIGN_PATH: door.endpoint("user_campaign", figures.tell_user_campaigns),
        contract.CAMPAIGN_STATISTICS_PATH: door.endpoint("campaign_statistics", figures.tell_statistics),
    }
    jobs = Route(contract.JOB_STATUS_PATH, door.endpoint("job_status", sending.tell_job), methods=_ANY_VERB)
    return [*(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()), jobs]
