"""By which request a batch was brought, so that what follows from one that is applied later can be traced back to it.

Expand only: a nullable column, which rewrites nothing. The previous release leaves it empty.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("request_id", sa.Text(collation="C")))


def downgrade() -> None:
    op.drop_column("batches", "request_id")
