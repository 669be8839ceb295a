"""The door: signatures, keys, tokens, encodings, and the order in which a callback is judged (design.md 2.3)."""

from __future__ import annotations

import gzip
import json
import socket

import httpx
import pytest

from .conftest import CALLBACK_TOKEN, Deployment
from .speaking import Voice, addresses_in, ago, an_address, an_email, sign, stopped, told

OVER = 11 * 1024 * 1024
VECTORS = [
    ("email", ["bob@example.com", "alice@example.org", "carol@example.net"], "NktNvwVw49jDIIzSzXUhAn0+jlQ="),
    ("sms", ["15550100002", "15550100001"], "A2kRfFpSyQiU7XbPnqRAu/53r24="),
    ("email", ["a@example.com", "B@example.com"], "Wjs4QkGE5K9c+kzwGxPtFgkrPRA="),
]


def one_entry(channel: str) -> list[dict[str, object]]:
    """A batch of one stop for an unused address."""
    address = an_address(channel)
    return [told(address, ago(60)) if channel == "email" else stopped(address, ago(60))]


@pytest.mark.parametrize(("channel", "addresses", "signature"), VECTORS)
def test_documented_signatures_are_accepted(plain: Voice, channel: str, addresses: list[str], signature: str) -> None:
    """kahuna-api.md 14: the test vectors (key `demo-api-key`, code-point order, UTF-8)."""
    stamp = ago(60)
    entries = [told(one, stamp) if channel == "email" else stopped(one, stamp) for one in addresses]
    answer = plain.post(plain.path(channel), json.dumps(entries).encode(), signature)
    assert answer.status_code == 200, answer.text
    assert answer.json()["accepted"] == len(addresses)
    assert all(plain.suppressed(channel, one) for one in addresses)


@pytest.mark.parametrize("channel", ["email", "sms"])
def test_an_empty_array_is_a_callback_of_nothing(plain: Voice, channel: str) -> None:
    """kahuna-api.md 14: empty list, `nCuiV9bhPOzPtuZV6XkgGe0GcDc=`; the three counts add up to the entries."""
    answer = plain.post(plain.path(channel), b"[]", "nCuiV9bhPOzPtuZV6XkgGe0GcDc=")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["accepted"], found["duplicates"], found["rejected"], found["errors"]) == (0, 0, 0, [])


def test_ascii_lower_case_order_is_accepted_second(plain: Voice) -> None:
    """design 3: a stable sort by ASCII lower case is accepted second."""
    low, high = "a" + an_email(), "B" + an_email()
    raw = json.dumps([told(high, ago(60)), told(low, ago(60))]).encode()
    assert plain.post(plain.path("email"), raw, sign("demo-api-key", [low + high])).status_code == 200


def test_the_signed_values_are_those_of_the_body(plain: Voice) -> None:
    """design 3: the decoded strings exactly as in the body, duplicates kept."""
    address = an_email()
    entries = [told(f" {address.upper()} ", ago(60)), told(address, ago(50)), told(address, ago(40))]
    assert plain.deliver("email", entries).status_code == 200
    again = json.dumps(entries).encode()
    assert plain.post(plain.path("email"), again, sign("demo-api-key", [address] * 3)).status_code == 401


@pytest.mark.parametrize(
    "signature", ["AAAAAAAAAAAAAAAAAAAAAAAAAAA=", "not base64 ***", "", "nCuiV9bhPOzPtuZV6XkgGe0GcDc="]
)
def test_a_wrong_signature_is_refused(plain: Voice, signature: str) -> None:
    """design 2.3: 401 signature wrong; nothing of the batch is kept."""
    entries = one_entry("email")
    answer = plain.post(plain.path("email"), json.dumps(entries).encode(), signature)
    assert answer.status_code == 401, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert not plain.suppressed("email", str(entries[0]["email"]))


def test_one_altered_character_of_a_signature_is_refused(plain: Voice) -> None:
    """kahuna-api.md 14: compare with header `X-Kahuna-Signature`."""
    entries = one_entry("sms")
    right = sign("demo-api-key", addresses_in("sms", entries))
    wrong = ("A" if right[0] != "A" else "B") + right[1:]
    raw = json.dumps(entries).encode()
    assert plain.post(plain.path("sms"), raw, wrong).status_code == 401
    assert plain.post(plain.path("sms"), raw, right).status_code == 200


def test_the_key_of_another_namespace_is_refused(plain: Voice) -> None:
    """design 2.3: 401 signature wrong, or of another namespace's key."""
    entries = one_entry("email")
    raw = json.dumps(entries).encode()
    answer = plain.post(plain.path("email"), raw, sign("left-key", addresses_in("email", entries)))
    assert answer.status_code == 401, answer.text


def test_an_unknown_namespace_is_not_found(plain: Voice) -> None:
    """design 2.3: 404 no such namespace."""
    answer = plain.post("/webhooks/nowhere/email", b"[]", sign("demo-api-key", []))
    assert answer.status_code == 404, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")


def test_a_missing_signature_is_refused(plain: Voice) -> None:
    """design 2.3: 401 callback token or signature header absent."""
    assert plain.post(plain.path("email"), b"[]", None).status_code == 401


@pytest.mark.parametrize("verb", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    ["/webhooks/plain/email", "/webhooks/plain/sms", "/webhooks/nowhere/email", "/api/email_callback"],
)
def test_only_post_is_allowed_and_that_is_judged_first(plain: Voice, verb: str, path: str) -> None:
    """design 2.3: `HEAD` and `GET` answer 405 with `Allow`; checked in this order: 405; 404 no such namespace."""
    answer = plain.http.request(verb, path)
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]


def test_order_404_before_the_missing_signature(plain: Voice) -> None:
    """design 2.3: 404 no such namespace; 401 callback token or signature header absent."""
    assert plain.post("/webhooks/nowhere/email", b"{", None, Content_Encoding="br").status_code == 404


def test_order_missing_signature_before_the_encoding(plain: Voice) -> None:
    """design 2.3: 401 signature header absent; 415 other encoding."""
    assert plain.post(plain.path("email"), b"{", None, Content_Encoding="br").status_code == 401


def test_order_encoding_before_the_size(plain: Voice) -> None:
    """design 2.3: 415 other encoding; 413 over the limit."""
    for encoding in ("br", "deflate", "zstd"):
        assert plain.post(plain.path("email"), b" " * OVER, "wrong", Content_Encoding=encoding).status_code == 415


def test_order_size_before_json_and_signature(plain: Voice) -> None:
    """design 2.3: 413 over the limit while reading (default 10 MiB); 400 not JSON; 401 signature wrong."""
    assert plain.post(plain.path("email"), b"{" * OVER, "wrong").status_code == 413


def test_order_json_before_the_signature(plain: Voice) -> None:
    """design 2.3: 400 not JSON or not an array; 401 signature wrong."""
    for raw in (b"{", b"", b"not json", b"[1,]", b'{"email":"a@example.com"}', b'"text"', b"5", b"null"):
        assert plain.post(plain.path("email"), raw, "wrong").status_code == 400, raw


def test_an_object_is_not_an_array_even_when_signed(plain: Voice) -> None:
    """design 2.3: 400 not JSON or not an array."""
    address = an_email()
    answer = plain.deliver_raw("email", json.dumps(told(address, ago(60))), [address])
    assert answer.status_code == 400, answer.text
    assert not plain.suppressed("email", address)


def test_a_body_may_be_gzipped(plain: Voice) -> None:
    """design 2.3: `Content-Encoding` identity or gzip."""
    for encoding, pack in (("gzip", gzip.compress), ("GZIP", gzip.compress), ("identity", bytes)):
        entries = one_entry("email")
        raw, signature = json.dumps(entries).encode(), sign("demo-api-key", addresses_in("email", entries))
        answer = plain.post(plain.path("email"), pack(raw), signature, Content_Encoding=encoding)
        assert answer.status_code == 200, answer.text
        assert plain.suppressed("email", str(entries[0]["email"]))


def test_a_gzip_bomb_is_too_large(plain: Voice) -> None:
    """design 2.3: 413 over the limit while reading, also once decompressed."""
    bomb = gzip.compress(b"[" + b" " * (200 * 1024 * 1024) + b"]", 1)
    answer = plain.post(plain.path("email"), bomb, sign("demo-api-key", []), Content_Encoding="gzip")
    assert answer.status_code == 413, answer.text


def test_a_body_over_the_limit_without_a_length_is_too_large(plain: Voice) -> None:
    """design 2.3: 413 over the limit while reading: a chunked body announces no length."""
    chunks = (b" " * 65_536 for _ in range(OVER // 65_536))
    headers = {"X-Kahuna-Signature": sign("demo-api-key", [])}
    try:
        answer = plain.http.post(plain.path("email"), content=chunks, headers=headers)
    except httpx.WriteError:
        pytest.skip("the line was closed before the answer could be read")
    assert answer.status_code == 413


def test_what_is_not_gzip_is_a_bad_request(plain: Voice) -> None:
    """design 2.3: 400 not JSON; a broken or cut gzip stream never is a fault of ours."""
    whole = gzip.compress(b"[]")
    for raw in (b"[]", whole[:-9], whole[:5]):
        answer = plain.post(plain.path("email"), raw, sign("demo-api-key", []), Content_Encoding="gzip")
        assert answer.status_code == 400, (raw, answer.text)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "nonsense", ""])
def test_the_content_type_is_not_judged(plain: Voice, kind: str) -> None:
    """design 2.3: `Content-Type` is not judged."""
    assert plain.deliver("email", one_entry("email"), Content_Type=kind).status_code == 200


@pytest.mark.parametrize("path", ["/webhooks/guarded/{}", "/api/{}_callback"])
@pytest.mark.parametrize("channel", ["email", "sms"])
def test_a_callback_token_is_the_last_segment_of_every_path(guarded: Voice, path: str, channel: str) -> None:
    """design 2.1: every webhook path needs it as its last segment, the vendor's example paths too."""
    entries = one_entry(channel)
    raw, signature = json.dumps(entries).encode(), sign(guarded.key, addresses_in(channel, entries))
    place, address = path.format(channel), addresses_in(channel, entries)[0]
    for wrong in (place, f"{place}/wrong", f"{place}/{CALLBACK_TOKEN}x", f"{place}/{CALLBACK_TOKEN[:-1]}"):
        answer = guarded.post(wrong, raw, signature)
        assert answer.status_code == 401, (wrong, answer.text)
    assert not guarded.suppressed(channel, address)
    assert guarded.post(f"{place}/{CALLBACK_TOKEN}", raw, signature).status_code == 200
    assert guarded.suppressed(channel, address)


def test_a_wrong_callback_token_is_judged_before_the_encoding(guarded: Voice) -> None:
    """design 2.3: 401 ... the token wrong; 415 other encoding."""
    answer = guarded.post("/webhooks/guarded/email/wrong", b"{", "x", Content_Encoding="br")
    assert answer.status_code == 401


@pytest.mark.parametrize("channel", ["email", "sms"])
def test_the_vendors_example_paths_serve_the_default_namespace(alone: Voice, channel: str) -> None:
    """design 2.3: `/api/email_callback` and `/api/sms_callback` serve the default namespace."""
    entries = one_entry(channel)
    raw, signature = json.dumps(entries).encode(), sign(alone.key, addresses_in(channel, entries))
    answer = alone.post(f"/api/{channel}_callback", raw, signature)
    assert answer.status_code == 200, answer.text
    assert alone.suppressed(channel, addresses_in(channel, entries)[0])


def test_both_keys_of_a_rotation_sign(rotated: Voice, many: Deployment) -> None:
    """design 2.1: comma-separated: the first is used to send, all are accepted (rotation)."""
    for key in ("new-key", "old-key"):
        entries = one_entry("email")
        raw = json.dumps(entries).encode()
        answer = rotated.post(rotated.path("email"), raw, sign(key, addresses_in("email", entries)))
        assert answer.status_code == 200, (key, answer.text)
    for key in ("new-key,old-key", " old-key", ""):
        assert rotated.post(rotated.path("email"), b"[]", sign(key, [])).status_code == 401, key


def test_facts_never_cross_namespaces(left: Voice, right: Voice) -> None:
    """design 2.3: facts never cross namespaces."""
    address = an_email()
    left.callback("email", [told(address, ago(60))])
    assert left.suppressed("email", address)
    assert not right.suppressed("email", address)


def test_a_body_that_does_not_arrive_is_given_up(alone: Voice, single: Deployment) -> None:
    """design 2.3: 408 too slow."""
    head = "POST /api/email_callback HTTP/1.1\r\nHost: a\r\nX-Kahuna-Signature: x\r\nContent-Length: 10\r\n\r\n[1"
    with socket.create_connection(("127.0.0.1", single.service.port), timeout=60) as line:
        line.sendall(head.encode())
        answer = line.recv(4096)
    assert answer.split()[1] == b"408", answer
