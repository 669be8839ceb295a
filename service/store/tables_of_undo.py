"""Owns the shape of the tables of undo: imports, surges, retractions, and what was taken back by them.

They stand apart from `store.tables` because they grow by what people do and not by traffic; columns follow its words.
"""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, Integer, Table, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB

from service.store.tables import metadata, moment, seconds, word

imports = Table(
    "imports",
    metadata,
    Column("id", Uuid, primary_key=True),
    word("namespace"),
    word("channel"),
    word("actor"),
    word("file_name", nullable=True),
    word("reason", nullable=True),
    seconds("as_of"),
    moment("begun_at"),
    moment("ended_at", nullable=True),
    word("state", default="running"),
    Column("counts", JSONB, nullable=False),
    Index("imports_begun", "namespace", "begun_at"),
    CheckConstraint("state in ('running', 'finished', 'cut_off')", name="imports_state"),
    comment="Lists that were taken in: what was asked, and how far each came",
)

retractions = Table(
    "retractions",
    metadata,
    Column("id", Uuid, primary_key=True),
    word("namespace"),
    word("channel"),
    word("kind"),
    Column("of", Uuid, nullable=False),
    word("only_reason", nullable=True),
    word("only_domain", nullable=True),
    word("actor"),
    word("reason"),
    word("state", default="queued"),
    word("phase", default="releasing"),
    Column("reached", Uuid),
    word("reached_address", nullable=True),
    Column("walked", Uuid),
    Column("walked_deeds", Uuid),
    Column("counts", JSONB, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    moment("next_attempt_at"),
    word("error", nullable=True),
    moment("created_at"),
    moment("started_at", nullable=True),
    moment("finished_at", nullable=True),
    CheckConstraint("kind in ('import', 'surge', 'run')", name="retractions_kind"),
    CheckConstraint("state in ('queued', 'running', 'done')", name="retractions_state"),
    CheckConstraint("phase in ('releasing', 'walking', 'taking', 'looking', 'done')", name="retractions_phase"),
    Index("retractions_of", "kind", "of", unique=True),
    Index("retractions_created", "namespace", "created_at"),
    Index("retractions_open", "next_attempt_at", postgresql_where=text("state <> 'done'")),
    comment="What is taken back: of an import, a surge or a run; who asked, why, and how far it is",
)

retraction_evidence = Table(
    "retraction_evidence",
    metadata,
    Column("retraction_id", Uuid, primary_key=True),
    Column("evidence_id", Uuid, primary_key=True),
    Column("is_batch", Boolean, nullable=False),
    Index("retraction_evidence_id", "evidence_id"),
    comment="The batches, and rows of the audit log, whose word a retraction takes back",
)

retracted_facts = Table(
    "retracted_facts",
    metadata,
    word("address", primary_key=True),
    word("channel", primary_key=True),
    word("namespace", primary_key=True),
    word("reason", primary_key=True),
    word("action", primary_key=True),
    seconds("occurred_at", nullable=False, primary_key=True),
    word("source", primary_key=True),
    Column("evidence_id", Uuid, primary_key=True),
    Column("retraction_id", Uuid, nullable=False),
    Column("made", Boolean, nullable=False, comment="Whether the fact was stored on this evidence; else it was known"),
    word("origin", nullable=True),
    word("address_received", nullable=True),
    Column("batch_id", Uuid),
    Column("entry_index", Integer),
    Column("audit_id", Uuid),
    moment("recorded_at", nullable=True),
    moment("retracted_at"),
    Index("retracted_facts_evidence", "evidence_id"),
    Index("retracted_facts_retraction", "retraction_id", "address"),
    comment="What which evidence had said and no longer counts; the past still knows it",
)

surges = Table(
    "surges",
    metadata,
    Column("id", Uuid, primary_key=True),
    word("namespace"),
    word("channel"),
    word("reason"),
    word("kind"),
    word("key"),
    Column("count", BigInteger, nullable=False),
    moment("first_at"),
    moment("last_at"),
    moment("flagged_at"),
    word("state", default="flagged"),
    word("decided_by", nullable=True),
    moment("decided_at", nullable=True),
    word("note", nullable=True),
    CheckConstraint("kind in ('domain', 'minute')", name="surges_kind"),
    CheckConstraint("state in ('flagged', 'kept', 'reverted')", name="surges_state"),
    Index("surges_flagged_at", "namespace", "flagged_at"),
    Index(
        "surges_open",
        "namespace",
        "channel",
        "reason",
        "kind",
        "key",
        unique=True,
        postgresql_where=text("state = 'flagged'"),
    ),
    comment="Groups of stops of one reason that came in unusual number, for a person to judge",
)

surge_evidence = Table(
    "surge_evidence",
    metadata,
    Column("surge_id", Uuid, primary_key=True),
    Column("batch_id", Uuid, primary_key=True),
    comment="The batches that a surge came in",
)

surge_looks = Table(
    "surge_looks",
    metadata,
    word("epoch", primary_key=True),
    Column("xid", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    comment="How far the feed has been looked over for surges",
)
