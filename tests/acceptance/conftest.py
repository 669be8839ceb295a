"""The services under test, one per configuration and session, and the stand-in vendors behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from .running import Service
from .speaking import Voice
from .vendor import Vendor

# Agreed in design.md and not served yet. Strict: whoever builds it takes the mark away, since a pass is then a failure.
CALLBACK_TOKEN = "t0k-3n_for.callbacks"
NAMESPACES: dict[str, dict[str, str]] = {
    "guarded": {"api_key": "guarded-key", "callback_token": CALLBACK_TOKEN},
    "plain": {"api_key": "demo-api-key"},
    "rotated": {"api_key": "new-key,old-key"},
    "left": {"api_key": "left-key"},
    "right": {"api_key": "right-key"},
    "review_all": {"api_key": "review-all-key", "opt_in_review": "all"},
    "review_off": {"api_key": "review-off-key", "opt_in_review": "off"},
    "receipt": {"api_key": "receipt-key", "untimed_opt_in": "receipt"},
}


@dataclass(frozen=True)
class Deployment:
    """A running service and the vendor behind it."""

    service: Service
    vendor: Vendor
    token: str

    def voice(self, namespace: str, key: str) -> Voice:
        """Speak for one of its namespaces."""
        return Voice(self.service.url, self.token, namespace, key)


def first_key(namespace: str) -> str:
    """The key that the vendor knows: the first is used to send."""
    return NAMESPACES[namespace]["api_key"].split(",")[0]


def config_text(url: str) -> str:
    """The CONFIG_FILE of the deployment with several namespaces."""
    lines = ['default_namespace = "guarded"']
    for name, settings in NAMESPACES.items():
        lines += [f"[namespaces.{name}]", f'secret_key = "{name}-secret"', 'env = "s"', f'base_url = "{url}"']
        lines += [f'{key} = "{one}"' for key, one in settings.items()]
    return "\n".join(lines) + "\n"


def single_settings(vendor: Vendor) -> dict[str, str]:
    """The environment of a deployment with one namespace."""
    return {
        "KAHUNA_API_KEY": "single-key",
        "KAHUNA_SECRET_KEY": "single-secret",
        "KAHUNA_BASE_URL": vendor.url,
        "KAHUNA_ENV": "s",
        "CIRCUIT_PROBE_SECONDS": "1",
        "BODY_TIMEOUT_SECONDS": "2",
        "WORKER_POLL_SECONDS": "0.1",
    }


@pytest.fixture(scope="session")
def many_vendor() -> Iterator[Vendor]:
    """The vendor behind the namespaces of the CONFIG_FILE."""
    vendor = Vendor({f"{name}-secret": first_key(name) for name in NAMESPACES}).start()
    yield vendor
    vendor.stop()


@pytest.fixture(scope="session")
def many(many_vendor: Vendor) -> Iterator[Deployment]:
    """A deployment with several namespaces, described by a CONFIG_FILE."""
    service = Service({})
    try:
        config = service.folder / "namespaces.toml"
        config.write_text(config_text(many_vendor.url))
        service.env["CONFIG_FILE"] = str(config)
        service.start()
        yield Deployment(service, many_vendor, service.token())
    finally:
        service.remove()


@pytest.fixture(scope="session")
def single_vendor() -> Iterator[Vendor]:
    """The vendor behind the one namespace of the environment."""
    vendor = Vendor({"single-secret": "single-key"}).start()
    yield vendor
    vendor.stop()


@pytest.fixture(scope="session")
def single(single_vendor: Vendor) -> Iterator[Deployment]:
    """A deployment with the one namespace that the environment describes."""
    service = Service(single_settings(single_vendor))
    try:
        service.start()
        yield Deployment(service, single_vendor, service.token())
    finally:
        service.remove()


def _voice(many: Deployment, namespace: str) -> Iterator[Voice]:
    voice = many.voice(namespace, first_key(namespace))
    yield voice
    voice.close()


@pytest.fixture(scope="session")
def plain(many: Deployment) -> Iterator[Voice]:
    """The namespace whose key is the one of the documented test vectors."""
    yield from _voice(many, "plain")


@pytest.fixture(scope="session")
def guarded(many: Deployment) -> Iterator[Voice]:
    """The default namespace, which has a callback token."""
    yield from _voice(many, "guarded")


@pytest.fixture(scope="session")
def rotated(many: Deployment) -> Iterator[Voice]:
    """A namespace in the middle of a key rotation."""
    yield from _voice(many, "rotated")


@pytest.fixture(scope="session")
def left(many: Deployment) -> Iterator[Voice]:
    """One of two namespaces with the same rules."""
    yield from _voice(many, "left")


@pytest.fixture(scope="session")
def right(many: Deployment) -> Iterator[Voice]:
    """The other of two namespaces with the same rules."""
    yield from _voice(many, "right")


@pytest.fixture(scope="session")
def review_all(many: Deployment) -> Iterator[Voice]:
    """OPT_IN_REVIEW = all."""
    yield from _voice(many, "review_all")


@pytest.fixture(scope="session")
def review_off(many: Deployment) -> Iterator[Voice]:
    """OPT_IN_REVIEW = off."""
    yield from _voice(many, "review_off")


@pytest.fixture(scope="session")
def receipt(many: Deployment) -> Iterator[Voice]:
    """UNTIMED_OPT_IN = receipt."""
    yield from _voice(many, "receipt")


@pytest.fixture(scope="session")
def alone(single: Deployment) -> Iterator[Voice]:
    """The one namespace of the single deployment."""
    voice = single.voice("default", "single-key")
    yield voice
    voice.close()
