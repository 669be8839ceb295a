"""Owns the engine and the only begin and commit, and the ways of asking many things at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast

import asyncpg
import sqlalchemy.exc
from sqlalchemy import ColumnElement, Row, Select, Text, TextClause, any_, event, func, literal, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, QueuePool

from service.errors import SettingsError, StorageBusy
from service.settings import Settings
from service.store.engines import async_url, engine_of, limits_as_local
from service.store.faults import Overtaken, is_conflict, weather

P = ParamSpec("P")
T = TypeVar("T")

Connection: TypeAlias = AsyncConnection
"""What every function of the store takes first; the floors above know it by this name only."""

SEPARATOR: Final = "\x1f"
"""Between texts that travel as one. No address holds a control character, in its normal form or as received."""

MANY: Final = 1000
"""Rows up to which work on them is done on the spot."""

# For this transaction alone, so that a pooler's next one is not meant.
_PLAN_ANEW: Final = text("set local plan_cache_mode = force_custom_plan")

_BY_KEY: Final = text(
    """
    select set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_seqscan', 'off', true),
           set_config('enable_bitmapscan', 'off', true)
    """
)

# No limit if it were 0; the least that there is ends long before the server looks for deadlocks.
_WITHOUT_PATIENCE: Final = text("select current_setting('lock_timeout'), set_config('lock_timeout', '1ms', true)")
_WITH_PATIENCE: Final = text("select set_config('lock_timeout', :patience, true)")

SNAPSHOT_PATIENCE: Final = 30.0
"""Seconds that a snapshot waits for its tables: a migration or an upkeep may be at them."""

BENCH: Final = 4
"""Connections kept ready for the hottest path at most, of those that the pool may open: for callbacks and questions."""

GOODBYE: Final = 0.5
"""Seconds that a server may take to say goodbye."""

OVERTAKEN: Final = 8
PAUSE: Final = 0.01
"""How often one that is overtaken is tried again, and seconds before the second time; each pause is twice the last."""

_FED: Final = "kahuna_sync_fed"
_DRIVER: Final = "kahuna_sync_driver"

_READ_ONLY: Final = text("select current_setting('transaction_read_only')")


# Which of them there are depends on the server's version.
_WITHOUT_LIMITS: Final = text(
    """
    select set_config(name, '0', true) from pg_settings
    where name in ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')
    """
)


class Seated(NamedTuple):
    """A connection that waits for its next transaction outside the pool, the driver's own behind it, and what was noted
    of it: a connection that was lost would not tell."""

    connection: AsyncConnection
    driver: "asyncpg.Connection[asyncpg.Record]"
    told: dict[Any, Any]


class Use(NamedTuple):
    """Connections of a process: at work, ready, and the most that there may be."""

    busy: int
    idle: int
    most: int


async def _let_go(seated: Seated) -> None:
    """Ends a connection at once, whatever it is doing: with its settings it is of no use to others."""
    seated.driver.terminate()
    try:
        await seated.connection.invalidate()
    finally:
        await seated.connection.close()


class Database:
    """The one way to PostgreSQL. `begin` writes in a transaction; `read` runs single statements without one. `news` is
    set whenever a transaction that fed the changes has committed; who tells others of it clears it."""

    def __init__(
        self, engine: AsyncEngine, apart: AsyncEngine, *, seats: int, settings_per_transaction: str | None = None
    ) -> None:
        self._engine = engine
        self._apart = apart
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._settings_per_transaction = settings_per_transaction
        self._distrusted = False
        self.news = asyncio.Event()
        self._bench: list[Seated] = []
        self._seats = seats
        self._closed = False
        event.listen(engine.sync_engine, "checkout", self._on_checkout)

    @classmethod
    def of(cls, settings: Settings) -> "Database":
        """The database of these settings. Connects when first asked."""
        if settings.database_url is None:
            raise SettingsError("DATABASE_URL is not set, and no embedded database was started.")
        pooled = settings.database_pooler == "transaction"
        engine = engine_of(
            settings,
            settings.database_url,
            pool_size=settings.database_pool_size,
            max_overflow=0,
            pool_timeout=settings.database_connect_timeout_seconds,
            pool_use_lifo=True,
        )
        apart = engine_of(settings, settings.database_url, poolclass=NullPool)
        # Half of the pool at most: those who take a connection for longer must find one.
        seats = min(BENCH, settings.database_pool_size // 2)
        return cls(engine, apart, seats=seats, settings_per_transaction=limits_as_local(settings) if pooled else None)

    async def __aenter__(self) -> "Database":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end of the block, rolled back by any exception."""
        async with weather(), self._engine.begin() as connection:
            if self._settings_per_transaction is not None:
                await connection.execute(text(self._settings_per_transaction))
            connection.info.pop(_FED, None)  # of one that was rolled back
            yield connection
            fed = connection.info.pop(_FED, False)
        if fed:
            self.news.set()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which each statement stands alone: one round trip for one answer."""
        async with weather(), self._autocommit.connect() as connection:
            yield connection

    @asynccontextmanager
    async def look(self) -> AsyncIterator[AsyncConnection]:
        """The same as `read` for the hottest questions: on a connection that is kept ready, since to take one from the
        pool costs as much as to ask."""
        if self._settings_per_transaction is not None:
            async with self.read() as connection:
                yield connection
            return
        async with self._seated() as (connection, _, _):
            yield connection

    @asynccontextmanager
    async def straight(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that the driver itself begins and ends, for the hottest path, whose statements go straight to
        the driver too. Whatever else takes a connection works in it as in any other.

        A few connections are kept out of the pool for it: to take one from there costs more than the transaction.
        """
        async with self._seated() as (connection, driver, _), driver.transaction():
            if self._settings_per_transaction is not None:
                await driver.execute(self._settings_per_transaction)
            yield connection

    @asynccontextmanager
    async def single(self) -> AsyncIterator[AsyncConnection]:
        """The same for one statement that is a transaction by itself: one round trip in all. Behind a pooler it is one
        of several, since the limits have to go before it."""
        if self._settings_per_transaction is not None:
            async with self.straight() as connection:
                yield connection
            return
        async with self._seated() as (connection, _, _):
            yield connection

    @asynccontextmanager
    async def _seated(self) -> AsyncIterator[Seated]:
        async with weather():
            seated = await self._from_bench()
            seated.told.pop(_FED, None)  # of one that was rolled back
            try:
                yield seated
            except BaseException:
                # It may still be in the transaction.
                await _let_go(seated)
                raise
            fed = seated.told.pop(_FED, False)
            await self._to_bench(seated)
        if fed:
            self.news.set()

    async def _from_bench(self) -> Seated:
        while self._bench:
            seated = self._bench.pop()
            if not seated.driver.is_closed():
                return seated
            await _let_go(seated)
        connection = await self._autocommit.connect()
        try:
            seated = Seated(connection, await driver_of(connection), connection.info)
            if self._settings_per_transaction is None:
                # Plans are kept for good, and one that was made while the list was tiny would read it whole.
                await seated.driver.execute("set enable_seqscan = off")
        except BaseException:
            await connection.invalidate()
            await connection.close()
            raise
        seated.told[_DRIVER] = seated.driver
        return seated

    async def _to_bench(self, seated: Seated) -> None:
        if len(self._bench) < self._seats and not self._closed:
            self._bench.append(seated)
            return
        # Others may need it: it goes back as it came.
        try:
            await seated.driver.execute("reset enable_seqscan")
        except BaseException:
            await _let_go(seated)
            raise
        seated.told.pop(_DRIVER, None)
        await seated.connection.close()

    async def answers(self, seconds: float) -> bool:
        """Whether the database takes writes now. Asked on a connection of its own, since those at hand may be the ones
        that hang, and given up after so many seconds."""
        try:
            async with asyncio.timeout(seconds), self._apart.connect() as connection:
                return (await connection.execute(_READ_ONLY)).scalar() == "off"
        except Exception:  # noqa: BLE001 (whatever it is, it is no answer)
            return False

    def distrust(self) -> None:
        """Has every connection replaced before it is used again: a server that went away without a word leaves some
        behind that would wait for ever."""
        self._distrusted = True
        for seated in self._bench:
            seated.driver.terminate()

    def _on_checkout(self, *_: object) -> None:
        if self._distrusted:
            self._distrusted = False
            raise sqlalchemy.exc.InvalidatePoolError

    @asynccontextmanager
    async def snapshot(self, *tables: str, patience: float = SNAPSHOT_PATIENCE) -> AsyncIterator[AsyncConnection]:
        """Reads everything as of one moment, however long that takes. It writes nothing, so the feed does not wait for
        it. Of `tables` no partition is dropped meanwhile: those that go are gone for every snapshot. StorageBusy if
        others hold one of them for longer than the seconds of `patience`."""
        frozen = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # Rolled back in the end, since nothing was written; one that broke off has nothing to be rolled back.
        async with weather(), frozen.connect() as connection:
            # The moment is that of the first query, so these come before it.
            await connection.execute(text(f"set local lock_timeout = {patience * 1000:.0f}"))
            try:
                await connection.execute(text(f"lock table {', '.join(tables)} in access share mode"))
            except sqlalchemy.exc.DBAPIError as error:
                if not is_conflict(error):
                    raise
                raise StorageBusy(f"Another session holds {' or '.join(tables)}; try again when it is done.") from error
            await connection.execute(_WITHOUT_LIMITS)
            yield connection

    @property
    def use(self) -> Use:
        """How many connections there are, and how many are at work."""
        pool = cast(QueuePool, self._engine.sync_engine.pool)
        busy = pool.checkedout() - len(self._bench)
        return Use(busy, pool.checkedin() + len(self._bench), pool.size())

    async def close(self) -> None:
        """Closes every connection; one whose server no longer answers is dropped, which takes half a second each."""
        self._closed = True
        while self._bench:
            await _let_go(self._bench.pop())
        while True:
            try:
                async with asyncio.timeout(GOODBYE):
                    return await self._engine.dispose()
            except TimeoutError:
                continue  # the one that hung is gone; those behind it are next


def note_fed(connection: AsyncConnection) -> None:
    """That this transaction feeds the changes: others are told once it has committed."""
    connection.info[_FED] = True


async def driver_of(connection: AsyncConnection) -> "asyncpg.Connection[asyncpg.Record]":
    """The driver's own connection behind this one."""
    driver: Any = connection.info.get(_DRIVER) or (await connection.get_raw_connection()).driver_connection
    return cast("asyncpg.Connection[asyncpg.Record]", driver)


class Straight(NamedTuple):
    """A statement in the driver's words, and the names of its parameters in their order."""

    statement: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, statement: TextClause) -> "Straight":
        """Compiled once: what is left to do for each execution is the driver's alone."""
        compiled = statement.compile(dialect=PGDialect_asyncpg())  # type: ignore[no-untyped-call]
        return cls(str(compiled), tuple(compiled.positiontup or ()))

    async def fetch(self, connection: AsyncConnection, values: Mapping[str, Any]) -> list[asyncpg.Record]:
        """The rows, for a connection of `Database.straight`."""
        driver = await driver_of(connection)
        return await driver.fetch(self.statement, *[values[name] for name in self.names])


@asynccontextmanager
async def single_connection(url: str) -> AsyncIterator[AsyncConnection]:
    """One connection outside any pool, for migrations."""
    engine = create_async_engine(async_url(url), poolclass=NullPool, hide_parameters=True)
    try:
        async with weather(), engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


def among(column: ColumnElement[Any], values: Iterable[Any]) -> ColumnElement[bool]:
    """Whether a column is one of many values: one parameter however many there are, since a statement takes few. Texts
    travel joined: bound apart, 100,000 of them stall the event loop."""
    if isinstance(column.type, Text):
        return column == any_(func.string_to_array(SEPARATOR.join(values), SEPARATOR))
    return column == any_(literal(list(values), ARRAY(column.type)))


async def plan_anew(connection: AsyncConnection, size: int = MANY + 1) -> None:
    """Before statements about so many rows, many unless it is said: they are planned for the tables as they are now. A
    plan that was kept from when the tables were tiny reads them whole, once for each row: minutes, for a large batch on
    a young list."""
    if size > MANY:
        await connection.execute(_PLAN_ANEW)


@asynccontextmanager
async def out_of_turn(connection: AsyncConnection) -> AsyncIterator[None]:
    """For statements that take locks out of the order in which everybody takes them: whoever holds one may wait for
    this transaction, so it is not waited for. Overtaken if somebody does."""
    patience = (await connection.execute(_WITHOUT_PATIENCE)).scalar_one()
    try:
        yield
    except Exception as error:
        if not is_conflict(error):
            raise
        raise Overtaken from error
    await connection.execute(_WITH_PATIENCE, {"patience": patience})


async def by_key(connection: AsyncConnection) -> None:
    """Before a question about many keys: the index is walked once, in their order. Left alone, the planner reads a list
    of a million whole for ten thousand of its rows, which takes six times as long, or keeps a plan from when the list
    was tiny."""
    await connection.execute(_BY_KEY)


async def aside(size: int, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Does work on so many rows: a little on the spot, a lot in a thread, since it must not hold up the event loop."""
    if size <= MANY:
        return work(*given, **named)
    return await asyncio.to_thread(work, *given, **named)


async def fetch(connection: AsyncConnection, statement: str, *values: Any) -> list[Any]:
    """Rows straight from the driver, for the hottest questions: half of what they cost is spent between it and us.
    `$1`, `$2` stand for the values. A connection that failed is not used again."""
    raw = await driver_of(connection)
    try:
        rows: list[Any] = await raw.fetch(statement, *values)
    except BaseException as error:
        if raw.is_closed() or not isinstance(error, asyncpg.PostgresError):
            raw.terminate()
            await connection.invalidate()
        raise
    return rows


async def pages(connection: AsyncConnection, query: Select[Any], rows: int) -> AsyncIterator[Sequence[Row[Any]]]:
    """The rows of a query, so many at a time, from a cursor of the server's: needs a transaction."""
    result = await connection.stream(query, execution_options={"yield_per": rows})
    async for page in result.partitions():
        yield page


async def copy_out(
    connection: AsyncConnection, query: str, sink: Callable[[bytes], Coroutine[Any, Any, None]], *, as_csv: bool
) -> None:
    """Hands the rows of a query on as text, as the server sends them, and no faster than `sink` takes them: as CSV, or
    the only column line by line as it is. Needs a transaction; the query takes no parameters (`settle` does). Cut off,
    it costs the connection."""
    driver = await driver_of(connection)
    # No text of ours holds these two characters, so nothing is ever quoted.
    delimiter, quote = (None, None) if as_csv else ("\x02", "\x01")
    try:
        await driver.copy_from_query(query, output=sink, format="csv", delimiter=delimiter, quote=quote)
    except BaseException:
        # The driver takes rows that were under way for the end of it, and nothing can be asked behind them.
        driver.terminate()
        await connection.invalidate()
        raise


async def settle(connection: AsyncConnection, **values: str) -> None:
    """Lets the statements of this transaction read these by `current_setting('kahuna_sync.NAME')`."""
    calls = ", ".join(f"set_config('kahuna_sync.{name}', :{name}, true)" for name in values)
    await connection.execute(text(f"select {calls}"), values)


async def until_settled(database: Database, transaction: Callable[[Connection], Awaitable[T]], attempts: int = 4) -> T:
    """Runs a transaction, and again if it lost a lock or a deadlock: it left nothing behind. Then `StorageBusy`.

    An attempt that lost may have waited for as long as anybody waits for a lock. Whoever was overtaken did not lose by
    that, and may be more often: tried again at once, then after ever longer pauses, since who is ahead may need them.
    """
    overtaken = 0
    while attempts and overtaken <= OVERTAKEN:
        if overtaken > 1:
            await asyncio.sleep(PAUSE * 2.0 ** (overtaken - 2))
        try:
            async with database.begin() as connection:
                return await transaction(connection)
        except Overtaken:
            overtaken += 1
        except Exception as error:
            if not is_conflict(error):
                raise
            attempts -= 1
    raise StorageBusy("Others hold what this needs; try again.")
