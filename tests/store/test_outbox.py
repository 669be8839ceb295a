"""The outbox stays quick while thousands of corrections are on their way: what is due is not compared with each."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event, text

from service.store import outbox
from service.store.database import Connection, Database

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

CROWD = """
    insert into corrections (namespace, channel, address, address_received, slot, action, occurred_at, state,
                             next_attempt_at, created_at)
    select 'default', 'sms', n::text, n::text, 'do_not_call', 'suppress', 1, 'pending', :now, :now
    from generate_series(15550000000, 15550001999) n
"""


async def plans(connection: Connection, seen: list[tuple[str, Any]]) -> list[str]:
    found = []
    for statement, values in seen:
        if "corrections" in statement:
            rows = await connection.exec_driver_sql(f"explain {statement}", values)
            found.append("\n".join(rows.scalars()))
    return found


async def test_a_slot_with_one_on_its_way_is_looked_for_by_its_key(database: Database) -> None:
    """The figures are those of an empty table, as after the first large import, and nothing is ever joined."""
    seen: list[tuple[str, Any]] = []
    lease, until = uuid.uuid4(), NOW + timedelta(seconds=30)
    async with database.begin() as connection:
        await connection.execute(text(CROWD), {"now": NOW})
        spoken_to = connection.sync_connection

        def note(*said: Any) -> None:
            seen.append((said[2], said[3]))

        event.listen(spoken_to, "before_cursor_execute", note)
        assert len(await outbox.claim(connection, "default", "sms", 500, lease, NOW, until)) == 500
        assert len(await outbox.claim(connection, "default", "sms", 500, uuid.uuid4(), NOW, until)) == 500
        assert await outbox.release(connection, lease, NOW) == 500
        event.remove(spoken_to, "before_cursor_execute", note)
        told = await plans(connection, seen)
    assert len(told) >= 3
    for plan in told:
        assert "corrections_slot" in plan
        assert "Anti Join" not in plan
        assert "corrections_sending" not in plan
