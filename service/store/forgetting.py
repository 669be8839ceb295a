"""Owns how the oldest rows of a table without months leave it: so many at a time, found by when they were written, so
that no statement holds locks for long. Refuses to judge what may go."""

from sqlalchemy import Column, DateTime, Table, TextClause, bindparam, text


def oldest_of(table: Table, written_at: Column[object]) -> TextClause:
    """Drops rows that were written before `:moment`, at most `:limit`; its only value is how many."""
    keys = [column.name for column in table.primary_key]
    return text(
        f"""
        with old as materialized (
            select {", ".join(keys)} from {table.name} where {written_at.name} < :moment limit :limit
        ), gone as (
            delete from {table.name} as t using old
            where {" and ".join(f"t.{key} = old.{key}" for key in keys)} returning 1
        )
        select count(*) from gone
        """  # noqa: S608 (names of our own tables)
    ).bindparams(bindparam("moment", type_=DateTime(True)))
