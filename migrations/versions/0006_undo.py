"""What was done can be undone: imports, retractions, what they took back, and surges.

New tables alone, which the previous release does not know. The imports of before are listed from the audit log.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

WORD = sa.Text(collation="C")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Makes what is new."""
    _imports()
    _retractions()
    _surges()


def _imports() -> None:
    op.create_table(
        "imports",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("actor", WORD, nullable=False),
        sa.Column("file_name", WORD, nullable=True),
        sa.Column("reason", WORD, nullable=True),
        sa.Column("as_of", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("begun_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.Column("state", WORD, server_default=sa.text("'running'"), nullable=False),
        sa.Column("counts", postgresql.JSONB(), nullable=False),
        sa.CheckConstraint("state in ('running', 'finished', 'cut_off')", name="imports_state"),
        sa.PrimaryKeyConstraint("id"),
        comment="Lists that were taken in: what was asked, and how far each came",
    )
    op.create_index("imports_begun", "imports", ["namespace", "begun_at"])
    op.execute(
        """
        insert into imports (id, namespace, channel, actor, file_name, reason, as_of, begun_at, ended_at, state, counts)
        select distinct on (id) (detail ->> 'import_id')::uuid as id, namespace, channel, actor, detail ->> 'file_name',
               detail ->> 'reason', (detail ->> 'as_of')::bigint,
               to_timestamp(('x' || left(replace(detail ->> 'import_id', '-', ''), 12))::bit(48)::bigint / 1000.0),
               case when action <> 'import.begun' then at end,
               case action when 'import.begun' then 'running' else replace(action, 'import.', '') end,
               detail - 'import_id' - 'file_name' - 'reason' - 'as_of'
        from audit where action in ('import.begun', 'import.finished', 'import.cut_off')
        order by id, at desc, action desc
        """
    )


def _retractions() -> None:
    op.create_table(
        "retractions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("of", sa.Uuid(), nullable=False),
        sa.Column("only_reason", WORD, nullable=True),
        sa.Column("only_domain", WORD, nullable=True),
        sa.Column("actor", WORD, nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("state", WORD, server_default=sa.text("'queued'"), nullable=False),
        sa.Column("phase", WORD, server_default=sa.text("'releasing'"), nullable=False),
        sa.Column("reached", sa.Uuid(), nullable=True),
        sa.Column("reached_address", WORD, nullable=True),
        sa.Column("walked", sa.Uuid(), nullable=True),
        sa.Column("walked_deeds", sa.Uuid(), nullable=True),
        sa.Column("counts", postgresql.JSONB(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", MOMENT, nullable=False),
        sa.Column("error", WORD, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.CheckConstraint("kind in ('import', 'surge', 'run')", name="retractions_kind"),
        sa.CheckConstraint("state in ('queued', 'running', 'done')", name="retractions_state"),
        sa.CheckConstraint("phase in ('releasing', 'walking', 'taking', 'looking', 'done')", name="retractions_phase"),
        sa.PrimaryKeyConstraint("id"),
        comment="What is taken back: of an import, a surge or a run; who asked, why, and how far it is",
    )
    op.create_index("retractions_of", "retractions", ["kind", "of"], unique=True)
    op.create_index("retractions_created", "retractions", ["namespace", "created_at"])
    op.create_index("retractions_open", "retractions", ["next_attempt_at"], postgresql_where=sa.text("state <> 'done'"))
    op.create_table(
        "retraction_evidence",
        sa.Column("retraction_id", sa.Uuid(), nullable=False),
        sa.Column("evidence_id", sa.Uuid(), nullable=False),
        sa.Column("is_batch", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("retraction_id", "evidence_id"),
        comment="The batches, and rows of the audit log, whose word a retraction takes back",
    )
    op.create_index("retraction_evidence_id", "retraction_evidence", ["evidence_id"])
    op.create_table(
        "retracted_facts",
        sa.Column("address", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("action", WORD, nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source", WORD, nullable=False),
        sa.Column("evidence_id", sa.Uuid(), nullable=False),
        sa.Column("retraction_id", sa.Uuid(), nullable=False),
        sa.Column(
            "made",
            sa.Boolean(),
            nullable=False,
            comment="Whether the fact was stored on this evidence; else it was known",
        ),
        sa.Column("origin", WORD, nullable=True),
        sa.Column("address_received", WORD, nullable=True),
        sa.Column("batch_id", sa.Uuid(), nullable=True),
        sa.Column("entry_index", sa.Integer(), nullable=True),
        sa.Column("audit_id", sa.Uuid(), nullable=True),
        sa.Column("recorded_at", MOMENT, nullable=True),
        sa.Column("retracted_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint(
            "address", "channel", "namespace", "reason", "action", "occurred_at", "source", "evidence_id"
        ),
        comment="What which evidence had said and no longer counts; the past still knows it",
    )
    op.create_index("retracted_facts_evidence", "retracted_facts", ["evidence_id"])
    op.create_index("retracted_facts_retraction", "retracted_facts", ["retraction_id", "address"])


def _surges() -> None:
    op.create_table(
        "surges",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("key", WORD, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_at", MOMENT, nullable=False),
        sa.Column("last_at", MOMENT, nullable=False),
        sa.Column("flagged_at", MOMENT, nullable=False),
        sa.Column("state", WORD, server_default=sa.text("'flagged'"), nullable=False),
        sa.Column("decided_by", WORD, nullable=True),
        sa.Column("decided_at", MOMENT, nullable=True),
        sa.Column("note", WORD, nullable=True),
        sa.CheckConstraint("kind in ('domain', 'minute')", name="surges_kind"),
        sa.CheckConstraint("state in ('flagged', 'kept', 'reverted')", name="surges_state"),
        sa.PrimaryKeyConstraint("id"),
        comment="Groups of stops of one reason that came in unusual number, for a person to judge",
    )
    op.create_index("surges_flagged_at", "surges", ["namespace", "flagged_at"])
    op.create_index(
        "surges_open",
        "surges",
        ["namespace", "channel", "reason", "kind", "key"],
        unique=True,
        postgresql_where=sa.text("state = 'flagged'"),
    )
    op.create_table(
        "surge_evidence",
        sa.Column("surge_id", sa.Uuid(), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("surge_id", "batch_id"),
        comment="The batches that a surge came in",
    )
    op.create_table(
        "surge_looks",
        sa.Column("epoch", WORD, nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("epoch"),
        comment="How far the feed has been looked over for surges",
    )


def downgrade() -> None:
    """Drops it again."""
    for table in (
        "surge_looks",
        "surge_evidence",
        "surges",
        "retracted_facts",
        "retraction_evidence",
        "retractions",
        "imports",
    ):
        op.drop_table(table)
