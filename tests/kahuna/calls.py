"""One call of each API, with an address that nobody may be shown."""

from collections.abc import Awaitable, Callable
from typing import Any

from service import kahuna
from service.kahuna import KahunaClient

ADDRESS = "ann@example.com"
OPT_IN = kahuna.SmsSyncEntry("15550100001", opt_in=True)
TIMED = kahuna.SmsSyncEntry("15550100001", 1500000000, opt_in=True)
MESSAGE = kahuna.PushMessage({"email": ADDRESS}, "Hi")
CONFIG = kahuna.CampaignConfig(1, "email")


async def first_page(pages: kahuna.Pages[Any]) -> Any:
    return [record async for record in pages]


Calling = Callable[[KahunaClient], Awaitable[Any]]

UNSAFE: dict[str, Calling] = {
    "server": lambda k: k.server(kahuna.ServerRequest(dev_id="d", event="e", credentials={"email": ADDRESS})),
    "push": lambda k: k.push([MESSAGE]),
    "flex": lambda k: k.flex(kahuna.FlexConfig(1), [kahuna.FlexEvent(ADDRESS)]),
    "adaptive_campaign": lambda k: k.adaptive_campaign(CONFIG, [kahuna.Recipient([ADDRESS])]),
}
SAFE: dict[str, Calling] = {
    "user_attributes": lambda k: k.user_attributes([kahuna.UserAttributes({"email": ADDRESS}, {})]),
    "job_status": lambda k: k.job_status("7"),
    "email_sync": lambda k: k.email_sync([kahuna.EmailSyncEntry("unsub", ADDRESS)]),
    "sms_sync": lambda k: k.sms_sync([TIMED]),
    "user_delete": lambda k: k.user_delete("email", ADDRESS),
    "user_campaign": lambda k: first_page(k.user_campaign(kahuna.CampaignQuery(credentials=[{"email": ADDRESS}]))),
    "user_info": lambda k: k.user_info("email", ADDRESS),
    "user_merge_logs": lambda k: first_page(k.user_merge_logs(cursor=ADDRESS)),
    "push_logs": lambda k: first_page(k.push_logs(cursor=ADDRESS)),
    "in_app_logs": lambda k: first_page(k.in_app_logs(cursor=ADDRESS)),
    "email_logs": lambda k: first_page(k.email_logs(cursor=ADDRESS)),
    "campaign_statistics": lambda k: first_page(k.campaign_statistics(1)),
}
EVERY = UNSAFE | SAFE
