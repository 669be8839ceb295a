"""The shapes of the data-sending APIs but for the two syncs, which are in `wire`: what goes out, and what comes back.

Refuses to send. Times are Unix seconds, in UTC. A repr shows no credential: a structure may be logged as it is.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeAlias

import msgspec

from service.kahuna.contract import Contract
from service.kahuna.reading import Kept

Credential: TypeAlias = Mapping[str, str]
"""Credential type -> value. Types that namespaces may allow: `username`, `email`, `fbid`, `twtr`, `lnk`, `user_id`,
`token`, `mobile_number` [CODE]."""

Params: TypeAlias = Mapping[str, Any]

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class _Quiet(msgspec.Struct, frozen=True, omit_defaults=True):
    """What goes out, and tells only its name when it is printed."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


class ServerEvent(_Quiet, frozen=True):
    """One event of a device. `time` in Unix seconds, `value` in hundredths of the currency; property values are lists
    of strings, null and nested objects are not supported [CODE]."""

    event: str
    time: int | None = None
    count: int | None = None
    value: int | None = None
    properties: Mapping[str, Sequence[str]] | None = None


class ServerRequest(_Quiet, frozen=True):
    """What one device did and who uses it: the form of the Server API. One of `event` and `events` is needed.

    `dev_id` is a globally unique id of the device [DOC]; the others are seen in clients [CODE]. `extra` is for form
    fields that have no name here; they may not replace `key` and `env`.
    """

    dev_id: str
    event: str | None = None
    events: Sequence[ServerEvent] = ()
    credentials: Credential | None = None
    user_info: Params | None = None
    dev_name: str | None = None
    os_name: str | None = None
    os_version: str | None = None
    app_name: str | None = None
    app_ver: str | None = None
    push_token: str | None = None
    extra: Mapping[str, str] = NOTHING


class ServerAnswer(Kept, frozen=True):
    """`success`, always true here; what Kahuna tells an SDK to do is in `extra`."""

    shown: ClassVar[tuple[str, ...]] = ("success",)

    success: bool


class UserAttributes(_Quiet, frozen=True):
    """Attributes for one user. Values: text, number, boolean or list of texts; None deletes the attribute [ASSUME].

    What JSON has not, such as dates, is refused: write it as the text that is meant.
    """

    target: Credential
    attributes: Params


class Outcome(Kept, frozen=True):
    """What became of one user or one push. `success` is None when the answer does not say.

    `error` and `error_detail` are Kahuna's text and may name addresses, so they are not in the repr. Codes seen: 404
    user not found, 409 user not enabled for push [CODE].
    """

    shown: ClassVar[tuple[str, ...]] = ("success", "error_code")

    success: bool | None = None
    error_code: int | None = None
    error: str | None = None
    error_detail: str | None = None


class CampaignConfig(msgspec.Struct, frozen=True):
    """Which Adaptive campaign, and what the values of the recipients are (`cred_type`)."""

    campaign_id: int
    cred_type: str
    target_global_control: bool = False
    observe_rate_limiting: bool = False


class Recipient(_Quiet, frozen=True):
    """One user of an Adaptive campaign: one or more credential values, and the user's own parameters."""

    k_to: Sequence[str]
    params: Params = NOTHING


class AdaptiveAnswer(Kept, frozen=True):
    """The background job that adds the users; ask `job_status` about it with the same environment."""

    shown: ClassVar[tuple[str, ...]] = ("job_id", "success")
    derived: ClassVar[tuple[str, ...]] = ("job_id",)

    job_id: str
    success: bool | None = None


class JobStatus(Kept, frozen=True):
    """How far a job is [ASSUME]. `state` is Kahuna's word, whatever it is; counts are of recipients, None if not told.

    `complete` and `failed` are what the contract makes of the word. `errors` may name addresses.
    """

    shown: ClassVar[tuple[str, ...]] = ("job_id", "state", "processed", "total")
    derived: ClassVar[tuple[str, ...]] = ("job_id", "complete", "failed")

    job_id: str
    state: str | None = None
    processed: int | None = None
    total: int | None = None
    errors: list[Any] = msgspec.field(default_factory=list)
    success: bool | None = None
    complete: bool = False
    failed: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.complete or self.failed


class PushConfig(_Quiet, frozen=True):
    """How a push is sent. `start_time` in Unix seconds, at most 7 days ahead; `optimal_hours` 1 to 24 [CODE]."""

    start_time: int | None = None
    optimal_hours: int | None = None
    influence_rate_limiting: bool | None = None
    observe_rate_limiting: bool | None = None
    campaign_name: str | None = None


class PushMessage(_Quiet, frozen=True):
    """One push to one user. `params` are the deep link's; `notification` is for fields beside `alert`."""

    target: Credential
    alert: str
    params: Params | None = None
    config: PushConfig | None = None
    notification: Params = NOTHING


class FlexConfig(_Quiet, frozen=True):
    """Which External Trigger campaign, and when: `k_send_ts` in Unix seconds, at once if None [DOC]."""

    campaign_id: int
    k_send_ts: int | None = None


class FlexEvent(_Quiet, frozen=True):
    """One event outside Kahuna, by the id of the event or the object [ASSUME]."""

    event: str
    params: Params = NOTHING


class FlexAnswer(Kept, frozen=True):
    """What Kahuna said to Flex. Whether there is a job is not documented [ASSUME]."""

    shown: ClassVar[tuple[str, ...]] = ("job_id", "success")
    derived: ClassVar[tuple[str, ...]] = ("job_id",)

    job_id: str | None = None
    success: bool | None = None


class DeleteAnswer(Kept, frozen=True):
    """Whether there was such a user to delete [ASSUME]."""

    shown: ClassVar[tuple[str, ...]] = ("found",)
    derived: ClassVar[tuple[str, ...]] = ("found",)

    found: bool


# What goes out, as JSON would have it.


def server_form(request: ServerRequest, key: str, env: str) -> dict[str, str]:
    """The form fields of the Server API, composite values as JSON text."""
    form = {"key": key, "env": env, "dev_id": request.dev_id}
    for name in ("event", "dev_name", "os_name", "os_version", "app_name", "app_ver", "push_token"):
        value = getattr(request, name)
        if value is not None:
            form[name] = value
    for name in ("credentials", "user_info", "events"):
        value = getattr(request, name)
        if value:
            form[name] = encoded(value).decode()
    return form | {name: value for name, value in request.extra.items() if name not in form}


def push_item(message: PushMessage) -> dict[str, Any]:
    """An item of `push_array`."""
    item = {"target": message.target, "notification": {"alert": message.alert} | dict(message.notification)}
    optional = {"params": message.params, "config": message.config}
    return item | {name: value for name, value in optional.items() if value is not None}


def push_defaults(params: Params, config: PushConfig | None) -> dict[str, Any]:
    """The body of Push but for its messages."""
    given = {"default_params": params or None, "default_config": config}
    return {name: value for name, value in given.items() if value is not None}


def push_envelope(defaults: bytes) -> tuple[bytes, bytes]:
    """What stands before and after the list of messages, from the other fields as a JSON object."""
    others = defaults[1:-1]
    return b'{"push_array":', (b"," if others else b"") + others + b"}"


def adaptive_body(
    config: CampaignConfig, recipients: Sequence[Recipient], default_params: Params, start: int | None, names: Contract
) -> dict[str, Any]:
    """The body of Adaptive Campaign."""
    body: dict[str, Any] = {"campaign_config": msgspec.to_builtins(config)}
    if default_params:
        body["default_params"] = dict(default_params)
    each: dict[str, Any] = {}
    if start is not None and names.adaptive_start_place == "recipient_list":
        each[names.adaptive_start] = start
    elif start is not None:
        body.setdefault(names.adaptive_start_place, {})[names.adaptive_start] = start
    return body | {"recipient_list": [each | dict(r.params) | {"k_to": list(r.k_to)} for r in recipients]}


def flex_body(config: FlexConfig, events: Sequence[FlexEvent], default_params: Params, names: Contract) -> Params:
    """The body of Flex."""
    items = [{names.flex_event: event.event, names.flex_params: event.params} for event in events]
    body: dict[str, Any] = {"campaign_config": config, names.flex_events: items}
    return body | ({names.flex_default_params: default_params} if default_params else {})


class Unencodable(Exception):
    """A value that JSON in UTF-8 cannot say. It does not tell which: that would be somebody's address."""


def encoded(value: Any) -> bytes:
    """The value as JSON in UTF-8, or Unencodable for whatever would arrive as something else."""
    try:
        if _is_json(value):
            return msgspec.json.encode(value, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass  # and is not to be found in what is raised: it may hold the value
    raise Unencodable


_ATOMS: Final = frozenset({str, int, bool, type(None)})


def _is_json(value: Any) -> bool:
    """Whether JSON has such a value.

    The encoder finds words for many that it has not: null for what is no number, which would delete an attribute, and
    texts or lists for bytes, times and sets, which nobody may have meant.
    """
    kind = type(value)
    if kind in _ATOMS:
        return True
    if isinstance(value, msgspec.Struct):
        return all(_is_json(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_json(inner) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return all(_is_json(inner) for inner in value)
    return isfinite(value) if isinstance(value, float) else isinstance(value, str | int)


def _plain(value: Any) -> Any:
    """A mapping of any kind as a dict, which is all that the encoder knows."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError
