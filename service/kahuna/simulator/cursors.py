"""Opaque cursors that need no memory: what they stand for is inside, sealed.

Owns their form, and when one is no longer known. Refuses one that it did not make itself, or made for another API.
"""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, Final, TypeVar

import msgspec
from starlette.exceptions import HTTPException

from service.kahuna.simulator.door import Call

_SEAL_BYTES: Final = 8

_T = TypeVar("_T")


def cursor(call: Call, place: msgspec.Struct) -> str:
    """A cursor for this place. Places of different kinds must differ in their tag."""
    sealed = msgspec.json.encode((call.env, call.kahuna.now(), place))
    return urlsafe_b64encode(_seal(call, sealed) + sealed).decode().rstrip("=")


def place_of(call: Call, text: str, kind: type[_T]) -> _T:
    """The place that this cursor stands for, or a 400. How long Kahuna's live is not known."""
    env, issued, place = _opened(call, text)
    lifetime = call.kahuna.config.cursor_lifetime_seconds
    if call.fault.expire_cursor or (lifetime is not None and call.kahuna.now() > issued + lifetime):
        raise HTTPException(400, "Cursor expired")
    try:
        if env == call.env:
            return msgspec.convert(place, kind)
    except msgspec.ValidationError:
        pass
    raise HTTPException(400, "Cursor of another API or environment")


def _opened(call: Call, text: str) -> tuple[str, int, Any]:
    try:
        whole = urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    except ValueError:
        raise HTTPException(400, "Unknown cursor") from None
    sealed = whole[_SEAL_BYTES:]
    if whole[:_SEAL_BYTES] != _seal(call, sealed):
        raise HTTPException(400, "Unknown cursor")
    return msgspec.json.decode(sealed, type=tuple[str, int, Any])


def _seal(call: Call, sealed: bytes) -> bytes:
    key = f"{call.kahuna.config.seed}".encode()
    return hashlib.blake2b(sealed, digest_size=_SEAL_BYTES, key=key).digest()
