"""Everything that Kahuna defines: its words, its signature, its APIs, and a stand-in for it.

Usable by itself. This face is what other code needs for a call; webhooks are in `webhook`, shapes in `wire`.
"""

from service.kahuna.client import Credentials, KahunaClient, Timeouts
from service.kahuna.errors import (
    Ambiguous,
    BadRequest,
    CredentialsRefused,
    KahunaError,
    NotPermitted,
    RateLimited,
    TooLarge,
    Unavailable,
    Unreachable,
    UnreadableAnswer,
)
from service.kahuna.wire import EmailSyncEntry, SmsSyncEntry, SyncAnswer

__all__ = [
    "Ambiguous",
    "BadRequest",
    "Credentials",
    "CredentialsRefused",
    "EmailSyncEntry",
    "KahunaClient",
    "KahunaError",
    "NotPermitted",
    "RateLimited",
    "SmsSyncEntry",
    "SyncAnswer",
    "Timeouts",
    "TooLarge",
    "Unavailable",
    "Unreachable",
    "UnreadableAnswer",
]
