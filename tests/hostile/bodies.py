"""Owns the making of hostile bodies: arrays of entries as Kahuna sends them, with everything that may be wrong in them.

All chance comes from the source that is handed in, so a body is repeated by its number.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final, NamedTuple

from service.domain.addresses import Channel

KEYS: Final = (
    "email",
    "number",
    "reason",
    "timestamp",
    "opt-in",
    "",
    "e\\u006dail",
    "EMAIL",
    "extra",
    "\\ud83d\\ude00",
)
WORDS: Final = ("unsub", "hard_bounce", "soft_bounce", "spam", "invalid", "blocked", "reject", "sneezed", "UNSUB", "")
NUMBERS: Final = (
    *("0", "-0", "1", "-1", "1795000000", "1795000000000", "1795000000.9", "99999999999999", "1e5", "1E+2", "-1.5e-7"),
    *("1e400", "-1e999", "NaN", "Infinity", "-Infinity", "18446744073709551616", "-9223372036854775809"),
    *("9" * 300, "9" * 4299, "9" * 4300, "-" + "9" * 4300, "9" * 4301, "0." + "3" * 5000),
)
NO_VALUES: Final = ("01", "1.", ".5", "+1", "0x10", "1e", "nul", "True", "'x'", '"\n"', '"\\x"', '"\\u12"', "")
PIECES: Final = (
    *("a", "ann", "@", "example.com", ".", "+", "1555", "0100001", " ", "é", "ß", "你好", "😀", "\u202e", "\u0301"),
    *(
        "\\n",
        "\\u0000",
        "\\u001f",
        "\\\\",
        '\\"',
        "\\/",
        "\\ud800",
        "\\udc00",
        "\\ud83d\\ude00",
        "\\u0130",
        "xn--",
        "%",
    ),
)
TOKENS: Final = (
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b'"',
        b"\\",
        b"null",
        b"true",
        b"NaN",
        b"1e400",
        b"\\ud800",
        b"\x00",
        b"\xff",
    ),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\x80", b" ", b"\n", b"\x0b", b"//", b"'", b"[" * 70, b'{"a":' * 70, b"-"),
)
BLANKS: Final = ("", "", "", "", " ", "\n", "\t", "\r\n")
MOST_ENTRIES: Final = 12


class Made(NamedTuple):
    """A body, the webhook that it is for, and how it was spoilt."""

    channel: Channel
    body: bytes
    kind: str


def make(chance: Random) -> Made:
    """The next body."""
    channel: Channel = "email" if chance.random() < 0.6 else "sms"
    body = array(chance, channel).encode("utf-8", "surrogatepass")
    if chance.random() < 0.7:
        return Made(channel, body, "array")
    spoil = chance.choice(SPOILERS)
    return Made(channel, spoil(chance, body), spoil.__name__)


def array(chance: Random, channel: Channel) -> str:
    """An array of entries, most of them as they should be."""
    tame = chance.random() < 0.3
    entries = [entry(chance, channel, tame=tame) for _ in range(chance.randrange(MOST_ENTRIES))]
    blanks = [chance.choice(BLANKS) for _ in range(4)]
    return f"{blanks[0]}[{blanks[1]}{(blanks[2] + ',' + blanks[3]).join(entries)}]{blanks[1]}"


def entry(chance: Random, channel: Channel, *, tame: bool) -> str:
    """An entry: sound, with a twist, or something else altogether; of the tame ones but a few are not sound."""
    roll = chance.uniform(0.45, 1) if tame else chance.random()
    if roll < 0.1:
        return value(chance)
    fields = sound(chance, channel)
    if roll < 0.5:
        for _ in range(chance.randrange(1, 3)):
            twist(chance, fields)
    chance.shuffle(fields)
    colon = chance.choice(BLANKS) + ":" + chance.choice(BLANKS)
    return "{" + ",".join(f'"{name}"{colon}{said}' for name, said in fields) + "}"


def sound(chance: Random, channel: Channel) -> list[tuple[str, str]]:
    """The fields of an entry as Kahuna sends it. People come again, in several forms."""
    at = ("timestamp", str(1_700_000_000 + chance.randrange(10**6)))
    person = chance.randrange(3000)
    if channel == "sms":
        number = chance.choice(("", "+", "00")) + f"1555{person:07d}"
        return [("number", f'"{number}"'), at, *chance.choice(([], [], [("opt-in", "true")], [("opt-in", "false")]))]
    address = chance.choice((f"p{person}@example.com", f"P{person}@Example.COM", f" p{person}@bücher.example"))
    return [("reason", f'"{chance.choice(WORDS[:7])}"'), ("email", f'"{address}"'), at]


def twist(chance: Random, fields: list[tuple[str, str]]) -> None:
    """One thing about an entry that is not as it should be."""
    place = chance.randrange(len(fields)) if fields else 0
    match chance.randrange(5):
        case 0 if fields:
            fields.pop(place)
        case 1 if fields:
            fields[place] = (fields[place][0], value(chance))
        case 2 if fields:
            fields.append((fields[place][0], value(chance)))
        case 3:
            fields.append((chance.choice(KEYS), value(chance)))
        case _:
            fields.append((chance.choice(("email", "number")), text(chance)))


def value(chance: Random) -> str:
    """Any value, and some that are none."""
    if chance.random() < 0.03:
        return chance.choice(NO_VALUES)
    match chance.randrange(10):
        case 0 | 1 | 2:
            return chance.choice(NUMBERS)
        case 3 | 4 | 5:
            return text(chance)
        case 6:
            return chance.choice(("true", "false", "null", "[]", "{}", '""'))
        case 7:
            return f'"{chance.choice(WORDS)}"'
        case 8:
            return nested(chance)
        case _:
            return "[" + ",".join(value(chance) for _ in range(chance.randrange(3))) + "]"


def nested(chance: Random) -> str:
    """Brackets in brackets: a few, about as many as are taken, or far too many."""
    depth = chance.choice((1, 2, 5, 62, 63, 64, 65, 66, 200, 1100, 20_000 if chance.random() < 0.05 else 3))
    if chance.random() < 0.5:
        return "[" * depth + chance.choice(NUMBERS[:6]) + "]" * depth
    return '{"a":' * depth + text(chance) + "}" * depth


def text(chance: Random) -> str:
    """A string of odd pieces, now and then a very long one."""
    pieces = "".join(chance.choice(PIECES) for _ in range(chance.randrange(6)))
    return f'"{pieces * chance.choice((1, 1, 1, 1, 40))}"'


def cut(chance: Random, body: bytes) -> bytes:
    """Its end is missing."""
    return body[: chance.randrange(len(body) + 1)]


def torn(chance: Random, body: bytes) -> bytes:
    """A piece of it is missing."""
    start, end = _span(chance, body)
    return body[:start] + body[end:]


def doubled(chance: Random, body: bytes) -> bytes:
    """A piece of it is there twice."""
    start, end = _span(chance, body)
    return body[:end] + body[start:]


def struck(chance: Random, body: bytes) -> bytes:
    """Some of its bytes are others."""
    bytes_of = bytearray(body)
    for _ in range(chance.randrange(1, 4) if bytes_of else 0):
        bytes_of[chance.randrange(len(bytes_of))] = chance.randrange(256)
    return bytes(bytes_of)


def studded(chance: Random, body: bytes) -> bytes:
    """With pieces of the format, and of other formats, in the wrong places."""
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(body) + 1)
        body = body[:place] + chance.choice(TOKENS) + body[place:]
    return body


def marked(_chance: Random, body: bytes) -> bytes:
    """Behind the mark that some programs put before UTF-8."""
    return b"\xef\xbb\xbf" + body


def recoded(chance: Random, body: bytes) -> bytes:
    """In another encoding."""
    return body.decode("utf-8", "replace").encode(
        chance.choice(("utf-16", "utf-16-le", "utf-32", "latin-1")), "replace"
    )


def wrapped(chance: Random, body: bytes) -> bytes:
    """Within something else."""
    before, after = chance.choice(((b"[", b"]"), (b'{"data":', b"}"), (b"", b"[]"), (b'"', b'"'), (b"1", b"")))
    return before + body + after


def alien(chance: Random, _body: bytes) -> bytes:
    """Nothing like it."""
    return chance.choice((b"", b" ", b"null", b"0", b'"x"', b"{}", b"<html>", chance.randbytes(chance.randrange(40))))


SPOILERS: Final[Sequence[Callable[[Random, bytes], bytes]]] = (
    *(cut, torn, doubled, struck, struck, studded, studded),
    *(marked, recoded, wrapped, alien),
)


def _span(chance: Random, body: bytes) -> tuple[int, int]:
    start = chance.randrange(len(body) + 1)
    return start, min(len(body), start + chance.randrange(1, 30))
