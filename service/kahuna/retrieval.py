"""The shapes of the data-retrieval APIs: records as Kahuna keeps them, and its times.

Refuses to fetch. A record holds what is known of its fields with the fields' own names; what is unknown or of another
type is in `extra`. A repr shows no address.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from service.kahuna.contract import MAX_USERS, Contract
from service.kahuna.reading import Kept
from service.kahuna.sending import Credential


class UserProfile(Kept, frozen=True):
    """What Kahuna stores of a user. No page shows it: names are ASSUME, and may all turn out to be in `extra`."""

    credentials: dict[str, Any] | None = None
    attributes: dict[str, Any] | None = None
    devices: list[Any] | None = None
    events: list[Any] | None = None


class UserInfoAnswer(Kept, frozen=True):
    """The user, or None if there is none by that credential: that is no error to Kahuna [DOC]."""

    shown: ClassVar[tuple[str, ...]] = ("found",)
    derived: ClassVar[tuple[str, ...]] = ("user",)

    user: UserProfile | None = None

    @property
    def found(self) -> bool:
        """Whether there is such a user."""
        return self.user is not None


class LogRecord(Kept, frozen=True):
    """What records of all categories have. `timestamp` is UTC text, `YYYY-MM-DD HH:MM:SS.ffffff` [CODE]."""

    shown: ClassVar[tuple[str, ...]] = ("timestamp",)

    timestamp: str | None = None

    @property
    def time(self) -> datetime | None:
        """The moment in UTC; None where the text is none."""
        return moment(self.timestamp)


class CampaignRecord(LogRecord, frozen=True):
    """What a campaign did. `action` is Kahuna's word, whatever it is; `credentials` are `type:value` texts."""

    shown: ClassVar[tuple[str, ...]] = ("action", "campaign_id", "timestamp")

    user_id: int | None = None
    campaign: str | None = None
    campaign_id: int | None = None
    action: str | None = None
    action_category: str | None = None
    action_detail: str | None = None
    credentials: tuple[str, ...] = ()
    message: str | None = None


class PushRecord(CampaignRecord, frozen=True):
    """One step of a push. Actions: push, rate_limited, uninstalled, click, "more engaged", goal [DOC]."""

    dev_id: str | None = None
    push_token: str | None = None
    os: str | None = None
    ghost: bool | None = None


class InAppRecord(CampaignRecord, frozen=True):
    """One step of an in-app message; the fields are those of a push [ASSUME]. Actions: ia_delivered, ia_goal [DATA]."""

    dev_id: str | None = None
    os: str | None = None
    ghost: bool | None = None


class EmailRecord(CampaignRecord, frozen=True):
    """One step of an email; the fields are ASSUME. Actions: email, email_goal, opened [DATA]."""

    email: str | None = None


class MergeRecord(LogRecord, frozen=True):
    """Two users that became one: what both had and what only each had, as `type:value` [DOC; names ASSUME]."""

    user_id: int | None = None
    common_credentials: tuple[str, ...] = ()
    older_user_credentials: tuple[str, ...] = ()
    newer_user_credentials: tuple[str, ...] = ()


class UserCampaignRecord(Kept, frozen=True):
    """One user and what campaigns did to it [ASSUME]."""

    derived: ClassVar[tuple[str, ...]] = ("campaigns",)

    credentials: dict[str, Any] | None = None
    campaigns: tuple[CampaignRecord, ...] = ()


class CampaignFigures(Kept, frozen=True):
    """The figures of one campaign; sums of money are in hundredths [ASSUME; names of figures DATA]."""

    shown: ClassVar[tuple[str, ...]] = ("campaign_id", "channel", "stats")

    campaign_id: int | None = None
    campaign: str | None = None
    channel: str | None = None
    stats: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignQuery:
    """What is asked of User/Campaign: a name, a suite, a range of time, an action, up to 100 users. Each may be None.

    Times need a zone. A query with nothing but the name of an Experience gives its email titles and subjects [DOC].
    """

    campaign_name: str | None = None
    suite_id: int | None = None
    start: datetime | None = None
    end: datetime | None = None
    action: str | None = None
    credentials: Sequence[Credential] = field(default=(), repr=False)


def query_body(query: CampaignQuery, names: Contract) -> dict[str, Any]:
    """The first body of User/Campaign."""
    given = {
        names.user_campaign_name: query.campaign_name,
        "suite_id": query.suite_id,
        names.user_campaign_start: query.start and written(query.start, names),
        names.user_campaign_end: query.end and written(query.end, names),
        names.user_campaign_action: query.action,
        names.user_campaign_credentials: query.credentials or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def query_fault(query: CampaignQuery | None, cursor: str | None) -> str | None:
    """What keeps User/Campaign from being asked this."""
    if query is None:
        return "it needs a query or a cursor" if cursor is None else None
    if len(query.credentials) > MAX_USERS:
        return f"{MAX_USERS} users at most"
    if not (zoned(query.start) and zoned(query.end)):
        return "a time needs its zone, and a year that UTC has"
    return None


def zoned(time: datetime | None) -> bool:
    """Whether the time, if there is one, says which moment it is, and UTC has that moment too."""
    if time is None:
        return True
    try:
        return time.utcoffset() is not None and time.astimezone(UTC) is not None
    except OverflowError:
        return False


def written(time: datetime, names: Contract) -> str:
    """A time as Kahuna reads it: in UTC, whatever its own zone, and cut to seconds."""
    return time.astimezone(UTC).strftime(names.log_time)


def moment(text: str | None) -> datetime | None:
    """A time of Kahuna's logs in UTC; None for what is none. A zone in the text counts; without one it is UTC."""
    try:
        read = datetime.fromisoformat(text or "")
        return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
