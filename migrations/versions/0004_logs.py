"""What Kahuna's logs tell: how far each was read, merges of users, and messages that went out against a stop.

New, empty tables; nothing that the previous release uses is touched.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WORD = sa.Text(collation="C")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Makes what is new."""
    op.execute("set local lock_timeout = '5s'")
    _walks()
    _merges()
    _violations()


def _walks() -> None:
    op.create_table(
        "log_walks",
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("api", WORD, nullable=False),
        sa.Column("walk", WORD, nullable=False),
        sa.Column("begins_at", MOMENT, nullable=False),
        sa.Column("ends_at", MOMENT),
        sa.Column("since", MOMENT, nullable=False),
        sa.Column("cursor", WORD),
        sa.Column("reached", MOMENT, nullable=False),
        sa.Column("counts", postgresql.JSONB(), nullable=False),
        sa.Column("last_at", MOMENT),
        sa.Column("done_at", MOMENT),
        sa.Column("error", WORD),
        sa.Column("error_at", MOMENT),
        sa.PrimaryKeyConstraint("namespace", "api", "walk"),
        comment="How far each of Kahuna's logs was read: without end (pull), of before (backfill), or for a run",
    )
    op.create_table(
        "run_batches",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "batch_id"),
        comment="The batches of log pages that a reconciliation had read",
    )
    op.create_table(
        "log_bounces",
        sa.Column("address", WORD, nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("entry_index", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("address", "namespace", "occurred_at"),
        comment="Soft bounces that only a log told of so far: a callback may still come, and count for them",
    )


def _merges() -> None:
    op.create_table(
        "merges",
        sa.Column("address", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("side", WORD, nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), autoincrement=False),
        sa.Column("record", postgresql.JSONB(), nullable=False),
        sa.Column("recorded_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("address", "channel", "namespace", "digest"),
        comment="Users that Kahuna made one, noted on every address that they had",
    )


def _violations() -> None:
    op.create_table(
        "violations",
        sa.Column("address", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("sent_at", MOMENT, nullable=False),
        sa.Column("campaign", WORD),
        sa.Column("campaign_id", sa.BigInteger(), autoincrement=False),
        sa.Column("known_by", WORD, nullable=False),
        sa.Column("known_since", MOMENT, nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("evidence", postgresql.JSONB(), nullable=False),
        sa.Column("found_at", MOMENT, nullable=False),
        sa.CheckConstraint("known_by in ('kahuna', 'us')", name="violations_known_by"),
        sa.PrimaryKeyConstraint("address", "channel", "namespace", "digest"),
        comment="Messages that Kahuna sent to an address after a stop was in force, with both pieces of evidence",
    )
    op.create_index("violations_sent", "violations", ["namespace", "sent_at", "digest", "address"])


def downgrade() -> None:
    """Drops it again."""
    for table in ("violations", "merges", "log_bounces", "run_batches", "log_walks"):
        op.drop_table(table)
