"""What a list says, line by line: each provider's format, and files that mean no good."""

import gzip
import itertools
import json
import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RequestError, Unprocessable
from service.lists import chunks
from service.lists.chunks import Chunk
from service.lists.columns import Asked, Line
from service.lists.reading import Reading
from service.lists.records import LONGEST, MOST_LINES

AT = 1_700_000_000
Said = tuple[int, str | None, str | None, int | None, str | None]


def lines_of(file: bytes | str, channel: Any = "email", reason: str | None = None, **more: Any) -> list[Line]:
    """Every line of a file, however it is cut on its way."""
    raw = file.encode() if isinstance(file, str) else file
    size = more.pop("size", 7)
    reading = Reading(Asked("default", channel, reason, more.pop("as_of", None)))
    pieces = [list(reading.feed(raw[start : start + size])) for start in range(0, len(raw), size)]
    assert "skipped" not in more or (list(reading.end()), reading.skipped)[1] == more["skipped"]
    tail = list(reading.end()) if "skipped" not in more else []
    return list(itertools.chain.from_iterable(itertools.chain(*pieces, tail)))


def said(file: bytes | str, channel: Any = "email", reason: str | None = None, **more: Any) -> list[Said]:
    """What each line says by the rules of today: its number, address, reason, time and fault."""
    lines = lines_of(file, channel, reason, **more)
    entries = chunks.read(Chunk(channel, lines).body, channel).entries
    return [
        (line.line, entry.address, entry.reason, entry.timestamp, entry.fault)
        for line, entry in zip(lines, entries, strict=True)
    ]


def stop(line: int, address: str, reason: str, at: int | None = AT) -> Said:
    return line, address, reason, at, None


def fault(line: int, error: str) -> tuple[int, str]:
    return line, error


def faults(found: list[Said]) -> list[tuple[int, str]]:
    return [(line, error) for line, *_, error in found if error is not None]


SENDGRID = 'status,reason,email,created\n5.1.1,"550 no, ""such"" user\nat all",Ann@example.com,1700000000\n'
MAILGUN = 'address,code,error,created_at\nann@example.com,550,no such user,"Tue, 14 Nov 2023 22:13:20 UTC"\n'
MAILGUN_OUT = 'address,tags,created_at\nann@example.com,*,"Mon, 01 Jan 0001 00:00:00 UTC"\n'
POSTMARK = [
    {"EmailAddress": "a@example.com", "SuppressionReason": "ManualSuppression", "Origin": "Recipient"},
    {"EmailAddress": "b@example.com", "SuppressionReason": "ManualSuppression", "Origin": "Admin"},
    {"EmailAddress": "c@example.com", "SuppressionReason": "HardBounce", "Origin": "Recipient"},
    {"EmailAddress": "d@example.com", "SuppressionReason": "SpamComplaint", "Origin": "Recipient"},
]
POSTMARK = [one | {"CreatedAt": "2023-11-14T17:13:20-05:00"} for one in POSTMARK]
SES = [
    {"EmailAddress": "a@example.com", "Reason": "BOUNCE", "LastUpdateTime": 1700000000.25},
    {"EmailAddress": "b@example.com", "Reason": "COMPLAINT", "LastUpdateTime": "2023-11-14T22:13:20+00:00"},
]


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_sendgrid(size: int, pack: Any) -> None:
    assert said(pack(SENDGRID.encode()), reason="hard_bounce", size=size) == [stop(2, "Ann@example.com", "hard_bounce")]
    assert said("email,created\na@example.com,1700000000", reason="unsubscribe") == [
        stop(2, "a@example.com", "unsubscribe")
    ]
    assert said("ip,email,created\n192.0.2.1,a@example.com,1700000000") == [stop(2, "a@example.com", "complaint")]
    invalid = "reason,email,created\nMail domain mentioned in email address is unknown,a@example,1700000000\n"
    assert said(invalid, reason="invalid") == [stop(2, "a@example", "invalid")]
    assert faults(said(invalid)) == [fault(2, "unknown-reason")]


def test_mailgun() -> None:
    assert said(MAILGUN) == [stop(2, "ann@example.com", "hard_bounce")]
    assert said('address,tags,created_at\na@example.com,*,"Tue, 14 Nov 2023 22:13:20 UTC"') == [
        stop(2, "a@example.com", "unsubscribe")
    ]
    assert said(MAILGUN_OUT) == [stop(2, "ann@example.com", "unsubscribe", None)]
    assert said('address,created_at\na@example.com,"Tue, 14 Nov 2023 22:13:20 GMT"', reason="complaint") == [
        stop(2, "a@example.com", "complaint")
    ]


@pytest.mark.parametrize("size", [1, 5, 100_000])
def test_postmark(size: int) -> None:
    wanted = ["unsubscribe", "manual", "hard_bounce", "complaint"]
    for file in (json.dumps({"Suppressions": POSTMARK}), json.dumps({"Suppressions": POSTMARK}, indent=2)):
        found = said(file, size=size)
        assert [reason for _, _, reason, at, _ in found if at == AT] == wanted
    numbers = [line for line, *_ in said(json.dumps({"Suppressions": POSTMARK}, indent=2))]
    assert numbers == [3, 9, 15, 21]
    rows = "\n".join(",".join(one.values()) for one in POSTMARK)
    found = said("EmailAddress,SuppressionReason,Origin,CreatedAt\n" + rows)
    assert [reason for _, _, reason, at, _ in found if at == AT] == wanted


@pytest.mark.parametrize("size", [1, 5, 100_000])
def test_amazon_ses(size: int) -> None:
    wanted = [("a@example.com", "hard_bounce", AT), ("b@example.com", "complaint", AT)]
    page = {"SuppressedDestinationSummaries": SES, "NextToken": "x"}
    for file, times in (
        (json.dumps(page), 1),
        (json.dumps(page, indent=4) + "\n" + json.dumps(page, indent=4), 2),
        ("\n".join(map(json.dumps, SES)), 1),
        (json.dumps(SES), 1),
    ):
        assert [one[1:4] for one in said(file, size=size)] == wanted * times


OURS = "namespace,channel,address,reason,active,occurred_at,until,origin,recorded_at,address_received\r\n"


def test_our_own_export() -> None:
    at = "2023-11-14T22:13:20Z"
    file = OURS + "".join(
        f"default,{channel},{address},{reason},{active},{at},,kahuna_webhook,{at},{received}\r\n"
        for channel, address, reason, active, received in (
            ("email", "ann@example.com", "unsubscribe", "true", "Ann@Example.com"),
            ("email", "bob@example.com", "complaint", "true", ""),
            ("email", "cleared@example.com", "complaint", "false", ""),
            ("sms", "15550100001", "do_not_call", "true", ""),
            ("email", "dan@example.com", "soft_bounce", "true", "eve@example.com"),
        )
    )
    assert said(file, skipped=2) == [
        stop(2, "Ann@Example.com", "unsubscribe"),
        stop(3, "bob@example.com", "complaint"),
        stop(6, "dan@example.com", "soft_bounce"),
    ]
    assert faults(said(file.replace("default,email,bob", "other,email,bob"), skipped=2))[0] == fault(
        3, "other-namespace"
    )
    assert [line.origin for line in lines_of(file) if not line.fault] == ["kahuna_webhook"] * 3
    assert [line.origin for line in lines_of(file.replace("kahuna_webhook", "api"))] == [None] * 3
    row = {"namespace": "default", "channel": "email", "address": "a@example.com", "reason": "manual", "active": False}
    assert said(json.dumps(row | {"occurred_at": at}), skipped=1) == []


@pytest.mark.parametrize("active", ["true", "TRUE", " True "])
def test_an_export_that_went_through_a_spreadsheet_still_stops(active: str) -> None:
    row = "default,email,a@example.com,manual,{},2023-11-14T22:13:20Z,,,,\r\n"
    assert said(OURS + row.format(active), skipped=0) == [stop(2, "a@example.com", "manual")]
    assert said(OURS + row.format("FALSE") + row.format(" false"), skipped=2) == []
    for unclear in ("", "yes", "1", "WAHR"):
        assert faults(said(OURS + row.format(unclear), skipped=0)) == [fault(2, "bad-active")]


@pytest.mark.parametrize(
    ("file", "channel", "wanted"),
    [
        ("address,email\n1 Long Road,a@example.com\n", "email", "a@example.com"),
        ("Address;E-Mail Address\n1 Long Road;a@example.com\n", "email", "a@example.com"),
        ("address,number,phone\n1 Long Road,12345,15550100001\n", "sms", "15550100001"),
        ("number,address\n15550100001,1 Long Road\n", "sms", "15550100001"),
        ('{"address": "1 Long Road", "email": "a@example.com"}', "email", "a@example.com"),
        (OURS.strip() + ",email\ndefault,email,a@example.com,manual,true,,,,,,work\n", "email", "a@example.com"),
    ],
)
def test_the_name_that_says_more_is_that_of_the_addresses(file: str, channel: str, wanted: str) -> None:
    assert [one[1] for one in said(file, channel, "manual")] == [wanted]


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("a@example.com\nb@example.com\n", ["a@example.com", "b@example.com"]),
        ("\ufeffa@example.com\r\n\r\nb@example.com", ["a@example.com", "b@example.com"]),
        ("\n \n\nE-Mail Address\ra@example.com\r", ["a@example.com"]),
        ("Email;Name\na@example.com;Müller, Ann\n", ["a@example.com"]),
        ('name\temail\n"a\tb"\ta@example.com\n', ["a@example.com"]),
        ("email,email\na@example.com,b@example.com\n", ["a@example.com"]),
        ('"email","note"\n"a@example.com","said ""no"""\n', ["a@example.com"]),
        ("email,note\na@example.com\nb@example.com,x,\n", ["a@example.com", "b@example.com"]),
    ],
)
def test_files_as_people_make_them(file: str, wanted: list[str]) -> None:
    for encoding in ("utf-8", "utf-16"):
        if not (encoding == "utf-16" and file.startswith("\ufeff")):
            assert [one[1] for one in said(file.encode(encoding), reason="manual")] == wanted


def test_numbers() -> None:
    assert said("Phone Number,reason,date\n+1 (555) 010-0001,STOP,20231114\n15550100002,opted-out,\n", "sms") == [
        stop(2, "+1 (555) 010-0001", "do_not_call", 1_699_920_000),
        stop(3, "15550100002", "do_not_call", None),
    ]
    assert said('{"number": 15550100001, "reason": "dnc", "timestamp": 1700000000000}', "sms") == [
        stop(1, "15550100001", "do_not_call", AT * 1000)
    ]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1700000000", AT),
        ("1700000000.9", AT),
        ("1700000000123", 1_700_000_000_123),
        ("2023-11-14T22:13:20Z", AT),
        ("2023-11-14 22:13:20", AT),
        ("2023-11-14 22:13:20 UTC", AT),
        ("2023-11-14T17:13:20.5-05:00", AT),
        ("14 Nov 2023 22:13:20 +0000", AT),
        ("14 Nov 23 22:13:20", AT),
        ('"Tue, 14 Nov 2023 17:13:20 EST"', AT),
        ('"Tue, 14 Nov 2023 22:13:20 +0000 (UTC)"', AT),
        ("14 Nov 2023 22:13:20 Z", AT),
        ("1700000000123.9", 1_700_000_000_123),
        ("1000000000", 1_000_000_000),
        ("1999-12-31", 946_598_400),
        ('"Nov 14, 2023 10:13:20 PM"', AT),
        ('"november 14, 2023, 10:13:20\u202fpm"', AT),
        ("Nov 14 2023 22:13:20", AT),
        ('"Jan 5, 2026 3:04 PM"', 1_767_625_440),
        ('"Jan 5, 2026 12:04 AM"', 1_767_571_440),
        ("", None),
        (" ", None),
        ("0", 0),
        ("-5", -5),
    ],
)
def test_times(text: str, at: int | None) -> None:
    assert said(f"email,time\na@example.com,{text}\n", reason="manual") == [stop(2, "a@example.com", "manual", at)]
    for bad in ("soon", "11/14/2023x", "99999999999999999", "nan", "1e400"):
        assert faults(said(f"email,time\na@example.com,{bad}\n", reason="manual")) == [fault(2, "bad-timestamp")]


@pytest.mark.parametrize(
    "text",
    [
        *("5", "2026", "45992", "45992.52", "01.02", "1_000", "999999999", "999999999.9", "0000045992"),
        *("1_700_000_000", "1700000000.", "1.7E+09", "infinity", "\u0662\u0660\u0662\u0666", "19991399", "45992101"),
        *("31 Jan 2026 12:00 AM", "2026-01-31 12:00:00 PM", "Mon Jan 05 2026 15:04:00 GMT+0200 (CET)"),
        *("5 Jan 2026 15:04 +02:00", "5 Jan 2026 15:04 CET", "Jan 5 2026 15:04 CET", "Jan 5 2026 13:04 PM"),
        *("Feb 30 2026 15:04", "1/5/2026 15:04"),
    ],
)
def test_a_text_that_may_mean_another_time_is_none(text: str) -> None:
    """A stop that seems older than a consent would be undone by it."""
    assert faults(said(f"email,time\na@example.com,{text}\n", reason="manual")) == [fault(2, "bad-timestamp")]


@pytest.mark.parametrize("number", ["1", "45992", "45992.52", "999999999", "1e13", "-1e13", "1e400", "NaN"])
def test_a_number_that_is_no_unix_time_is_none(number: str) -> None:
    file = f'[\n{{"email": "a@example.com", "time": {number}}}]'
    assert faults(said(file, reason="manual")) == [fault(2, "bad-timestamp")]


def test_the_time_of_a_list_is_that_of_its_lines_without_one() -> None:
    file = "email,created\na@example.com,\nb@example.com,1600000000\n"
    assert [at for _, _, _, at, _ in said(file, reason="manual", as_of=AT)] == [AT, 1_600_000_000]


def test_a_word_that_is_not_known_is_kept_beside_the_reason_that_stands_for_it() -> None:
    file = "email,reason\na@example.com,grumpy\nb@example.com,spam\nc@example.com, \n"
    found = [(line.reason, line.word) for line in lines_of(file, reason="manual")]
    assert found == [("manual", "grumpy"), ("complaint", None), ("manual", None)]
    assert [(line.reason, line.word) for line in lines_of(file)] == [
        ("grumpy", None),
        ("complaint", None),
        (None, None),
    ]


@pytest.mark.parametrize(
    "file", ["email,reason", "email,reason\r\n\n", "email,reason,createda@example.com,spam,1700000000"]
)
def test_a_first_line_without_another_says_what_curl_may_have_done(file: str) -> None:
    with pytest.raises(Unprocessable, match="--data-binary") as refused:
        said(file, reason="manual")
    assert refused.value.reason == "empty-list"


@pytest.mark.parametrize(
    "file", [random.Random(1).randbytes(5000), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR,\x01", b"\x7fELF\x02,\x01"]
)
def test_what_is_no_text_is_called_so(file: bytes) -> None:
    with pytest.raises(Unprocessable) as refused:
        said(file, reason="manual")
    assert refused.value.reason == "not-text"


def test_a_fault_costs_its_own_line() -> None:
    many = "x" * (LONGEST + 1)
    file = (
        "email,reason,note\n"
        "a@example.com,manual,ok\n"
        'b@example.com,manual,"never closed\n'
        "c@example.com,manual,ok\n"
        "d@example.com,grumpy,ok\n"
        "e@example.com,,ok\n"
        ",manual,ok\n"
        f"{many}\n"
        f'f@example.com,manual,"{many}"\n'
        "g@example.com,manual,ok,more\n"
        'h@example.com,manual,5" wide\n'
        f"{'h' * 2000}@example.com,manual,ok\n"
    ) + "i@example.com,manual,ok\n" * MOST_LINES
    wanted = [
        (3, "unclosed-quote"),
        (5, "unknown-reason"),
        (6, "missing-reason"),
        (7, "missing-address"),
        (8, "line-too-long"),
        (9, "line-too-long"),
        (10, "too-many-cells"),
        (12, "address-too-long"),
    ]
    for size in (1000, 70_000, 10**7):
        found = said(file, size=size)
        assert faults(found) == wanted
        assert [one[1] for one in found if not one[4]][:3] == ["a@example.com", "c@example.com", "h@example.com"]
        assert len(found) == 11 + MOST_LINES


@pytest.mark.parametrize(
    ("file", "first", "wanted"),
    [
        ('email,note\na@x.com,"6 foot\nb@x.com,ok\nc@x.com\nd@x.com,5"\n', 2, "bcd"),
        ('email,note\n\nz@x.com,"two\nlines"\na@x.com,"6 foot\nb@x.com,5"\n', 5, "zb"),
        ('note;email\n"6 foot;a@x.com\n5 foot";b@x.com\n', 2, "b"),
        ('email,note\na@x.com,"6 foot\na@x.com,5"\n', 2, "a"),
        ('email,note\na@x.com,"6 foot\nb@x.com,""\nc@x.com,5"\n', 2, "bc"),
        ('email,note\na@x.com,"6 foot\nb@x.com,ok,too,many\nc@x.com,5"\n', 2, "c"),
        ('email\n"a@x.com\nb@x.com\nc@x.com"\nd@x.com\n', 2, "bcd"),
        ('email,note\na@x.com,"6 foot\nb@x.com,"5 foot\nc@x.com,ok\n', 2, "bc"),
    ],
)
@pytest.mark.parametrize("size", [1, 9, 1000])
def test_a_stray_quote_swallows_no_address(file: str, first: int, wanted: str, size: int) -> None:
    found = said(file, reason="manual", size=size)
    assert faults(found)[0] == fault(first, "stray-quote")
    assert [line[1] for line in found if line[4] is None] == [f"{name}@x.com" for name in wanted]


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_a_first_line_swallows_no_address_either(size: int) -> None:
    with pytest.raises(Unprocessable) as refused:
        said('email,"note\na@x.com,ok\nb@x.com,5"\n', reason="manual", size=size)
    assert refused.value.reason == "no-header"


def test_a_stray_quote_swallows_no_number() -> None:
    found = said('phone,note\n15550100001,"6 foot\n15550100002,ok\n15550100003,5"\n', "sms", "do_not_call")
    assert [line[1] for line in found] == [None, "15550100002", "15550100003"]


@pytest.mark.parametrize(
    "file",
    [
        'email,error\na@x.com,"550 failed\na@x.com\nno such user, by b@x.com"\n',
        'note,email\n"one, two\nthree",a@x.com\n',
        'note,email\n"b@x.com\nwrote this",a@x.com\n',
        'email,note\n"\na@x.com",b@x.com\n',
        '"E-mail\nAddress",email\nx,a@x.com\n',
    ],
)
def test_cells_of_several_lines_are_no_stray_quotes(file: str) -> None:
    found = said(file, reason="manual")
    assert [(line[1] or "").strip() for line in found] == ["a@x.com"]


def test_bytes_that_are_no_text_cost_their_own_line() -> None:
    found = said(b"email,name\na@example.com,M\xfcller\n\xff@example.com,x\n", reason="manual")
    assert (found[0][1], faults(found)) == ("a@example.com", [fault(3, "undecodable")])
    file = '{"email": "a@example.com"}\n{"email": "\\ud800@example.com"}\n{"email": 5}\n[1]\n{"email": null}\nx\n'
    wanted = ["not-json", "missing-address", "not-an-object", "missing-address", "not-json"]
    found = said(file.replace('"email": 5', '"email": true'), reason="manual")
    assert [error for _, error in faults(found)] == wanted
    assert faults(said('[\n{"email": "\\ud800@example.com"},\n7]', reason="manual")) == [
        fault(2, "undecodable"),
        fault(3, "not-an-object"),
    ]


@pytest.mark.parametrize(
    ("file", "slug"),
    [
        (b"", "empty-list"),
        (b"\n \r\n", "empty-list"),
        (b"name,town\nAnn,Rome\n", "no-address-column"),
        (b"a@example.com,1700000000\n", "no-header"),
        (b"a@example.com\n", "reason-required"),
        (b'{"email": "a@example.com"}\n', "reason-required"),
        (b"PK\x03\x04" + bytes(100), "not-text"),
        ("a@example.com".encode("utf-16-le"), "not-text"),
        (gzip.compress(b"a@example.com\n" * 1000, mtime=0)[:-9], "broken-list"),
        (gzip.compress(b"a@example.com\n", mtime=0)[:-3] + b"xyz", "broken-list"),
        (b'{"Suppressions": [{"EmailAddress": "a@example.com", "SuppressionReason": "HardBounce"},', "broken-list"),
        (b'[{"email": "' + b"x" * 2 * LONGEST + b'"}]', "broken-list"),
        (b'{"email": ' * 50_000, "broken-list"),
    ],
)
def test_what_is_no_list_is_refused_in_a_sentence(file: bytes, slug: str) -> None:
    for size in (1, 10**6) if len(file) < 10_000 else (10_000, 10**6):
        with pytest.raises(Unprocessable) as refused:
            lines_of(file, size=size, reason="manual" if slug in ("not-text", "broken-list") else None)
        assert refused.value.reason == slug
        assert str(refused.value).endswith(".")


def test_a_bomb_comes_out_in_pieces() -> None:
    pack = zlib.compressobj(wbits=31)
    bomb = b"".join(pack.compress(b"a@example.com\n" * 10_000) for _ in range(200)) + pack.flush()
    reading = Reading(Asked("default", "email", "manual"))
    most = total = 0
    for lines in itertools.chain(reading.feed(bomb), reading.end()):
        most, total = max(most, len(lines)), total + len(lines)
    assert (total, most < 50_000) == (2_000_000, True)


def test_members_of_gzip_follow_one_another_and_padding_is_nothing() -> None:
    file = gzip.compress(b"email\na@exam") + gzip.compress(b"ple.com\n") + bytes(50)
    for size in (1, 1000):
        assert said(file, reason="manual", size=size) == [stop(2, "a@example.com", "manual", None)]


@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_bytes_at_all_do_more_than_be_refused(noise: bytes, size: int) -> None:
    for start in (b"", b"email,reason\n", b'{"email": "a@example.com"}\n', b"[", b'email\n"'):
        try:
            found = said(start + noise, reason="manual", size=size)
        except RequestError:
            continue
        assert found == said(start + noise, reason="manual", size=1000)


@given(
    st.lists(
        st.lists(st.text(st.sampled_from("ab\",;\n'é"), max_size=6), min_size=2, max_size=3), min_size=1, max_size=30
    )
)
def test_what_a_writer_of_csv_writes_is_read(rows: list[list[str]]) -> None:
    """Whatever stands in the cells beside it, every address is found."""
    chance = random.Random(len(rows))
    quoted = ['"{}"'.format(cell.replace('"', '""')) for row in rows for cell in row]
    file = "note,email\n" + "".join(
        f"{cell},a{n}@example.com{chance.choice(['', ','])}\n" for n, cell in enumerate(quoted)
    )
    assert [one[1] for one in said(file, reason="manual")] == [f"a{n}@example.com" for n in range(len(quoted))]


def test_a_number_that_a_spreadsheet_took_for_one_is_that_number() -> None:
    found = said("phone\n15550100001.0\n1.555.010.0000\n", "sms", "do_not_call")
    assert [address for _, address, *_ in found] == ["15550100001", "1.555.010.0000"]
