"""Owns the address in a path: which one a call is about. Refuses what servers would have replaced without a word."""

import re
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.types import Scope

from service.domain.addresses import CHANNELS
from service.errors import BadRequest, NotFound
from service.flows.write import normalised
from service.store.access import Caller
from service.store.suppressions import Subject
from service.web.contract import Call, channel_for


def subject_of(call: Call[Any, Any]) -> Subject:
    """The namespace, the channel and the normal form of the address in the path, which the server has percent-decoded
    once."""
    return subject_in(call.request.scope, call.caller, call.namespace)


def subject_in(asked: Scope, caller: Caller, namespace: str) -> Subject:
    """The same, of a request that has come as far as its `path_params`."""
    channel, address = asked["path_params"]["channel"], asked["path_params"]["address"]
    return subject_at(channel, address, asked.get("raw_path", b""), caller, namespace)


def subject_at(channel: str, address: str, raw: bytes, caller: Caller, namespace: str) -> Subject:
    """The same, of the channel and the address in a path that was sent like this."""
    if channel not in CHANNELS:
        raise NotFound("There is no such channel; use email or sms.", "unknown-channel")
    channel_for(caller, channel)
    _refuse_bad_encoding(raw)
    # A local part may hold a slash, a domain never: what follows one names something that does not exist here.
    if channel == "email" and "/" in address.rpartition("@")[2] and "@" in address:
        raise NotFound("There is nothing at this path below an address.")
    return Subject(namespace, channel, normalised(channel, address))


def _refuse_bad_encoding(raw: bytes) -> None:
    """Servers replace what is not UTF-8, and a question about one address would be answered for another."""
    if b"%" not in raw and raw.isascii():
        return
    try:
        unquote_to_bytes(raw).decode()
        well_formed = not re.search(rb"%(?![0-9A-Fa-f]{2})", raw)
    except UnicodeDecodeError:
        well_formed = False
    if not well_formed:
        raise BadRequest("The path is not percent-encoded UTF-8; encode the address again.", "bad-encoding")
