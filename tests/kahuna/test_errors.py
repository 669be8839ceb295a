"""The error tree: each error tells what happened, and nothing that must not be told."""

import pytest

from service.kahuna import errors

TREE = errors.KahunaError.__subclasses__()


def test_every_error_has_a_slug_and_a_meaning_of_its_own() -> None:
    assert len({error.slug for error in TREE}) == len({error.meaning for error in TREE}) == len(TREE) == 11


@pytest.mark.parametrize("kind", TREE)
def test_the_tree_is_drawn_in_the_docstring(kind: type[errors.KahunaError]) -> None:
    assert f"─ {kind.__name__} " in (errors.__doc__ or "")


def test_an_error_carries_what_the_caller_decides_by() -> None:
    error = errors.RateLimited("sms_sync", 429, 30.0)
    assert (error.slug, error.api, error.status, error.retry_after) == ("rate-limited", "sms_sync", 429, 30.0)
    assert str(error) == "sms_sync: Kahuna asks for fewer requests (status 429)"


def test_an_error_without_an_answer_has_no_status() -> None:
    error = errors.Unreachable("email_sync", cause="ConnectError")
    assert error.status is None
    assert str(error) == "email_sync: no connection to Kahuna: ConnectError"
