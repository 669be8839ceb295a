"""Normal forms of addresses: idempotent over whatever Unicode holds, mild, and firm on what cannot be an address."""

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.domain.addresses import CHANNELS, SHARE, Channel, ImpossibleAddress, normalise, normalise_many

# Letters whose case or composition is odd, marks that compose, things that vanish, dots and signs that look like ours.
NASTY = (
    'aAzZ@."+-_ iIıİſßẞσςΣKÅåéÉΐǅﬃ\u0301\u0307\u0308\u0338\u0345\u00ad\u00a0\u2000\u200b\u200d\u200f\ufeff\u3000'
    "。．＠＋１٣²½⑴(/)יקאم漢😀\U0001d160\U0001d400\U000e0001"
)
TEXTS = st.text(NASTY, max_size=40) | st.text(max_size=40)
MAILBOXES = st.builds("{}@{}".format, TEXTS, TEXTS | st.just("example.com"))
SIGNS = st.text("+ -.()/０＋\u00a0\u2011\u2212", max_size=3)
NUMBERS = st.builds("{}{}{}{}".format, SIGNS, st.text("0123456789１²⑴", min_size=3, max_size=16), SIGNS, SIGNS)

# Case pairs that are one to one, so that upper-casing loses nothing.
PLAIN_LETTERS = "abcxyzàéîñöüжяαω"


def outcome(channel: Channel, raw: str) -> str:
    """The normal form, or why there is none: refusals can be compared as well."""
    try:
        return normalise(channel, raw)
    except ImpossibleAddress as error:
        return f"refused: {error.slug}"


def refusal(channel: Channel, raw: str) -> str:
    """Why this is refused."""
    with pytest.raises(ImpossibleAddress) as caught:
        normalise(channel, raw)
    return caught.value.slug


# One form.


@given(MAILBOXES | TEXTS)
def test_an_emails_normal_form_is_its_own(raw: str) -> None:
    once = outcome("email", raw)
    assert once.startswith("refused") or normalise("email", once) == once


@given(NUMBERS | TEXTS)
def test_a_numbers_normal_form_is_its_own(raw: str) -> None:
    once = outcome("sms", raw)
    assert once.startswith("refused") or normalise("sms", once) == once


@given(MAILBOXES)
def test_composed_and_decomposed_spellings_are_one_address(raw: str) -> None:
    spellings = {outcome("email", unicodedata.normalize(form, raw)) for form in ("NFC", "NFD")}
    assert spellings == {outcome("email", raw)}


@given(st.text(PLAIN_LETTERS, min_size=1, max_size=12), st.text(PLAIN_LETTERS, min_size=1, max_size=12))
def test_letter_case_makes_no_difference(local: str, domain: str) -> None:
    lower = f"{local}@{domain}.example"
    assert normalise("email", lower.upper()) == normalise("email", lower.title()) == normalise("email", lower)


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("Ann@Example.COM", "ann@example.com"),
        (" \tann@example.com\r\n", "ann@example.com"),
        ("\u3000ann@example.com\u00a0", "ann@example.com"),
        ("JOSE\u0301@example.com", "josé@example.com"),
        ("ann@Bücher.example", "ann@xn--bcher-kva.example"),
        ("ann@BU\u0308CHER.example", "ann@xn--bcher-kva.example"),
        ("ann@XN--BCHER-KVA.example", "ann@xn--bcher-kva.example"),
        ("ann@bücher。example", "ann@xn--bcher-kva.example"),
        ("ann@ｅｘａｍｐｌｅ.com", "ann@example.com"),
    ],
)
def test_an_email_in_its_normal_form(raw: str, normal: str) -> None:
    assert normalise("email", raw) == normal


@pytest.mark.parametrize("domain", ["ex ample.é", "-é-.example", "é..example", "é" * 80, "\u200dé.example"])
def test_a_domain_that_idna_refuses_stays_as_it_is_in_lower_case(domain: str) -> None:
    assert normalise("email", f"Ann@{domain.upper()}") == f"ann@{domain}"


@pytest.mark.parametrize(
    "raw",
    [
        "+15550100001",
        "0015550100001",
        "+0015550100001",
        "1 (555) 010-0001",
        "+1.555.010.0001",
        "1/555/0100001",
        "1\u00a0555\u2011010\u22120001",
        " 15550100001\n",
        "＋１５５５０１００００１",
    ],
)
def test_all_spellings_of_a_number_are_one_address(raw: str) -> None:
    assert normalise("sms", raw) == "15550100001"


@given(st.text("0123456789", min_size=5, max_size=15), st.lists(st.sampled_from(" -.()/\u00a0\u2013"), min_size=16))
def test_separators_never_count(digits: str, separators: list[str]) -> None:
    assume(not digits.startswith("00"))
    spread = "".join(digit + separator for digit, separator in zip(digits, separators, strict=False))
    assert normalise("sms", spread) == digits
    assert normalise("sms", f"+{spread}") == normalise("sms", f"00{spread}") == digits


# Mild: an odd address can still be suppressed.


@given(MAILBOXES)
def test_an_email_is_refused_only_for_its_at_sign_or_characters_that_none_can_hold(raw: str) -> None:
    trimmed = raw.strip()
    local, _, domain = trimmed.rpartition("@")
    single = bool(local and domain) and "@" not in local
    clean = not any(unicodedata.category(c) in ("Cc", "Cs") for c in trimmed)
    assume(single or '"' not in local)
    assert outcome("email", raw).startswith("refused") is not (single and clean)


@pytest.mark.parametrize(
    "odd",
    [
        "a@b",
        ".@.",
        "a..b@example.com",
        "a b@example.com",
        "<ann@example.com>",
        '"ann@home"@example.com',
        '"@"@example.com',
        "ann@[127.0.0.1]",
        "ann+tag@example.com",
        "o'hara/x%y@example.com",
        "a\u200db@example.com",
        "😀@example.com",
        "ann@-example-.com",
    ],
)
def test_an_odd_email_is_kept_as_it_is(odd: str) -> None:
    assert normalise("email", odd) == odd


def test_a_plus_tag_names_another_mailbox() -> None:
    assert normalise("email", "ann+tag@example.com") != normalise("email", "ann@example.com")


# Firm: what cannot be an address at all.


@pytest.mark.parametrize(
    "raw",
    [
        "",
        " ",
        "@",
        "ann",
        "ann@",
        "@example.com",
        "a@b@example.com",
        '"a@b@example.com',
        '"@@example.com',
        "ann＠x.com",
    ],
)
def test_an_email_needs_a_single_at_sign(raw: str) -> None:
    assert refusal("email", raw) == "not-an-email-address"


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("character", ["\x00", "\x1f", "\t", "\n", "\x7f", "\x85", "\ud800"])
def test_no_address_holds_a_control_character_or_half_a_character(channel: Channel, character: str) -> None:
    whole = "ann@example.com" if channel == "email" else "15550100001"
    assert refusal(channel, whole[:3] + character + whole[3:]) == "control-character"


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_nul_is_not_trimmed(channel: Channel) -> None:
    assert refusal(channel, "ann@example.com\x00" if channel == "email" else "15550100001\x00") == "control-character"


@pytest.mark.parametrize("domain", ["@example.com", "@bücher.example"])
def test_an_email_may_have_320_characters_and_no_more(domain: str) -> None:
    room = 320 - len(normalise("email", f"a{domain}")) + 1
    assert len(normalise("email", "a" * room + domain)) == 320
    assert refusal("email", "a" * (room + 1) + domain) == "address-too-long"


@given(st.integers(0, 30), st.sampled_from(["", "+", "00"]))
def test_a_number_has_5_to_15_digits(count: int, prefix: str) -> None:
    digits = "123456789012345678901234567890"[:count]
    if 5 <= count <= 15:
        assert normalise("sms", prefix + digits) == digits
    else:
        assert refusal("sms", prefix + digits) in ("wrong-number-of-digits", "not-a-number")


@pytest.mark.parametrize("digits", ["1234", "1234567890123456", "001234", "00" + "1234567890123456"])
def test_the_wrong_number_of_digits_is_called_so(digits: str) -> None:
    assert refusal("sms", digits) == "wrong-number-of-digits"


@pytest.mark.parametrize(
    "raw", ["", "+", "STOP", "1555010000x", "++15550100001", "1+5550100001", "155501,00001", "½12345"]
)
def test_what_is_no_number_is_called_so(raw: str) -> None:
    assert refusal("sms", raw) == "not-a-number"


@given(TEXTS.filter(lambda text: len(text) > 3))
def test_a_refusal_never_repeats_the_address(raw: str) -> None:
    for channel in CHANNELS:
        result = outcome(channel, raw)
        assert not result.startswith("refused") or raw not in result


# Many at once.

USUAL = st.sampled_from(
    ["Ann@Example.com", "o'brien+x@a.example", "+1 (555) 010-0001", "15550100001", "0049 30 1234567"]
)
# What the short way could take for something else: what holds its own line ends, signs at the edges, nothing at all.
EDGES = st.sampled_from(
    [
        "",
        "\n",
        "@",
        "a@",
        "@b",
        "a@b\n",
        "a@b\nc@d",
        "\na@b",
        "++15550100",
        "1+5550100",
        "00",
        "+0015550100",
        "1234",
        "5" * 16,
    ]
)


def judged(channel: Channel, raws: list[str]) -> list[str]:
    found = normalise_many(channel, raws)
    return [f"refused: {one.slug}" if isinstance(one, ImpossibleAddress) else one for one in found]


@given(st.sampled_from(CHANNELS), st.lists(USUAL | EDGES | MAILBOXES | NUMBERS | TEXTS, max_size=6))
def test_many_are_judged_as_each_by_itself(channel: Channel, raws: list[str]) -> None:
    assert judged(channel, raws) == [outcome(channel, raw) for raw in raws]


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(
    "odd", ["\ud800@example.com", "x" * 400 + "@example.com", "1" + " " * 5000 + "5550100", "é@é.example"]
)
def test_an_odd_one_among_many_changes_no_neighbour(channel: Channel, odd: str) -> None:
    raws = ["Ann@Example.com" if channel == "email" else "+1 555 010 0001"] * (2 * SHARE + 3)
    raws[SHARE + 1] = odd
    assert judged(channel, raws) == [outcome(channel, raw) for raw in raws]
