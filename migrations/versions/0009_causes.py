"""Which request a correction comes from, and the span of the trace in which it was written.

Expand only: two nullable columns of the outbox, which is not rewritten. Whoever wants to read or write it waits for a
moment.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

WORD = sa.Text(collation="C")


def upgrade() -> None:
    for name in ("request_id", "traceparent"):
        op.add_column("corrections", sa.Column(name, WORD))


def downgrade() -> None:
    for name in ("traceparent", "request_id"):
        op.drop_column("corrections", name)
