"""Odd calls under /v1 and odd paths: each is a problem with a name, never a fault of ours (design.md 2.3)."""

from __future__ import annotations

import httpx
import pytest

from .conftest import Deployment
from .speaking import Voice, a_number, ago, an_email, seconds_of, stopped, told

JSON = {"Content-Type": "application/json"}


def assert_named(answer: httpx.Response) -> None:
    """A 4xx that is `application/problem+json`."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "place",
    [
        "/v1/admin/reconciliations/not-an-id",
        "/v1/admin/reconciliations/00000000-0000-0000-0000-000000000000",
        "/v1/admin/reconciliations/%00/differences",
        "/v1/admin/reconciliations/99999999999999999999999/differences",
    ],
)
def test_an_id_that_is_not_there(plain: Voice, place: str) -> None:
    """design 2.3: errors as RFC 9457 `application/problem+json`."""
    assert_named(plain.call("GET", place))


@pytest.mark.parametrize(
    "number", ["0", "-1", "99999999999999999999999", "x", "%00", "00000000-0000-0000-0000-000000000000"]
)
@pytest.mark.parametrize("verb", ["approve", "refuse"])
def test_a_review_that_is_not_there(plain: Voice, number: str, verb: str) -> None:
    """design 2.3: `GET /v1/admin/reviews` (held opt-ins), `POST /{id}/approve|refuse`."""
    assert_named(plain.call("POST", f"/v1/admin/reviews/{number}/{verb}"))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"channel":"fax","source":"ledger"}', b'{"channel":"sms","source":"x"}']
)
def test_a_reconciliation_that_makes_no_sense(plain: Voice, body: bytes) -> None:
    """design 2.3: `{"channel","source":"ledger|logs|profiles",...}`."""
    assert_named(plain.call("POST", "/v1/admin/reconciliations", content=body, headers=JSON))


@pytest.mark.parametrize(
    "params",
    [
        {"state": "gone"},
        {"state": "\0"},
        {"namespace": "\0"},
        {"namespace": ""},
        {"limit": "-1"},
        {"limit": "x"},
        {"cursor": "x\0"},
    ],
)
def test_a_listing_that_makes_no_sense(plain: Voice, params: dict[str, str]) -> None:
    """design 2.3: unknown query parameters are errors; odd values of known ones are problems too."""
    assert_named(plain.call("GET", "/v1/admin/corrections", params={"state": "sent", **params}))


@pytest.mark.parametrize(
    "path",
    [
        "/webhooks/%00/email",
        "/webhooks/%ff/email",
        "/webhooks/plain%2Femail/sms",
        "/webhooks//email",
        "/webhooks/plain/fax",
        "/webhooks/PLAIN/email",
        "/webhooks/plain/../left/email",
    ],
)
def test_a_webhook_that_is_not_there(plain: Voice, path: str) -> None:
    """design 2.3: 404 no such namespace."""
    answer = plain.deliver_to(path, "email", [])
    assert_named(answer)
    assert answer.status_code in {401, 404}


@pytest.mark.parametrize(
    "text", ["\\u0000", "\\ud800", "\\udfff x", "x" * 200_000, "\\u202e\\uffff", "'; drop table facts; --"]
)
@pytest.mark.parametrize("field", ["note", "evidence"])
def test_texts_of_people_may_hold_anything(plain: Voice, field: str, text: str) -> None:
    """design 2.3: `{"reason","occurred_at"?,"note"?}`: it is stored, or refused with a name."""
    address = an_email()
    moment = '"occurred_at":"2026-01-01T00:00:00Z"'
    if field == "note":
        body = f'{{"reason":"manual",{moment},"note":"{text}"}}'
        answer = plain.call("PUT", plain.where("email", address), content=body.encode(), headers=JSON)
        assert answer.status_code == 200 or not plain.suppressed("email", address)
    else:
        body = f'{{"evidence":"{text}",{moment}}}'
        answer = plain.call("POST", plain.where("email", address) + "/reactivate", content=body.encode(), headers=JSON)
    if not answer.is_success:
        assert_named(answer)


@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2026-02-30T00:00:00Z",
    ],
)
def test_moments_at_the_ends_of_the_calendar(plain: Voice, moment: str) -> None:
    """design 2.3: times in RFC 3339 UTC; what cannot be one is a problem, never a fault of ours."""
    address = an_email()
    for answer in (
        plain.call("GET", plain.where("email", address), params={"at": moment}),
        plain.call("GET", plain.where("email", address), params={"at": moment, "basis": "occurred"}),
        plain.call(
            "POST", plain.where("email", address) + "/reactivate", json={"evidence": "x", "occurred_at": moment}
        ),
        plain.call("PUT", plain.where("email", address), json={"reason": "manual", "occurred_at": moment}),
    ):
        if not answer.is_success:
            assert_named(answer)


@pytest.mark.parametrize("ahead", [3600, 10**9])
def test_a_future_consent_does_not_outlive_later_stops(plain: Voice, ahead: int) -> None:
    """design 3: further ahead: an opt-in is held or refused, since it would win over later stops."""
    number = a_number()
    plain.stop("sms", number, "manual", ago(60))
    answer = plain.reactivate("sms", number, ago(-ahead))
    assert not answer.is_success or plain.suppressed("sms", number), answer.text
    assert plain.suppressed("sms", number)


def test_a_future_local_stop_takes_the_time_of_receipt(plain: Voice) -> None:
    """design 3: further ahead: a *stop* takes the receipt time (or the call is refused)."""
    number = a_number()
    answer = plain.put("sms", number, "manual", ago(-(10**7)))
    if answer.status_code == 200:
        assert seconds_of(plain.cause("sms", number, "manual")["occurred_at"]) <= ago(-300)
    else:
        assert_named(answer)


@pytest.mark.parametrize("stamp", [1, 999_999_999_999, 10**12, 1_700_000_000_000])
def test_old_stops_count(plain: Voice, stamp: int) -> None:
    """design 3: Unix seconds, 13 digits are milliseconds; a stop has effect whatever its age."""
    number = a_number()
    assert plain.callback("sms", [stopped(number, stamp)])["accepted"] == 1
    assert plain.suppressed("sms", number)


def test_two_namespaces_in_one_call_are_no_way_around_a_token(many: Deployment) -> None:
    """design 2.3: facts never cross namespaces."""
    made = many.service.run("token", "create", "--name", "left-too", "--scopes", "read,write", "--namespace", "left")
    headers, address = {"Authorization": f"Bearer {made.stdout.strip()}"}, an_email()
    place = f"{many.service.url}/v1/suppressions/email/{address}"
    for order in (["left", "right"], ["right", "left"]):
        query = "&".join(f"namespace={one}" for one in order)
        answer = httpx.put(f"{place}?{query}", headers=headers, json={"reason": "manual"})
        assert not answer.is_success or answer.json()["namespace"] == "left", answer.text
    right = many.voice("right", "right-key")
    assert not right.suppressed("email", address)
    right.close()


def test_a_header_that_is_no_text_is_answered(plain: Voice) -> None:
    """design 2.3: 401; never a fault of ours."""
    for value in (b"Bearer \xff\xfe", b"Bearer " + b"x" * 20_000, b"\x80"):
        answer = plain.http.get(plain.where("email", an_email()), headers={b"Authorization": value})
        assert answer.status_code in {400, 401, 431}, answer.text
    address = an_email()
    raw = b"[" + str(told(address, ago(60))).replace("'", '"').encode() + b"]"
    for value in (b"\xff" * 28, b"=" * 28, b"x" * 20_000):
        answer = plain.http.post(plain.path("email"), content=raw, headers={b"X-Kahuna-Signature": value})
        assert answer.status_code in {400, 401, 431}, answer.text
    assert not plain.suppressed("email", address)
