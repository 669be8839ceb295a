"""From a callback to its correction in one trace, through the database, and out to a collector."""

import asyncio
import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from service import tracing, worker
from service.flows import ingest, push
from service.kahuna import NO_RETRY, Credentials, KahunaClient
from service.settings import Settings
from service.spans import Span, Tracer
from service.store.database import Database
from service.telemetry import Metrics
from tests.acceptance.running import until
from tests.flows.speaking import KEYS, World
from tests.test_processes import running
from tests.test_spans import SAMPLED, SPAN_ID, TRACE_ID
from tests.web.harness import Site, opened, signature

BALANCER = {"traceparent": SAMPLED, "X-Request-ID": "the-balancer-s-id"}


@dataclass
class Traced:
    """A service whose spans are kept, and the Kahuna of its pushes."""

    site: Site
    world: World
    tracer: Tracer
    spans: list[Span]

    async def sms(self, *entries: dict[str, Any], **headers: str) -> Any:
        """The answer to a callback with these entries and headers."""
        body = json.dumps(entries).encode()
        headers = {"X-Kahuna-Signature": signature(body, "sms"), **headers}
        return await self.site.client.post("/webhooks/default/sms", content=body, headers=headers)

    async def push(self) -> bool:
        """One round of the worker's push."""
        credentials = Credentials("http://kahuna.test", "s", KEYS.secret_key, KEYS.api_key)
        async with KahunaClient(credentials, transport=self.world.wire, retry=NO_RETRY) as client:
            return await push.push_due(replace(self.world.pusher(client), tracer=self.tracer), "sms")

    def named(self, name: str) -> list[Span]:
        """The spans of this name."""
        return [span for span in self.spans if span.name == name]


@pytest.fixture
async def traced(settings: Settings, database: Database) -> Any:
    spans: list[Span] = []
    tracer = Tracer(spans.append)
    world = World(database, settings)
    async with opened(settings, tracer=tracer) as site, world.control:
        yield Traced(site, world, tracer, spans)


async def contradicted(traced: Traced, **headers: str) -> Any:
    """A stop of ours that Kahuna holds, and a callback that tells of an opt-in after it: the stop is owed again."""
    now = traced.world.clock.seconds
    await traced.world.stop("sms", "15550100001", "do_not_call", at=now - 100)
    await traced.push()
    answer = await traced.sms({"number": "15550100001", "timestamp": now - 50, "opt-in": True}, **headers)
    assert answer.json()["state"] == "applied", answer.text
    return answer.json()


async def test_callback_to_correction_is_one_trace(traced: Traced) -> None:
    answer = await contradicted(traced, **BALANCER)
    assert traced.spans == traced.named("batch.apply") + traced.named("POST /webhooks/{namespace}/sms")
    [applied], [request] = traced.named("batch.apply"), traced.named("POST /webhooks/{namespace}/sms")
    assert request.place.trace_id == int(TRACE_ID, 16)
    assert request.parent == int(SPAN_ID, 16)
    assert request.told == {
        "http.request.method": "POST",
        "http.route": "/webhooks/{namespace}/sms",
        "http.response.status_code": 200,
        "kahuna_sync.request_id": "the-balancer-s-id",
    }
    assert applied.parent == request.place.span_id
    assert applied.told == {"kahuna_sync.batch_id": answer["batch_id"], "kahuna_sync.group_callbacks": 1}
    correction = (await traced.world.corrections("pending"))[0]
    assert (correction.request_id, correction.traceparent) == ("the-balancer-s-id", request.place.traceparent)
    assert await traced.push()
    [pushed], [call], [ours] = (
        traced.named(name) for name in ("corrections.push", "kahuna sms sync", "correction.push")
    )
    # The worker's own trace: a push may carry what many requests have caused.
    assert pushed.place.trace_id == call.place.trace_id != request.place.trace_id
    assert call.parent == pushed.place.span_id
    assert call.links == [request.place]
    assert call.kind == "client"
    sent = (await traced.world.corrections("sent"))[-1]
    assert call.told["kahuna_sync.call"] == sent.evidence["request_id"]
    # And in the trace of the callback, what became of it.
    assert (ours.place.trace_id, ours.parent) == (request.place.trace_id, request.place.span_id)
    assert ours.links == [call.place]
    assert ours.told == call.told
    assert (ours.told["kahuna_sync.answer"], ours.told["kahuna_sync.entries"]) == ("ok", 1)
    assert "15550100001" not in repr(traced.spans)


async def test_what_is_not_recorded_leaves_no_span_but_its_request_id(traced: Traced) -> None:
    await contradicted(traced, traceparent=SAMPLED[:-1] + "0")
    correction = (await traced.world.corrections("pending"))[0]
    assert correction.traceparent is None
    [batch] = await traced.world.query("select headers from batches")
    assert "traceparent" not in batch.headers
    answer = await traced.site.client.get(
        f"/v1/admin/corrections/{correction.id}", headers=await traced.site.token("admin")
    )
    # Nobody gave the request an id, so it has one of ours.
    assert answer.json()["request_id"] == correction.request_id
    assert len(correction.request_id) == 32
    await traced.push()
    assert traced.spans == []


async def test_of_callbacks_that_share_a_transaction_each_has_its_own_trace(
    settings: Settings, database: Database
) -> None:
    spans: list[Span] = []
    async with opened(settings, tracer=Tracer(spans.append, 1.0)) as site:
        traced = Traced(site, World(database, settings), Tracer(), spans)
        now = traced.world.clock.seconds
        numbers = [f"1555010{number:04d}" for number in range(20)]
        async with traced.world.control:
            for number in numbers:
                await traced.world.stop("sms", number, "do_not_call", at=now - 100)
            await traced.push()
            tasks = [
                traced.sms({"number": n, "timestamp": now - 50, "opt-in": True}, **{"X-Request-ID": f"id-{n}"})
                for n in numbers
            ]
            for task in [asyncio.ensure_future(one) for one in tasks]:
                assert (await task).status_code == 200
            waiting = await traced.world.corrections("pending")
    assert {row.address: row.request_id for row in waiting} == {number: f"id-{number}" for number in numbers}
    by_id = {span.told["kahuna_sync.request_id"]: span for span in traced.named("POST /webhooks/{namespace}/sms")}
    assert {row.traceparent for row in waiting} == {span.place.traceparent for span in by_id.values()}
    assert all(row.traceparent == by_id[row.request_id].place.traceparent for row in waiting)
    applied = traced.named("batch.apply")
    assert {span.parent for span in applied} == {span.place.span_id for span in by_id.values()}
    assert max(span.told["kahuna_sync.group_callbacks"] for span in applied) > 1


async def test_a_batch_that_was_only_recorded_is_applied_in_its_trace(traced: Traced) -> None:
    async with traced.site.broken("facts"):
        answer = await traced.sms({"number": "15550100001", "timestamp": traced.world.clock.seconds}, **BALANCER)
    assert answer.json()["state"] == "recorded"
    before = len(traced.spans)
    rules = ingest.rules_of(traced.site.settings)
    assert await ingest.apply_recorded(traced.world.database, rules, traced.world.clock, traced.tracer)
    [applied] = traced.spans[before:]
    assert (applied.name, applied.place.trace_id) == ("batch.apply", int(TRACE_ID, 16))


async def recorded(traced: Traced, **headers: str) -> tuple[dict[str, Any], str]:
    """A callback that is only recorded, and means a correction: its entry, and the id that the answer carried."""
    now = traced.world.clock.seconds
    await traced.world.stop("sms", "15550100001", "do_not_call", at=now - 100)
    await traced.push()
    entry = {"number": "15550100001", "timestamp": now - 50, "opt-in": True}
    async with traced.site.broken("facts"):
        answer = await traced.sms(entry, **headers)
    assert answer.json()["state"] == "recorded"
    return entry, answer.headers["X-Request-ID"]


@pytest.mark.parametrize("given", ["the-balancer-s-id", "ann@example.com", "a" * 5000, ""])
async def test_what_is_applied_later_keeps_the_id_that_the_answer_carried(traced: Traced, given: str) -> None:
    _, carried = await recorded(traced, **({"X-Request-ID": given} if given else {}))
    assert (carried == given) is (given == "the-balancer-s-id")
    with capture_logs() as log:
        assert await ingest.apply_recorded(traced.world.database, traced.world.rules, traced.world.clock)
        [correction] = await traced.world.corrections("pending")
        assert await traced.push()
    assert correction.request_id == carried
    [applied] = [line for line in log if line["event"] == "batch.applied"]
    [sent] = [line for line in log if line["event"] == "corrections.sent"]
    assert (applied["request_id"], sent["requests"]) == (carried, [carried])
    answer = await traced.site.client.get(
        f"/v1/admin/corrections/{correction.id}", headers=await traced.site.token("admin")
    )
    assert [call["id"] for call in answer.json()["calls"]] == [sent["call"]]
    assert answer.json()["request_id"] == carried


async def test_a_redelivery_that_applies_it_leaves_it_with_the_request_that_brought_it(traced: Traced) -> None:
    entry, carried = await recorded(traced)
    assert (await traced.sms(entry, **{"X-Request-ID": "a-later-one"})).json()["state"] == "applied"
    assert [row.request_id for row in await traced.world.corrections("pending")] == [carried]


async def test_what_an_older_release_recorded_is_traced_to_the_redelivery_at_least(traced: Traced) -> None:
    entry, _ = await recorded(traced)
    await traced.world.execute("update batches set request_id = null")
    assert (await traced.sms(entry, **{"X-Request-ID": "a-later-one"})).json()["state"] == "applied"
    assert [row.request_id for row in await traced.world.corrections("pending")] == ["a-later-one"]


async def test_a_replay_that_applies_it_leaves_it_with_the_request_that_brought_it(traced: Traced) -> None:
    _, carried = await recorded(traced)
    [batch] = await traced.world.query("select id from batches where state = 'recorded'")
    headers = await traced.site.token("admin")
    page = await traced.site.client.get(f"/v1/admin/batches/{batch.id}", headers=headers)
    assert carried not in page.text, "what was received is shown, not what was given to it"
    done = await traced.site.client.post(f"/v1/admin/batches/{batch.id}/replay", headers=headers)
    assert done.json()["new"] == 1
    assert [row.request_id for row in await traced.world.corrections("pending")] == [carried]


async def test_questions_have_spans_without_the_address_and_probes_have_none(
    settings: Settings, database: Database
) -> None:
    spans: list[Span] = []
    async with opened(settings, tracer=Tracer(spans.append, 1.0)) as site:
        token = await site.token("read")
        assert (await site.client.get("/v1/suppressions/email/ann@example.com", headers=token)).status_code == 200
        assert (await site.client.get("/ann@example.com")).status_code == 404
        for probe in ("/livez", "/readyz", "/metrics"):
            await site.client.get(probe)
    assert [span.name for span in spans] == ["GET /v1/suppressions/{channel}/{address:path}", "GET none"]
    assert "ann@" not in repr(spans)


async def test_what_the_worker_does_is_told_and_what_it_looks_for_in_vain_is_not(
    settings: Settings, database: Database
) -> None:
    spans: list[Span] = []
    world, stop, pushed = World(database, settings), asyncio.Event(), asyncio.Event()

    def take(span: Span) -> None:
        spans.append(span)
        if span.name == "corrections.push":
            pushed.set()

    @asynccontextmanager
    async def trace(_: Metrics) -> AsyncIterator[Tracer]:
        yield Tracer(take, 1.0)

    def client(*_: Any) -> KahunaClient:
        credentials = Credentials("http://kahuna.test", "s", KEYS.secret_key, KEYS.api_key)
        return KahunaClient(credentials, transport=world.wire, retry=NO_RETRY)

    async with world.control:
        await world.stop("sms", "15550100001", "do_not_call")
        working = asyncio.create_task(worker.run(settings, stop, client, world.clock, lambda: 0.0, trace=trace))
        async with asyncio.timeout(30):
            await pushed.wait()
        stop.set()
        await working
    names = [span.name for span in spans]
    assert "worker upkeep" in names
    assert "worker apply" not in names
    assert "15550100001" not in repr(spans)


class Collector(ThreadingHTTPServer):
    """Takes spans as a collector does, or with this status."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.taken: list[Any] = []
        super().__init__(("127.0.0.1", 0), _Taking)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"


class _Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces" and self.server.status == 200:
            self.server.taken.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def collecting(status: int = 200) -> Iterator[Collector]:
    """A collector, while the block lasts."""
    with Collector(status) as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.01,))
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


def counted(metrics: Metrics) -> dict[str, float]:
    """What became of the spans."""
    [family] = metrics.spans.collect()
    return {s.labels["outcome"]: s.value for s in family.samples if s.name.endswith("_total")}


async def test_spans_reach_a_collector(database_url: str, tmp_path: Path) -> None:
    with collecting() as collector:
        settings = {"TRACES_URL": collector.url, "TRACES_SAMPLE_RATIO": "1"}
        with running("web", database_url, tmp_path, ["PORT", "ADMIN_PORT"], **settings) as web:
            until(lambda: web.answers("/readyz", "ADMIN_PORT", 200), "ready")
            assert web.callback().status_code == 200
            web.process.terminate()
            # What had not been sent yet goes out last.
            assert web.end() == 0
    [resource] = [one for request in collector.taken for one in request.resource_spans]
    told = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (told["service.name"], told["kahuna_sync.process"]) == ("kahuna-sync", "web")
    spans = {span.name: span for scope in resource.scope_spans for span in scope.spans}
    assert set(spans) == {"batch.apply", "POST /webhooks/{namespace}/email/{token}"}
    applied, request = spans["batch.apply"], spans["POST /webhooks/{namespace}/email/{token}"]
    assert (applied.trace_id, applied.parent_span_id) == (request.trace_id, request.span_id)
    assert request.end_time_unix_nano >= applied.end_time_unix_nano >= applied.start_time_unix_nano
    assert "a-callback-token" not in repr(collector.taken)
    assert "ann" not in repr(collector.taken)


@pytest.mark.parametrize("status", [400, 200])
async def test_what_a_collector_does_not_take_is_counted(status: int) -> None:
    metrics = Metrics()
    with collecting(status) as collector:
        url = f"{collector.url}/{'v1/traces' if status == 200 else 'elsewhere'}"
        count = lambda outcome, number: metrics.spans.add(outcome, count=number)  # noqa: E731
        async with tracing.tracer(url, 1.0, "web", count) as tracer:
            for _ in range(3):
                with tracer.within(tracer.root("work")):
                    pass
    assert counted(metrics) == {"sent" if status == 200 else "dropped": 3}


async def test_nobody_waits_for_a_collector_and_what_finds_no_room_is_counted() -> None:
    metrics = Metrics()
    exporter = InMemorySpanExporter()
    outlet = tracing.Outlet(exporter, "web", lambda outcome, number: metrics.spans.add(outcome, count=number))
    tracer = Tracer(outlet.put, 1.0)
    for _ in range(tracing.QUEUE + 5):
        with tracer.within(tracer.root("work")):
            pass
    async with outlet.running():
        pass
    assert counted(metrics) == {"sent": tracing.QUEUE, "dropped": 5}
    assert len(exporter.get_finished_spans()) == tracing.QUEUE


BLOCKED = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
sys.argv[0:] = ["kahuna-sync", "web"]
from service.__main__ import main
main()
"""
"""The web process of an installation without the extra."""


def test_without_the_extra_it_runs_and_says_what_traces_take(database_url: str, tmp_path: Path) -> None:
    with running("web", database_url, tmp_path, ["PORT", "ADMIN_PORT"], code=BLOCKED) as web:
        until(lambda: web.answers("/readyz", "ADMIN_PORT", 200), "ready")
        assert web.callback().status_code == 200
        web.process.terminate()
        assert web.end() == 0
    settings = {"TRACES_URL": "http://127.0.0.1:9"}
    for workers in ("1", "2"):
        with running("web", database_url, tmp_path, ["PORT"], code=BLOCKED, WEB_WORKERS=workers, **settings) as web:
            assert web.end() == 2
            told = web.log.read_text()
            assert "TRACES_URL is set, but OpenTelemetry is not installed: install requirements-traces.lock" in told


def test_without_traces_nothing_of_opentelemetry_is_imported() -> None:
    code = "import service.__main__, sys; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert told.stdout.strip() == "[]"
