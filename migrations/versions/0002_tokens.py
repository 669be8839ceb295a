"""Tokens of one channel, tokens that expire, and when each was last used.

Expand or contract, never both: the previous release runs while this one is applied.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("tokens", sa.Column("channel", sa.Text(collation="C")))
    op.add_column("tokens", sa.Column("expires_at", MOMENT))
    op.add_column("tokens", sa.Column("last_used_at", MOMENT))
    # What an operator asks is about both channels; no row of the previous release has a channel.
    op.create_check_constraint("tokens_channel", "tokens", "channel is null or not 'admin' = any (scopes)")


def downgrade() -> None:
    op.drop_constraint("tokens_channel", "tokens")
    for column in ("channel", "expires_at", "last_used_at"):
        op.drop_column("tokens", column)
