"""What the database refuses is told apart: tried again, waited for, or a fault of ours."""

import pytest
import sqlalchemy.exc
from sqlalchemy import text

from service.store.database import Database, is_conflict


@pytest.mark.parametrize(
    ("statement", "again"),
    [
        pytest.param("insert into rest values (3)", True, id="the row's own partition was made meanwhile"),
        pytest.param("insert into parted values (100)", False, id="a check of ours"),
        pytest.param("insert into parted values (3), (3)", True, id="a key that another took meanwhile"),
        pytest.param("insert into parted values (null)", False, id="a value that must not be missing"),
    ],
)
async def test_what_is_tried_again(database: Database, statement: str, again: bool) -> None:
    async with database.begin() as connection:
        for made in (
            "create table parted (a int primary key, check (a < 100)) partition by range (a)",
            "create table rest partition of parted default",
            "create table few partition of parted for values from (1) to (5)",
        ):
            await connection.execute(text(made))
    with pytest.raises(sqlalchemy.exc.IntegrityError) as refusal:
        async with database.begin() as connection:
            await connection.execute(text(statement))
    assert is_conflict(refusal.value) == again
