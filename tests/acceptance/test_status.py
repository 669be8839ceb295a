"""The questions internal services ask about an address, and how they are answered (design.md 2.3, 3)."""

from __future__ import annotations

import time
import unicodedata

import httpx
import pytest

from .conftest import Deployment
from .speaking import DAY, Voice, a_number, ago, an_email, rfc, seconds_of, started, stopped, told

STATUS = {"namespace", "channel", "address", "suppressed", "since", "until", "causes"}
CAUSE = {"reason", "active", "occurred_at", "recorded_at", "origin", "batch_id", "until"}


def assert_problem(answer: httpx.Response, status: int, slug: str = "") -> None:
    """RFC 9457 `application/problem+json` with a stable `type` slug."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"].startswith("application/problem+json")
    found = answer.json()
    assert found["type"], found
    assert slug in found["type"], found
    assert found.get("status", status) == status


@pytest.mark.parametrize("channel", ["email", "sms"])
def test_an_address_never_seen(plain: Voice, channel: str) -> None:
    """design 2.3: 200, also for an address never seen."""
    address = an_email() if channel == "email" else a_number()
    found = plain.status(channel, address)
    assert found == {
        "namespace": "plain",
        "channel": channel,
        "address": address,
        "suppressed": False,
        "since": None,
        "until": None,
        "causes": [],
    }


def test_a_suppressed_address(plain: Voice) -> None:
    """design 2.3: the status document; origin `kahuna_webhook`."""
    address, moment, begun = an_email(), ago(3600), time.time()
    batch = plain.callback("email", [told(address, moment)])["batch_id"]
    found = plain.status("email", address)
    assert set(found) == STATUS
    assert (found["suppressed"], found["until"]) == (True, None)
    assert seconds_of(found["since"]) == moment
    (cause,) = found["causes"]
    assert set(cause) == CAUSE
    assert (cause["reason"], cause["active"], cause["until"]) == ("unsubscribe", True, None)
    assert (cause["origin"], cause["batch_id"]) == ("kahuna_webhook", batch)
    assert seconds_of(cause["occurred_at"]) == moment
    assert begun - 2 <= seconds_of(cause["recorded_at"]) <= time.time() + 2


def test_times_are_utc(plain: Voice) -> None:
    """design 2.3: times in RFC 3339 UTC."""
    address = an_email()
    plain.callback("email", [told(address, ago(60))])
    found = plain.status("email", address)
    for moment in (found["since"], found["causes"][0]["occurred_at"], found["causes"][0]["recorded_at"]):
        assert moment.endswith(("Z", "+00:00")), moment


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("unsub", "unsubscribe"),
        ("hard_bounce", "hard_bounce"),
        ("spam", "complaint"),
        ("invalid", "invalid"),
        ("blocked", "blocked"),
        ("reject", "rejected"),
    ],
)
def test_the_vendors_words(plain: Voice, word: str, reason: str) -> None:
    """design 3: the vendor's words stand in one table both ways."""
    address = an_email()
    plain.callback("email", [told(address, ago(60), word)])
    assert plain.reasons("email", address) == {reason}


def test_a_bounce_never_hides_an_unsubscribe(plain: Voice) -> None:
    """design 3: all causes are kept: a bounce never hides an unsubscribe."""
    address = an_email()
    plain.callback("email", [told(address, ago(90))])
    plain.callback("email", [told(address, ago(60), "hard_bounce"), told(address, ago(30), "spam")])
    assert plain.reasons("email", address) == {"unsubscribe", "hard_bounce", "complaint"}


def test_email_addresses_are_compared_normalised(plain: Voice) -> None:
    """design 3: trimmed, Unicode NFC, lower-cased."""
    address = an_email()
    composed = f"caf\u00e9.{address}"
    plain.callback("email", [told(f"  CAFE\u0301.{address.upper()}\t", ago(60))])
    for spelt in (composed, unicodedata.normalize("NFD", composed), composed.upper(), f" {composed} "):
        found = plain.status("email", spelt)
        assert found["suppressed"], spelt
        assert found["address"] == composed


def test_the_domain_is_compared_in_its_ascii_form(plain: Voice) -> None:
    """design 3: domain in its ASCII form."""
    local = an_email().split("@", maxsplit=1)[0]
    plain.callback("email", [told(f"{local}@B\u00dcCHER.example", ago(60))])
    found = plain.status("email", f"{local}@xn--bcher-kva.example")
    assert found["suppressed"]
    assert found["address"] == f"{local}@xn--bcher-kva.example"
    assert plain.suppressed("email", f"{local}@b\u00fccher.example")


def test_an_odd_domain_is_still_suppressible(plain: Voice) -> None:
    """design 3: if IDNA refuses it, lower-cased as it is; an odd address must still be suppressible."""
    local = an_email().split("@", maxsplit=1)[0]
    for domain in (
        "under_score.Example",
        "-x-.example",
        "a..b",
        "xn--zzzzzz--.example",
        "x" * 70 + ".example",
        "[::1]",
    ):
        plain.callback("email", [told(f"{local}@{domain}", ago(60))])
        assert plain.suppressed("email", f"{local}@{domain.lower()}"), domain


def test_a_plus_in_an_address(plain: Voice) -> None:
    """design 3: the address is as received; a `+` of a path is a plus, escaped or not."""
    address = an_email("who+tag")
    plain.callback("email", [told(address, ago(60))])
    for spelt in (address, address.replace("+", "%2B"), address.replace("@", "%40")):
        answer = plain.call("GET", f"/v1/suppressions/email/{spelt}")
        assert answer.json()["suppressed"], spelt
        assert answer.json()["address"] == address
    assert not plain.suppressed("email", address.replace("+", " "))


def test_a_slash_in_an_address(plain: Voice) -> None:
    """design 3: an odd address must still be suppressible, and queryable."""
    address = f"a/b%c?d#e{an_email()}"
    plain.callback("email", [told(address, ago(60))])
    assert plain.status("email", address)["address"] == address
    assert plain.suppressed("email", address)


def test_numbers_are_compared_as_digits(plain: Voice) -> None:
    """design 3: separators and the leading `+` or `00` stripped, digits as E.164."""
    number = a_number()
    plain.callback("sms", [stopped(f"+{number[0]} ({number[1:4]}) {number[4:7]}-{number[7:]}", ago(60))])
    for spelt in (number, f"+{number}", f"00{number}", f"{number[:4]} {number[4:]}", f"{number[:4]}.{number[4:]}"):
        found = plain.status("sms", spelt)
        assert found["suppressed"], spelt
        assert found["address"] == number


def test_head_says_the_same_without_a_body(plain: Voice) -> None:
    """design 2.3: `ETag`, `HEAD`, 304."""
    address = an_email()
    full = plain.call("GET", plain.where("email", address))
    head = plain.call("HEAD", plain.where("email", address))
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["etag"] == full.headers["etag"]


def test_an_unchanged_status_is_not_sent_again(plain: Voice) -> None:
    """design 2.3: `ETag`, `HEAD`, 304."""
    address = an_email()
    place = plain.where("email", address)
    tag = plain.call("GET", place).headers["etag"]
    for verb in ("GET", "HEAD"):
        for match in (tag, f'"other", {tag}', "*"):
            same = plain.call(verb, place, headers={"If-None-Match": match})
            assert (same.status_code, same.content) == (304, b""), (verb, match)
    plain.callback("email", [told(address, ago(60))])
    changed = plain.call("GET", place, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.json()["suppressed"]
    assert changed.headers["etag"] != tag


def test_the_purpose_changes_what_counts(plain: Voice) -> None:
    """design 2.3: `transactional` (an e-mail unsubscribe does not count, everything else does)."""
    address, number = an_email(), a_number()
    plain.callback("email", [told(address, ago(60))])
    plain.callback("sms", [stopped(number, ago(60))])
    assert plain.suppressed("email", address, purpose="marketing")
    assert not plain.suppressed("email", address, purpose="transactional")
    assert plain.suppressed("sms", number, purpose="transactional")
    plain.callback("email", [told(address, ago(30), "spam")])
    assert plain.suppressed("email", address, purpose="transactional")


def test_a_moment_on_both_bases(plain: Voice) -> None:
    """design 2.3: `basis=recorded` is what a query then would have said, `basis=occurred` what was true then."""
    address, moment = an_email(), ago(10 * DAY)
    plain.callback("email", [told(address, moment)])
    between = rfc(moment + DAY)
    assert not plain.suppressed("email", address, at=between)
    assert not plain.suppressed("email", address, at=between, basis="recorded")
    assert plain.suppressed("email", address, at=between, basis="occurred")
    assert not plain.suppressed("email", address, at=rfc(moment - DAY), basis="occurred")


def test_a_moment_after_a_clear_on_both_bases(plain: Voice) -> None:
    """design 2.3: `at` answers as of that moment."""
    number, stop, start = a_number(), ago(10 * DAY), ago(5 * DAY)
    plain.callback("sms", [stopped(number, stop)])
    recorded = plain.cause("sms", number, "do_not_call")["recorded_at"]
    time.sleep(0.05)
    plain.callback("sms", [started(number, start)])
    assert not plain.suppressed("sms", number)
    assert plain.suppressed("sms", number, at=recorded)
    assert plain.suppressed("sms", number, at=rfc(stop + DAY), basis="occurred")
    assert not plain.suppressed("sms", number, at=rfc(start + DAY), basis="occurred")


@pytest.mark.parametrize("basis", ["recorded", "occurred"])
def test_the_future_is_not_known(plain: Voice, basis: str) -> None:
    """design 2.3: a future `at` is 422."""
    place = plain.where("email", an_email())
    assert_problem(plain.call("GET", place, params={"at": rfc(time.time() + DAY), "basis": basis}), 422)


@pytest.mark.parametrize(
    "params",
    [
        {"at": "yesterday"},
        {"basis": "guess", "at": "2020-01-01T00:00:00Z"},
        {"purpose": "spam"},
        {"at": "2020-01-01T00:00:00"},
    ],
)
def test_odd_values_of_known_parameters_are_refused(plain: Voice, params: dict[str, str]) -> None:
    """design 2.3: errors as RFC 9457 `application/problem+json`; a moment has to say its zone (RFC 3339)."""
    answer = plain.call("GET", plain.where("email", an_email()), params=params)
    assert_problem(answer, answer.status_code)
    assert answer.status_code in {400, 422}


@pytest.mark.parametrize(
    ("channel", "address"),
    [
        ("email", "nobody"),
        ("email", "a@b@example.com"),
        ("email", "nul\0@example.com"),
        ("email", "tab\tinside@example.com"),
        ("email", "x" * 309 + "@example.com"),
        ("sms", "1234"),
        ("sms", "1234567890123456"),
        ("sms", "call me"),
    ],
)
def test_an_impossible_address_is_unprocessable(plain: Voice, channel: str, address: str) -> None:
    """design 2.3: an impossible address is 422."""
    assert_problem(plain.call("GET", plain.where(channel, address)), 422)
    assert_problem(plain.put(channel, address, "manual"), 422)


def test_an_unknown_query_parameter_is_an_error(plain: Voice) -> None:
    """design 2.3: unknown query parameters are errors."""
    places = (plain.where("email", an_email()), "/v1/admin/corrections", "/v1/admin/quarantine", "/v1/admin/reviews")
    for place in places:
        answer = plain.call("GET", place, params={"purposes": "x"})
        assert answer.status_code in {400, 422}, place
        assert_problem(answer, answer.status_code)


def test_unknown_channels_and_paths_are_problems(plain: Voice) -> None:
    """design 2.3: errors as RFC 9457 `application/problem+json`."""
    for place in ("/v1/suppressions/fax/12345", "/v1/nothing", "/nothing"):
        answer = plain.call("GET", place)
        assert answer.status_code in {404, 422}, place
        assert_problem(answer, answer.status_code)
    assert_problem(plain.call("DELETE", plain.where("email", an_email())), 405)


def test_a_token_is_needed(plain: Voice) -> None:
    """design 2.3: `Authorization: Bearer`, scope `read`."""
    for place in (plain.where("email", an_email()), "/v1/admin/corrections", "/v1/admin/quarantine"):
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": plain.token},
            {"Authorization": "Basic YTpi"},
        ):
            answer = plain.http.get(place, params={"namespace": "plain"}, headers=header)
            assert_problem(answer, 401)


def test_a_token_is_good_for_its_scopes_only(many: Deployment) -> None:
    """design 2.3: scope `read` for queries, `write` for writes, `admin` for admin."""
    reader = Voice(many.service.url, many.service.token("read"), "plain", "demo-api-key")
    writer = Voice(many.service.url, many.service.token("write"), "plain", "demo-api-key")
    address = an_email()
    try:
        assert not reader.suppressed("email", address)
        assert_problem(reader.put("email", address, "manual"), 403)
        assert_problem(reader.reactivate("email", address, ago(60)), 403)
        assert_problem(reader.call("GET", "/v1/admin/quarantine"), 403)
        assert_problem(writer.call("GET", writer.where("email", address)), 403)
        assert_problem(writer.call("GET", "/v1/admin/corrections"), 403)
        assert writer.put("email", address, "manual").status_code == 200
        assert reader.suppressed("email", address)
    finally:
        reader.close()
        writer.close()


def test_every_answer_carries_a_request_id(plain: Voice) -> None:
    """design 2.3: every answer carries `X-Request-ID`."""
    answers = [
        plain.http.get("/livez"),
        plain.http.get("/readyz"),
        plain.http.get("/nothing"),
        plain.http.get("/openapi.json"),
        plain.http.get(plain.path("email")),
        plain.http.get("/v1/changes"),
        plain.post(plain.path("email"), b"[]", None),
        plain.post(plain.path("email"), b"{", "x"),
        plain.deliver("email", []),
        plain.call("GET", plain.where("email", an_email())),
        plain.call("GET", plain.where("email", "nobody")),
    ]
    found = [one.headers.get("x-request-id") for one in answers]
    assert all(found), [str(one.request.url) for one, name in zip(answers, found, strict=True) if not name]
    assert len(set(found)) == len(found)


def test_the_namespace_is_required_when_there_are_several(plain: Voice) -> None:
    """design 2.3: left out, it is the token's or the deployment's only one, else 400 `namespace-required`."""
    headers = {"Authorization": f"Bearer {plain.token}"}
    place = plain.where("email", an_email())
    assert_problem(plain.http.get(place, headers=headers), 400, "namespace-required")
    unknown = plain.http.get(place, headers=headers, params={"namespace": "nowhere"})
    assert_problem(unknown, unknown.status_code)
    assert unknown.status_code in {400, 403, 404, 422}


def test_the_only_namespace_may_be_left_out(alone: Voice) -> None:
    """design 2.3: left out, it is the token's or the deployment's only one; its default name is `default`."""
    headers = {"Authorization": f"Bearer {alone.token}"}
    answer = alone.http.get(alone.where("email", an_email()), headers=headers)
    assert answer.json()["namespace"] == "default"


def test_the_service_says_how_it_is(plain: Voice) -> None:
    """design 2.3: `/livez`, `/readyz` (database, migrations at head), `/metrics` (Prometheus)."""
    for place in ("/livez", "/readyz", "/metrics"):
        assert plain.http.get(place).status_code == 200, place


@pytest.mark.parametrize(
    "place",
    [
        "/v1/suppressions/email",
        "/v1/suppressions/email/",
        "/v1/admin/corrections/",
        "/readyz/",
        "/webhooks/plain/email/",
    ],
)
def test_no_path_is_answered_with_a_redirect(plain: Voice, place: str) -> None:
    """design 2.3: errors as RFC 9457 `application/problem+json`: what is not there is not somewhere else."""
    answer = plain.call("GET", place)
    assert answer.status_code in {404, 405, 422}, (answer.status_code, answer.headers.get("location"))
    assert_problem(answer, answer.status_code)


def test_a_token_of_one_namespace_speaks_of_no_other(many: Deployment) -> None:
    """design 2.3: left out, it is the token's only one; facts never cross namespaces."""
    made = many.service.run("token", "create", "--name", "left-only", "--scopes", "read,write", "--namespace", "left")
    assert made.returncode == 0, made.stderr
    headers, address = {"Authorization": f"Bearer {made.stdout.strip()}"}, an_email()
    place = f"{many.service.url}/v1/suppressions/email/{address}"
    assert httpx.get(place, headers=headers).json()["namespace"] == "left"
    for verb in ("GET", "PUT"):
        body = {"reason": "manual"} if verb == "PUT" else None
        other = httpx.request(verb, place, headers=headers, params={"namespace": "right"}, json=body)
        assert other.status_code in {403, 404}, other.text
