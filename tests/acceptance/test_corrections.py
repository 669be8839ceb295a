"""What we owe to Kahuna: sent once, in its words, never told back (design.md 3, Corrections; kahuna-api.md 7, 8)."""

from __future__ import annotations

from .conftest import Deployment
from .speaking import KEYS, Voice, a_number, ago, an_email, seconds_of, started, stopped, told
from .watching import arrived, listed, sentinel, settled


def test_a_local_stop_reaches_the_vendor_once(alone: Voice, single: Deployment) -> None:
    """kahuna-api.md 7: an **array**, Basic (Secret Key : API Key), `env`; design 3: `manual` going out as `unsub`."""
    address, moment = "Mixed.CASE+tag." + an_email(), ago(60)
    alone.stop("email", address, "manual", moment)
    arrived(single.vendor, "email", address)
    sentinel(alone, single.vendor, "email")
    (request,) = single.vendor.requests("email", address)
    assert (request.path, request.env) == ("/api/emailsync", "s")
    assert (request.user, request.password) == ("single-secret", "single-key")
    assert request.headers["content-type"].startswith("application/json")
    assert isinstance(request.body, list)
    (entry,) = [one for one in request.body if one["email"] == address]
    assert entry == {"reason": "unsub", "email": address, "timestamp": moment}
    (row,) = listed(alone, address, "sent")
    assert row["channel"] == "email"


def test_a_local_stop_of_a_number(alone: Voice, single: Deployment) -> None:
    """kahuna-api.md 8: `opt-in`: **left out** if the user texted STOP."""
    number, moment = a_number(), ago(60)
    alone.stop("sms", number, "do_not_call", moment)
    arrived(single.vendor, "sms", number)
    sentinel(alone, single.vendor, "sms")
    (request,) = single.vendor.requests("sms", number)
    assert (request.path, request.env) == ("/api/smssync", "s")
    assert isinstance(request.body, list)
    assert [one for one in request.body if one["number"] == number] == [{"number": number, "timestamp": moment}]


def test_every_reason_goes_out_in_the_vendors_word(alone: Voice, single: Deployment) -> None:
    """design 3: the vendor's words stand in one table both ways."""
    words = {
        "unsubscribe": "unsub",
        "hard_bounce": "hard_bounce",
        "complaint": "spam",
        "invalid": "invalid",
        "blocked": "blocked",
        "rejected": "reject",
    }
    addresses = {reason: an_email() for reason in words}
    for reason, address in addresses.items():
        alone.stop("email", address, reason, ago(60))
    for reason, address in addresses.items():
        assert arrived(single.vendor, "email", address)[0].entry["reason"] == words[reason]


def test_the_first_key_sends(rotated: Voice, many: Deployment) -> None:
    """design 2.1: comma-separated: the first is used to send."""
    address = an_email()
    rotated.stop("email", address, "unsubscribe", ago(60))
    arrived(many.vendor, "email", address)
    request = many.vendor.requests("email", address)[-1]
    assert (request.user, request.password) == ("rotated-secret", "new-key")


def test_each_namespace_sends_with_its_own_keys(left: Voice, right: Voice, many: Deployment) -> None:
    """design 2.3: facts never cross namespaces."""
    one, other = an_email(), an_email()
    left.stop("email", one, "manual", ago(60))
    right.stop("email", other, "manual", ago(60))
    assert {taken.user for taken in arrived(many.vendor, "email", one)} == {"left-secret"}
    assert {taken.user for taken in arrived(many.vendor, "email", other)} == {"right-secret"}


def test_what_kahuna_told_us_is_never_told_back(alone: Voice, single: Deployment) -> None:
    """design 3: what Kahuna told us is thus never told back."""
    address, number, again = an_email(), a_number(), a_number()
    alone.callback("email", [told(address, ago(90)), told(address, ago(80), "hard_bounce")])
    alone.callback("sms", [stopped(number, ago(90)), stopped(again, ago(90)), started(again, ago(80))])
    for channel in ("email", "sms"):
        sentinel(alone, single.vendor, channel)
    assert not single.vendor.requests("email", address)
    assert not single.vendor.requests("sms", number)
    assert not single.vendor.requests("sms", again)


def test_a_stop_that_the_vendor_already_holds_is_not_owed(alone: Voice, single: Deployment) -> None:
    """design 3: a correction is owed when our verdict and the slot disagree."""
    number = a_number()
    alone.callback("sms", [stopped(number, ago(90))])
    alone.stop("sms", number, "do_not_call", ago(60))
    alone.stop("sms", number, "manual", ago(50))
    sentinel(alone, single.vendor, "sms")
    assert not single.vendor.requests("sms", number)


def test_a_reactivated_number_is_opted_in(alone: Voice, single: Deployment) -> None:
    """design 3: we permit by a clear newer than its stop → an opt-in is sent."""
    number, stop, start = a_number(), ago(90), ago(60)
    alone.stop("sms", number, "do_not_call", stop)
    arrived(single.vendor, "sms", number)
    settled(alone, number)
    assert alone.reactivate("sms", number, start).is_success
    *_, last = arrived(single.vendor, "sms", number, 2)
    assert last.entry == {"number": number, "timestamp": start, "opt-in": True}


def test_kahunas_own_stop_is_lifted_by_a_reactivation(alone: Voice, single: Deployment) -> None:
    """design 3: we permit by a clear newer than its stop → an opt-in is sent."""
    number, start = a_number(), ago(60)
    alone.callback("sms", [stopped(number, ago(90))])
    assert alone.reactivate("sms", number, start).is_success
    (only,) = arrived(single.vendor, "sms", number)
    assert only.entry == {"number": number, "timestamp": start, "opt-in": True}


def test_an_opt_in_of_kahuna_after_our_manual_stop_is_answered(alone: Voice, single: Deployment) -> None:
    """design 3: dated the later of our fact and one second after its opt-in."""
    number, stop = a_number(), ago(90)
    alone.stop("sms", number, "manual", stop)
    arrived(single.vendor, "sms", number)
    settled(alone, number)
    alone.callback("sms", [started(number, stop + 20)])
    assert alone.reasons("sms", number) == {"manual"}
    *_, last = arrived(single.vendor, "sms", number, 2)
    assert last.entry == {"number": number, "timestamp": stop + 21}


def test_an_opt_in_of_kahuna_at_the_second_of_our_stop_is_answered(alone: Voice, single: Deployment) -> None:
    """design 3: it last held an opt-in at or after our stop → the stop is sent, one second after its opt-in."""
    number, moment = a_number(), ago(90)
    alone.callback("sms", [started(number, moment)])
    alone.stop("sms", number, "manual", moment)
    arrived(single.vendor, "sms", number)
    settled(alone, number)
    newest = single.vendor.newest("sms", number)
    assert newest is not None
    assert newest.entry == {"number": number, "timestamp": moment + 1}


def test_a_held_opt_in_of_kahuna_is_answered_with_our_stop(alone: Voice, single: Deployment) -> None:
    """design 3: what permits passes `OPT_IN_REVIEW`; we suppress and it does not → the stop is sent."""
    number, stop = a_number(), ago(90)
    alone.stop("sms", number, "do_not_call", stop)
    arrived(single.vendor, "sms", number)
    settled(alone, number)
    alone.callback("sms", [started(number, stop + 20)])
    assert alone.suppressed("sms", number)
    *_, last = arrived(single.vendor, "sms", number, 2)
    assert last.entry == {"number": number, "timestamp": stop + 21}


def test_an_email_reactivation_is_unsupported_and_shown(alone: Voice, single: Deployment) -> None:
    """design 3: an e-mail re-subscription is `unsupported`: shown, never dropped in silence, never proposed again."""
    address = an_email()
    alone.callback("email", [told(address, ago(90))])
    assert alone.reactivate("email", address, ago(60)).is_success
    assert len(listed(alone, address, "unsupported")) == 1
    alone.reactivate("email", address, ago(60))
    sentinel(alone, single.vendor, "email")
    assert len(alone.corrections("unsupported", address)) == 1
    assert not single.vendor.requests("email", address)


def test_the_same_stop_twice_is_sent_once(alone: Voice, single: Deployment) -> None:
    """design 5.4: exactly one effect."""
    number, moment = a_number(), ago(60)
    for _ in range(4):
        alone.stop("sms", number, "do_not_call", moment)
    arrived(single.vendor, "sms", number)
    sentinel(alone, single.vendor, "sms")
    assert len(single.vendor.requests("sms", number)) == 1


def test_a_stop_without_a_time_goes_out_with_the_one_it_was_given(alone: Voice, single: Deployment) -> None:
    """design 3: a stop takes the receipt time; kahuna-api.md 8: `timestamp`: integer, Unix seconds."""
    number = a_number()
    occurred = alone.stop("sms", number, "manual")["causes"][0]["occurred_at"]
    (only,) = arrived(single.vendor, "sms", number)
    assert only.entry[KEYS["sms"]] == number
    assert only.entry["timestamp"] == int(seconds_of(occurred))


def test_email_slots_are_an_address_and_a_word(alone: Voice, single: Deployment) -> None:
    """design 3: Kahuna has *slots*: e-mail an address and wire word; `manual` going out as `unsub`."""
    address, moment = an_email(), ago(60)
    alone.callback("email", [told(address, ago(90))])
    alone.stop("email", address, "manual", ago(80))
    alone.stop("email", address, "hard_bounce", moment)
    (only,) = arrived(single.vendor, "email", address)
    assert only.entry == {"reason": "hard_bounce", "email": address, "timestamp": moment}
    sentinel(alone, single.vendor, "email")
    assert len(single.vendor.requests("email", address)) == 1


def test_a_stop_that_loses_the_merge_is_not_owed(alone: Voice, single: Deployment) -> None:
    """design 3: the latest fact wins; a correction is owed when our verdict and the slot disagree."""
    number = a_number()
    alone.callback("sms", [started(number, ago(60))])
    assert not alone.stop("sms", number, "do_not_call", ago(90))["suppressed"]
    sentinel(alone, single.vendor, "sms")
    assert not single.vendor.requests("sms", number)


def test_no_opt_in_goes_out_while_another_cause_suppresses(alone: Voice, single: Deployment) -> None:
    """design 3: an opt-in is sent, never while any other cause still suppresses."""
    number = a_number()
    alone.stop("sms", number, "manual", ago(30))
    arrived(single.vendor, "sms", number)
    settled(alone, number)
    alone.callback("sms", [stopped(number, ago(90))])
    assert alone.reactivate("sms", number, ago(60)).status_code == 409
    sentinel(alone, single.vendor, "sms")
    assert all(one.is_stop for one in single.vendor.accepted("sms", number))
