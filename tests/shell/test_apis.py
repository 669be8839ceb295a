"""`kahuna-sync kahuna`: every API from the shell."""

import json
from pathlib import Path

import pytest

from .speaking import MEET_ANN, SINCE, Shell, commands, lines, ndjson


def test_there_is_a_command_for_each_api() -> None:
    assert len(list(commands())) == 16


def test_what_a_device_did_makes_a_user_that_can_be_asked_for(shell: Shell) -> None:
    assert shell.done(*MEET_ANN, "--attribute", "plan=gold") == [{"success": True}]
    (answer,) = shell.done("user-info", "--email", "ann@example.com")
    assert answer["user"]["credentials"] == {"email": "ann@example.com", "username": "ann"}
    assert answer["user"]["attributes"] == {"plan": "gold"}


def test_devices_may_come_from_a_file(shell: Shell) -> None:
    requests = [{"dev_id": f"dev-{n}", "event": "start", "credentials": {"user_id": str(n)}} for n in range(3)]
    assert shell.done("server", "-", "--skip", "1", given=ndjson(*requests)) == [{"success": True}] * 2
    assert [shell("user-info", "--user-id", str(n)).exit_code for n in range(3)] == [1, 0, 0]


def test_attributes_of_one_user_and_of_many(shell: Shell) -> None:
    shell.done(*MEET_ANN)
    shell.done("user-attributes", "--email", "ann@example.com", "--set", "city=Rome", "--set", "old=1")
    shell.done("user-attributes", "--username", "ann", "--unset", "old", "--set", "visits=5")
    (answer,) = shell.done("user-info", "--credential", "username=ann")
    assert answer["user"]["attributes"] == {"city": "Rome", "visits": "5"}
    users = [{"target": {"username": name}, "attributes": {"n": 1}} for name in ["ann"] * 150 + ["nobody"]]
    result = shell("user-attributes", "-", given=json.dumps(users))
    assert (result.exit_code, result.stderr) == (
        1,
        "kahuna-sync: 1 of 151 users were refused; see the lines printed.\n",
    )
    assert lines(result) == [{"success": True}] * 150 + [
        {"success": False, "error_code": 404, "error": "User not found"}
    ]


def test_pushes(shell: Shell) -> None:
    shell.done(
        "server",
        "-",
        given=ndjson({"dev_id": "d", "event": "start", "credentials": {"user_id": "7"}, "push_token": "t"}),
    )
    assert shell.done("push", "--user-id", "7", "--alert", "Hello", "--campaign-name", "Hi") == [{"success": True}]
    body = json.loads(shell.requests[-1].content)
    assert body["push_array"] == [{"target": {"user_id": "7"}, "notification": {"alert": "Hello"}}]
    assert body["default_config"] == {"campaign_name": "Hi"}
    several = ndjson(
        {"target": {"user_id": "7"}, "alert": "a", "config": {"campaign_name": "Ho"}},
        {"target": {"user_id": "8"}, "alert": "b"},
    )
    result = shell("push", "-", given=several)
    assert (result.exit_code, [line["success"] for line in lines(result)]) == (1, [True, False])
    assert [r["action"] for r in shell.done("logs", "push", *SINCE)] == ["push", "rate_limited"]


def test_a_campaign_is_followed_to_its_end(shell: Shell) -> None:
    shell.done(*MEET_ANN)
    words = ["adaptive-campaign", "-", "--campaign-id", "1002", "--cred-type", "email"]
    result = shell(*words, "--param", "promo=X", "--wait", given=ndjson({"k_to": ["ann@example.com"]}))
    assert result.exit_code == 0
    (status,) = lines(result)
    assert (status["state"], status["complete"], status["processed"]) == ("complete", True, 1)
    job = status["job_id"]
    assert result.stderr.splitlines() == [f"job {job}", f"job {job}: pending, 0 of 1", f"job {job}: complete, 1 of 1"]
    assert shell.done("job-status", job) == [status]
    assert [r["action"] for r in shell.done("logs", "email", *SINCE)] == ["email", "delivered"]


def test_a_campaign_need_not_be_waited_for(shell: Shell) -> None:
    words = [
        "adaptive-campaign",
        "-",
        "--campaign-id",
        "1002",
        "--cred-type",
        "email",
        "--start",
        "2017-07-15T00:00:00Z",
    ]
    (answer,) = shell.done(*words, given=ndjson({"k_to": ["nobody@example.com"], "params": {"promo": "Y"}}))
    body = json.loads(shell.requests[-1].content)
    assert body["default_params"] == {"k_send_ts": 1_500_076_800}
    assert body["recipient_list"] == [{"k_to": ["nobody@example.com"], "promo": "Y"}]
    shell.clock.seconds += 100_000
    result = shell("job-status", answer["job_id"], "--wait")
    assert (result.exit_code, lines(result)[0]["failed"]) == (1, True)


def test_the_syncs_count_and_name_what_was_refused(shell: Shell) -> None:
    entries = [
        {"reason": "unsub", "email": "ann@example.com", "timestamp": 1_499_999_999},
        {"reason": "sneeze", "email": "b"},
    ]
    result = shell("email-sync", "-", given=ndjson(*entries))
    assert (result.exit_code, result.stderr) == (
        1,
        "kahuna-sync: 1 of 2 entries were refused; see the errors printed.\n",
    )
    assert lines(result)[0] | {"errors": 1} == {"accepted": 1, "rejected": 1, "errors": 1}
    assert lines(result)[0]["errors"][0]["email"] == "b"
    numbers = [{"number": "15550100001", "opt-in": True, "timestamp": 1_499_999_999}, {"number": "15550100002"}]
    assert shell.done("sms-sync", "-", given=json.dumps(numbers)) == [{"accepted": 2, "rejected": 0, "errors": []}]


def test_a_user_is_deleted_once(shell: Shell) -> None:
    shell.done(*MEET_ANN)
    assert shell.done("user-delete", "--username", "ann") == [{"found": True, "success": True}]
    again = shell("user-delete", "--username", "ann")
    assert (again.exit_code, lines(again)[0]["found"]) == (1, False)
    asked = shell("user-info", "--username", "ann")
    assert (asked.exit_code, lines(asked)[0]["error"]) == (1, "User not found")


def test_an_event_outside_fires_a_campaign(shell: Shell) -> None:
    (answer,) = shell.done(
        "flex", "-", "--campaign-id", "2001", "--param", "a=b", given=ndjson({"event": "price-drop"})
    )
    assert answer["success"]
    assert answer["job_id"]


def test_records_of_campaigns(shell: Shell) -> None:
    shell.environ["KAHUNA_ENV"] = "p"
    shell.control("seed", {"env": "p", "users": 50, "records": 100, "categories": ["email"]})
    users = shell.done("user-campaign", "--campaign-name", "Newsletter", "--start", "2017-07-13", "--end", "2017-07-15")
    assert len(users) == 50
    assert users[0]["campaigns"][0]["campaign_id"] == 1002
    (one,) = shell.done("user-campaign", "--email", "seeded-p-1@example.com")
    assert one["credentials"]["username"] == "seeded-p-1"
    two = shell.done("user-campaign", "-", given=ndjson({"username": "seeded-p-1"}, {"username": "seeded-p-2"}))
    assert len(two) == 2
    (figures,) = shell.done(
        "campaign-statistics", "--campaign-id", "1002", "--start", "2017-07-13", "--end", "2017-07-14"
    )
    assert figures["stats"]["delivered"] > 0
    assert len(shell.done("campaign-statistics")) == 6


def test_each_kind_of_record_has_its_command(shell: Shell) -> None:
    shell.control("seed", {"users": 2, "records": 30, "categories": ["email", "in_app", "push"]})
    for name in ("push", "in-app", "email"):
        assert len(shell.done("logs", name, *SINCE)) == 10
    shell.done(*MEET_ANN)
    shell.done("server", "--dev-id", "x", "--event", "e", "--user-id", "9")
    shell.done("server", "--dev-id", "x", "--event", "e", "--user-id", "9", "--email", "ann@example.com")
    (merge,) = shell.done("logs", "user-merge", *SINCE)
    assert merge["older_user_credentials"]


def test_a_field_that_nobody_knows_is_printed_too(shell: Shell) -> None:
    shell.environ["KAHUNA_CONTRACT"] = "job_state=mood"
    job = shell.done("adaptive-campaign", "-", "--campaign-id", "1002", "--cred-type", "email", given='{"k_to":["a"]}')[
        0
    ]
    (status,) = shell.done("job-status", job["job_id"])
    assert status["status"] == "pending"
    assert "state" not in status


@pytest.mark.parametrize("missing", ["KAHUNA_API_KEY", "KAHUNA_SECRET_KEY"])
def test_keys_that_are_missing_are_named(shell: Shell, missing: str) -> None:
    del shell.environ[missing]
    result = shell("user-info", "--email", "a")
    assert result.exit_code == 2
    assert missing in result.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KAHUNA_SECRET_KEY", "key\udcff"),
        ("KAHUNA_API_KEY", "key\udcff"),
        ("KAHUNA_BASE_URL", "https://kahuna.test:99999"),
        ("KAHUNA_BASE_URL", "https://me:key@kahuna.test"),
    ],
)
def test_what_nothing_can_be_sent_with_is_named(shell: Shell, name: str, value: str) -> None:
    shell.environ[name] = value
    result = shell("user-info", "--email", "a")
    assert result.exit_code == 2
    assert name in result.stderr
    assert "key\udcff" not in result.stderr
    assert "me:key" not in result.stderr


def test_corrections_of_the_contract_count(shell: Shell) -> None:
    shell.environ["KAHUNA_CONTRACT"] = "user_delete_path=/api/v2/delete,user_delete_checksum=no"
    (request,) = shell.done("user-delete", "--email", "a@example.com", "--dry-run")
    assert request["url"] == "http://kahuna.test/api/v2/delete?env=s"
    assert "KAHUNA_API_CHECKSUM" not in request["headers"]
    shell.environ["KAHUNA_CONTRACT"] = "nonsense=1"
    result = shell("user-info", "--email", "a")
    assert result.exit_code == 2
    assert "KAHUNA_CONTRACT" in result.stderr


def test_of_several_namespaces_one_is_chosen(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    table = 'secret_key = "{0}-secret"\napi_key = "{0}-new, {0}-old"\nbase_url = "http://{0}.test"\n'
    file.write_text(
        "".join(f"[namespaces.{name}]\n{table.format(name)}" for name in ("shop", "club")) + "[namespaces.bare]\n"
    )
    shell.environ = {"CONFIG_FILE": str(file)}
    assert "--namespace" in shell("user-info", "--email", "a").stderr
    (request,) = shell.done("user-info", "--email", "a", "--namespace", "club", "--dry-run")
    assert request["url"].startswith("http://club.test/")
    assert shell("user-info", "--email", "a", "--namespace", "bare").exit_code == 2
