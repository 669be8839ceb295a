"""Everything that Kahuna defines: its words, its signature, its APIs, and a stand-in for it.

Usable by itself:

    credentials = Credentials(VENDOR_BASE_URL, "p", Secret(secret_key), Secret(api_key))
    async with KahunaClient(credentials) as kahuna:
        print((await kahuna.user_info("email", "ann@example.com")).found)

This face is what other code needs for calls; webhooks are in `webhook`, the words of the two syncs in `wire`.
"""

from service.kahuna.calling import NO_RETRY, Call, Credentials, Retry, Timeouts, WrongCredentials
from service.kahuna.client import KahunaClient
from service.kahuna.contract import Contract, WrongCorrection
from service.kahuna.errors import (
    Ambiguous,
    BadRequest,
    CredentialsRefused,
    Done,
    JobUnfinished,
    KahunaError,
    NotPermitted,
    RateLimited,
    Refused,
    TooLarge,
    Unavailable,
    Unreachable,
    UnreadableAnswer,
)
from service.kahuna.paging import Page, Pages, Position
from service.kahuna.retrieval import (
    CampaignFigures,
    CampaignQuery,
    CampaignRecord,
    EmailRecord,
    InAppRecord,
    LogRecord,
    MergeRecord,
    PushRecord,
    UserCampaignRecord,
    UserInfoAnswer,
    UserProfile,
)
from service.kahuna.sending import (
    AdaptiveAnswer,
    CampaignConfig,
    DeleteAnswer,
    FlexAnswer,
    FlexConfig,
    FlexEvent,
    JobStatus,
    Outcome,
    PushConfig,
    PushMessage,
    Recipient,
    ServerAnswer,
    ServerEvent,
    ServerRequest,
    UserAttributes,
)
from service.kahuna.wire import EmailSyncEntry, SmsSyncEntry, SyncAnswer
from service.settings import VENDOR_BASE_URL, Secret

__all__ = [
    "NO_RETRY",
    "VENDOR_BASE_URL",
    "AdaptiveAnswer",
    "Ambiguous",
    "BadRequest",
    "Call",
    "CampaignConfig",
    "CampaignFigures",
    "CampaignQuery",
    "CampaignRecord",
    "Contract",
    "Credentials",
    "CredentialsRefused",
    "DeleteAnswer",
    "Done",
    "EmailRecord",
    "EmailSyncEntry",
    "FlexAnswer",
    "FlexConfig",
    "FlexEvent",
    "InAppRecord",
    "JobStatus",
    "JobUnfinished",
    "KahunaClient",
    "KahunaError",
    "LogRecord",
    "MergeRecord",
    "NotPermitted",
    "Outcome",
    "Page",
    "Pages",
    "Position",
    "PushConfig",
    "PushMessage",
    "PushRecord",
    "RateLimited",
    "Recipient",
    "Refused",
    "Retry",
    "Secret",
    "ServerAnswer",
    "ServerEvent",
    "ServerRequest",
    "SmsSyncEntry",
    "SyncAnswer",
    "Timeouts",
    "TooLarge",
    "Unavailable",
    "Unreachable",
    "UnreadableAnswer",
    "UserAttributes",
    "UserCampaignRecord",
    "UserInfoAnswer",
    "UserProfile",
    "WrongCorrection",
    "WrongCredentials",
]
