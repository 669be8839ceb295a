"""Owns the shape of the database. `alembic check` holds it against the migrations.

All text is COLLATE "C": equality and order are those of the bytes, on every server. What happened is timed in whole
Unix seconds (`bigint`), as facts are; what we did, by our clock, is `timestamptz`. The primary key of every hot table
begins with the address, so that the list can be spread by it. There are no foreign keys: tables of receipt lose old
partitions without touching the list. The migration makes the partitions of the facts, `store.partitions` the others.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import UserDefinedType


class Xid8(UserDefinedType[str]):
    """A 64-bit transaction id: what orders the feed by commit, together with the snapshot's xmin."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Its name in DDL."""
        return "xid8"


def word(name: str, *, nullable: bool = False, primary_key: bool = False, default: str | None = None) -> Column[str]:
    """A text column in byte order."""
    server_default = None if default is None else text(f"'{default}'")
    return Column(name, Text(collation="C"), nullable=nullable, primary_key=primary_key, server_default=server_default)


def seconds(name: str, *, nullable: bool = True, primary_key: bool = False) -> Column[int]:
    """A time of the world, in whole Unix seconds."""
    return Column(name, BigInteger, nullable=nullable, primary_key=primary_key, autoincrement=False)


def moment(name: str, *, nullable: bool = False) -> Column[Any]:
    """A time of our clock."""
    return Column(name, DateTime(timezone=True), nullable=nullable)


def slot_key() -> list[Column[str]]:
    """The columns that name one slot of the vendor's."""
    return [word("address"), word("channel"), word("namespace"), word("slot")]


metadata = MetaData()

digests = Table(
    "digests",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    word("namespace", primary_key=True),
    word("channel", primary_key=True),
    Column("batch_id", Uuid, nullable=False),
    comment="One row per distinct body: what makes a redelivery known",
)

batches = Table(
    "batches",
    metadata,
    Column("id", Uuid, primary_key=True),
    word("namespace"),
    word("channel"),
    word("origin"),
    moment("received_at"),
    Column("headers", JSONB, nullable=False),
    Column("body", LargeBinary, nullable=False, comment="As received, once decompressed; zstandard frame"),
    Column("body_bytes", Integer, nullable=False),
    word("state"),
    moment("applied_at", nullable=True),
    Column("accepted", Integer),
    Column("duplicates", Integer),
    Column("rejected", Integer),
    Column("errors", JSONB),
    Column(
        "held",
        ARRAY(Integer),
        comment="Entries that waited for a review or had been refused: this batch made no facts of them",
    ),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    moment("next_attempt_at", nullable=True),
    word("last_error", nullable=True),
    word("request_id", nullable=True),
    CheckConstraint("state in ('recorded', 'applied')", name="batches_state"),
    Index("batches_unapplied", "next_attempt_at", postgresql_where=text("state = 'recorded'")),
    postgresql_partition_by="range (id)",
    comment="The archive: every signed body, and what came of it",
)

facts = Table(
    "facts",
    metadata,
    word("address", primary_key=True),
    word("channel", primary_key=True),
    word("namespace", primary_key=True),
    word("reason", primary_key=True),
    word("action", primary_key=True),
    seconds("occurred_at", nullable=False, primary_key=True),
    word("source", primary_key=True),
    word("origin"),
    word("address_received", nullable=True),
    Column("batch_id", Uuid),
    Column("entry_index", Integer),
    Column("audit_id", Uuid),
    moment("recorded_at"),
    CheckConstraint("(batch_id is null) <> (audit_id is null)", name="facts_have_one_evidence"),
    CheckConstraint("action in ('suppress', 'clear')", name="facts_action"),
    CheckConstraint("source in ('kahuna', 'local')", name="facts_source"),
    postgresql_partition_by="hash (address)",
    comment="Everything that anybody said, once",
)

suppressions = Table(
    "suppressions",
    metadata,
    word("address", primary_key=True),
    word("channel", primary_key=True),
    word("namespace", primary_key=True),
    word("reason", primary_key=True),
    seconds("stop_at"),
    seconds("clear_at"),
    Column("bounces", ARRAY(BigInteger)),
    seconds("local_stop_at"),
    seconds("held_stop_at"),
    seconds("held_clear_at"),
    word("address_received", nullable=True),
    word("origin", nullable=True),
    Column("batch_id", Uuid),
    moment("recorded_at", nullable=True),
    postgresql_with={"fillfactor": 85},
    comment="The list: the merge of the facts per reason, and in held_* what Kahuna told us or accepted",
)

changes = Table(
    "changes",
    metadata,
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    Column("xid", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    word("namespace"),
    word("channel"),
    word("address"),
    moment("recorded_at"),
    # In the order in which it is read; the last one is there because the partitions are by it.
    PrimaryKeyConstraint("xid", "seq", "recorded_at"),
    postgresql_partition_by="range (recorded_at)",
    comment="The feed: an address whose causes changed, in the transaction that changed them",
)

changes_dropped = Table(
    "changes_dropped",
    metadata,
    word("epoch", primary_key=True),
    word("partition", primary_key=True),
    Column("xid", Xid8, nullable=False),
    Column("seq", BigInteger, nullable=False),
    moment("dropped_at"),
    comment="The last row of each month of the feed that was dropped: whoever is not past it has missed some",
)

epochs = Table(
    "epochs",
    metadata,
    Column("id", Uuid, primary_key=True),
    moment("began_at"),
    word("actor"),
    comment="Epochs of the feed that an operator began, after a restore that the server itself does not show",
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("batch_id", Uuid, primary_key=True),
    Column("entry_index", Integer, primary_key=True),
    word("namespace"),
    word("channel"),
    word("error"),
    Column("entry", LargeBinary, nullable=False, comment="The entry's bytes, as received"),
    moment("received_at"),
    word("state", default="open"),
    word("decided_by", nullable=True),
    moment("decided_at", nullable=True),
    word("note", nullable=True),
    CheckConstraint("state in ('open', 'requeued', 'discarded')", name="quarantine_state"),
    Index("quarantine_received", "namespace", "state", "received_at", "batch_id", "entry_index"),
    comment="Entries that could not be understood, each with its reason",
)

reviews = Table(
    "reviews",
    metadata,
    Column("id", Uuid, primary_key=True),
    word("namespace"),
    word("channel"),
    word("address"),
    word("reason"),
    seconds("occurred_at"),
    word("why"),
    word("address_received", nullable=True),
    Column("batch_id", Uuid, nullable=False),
    Column("entry_index", Integer, nullable=False),
    moment("received_at"),
    word("state", default="pending"),
    word("decided_by", nullable=True),
    moment("decided_at", nullable=True),
    word("note", nullable=True),
    CheckConstraint("state in ('pending', 'approved', 'refused')", name="reviews_state"),
    Index(
        "reviews_timed",
        "address",
        "channel",
        "namespace",
        "reason",
        "occurred_at",
        unique=True,
        postgresql_where=text("occurred_at is not null"),
    ),
    Index(
        "reviews_untimed",
        "address",
        "channel",
        "namespace",
        "reason",
        unique=True,
        postgresql_where=text("occurred_at is null and state = 'pending'"),
    ),
    Index("reviews_received", "namespace", "state", "received_at", "id"),
    comment="Opt-ins that wait for a person, or were decided by one",
)

corrections = Table(
    "corrections",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    *slot_key(),
    word("address_received"),
    word("action"),
    seconds("occurred_at", nullable=False),
    word("state"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    moment("next_attempt_at"),
    Column("lease_id", Uuid),
    moment("lease_until", nullable=True),
    moment("created_at"),
    moment("settled_at", nullable=True),
    word("reason", nullable=True),
    Column("evidence", JSONB),
    seconds("stopped_at"),
    word("decided_by", nullable=True),
    word("note", nullable=True),
    word("request_id", nullable=True),
    word("traceparent", nullable=True),
    CheckConstraint(
        "state in ('pending', 'sending', 'sent', 'rejected', 'dead', 'superseded', 'unsupported', 'discarded')",
        name="corrections_state",
    ),
    Index(
        "corrections_pending",
        "address",
        "channel",
        "namespace",
        "slot",
        unique=True,
        postgresql_where=text("state = 'pending'"),
    ),
    Index(
        "corrections_sending",
        "address",
        "channel",
        "namespace",
        "slot",
        unique=True,
        postgresql_where=text("state = 'sending'"),
    ),
    Index("corrections_slot", "address", "channel", "namespace", "slot"),
    Index("corrections_due", "namespace", "channel", "next_attempt_at", postgresql_where=text("state = 'pending'")),
    Index("corrections_leased", "lease_until", postgresql_where=text("state = 'sending'")),
    Index(
        "corrections_given_up",
        "namespace",
        "state",
        "id",
        postgresql_where=text("state in ('rejected', 'dead', 'unsupported', 'discarded')"),
    ),
    comment="The outbox: what Kahuna is owed, and the proof of what it took",
)

calls = Table(
    "calls",
    metadata,
    Column("id", Uuid, primary_key=True, comment="Of the time of the call; Kahuna got it as its request id"),
    word("namespace"),
    word("channel"),
    word("worker"),
    moment("answered_at"),
    Column("corrections", ARRAY(BigInteger), nullable=False),
    word("outcome"),
    Column("status", Integer),
    Column("accepted", Integer),
    Column("rejected", Integer),
    Column("answer", Text(collation="C"), comment="What Kahuna wrote, without whatever may be an address or a key"),
    postgresql_partition_by="range (id)",
    comment="Every call of a Sync API that corrections were sent in, and what came of it",
)

circuits = Table(
    "circuits",
    metadata,
    word("namespace", primary_key=True),
    word("channel", primary_key=True),
    word("reason"),
    moment("opened_at"),
    moment("probe_at"),
    comment="Channels that Kahuna refuses, or asks to wait: nothing is sent before probe_at",
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Uuid, primary_key=True),
    word("name"),
    Column("hash", LargeBinary, nullable=False, unique=True),
    Column("scopes", ARRAY(Text), nullable=False),
    word("namespace", nullable=True),
    moment("created_at"),
    moment("revoked_at", nullable=True),
    word("channel", nullable=True),
    moment("expires_at", nullable=True),
    moment("last_used_at", nullable=True),
    CheckConstraint("channel is null or not 'admin' = any (scopes)", name="tokens_channel"),
    comment="API tokens: only a hash is kept",
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", LargeBinary, primary_key=True, comment="Of what the browser keeps"),
    Column("token_id", Uuid, nullable=False),
    moment("began_at"),
    moment("ends_at"),
    comment="Who is signed in at the console, and with which token",
)

audit = Table(
    "audit",
    metadata,
    Column("id", Uuid, primary_key=True),
    moment("at"),
    word("actor"),
    word("action"),
    word("namespace", nullable=True),
    word("channel", nullable=True),
    word("address", nullable=True),
    Column("detail", JSONB, nullable=False),
    Column(
        "facts",
        JSONB(none_as_null=True),
        comment="What it states: [[address, reason, action, occurred_at, source], ...]",
    ),
    Index("audit_address", "address", "channel", "namespace", postgresql_where=text("address is not null")),
    Index("audit_policy", "at", postgresql_where=text("action = 'policy.set'")),
    comment="Who did what: evidence of every fact that came in no batch",
)

checkpoint_causes = Table(
    "checkpoint_causes",
    metadata,
    word("address", primary_key=True),
    word("channel", primary_key=True),
    word("namespace", primary_key=True),
    word("reason", primary_key=True),
    seconds("stop_at"),
    seconds("clear_at"),
    Column("bounces", ARRAY(BigInteger)),
    seconds("held_stop_at"),
    seconds("held_clear_at"),
    comment="What the batches that retention dropped had said, merged: a rebuild starts here",
)

checkpoints = Table(
    "checkpoints",
    metadata,
    word("partition", primary_key=True),
    moment("ends_at"),
    Column("batches", BigInteger, nullable=False),
    moment("made_at"),
    comment="The partitions of the archive that were dropped, once what they said was merged",
)

leases = Table(
    "leases",
    metadata,
    word("name", primary_key=True),
    Column("fence", BigInteger, nullable=False),
    moment("ends_at"),
    comment="Work that one process at a time may do; the fence counts who took it",
)

log_walks = Table(
    "log_walks",
    metadata,
    word("namespace", primary_key=True),
    word("api", primary_key=True),
    word("walk", primary_key=True),
    moment("begins_at"),
    moment("ends_at", nullable=True),
    moment("since"),
    word("cursor", nullable=True),
    moment("reached"),
    Column("counts", JSONB, nullable=False),
    moment("last_at", nullable=True),
    moment("done_at", nullable=True),
    word("error", nullable=True),
    moment("error_at", nullable=True),
    comment="How far each of Kahuna's logs was read: without end (pull), of before (backfill), or for a run",
)

run_batches = Table(
    "run_batches",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("batch_id", Uuid, primary_key=True),
    comment="The batches of log pages that a reconciliation had read",
)

log_bounces = Table(
    "log_bounces",
    metadata,
    word("address", primary_key=True),
    word("namespace", primary_key=True),
    seconds("occurred_at", nullable=False, primary_key=True),
    Column("batch_id", Uuid, nullable=False),
    Column("entry_index", Integer, nullable=False),
    comment="Soft bounces that only a log told of so far: a callback may still come, and count for them",
)

log_evidence = Table(
    "log_evidence",
    metadata,
    word("address", primary_key=True),
    word("namespace", primary_key=True),
    word("reason", primary_key=True),
    seconds("occurred_at", nullable=False, primary_key=True),
    Column("timed", Boolean, nullable=False),
    moment("noted_at"),
    Index("log_evidence_noted", "noted_at", postgresql_using="brin"),
    comment="Records of Kahuna's logs that made no fact since a callback had told it: they stand if that is undone",
)

merges = Table(
    "merges",
    metadata,
    word("address", primary_key=True),
    word("channel", primary_key=True),
    word("namespace", primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    word("side"),
    seconds("occurred_at"),
    Column("record", JSONB, nullable=False),
    moment("recorded_at"),
    Index("merges_recorded", "recorded_at", postgresql_using="brin"),
    comment="Users that Kahuna made one, noted on every address that they had",
)

violations = Table(
    "violations",
    metadata,
    word("address", primary_key=True),
    word("channel", primary_key=True),
    word("namespace", primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    moment("sent_at"),
    word("campaign", nullable=True),
    Column("campaign_id", BigInteger, autoincrement=False),
    word("known_by"),
    moment("known_since"),
    word("reason"),
    seconds("occurred_at", nullable=False),
    Column("evidence", JSONB, nullable=False),
    moment("found_at"),
    CheckConstraint("known_by in ('kahuna', 'us')", name="violations_known_by"),
    Index("violations_sent", "namespace", "sent_at", "digest", "address"),
    comment="Messages that Kahuna sent to an address after a stop was in force, with both pieces of evidence",
)
