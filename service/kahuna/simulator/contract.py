"""The wire contract in constants, and what a stand-in is set up with.

Owns every path, word and limit that the other modules use. Refuses to import them from the client: said again here, a
word that the client gets wrong is rejected.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar, get_args, get_type_hints

import msgspec
from starlette.exceptions import HTTPException

from service.settings import Secret

Env = Literal["p", "s"]
ENVS: Final[tuple[Env, ...]] = ("p", "s")

Category = Literal["push", "in_app", "email", "sms", "user_merge"]

Api = Literal[
    "server",
    "user_attributes",
    "adaptive_campaign",
    "job_status",
    "push",
    "email_sync",
    "sms_sync",
    "user_delete",
    "flex",
    "user_campaign",
    "user_info",
    "user_merge_logs",
    "push_logs",
    "in_app_logs",
    "email_logs",
    "campaign_statistics",
]

# ------------------------------------------------------------------------------------------------------- not verified
# Assumed whole: no page of Kahuna's that shows these was found.

USER_DELETE_PATH: Final = "/api/userdelete"
CAMPAIGN_STATISTICS_PATH: Final = "/api/campaignstats"
# Of these, only `push` was seen on the wire.
LOG_WORDS: Final[Mapping[str, Category]] = MappingProxyType(
    {
        "push": "push",
        "in_app": "in_app",
        "inapp": "in_app",
        "email": "email",
        "user_merge": "user_merge",
        "user_merges": "user_merge",
    }
)
# Counters of Kahuna's own tables where it has one, by the action of the record that is counted.
STATISTICS: Final[Mapping[Category, Mapping[str, str]]] = MappingProxyType(
    {
        "push": {
            "push": "delivered",
            "click": "clicks",
            "goal": "goal",
            "more engaged": "engaged",
            "rate_limited": "rate_limited",
            "uninstalled": "uninstalled",
        },
        "in_app": {"ia_delivered": "ia_delivered", "ia_click": "clicks", "ia_goal": "goal"},
        "email": {
            "delivered": "delivered",
            "opened": "opens",
            "clicked": "clicks",
            "unsub": "unsubs",
            "hard_bounce": "hard_bounces",
            "soft_bounce": "soft_bounces",
            "spam": "spam_reports",
            "email_goal": "goal",
        },
        "sms": {"sms": "delivered", "stop": "opt_outs", "start": "opt_ins"},
    }
)
# Counted once for each user.
UNIQUE_STATISTICS: Final[Mapping[tuple[Category, str], str]] = MappingProxyType(
    {
        ("push", "click"): "unique_clicks",
        ("email", "opened"): "email_unique_opens",
        ("email", "clicked"): "email_unique_clicks",
    }
)

# ------------------------------------------------------------------------------------------------- read in the sources

SERVER_PATH: Final = "/log"
USER_ATTRIBUTES_PATH: Final = "/api/userattributes"
ADAPTIVE_CAMPAIGN_PATH: Final = "/api/campaign/populate"
JOB_STATUS_PATH: Final = "/api/campaign/populate/{job_id}"
PUSH_PATH: Final = "/api/push"
EMAIL_SYNC_PATH: Final = "/api/emailsync"
SMS_SYNC_PATH: Final = "/api/smssync"
FLEX_PATH: Final = "/api/campaign/flex"
USER_CAMPAIGN_PATH: Final = "/api/usercampaign"
USER_INFO_PATH: Final = "/api/userinfo"
LOGS_PATH: Final = "/api/kahunalogs"

CHECKSUM_HEADER: Final = "KAHUNA_API_CHECKSUM"
SIGNATURE_HEADER: Final = "X-Kahuna-Signature"

EMAIL_WORDS: Final = ("unsub", "hard_bounce", "soft_bounce", "spam", "reject", "invalid", "blocked")
CREDENTIAL_TYPES: Final = frozenset(("username", "email", "fbid", "twtr", "lnk", "user_id", "token", "mobile_number"))
# Whether a number may be one is not known, so it may not.
RECIPIENT_CREDENTIAL_TYPES: Final = CREDENTIAL_TYPES - {"mobile_number"}

MAX_ITEMS: Final = 100
"""User Attribute, Push and User/Campaign take so many users a request."""
MAX_RECORDS: Final = 1000
FURTHEST_PUSH_SECONDS: Final = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """Whom the stand-in lets in, what it keeps, and how quick and how strict it is."""

    secret_key: Secret
    api_key: Secret
    max_body_bytes: int = 10_000_000
    requests_kept: int = 1_000
    # The contract names no time-out for callbacks, no number of attempts, no pause and no size: all four are chosen.
    callback_timeout_seconds: float = 10.0
    callback_attempts: int = 5
    callback_pause_seconds: float = 0.5
    callback_entries: int = 100
    # Where the callbacks of both environments go, until a control endpoint says otherwise.
    email_webhook: str | None = None
    sms_webhook: str | None = None
    # Two stand-ins with the same seed, clock and requests give the same answers.
    seed: int = 0
    job_pending_seconds: float = 5.0
    job_running_seconds: float = 10.0
    # "At most one call per 30 s": whether Kahuna enforces it is not known.
    strict_polling: bool = False
    poll_seconds: float = 30.0
    concurrent_requests: int = 10
    # How old a user must be for an Adaptive campaign to know it; "wait about 60 s" after a call of the Server API.
    ingestion_seconds: float = 0.0
    # Two refusals of which the form is not known: with which status the Server API does, and whether the Push API
    # refuses a lone push by the status of the whole answer.
    server_refusal_status: Literal[200, 400] = 200
    lone_push_by_status: bool = False
    cursor_lifetime_seconds: float | None = None
    push_cooldown_seconds: float = 7200.0
    # Users an answer of User/Campaign, campaigns an answer of Campaign Statistics.
    page_size: int = 20


_T = TypeVar("_T")


def decoded(body: bytes | str, shape: type[_T]) -> _T:
    """The body in this shape, or a 400."""
    try:
        return msgspec.json.decode(body, type=shape)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"Malformed request: {error}{_choices(shape, str(error))}") from None


def _choices(shape: Any, fault: str) -> str:
    """What a field takes, where it takes only certain words and has another."""
    field = re.search(r"Invalid enum value .* - at `\$\.(\w+)`", fault)
    if field is None:
        return ""
    parts = get_args(get_type_hints(shape)[field[1]])
    words = [word for part in parts for word in (get_args(part) or [part]) if isinstance(word, str)]
    return f"; it is one of {', '.join(words)}"


def error_object(status: int, error: str) -> dict[str, Any]:
    """The common error object, which the contract gives for some APIs and we assume for all."""
    return {"success": False, "error_code": status, "error": error}


def folded(address: str) -> str:
    """How addresses are compared; assumed, since Kahuna does not say."""
    return address.strip().lower()
