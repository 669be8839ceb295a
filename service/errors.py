"""The error tree of the service, each error with the stable slug that a caller sees.

    KahunaSyncError
    ├── SettingsError            a setting is missing or wrong: the start ends here
    ├── StorageUnavailable       503: nothing was done, try again later
    │   ├── StorageOutdated
    │   └── StorageBusy
    └── RequestError             the caller must change the request
        ├── BadRequest           400
        ├── Unauthenticated      401
        │   └── SignatureRefused
        ├── Forbidden            403
        ├── NotFound             404
        ├── TooSlow              408
        ├── Conflict             409
        ├── Expired              410
        ├── TooLarge             413
        ├── TooLong              414
        ├── UnsupportedEncoding  415
        ├── UnsupportedMediaType 415
        ├── Unprocessable        422
        └── TooManyCalls         429

Messages tell the reader what to do next. None holds a key, a token or an address. This module knows no HTTP
library: `status` is the number that the web floor answers with.
"""

from typing import ClassVar


class KahunaSyncError(Exception):
    """Anything that the service refuses or cannot do, with the sentence that says why."""

    slug: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500


class SettingsError(KahunaSyncError):
    """A setting is missing or wrong. The message names it."""

    slug = "wrong-settings"


class RequestError(KahunaSyncError):
    """The request is refused. `slug` overrides the class's own, for a more telling one."""

    status = 400
    slug = "bad-request"

    def __init__(self, message: str, slug: str | None = None) -> None:
        super().__init__(message)
        self.reason = slug or type(self).slug


class BadRequest(RequestError):
    """400: not understood."""


class Unauthenticated(RequestError):
    """401: no proof of who is calling, or a wrong one."""

    status = 401
    slug = "unauthenticated"


class SignatureRefused(Unauthenticated):
    """401: a callback without the proof that Kahuna sent it."""


class Forbidden(RequestError):
    """403: known caller, missing right."""

    status = 403
    slug = "forbidden"


class NotFound(RequestError):
    """404: no such thing here."""

    status = 404
    slug = "not-found"


class TooSlow(RequestError):
    """408: the body did not arrive in time."""

    status = 408
    slug = "body-too-slow"


class Conflict(RequestError):
    """409: the state of things forbids it."""

    status = 409
    slug = "conflict"


class Expired(RequestError):
    """410: what follows this cursor is not kept any more, or was another database's."""

    status = 410
    slug = "cursor-expired"


class TooLarge(RequestError):
    """413: over the body limit, as sent or once decompressed."""

    status = 413
    slug = "body-too-large"


class TooLong(RequestError):
    """414: the path with its query is longer than anything that can be asked."""

    status = 414
    slug = "path-too-long"


class UnsupportedEncoding(RequestError):
    """415: a Content-Encoding other than identity or gzip."""

    status = 415
    slug = "unsupported-encoding"


class UnsupportedMediaType(RequestError):
    """415: a body whose Content-Type is none that this call takes."""

    status = 415
    slug = "unsupported-media-type"


class Unprocessable(RequestError):
    """422: understood, but it cannot be true."""

    status = 422
    slug = "unprocessable"


class TooManyCalls(RequestError):
    """429: this caller must wait. `retry_after` is in seconds."""

    status = 429
    slug = "rate-limited"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageUnavailable(KahunaSyncError):
    """503: the database cannot be reached or is too busy. `retry_after` is in seconds."""

    slug = "storage-unavailable"
    status = 503

    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageOutdated(StorageUnavailable):
    """503: the database is there, but lacks a table or a column that this code needs."""

    slug = "storage-outdated"


class StorageBusy(StorageUnavailable):
    """503: the database is there, but others held what this needed, each time it was tried."""

    slug = "storage-busy"
