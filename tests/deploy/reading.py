"""Reads manifests into shapes that know no other field than those we use: a misspelt one is an error."""

import re
from pathlib import Path
from typing import Any

import msgspec

from service.settings import Namespace, Settings, names

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SETTINGS = {**names(Settings), **names(Namespace)}


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """A part of a manifest."""


class Named(Strict, frozen=True, kw_only=True):
    name: str


# Compose.


class Interpolated(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the compose file, whose fields are in lower case."""


class Health(Interpolated, frozen=True, kw_only=True):
    test: list[str] = []
    interval: str = ""
    timeout: str = ""
    retries: int = 0
    disable: bool = False


class Build(Interpolated, frozen=True, kw_only=True):
    context: str
    args: dict[str, str] = {}


class Waits(Interpolated, frozen=True, kw_only=True):
    condition: str


class EnvFile(Interpolated, frozen=True, kw_only=True):
    path: str
    required: bool = True


class ComposeService(Interpolated, frozen=True, kw_only=True):
    image: str
    build: Build | None = None
    env_file: list[EnvFile] = []
    restart: str = ""
    read_only: bool = False
    tmpfs: list[str] = []
    cap_drop: list[str] = []
    security_opt: list[str] = []
    stop_grace_period: str = ""
    command: list[str] = []
    environment: dict[str, str] = {}
    volumes: list[str] = []
    depends_on: dict[str, Waits] | list[str] = []
    healthcheck: Health | None = None
    ports: list[str] = []
    profiles: list[str] = []


class Compose(Interpolated, frozen=True, kw_only=True):
    name: str
    services: dict[str, ComposeService]
    volumes: dict[str, None]


# Kubernetes.


class Meta(Strict, frozen=True, kw_only=True):
    name: str = ""
    namespace: str = ""
    labels: dict[str, str] = {}


class Selector(Strict, frozen=True, kw_only=True):
    match_labels: dict[str, str] = {}


class Reference(Strict, frozen=True, kw_only=True):
    config_map_ref: Named | None = None
    secret_ref: Named | None = None


class Variable(Strict, frozen=True, kw_only=True):
    name: str
    value: str


class Port(Strict, frozen=True, kw_only=True):
    name: str
    container_port: int


class Get(Strict, frozen=True, kw_only=True):
    path: str
    port: str


class Probe(Strict, frozen=True, kw_only=True):
    http_get: Get
    period_seconds: int
    failure_threshold: int
    timeout_seconds: int = 1


class Capabilities(Strict, frozen=True, kw_only=True):
    drop: list[str]


class ContainerSecurity(Strict, frozen=True, kw_only=True):
    allow_privilege_escalation: bool
    read_only_root_filesystem: bool
    capabilities: Capabilities


class Resources(Strict, frozen=True, kw_only=True):
    requests: dict[str, str]
    limits: dict[str, str] = {}


class Mount(Strict, frozen=True, kw_only=True):
    name: str
    mount_path: str


class Container(Strict, frozen=True, kw_only=True):
    name: str
    image: str
    args: list[str]
    env_from: list[Reference]
    env: list[Variable] = []
    ports: list[Port] = []
    startup_probe: Probe | None = None
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    resources: Resources
    security_context: ContainerSecurity
    volume_mounts: list[Mount]


class Claimed(Strict, frozen=True, kw_only=True):
    claim_name: str


class Volume(Strict, frozen=True, kw_only=True):
    name: str
    empty_dir: dict[str, Any] | None = None
    persistent_volume_claim: Claimed | None = None


class Seccomp(Strict, frozen=True, kw_only=True):
    type: str


class PodSecurity(Strict, frozen=True, kw_only=True):
    run_as_non_root: bool
    run_as_user: int
    run_as_group: int
    fs_group: int
    seccomp_profile: Seccomp


class Spread(Strict, frozen=True, kw_only=True):
    max_skew: int
    topology_key: str
    when_unsatisfiable: str
    label_selector: Selector


class Pod(Strict, frozen=True, kw_only=True):
    containers: list[Container]
    volumes: list[Volume]
    security_context: PodSecurity
    automount_service_account_token: bool
    restart_policy: str = "Always"
    termination_grace_period_seconds: int = 30
    topology_spread_constraints: list[Spread] = []


class Template(Strict, frozen=True, kw_only=True):
    metadata: Meta
    spec: Pod


class Document(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What every object has; the rest is read by its kind."""

    kind: str
    api_version: str
    metadata: Meta = Meta()


class Rolling(Strict, frozen=True, kw_only=True):
    max_surge: int
    max_unavailable: int


class Strategy(Strict, frozen=True, kw_only=True):
    rolling_update: Rolling


class DeploymentSpec(Strict, frozen=True, kw_only=True):
    template: Template
    selector: Selector
    replicas: int = 1
    strategy: Strategy | None = None


class JobSpec(Strict, frozen=True, kw_only=True):
    template: Template
    backoff_limit: int
    ttl_seconds_after_finished: int


class ServicePort(Strict, frozen=True, kw_only=True):
    name: str
    port: int
    target_port: str


class ServiceSpec(Strict, frozen=True, kw_only=True):
    selector: dict[str, str]
    ports: list[ServicePort]


class Target(Strict, frozen=True, kw_only=True):
    api_version: str
    kind: str
    name: str


class ScalerSpec(Strict, frozen=True, kw_only=True):
    scale_target_ref: Target
    min_replicas: int
    max_replicas: int
    metrics: list[dict[str, Any]]


class BudgetSpec(Strict, frozen=True, kw_only=True):
    max_unavailable: int
    selector: Selector


class Peer(Strict, frozen=True, kw_only=True):
    namespace_selector: Selector


class PolicyPort(Strict, frozen=True, kw_only=True):
    protocol: str
    port: int


class Inward(Strict, frozen=True, kw_only=True):
    from_: list[Peer] = msgspec.field(name="from")
    ports: list[PolicyPort]


class Outward(Strict, frozen=True, kw_only=True):
    to: list[Peer] = []
    ports: list[PolicyPort]


class PolicySpec(Strict, frozen=True, kw_only=True):
    pod_selector: Selector
    policy_types: list[str]
    ingress: list[Inward]
    egress: list[Outward]


class ClaimSpec(Strict, frozen=True, kw_only=True):
    access_modes: list[str]
    resources: Resources


SPECS: dict[str, tuple[str, Any]] = {
    "Deployment": ("apps/v1", DeploymentSpec),
    "Job": ("batch/v1", JobSpec),
    "Service": ("v1", ServiceSpec),
    "HorizontalPodAutoscaler": ("autoscaling/v2", ScalerSpec),
    "PodDisruptionBudget": ("policy/v1", BudgetSpec),
    "NetworkPolicy": ("networking.k8s.io/v1", PolicySpec),
    "PersistentVolumeClaim": ("v1", ClaimSpec),
    "ConfigMap": ("v1", None),
    "Namespace": ("v1", None),
}


def compose() -> Compose:
    """The compose file; its templates (`x-...`) are where they are used."""
    document = msgspec.yaml.decode((DEPLOY / "compose.yaml").read_bytes())
    return msgspec.convert({key: value for key, value in document.items() if not key.startswith("x-")}, Compose)


def objects() -> list[tuple[Document, Any, dict[str, Any]]]:
    """Every Kubernetes object of the kustomization: what all have, its spec by its kind, and the whole."""
    folder = DEPLOY / "kubernetes"
    wanted = msgspec.yaml.decode((folder / "kustomization.yaml").read_bytes())["resources"]
    found = []
    for name in wanted:
        for text in re.split(r"(?m)^---$", (folder / name).read_text(encoding="utf-8")):
            whole = msgspec.yaml.decode(text)
            document = msgspec.convert(whole, Document)
            version, kind = SPECS[document.kind]
            assert document.api_version == version, document
            found.append((document, None if kind is None else msgspec.convert(whole["spec"], kind), whole))
    return found
