"""The main job: archive, facts, list, feed, quarantine, reviews, outbox, circuits, tokens, audit, reconciliations,
checkpoints, leases.

The tables of receipt are born with a default partition alone: those of the months are made by the worker's upkeep.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import UserDefinedType

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

WORD = sa.Text(collation="C")
MOMENT = sa.DateTime(timezone=True)

FACTS_PARTITIONS = 8


class Xid8(UserDefinedType[str]):
    """A 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Its name in DDL."""
        return "xid8"


def upgrade() -> None:
    """Makes everything that is new."""
    op.create_table(
        "audit",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("actor", WORD, nullable=False),
        sa.Column("action", WORD, nullable=False),
        sa.Column("namespace", WORD, nullable=True),
        sa.Column("channel", WORD, nullable=True),
        sa.Column("address", WORD, nullable=True),
        sa.Column("detail", postgresql.JSONB(), nullable=False),
        sa.Column(
            "facts",
            postgresql.JSONB(),
            nullable=True,
            comment="What it states: [[address, reason, action, occurred_at, source], ...]",
        ),
        sa.PrimaryKeyConstraint("id"),
        comment="Who did what: evidence of every fact that came in no batch",
    )
    op.create_index(
        "audit_address",
        "audit",
        ["address", "channel", "namespace"],
        unique=False,
        postgresql_where=sa.text("address is not null"),
    )
    op.create_index("audit_policy", "audit", ["at"], unique=False, postgresql_where=sa.text("action = 'policy.set'"))
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("origin", WORD, nullable=False),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("headers", postgresql.JSONB(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False, comment="As received, once decompressed; zstandard frame"),
        sa.Column("body_bytes", sa.Integer(), nullable=False),
        sa.Column("state", WORD, nullable=False),
        sa.Column("applied_at", MOMENT, nullable=True),
        sa.Column("accepted", sa.Integer(), nullable=True),
        sa.Column("duplicates", sa.Integer(), nullable=True),
        sa.Column("rejected", sa.Integer(), nullable=True),
        sa.Column("errors", postgresql.JSONB(), nullable=True),
        sa.Column(
            "held",
            postgresql.ARRAY(sa.Integer()),
            nullable=True,
            comment="Entries that waited for a review or had been refused: this batch made no facts of them",
        ),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", MOMENT, nullable=True),
        sa.Column("last_error", WORD, nullable=True),
        sa.CheckConstraint("state in ('recorded', 'applied')", name="batches_state"),
        sa.PrimaryKeyConstraint("id"),
        comment="The archive: every signed body, and what came of it",
        postgresql_partition_by="range (id)",
    )
    op.execute("create table batches_default partition of batches default")
    op.create_index(
        "batches_unapplied",
        "batches",
        ["next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("state = 'recorded'"),
    )
    op.create_table(
        "changes",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("address", WORD, nullable=False),
        sa.Column("recorded_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("xid", "seq", "recorded_at"),
        comment="The feed: an address whose causes changed, in the transaction that changed them",
        postgresql_partition_by="range (recorded_at)",
    )
    op.execute("create table changes_default partition of changes default")
    op.create_table(
        "checkpoint_causes",
        sa.Column("address", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("stop_at", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("clear_at", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("bounces", postgresql.ARRAY(sa.BigInteger()), nullable=True),
        sa.Column("held_stop_at", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("held_clear_at", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.PrimaryKeyConstraint("address", "channel", "namespace", "reason"),
        comment="What the batches that retention dropped had said, merged: a rebuild starts here",
    )
    op.create_table(
        "checkpoints",
        sa.Column("partition", WORD, nullable=False),
        sa.Column("ends_at", MOMENT, nullable=False),
        sa.Column("batches", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("made_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("partition"),
        comment="The partitions of the archive that were dropped, once what they said was merged",
    )
    op.create_table(
        "circuits",
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("opened_at", MOMENT, nullable=False),
        sa.Column("probe_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("namespace", "channel"),
        comment="Channels that Kahuna refuses, or asks to wait: nothing is sent before probe_at",
    )
    op.create_table(
        "corrections",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("address", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("slot", WORD, nullable=False),
        sa.Column("address_received", WORD, nullable=False),
        sa.Column("action", WORD, nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", WORD, nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", MOMENT, nullable=False),
        sa.Column("lease_id", sa.Uuid(), nullable=True),
        sa.Column("lease_until", MOMENT, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("settled_at", MOMENT, nullable=True),
        sa.Column("reason", WORD, nullable=True),
        sa.Column("evidence", postgresql.JSONB(), nullable=True),
        sa.CheckConstraint(
            "state in ('pending', 'sending', 'sent', 'rejected', 'dead', 'superseded', 'unsupported')",
            name="corrections_state",
        ),
        sa.PrimaryKeyConstraint("id"),
        comment="The outbox: what Kahuna is owed, and the proof of what it took",
    )
    op.create_index(
        "corrections_due",
        "corrections",
        ["namespace", "channel", "next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "corrections_leased",
        "corrections",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("state = 'sending'"),
    )
    op.create_index(
        "corrections_pending",
        "corrections",
        ["address", "channel", "namespace", "slot"],
        unique=True,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "corrections_sending",
        "corrections",
        ["address", "channel", "namespace", "slot"],
        unique=True,
        postgresql_where=sa.text("state = 'sending'"),
    )
    op.create_index("corrections_slot", "corrections", ["address", "channel", "namespace", "slot"], unique=False)
    op.create_table(
        "differences",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("address", WORD, nullable=False),
        sa.Column("slot", WORD, nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("action", WORD, nullable=True),
        sa.Column("occurred_at", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("evidence", postgresql.JSONB(), nullable=False),
        sa.Column("correction_id", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "address", "slot"),
        comment="What a run found: both sides, and the correction that settles it",
    )
    op.create_table(
        "digests",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "namespace", "channel"),
        comment="One row per distinct body: what makes a redelivery known",
    )
    op.create_table(
        "facts",
        sa.Column("address", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("action", WORD, nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source", WORD, nullable=False),
        sa.Column("origin", WORD, nullable=False),
        sa.Column("address_received", WORD, nullable=True),
        sa.Column("batch_id", sa.Uuid(), nullable=True),
        sa.Column("entry_index", sa.Integer(), nullable=True),
        sa.Column("audit_id", sa.Uuid(), nullable=True),
        sa.Column("recorded_at", MOMENT, nullable=False),
        sa.CheckConstraint("action in ('suppress', 'clear')", name="facts_action"),
        sa.CheckConstraint("source in ('kahuna', 'local')", name="facts_source"),
        sa.CheckConstraint("(batch_id is null) <> (audit_id is null)", name="facts_have_one_evidence"),
        sa.PrimaryKeyConstraint("address", "channel", "namespace", "reason", "action", "occurred_at", "source"),
        comment="Everything that anybody said, once",
        postgresql_partition_by="hash (address)",
    )
    for number in range(FACTS_PARTITIONS):
        op.execute(
            f"create table facts_{number} partition of facts "
            f"for values with (modulus {FACTS_PARTITIONS}, remainder {number})"
        )
    op.create_table(
        "leases",
        sa.Column("name", WORD, nullable=False),
        sa.Column("fence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ends_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name"),
        comment="Work that one process at a time may do; the fence counts who took it",
    )
    op.create_table(
        "quarantine",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("entry_index", sa.Integer(), nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("error", WORD, nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=False, comment="The entry's bytes, as received"),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("state", WORD, server_default=sa.text("'open'"), nullable=False),
        sa.Column("decided_by", WORD, nullable=True),
        sa.Column("decided_at", MOMENT, nullable=True),
        sa.Column("note", WORD, nullable=True),
        sa.CheckConstraint("state in ('open', 'requeued', 'discarded')", name="quarantine_state"),
        sa.PrimaryKeyConstraint("batch_id", "entry_index"),
        comment="Entries that could not be understood, each with its reason",
    )
    op.create_index(
        "quarantine_received",
        "quarantine",
        ["namespace", "state", "received_at", "batch_id", "entry_index"],
        unique=False,
    )
    op.create_table(
        "reconciliations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("source", WORD, nullable=False),
        sa.Column("auto_approve", sa.Boolean(), nullable=False),
        sa.Column("state", WORD, nullable=False),
        sa.Column("actor", WORD, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("lease_until", MOMENT, nullable=True),
        sa.Column("fence", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("error", WORD, nullable=True),
        sa.Column("counts", postgresql.JSONB(), nullable=False),
        sa.CheckConstraint(
            "state in ('queued', 'running', 'planned', 'applied', 'failed')", name="reconciliations_state"
        ),
        sa.PrimaryKeyConstraint("id"),
        comment="Runs that compare the list with what Kahuna holds",
    )
    op.create_table(
        "reviews",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("address", WORD, nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("why", WORD, nullable=False),
        sa.Column("address_received", WORD, nullable=True),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("entry_index", sa.Integer(), nullable=False),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("state", WORD, server_default=sa.text("'pending'"), nullable=False),
        sa.Column("decided_by", WORD, nullable=True),
        sa.Column("decided_at", MOMENT, nullable=True),
        sa.Column("note", WORD, nullable=True),
        sa.CheckConstraint("state in ('pending', 'approved', 'refused')", name="reviews_state"),
        sa.PrimaryKeyConstraint("id"),
        comment="Opt-ins that wait for a person, or were decided by one",
    )
    op.create_index(
        "reviews_timed",
        "reviews",
        ["address", "channel", "namespace", "reason", "occurred_at"],
        unique=True,
        postgresql_where=sa.text("occurred_at is not null"),
    )
    op.create_index(
        "reviews_untimed",
        "reviews",
        ["address", "channel", "namespace", "reason"],
        unique=True,
        postgresql_where=sa.text("occurred_at is null and state = 'pending'"),
    )
    op.create_table(
        "suppressions",
        sa.Column("address", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("stop_at", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("clear_at", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("bounces", postgresql.ARRAY(sa.BigInteger()), nullable=True),
        sa.Column("local_stop_at", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("held_stop_at", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("held_clear_at", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("address_received", WORD, nullable=True),
        sa.Column("origin", WORD, nullable=True),
        sa.Column("batch_id", sa.Uuid(), nullable=True),
        sa.Column("recorded_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("address", "channel", "namespace", "reason"),
        comment="The list: the merge of the facts per reason, and in held_* what Kahuna told us or accepted",
        postgresql_with={"fillfactor": 85},
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", WORD, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("namespace", WORD, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("revoked_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hash"),
        comment="API tokens: only a hash is kept",
    )


def downgrade() -> None:
    """Takes it all away again."""
    for table in (
        "tokens",
        "suppressions",
        "reviews",
        "reconciliations",
        "quarantine",
        "leases",
        "facts",
        "digests",
        "differences",
        "corrections",
        "circuits",
        "checkpoints",
        "checkpoint_causes",
        "changes",
        "batches",
        "audit",
    ):
        op.drop_table(table)
