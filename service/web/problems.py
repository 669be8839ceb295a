"""Owns the words for everything that a call may be refused with: each slug, its status, and the sentence that tells
what is wrong and what to send instead. A slug that is not here is never answered: a test compares them with the code.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Problem(NamedTuple):
    """What a slug means. The `detail` of an answer may say more than `says` does, never something else."""

    status: int
    says: str


PROBLEMS: Final[Mapping[str, Problem]] = {
    # What was asked.
    "unknown-parameter": Problem(
        400, "A query parameter that this call does not take; the detail lists those it takes."
    ),
    "repeated-parameter": Problem(400, "A query parameter is given twice; send it once."),
    "namespace-required": Problem(400, "There are several namespaces; say which with ?namespace=."),
    "bad-encoding": Problem(400, "The path is not percent-encoded UTF-8; encode the address again."),
    "not-json": Problem(400, "There is no body, or it is not JSON; send a JSON document."),
    "not-an-array": Problem(400, "The body is JSON, but not an array of entries."),
    "not-gzip": Problem(400, "The body is not gzip, as Content-Encoding says, or it is cut off."),
    "line-too-long": Problem(400, "A line is over the limit that the detail names; send one address a line."),
    # Who asks.
    "unauthenticated": Problem(401, "No API token, or one that is unknown, revoked or expired; send another."),
    "signature-missing": Problem(401, "The header X-Kahuna-Signature is missing."),
    "signature-wrong": Problem(401, "The signature is not that of these addresses with this namespace's key."),
    "callback-token": Problem(401, "The callback token at the end of the path is missing or wrong."),
    "missing-scope": Problem(403, "The API token lacks the scope that the detail names; ask for one that has it."),
    "other-namespace": Problem(403, "The API token speaks of another namespace only."),
    "other-channel": Problem(403, "The API token speaks of another channel only."),
    "rate-limited": Problem(429, "The API token made too many calls; wait as long as Retry-After says."),
    # What it is about.
    "not-found": Problem(404, "There is no such thing; the detail says where to find those that there are."),
    "unknown-namespace": Problem(404, "There is no such namespace; check its spelling."),
    "unknown-channel": Problem(404, "There is no such channel; use email or sms."),
    "method-not-allowed": Problem(405, "This path does not take this method; the Allow header names those it takes."),
    "already-decided": Problem(409, "It was decided before; a decision stands."),
    "being-decided": Problem(409, "A decision about many lines of this run goes on; ask again when it is through."),
    "no-plan": Problem(409, "The run is no plan whose lines can be decided; the detail says what it is."),
    "not-revertible": Problem(409, "The run is in no state in which it can be taken back; the detail says in which."),
    "batch-gone": Problem(409, "The batch has passed its retention; what it said cannot be read again."),
    "import-running": Problem(409, "The import still takes lines in; wait until it has ended."),
    "newer-stop": Problem(409, "A stop at or after this consent stands; only a newer consent ends it."),
    "cursor-expired": Problem(
        410, "Changes after this cursor are not kept any more, or the database is another; begin again with an export."
    ),
    # What was sent.
    "body-too-slow": Problem(408, "The body did not arrive in time; send it again."),
    "too-many-entries": Problem(413, "The callback has more entries than anybody sends; send fewer at a time."),
    "body-too-large": Problem(413, "The body is over the limit that the detail names; send less at a time."),
    "path-too-long": Problem(414, "The path and the query are over the limit that the detail names."),
    "unsupported-encoding": Problem(415, "Send the body as it is, or with Content-Encoding: gzip."),
    "unsupported-media-type": Problem(
        415, "This call takes no body of this Content-Type; the detail lists those it takes."
    ),
    "invalid-parameter": Problem(422, "A query parameter does not have the form that the detail asks for."),
    "invalid-cursor": Problem(
        422, "The cursor is none that an earlier answer gave; send its `next`, or begin without one."
    ),
    "two-namespaces": Problem(422, "The path and the body name two namespaces; name one."),
    "invalid-time": Problem(422, "A time is not RFC 3339 with an offset; send one such as 2026-01-31T12:00:00Z."),
    "invalid-body": Problem(422, "The body is JSON, but not what this call takes; the detail names the field."),
    "channel-required": Problem(422, "Say of which channel the lines are, with ?channel=email or ?channel=sms."),
    "nothing-chosen": Problem(422, "Say which corrections are meant: their ids, or a filter with a state, not both."),
    "impossible-window": Problem(422, "since must come before until, and not more days than the detail says."),
    "said-twice": Problem(422, "A JSON body says its channel and its purpose itself; leave them out of the query."),
    "at-required": Problem(422, "basis asks about an earlier moment; say which with at, or leave basis out."),
    "future-time": Problem(422, "at is in the future; nobody knows yet."),
    "impossible-time": Problem(422, "occurred_at, or as_of, is no time at which this can have happened."),
    "impossible-address": Problem(422, "This cannot be an address of this channel; the detail says why."),
    "unknown-reason": Problem(422, "No address of this channel has this reason; the detail lists those it can have."),
    "not-for-this-source": Problem(
        422, "since is for the source logs, addresses are for profiles, and logs are of e-mail; the detail says what."
    ),
    "not-text": Problem(422, "The list is no text, but a spreadsheet or the like; save it as CSV in UTF-8."),
    "broken-list": Problem(422, "The list is damaged or cut off at the place that the detail names; send it whole."),
    "empty-list": Problem(422, "There is nothing in the list."),
    "no-header": Problem(422, "The list has several columns, and no first line that names them."),
    "no-address-column": Problem(422, "No column of the list is known to hold addresses; name one of them address."),
    "reason-required": Problem(422, "Nothing tells why the addresses are listed; say reason."),
    # What we cannot do.
    "internal-error": Problem(500, "This is a fault of ours; it is logged with the request id."),
    "storage-unavailable": Problem(503, "Nothing was done, since the database cannot be reached; try again."),
    "storage-outdated": Problem(
        503, "Nothing was done, since the database lacks a migration; the operator must run it."
    ),
    "storage-busy": Problem(503, "Nothing was done, since others held what this needed; try again."),
}


def document(slug: str, detail: str, status: int) -> dict[str, object]:
    """An RFC 9457 problem; `type` is the slug."""
    return {"type": slug, "title": slug.replace("-", " ").capitalize(), "status": status, "detail": detail}
