"""Tests of the stand-in vendor itself: a suite is worth no more than the witness it relies on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from .speaking import sign
from .vendor import Answer, Vendor, carrying, refusal, when

AUTH = ("s", "k")


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    """A vendor with one account."""
    one = Vendor({"s": "k"}).start()
    yield one
    one.stop()


def say(vendor: Vendor, channel: str, body: object, auth: tuple[str, str] = AUTH, env: str = "s") -> httpx.Response:
    """One call of a sync API."""
    return httpx.post(f"{vendor.url}/api/{channel}sync?env={env}", json=body, auth=auth, trust_env=False)


def test_it_counts_and_keeps_what_it_accepts(vendor: Vendor) -> None:
    """kahuna-api.md 8: otherwise 200 with counts."""
    answer = say(vendor, "sms", [{"number": "15550100001", "timestamp": 5, "opt-in": True}, {"number": "15550100002"}])
    assert answer.json() == {"accepted": 2, "rejected": 0}
    assert not vendor.accepted("sms", "15550100001")[0].is_stop
    assert vendor.newest("sms", "15550100002") is not None


def test_it_names_what_it_rejects(vendor: Vendor) -> None:
    """kahuna-api.md 8: plus list `errors` when entries were rejected."""
    with vendor.rejecting({"a@example.com"}, named=True):
        body = [{"reason": "unsub", "email": "a@example.com"}, {"reason": "nonsense", "email": "b@example.com"}]
        answer = say(vendor, "email", body)
    assert answer.json()["accepted"] == 0
    assert [one["email"] for one in answer.json()["errors"]] == ["a@example.com", "b@example.com"]
    assert not vendor.accepted("email", "a@example.com")


def test_it_asks_for_the_right_credentials_and_environment(vendor: Vendor) -> None:
    """kahuna-api.md 1: 401 unknown Secret Key or wrong API Key; missing or bad `env` 400."""
    assert say(vendor, "sms", [], auth=("s", "wrong")).status_code == 401
    assert say(vendor, "sms", [], env="x").status_code == 400
    assert say(vendor, "sms", {}).status_code == 400


def test_faults_are_shown_and_taken_back(vendor: Vendor) -> None:
    """A fault lasts as long as its block, or as many times as it was told."""
    with vendor.fault(when(carrying("1555"), refusal(500, "Down"), times=1)):
        assert say(vendor, "sms", [{"number": "1555"}]).status_code == 500
        assert say(vendor, "sms", [{"number": "1555"}]).status_code == 200
    with vendor.fault(when(carrying("1556"), Answer(200, {}, drop=True))), pytest.raises(httpx.RemoteProtocolError):
        say(vendor, "sms", [{"number": "1556"}])
    assert len(vendor.accepted("sms", "1556")) == 1, "recorded, though the answer was dropped"
    with vendor.slow(0.2):
        begun = time.monotonic()
        say(vendor, "sms", [])
        assert time.monotonic() - begun >= 0.2


def test_the_signing_of_this_suite_agrees_with_the_documented_vectors() -> None:
    """kahuna-api.md 14: test vectors (own, key `demo-api-key`, code-point order, UTF-8)."""
    assert sign("demo-api-key", ["15550100002", "15550100001"]) == "A2kRfFpSyQiU7XbPnqRAu/53r24="
    assert sign("demo-api-key", []) == "nCuiV9bhPOzPtuZV6XkgGe0GcDc="
