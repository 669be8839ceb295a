"""Everything that can go wrong on a call to Kahuna, as the caller must tell it apart.

    KahunaError
    ├── CredentialsRefused   401         the keys are wrong: every call will fail until somebody acts
    ├── NotPermitted         409 (403)   the keys are right, but may not use this API
    ├── BadRequest           400 (422)   this request will never be taken as it is
    ├── TooLarge             413         smaller requests may be taken
    ├── RateLimited          429         later; `retry_after` says when, if Kahuna did
    ├── Unavailable          the rest    later; a 404 or a redirect too, since they say nothing of the request
    ├── Ambiguous            –           sent, or perhaps sent, and no whole answer came back
    ├── Unreachable          –           surely not sent
    └── UnreadableAnswer     2xx         taken, or so it seems, but the answer is not the contract's

Refuses to carry what the vendor wrote, any address and any key: messages are made here, of our own words, so that an
error may be logged, stored and shown as it is.
"""

from typing import ClassVar


class KahunaError(Exception):
    """A call to Kahuna that did not succeed. `retry_after` is in seconds, unbounded, as Kahuna asked."""

    slug: ClassVar[str] = "kahuna-error"
    meaning: ClassVar[str] = "the call failed"

    def __init__(
        self, api: str, status: int | None = None, retry_after: float | None = None, cause: str | None = None
    ) -> None:
        answered = f" (status {status})" if status is not None else ""
        super().__init__(f"{api}: {self.meaning}{answered}" + (f": {cause}" if cause else ""))
        self.api = api
        self.status = status
        self.retry_after = retry_after


class CredentialsRefused(KahunaError):
    """401: unknown Secret Key or wrong API Key."""

    slug = "credentials-refused"
    meaning = "Kahuna refuses the Secret Key or the API Key"


class NotPermitted(KahunaError):
    """409: Kahuna's word for keys without permission for this API; 403 is taken alike."""

    slug = "not-permitted"
    meaning = "these keys have no permission for this API"


class BadRequest(KahunaError):
    """400, and 422: about the request itself."""

    slug = "bad-request"
    meaning = "Kahuna does not accept the request"


class TooLarge(KahunaError):
    """413: the body is over the vendor's limit."""

    slug = "too-large"
    meaning = "the request is too large for Kahuna"


class RateLimited(KahunaError):
    """429: not documented by Kahuna, but any proxy before it may answer so."""

    slug = "rate-limited"
    meaning = "Kahuna asks for fewer requests"


class Unavailable(KahunaError):
    """5xx, and whatever has no class of its own: nothing is known to be done, and the same may succeed later."""

    slug = "unavailable"
    meaning = "Kahuna cannot answer now"


class Ambiguous(KahunaError):
    """The request may have been processed. Sending it again is safe only where the API is idempotent."""

    slug = "ambiguous"
    meaning = "the request may have been sent, but no whole answer came back"


class Unreachable(KahunaError):
    """The request was surely not processed: no connection was made."""

    slug = "unreachable"
    meaning = "no connection to Kahuna"


class UnreadableAnswer(KahunaError):
    """Success by its status, but the body does not say what was done."""

    slug = "unreadable-answer"
    meaning = "Kahuna's answer cannot be read"
