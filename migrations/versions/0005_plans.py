"""A reconciliation is a plan: the state of a run and of each of its differences, who decided, and what came of it.

Expand only: the previous release goes on writing runs and differences, whose new columns have defaults.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

WORD = sa.Text(collation="C")
MOMENT = sa.DateTime(timezone=True)

STATES = (
    "'queued', 'running', 'planned', 'approved', 'applied', 'proved', 'rejected', 'reverting', 'reverted', 'failed', "
    "'abandoned'"
)
LINE_STATES = (
    "'proposed', 'approved', 'on_its_way', 'applied', 'proved', 'refused', 'unsupported', 'moot', 'declined', "
    "'reverted'"
)
BEFORE = "'queued', 'running', 'planned', 'applied', 'failed'"

SAID = "What a run found: both sides, and the correction that settles it"
SAYS = "What a run found: both sides, what was decided of it, and the correction or fact that settles it"

OF_RUNS: dict[str, Any] = {
    "asked": postgresql.JSONB(),
    "position": WORD,
    "compared": sa.BigInteger(),
    "started_at": MOMENT,
    "planned_at": MOMENT,
    "complete_at": MOMENT,
    "held_by": postgresql.JSONB(),
    "approved_at": MOMENT,
    "decided_by": WORD,
    "note": WORD,
    "closed_at": MOMENT,
    "outcome": postgresql.JSONB(),
}
OF_LINES: dict[str, Any] = {
    "reason": WORD,
    "why": WORD,
    "audit_id": sa.Uuid(),
    "batch_id": sa.Uuid(),
    "decided_by": WORD,
    "decided_at": MOMENT,
    "closed_at": MOMENT,
}


def upgrade() -> None:
    """Makes what is new, and says of earlier differences how they stand."""
    op.add_column("reconciliations", sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("differences", sa.Column("state", WORD, nullable=False, server_default=sa.text("'proposed'")))
    for name, kind in OF_RUNS.items():
        op.add_column("reconciliations", sa.Column(name, kind))
    for name, kind in OF_LINES.items():
        op.add_column("differences", sa.Column(name, kind))
    op.execute(
        """
        update differences as d set state = case
            when d.evidence ->> 'correction' in ('on_its_way', 'refused', 'unsupported')
                then d.evidence ->> 'correction'
            when r.state = 'applied' then 'applied' else 'proposed' end
        from reconciliations as r where r.id = d.run_id
        """
    )
    op.create_table_comment("differences", SAYS, existing_comment=SAID)
    op.drop_constraint("reconciliations_state", "reconciliations")
    op.create_check_constraint(
        "reconciliations_state", "reconciliations", f"state in ({STATES})", postgresql_not_valid=True
    )
    op.create_check_constraint(
        "differences_state", "differences", f"state in ({LINE_STATES})", postgresql_not_valid=True
    )
    op.create_index("reconciliations_newest", "reconciliations", ["namespace", "channel", "created_at"])
    waiting, undone = "state in ('applied', 'on_its_way')", "state in ('declined', 'reverted')"
    op.create_index("differences_waiting", "differences", ["correction_id"], postgresql_where=sa.text(waiting))
    op.create_index("differences_undone", "differences", ["address", "slot"], postgresql_where=sa.text(undone))
    op.create_index(
        "differences_open",
        "differences",
        ["run_id", "kind"],
        postgresql_where=sa.text("state not in ('proved', 'moot')"),
    )


def downgrade() -> None:
    """Takes it back; runs in states that the previous release does not know end as failed."""
    op.create_table_comment("differences", SAID, existing_comment=SAYS)
    for name in ("differences_open", "differences_undone", "differences_waiting"):
        op.drop_index(name, "differences")
    op.drop_index("reconciliations_newest", "reconciliations")
    op.drop_constraint("differences_state", "differences")
    op.drop_constraint("reconciliations_state", "reconciliations")
    op.execute(f"update reconciliations set state = 'failed' where state not in ({BEFORE})")
    op.create_check_constraint("reconciliations_state", "reconciliations", f"state in ({BEFORE})")
    for name in (*OF_LINES, "state"):
        op.drop_column("differences", name)
    for name in (*OF_RUNS, "attempts"):
        op.drop_column("reconciliations", name)
