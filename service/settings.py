"""Owns every setting: its name, default, unit and the sentence that explains it. Frozen, secrets wrapped. How they
are read is the matter of `loading`.
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

from service.errors import SettingsError

VENDOR_BASE_URL: Final = "https://tap-nexus.appspot.com"


class Secret:
    """A text that never shows itself: only `reveal` gives it away."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text, for the one place that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))


def setting(default: Any, says: str, name: str | None = None, *, shown: bool = True) -> Any:
    """A field that is a setting: its default, its sentence, its name where that is not the field's own, and whether
    its value may be printed."""
    return dataclasses.field(default=default, repr=shown, metadata={"says": says, "name": name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One vendor namespace in one environment: whom we speak to, with which keys, under which reviews."""

    name: str = setting("default", "Name of the one namespace that the variables here describe", "KAHUNA_NAMESPACE")
    base_url: str = setting(VENDOR_BASE_URL, "The vendor, or a stand-in", "KAHUNA_BASE_URL")
    env: Literal["p", "s"] | None = setting(
        None,
        "`p` (production) or `s` (sandbox). For a stand-in it defaults to `s`; for the vendor's own host it must be "
        "given, since corrections sent to the wrong one would look proved",
        "KAHUNA_ENV",
    )
    api_key: tuple[Secret, ...] = setting(
        (),
        "Signs webhooks; Basic password. Comma-separated: the first is used to send, all are accepted (rotation)",
        "KAHUNA_API_KEY",
    )
    secret_key: Secret | None = setting(None, "Basic user name", "KAHUNA_SECRET_KEY")
    contract: str | None = setting(
        None,
        "Corrections of what this release only guesses of Kahuna's APIs: `name=value,name=value`, the names as in "
        "`service/kahuna/contract.py`",
        "KAHUNA_CONTRACT",
    )
    callback_token: Secret | None = setting(
        None,
        "If set, every webhook path needs it as its last segment, the vendor's example paths too",
        "CALLBACK_TOKEN",
    )
    opt_in_review: Literal["off", "local", "all"] = setting(
        "local",
        "Which opt-ins wait for a person: `off` none, `local` those that would clear a stop which did not come from "
        "Kahuna, `all` every one",
        "OPT_IN_REVIEW",
    )
    untimed_opt_in: Literal["hold", "receipt"] = setting(
        "hold",
        "An opt-in without a time that can stand: `hold` for review, or `receipt` (trust the time of receipt)",
        "UNTIMED_OPT_IN",
    )
    extra_reasons: tuple[tuple[str, str], ...] = setting(
        (),
        "Words of Kahuna's that its contract does not list, each with our reason for it, such as "
        "`abuse=complaint,expired=invalid`",
        "EXTRA_REASONS",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a deployment decides. Each field's sentence and unit stand beside it."""

    config_file: Path | None = setting(None, "A TOML file with these settings and several namespaces")
    database_url: str | None = setting(
        None, "Any `postgresql://` URL. Unset: an embedded PostgreSQL under `DATA_DIR`", shown=False
    )
    database_direct_url: str | None = setting(
        None,
        "A way past the pooler, for migrations and to be told of changes at once; without it, migrations use "
        "`DATABASE_URL` and the feed is polled",
        shown=False,
    )
    database_pooler: Literal["none", "transaction"] = setting(
        "none", "`transaction` behind PgBouncer in transaction mode: no named statements, no session state"
    )
    database_pool_size: int = setting(
        20, "Database connections that one process keeps at most; lists that come and go hold up to eight for long"
    )
    database_connect_timeout_seconds: float = setting(5.0, "Seconds to wait for a connection before answering 503")
    lock_timeout_milliseconds: int = setting(
        2000, "Milliseconds that a statement waits for a lock before it is retried"
    )
    statement_timeout_seconds: int = setting(60, "Seconds after which the server ends a statement")
    transaction_timeout_seconds: int = setting(
        120,
        "Seconds after which the server (PostgreSQL 17 and newer) ends a transaction, so that none holds up the feed",
    )
    data_dir: Path = setting(Path(".data"), "Folder of the embedded database, and of the spool of `up`")
    spool_dir: Path | None = setting(
        None,
        "Folder that keeps verified callbacks while the database is away; it must outlive the replica. Unset: they are "
        "answered with 503 (`up`: `spool` under `DATA_DIR`)",
    )
    spool_limit_bytes: int = setting(1024**3, "Bytes of disk that the spool may take before callbacks get 503")
    spool_patience_seconds: float = setting(
        2.0, "Seconds without an answer of the database after which callbacks are spooled"
    )
    host: str = setting(
        "127.0.0.1", "Address that the web process listens on; of a name, every address that it has on this machine"
    )
    port: int = setting(8700, "Port that the web process listens on")
    web_workers: int = setting(
        1, "Web processes that share the ports, each with a pool of database connections of its own"
    )
    admin_port: int | None = setting(
        None,
        "Port to which everything but the webhooks and `/livez` moves, so that `PORT` carries callbacks only. Unset: "
        "one port for all",
    )
    worker_port: int | None = setting(
        None, "Port on which a worker answers `/livez`, `/readyz` and `/metrics`, at `HOST`. Unset: none"
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        "Addresses or networks, with commas, of the proxies that are believed when they say from where a request came "
        "(`X-Forwarded-For`, `X-Forwarded-Proto`). Unset: nobody is",
    )
    stop_delay_seconds: float | None = setting(
        None,
        "Seconds after the signal to end in which `/readyz` says 503 and everything is still answered, so that load "
        "balancers look away first. Unset: the end begins at once",
    )
    default_namespace: str | None = setting(
        None, "Namespace of the vendor's example paths. Unset: the only one, or the one named `default`"
    )
    head_limit_bytes: int = setting(64 * 1024, "Bytes of a request line and its headers, together, at most")
    head_timeout_seconds: float = setting(
        15.0, "Seconds within which they must have arrived; a connection on which nobody asks ends after them too"
    )
    body_limit_bytes: int = setting(10 * 1024 * 1024, "Largest callback body in bytes, as sent and once decompressed")
    body_timeout_seconds: float = setting(30.0, "Seconds within which a callback body must have arrived")
    body_budget_bytes: int = setting(
        256 * 1024 * 1024, "Bytes of callback bodies that one process holds at once before it answers 503"
    )
    token_cache_seconds: float = setting(
        5.0, "Seconds that a process believes what it knows of an API token; a revoked one may live on as long"
    )
    token_calls_per_second: float | None = setting(
        None, "Calls per second that one API token may make of one process before it gets 429. Unset: any number"
    )
    console_session_hours: float = setting(12.0, "Hours after which whoever signed in at the console must do so again")
    soft_bounce_count: int = setting(3, "Soft bounces within the window that suppress")
    soft_bounce_window_days: int = setting(14, "Days within which they must fall")
    soft_bounce_lifetime_days: int = setting(30, "Days after the last of them until the suppression ends")
    hard_bounce_lifetime_days: int | None = setting(None, "Days until a hard bounce lapses. Unset: never")
    surge_window_minutes: int = setting(10, "Minutes of the feed that are looked over at once for surges, at most 60")
    surge_domain_stops: int = setting(
        500,
        "Stops of one reason from one e-mail domain within that window, told by Kahuna, from which on they are flagged "
        "as a surge; a number that is never reached switches this off",
    )
    surge_minute_stops: int = setting(
        1000, "The same for stops of one reason, from anywhere, that were recorded within one minute"
    )
    kahuna_proxy_url: Secret | None = setting(
        None,
        "The HTTP proxy by which Kahuna is spoken to, such as `http://user:password@proxy.example.com:3128`. Unset: "
        "none; `HTTPS_PROXY` and its like do not count",
    )
    push_batch_entries: int = setting(5000, "Corrections in one call of a Sync API, at most 100000")
    push_timeout_seconds: float = setting(60.0, "Seconds that one call of a Sync API may take as a whole")
    push_lease_seconds: float = setting(
        30.0,
        "Seconds after which corrections that a dead worker had claimed are free again, at least 3; a living one "
        "renews its claim",
    )
    push_request_budget: int = setting(64, "Calls that one bisection may spend on finding a refused entry")
    push_first_delay_seconds: float = setting(1.0, "Seconds before the first retry; doubles with each attempt")
    push_longest_delay_seconds: float = setting(
        900.0, "Seconds between retries at most, also when Kahuna asks for more"
    )
    circuit_probe_seconds: float = setting(60.0, "Seconds between probes while Kahuna refuses the credentials")
    worker_poll_seconds: float = setting(0.5, "Seconds between two looks at an empty queue")
    logs_pull: Literal["on", "off"] = setting("on", "Whether the worker reads Kahuna's logs for what callbacks missed")
    logs_pull_seconds: float = setting(900.0, "Seconds between two pulls of Kahuna's logs")
    logs_delay_seconds: float = setting(
        600.0, "Seconds that a pull stays behind the present, since a record may be written down late"
    )
    reconcile_every_hours: float | None = setting(
        None, "Hours between two reconciliations of each list that the worker begins by itself. Unset: none"
    )
    reconcile_source: Literal["ledger", "logs"] = setting(
        "ledger", "What those compare with: the ledger, or first what Kahuna's logs tell"
    )
    reconcile_auto_approve: Literal["off", "on"] = setting(
        "off", "`on`: what those propose is carried out at once, as far as the guards let it"
    )
    reconcile_guard_share: float = setting(
        0.05, "Share of the list, at most 1, from which on a plan with so many differences waits for a person"
    )
    reconcile_guard_floor: int = setting(20, "Differences up to which the share does not matter")
    reconcile_guard_count: int = setting(1000, "Differences from which on a plan waits for a person, whatever the list")
    reconcile_sample: int = setting(100, "Addresses that a reconciliation with profiles takes if none are named")
    reconcile_budget: int = setting(200, "Calls of User Info that one reconciliation with profiles may make")
    reconcile_kept_runs: int = setting(
        30,
        "Reconciliations of each list, the newest, that keep all their differences; older ones keep what was decided",
    )
    reconcile_lines_retention_days: int | None = setting(
        365,
        "Days after which failed, rejected and abandoned reconciliations lose the differences that recorded nothing",
    )
    merges_retention_days: int | None = setting(
        None, "Days after which merges of users that Kahuna's logs told of are dropped. Unset: never"
    )
    archive_retention_days: int | None = setting(
        None, "Days after which received bodies are dropped, by whole months (UTC). Unset: never"
    )
    changes_retention_days: int | None = setting(
        None, "Days after which rows of the feed are dropped, by whole months (UTC). Unset: never"
    )
    calls_retention_days: int | None = setting(
        None, "Days after which what Kahuna answered to each call is dropped, by whole months (UTC). Unset: never"
    )
    changes_poll_seconds: float = setting(
        0.5, "Seconds between two looks at the feed while somebody waits and nobody tells of changes"
    )
    changes_longest_wait_seconds: float = setting(
        60.0,
        "Seconds that a call waits for changes at most, whatever it asks for: less than proxies wait for an answer",
    )
    stop_due_business_days: int = setting(
        10, "Business days after which a stop must be honoured on both sides, at most 366"
    )
    stop_due_soon_days: float = setting(2.0, "Days before that from which a stop counts as due soon")
    business_weekend: str = setting(
        "saturday,sunday", "Weekdays that are no business days, with commas between them; `none` if there are none"
    )
    business_holidays: str | None = setting(
        None, "Dates that are no business days, such as `2026-12-25,2027-01-01`. Unset: none"
    )
    business_time_zone: str = setting("UTC", "Time zone in which days begin and end, such as `America/New_York`")
    traces_url: str | None = setting(
        None,
        "Where spans of OpenTelemetry go by OTLP over HTTP, such as `http://collector:4318/v1/traces`; takes the extra "
        "`traces`. Unset: nowhere",
    )
    traces_sample_ratio: float = setting(
        0.1,
        "Share of the requests that are recorded if they come without a decision in `traceparent`, at most 1",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Least level that is logged")
    log_format: Literal["console", "json"] = setting("console", "`json` for machines, `console` for people")
    namespaces: tuple[Namespace, ...] = ()

    def namespace(self, name: str) -> Namespace | None:
        """The namespace of that name, if there is one."""
        for one in self.namespaces:
            if one.name == name:
                return one
        return None

    @property
    def traces_to(self) -> str:
        """The host that traces go to, for logs; `off` without one."""
        return urlsplit(self.traces_url or "").hostname or "off"

    @property
    def main_namespace(self) -> Namespace | None:
        """The namespace that the vendor's example paths serve."""
        if len(self.namespaces) == 1 and self.default_namespace is None:
            return self.namespaces[0]
        return self.namespace(self.default_namespace or "default")


def check_namespaces(settings: Settings) -> None:
    """Refuses to start without what receiving and sending need, and names all of it at once."""
    several = len(settings.namespaces) > 1
    missing = [
        f"{name}{f' of namespace {namespace.name}' if several else ''} ({says})"
        for namespace in settings.namespaces
        for name, says in _missing(namespace)
    ]
    if missing:
        raise SettingsError(f"Not set, but needed: {'; '.join(missing)}. {_WITHOUT_KAHUNA}")
    if settings.default_namespace and settings.main_namespace is None:
        known = ", ".join(namespace.name for namespace in settings.namespaces)
        raise SettingsError(f"DEFAULT_NAMESPACE names no namespace; there are {known}.")


_WITHOUT_KAHUNA: Final = (
    "To try it without Kahuna: kahuna-sync up --demo; or kahuna-sync simulator, and what it prints in KAHUNA_BASE_URL, "
    "KAHUNA_SECRET_KEY and KAHUNA_API_KEY."
)


def _missing(namespace: Namespace) -> Iterator[tuple[str, str]]:
    """What is not set and has to be, and what it is."""
    if not namespace.api_key:
        yield "KAHUNA_API_KEY", "the namespace's API Key, which signs webhooks"
    if namespace.secret_key is None:
        yield "KAHUNA_SECRET_KEY", "the namespace's Secret Key"
    if namespace.env is None:
        yield "KAHUNA_ENV", "p for production or s for sandbox, since KAHUNA_BASE_URL is Kahuna's own host"


def chosen(settings: Settings, name: str | None) -> Namespace:
    """The namespace of that name; without one, the only or the main one."""
    found = settings.main_namespace if name is None else settings.namespace(name)
    if found is None:
        known = ", ".join(namespace.name for namespace in settings.namespaces)
        wanted = "Say which namespace with --namespace" if name is None else f"There is no namespace {name}"
        raise SettingsError(f"{wanted}; there are: {known}.")
    return found


def names(kind: type) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a class, by their names in the environment."""
    fields = (f for f in dataclasses.fields(kind) if "says" in f.metadata)
    return {f.metadata["name"] or f.name.upper(): f for f in fields}


def base_url_fault(base_url: str) -> str | None:
    """What the address of the vendor must be and is not; None for one that can be used."""
    url = parts_of(base_url)
    if url.scheme not in ("http", "https") or not url.hostname or re.search(r"[\s\x00-\x1f]", base_url):
        return "begin with http:// or https:// and name a host"
    try:
        url.hostname.encode("idna")
        exists = url.port != 0 and "xn--" not in url.hostname.split(".")
    except ValueError:
        exists = False
    if not exists:
        return "name a host and a port that can exist"
    # The first would put a key into logs; the others would be lost, as the paths of the APIs are set behind them.
    return "have no user, query or fragment" if re.search("[@?#]", base_url) else None


def proxy_url_fault(proxy_url: str) -> str | None:
    """What the address of a proxy must be and is not; None for one that can be used. It may have user and password."""
    url = parts_of(proxy_url)
    person, _, place = url.netloc.rpartition("@")
    fault = base_url_fault(f"{url.scheme}://{place}")
    if fault is None and (not person.isascii() or re.search(r"[\s\x00-\x1f\x7f]", proxy_url)):
        return "have what is unusual in its user and password percent-encoded"
    if fault is None and (url.path not in ("", "/") or re.search("[?#]", proxy_url)):
        return "have no path, query or fragment; in its user and password these characters are percent-encoded"
    return fault


def parts_of(url: str) -> SplitResult:
    """The parts of an address; none of one that is so wrong that it has none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
