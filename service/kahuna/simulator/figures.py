"""The APIs that look back on campaigns: User/Campaign and Campaign Statistics.

Owns how they count. Refuses figures of its own: both count the log's records each time, so nothing can disagree.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from starlette.exceptions import HTTPException

from service.kahuna.simulator.contract import MAX_ITEMS, STATISTICS, UNIQUE_STATISTICS
from service.kahuna.simulator.cursors import cursor, place_of
from service.kahuna.simulator.door import Answer, Call
from service.kahuna.simulator.logs import end_of_day, moment, printed_time
from service.kahuna.simulator.people import People
from service.kahuna.simulator.records import Campaign, Log, Record
from service.kahuna.simulator.world import World


class _Period(msgspec.Struct):
    start_date: str | None = None
    end_date: str | None = None

    def limits(self) -> tuple[int, int | None]:
        """From when to when. A date without a time counts whole."""
        begins = 0 if self.start_date is None else moment(self.start_date)
        if self.end_date is None:
            return begins, None
        ends = moment(self.end_date)
        return begins, ends if ":" in self.end_date else end_of_day(ends)


class _UserQuery(_Period, kw_only=True):
    cursor: str | None = None
    campaign_name: str | None = None
    suite_id: int | None = None
    action: str | None = None
    credentials_list: Annotated[list[dict[str, str]], msgspec.Meta(max_length=MAX_ITEMS)] | None = None


class _UserPlace(msgspec.Struct, frozen=True, tag="user_campaign", array_like=True):
    """Past the user with this id, in the answer to this question."""

    user_id: int
    query: _UserQuery


class _StatisticsQuery(_Period, kw_only=True):
    cursor: str | None = None
    campaign_id: int | None = None


class _StatisticsPlace(msgspec.Struct, frozen=True, tag="campaign_statistics", array_like=True):
    """Past the campaign with this id, in the answer to this question."""

    campaign_id: int
    query: _StatisticsQuery


def tell_user_campaigns(call: Call) -> Answer:
    """Which users campaigns reached and what they did, so many users a page; in production only."""
    if call.env != "p":
        raise HTTPException(400, "The sandbox is not supported")
    query = call.read(_UserQuery)
    place = _UserPlace(0, query) if query.cursor is None else place_of(call, query.cursor, _UserPlace)
    if place.query == _UserQuery():
        raise HTTPException(400, "Say which campaign, time or users")
    call.world.now()
    if experience := _experience(call.world, place.query):
        return Answer({"records": experience, "more_records": False, "cursor": ""})
    return Answer(_user_page(call, place))


def tell_statistics(call: Call) -> Answer:
    """Figures of one campaign, or of all; that the campaign may be left out is assumed."""
    query = call.read(_StatisticsQuery)
    place = _StatisticsPlace(0, query) if query.cursor is None else place_of(call, query.cursor, _StatisticsPlace)
    call.world.now()
    wanted = place.query.campaign_id
    if wanted is not None and call.world.campaigns.get(wanted) is None:
        raise HTTPException(400, "campaign_id does not exist")
    left = sorted(
        (one for one in call.world.campaigns if one.campaign_id > place.campaign_id),
        key=lambda campaign: campaign.campaign_id,
    )
    chosen = [one for one in left if wanted in (None, one.campaign_id)]
    page = chosen[: call.kahuna.config.page_size]
    more = len(chosen) > len(page)
    figures = _figures(call.world.log, place.query)
    return Answer(
        {
            "campaigns": [_printed_figures(campaign, figures[campaign.campaign_id]) for campaign in page],
            "more_records": more,
            "cursor": cursor(call, _StatisticsPlace(page[-1].campaign_id, place.query)) if more else "",
        }
    )


def _experience(world: World, query: _UserQuery) -> list[dict[str, str]]:
    """The e-mails of an Experience, if nothing but its name is asked for. Their form is not known."""
    campaign = world.campaigns.named(query.campaign_name or "")
    if campaign is None or campaign.type != "experience" or query != _UserQuery(campaign_name=query.campaign_name):
        return []
    return [{"title": email.title, "subject": email.subject} for email in campaign.emails]


def _user_page(call: Call, place: _UserPlace) -> dict[str, Any]:
    by_user = _records_by_user(call.world, place)
    ids = sorted(by_user)
    page = ids[: call.kahuna.config.page_size]
    more = len(ids) > len(page)
    records = []
    for user_id in page:
        person = call.world.people.current(user_id)
        if person is not None:
            campaigns = [_printed_record(record) for record in by_user[user_id]]
            records.append({"credentials": person.credentials, "campaigns": campaigns})
    following = cursor(call, _UserPlace(page[-1], place.query)) if more else ""
    return {"records": records, "more_records": more, "cursor": following}


def _records_by_user(world: World, place: _UserPlace) -> Mapping[int, list[Record]]:
    """The records of the users that are still to be told of. Who was merged is told of under the older record."""
    meant = _meant(world.people, place.query)
    by_user: dict[int, list[Record]] = defaultdict(list)
    for record in _within(world.log, place.query):
        if not _fits(record, place.query):
            continue
        person = world.people.current(record.user_id)
        if person is not None and person.id > place.user_id and (meant is None or person.id in meant):
            by_user[person.id].append(record)
    return by_user


def _meant(people: People, query: _UserQuery) -> set[int] | None:
    if query.credentials_list is None:
        return None
    return {person.id for credentials in query.credentials_list for person in people.find(credentials)}


def _fits(record: Record, query: _UserQuery) -> bool:
    campaign = record.campaign
    return (
        query.action in (None, record.action)
        and (query.campaign_name is None or (campaign is not None and campaign.name == query.campaign_name))
        and (query.suite_id is None or (campaign is not None and campaign.suite_id == query.suite_id))
    )


def _printed_record(record: Record) -> dict[str, Any]:
    campaign = record.campaign
    told = {} if campaign is None else {"campaign": campaign.name, "campaign_id": campaign.campaign_id}
    return told | {"action": record.action, "timestamp": printed_time(record.at)}


def _within(log: Log, period: _Period) -> Iterator[Record]:
    begins, ends = period.limits()
    for entry in log:
        if isinstance(entry, Record) and begins <= entry.at and (ends is None or entry.at <= ends):
            yield entry


def _figures(log: Log, query: _StatisticsQuery) -> Mapping[int, Counter[str]]:
    """By campaign, how often each thing was written down."""
    figures: dict[int, Counter[str]] = defaultdict(Counter)
    seen: set[tuple[int, str, int]] = set()
    for record in _within(log, query):
        if record.campaign is None:
            continue
        campaign_id = record.campaign.campaign_id
        counter = STATISTICS[record.category].get(record.action)
        if counter is not None:
            figures[campaign_id][counter] += 1
        unique = UNIQUE_STATISTICS.get((record.category, record.action))
        if unique is not None and (campaign_id, unique, record.user_id) not in seen:
            seen.add((campaign_id, unique, record.user_id))
            figures[campaign_id][unique] += 1
    return figures


def _printed_figures(campaign: Campaign, counted: Mapping[str, int]) -> dict[str, Any]:
    """Every counter of the channel, those without an event too."""
    names = [*STATISTICS[campaign.channel].values()]
    names += [name for (category, _), name in UNIQUE_STATISTICS.items() if category == campaign.channel]
    return {
        "campaign_id": campaign.campaign_id,
        "campaign": campaign.name,
        "channel": campaign.channel,
        "stats": {name: counted.get(name, 0) for name in names},
    }
