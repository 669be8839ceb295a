"""Owns how an address is spelt: one normal form per channel, idempotent and versioned.

Judges mildly, since an odd address must still be suppressible; refuses only what cannot be an address at all.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final, Literal

import idna

Channel = Literal["email", "sms"]

CHANNELS: Final[tuple[Channel, ...]] = ("email", "sms")

VERSION: Final = 1
"""Raised whenever `normalise` gives another answer for any address, so that stored ones can be told apart."""

MAX_EMAIL_CHARACTERS: Final = 320
LONGEST_RAW: Final = 4 * MAX_EMAIL_CHARACTERS
"""Beyond this no normal form is short enough, and finding it would be what somebody wants us to spend time on."""

MIN_DIGITS: Final = 5
MAX_DIGITS: Final = 15

SHARE: Final = 250
"""Addresses that are looked at as one text; an unusual one among them slows down these alone."""

_PLAIN: Final = bytes(c for c in range(0x21, 0x7F) if c != ord("@"))
"""What an address is mostly made of: printable ASCII, without the space and the `@`."""

_SEPARATORS: Final = {ord(c): None for c in " -.()/\u00a0\u2007\u2009\u202f\u2010\u2011\u2012\u2013\u2014\u2212"}


# One `@`, and printable ASCII without capitals on both sides: nothing is left to be done, and nearly all are so.
_NORMAL_EMAIL: Final = re.compile(r"[!-?\[-~]+@[!-?\[-~]+")


class ImpossibleAddress(ValueError):
    """It cannot be an address. `slug` says why; the address itself is never part of the message."""

    def __init__(self, slug: str) -> None:
        super().__init__(slug)
        self.slug = slug


def normalise(channel: Channel, raw: str) -> str:
    """The normal form of an address as received.

    >>> normalise("email", " Ann@Bücher.Example ")
    'ann@xn--bcher-kva.example'
    >>> normalise("sms", "+1 (555) 010-0001")
    '15550100001'
    """
    return _email(raw) if channel == "email" else _number(raw)


def normalise_many(channel: Channel, raws: Sequence[str]) -> list[str | ImpossibleAddress]:
    """What `normalise` says of each, in their order, in a tenth of the time: usual addresses are judged many at a time.

    >>> normalise_many("email", ["Ann@Example.com", "nobody"])
    ['ann@example.com', ImpossibleAddress('not-an-email-address')]
    """
    usual = _usual_emails if channel == "email" else _usual_numbers
    found: list[str | ImpossibleAddress] = []
    for start in range(0, len(raws), SHARE):
        share = raws[start : start + SHARE]
        found += usual(share) or [_judged(channel, raw) for raw in share]
    return found


def _judged(channel: Channel, raw: str) -> str | ImpossibleAddress:
    try:
        return normalise(channel, raw)
    except ImpossibleAddress as error:
        return error


def _usual_emails(raws: Sequence[str]) -> list[str] | None:
    """The normal forms if all of these are plain ASCII around one `@`, else None: then each is judged by itself.

    Every address is a line. Without the plain characters, exactly an `@` must be left of each.
    """
    text = "\n{}\n".format("\n".join(raws)).lower()
    if not text.isascii():
        return None
    lines = text.encode()
    if lines.translate(None, _PLAIN) != b"\n" + b"@\n" * len(raws) or b"\n@" in lines or b"@\n" in lines:
        return None
    normal = text[1:-1].split("\n")
    return normal if max(map(len, normal)) <= MAX_EMAIL_CHARACTERS else None


def _usual_numbers(raws: Sequence[str]) -> list[str] | None:
    """The normal forms if all of these are ASCII digits, separators and a plus sign in front, else None."""
    text = "\n{}\n".format("\n".join(raws))
    if not text.isascii() or max(map(len, raws)) > LONGEST_RAW:
        return None
    lines = text.encode().translate(None, b" -.()/").replace(b"\n+", b"\n")
    if lines.translate(None, b"0123456789") != b"\n" * (len(raws) + 1) or b"\n00" in lines:
        return None
    normal = lines[1:-1].decode().split("\n")
    return normal if all(MIN_DIGITS <= length <= MAX_DIGITS for length in map(len, normal)) else None


def _email(raw: str) -> str:
    if len(raw) <= MAX_EMAIL_CHARACTERS and _NORMAL_EMAIL.fullmatch(raw):
        return raw
    trimmed = raw.strip()
    if len(trimmed) > LONGEST_RAW:
        raise ImpossibleAddress("address-too-long")
    _refuse_unstorable(trimmed)
    folded = _folded(trimmed)
    local, at, domain = folded.rpartition("@")
    if not (local and at and domain) or ("@" in local and not _quoted(local)):
        raise ImpossibleAddress("not-an-email-address")
    address = f"{local}@{_ascii_domain(domain)}"
    if len(address) > MAX_EMAIL_CHARACTERS:
        raise ImpossibleAddress("address-too-long")
    return address


def _folded(text: str) -> str:
    """NFC and lower case, until neither changes it: lower case can undo NFC, and one pass is then not idempotent."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    return folded if folded == text else _folded(folded)


def _quoted(local: str) -> bool:
    """A quoted local part may hold an `@` of its own (RFC 5321)."""
    return len(local) > 2 and local.startswith('"') and local.endswith('"')


def _ascii_domain(domain: str) -> str:
    if domain.isascii():
        return domain
    try:
        return idna.encode(domain, uts46=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        return domain


def _number(raw: str) -> str:
    if len(raw) > LONGEST_RAW:
        raise ImpossibleAddress("wrong-number-of-digits")
    _refuse_unstorable(raw.strip())
    digits = unicodedata.normalize("NFKC", raw.strip()).translate(_SEPARATORS).removeprefix("+")
    while digits.startswith("00"):
        digits = digits.removeprefix("00")
    if not (digits.isascii() and digits.isdecimal()):
        raise ImpossibleAddress("not-a-number")
    if not MIN_DIGITS <= len(digits) <= MAX_DIGITS:
        raise ImpossibleAddress("wrong-number-of-digits")
    return digits


def _refuse_unstorable(text: str) -> None:
    """Control characters, NUL among them, and lone surrogates are in no address, and PostgreSQL could not keep them."""
    if text.isascii() and text.isprintable():
        return
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise ImpossibleAddress("control-character")
