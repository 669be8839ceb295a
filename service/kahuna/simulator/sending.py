"""The APIs that make Kahuna send: Adaptive Campaign, Job Status, Flex and Push.

Owns how their requests are read and refused, and who is meant. Refuses to send: that is the schedule's, in its time.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from starlette.exceptions import HTTPException

from service.kahuna.simulator.campaigns import Message, Recipient
from service.kahuna.simulator.contract import (
    FURTHEST_PUSH_SECONDS,
    MAX_ITEMS,
    RECIPIENT_CREDENTIAL_TYPES,
    error_object,
)
from service.kahuna.simulator.door import Answer, Call
from service.kahuna.simulator.faults import Rejections
from service.kahuna.simulator.records import MICROSECONDS, Campaign, CampaignType
from service.kahuna.simulator.users import SUCCESS, target_of

_NAMES_OF_TYPES: Final[Mapping[str, str]] = {"adaptive": "Adaptive", "external_trigger": "External Trigger"}


class _AdaptiveConfig(msgspec.Struct):
    # An older client sends the id as text.
    campaign_id: int | Annotated[str, msgspec.Meta(pattern="^[0-9]{1,18}$")]
    cred_type: str
    observe_rate_limiting: bool = False
    # Understood, but without effect: the stand-in has no control group.
    target_global_control: bool = False


class _Adaptive(msgspec.Struct):
    campaign_config: _AdaptiveConfig
    recipient_list: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    default_params: dict[str, Any] = {}


class _FlexConfig(msgspec.Struct):
    campaign_id: int
    k_send_ts: int | None = None


class _ExternalEvent(msgspec.Struct):
    event: str
    params: dict[str, Any] = {}


class _Flex(msgspec.Struct):
    campaign_config: _FlexConfig
    event_list: Annotated[list[_ExternalEvent], msgspec.Meta(min_length=1)]
    default_params: dict[str, Any] = {}


class _Notification(msgspec.Struct):
    alert: str


class _PushConfig(msgspec.Struct):
    start_time: int = 0
    optimal_hours: Annotated[int, msgspec.Meta(ge=0, le=24)] = 0
    influence_rate_limiting: bool = True
    observe_rate_limiting: bool = True
    campaign_name: str | None = None


class _Push(msgspec.Struct):
    target: dict[str, Any]
    notification: _Notification
    params: dict[str, Any] = {}
    config: dict[str, Any] = {}


class _Pushes(msgspec.Struct):
    push_array: Annotated[list[_Push], msgspec.Meta(min_length=1)]
    default_params: dict[str, Any] = {}
    default_config: dict[str, Any] = {}


class _KTo(msgspec.Struct):
    k_to: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    k_send_ts: int | None = None


def populate(call: Call) -> Answer:
    """Add users to an Adaptive campaign, in a job of its own."""
    asked = call.read(_Adaptive)
    config = asked.campaign_config
    if config.cred_type not in RECIPIENT_CREDENTIAL_TYPES:
        raise HTTPException(400, "Invalid cred_type")
    campaign = _campaign(call, int(config.campaign_id), "adaptive")
    recipients = [_recipient(config.cred_type, asked.default_params | one) for one in asked.recipient_list]
    job = call.world.start_job(campaign, recipients, observe=config.observe_rate_limiting)
    return Answer({"success": True, "job_id": job.id}, len(recipients))


def tell_job(call: Call) -> Answer:
    """How far a job is. For the wrong verb too the contract has 400 here."""
    if call.request.method != "GET":
        raise HTTPException(400, "Job Status must be a GET")
    now = call.world.now()
    job = call.world.jobs.get(call.request.path_params["job_id"])
    if job is None:
        raise HTTPException(400, "job_id does not exist")
    config = call.kahuna.config
    too_early = job.polled is not None and now < job.polled + config.poll_seconds * MICROSECONDS
    if config.strict_polling and too_early:
        raise HTTPException(429, f"At most one call per {config.poll_seconds:g} s")
    job.polled = now
    return Answer(job.status(now))


def flex(call: Call) -> Answer:
    """Fire an External Trigger campaign.

    Whom an event reaches is not known: here, everybody with an event of that name in the profile.
    """
    asked = call.read(_Flex)
    config = asked.campaign_config
    campaign = _campaign(call, config.campaign_id, "external_trigger")
    names = {one.event for one in asked.event_list}
    call.world.now()
    meant = [one.id for one in call.world.people if any(event["event"] in names for event in one.events)]
    send_at = (config.k_send_ts or 0) * MICROSECONDS
    recipients = [Recipient("", (str(user_id),), send_at) for user_id in meant]
    job = call.world.start_job(campaign, recipients, observe=False)
    return Answer({"success": True, "job_id": job.id}, len(asked.event_list))


def push(call: Call) -> Answer:
    """Push to users; one item of the answer for each, in order. A lone one may be refused in either form."""
    asked = call.read(_Pushes)
    if len(asked.push_array) > MAX_ITEMS:
        raise HTTPException(400, f"More than {MAX_ITEMS} pushes")
    unwanted = Rejections(call.fault)
    items = [_push(call, one, asked.default_config | one.config, unwanted) for one in asked.push_array]
    if call.kahuna.config.lone_push_by_status and len(items) == 1 and not items[0]["success"]:
        return Answer(items[0], 1, status=items[0]["error_code"])
    return Answer(items, len(items))


def _campaign(call: Call, campaign_id: int, wanted: CampaignType) -> Campaign:
    campaign = call.world.campaigns.get(campaign_id)
    if campaign is None:
        raise HTTPException(400, "campaign_id does not exist")
    if campaign.type != wanted:
        raise HTTPException(400, f"Not an {_NAMES_OF_TYPES[wanted]} campaign")
    return campaign


def _recipient(kind: str, said: Mapping[str, Any]) -> Recipient:
    """One recipient with its parameters, of which only the time of sending is understood."""
    try:
        recipient = msgspec.convert(said, _KTo)
    except msgspec.ValidationError as error:
        raise HTTPException(400, f"Invalid recipient: {error}") from None
    return Recipient(kind, recipient.k_to, (recipient.k_send_ts or 0) * MICROSECONDS)


def _push(call: Call, asked: _Push, said: Mapping[str, Any], unwanted: Rejections) -> dict[str, Any]:
    world, now = call.world, call.world.now()
    try:
        config = msgspec.convert(said, _PushConfig)
    except msgspec.ValidationError as error:
        return error_object(400, f"Invalid config: {error}")
    if config.start_time * MICROSECONDS > now + FURTHEST_PUSH_SECONDS * MICROSECONDS:
        return error_object(400, "start_time is more than 7 days ahead")
    person = target_of(world, asked.target, unwanted)
    if isinstance(person, dict):
        return person
    if not any(device.push_enabled for device in person.devices.values()):
        return error_object(409, "User not enabled for push")
    campaign = world.campaigns.of_push_api(config.campaign_name)
    message = Message(person.id, campaign, config.observe_rate_limiting, config.influence_rate_limiting)
    # With `optimal_hours` Kahuna waits for a good hour; the stand-in knows none and does not wait.
    world.schedule.add(max(now, config.start_time * MICROSECONDS), message)
    world.now()
    return SUCCESS
