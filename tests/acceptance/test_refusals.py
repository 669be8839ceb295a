"""Corrections when the vendor is down, slow, refuses or says nothing (design.md 3, Vendor refusals; 5)."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from .conftest import Deployment
from .running import until
from .speaking import Voice, a_number, ago, an_email
from .vendor import Answer, carrying, refusal, when
from .watching import arrived, listed, seen, settled


def stop_at_once(voice: Voice, channel: str, addresses: list[str]) -> None:
    """Several local stops at the same time, so that they travel together."""
    writers = [threading.Thread(target=voice.stop, args=(channel, one, "manual", ago(60))) for one in addresses]
    for one in writers:
        one.start()
    for one in writers:
        one.join()


@pytest.mark.parametrize("status", [500, 503])
def test_a_failing_vendor_is_asked_again(alone: Voice, single: Deployment, status: int) -> None:
    """design 1: pushes corrections to Kahuna and keeps the proof that they arrived."""
    address = an_email()
    with single.vendor.fault(when(carrying(address), refusal(status, "Down"), times=1)):
        alone.stop("email", address, "unsubscribe", ago(60))
        arrived(single.vendor, "email", address)
    listed(alone, address, "sent")
    settled(alone, address)
    assert len(single.vendor.accepted("email", address)) == 1
    assert [one.status for one in single.vendor.requests("email", address)] == [status, 200]


def test_an_empty_failure_is_a_failure(alone: Voice, single: Deployment) -> None:
    """kahuna-api.md 1: clients accept an empty body with 400 and 500."""
    number = a_number()
    with single.vendor.fault(when(carrying(number), Answer(500, ""), times=1)):
        alone.stop("sms", number, "manual", ago(60))
        arrived(single.vendor, "sms", number)
    listed(alone, number, "sent")


def test_a_dropped_answer_is_asked_for_again(alone: Voice, single: Deployment) -> None:
    """kahuna-api.md 7: same entry twice is accepted twice with the same effect."""
    address = an_email()
    with single.vendor.fault(when(carrying(address), Answer(200, {}, drop=True), times=1)):
        alone.stop("email", address, "unsubscribe", ago(60))
        first, second = seen(single.vendor, "email", address, 2)[:2]
    assert (first.dropped, second.status) == (True, 200)
    assert len(listed(alone, address, "sent")) == 1
    assert {str(one.entry) for one in single.vendor.accepted("email", address)} == {
        str(single.vendor.accepted("email", address)[0].entry)
    }


@pytest.mark.parametrize("body", [{}, [], {"accepted": "all"}, {"accepted": 0, "rejected": 0}, "nonsense"])
def test_an_answer_that_proves_nothing_is_no_proof(alone: Voice, single: Deployment, body: object) -> None:
    """design 1: keeps the proof that they arrived; kahuna-api.md 8: 200 with counts `accepted` and `rejected`."""
    number = a_number()
    with single.vendor.fault(when(carrying(number), Answer(200, body))):
        alone.stop("sms", number, "manual", ago(60))
        seen(single.vendor, "sms", number, 1)
        assert not alone.corrections("sent", number)
    listed(alone, number, "pending", "sending", "dead", "rejected", "sent")


@pytest.mark.parametrize("status", [400, 413])
def test_a_refused_body_is_divided(alone: Voice, single: Deployment, status: int) -> None:
    """design 3: else the batch is bisected within a budget of requests."""
    addresses = [an_email("divide") for _ in range(8)]
    with single.vendor.fault(when(carrying(addresses[5]), refusal(status, "Bad body"))):
        stop_at_once(alone, "email", addresses)
        for one in addresses[:5] + addresses[6:]:
            arrived(single.vendor, "email", one)
        listed(alone, addresses[5], "dead", "rejected")
    assert not single.vendor.accepted("email", addresses[5])


def test_a_named_culprit_is_rejected(alone: Voice, single: Deployment) -> None:
    """design 3: an `errors` list names culprits if it has exactly `rejected` items, each matching one sent entry."""
    numbers = [a_number() for _ in range(8)]
    with single.vendor.rejecting({numbers[2], numbers[6]}, named=True):
        stop_at_once(alone, "sms", numbers)
        for one in set(numbers) - {numbers[2], numbers[6]}:
            arrived(single.vendor, "sms", one)
            listed(alone, one, "sent")
        for one in (numbers[2], numbers[6]):
            listed(alone, one, "rejected")
    assert not single.vendor.accepted("sms", numbers[2])


def test_an_unnamed_culprit_is_found_by_dividing(alone: Voice, single: Deployment) -> None:
    """design 3: else the batch is bisected; what remains unattributed is `dead` with that reason."""
    addresses = [an_email("unnamed") for _ in range(8)]
    with single.vendor.rejecting({addresses[3]}, named=False):
        stop_at_once(alone, "email", addresses)
        for one in addresses[:3] + addresses[4:]:
            listed(alone, one, "sent")
        listed(alone, addresses[3], "dead", "rejected")
    assert not single.vendor.accepted("email", addresses[3])


def test_wrong_keys_stop_the_sending_and_lose_nothing(alone: Voice, single: Deployment) -> None:
    """kahuna-api.md 1: 401 unknown Secret Key or wrong API Key; the circuit opens, /readyz says what to fix."""
    first, second = an_email(), an_email()
    with single.vendor.fault(when(bool, refusal(401, "Authentication failed"))):
        alone.stop("email", first, "unsubscribe", ago(60))
        seen(single.vendor, "email", first, 1)
        told_so = until(lambda: complaint_of(single), "/readyz names the keys")
        assert "KAHUNA_SECRET_KEY" in told_so or "KAHUNA_API_KEY" in told_so, told_so
        alone.stop("email", second, "unsubscribe", ago(60))
        assert alone.suppressed("email", second), "callbacks and queries go on"
        assert not alone.corrections("dead", first)
    for address in (first, second):
        arrived(single.vendor, "email", address)
        listed(alone, address, "sent")
    until(lambda: not complaint_of(single), "/readyz is content again")


def complaint_of(single: Deployment) -> str:
    """The words of /readyz when they speak of the vendor's keys."""
    text = httpx.get(f"{single.service.url}/readyz", timeout=10, trust_env=False).text
    return text if "401" in text or "KAHUNA_" in text else ""


def test_a_wait_that_the_vendor_asks_for_is_kept(alone: Voice, single: Deployment) -> None:
    """RFC 9110: `Retry-After`; the vendor says when to come back, and is not asked before."""
    number = a_number()
    busy = Answer(429, {"success": False, "error_code": 429, "error": "Slow down"}, {"Retry-After": "3"})
    with single.vendor.fault(when(carrying(number), busy, times=1)):
        alone.stop("sms", number, "manual", ago(60))
        first, second = seen(single.vendor, "sms", number, 2)[:2]
    assert (first.status, second.status) == (429, 200)
    assert second.at - first.at >= 2.5
    listed(alone, number, "sent")


def test_the_last_of_stop_start_stop_is_what_the_vendor_holds(alone: Voice, single: Deployment) -> None:
    """design 3: one `pending` row per slot and one `sending` row; a slot with a `sending` row is not claimed."""
    number, begun = a_number(), ago(90)
    with single.vendor.slow(1.5):
        alone.stop("sms", number, "do_not_call", begun)
        seen(single.vendor, "sms", number, 1)
        assert alone.reactivate("sms", number, begun + 20).is_success
        alone.stop("sms", number, "do_not_call", begun + 40)
        listed(alone, number, "sent")
        settled(alone, number)
    newest = single.vendor.newest("sms", number)
    assert newest is not None
    assert newest.is_stop
    assert alone.suppressed("sms", number)


def test_the_last_of_stop_start_is_what_the_vendor_holds(alone: Voice, single: Deployment) -> None:
    """design 3: we permit by a clear newer than its stop → an opt-in is sent."""
    number, begun = a_number(), ago(90)
    with single.vendor.slow(1.5):
        alone.stop("sms", number, "do_not_call", begun)
        seen(single.vendor, "sms", number, 1)
        assert alone.reactivate("sms", number, begun + 20).is_success
        arrived(single.vendor, "sms", number, 2)
        settled(alone, number)
    newest = single.vendor.newest("sms", number)
    assert newest is not None
    assert not newest.is_stop
    assert newest.timestamp == begun + 20


def test_a_restarted_conversation_ends_with_the_newest_stop(alone: Voice, single: Deployment) -> None:
    """design 3: a retry that finds a newer pending row becomes `superseded`."""
    number, begun = a_number(), ago(90)
    with single.vendor.fault(when(carrying(number), refusal(500, "Down"), times=2)):
        alone.stop("sms", number, "do_not_call", begun)
        seen(single.vendor, "sms", number, 1)
        assert alone.reactivate("sms", number, begun + 20).is_success
        alone.stop("sms", number, "do_not_call", begun + 40)
        arrived(single.vendor, "sms", number)
    settled(alone, number)
    newest = single.vendor.newest("sms", number)
    assert newest is not None
    assert newest.is_stop


def test_a_slow_vendor_does_not_slow_the_callbacks(alone: Voice, single: Deployment) -> None:
    """design 4: the vendor is never called inside a transaction."""
    number = a_number()
    with single.vendor.slow(3):
        alone.stop("sms", number, "manual", ago(60))
        seen(single.vendor, "sms", number, 1)
        asked = time.monotonic()
        assert alone.suppressed("sms", number)
        assert alone.put("sms", a_number(), "manual", ago(60)).status_code == 200
        assert time.monotonic() - asked < 3, "answered while the vendor was still silent"
    listed(alone, number, "sent")
