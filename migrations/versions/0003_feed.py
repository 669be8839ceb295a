"""The feed can be followed: which months of it were dropped, and which epochs an operator began.

Two new, empty tables; nothing that the previous release uses is touched.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import UserDefinedType

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

WORD = sa.Text(collation="C")
MOMENT = sa.DateTime(timezone=True)


class Xid8(UserDefinedType[str]):
    """A 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Its name in DDL."""
        return "xid8"


def upgrade() -> None:
    """Makes what is new."""
    op.create_table(
        "changes_dropped",
        sa.Column("epoch", WORD, nullable=False),
        sa.Column("partition", WORD, nullable=False),
        sa.Column("xid", Xid8(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("dropped_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("epoch", "partition"),
        comment="The last row of each month of the feed that was dropped: whoever is not past it has missed some",
    )
    op.create_table(
        "epochs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("began_at", MOMENT, nullable=False),
        sa.Column("actor", WORD, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        comment="Epochs of the feed that an operator began, after a restore that the server itself does not show",
    )


def downgrade() -> None:
    """Drops it again."""
    op.drop_table("epochs")
    op.drop_table("changes_dropped")
