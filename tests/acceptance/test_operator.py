"""What an operator does: reconciliations, and the commands of a shell (design.md 2.2, 2.3)."""

from __future__ import annotations

import json
from typing import Any

from .conftest import Deployment
from .running import until
from .speaking import Voice, a_number, ago, an_email, rows_of, stopped, told
from .watching import arrived, settled

ENDED = {"finished", "done", "applied", "completed", "complete", "approved", "succeeded", "proved", "failed"}


def reconcile(voice: Voice, channel: str) -> dict[str, Any]:
    """Start a reconciliation against the ledger and wait for its end."""
    body = {"channel": channel, "source": "ledger", "auto_approve": True}
    answer = voice.call("POST", "/v1/admin/reconciliations", json=body)
    assert answer.status_code == 202, answer.text
    place = f"/v1/admin/reconciliations/{answer.json()['id']}"

    def ended() -> dict[str, Any]:
        found: dict[str, Any] = voice.call("GET", place).json()
        return found if str(found.get("state", found.get("status"))) in ENDED else {}

    return until(ended, f"{place} ends; {voice.call('GET', place).text}")


def test_a_consistent_list_has_no_differences(alone: Voice, single: Deployment) -> None:
    """design 2.3: `POST /v1/admin/reconciliations` → 202 with `id`; `GET` list, one, `/{id}/differences`."""
    number = a_number()
    alone.stop("sms", number, "manual", ago(60))
    alone.callback("sms", [stopped(a_number(), ago(60))])
    arrived(single.vendor, "sms", number)
    settled(alone, number)
    found = reconcile(alone, "sms")
    assert found.get("state", found.get("status")) != "failed", found
    answer = alone.call("GET", f"/v1/admin/reconciliations/{found['id']}/differences")
    assert answer.status_code == 200, answer.text
    assert number not in answer.text
    listed = rows_of(alone.call("GET", "/v1/admin/reconciliations").json())
    assert found["id"] in [one["id"] for one in listed]


def test_a_body_is_signed_and_sent_from_the_shell(alone: Voice, single: Deployment) -> None:
    """design 2.2: `send email|sms FILE --to URL`: signs a body as Kahuna does and posts it."""
    address = an_email("sent")
    file = single.service.folder / "body.json"
    file.write_text(json.dumps([told(address, ago(60)), told(f"b{address}", ago(60))], indent=1))
    done = single.service.run("send", "email", str(file), "--to", f"{single.service.url}/webhooks/default/email")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "X-Request-ID: " in done.stderr
    assert alone.suppressed("email", address)
    wrong = single.service.run("send", "email", str(file), "--to", f"{single.service.url}/webhooks/nowhere/email")
    assert wrong.returncode != 0, wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stdout + wrong.stderr


def test_a_reconciliation_from_the_shell(alone: Voice, single: Deployment) -> None:
    """design 2.2: `reconcile`: operator work; long ones show progress."""
    done = single.service.run("reconcile", "--channel", "email", "--source", "ledger", seconds=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_word_that_is_new_to_us_comes_in_by_a_replay_from_the_shell(alone: Voice, single: Deployment) -> None:
    """design 2.2, 2.3, 3: `replay`; an unknown word goes to quarantine, and comes in once it is known."""
    address = an_email("grumbling")
    entry = told(address, ago(60), "grumbled")
    first = alone.callback("email", [entry])
    assert first["rejected"] == 1
    place = f"/v1/admin/quarantine/{first['batch_id']}/0"
    assert alone.call("GET", place).json()["state"] == "open"
    for _ in range(2):
        done = single.service.run("replay", "--channel", "email", EXTRA_REASONS="grumbled=complaint")
        assert done.returncode == 0, done.stdout + done.stderr
    assert alone.suppressed("email", address)
    assert alone.call("GET", place).json()["state"] == "requeued"
    batch = alone.call("GET", f"/v1/admin/batches/{first['batch_id']}").json()
    assert (batch["accepted"], batch["duplicates"], batch["rejected"]) == (1, 0, 0)
    assert batch["body"] == json.dumps([entry])
