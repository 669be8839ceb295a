"""What Kahuna's contract says of paths, words and field names: what is documented, and what is a correctable guess.

Owns both, so that whoever gets to read a page that we could not mends a guess by a setting and not by a release.
Refuses to send anything, and to guess in any other place. A guess holds the mark of its evidence: SIB is stated of a
sibling API, DATA is an internal name seen in an analyst's scripts, ASSUME is our own choice.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

# Read on Kahuna's own help pages, verb and `env` parameter included. No path here is an assumption.
SERVER_PATH: Final = "/log"
USER_ATTRIBUTES_PATH: Final = "/api/userattributes"
ADAPTIVE_CAMPAIGN_PATH: Final = "/api/campaign/populate"
PUSH_PATH: Final = "/api/push"
EMAIL_SYNC_PATH: Final = "/api/emailsync"
SMS_SYNC_PATH: Final = "/api/smssync"
FLEX_PATH: Final = "/api/campaign/flex"
USER_CAMPAIGN_PATH: Final = "/api/usercampaign"
USER_INFO_PATH: Final = "/api/userinfo"
LOGS_PATH: Final = "/api/kahunalogs"

CHECKSUM_HEADER: Final = "KAHUNA_API_CHECKSUM"

MAX_USERS: Final = 100
"""Users or pushes of one request, and users of a User/Campaign query [DOC, CODE]."""

# What else the answer may call a category, beside what was asked for [ASSUME, and DATA for `inapp`].
IN_APP_WORDS: Final = ("inapp", "in_app")
USER_MERGE_WORDS: Final = ("user_merges", "user_merge")

Evidence = Literal["SIB", "DATA", "ASSUME"]

_RENAMED: Final = re.compile(r"[^\s:]+:\w+( +[^\s:]+:\w+)*")

_SWITCH: Final = {"yes": True, "no": False}


class WrongCorrection(ValueError):
    """A correction of the contract that cannot be taken; its text is a sentence for a person."""


def guess(default: Any, evidence: Evidence, says: str) -> Any:
    """A field that is a guess: its value, how sure it is, and its sentence."""
    return dataclasses.field(default=default, metadata={"evidence": evidence, "says": says})


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """Everything about Kahuna's APIs that no page or client confirms. `Contract()` is our best guess."""

    # User Delete: no page was found at all.
    user_delete_path: str = guess("/api/userdelete", "ASSUME", "Path of the User Delete API")
    user_delete_target: str = guess("target_user", "SIB", "Body field with the credential, as in User Info")
    user_delete_checksum: bool = guess(True, "SIB", "Whether the checksum header is sent, as in User Info")

    # Campaign Statistics: no page was found at all.
    campaign_statistics_path: str = guess("/api/campaignstats", "ASSUME", "Path of the Campaign Statistics API")
    statistics_campaign: str = guess("campaign_id", "SIB", "Body field with the campaign")
    statistics_start: str = guess("start_date", "ASSUME", "Body field with the first day")
    statistics_end: str = guess("end_date", "ASSUME", "Body field with the last day")
    statistics_records: str = guess("campaigns", "ASSUME", "Answer field with the list of campaigns")
    statistics_channel: str = guess("channel", "DATA", "Field of a campaign with its channel")
    statistics_figures: str = guess("stats", "ASSUME", "Field of a campaign with its figures")
    statistics_date: str = guess("%m/%d/%Y", "SIB", "How a day is written, in strftime's signs")

    # The log APIs: categories and records.
    log_push: str = guess("push", "DATA", "Category word of Push Logs (clients send it too)")
    log_in_app: str = guess("in_app", "ASSUME", "Category word of In App Logs")
    log_email: str = guess("email", "DATA", "Category word of Email Logs")
    log_user_merge: str = guess("user_merge", "ASSUME", "Category word of User Merge Logs")
    log_time: str = guess(
        "%m/%d/%Y %I:%M:%S %p", "ASSUME", "How a first time is written, UTC; the documented one cannot tell 1 from 13"
    )
    merge_common: str = guess("common_credentials", "ASSUME", "Merge record: what both users had")
    merge_older: str = guess("older_user_credentials", "ASSUME", "Merge record: what only the older user had")
    merge_newer: str = guess("newer_user_credentials", "ASSUME", "Merge record: what only the newer user had")
    email_record_address: str = guess("email", "ASSUME", "Email record: the address")
    email_log_sent: str = guess("email", "DATA", "Email record: the action of a message that was sent")
    in_app_record_fields: str = guess("", "ASSUME", "In-app record: other names of fields, `theirs:ours theirs:ours`")
    email_record_fields: str = guess("", "ASSUME", "Email record: other names of fields, `theirs:ours theirs:ours`")
    merge_record_fields: str = guess("", "ASSUME", "Merge record: other names of fields, `theirs:ours theirs:ours`")

    # Adaptive Campaign and Job Status.
    adaptive_start: str = guess("k_send_ts", "SIB", "Field with the start time, as in Flex")
    adaptive_start_place: str = guess(
        "default_params", "ASSUME", "Object of the body, or list of objects, that holds the start time"
    )
    job_state: str = guess("status", "ASSUME", "Answer field with the state of a job")
    job_processed: str = guess("processed", "ASSUME", "Answer field with the recipients done")
    job_total: str = guess("total", "ASSUME", "Answer field with all recipients")
    job_errors: str = guess("errors", "ASSUME", "Answer field with what went wrong")
    job_complete: str = guess("complete", "ASSUME", "State word of a job that is done")
    job_failed: str = guess("failed", "ASSUME", "State word of a job that was given up")

    # Email Sync and SMS Sync.
    sync_errors: str = guess("errors", "ASSUME", "Answer field with the list of rejected entries")

    # Flex.
    flex_events: str = guess("event_list", "ASSUME", "Body field with the list of events")
    flex_event: str = guess("event", "ASSUME", "Field of an event with the event's or object's id")
    flex_params: str = guess("params", "SIB", "Field of an event with its parameters, as in Push")
    flex_default_params: str = guess("default_params", "SIB", "Body field with parameters of all, as in Adaptive")
    flex_job: str = guess("job_id", "SIB", "Answer field with the job, if there is one")

    # User/Campaign.
    user_campaign_name: str = guess("campaign_name", "ASSUME", "Body field with the campaign's name")
    user_campaign_start: str = guess("start_date", "ASSUME", "Body field with the start of the range")
    user_campaign_end: str = guess("end_date", "ASSUME", "Body field with the end of the range")
    user_campaign_action: str = guess("action", "ASSUME", "Body field with the action")
    user_campaign_credentials: str = guess("credentials_list", "ASSUME", "Body field with the users' credentials")
    user_campaign_records: str = guess("records", "ASSUME", "Answer field with the list of users")
    user_campaign_user: str = guess("credentials", "ASSUME", "Record field with the user's credentials")
    user_campaign_campaigns: str = guess("campaigns", "ASSUME", "Record field with what the campaigns did")

    # User Info.
    user_info_user: str = guess("user", "ASSUME", "Answer field with the user")
    user_info_credentials: str = guess("credentials", "ASSUME", "User's field with the credentials")
    user_info_attributes: str = guess("attributes", "ASSUME", "User's field with the attributes")
    user_info_devices: str = guess("devices", "ASSUME", "User's field with the devices")
    user_info_events: str = guess("events", "ASSUME", "User's field with the events")
    user_info_email_stop: str = guess(
        "email_opt_out", "ASSUME", "User's field that is true while Kahuna mails nothing to the user"
    )
    user_info_sms_stop: str = guess(
        "sms_opt_out", "ASSUME", "User's field that is true while Kahuna texts nothing to the user"
    )

    def __post_init__(self) -> None:
        for name in ("user_delete_path", "campaign_statistics_path"):
            path = getattr(self, name)
            if not path.startswith("/"):
                raise WrongCorrection(f"{name} must begin with a slash")
            if "?" in path or "#" in path:
                # The parameter `env` would take the place of what is behind it.
                raise WrongCorrection(f"{name} must be a path alone, without ? and #")

    @classmethod
    def corrected(cls, text: str) -> Self:
        """The contract with some guesses mended: `name=value,name=value`. WrongCorrection names what is wrong."""
        return dataclasses.replace(cls(), **dict(_correction(part) for part in text.split(",") if part.strip()))


def _correction(part: str) -> tuple[str, Any]:
    name, separator, value = (piece.strip() for piece in part.partition("="))
    known = {field.name: field for field in dataclasses.fields(Contract)}
    if not separator or name not in known:
        raise WrongCorrection(f"{name!r} is no name of Kahuna's contract; the names are {', '.join(known)}")
    if known[name].type in (bool, "bool"):
        if value not in _SWITCH:
            raise WrongCorrection(f"{name} must be yes or no")
        return name, _SWITCH[value]
    if not value or not value.isascii() or not value.isprintable():
        raise WrongCorrection(f"{name} must be a text of printable ASCII")
    if name in ("statistics_date", "log_time") and "%" not in value:
        raise WrongCorrection(f"{name} must be a pattern with strftime's signs")
    if name.endswith("_record_fields") and not _RENAMED.fullmatch(value):
        raise WrongCorrection(f"{name} must be pairs such as theirs:ours, with spaces between")
    return name, value


def renamed(fields: str) -> dict[str, str]:
    """Our names of record fields by the vendor's, of a text such as `theirs:ours theirs:ours`."""
    pairs = (pair.partition(":") for pair in fields.split())
    return {theirs: ours for theirs, _, ours in pairs}
