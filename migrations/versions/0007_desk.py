"""What operators need to settle corrections: every call with its answer, the stop that a correction is for, decisions.

Expand only: a new table, nullable columns, one more word for a state, and an index of the corrections that wait for a
person, which are few. To make that index the outbox is read once, and whoever wants to read or write it waits for that,
since the new check has locked it: shortly with a million corrections; with a hundred times as many, migrate in a quiet
hour.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

WORD = sa.Text(collation="C")

STATES = "'pending', 'sending', 'sent', 'rejected', 'dead', 'superseded', 'unsupported'"


def upgrade() -> None:
    op.create_table(
        "calls",
        sa.Column("id", sa.Uuid(), nullable=False, comment="Of the time of the call; Kahuna got it as its request id"),
        sa.Column("namespace", WORD, nullable=False),
        sa.Column("channel", WORD, nullable=False),
        sa.Column("worker", WORD, nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("corrections", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("outcome", WORD, nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("accepted", sa.Integer()),
        sa.Column("rejected", sa.Integer()),
        sa.Column("answer", WORD, comment="What Kahuna wrote, without whatever may be an address or a key"),
        sa.PrimaryKeyConstraint("id"),
        comment="Every call of a Sync API that corrections were sent in, and what came of it",
        postgresql_partition_by="range (id)",
    )
    op.execute("create table calls_default partition of calls default")
    op.add_column("corrections", sa.Column("stopped_at", sa.BigInteger()))
    for name in ("decided_by", "note"):
        op.add_column("corrections", sa.Column(name, WORD))
    _state_among(f"{STATES}, 'discarded'")
    op.create_index(
        "corrections_given_up",
        "corrections",
        ["namespace", "state", "id"],
        postgresql_where=sa.text("state in ('rejected', 'dead', 'unsupported', 'discarded')"),
    )


def downgrade() -> None:
    op.drop_index("corrections_given_up", "corrections")
    # The release before has no word for it; what it has closest is also not sent again.
    op.execute("update corrections set state = 'superseded' where state = 'discarded'")
    _state_among(STATES)
    for name in ("note", "decided_by", "stopped_at"):
        op.drop_column("corrections", name)
    op.drop_table("calls")


def _state_among(words: str) -> None:
    """Replaces the check; rows that are there have one of the words."""
    op.drop_constraint("corrections_state", "corrections")
    op.execute(f"alter table corrections add constraint corrections_state check (state in ({words})) not valid")
