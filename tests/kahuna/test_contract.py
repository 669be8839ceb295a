"""The one place of guesses: each is explained, and each can be corrected."""

import dataclasses

import pytest

from service.errors import SettingsError
from service.kahuna import Contract, WrongCorrection, answers
from service.settings import Namespace, Secret, Settings
from service.worker import client_for

FIELDS = dataclasses.fields(Contract)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_guess_is_explained_and_can_be_corrected(field: dataclasses.Field[object]) -> None:
    assert field.metadata["says"]
    assert field.metadata["evidence"] in ("SIB", "DATA", "ASSUME")
    value = "no" if isinstance(field.default, bool) else f"/%{field.name}:x"
    corrected = getattr(Contract.corrected(f"{field.name} = {value} ,"), field.name)
    assert corrected == (False if isinstance(field.default, bool) else value)


def test_no_correction_is_the_best_guess() -> None:
    assert Contract.corrected("") == Contract.corrected(" , ") == Contract()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flex_evnts=x", "'flex_evnts' is no name"),
        ("flex_events", "'flex_events' is no name"),
        ("flex_events=", "flex_events must be a text"),
        ("flex_events=ü", "flex_events must be a text"),
        ("user_delete_path=api/x", "user_delete_path must begin with a slash"),
        ("user_delete_path=/api/x?via=1", "user_delete_path must be a path alone"),
        ("campaign_statistics_path=/api/x#a", "campaign_statistics_path must be a path alone"),
        ("user_delete_checksum=maybe", "user_delete_checksum must be yes or no"),
        ("log_time=noon", "log_time must be a pattern"),
        ("email_record_fields=addr", "email_record_fields must be pairs"),
    ],
)
def test_a_wrong_correction_is_named(text: str, says: str) -> None:
    with pytest.raises(WrongCorrection, match=says):
        Contract.corrected(text)


def test_a_path_is_checked_however_it_is_given() -> None:
    with pytest.raises(WrongCorrection, match="must be a path alone"):
        Contract(user_delete_path="/api/x?via=1")


def test_a_wrong_correction_ends_the_start_of_the_worker() -> None:
    namespace = Namespace(
        env="s", secret_key=Secret("a"), api_key=(Secret("b"),), base_url="http://127.0.0.1", contract="a=b"
    )
    with pytest.raises(SettingsError, match="KAHUNA_CONTRACT of namespace default: 'a' is no name"):
        client_for(namespace, Settings())


def test_a_key_that_cannot_be_written_ends_the_start_of_the_worker() -> None:
    namespace = Namespace(
        env="s", secret_key=Secret("a"), api_key=(Secret("b\udcff"),), base_url="http://127.0.0.1", contract=None
    )
    with pytest.raises(SettingsError, match="the keys of namespace default: secret_key and api_key must be texts"):
        client_for(namespace, Settings())


def test_fields_of_records_may_have_other_names() -> None:
    email_fields, in_app_fields = "email_record_fields=addr:email when:timestamp", "in_app_record_fields=device:dev_id"
    names = Contract.corrected(f"{email_fields},{in_app_fields},merge_record_fields=id:user_id")
    [email] = answers.email_records(names)([{"addr": "a@example.com", "when": "2026-01-02 03:04:05.0", "email": 7}])
    assert (email.email, email.timestamp, email.extra) == ("a@example.com", "2026-01-02 03:04:05.0", {"email": 7})
    [in_app] = answers.in_app_records(names)([{"device": "d1", "action": "ia_sent"}])
    assert (in_app.dev_id, in_app.action, in_app.extra) == ("d1", "ia_sent", {})
    [merge] = answers.merge_records(names)([{"id": 5, "common_credentials": ["email:a@example.com"]}])
    assert (merge.user_id, merge.common_credentials) == (5, ("email:a@example.com",))
