"""What stands when something is taken back, and what a large plan needs: log records that were taken as evidence of a
callback, both notes of a run, a decision that is carried on slice by slice, and indexes by which lines are found.

Expand only: a new table, nullable columns, indexes of the lines that wait for Kahuna, of those that were turned down
and of the opt-ins in their order, and two of some kilobytes by time. To make those of lines the table `differences` is
read twice, and whoever wants to write to it waits for that: about a second for each few million lines.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

WORD = sa.Text(collation="C")


def upgrade() -> None:
    op.create_table(
        "log_evidence",
        sa.Column("address", WORD, nullable=False),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False),
        sa.Column("timed", sa.Boolean(), nullable=False),
        sa.Column("noted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("address", "namespace", "reason", "occurred_at"),
        comment="Records of Kahuna's logs that made no fact since a callback had told it: they stand if that is undone",
    )
    op.create_index("log_evidence_noted", "log_evidence", ["noted_at"], postgresql_using="brin")
    op.create_index("merges_recorded", "merges", ["recorded_at"], postgresql_using="brin")
    for name in ("reverted_by", "revert_note"):
        op.add_column("reconciliations", sa.Column(name, WORD))
    op.add_column("reconciliations", sa.Column("deciding", postgresql.JSONB()))
    op.create_index("reviews_received", "reviews", ["namespace", "state", "received_at", "id"])
    op.create_index(
        "differences_turned_down",
        "differences",
        ["correction_id"],
        postgresql_where=sa.text("state in ('refused', 'unsupported', 'declined') and correction_id is not null"),
    )
    op.create_index(
        "differences_run_waits",
        "differences",
        ["run_id"],
        postgresql_where=sa.text("state in ('applied', 'on_its_way')"),
    )


def downgrade() -> None:
    for name in ("differences_run_waits", "differences_turned_down"):
        op.drop_index(name, "differences")
    op.drop_index("reviews_received", "reviews")
    for name in ("deciding", "revert_note", "reverted_by"):
        op.drop_column("reconciliations", name)
    op.drop_index("merges_recorded", "merges")
    op.drop_table("log_evidence")
