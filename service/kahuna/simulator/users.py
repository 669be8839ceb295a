"""The APIs about users: Server, User Attribute, User Info and User Delete.

Owns how their requests are read and refused. Refuses to keep anything: that is what a world is for.
"""

import hashlib
import hmac
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from starlette.exceptions import HTTPException

from service.domain.addresses import Channel
from service.kahuna.simulator.contract import CHECKSUM_HEADER, CREDENTIAL_TYPES, MAX_ITEMS, error_object
from service.kahuna.simulator.door import Answer, Call, environment
from service.kahuna.simulator.faults import REJECTED, Rejections
from service.kahuna.simulator.people import Person, profile
from service.kahuna.simulator.records import Device
from service.kahuna.simulator.world import World

SUCCESS: Final = {"success": True}
NOT_FOUND: Final = error_object(404, "User not found")

OPT_OUTS: Final[Mapping[str, Channel]] = MappingProxyType({"email_opt_out": "email", "sms_opt_out": "sms"})

# Fields of clients of 2013 to 2015.
_OLD_CREDENTIALS: Final = MappingProxyType({"username": "username", "user_email": "email"})
_OLD_ATTRIBUTES: Final = ("first_name", "last_name")


class _Event(msgspec.Struct):
    event: str
    time: int | None = None
    count: int | None = None
    value: int | None = None
    properties: dict[str, list[str]] = {}
    credentials: dict[str, str | int] = {}
    user_info: dict[str, Any] = {}


class _Update(msgspec.Struct):
    target: dict[str, Any]
    attributes: dict[str, Any]


class _Updates(msgspec.Struct):
    user_attributes_array: list[_Update]


class _Target(msgspec.Struct):
    target_user: dict[str, Any]


# Server API.


def take_log(call: Call) -> Answer:
    """Events and facts about one user's device. A refusal was seen with a 200; a 400 is possible."""
    try:
        count = _take_form(call)
    except HTTPException as refusal:
        document = {"success": False, "error_message": refusal.detail}
        return Answer(document, status=call.kahuna.config.server_refusal_status)
    return Answer(SUCCESS, count)


def _take_form(call: Call) -> int:
    form = _form(call.body)
    key = call.kahuna.config.secret_key.reveal()
    if not hmac.compare_digest(form.get("key", "").encode(), key.encode()):
        raise HTTPException(401, "Authentication failed")
    world = call.kahuna.worlds[environment(form.get("env", call.request.query_params.get("env")))]
    if not form.get("dev_id"):
        raise HTTPException(400, "dev_id is required")
    events = _events(form)
    credentials, attributes = _said_of_user(form)
    by_event = [credentials | _checked(event.credentials, event.user_info) for event in events]
    now = world.now()
    person = _meet(world, form, credentials, attributes, now)
    for event, said in zip(events, by_event, strict=True):
        person = _meet(world, form, said, event.user_info, now)
        person.events.append(_kept(event, world.seconds()))
    return len(events)


def _meet(
    world: World, form: Mapping[str, str], said: Mapping[str, str], attributes: Mapping[str, Any], now: int
) -> Person:
    person = world.people.meet(said, now, form["dev_id"])
    person.set_attributes(attributes, now)
    before = person.devices.get(form["dev_id"], Device(form["dev_id"]))
    token = form.get("push_token") or before.push_token
    # That a push token makes a device reachable is assumed; until then it is not enabled for push.
    enabled = bool(form.get("push_token")) or before.push_enabled
    os_name = form.get("os_name") or before.os_name
    world.people.keep_device(person, Device(form["dev_id"], os_name, token, enabled, world.seconds()))
    return person


def _form(body: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True))
    except ValueError:
        raise HTTPException(400, "Malformed form") from None


def _events(form: Mapping[str, str]) -> list[_Event]:
    """The events of both fields, the single one first; assumed to be allowed together."""
    single = [_Event(form["event"])] if form.get("event") else []
    events: list[_Event] = single + _field(form, "events", list[_Event], [])
    if not events:
        raise HTTPException(400, "event is required")
    return events


def _said_of_user(form: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
    old: dict[str, str | int] = {kind: form[name] for name, kind in _OLD_CREDENTIALS.items() if form.get(name)}
    credentials = old | _field(form, "credentials", dict[str, str | int], {})
    names: dict[str, Any] = {name: form[name] for name in _OLD_ATTRIBUTES if form.get(name)}
    attributes = names | _field(form, "user_info", dict[str, Any], {})
    return _checked(credentials, attributes), attributes


def _checked(credentials: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, str]:
    if not all(_is_attribute(value) for value in attributes.values()):
        raise HTTPException(400, "Invalid attribute")
    return _credentials(credentials)


def _field(form: Mapping[str, str], name: str, shape: Any, default: Any) -> Any:
    if not form.get(name):
        return default
    try:
        return msgspec.json.decode(form[name], type=shape)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"Malformed {name}: {error}") from None


def _kept(event: _Event, now: int) -> dict[str, Any]:
    kept = {"event": event.event, "time": now if event.time is None else event.time}
    more = {"count": event.count, "value": event.value, "properties": event.properties or None}
    return kept | {name: value for name, value in more.items() if value is not None}


# The JSON APIs.


def update_attributes(call: Call) -> Answer:
    """Attributes of up to so many existing users; one item of the answer for each, in order."""
    updates = call.read(_Updates).user_attributes_array
    if len(updates) > MAX_ITEMS:
        raise HTTPException(400, f"More than {MAX_ITEMS} users")
    unwanted = Rejections(call.fault)
    return Answer([_update(call.world, update, unwanted) for update in updates], len(updates))


def tell_user(call: Call) -> Answer:
    """Everything known of one user."""
    person = _one_user(call)
    if person is None:
        return Answer(NOT_FOUND)
    # No page shows how an opt-out would look there: both names are assumed.
    world = call.world
    stopped = {
        name: not world.stops.reachable(channel, address)
        for name, channel in OPT_OUTS.items()
        if (address := world.address(person, channel)) is not None
    }
    return Answer({"success": True, "user": profile(person) | stopped})


def delete_user(call: Call) -> Answer:
    """Forget one user. All of this API is modelled on User Info."""
    person = _one_user(call)
    if person is None:
        return Answer(NOT_FOUND)
    call.world.people.delete(person)
    return Answer(SUCCESS)


def target_of(world: World, target: Mapping[str, Any], unwanted: Rejections) -> Person | dict[str, Any]:
    """The user that is meant, the oldest if it fits several, or the item that says why there is none."""
    try:
        credentials = _credentials(target)
    except HTTPException as refusal:
        return error_object(refusal.status_code, refusal.detail)
    if unwanted.take(*credentials.values()):
        return error_object(400, REJECTED)
    found = world.people.find(credentials)
    return found[0] if found else NOT_FOUND


def _update(world: World, update: _Update, unwanted: Rejections) -> dict[str, Any]:
    now = world.now()
    person = target_of(world, update.target, unwanted)
    if isinstance(person, dict):
        return person
    if not all(_is_attribute(value) for value in update.attributes.values()):
        return error_object(400, "Invalid attribute")
    person.set_attributes(update.attributes, now)
    return SUCCESS


def _one_user(call: Call) -> Person | None:
    credentials = _credentials(call.read(_Target).target_user)
    if len(credentials) != 1:
        raise HTTPException(400, "target_user must have exactly one credential")
    [(kind, value)] = credentials.items()
    given = call.request.headers.get(CHECKSUM_HEADER, "")
    if not hmac.compare_digest(given.encode(), _checksum(call.kahuna.config.api_key.reveal(), value).encode()):
        raise HTTPException(401, "Wrong checksum")
    call.world.now()
    return call.world.people.of(kind, value)


def _checksum(api_key: str, value: str) -> str:
    return hashlib.md5((api_key[::-1] + value).encode(), usedforsecurity=False).hexdigest()


def _credentials(given: Mapping[str, Any]) -> dict[str, str]:
    """Credentials of types that are on the list, as text. The namespace's own white list is not modelled."""
    for kind, value in given.items():
        if kind not in CREDENTIAL_TYPES or isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise HTTPException(400, f"Invalid credential {kind}")
    return {kind: str(value) for kind, value in given.items()}


def _is_attribute(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, str) for one in value)
    return value is None or isinstance(value, str | int | float | bool)
