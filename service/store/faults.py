"""Owns what an error of PostgreSQL or of its driver means: lost to another, away, refused, outdated, or a bug of ours.
Refuses to try anything again."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import sqlalchemy.exc

from service.errors import StorageOutdated, StorageUnavailable

CONFLICT_STATES: Final = frozenset({"40001", "40P01", "55P03", "23505"})
"""Serialisation failure, deadlock, lock not available, and a unique key that another took meanwhile (all our inserts
expect that, but for those of the outbox): the same work, tried again, goes through."""

AWAY_STATES: Final = frozenset(
    {"57P01", "57P02", "57P03", "53300", "53400", "53100", "53200", "25006", "25P03", "25P04"}
)
"""Shutting down, crashed, starting, too many connections, out of resources, read-only, a transaction that the server
ended because it took too long: not our bug."""

REFUSAL_STATES: Final = frozenset({"28000", "28P01", "3D000"})
"""No such role, wrong password, no such database: somebody must correct the URL."""

OUTDATED_STATES: Final = frozenset({"42P01", "42703"})
"""No such table or column."""


class Overtaken(Exception):
    """Somebody made a row meanwhile that this transaction was to make, or holds one that it needs out of turn, and may
    wait for us: the same work, tried again, finds it there and waits in its turn. Never seen outside."""


@asynccontextmanager
async def weather() -> AsyncIterator[None]:
    """Turns everything that means "not now" into one error. A lost connection says nothing about the data."""
    try:
        yield
    except Exception as error:
        state = _state_of(error)
        if state in REFUSAL_STATES:
            raise StorageUnavailable(
                "The database refuses us: check role, password and name in DATABASE_URL."
            ) from error
        if state in OUTDATED_STATES:
            raise StorageOutdated("The database lacks what this release needs: run kahuna-sync migrate.") from error
        if is_away(error):
            raise StorageUnavailable("The database cannot be reached; try again.") from error
        raise


def is_forbidden(error: BaseException) -> bool:
    """Whether our role lacks the right to do this."""
    return _state_of(error) == "42501"


def is_conflict(error: BaseException) -> bool:
    """Whether the transaction lost to another one and may be tried again as it is."""
    return isinstance(error, Overtaken) or _state_of(error) in CONFLICT_STATES or _is_astray(error)


def _is_astray(error: BaseException) -> bool:
    """Whether a row was on its way to a default partition when its own was made. A check of ours has a name."""
    original = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
    cause = getattr(original, "__cause__", None) or original
    return _state_of(error) == "23514" and getattr(cause, "constraint_name", None) is None


def is_away(error: BaseException) -> bool:
    """Whether the database, not the statement, is what failed. A value that the driver cannot encode is a bug of ours,
    though asyncpg files it under the same class as a closed connection."""
    state = _state_of(error)
    if state is not None:
        return state.startswith("08") or state in AWAY_STATES
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        return error.connection_invalidated
    if isinstance(error, asyncpg.InterfaceError):
        return not isinstance(error, asyncpg.DataError)
    return isinstance(error, OSError | sqlalchemy.exc.TimeoutError)


def _state_of(error: BaseException) -> str | None:
    original = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
    state = getattr(original, "sqlstate", None)
    return state if isinstance(state, str) else None
