"""Many addresses at once, the list, its export, its history and the feed of changes (design.md 2.3)."""

from __future__ import annotations

from .conftest import Deployment
from .speaking import Voice


def follow(voice: Voice, after: str, enough: set[str]) -> tuple[list[dict[str, object]], str]:
    """Read the feed until every one of these addresses was in it."""
    found: list[dict[str, object]] = []
    for _ in range(60):
        answer = voice.call("GET", "/v1/changes", params={"after": after, "wait": "2"})
        assert answer.status_code == 200, answer.text
        found += answer.json()["changes"]
        after = str(answer.json()["next"])
        if enough <= {str(one["address"]) for one in found}:
            return found, after
    raise AssertionError(f"missing in the feed: {enough - {str(one['address']) for one in found}}")


def test_a_token_is_printed_once(many: Deployment) -> None:
    """design 2.2: `token create --name N --scopes read,write,admin` · `list` · `revoke`."""
    made = many.service.run("token", "create", "--name", "to-be-revoked", "--scopes", "read")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert len(token.split()) == 1, "prints the token alone on stdout"
    listed = many.service.run("token", "list")
    assert "to-be-revoked" in listed.stdout
    assert token not in listed.stdout, "only a hash is stored"
