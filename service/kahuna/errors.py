"""Everything that can go wrong on a call to Kahuna, as the caller must tell it apart.

    KahunaError
    ├── CredentialsRefused   401         the keys are wrong: every call will fail until somebody acts
    ├── NotPermitted         409 (403)   the keys are right, but may not use this API
    ├── BadRequest           400 (422)   this request will never be taken as it is; without a status, it was not sent
    ├── Refused              200 (400)   `success: false`: read and understood, and not done
    ├── TooLarge             413         smaller requests may be taken
    ├── RateLimited          429         later; `retry_after` says when, if Kahuna did
    ├── Unavailable          the rest    later; a 404 or a redirect too, since they say nothing of the request
    ├── Ambiguous            –           sent, or perhaps sent, and no whole answer came back; for Push, Flex, Adaptive
    │                                    Campaign and Server events after a 5xx too
    ├── Unreachable          –           surely not sent
    ├── JobUnfinished        –           a job was waited for in vain; it goes on at Kahuna
    └── UnreadableAnswer     2xx         taken, or so it seems, but the answer is not the contract's

`may_have_worked` tells those after which a request may be done all the same: before it is sent a second time, ask
whether it may have a second effect.

Refuses to show what the vendor wrote, any address and any key: messages are made here, of our own words, so that an
error may be logged, stored and shown as it is. What the vendor wrote is kept apart, in `detail`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Done:
    """How far a call that takes several requests got: `index` items were answered, `answer` is what was said of them.

    Resume with the items from `index` on; but where the error `may_have_worked`, the request that began there may be
    done too, and where that is not to happen twice, it has to be found out first.
    """

    index: int
    answer: Any = field(repr=False)


class KahunaError(Exception):
    """A call to Kahuna that did not succeed.

    `retry_after` is in seconds, unbounded, as Kahuna asked. `done` is set by calls that take several requests.
    `detail` is what Kahuna wrote about the failure. It may name addresses, so it is in neither str() nor repr(): show
    it to a person who may see them, and log it nowhere.
    """

    slug: ClassVar[str] = "kahuna-error"
    meaning: ClassVar[str] = "the call failed"
    done: Done | None = None

    @property
    def may_have_worked(self) -> bool:
        """Whether the request may have had its effect all the same."""
        broke = self.status is not None and (self.status >= 500 or self.status == 408)
        return isinstance(self, Ambiguous | UnreadableAnswer) or broke

    def __init__(
        self,
        api: str,
        status: int | None = None,
        retry_after: float | None = None,
        cause: str | None = None,
        *,
        detail: str | None = None,
    ) -> None:
        answered = f" (status {status})" if status is not None else ""
        super().__init__(f"{api}: {self.meaning}{answered}" + (f": {cause}" if cause else ""))
        self.api = api
        self.status = status
        self.retry_after = retry_after
        self.detail = detail


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


class Refused(KahunaError):
    """`success: false`, under a status of success (the Server API under 400 too): Kahuna read it and did nothing."""

    slug = "refused"
    meaning = "Kahuna says that it did not do it"


class TooLarge(KahunaError):
    """413: the body is over the vendor's limit. Without a status, it was seen to be so and was not sent."""

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


class JobUnfinished(KahunaError):
    """The deadline of waiting came first. The job goes on; its status may be asked again."""

    slug = "job-unfinished"
    meaning = "the job was not done by the deadline"


class UnreadableAnswer(KahunaError):
    """Success by its status, but the body does not say what was done."""

    slug = "unreadable-answer"
    meaning = "Kahuna's answer cannot be read"
