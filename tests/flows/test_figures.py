"""Facts are counted by reason as far as they are told apart, and callbacks by how many shared a transaction."""

from typing import Any

from service.telemetry import Metrics
from tests.flows.speaking import World


def shown(metrics: Metrics) -> dict[tuple[str, str], float]:
    """The facts by reason and outcome."""
    [family] = metrics.facts.collect()
    return {
        (sample.labels["reason"], sample.labels["outcome"]): sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def entry(number: int, reason: str = "unsub") -> dict[str, Any]:
    return {"email": f"a{number}@example.com", "reason": reason, "timestamp": 1_700_000_000}


async def test_new_ones_and_known_ones(world: World) -> None:
    await world.callback("email", [entry(1), entry(2), entry(3, "spam"), entry(4, "unheard-of"), entry(5)])
    assert shown(world.metrics) == {("unsubscribe", "new"): 3, ("complaint", "new"): 1}
    # The same again is known as a whole; of one reason both are told, of several they are not told apart.
    await world.callback("email", [entry(1), entry(2), entry(3, "spam"), entry(4, "unheard-of"), entry(5)])
    await world.callback("email", [entry(1), entry(6)])
    await world.callback("email", [entry(1), entry(7, "spam")])
    assert shown(world.metrics) == {
        ("unsubscribe", "new"): 4,
        ("unsubscribe", "known"): 4,
        ("unsubscribe", "mixed"): 1,
        ("complaint", "new"): 1,
        ("complaint", "known"): 1,
        ("complaint", "mixed"): 1,
    }


async def test_a_large_one_counts_as_well_and_a_group_by_its_size(world: World) -> None:
    await world.callback("email", [entry(number, "blocked") for number in range(300)])
    assert shown(world.metrics) == {("blocked", "new"): 300}
    await world.callback("email", [entry(1)])
    [sizes] = world.metrics.groups.collect()
    assert {sample.value for sample in sizes.samples if sample.name.endswith("_count")} == {1}
