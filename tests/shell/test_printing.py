"""What of an answer is printed: everything, whatever the vendor calls it."""

import json

from service.kahuna import JobStatus, PushRecord, UserInfoAnswer, UserProfile
from service.shell import printing


def test_a_field_of_another_type_is_printed_as_it_came() -> None:
    record = PushRecord(action="push", extra={"campaign_id": "A7", "credentials": None, "mood": [1]})
    assert printing.told(record) == {"action": "push", "campaign_id": "A7", "credentials": None, "mood": [1]}


def test_what_is_ours_alone_is_not_taken_from_the_vendor() -> None:
    status = JobStatus(job_id="7", state="done", complete=False, extra={"complete": "very", "job_id": 8})
    assert (printing.told(status)["complete"], printing.told(status)["job_id"]) == (False, "7")


def test_answers_within_answers_are_printed_alike() -> None:
    answer = UserInfoAnswer(user=UserProfile(credentials={"email": "ann@example.com"}, extra={"rank": 3}))
    printed = json.loads(printing.line(answer))
    assert printed == {"user": {"credentials": {"email": "ann@example.com"}, "rank": 3}}
