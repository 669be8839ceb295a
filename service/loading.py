"""Owns how the settings are read, once: from the environment, or from the TOML file that `CONFIG_FILE` names (same
names in lower case; one table `[namespaces.NAME]` for each namespace, or the environment for the only one). The
environment wins. A wrong one ends the start with its name.
"""

import dataclasses
import ipaddress
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from service.errors import SettingsError
from service.settings import (
    VENDOR_BASE_URL,
    Namespace,
    Secret,
    Settings,
    base_url_fault,
    names,
    parts_of,
    proxy_url_fault,
)

MOST_ENTRIES: Final = 100_000
SHORTEST_LEASE: Final = 3
"""Seconds: a claim is renewed three times in its length, and an event loop may be held up for a moment."""

MOST_DAYS: Final = 36_500

_T = TypeVar("_T")


def load(environ: Mapping[str, str], further: Callable[[Settings], Iterable[str]] = lambda _: ()) -> Settings:
    """All settings from the environment and, below it, the file that `CONFIG_FILE` names. SettingsError tells of every
    value that cannot be, those among them that `further` finds: whoever mends one at a time starts it as often."""
    file = _file(environ.get("CONFIG_FILE"))
    tables = _tables(file.pop("namespaces", {}))
    given = {name.upper(): value for name, value in file.items()} | _known(environ)
    faults = list(_unknown(file))
    named = {f"[namespaces.{name}]: ": _table_of(name, table, faults) for name, table in tables.items()} or {"": given}
    namespaces = tuple(_namespace_of(where, one, faults) for where, one in named.items())
    faults += _strays_in(given) if tables else ()
    settings = dataclasses.replace(_read(Settings, given, faults), namespaces=namespaces)
    faults += further(settings)
    faults += _faults_of(settings)
    faults += _faults_between(settings, {fault.partition(" ")[0] for fault in faults})
    if faults:
        raise SettingsError(" ".join(dict.fromkeys(faults)))
    return settings


def _known(environ: Mapping[str, str]) -> dict[str, Any]:
    """What is set. An empty variable counts as unset, as compose files and shells leave them."""
    return {name: environ[name] for name in (*names(Settings), *names(Namespace)) if environ.get(name)}


def _unknown(file: Mapping[str, Any]) -> Iterator[str]:
    known = {*names(Settings), *names(Namespace)}
    for name in file:
        if name.upper() not in known:
            yield f"CONFIG_FILE holds {name}, which is no setting: correct its spelling or take it out."


def _tables(given: Any) -> dict[str, dict[str, Any]]:
    """The namespaces of the file, by name."""
    if not isinstance(given, dict) or not all(isinstance(table, dict) for table in given.values()):
        raise SettingsError(
            "CONFIG_FILE: namespaces must be tables; write [namespaces.NAME] above the settings of each."
        )
    return given


def _strays_in(given: Mapping[str, Any]) -> Iterator[str]:
    """A key beside the tables would be ignored, and nobody would know."""
    for name in names(Namespace):
        if name in given:
            yield f"{name} is set, but CONFIG_FILE has [namespaces] tables: put it into one of them."


def _file(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"CONFIG_FILE cannot be read as TOML: {type(error).__name__}; check its path and syntax."
        ) from error


def _table_of(name: str, table: Mapping[str, Any], faults: list[str]) -> dict[str, Any]:
    """A table of the file, by the names that its settings have in the environment."""
    fields = {f.name: env_name for env_name, f in names(Namespace).items() if f.name != "name"}
    unknown = [key for key in table if key not in fields]
    faults += [f"CONFIG_FILE: [namespaces.{name}] holds {key}, which is no setting: correct it." for key in unknown]
    return {fields[key]: value for key, value in table.items() if key in fields} | {"KAHUNA_NAMESPACE": name}


def _read(kind: type[_T], given: Mapping[str, Any], faults: list[str]) -> _T:
    """What is given; what cannot be is left at its default, and noted."""
    hints = typing.get_type_hints(kind)
    values = {}
    for name, field in names(kind).items():
        if name in given:
            try:
                values[field.name] = _parse(name, hints[field.name], given[name])
            except SettingsError as error:
                faults.append(str(error))
    return kind(**values)


def _namespace_of(where: str, given: Mapping[str, Any], faults: list[str]) -> Namespace:
    """The namespace of a table, which its faults name: several tables may have the same."""
    mine: list[str] = []
    namespace = _completed(_read(Namespace, given, mine), mine)
    faults += [f"{where}{fault}" for fault in mine]
    return namespace


def _completed(namespace: Namespace, faults: list[str]) -> Namespace:
    if "/" in namespace.name or not namespace.name.strip():
        faults.append("KAHUNA_NAMESPACE must be a name without a slash: it is a segment of the webhook path.")
    token = namespace.callback_token
    if token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]+", token.reveal()):
        faults.append("CALLBACK_TOKEN must be of A-Z a-z 0-9 . _ ~ - alone: it is a segment of the webhook path.")
    fault = base_url_fault(namespace.base_url)
    if fault is not None:
        faults.append(f"KAHUNA_BASE_URL must {fault}.")
    stand_in = parts_of(namespace.base_url).hostname != parts_of(VENDOR_BASE_URL).hostname
    return dataclasses.replace(namespace, env="s") if namespace.env is None and stand_in else namespace


def _parse(name: str, hint: Any, value: Any) -> Any:
    """One value by its type. A secret is never repeated in the refusal."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is Literal:
        return _choice(name, typing.get_args(hint), value)
    if hint is Secret:
        return Secret(str(value))
    if typing.get_origin(hint) is tuple:
        return _several(name, typing.get_args(hint)[0], value)
    if hint in (int, float):
        return _number(name, hint, value)
    if not isinstance(value, str):
        raise SettingsError(f"{name} must be a text.")
    return hint(value)


def _several(name: str, kind: Any, value: Any) -> tuple[Any, ...]:
    """A list, or one text with commas: of secrets, of networks, or of pairs."""
    if kind not in (Secret, str):
        return _pairs(name, value)
    parts = value if isinstance(value, list) else str(value).split(",")
    texts = [str(part).strip() for part in parts if str(part).strip()]
    return tuple(Secret(one) for one in texts) if kind is Secret else tuple(_network(name, one) for one in texts)


def _network(name: str, text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise SettingsError(
            f"{name} must be addresses or networks, such as 10.0.0.7 or 10.0.0.0/8, with commas between several."
        ) from None


def _pairs(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    parts = [part.partition("=") for part in str(value).split(",") if part.strip()]
    pairs = tuple((word.strip(), meaning.strip()) for word, _, meaning in parts)
    if not isinstance(value, str) or not all(word and meaning for word, meaning in pairs):
        raise SettingsError(f"{name} must be word=reason, with commas between several.")
    return pairs


def _choice(name: str, choices: tuple[str, ...], value: Any) -> Any:
    if value not in choices:
        raise SettingsError(f"{name} must be one of {', '.join(choices)}.")
    return value


def _number(name: str, kind: type[int] | type[float], value: Any) -> int | float:
    wanted = "whole number" if kind is int else "number"
    try:
        # By way of its text: a file may say 8700.5, and int() would cut that.
        number = kind(str(value))
    except ValueError:
        raise SettingsError(f"{name} must be a {wanted}.") from None
    if not 0 <= number < float("inf"):
        raise SettingsError(f"{name} must be a {wanted} that is not negative.")
    return number


def _faults_of(settings: Settings) -> Iterator[str]:
    """What values that can be read cannot be."""
    for name, field in names(Settings).items():
        value = getattr(settings, field.name)
        if isinstance(value, int | float) and value == 0:
            yield f"{name} must be more than 0."
        yield from _faults_of_time(name, value or 0)
    for name in ("PORT", "ADMIN_PORT", "WORKER_PORT"):
        if (getattr(settings, name.lower()) or 0) > 65_535:
            yield f"{name} must be at most 65535."
    yield from _faults_of_traces(settings)
    yield from _faults_of_proxy(settings)
    if settings.push_batch_entries > MOST_ENTRIES:
        yield f"PUSH_BATCH_ENTRIES must be at most {MOST_ENTRIES}, the vendor's own limit."
    if settings.surge_window_minutes > 60:
        yield "SURGE_WINDOW_MINUTES must be at most 60."
    if settings.reconcile_guard_share > 1:
        yield "RECONCILE_GUARD_SHARE must be at most 1, which is all of the list."
    if settings.push_lease_seconds < SHORTEST_LEASE:
        yield f"PUSH_LEASE_SECONDS must be at least {SHORTEST_LEASE}, or a claim ends before it is renewed."


def _faults_between(settings: Settings, wrong: set[str]) -> Iterator[str]:
    """What two values cannot be beside each other. One that is wrong by itself may stand at its default here, against
    which nothing is held."""
    if settings.admin_port == settings.port and wrong.isdisjoint({"PORT", "ADMIN_PORT"}):
        yield "ADMIN_PORT must be another port than PORT; leave it out to have one port for all."


def _faults_of_time(name: str, value: Any) -> Iterator[str]:
    if name.endswith("_DAYS") and value > MOST_DAYS:
        yield f"{name} must be at most {MOST_DAYS}; leave it out where there is to be no end."
    if name.endswith("_HOURS") and value > 24 * MOST_DAYS:
        yield f"{name} must be at most {24 * MOST_DAYS}."


def _faults_of_traces(settings: Settings) -> Iterator[str]:
    if settings.traces_sample_ratio > 1:
        yield "TRACES_SAMPLE_RATIO must be at most 1, which is all of them."
    fault = None if settings.traces_url is None else base_url_fault(settings.traces_url)
    if fault is not None:
        yield f"TRACES_URL must {fault}."


def _faults_of_proxy(settings: Settings) -> Iterator[str]:
    """The address itself is not repeated: a password may stand in it."""
    url = settings.kahuna_proxy_url
    fault = None if url is None else proxy_url_fault(url.reveal())
    if fault is not None:
        yield f"KAHUNA_PROXY_URL must {fault}."
