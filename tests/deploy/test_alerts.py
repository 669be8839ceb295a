"""Each alert fires when what it is about happens, and is quiet while all is well: Prometheus itself computes it, where
its tool is installed."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.deploy.test_manifests import RULES, rules

WELL = {
    'up{job="kahuna-sync",instance="web"}': "1x3000",
    'kahuna_sync_worker_steps_total{loop="push",outcome="idle"}': "0+100x3000",
    'kahuna_sync_worker_steps_total{loop="push",outcome="failed"}': "0x3000",
    'kahuna_sync_loop_lag_seconds_bucket{instance="web",le="0.25"}': "0+30x3000",
    'kahuna_sync_loop_lag_seconds_bucket{instance="web",le="0.75"}': "0+30x3000",
    'kahuna_sync_loop_lag_seconds_bucket{instance="web",le="+Inf"}': "0+30x3000",
    'kahuna_sync_process_starts_total{instance="web"}': "4x3000",
    'kahuna_sync_pool_connections{instance="web",state="busy"}': "2x3000",
    'kahuna_sync_pool_connections{instance="web",state="idle"}': "3x3000",
    'kahuna_sync_pool_connections{instance="web",state="free"}': "5x3000",
    'kahuna_sync_clock_skew_seconds{instance="web"}': "0.1x3000",
    'kahuna_sync_callbacks_total{channel="email",answer="applied"}': "0+5x3000",
    'kahuna_sync_callbacks_total{channel="email",answer="401"}': "0x3000",
    'kahuna_sync_callbacks_total{channel="email",answer="500"}': "0x3000",
    'kahuna_sync_callbacks_total{channel="email",answer="503"}': "0x3000",
    'kahuna_sync_request_seconds_bucket{route="/webhooks/{namespace}/email",le="0.25"}': "0+30x3000",
    'kahuna_sync_request_seconds_bucket{route="/webhooks/{namespace}/email",le="5.0"}': "0+30x3000",
    'kahuna_sync_request_seconds_bucket{route="/webhooks/{namespace}/email",le="+Inf"}': "0+30x3000",
    'kahuna_sync_spool_oldest_seconds{instance="web"}': "0x3000",
    'kahuna_sync_spool_set_aside{instance="web"}': "0x3000",
    "kahuna_sync_unapplied_batches": "0x3000",
    'kahuna_sync_entries_total{channel="email",outcome="rejected"}': "0x3000",
    "kahuna_sync_pending_reviews": "0x3000",
    'kahuna_sync_corrections_overdue_seconds{namespace="default",channel="email"}': "5x3000",
    'kahuna_sync_corrections{namespace="default",state="dead"}': "_x3000",
    'kahuna_sync_corrections{namespace="default",state="pending"}': "7x3000",
    'kahuna_sync_open_circuits{namespace="default",channel="email"}': "_x3000",
    'kahuna_sync_push_seconds_count{namespace="default",channel="email",answer="ok"}': "0+5x3000",
    'kahuna_sync_push_seconds_count{namespace="default",channel="email",answer="unavailable"}': "0x3000",
    'kahuna_sync_drift{namespace="default",channel="email",kind="differs"}': "0x3000",
    "kahuna_sync_feed_lag_seconds": "0x3000",
    'kahuna_sync_open_stops{namespace="default",channel="email",state="overdue"}': "0x3000",
    'kahuna_sync_open_stops{namespace="default",channel="email",state="on_time"}': "9x3000",
    'kahuna_sync_open_surges{namespace="default",channel="email"}': "_x3000",
    'kahuna_sync_logs_failing{namespace="default",api="emaillog",walk="pull"}': "0x3000",
}
"""What a day of a deployment looks like, in minutes."""

CALLBACK = 'kahuna_sync_callbacks_total{channel="email",answer='
STEPS = 'kahuna_sync_worker_steps_total{loop="push",outcome='
LAG = 'kahuna_sync_loop_lag_seconds_bucket{instance="web",le="0.25"}'
SLOW = 'kahuna_sync_request_seconds_bucket{route="/webhooks/{namespace}/email",le="0.25"}'
PUSH = 'kahuna_sync_push_seconds_count{namespace="default",channel="email",answer='
BUSY, IDLE, FREE = (f'kahuna_sync_pool_connections{{instance="web",state="{s}"}}' for s in ("busy", "idle", "free"))
OVERDUE = 'kahuna_sync_corrections_overdue_seconds{namespace="default",channel="email"}'

GONE_WRONG = [
    ("KahunaSyncDown", "3m", {'up{job="kahuna-sync",instance="web"}': "0x3000"}),
    (
        "KahunaSyncNoWorker",
        "25m",
        {f'{STEPS}"idle"}}': "0+9x10 stale _x3000", f'{STEPS}"failed"}}': "0x10 stale _x3000"},
    ),
    ("KahunaSyncNoWorker", "25m", {f'{STEPS}"idle"}}': "0+9x10 90x3000"}),
    ("KahunaSyncWorkerFailing", "20m", {f'{STEPS}"failed"}}': "0+1x3000"}),
    ("KahunaSyncLoopLate", "20m", {LAG: "0+20x3000"}),
    ("KahunaSyncProcessesDie", "30m", {'kahuna_sync_process_starts_total{instance="web"}': "4+1x3000"}),
    ("KahunaSyncPoolExhausted", "7m", {BUSY: "10x3000", IDLE: "0x3000", FREE: "0x3000"}),
    ("KahunaSyncClockSkew", "12m", {'kahuna_sync_clock_skew_seconds{instance="web"}': "-6x3000"}),
    # A minute without a database is enough: what was refused may never come again.
    ("KahunaSyncCallbacksNotTaken", "13m", {f'{CALLBACK}"503"}}': "0x10 3x3000"}),
    ("KahunaSyncCallbacksNotTaken", "13m", {f'{CALLBACK}"500"}}': "0x10 1x3000"}),
    ("KahunaSyncCallbacksRefused", "22m", {f'{CALLBACK}"401"}}': "0x10 9x3000"}),
    ("KahunaSyncCallbacksSlow", "25m", {SLOW: "0+20x3000"}),
    # Nobody has ever called.
    ("KahunaSyncNoCallbacks", "27h", {f'{CALLBACK}"applied"}}': "0x3000"}),
    ("KahunaSyncSpooling", "3m", {'kahuna_sync_spool_oldest_seconds{instance="web"}': "301x3000"}),
    ("KahunaSyncSpoolSetAside", "7m", {'kahuna_sync_spool_set_aside{instance="web"}': "1x3000"}),
    ("KahunaSyncUnapplied", "12m", {"kahuna_sync_unapplied_batches": "1x3000"}),
    ("KahunaSyncQuarantine", "20m", {'kahuna_sync_entries_total{channel="email",outcome="rejected"}': "0x10 12x3000"}),
    ("KahunaSyncReviewsWait", "25h", {"kahuna_sync_pending_reviews": "1x3000"}),
    ("KahunaSyncCircuitOpen", "12m", {'kahuna_sync_open_circuits{namespace="default",channel="email"}': "1x3000"}),
    ("KahunaSyncCorrectionsOverdue", "7m", {OVERDUE: "901x3000"}),
    ("KahunaSyncCorrectionsGivenUp", "12m", {'kahuna_sync_corrections{namespace="default",state="dead"}': "1x3000"}),
    ("KahunaSyncPushFailing", "32m", {f'{PUSH}"ok"}}': "_x3000", f'{PUSH}"unavailable"}}': "0+5x3000"}),
    ("KahunaSyncDrift", "25h", {'kahuna_sync_drift{namespace="default",channel="email",kind="differs"}': "1x3000"}),
    ("KahunaSyncFeedLate", "7m", {"kahuna_sync_feed_lag_seconds": "61x3000"}),
    (
        "KahunaSyncStopsOverdue",
        "17m",
        {'kahuna_sync_open_stops{namespace="default",channel="email",state="overdue"}': "1x3000"},
    ),
    ("KahunaSyncSurge", "12m", {'kahuna_sync_open_surges{namespace="default",channel="email"}': "1x3000"}),
    (
        "KahunaSyncLogsFailing",
        "62m",
        {'kahuna_sync_logs_failing{namespace="default",api="emaillog",walk="pull"}': "1x3000"},
    ),
]


def judged(folder: Path, series: dict[str, str], at: str, expected: dict[str, int]) -> None:
    """Has Prometheus compute which alerts fire at that time."""
    samples = [{"labels": f'{{alertname="{name}"}}', "value": count} for name, count in expected.items()]
    query = 'count by (alertname) (ALERTS{alertstate="firing"})'
    case: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": at, "exp_samples": samples}],
    }
    file = folder / "case.json"
    every = "10m" if at.endswith("h") else "1m"
    file.write_bytes(msgspec.json.encode({"rule_files": [str(RULES)], "evaluation_interval": every, "tests": [case]}))
    if program := shutil.which("promtool"):
        told = subprocess.run([program, "test", "rules", str(file)], capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr


def test_nothing_fires_while_all_is_well(tmp_path: Path) -> None:
    judged(tmp_path, WELL, "70m", {})


@pytest.mark.parametrize(("alert", "at", "wrong"), GONE_WRONG)
def test_an_alert_fires_when_that_happens_and_no_other_does(
    tmp_path: Path, alert: str, at: str, wrong: dict[str, str]
) -> None:
    judged(tmp_path, WELL | wrong, at, {alert: 1})


def test_a_deployment_of_an_hour_is_not_told_of_a_day_without_callbacks(tmp_path: Path) -> None:
    judged(tmp_path, WELL | {f'{CALLBACK}"applied"}}': "0x3000"}, "3h", {})


def test_every_alert_has_a_case_here() -> None:
    assert {alert for alert, _, _ in GONE_WRONG} == {rule.alert for rule in rules()}
