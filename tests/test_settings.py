"""Settings: every default works, every refusal names its setting, no secret is ever shown, and the README tells all."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from service.errors import SettingsError
from service.flows.ingest import rules_of
from service.loading import load
from service.operation import load_whole
from service.settings import (
    VENDOR_BASE_URL,
    Namespace,
    Secret,
    Settings,
    check_namespaces,
    names,
)
from service.store.database import Database

README = Path(__file__).parents[1] / "README.md"
SECRET = "s3cr3t-Value"
KEYS = {"KAHUNA_API_KEY": SECRET, "KAHUNA_SECRET_KEY": f"{SECRET}-2"}
STAND_IN = {"KAHUNA_BASE_URL": "http://127.0.0.1:8701"}
EVERY = {**names(Settings), **names(Namespace)}


def filed(folder: Path, text: str) -> dict[str, str]:
    """An environment that names a file with this text."""
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return {"CONFIG_FILE": str(path)}


def refusal(environ: dict[str, str]) -> str:
    """The sentence with which a start on these settings ends."""
    with pytest.raises(SettingsError) as caught:
        check_namespaces(load(environ))
    return str(caught.value)


def only(environ: dict[str, str]) -> Namespace:
    """The one namespace of these settings."""
    (namespace,) = load(environ).namespaces
    return namespace


# Defaults and sources.


def test_without_any_variable_every_default_holds() -> None:
    loaded = load({})
    assert dataclasses.replace(loaded, namespaces=()) == Settings()
    assert loaded.namespaces == (Namespace(),)


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_variable_is_unset(name: str) -> None:
    assert load({name: ""}) == load({})


def test_an_empty_variable_does_not_hide_the_files_value(tmp_path: Path) -> None:
    assert load(filed(tmp_path, "port = 9000") | {"PORT": ""}).port == 9000


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environ = filed(tmp_path, 'port = 9000\nlog_level = "debug"\nkahuna_env = "p"\nkahuna_api_key = "filed"')
    loaded = load(environ | {"PORT": "9001", "KAHUNA_API_KEY": "given"})
    assert (loaded.port, loaded.log_level) == (9001, "debug")
    assert (loaded.namespaces[0].env, loaded.namespaces[0].api_key) == ("p", (Secret("given"),))


def test_unknown_variables_are_nobodys_business() -> None:
    assert load({"PATH": "/bin", "PORTS": "x", "port": "1"}) == load({})


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("PORT", "80", 80),
        ("PUSH_TIMEOUT_SECONDS", "1.5", 1.5),
        ("DATA_DIR", "/var/lib/sync", Path("/var/lib/sync")),
        ("HARD_BOUNCE_LIFETIME_DAYS", "90", 90),
        ("DATABASE_POOLER", "transaction", "transaction"),
        ("DEFAULT_NAMESPACE", "shop", "shop"),
    ],
)
def test_a_variable_is_read_as_what_it_is(name: str, given: str, expected: object) -> None:
    value = getattr(load({name: given}), names(Settings)[name].name)
    assert (value, type(value)) == (expected, type(expected))


def test_the_file_may_write_numbers_as_numbers(tmp_path: Path) -> None:
    loaded = load(filed(tmp_path, "port = 80\nworker_poll_seconds = 2\nhard_bounce_lifetime_days = 90"))
    assert (loaded.port, loaded.worker_poll_seconds, loaded.hard_bounce_lifetime_days) == (80, 2.0, 90)


# Namespaces.


def test_each_table_of_the_file_is_a_namespace(tmp_path: Path) -> None:
    tables = """
        default_namespace = "shop"
        [namespaces.shop]
        api_key = "a, b"
        secret_key = "c"
        env = "p"
        [namespaces.club]
        api_key = "d"
        secret_key = "e"
        base_url = "http://127.0.0.1:1"
        callback_token = "f"
        opt_in_review = "all"
        untimed_opt_in = "receipt"
    """
    loaded = load(filed(tmp_path, tables))
    check_namespaces(loaded)
    shop, club = loaded.namespaces
    assert shop == Namespace(name="shop", api_key=(Secret("a"), Secret("b")), secret_key=Secret("c"), env="p")
    assert club == Namespace(
        name="club",
        api_key=(Secret("d"),),
        secret_key=Secret("e"),
        base_url="http://127.0.0.1:1",
        env="s",
        callback_token=Secret("f"),
        opt_in_review="all",
        untimed_opt_in="receipt",
    )
    assert loaded.main_namespace == shop
    assert loaded.namespace("club") == club
    assert loaded.namespace("pub") is None


def test_the_only_namespace_serves_the_vendors_example_paths() -> None:
    loaded = load({"KAHUNA_NAMESPACE": "shop"})
    assert loaded.main_namespace == loaded.namespaces[0]


@pytest.mark.parametrize(("tables", "main"), [(("default", "b"), "default"), (("a", "b"), None)])
def test_of_several_it_is_the_one_named_default(tmp_path: Path, tables: tuple[str, ...], main: str | None) -> None:
    found = load(filed(tmp_path, "".join(f"[namespaces.{name}]\n" for name in tables))).main_namespace
    assert (found.name if found else None) == main


def test_a_stand_in_is_a_sandbox_unless_told_otherwise() -> None:
    assert only(STAND_IN).env == "s"
    assert only(STAND_IN | {"KAHUNA_ENV": "p"}).env == "p"


@pytest.mark.parametrize(
    "url", ["", VENDOR_BASE_URL, "https://TAP-NEXUS.appspot.com/", "https://tap-nexus.appspot.com:443"]
)
def test_the_vendors_own_host_needs_an_environment(url: str) -> None:
    assert "KAHUNA_ENV" in refusal(KEYS | {"KAHUNA_BASE_URL": url})
    check_namespaces(load(KEYS | {"KAHUNA_BASE_URL": url, "KAHUNA_ENV": "p"}))


def test_several_keys_are_a_rotation_in_their_order() -> None:
    keys = only({"KAHUNA_API_KEY": " new , old,,older "}).api_key
    assert [key.reveal() for key in keys] == ["new", "old", "older"]


def test_extra_words_are_pairs_in_their_order(tmp_path: Path) -> None:
    expected = (("abuse", "complaint"), ("expired", "invalid"))
    assert only({"EXTRA_REASONS": " abuse = complaint ,expired=invalid,"}).extra_reasons == expected
    loaded = load(filed(tmp_path, '[namespaces.shop]\nextra_reasons = "abuse=complaint,expired=invalid"'))
    assert loaded.namespaces[0].extra_reasons == expected


def test_each_namespace_has_its_own_words() -> None:
    shop, club = Namespace(name="shop", extra_reasons=(("abuse", "complaint"),)), Namespace(name="club")
    words = rules_of(Settings(namespaces=(shop, club))).words
    assert (words["shop"].get("abuse"), words["club"].get("abuse")) == ("complaint", None)


def test_a_word_that_means_no_reason_of_ours_ends_the_start() -> None:
    with pytest.raises(SettingsError, match="EXTRA_REASONS: abuse cannot mean grumbling"):
        rules_of(load(KEYS | STAND_IN | {"EXTRA_REASONS": "abuse=grumbling"}))


# Refusals.


@pytest.mark.parametrize("missing", ["KAHUNA_API_KEY", "KAHUNA_SECRET_KEY"])
def test_a_start_without_keys_is_refused(missing: str) -> None:
    message = refusal({name: value for name, value in (KEYS | STAND_IN).items() if name != missing})
    assert missing in message
    assert SECRET not in message


def test_all_that_is_missing_is_named_at_once_and_the_way_without_it() -> None:
    message = refusal({})
    for name in ("KAHUNA_API_KEY", "KAHUNA_SECRET_KEY", "KAHUNA_ENV", "KAHUNA_BASE_URL", "up --demo"):
        assert name in message


def test_a_list_of_no_keys_is_no_key() -> None:
    assert "KAHUNA_API_KEY" in refusal(KEYS | STAND_IN | {"KAHUNA_API_KEY": " , "})


@pytest.mark.parametrize(
    ("missing", "name"), [("api_key", "KAHUNA_API_KEY"), ("secret_key", "KAHUNA_SECRET_KEY"), ("env", "KAHUNA_ENV")]
)
def test_of_several_namespaces_the_incomplete_one_is_named(tmp_path: Path, missing: str, name: str) -> None:
    table = {"api_key": SECRET, "secret_key": SECRET, "env": "p"}
    lines = ["[namespaces.shop]", *(f'{key} = "{value}"' for key, value in table.items())]
    lines += ["[namespaces.club]", *(f'{key} = "{value}"' for key, value in table.items() if key != missing)]
    message = refusal(filed(tmp_path, "\n".join(lines)))
    assert name in message
    assert "club" in message
    assert SECRET not in message


NUMBERS = [name for name, field in names(Settings).items() if "int" in str(field.type) or "float" in str(field.type)]
CHOICES = ["DATABASE_POOLER", "LOG_LEVEL", "LOG_FORMAT", "KAHUNA_ENV", "OPT_IN_REVIEW", "UNTIMED_OPT_IN"]


def test_what_is_wrong_in_several_namespaces_is_told_of_each(tmp_path: Path) -> None:
    file = tmp_path / "sync.toml"
    file.write_text('[namespaces.shop]\nbase_url = "ftp://x"\n[namespaces.club]\nbase_url = "ftp://x"\n')
    with pytest.raises(SettingsError) as refused:
        load({"CONFIG_FILE": str(file)})
    assert re.findall(r"\[namespaces\.(\w+)\]: KAHUNA_BASE_URL must", str(refused.value)) == ["shop", "club"]


def test_all_that_is_wrong_is_told_at_once() -> None:
    wrong = {"PORT": "99999", "WEB_WORKERS": "0", "LOG_LEVEL": "loud", "BODY_TIMEOUT_SECONDS": "x", "KAHUNA_ENV": "q"}
    wrong |= {"KAHUNA_BASE_URL": "ftp://x", "TRUSTED_PROXIES": "banana"}
    with pytest.raises(SettingsError) as refused:
        load(KEYS | wrong)
    sentences = str(refused.value).split(". ")
    assert sorted(sentence.split()[0] for sentence in sentences) == sorted(wrong)


def test_what_only_its_readers_understand_is_told_with_the_rest() -> None:
    wrong = {"PORT": "abc", "LOG_LEVEL": "loud", "KAHUNA_ENV": "x", "PUSH_BATCH_ENTRIES": "0", "OPT_IN_REVIEW": "maybe"}
    wrong |= {"BUSINESS_HOLIDAYS": "2026-13-45", "BUSINESS_TIME_ZONE": "Mars/X", "BUSINESS_WEEKEND": "funday"}
    wrong |= {"STOP_DUE_BUSINESS_DAYS": "400", "EXTRA_REASONS": "abuse=nonsense", "TRUSTED_PROXIES": "foo"}
    wrong |= {"KAHUNA_PROXY_URL": "127.0.0.1", "KAHUNA_CONTRACT": "a=b", "RECONCILE_GUARD_SHARE": "2"}
    with pytest.raises(SettingsError) as refused:
        load_whole(wrong)
    assert [name for name in wrong if name not in str(refused.value)] == []


def test_what_is_no_setting_hides_nothing_else(tmp_path: Path) -> None:
    text = 'prot = 1\nport = "x"\n[namespaces.shop]\napi_kye = "k"\nenv = "q"'
    with pytest.raises(SettingsError) as refused:
        load(filed(tmp_path, text))
    told = str(refused.value)
    assert [name for name in ("prot", "PORT", "api_kye", "[namespaces.shop]: KAHUNA_ENV") if name not in told] == []


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [SECRET, "-1", "0", "nan", "inf", "1,5"])
def test_a_wrong_number_is_refused_by_name(name: str, value: str) -> None:
    message = refusal(KEYS | STAND_IN | {name: value})
    assert name in message
    assert SECRET not in message


@pytest.mark.parametrize("name", CHOICES)
def test_a_wrong_choice_is_refused_with_the_right_ones(name: str) -> None:
    message = refusal(KEYS | {name: SECRET})
    assert message.startswith(name)
    assert "must be one of" in message
    assert SECRET not in message


WRONG = {
    "whole": ("PORT", "1.5"),
    "port": ("PORT", "65536"),
    "entries": ("PUSH_BATCH_ENTRIES", "100001"),
    "lease": ("PUSH_LEASE_SECONDS", "2.9"),
    "scheme": ("KAHUNA_BASE_URL", f"ftp://{SECRET}"),
    "no host": ("KAHUNA_BASE_URL", "https://"),
    "no such port": ("KAHUNA_BASE_URL", "https://kahuna.test:99999"),
    "no such host": ("KAHUNA_BASE_URL", "https://xn--.com"),
    "user": ("KAHUNA_BASE_URL", f"https://me:{SECRET}@kahuna.test"),
    "query": ("KAHUNA_BASE_URL", "https://kahuna.test?a=b"),
    "slash": ("KAHUNA_NAMESPACE", "a/b"),
    "blank": ("KAHUNA_NAMESPACE", " "),
    "no meaning": ("EXTRA_REASONS", f"abuse=complaint,{SECRET}"),
    "no word": ("EXTRA_REASONS", f"={SECRET}"),
    "no file": ("CONFIG_FILE", f"/nowhere/{SECRET}"),
}


@pytest.mark.parametrize(("name", "value"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_refused_by_name(name: str, value: str) -> None:
    message = refusal(KEYS | {"KAHUNA_ENV": "s", name: value})
    assert name in message
    assert SECRET not in message


WRONG_FILES = {
    "no toml": (f"api_key = {SECRET}", "CONFIG_FILE"),
    "unknown": (f'prot = "{SECRET}"', "prot"),
    "unknown in a table": (f'[namespaces.shop]\napi_kye = "{SECRET}"', "api_kye"),
    "a name in a table": (f'[namespaces.shop]\nname = "{SECRET}"', "name"),
    "a slash in a table's name": ('[namespaces."a/b"]', "KAHUNA_NAMESPACE"),
    "a wrong choice in a table": (f'[namespaces.shop]\nenv = "{SECRET}"', "KAHUNA_ENV"),
    "a list for a choice": ('log_level = ["info"]', "LOG_LEVEL"),
    "a text for a number": (f'port = "{SECRET}"', "PORT"),
    "half a port": ("port = 8700.5", "PORT"),
    "a number for a folder": ("data_dir = 5", "DATA_DIR"),
    "a table of words": ("[namespaces.shop.extra_reasons]\nabuse = 'complaint'", "EXTRA_REASONS"),
    "no tables": (f'namespaces = "{SECRET}"', "namespaces"),
    "no table": (f'[namespaces]\nshop = "{SECRET}"', "namespaces"),
}


@pytest.mark.parametrize(("text", "name"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file_is_refused_by_the_name_in_it(tmp_path: Path, text: str, name: str) -> None:
    message = refusal(KEYS | STAND_IN | filed(tmp_path, text))
    assert name in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "given",
    [
        {"PORT": "many", "ADMIN_PORT": "8700"},
        {"ADMIN_PORT": "many", "PORT": "8700"},
    ],
)
def test_nothing_is_held_against_the_default_of_a_wrong_value(given: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(given)
    assert str(caught.value) == f"{next(iter(given))} must be a whole number."


def test_a_list_of_keys_in_the_file_is_a_rotation(tmp_path: Path) -> None:
    loaded = load(filed(tmp_path, '[namespaces.shop]\napi_key = ["new", " old ", ""]'))
    assert loaded.namespaces[0].api_key == (Secret("new"), Secret("old"))


@pytest.mark.parametrize("name", names(Namespace))
def test_a_key_beside_the_tables_is_refused_since_it_would_be_ignored(tmp_path: Path, name: str) -> None:
    environ = filed(tmp_path, "[namespaces.shop]\n") | {name: "p" if name == "KAHUNA_ENV" else SECRET}
    message = refusal(environ)
    assert name in message
    assert SECRET not in message


def test_the_default_namespace_must_be_one_of_them(tmp_path: Path) -> None:
    table = 'api_key = "x"\nsecret_key = "y"\nenv = "s"\n'
    text = f'default_namespace = "pub"\n[namespaces.shop]\n{table}[namespaces.club]\n{table}'
    assert "DEFAULT_NAMESPACE" in refusal(filed(tmp_path, text))


@pytest.mark.parametrize(
    "url",
    [f"mysql://me:{SECRET}@127.0.0.1/db", f"me:{SECRET}@127.0.0.1", f"postgresql://me:{SECRET}@127.0.0.1:port/db"],
)
def test_a_wrong_database_url_is_refused_by_name_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL") as caught:
        Database.of(load({"DATABASE_URL": url}))
    assert SECRET not in str(caught.value)


def test_no_database_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        Database.of(Settings())


# Secrets.


def test_nothing_secret_is_shown() -> None:
    hidden = dict.fromkeys(("KAHUNA_API_KEY", "KAHUNA_SECRET_KEY", "CALLBACK_TOKEN"), SECRET)
    hidden |= dict.fromkeys(("DATABASE_URL", "DATABASE_DIRECT_URL"), f"postgresql://me:{SECRET}@127.0.0.1/db")
    hidden["KAHUNA_PROXY_URL"] = f"http://me:{SECRET}@proxy.example.com:3128"
    loaded = load(hidden)
    assert loaded.kahuna_proxy_url == Secret(hidden["KAHUNA_PROXY_URL"])
    assert loaded.database_url == loaded.database_direct_url == hidden["DATABASE_URL"]
    for shown in (repr(loaded), str(loaded), f"{loaded}", repr(loaded.namespaces), str(loaded.namespaces[0].api_key)):
        assert SECRET not in shown
        assert "postgresql" not in shown


@pytest.mark.parametrize("url", ["proxy:3128", "socks5://me:{}@proxy", "http://me:{}/@proxy", "http://me:{}@"])
def test_an_impossible_proxy_is_refused_by_name_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="KAHUNA_PROXY_URL must") as caught:
        load({"KAHUNA_PROXY_URL": url.format(SECRET)})
    assert SECRET not in str(caught.value)


def test_a_secret_gives_its_text_only_when_asked() -> None:
    secret = Secret(SECRET)
    assert secret.reveal() == SECRET
    assert repr(secret) == str(secret) == f"{secret}" == "Secret(***)"
    assert (secret == Secret(SECRET), secret == Secret("other"), secret == SECRET) == (True, False, False)
    assert len({secret, Secret(SECRET)}) == 1


# The README.


ROW = re.compile(r"^\| `([A-Z][A-Z_]+)` \| (.*?) \| (.+?) \|$", re.MULTILINE)


def told() -> dict[str, tuple[str, str]]:
    """The README's rows: the default and the sentence of each setting."""
    rows: list[tuple[str, str, str]] = ROW.findall(README.read_text(encoding="utf-8"))
    assert len({name for name, _, _ in rows}) == len(rows), "a setting has two rows"
    return {name: (default, sentence) for name, default, sentence in rows}


def as_told(field: dataclasses.Field[Any]) -> str:
    """How a default stands in the README."""
    return "unset" if field.default in (None, ()) else f"`{field.default}`"


def test_the_readme_tells_of_every_setting_and_no_other() -> None:
    assert set(told()) == set(EVERY)


def test_the_readme_tells_the_true_defaults() -> None:
    defaults = {name: default if default != "`unset`" else "unset" for name, (default, _) in told().items()}
    assert defaults == {name: as_told(field) for name, field in EVERY.items()}


def test_the_readme_says_what_each_setting_means() -> None:
    assert [name for name, (_, sentence) in told().items() if len(sentence.split()) < 2] == []


@pytest.mark.parametrize("name", EVERY)
def test_every_setting_has_a_sentence(name: str) -> None:
    assert len(EVERY[name].metadata["says"].split()) >= 2


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_unit_in_its_name_or_sentence(name: str) -> None:
    words = f"{name} {EVERY[name].metadata['says']}".lower()
    units: tuple[str, ...] = (
        "seconds",
        "hours",
        "minutes",
        "days",
        "bytes",
        "milliseconds",
        "connections",
        "port",
        "bounces",
        "corrections",
        "calls",
        "stops",
        "share",
        "differences",
        "addresses",
    )
    assert any(unit in words for unit in units)


def test_a_callback_token_that_no_path_could_hold_is_refused() -> None:
    message = refusal(KEYS | STAND_IN | {"CALLBACK_TOKEN": "a/b"})
    assert "CALLBACK_TOKEN" in message
    assert "a/b" not in message


def test_a_default_namespace_that_is_none_is_refused() -> None:
    assert "DEFAULT_NAMESPACE" in refusal(KEYS | STAND_IN | {"DEFAULT_NAMESPACE": "shop"})


# Ports and proxies.


def test_proxies_are_addresses_and_networks() -> None:
    assert load({"TRUSTED_PROXIES": "10.0.0.7, fd00::/8"}).trusted_proxies == ("10.0.0.7/32", "fd00::/8")
    with pytest.raises(SettingsError, match="TRUSTED_PROXIES must be addresses or networks"):
        load({"TRUSTED_PROXIES": "nginx"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("CONSOLE_SESSION_HOURS", "1e12"), ("RECONCILE_EVERY_HOURS", "1e12"), ("CALLS_RETENTION_DAYS", "36501")],
)
def test_no_time_goes_beyond_what_a_calendar_has(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be at most"):
        load({name: value})


@pytest.mark.parametrize("name", ["PORT", "ADMIN_PORT", "WORKER_PORT"])
def test_a_port_can_exist(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be at most 65535"):
        load({name: "65536"})


def test_the_port_of_administration_is_another_one() -> None:
    with pytest.raises(SettingsError, match="ADMIN_PORT must be another port than PORT"):
        load({"ADMIN_PORT": "8700"})
