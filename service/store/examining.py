"""Owns what `doctor` asks the database about itself. Reads only."""

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# The sizes are what the last vacuum or analyze wrote down: to measure them waits for whoever alters the table.
_SERVER: Final = text(
    """
    select current_setting('server_version_num')::int as version, clock_timestamp() as clock,
           current_setting('transaction_read_only') = 'on' as read_only, current_setting('fsync') = 'on' as fsync,
           current_setting('server_encoding') as encoding,
           current_setting('max_connections')::int as most_connections,
           pg_size_bytes(current_setting('shared_buffers')) as buffers,
           (
             select coalesce(sum(relpages), 0)::bigint * current_setting('block_size')::bigint from pg_class
             where oid = to_regclass('suppressions')
                or oid in (select indexrelid from pg_index where indrelid = to_regclass('suppressions'))
           ) as list_bytes
    """
)

_OWNED: Final = text(
    """
    select coalesce(bool_and(pg_has_role(current_user, relowner, 'usage')), true) from pg_class
    where oid in (to_regclass('batches'), to_regclass('changes'))
    """
)


class Server(NamedTuple):
    """A server: its version (180001 is 18.1), its clock, whether it takes no writes, whether it keeps what it says that
    it keeps, the encoding of its texts, how many connections it takes in all, and the bytes of its buffers and of the
    list with its index, roughly; 0 where there is no list yet."""

    version: int
    clock: datetime
    read_only: bool
    fsync: bool
    encoding: str
    most_connections: int
    buffers: int
    list_bytes: int


async def server_of(connection: AsyncConnection) -> Server:
    """The server behind this connection."""
    return Server(*(await connection.execute(_SERVER)).one())


async def may_make_partitions(connection: AsyncConnection) -> bool:
    """Whether our role owns the tables that get a partition each month."""
    return bool((await connection.execute(_OWNED)).scalar())
