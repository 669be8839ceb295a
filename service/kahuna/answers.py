"""What each API's answer means: from a status and a body to the typed answer, or to the error that it is.

Refuses to call. Where the contract is silent, the reader takes what it can and keeps the rest in `extra`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from service.kahuna.calling import Answer
from service.kahuna.contract import Contract, renamed
from service.kahuna.errors import UnreadableAnswer
from service.kahuna.paging import object_of
from service.kahuna.reading import read, read_each
from service.kahuna.retrieval import (
    CampaignFigures,
    CampaignRecord,
    EmailRecord,
    InAppRecord,
    MergeRecord,
    UserCampaignRecord,
    UserInfoAnswer,
    UserProfile,
)
from service.kahuna.sending import AdaptiveAnswer, DeleteAnswer, FlexAnswer, JobStatus, Outcome, ServerAnswer
from service.kahuna.wire import SyncAnswer, read_sync_answer


def server(answer: Answer) -> ServerAnswer:
    """The Server API fails under any status, and says so in the body."""
    if not answer.is_success and answer.status != 400:
        raise answer.failure()
    document = _failed_object(answer) if answer.status == 400 else answer.document()
    if not isinstance(document, dict) or not isinstance(document.get("success"), bool):
        raise answer.unreadable("it does not say whether it succeeded")
    if not document["success"]:
        raise answer.refused(document)
    return read(ServerAnswer, document)


def _failed_object(answer: Answer) -> Any:
    """The body of a failed request if it says `success: false`; else the failure is only what its status says."""
    document = common_error(answer)
    if document is None:
        raise answer.failure()
    return document


def common_error(answer: Answer) -> dict[str, Any] | None:
    """The common error object, if the body is one."""
    try:
        document = answer.document()
    except UnreadableAnswer:
        return None
    return document if isinstance(document, dict) and document.get("success") is False else None


def sync(answer: Answer, count: int, names: Contract) -> SyncAnswer:
    """The counts of one request; that they add up to what was sent is all the proof there is."""
    if not answer.is_success:
        raise answer.failure()
    api, status = answer.api.name, answer.status
    return read_sync_answer(answer.body, count, api=api, status=status, errors_name=names.sync_errors)


def outcomes(answer: Answer, count: int, of_one: frozenset[int]) -> list[Outcome]:
    """One outcome for each of `count` items.

    A request for one may be answered by an object instead of a list, and fail by one of the statuses in `of_one`. For
    several, an object speaks of all of them.
    """
    if not answer.is_success:
        document: Any = common_error(answer) if count == 1 and answer.status in of_one else None
        if document is None:
            raise answer.failure()
    else:
        document = answer.document()
    if isinstance(document, dict):
        return _outcome_of_all(answer, document, count)
    if not isinstance(document, list) or len(document) != count:
        raise answer.unreadable("it has not one item for each that was sent")
    return read_each(Outcome, document)


def _outcome_of_all(answer: Answer, document: dict[str, Any], count: int) -> list[Outcome]:
    if not isinstance(document.get("success"), bool):
        raise answer.unreadable("it does not say whether it succeeded")
    if not document["success"] and count > 1:
        raise answer.refused(document)
    return [read(Outcome, document)] * count


def joined(parts: Sequence[list[Outcome]]) -> tuple[Outcome, ...]:
    """The outcomes of several requests as one."""
    return tuple(chain.from_iterable(parts))


def adaptive(answer: Answer) -> AdaptiveAnswer:
    """The job is what the answer is for: without one it is unreadable."""
    document = object_of(answer)
    job_id = _job_id(document.get("job_id"))
    if job_id is None:
        raise answer.unreadable("it names no job")
    return read(AdaptiveAnswer, _without(document, "job_id"), job_id=job_id)


def flex(answer: Answer, names: Contract) -> FlexAnswer:
    """A job if one is named."""
    document = object_of(answer)
    job_id = _job_id(document.get(names.flex_job))
    rest = document if job_id is None else _without(document, names.flex_job)
    return read(FlexAnswer, rest, job_id=job_id)


def _job_id(value: Any) -> str | None:
    """An id may come as a number; what is in a path is its text."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def _without(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


def job_status(answer: Answer, job_id: str, names: Contract) -> JobStatus:
    """The job's state, whatever word it is told by."""
    document = object_of(answer)
    ours = {
        names.job_state: "state",
        names.job_processed: "processed",
        names.job_total: "total",
        names.job_errors: "errors",
    }
    state = document.get(names.job_state)
    rest = _without(document, "job_id") if document.get("job_id") == job_id else document
    complete, failed = state == names.job_complete, state == names.job_failed
    return read(JobStatus, rest, ours, job_id=job_id, complete=complete, failed=failed)


def user_delete(answer: Answer) -> DeleteAnswer:
    """Whether there was such a user."""
    document = _perhaps_missing(answer)
    if not isinstance(document.get("success"), bool):
        raise answer.unreadable("it does not say whether it succeeded")
    return read(DeleteAnswer, document, found=document["success"])


def user_info(answer: Answer, names: Contract) -> UserInfoAnswer:
    """The user. An answer without the field for it is taken for the user itself: no page shows what it looks like."""
    document = _perhaps_missing(answer)
    ours = {
        names.user_info_credentials: "credentials",
        names.user_info_attributes: "attributes",
        names.user_info_devices: "devices",
        names.user_info_events: "events",
    }
    name = names.user_info_user
    if document.get("success") is False or (name in document and document[name] is None):
        return read(UserInfoAnswer, document, user=None)
    if isinstance(document.get(name), dict):
        return read(UserInfoAnswer, _without(document, name), user=read(UserProfile, document[name], ours))
    return UserInfoAnswer(user=read(UserProfile, document, ours))


def _perhaps_missing(answer: Answer) -> dict[str, Any]:
    """The object of a success, or of `success: false` because there is no such user, which is no error. Under a 404 as
    well; without that object a 404 tells of the set-up."""
    document = common_error(answer) if answer.is_success or answer.status == 404 else None
    return document if document is not None and document.get("error_code") == 404 else object_of(answer)


# Records of a page.


def email_records(names: Contract) -> Callable[[list[Any]], list[EmailRecord]]:
    """The reader of Email Logs."""
    ours = {names.email_record_address: "email"} | renamed(names.email_record_fields)
    return partial(read_each, EmailRecord, names=_changed(ours))


def in_app_records(names: Contract) -> Callable[[list[Any]], list[InAppRecord]]:
    """The reader of In App Logs."""
    return partial(read_each, InAppRecord, names=renamed(names.in_app_record_fields))


def merge_records(names: Contract) -> Callable[[list[Any]], list[MergeRecord]]:
    """The reader of User Merge Logs."""
    ours = {
        names.merge_common: "common_credentials",
        names.merge_older: "older_user_credentials",
        names.merge_newer: "newer_user_credentials",
    } | renamed(names.merge_record_fields)
    return partial(read_each, MergeRecord, names=_changed(ours))


def campaign_figures(names: Contract) -> Callable[[list[Any]], list[CampaignFigures]]:
    """The reader of Campaign Statistics."""
    ours = {
        names.statistics_campaign: "campaign_id",
        names.statistics_channel: "channel",
        names.statistics_figures: "stats",
    }
    return partial(read_each, CampaignFigures, names=_changed(ours))


def user_campaigns(names: Contract) -> Callable[[list[Any]], list[UserCampaignRecord]]:
    """The reader of User/Campaign."""
    return lambda items: [_user_campaign(item, names) for item in items]


def _user_campaign(item: Any, names: Contract) -> UserCampaignRecord:
    document = item if isinstance(item, dict) else {"value": item}
    ours = {names.user_campaign_user: "credentials"}
    campaigns = document.get(names.user_campaign_campaigns)
    if not isinstance(campaigns, list):
        return read(UserCampaignRecord, document, ours)
    rest = _without(document, names.user_campaign_campaigns)
    return read(UserCampaignRecord, rest, ours, campaigns=tuple(read_each(CampaignRecord, campaigns)))


def _changed(names: Mapping[str, str]) -> Mapping[str, str]:
    """The names that differ from ours: without any, reading is faster."""
    return {theirs: ours for theirs, ours in names.items() if theirs != ours}
