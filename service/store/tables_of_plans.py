"""Owns the shape of the tables of the plans: what was compared, what was found, what was decided and what came of it.

The rules are those of `store.tables`, whose metadata they are part of.
"""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, Integer, Table, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB

from service.store.tables import metadata, moment, seconds, word

reconciliations = Table(
    "reconciliations",
    metadata,
    Column("id", Uuid, primary_key=True),
    word("namespace"),
    word("channel"),
    word("source"),
    Column("auto_approve", Boolean, nullable=False),
    word("state"),
    word("actor"),
    moment("created_at"),
    moment("lease_until", nullable=True),
    Column("fence", Integer, nullable=False, server_default=text("0")),
    moment("finished_at", nullable=True),
    word("error", nullable=True),
    Column("counts", JSONB, nullable=False),
    Column("asked", JSONB),
    word("position", nullable=True),
    Column("compared", BigInteger),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    moment("started_at", nullable=True),
    moment("planned_at", nullable=True),
    moment("complete_at", nullable=True),
    Column("held_by", JSONB(none_as_null=True)),
    moment("approved_at", nullable=True),
    word("decided_by", nullable=True),
    word("note", nullable=True),
    moment("closed_at", nullable=True),
    Column("outcome", JSONB(none_as_null=True)),
    word("reverted_by", nullable=True),
    word("revert_note", nullable=True),
    Column("deciding", JSONB(none_as_null=True)),
    CheckConstraint(
        "state in ('queued', 'running', 'planned', 'approved', 'applied', 'proved', 'rejected', 'reverting', "
        "'reverted', 'failed', 'abandoned')",
        name="reconciliations_state",
    ),
    Index("reconciliations_newest", "namespace", "channel", "created_at"),
    comment="Runs that compare the list with what Kahuna holds",
)

differences = Table(
    "differences",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    word("address", primary_key=True),
    word("slot", primary_key=True),
    word("kind"),
    word("action", nullable=True),
    seconds("occurred_at"),
    Column("evidence", JSONB, nullable=False),
    Column("correction_id", BigInteger),
    word("state", default="proposed"),
    word("reason", nullable=True),
    word("why", nullable=True),
    Column("audit_id", Uuid),
    Column("batch_id", Uuid),
    word("decided_by", nullable=True),
    moment("decided_at", nullable=True),
    moment("closed_at", nullable=True),
    CheckConstraint(
        "state in ('proposed', 'approved', 'on_its_way', 'applied', 'proved', 'refused', 'unsupported', 'moot', "
        "'declined', 'reverted')",
        name="differences_state",
    ),
    Index("differences_waiting", "correction_id", postgresql_where=text("state in ('applied', 'on_its_way')")),
    Index("differences_undone", "address", "slot", postgresql_where=text("state in ('declined', 'reverted')")),
    Index("differences_open", "run_id", "kind", postgresql_where=text("state not in ('proved', 'moot')")),
    Index("differences_run_waits", "run_id", postgresql_where=text("state in ('applied', 'on_its_way')")),
    Index(
        "differences_turned_down",
        "correction_id",
        postgresql_where=text("state in ('refused', 'unsupported', 'declined') and correction_id is not null"),
    ),
    comment="What a run found: both sides, what was decided of it, and the correction or fact that settles it",
)
