"""Owns what an engine is made of: the URL in the driver's words, what is said to a new session, and the limits of what
it may do. Refuses to begin anything on it: `database` does.
"""

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from service.errors import SettingsError
from service.settings import Settings


def async_url(url: str) -> str:
    """A `postgresql://` URL, as libpq writes it, in the words of the driver."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres", "postgresql+asyncpg"):
        raise SettingsError("DATABASE_URL must begin with postgresql://.")
    try:
        _ = parts.port
    except ValueError:
        raise SettingsError("DATABASE_URL has a port that is no number.") from None
    query = urlencode([("ssl" if name == "sslmode" else name, value) for name, value in parse_qsl(parts.query)])
    return urlunsplit(parts._replace(scheme="postgresql+asyncpg", query=query))


def engine_of(settings: Settings, url: str, **pool: Any) -> AsyncEngine:
    """An engine with the limits of these settings, and such a pool."""
    pooled = settings.database_pooler == "transaction"
    connect_args: dict[str, Any] = {"timeout": settings.database_connect_timeout_seconds}
    if pooled:
        # The pooler gives each transaction another server: no statement may be named, no session setting kept.
        connect_args |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        connect_args |= {"prepared_statement_name_func": str}
    else:
        connect_args["server_settings"] = _limits(settings) | {"application_name": "kahuna-sync"}
    engine = create_async_engine(
        async_url(url),
        connect_args=connect_args,
        hide_parameters=True,
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
        **pool,
    )
    if not pooled:
        # Asked for at the start of a session, a setting that the server does not know ends it.
        limit = f"select {_transaction_timeout(settings, 'false')}"
        event.listen(
            engine.sync_engine, "connect", lambda made, _: made.run_async(lambda driver: driver.execute(limit))
        )
    return engine


def _limits(settings: Settings) -> dict[str, str]:
    return {
        "lock_timeout": f"{settings.lock_timeout_milliseconds}ms",
        "statement_timeout": f"{settings.statement_timeout_seconds}s",
        "idle_in_transaction_session_timeout": f"{settings.statement_timeout_seconds}s",
    }


def limits_as_local(settings: Settings) -> str:
    """The statement that sets these limits for one transaction, where no session can keep them."""
    calls = [f"set_config('{name}', '{value}', true)" for name, value in _limits(settings).items()]
    return f"select {', '.join([*calls, _transaction_timeout(settings, 'true')])}"


def _transaction_timeout(settings: Settings, local: str) -> str:
    """What the server's releases from 17 on have: no transaction of ours holds the feed back for longer."""
    value = f"set_config('transaction_timeout', '{settings.transaction_timeout_seconds}s', {local})"
    return f"case when current_setting('server_version_num')::int >= 170000 then {value} end"
