"""Owns the judgement: whether what both sides hold at the end of a history is what the rules say."""

from collections import Counter

from service.domain.addresses import Channel
from tests.convergence.history import History
from tests.convergence.oracle import WORD_OF, agreed
from tests.convergence.stage import Found


def judge(one: History, found: Found, counts: Counter[str]) -> list[str]:
    """What is not as it must be, in words; what was met on the way is counted."""
    faults: list[str] = []
    for channel, address in sorted({(said.channel, said.address) for said in one.said}):
        faults += [f"{address}: {fault}" for fault in _judged(channel, address, found, counts)]
    return faults


def _judged(channel: Channel, address: str, found: Found, counts: Counter[str]) -> list[str]:
    key = (channel, address)
    there, here = found.there[key], found.here[key]
    held = {word: action for word, (action, _) in there.items()}
    must = agreed(channel, found.words[key], held, found.now)
    lines = {_word(channel, slot): state for slot, state in found.second.get(key, {}).items()}
    beyond = {word for word, state in lines.items() if state in ("refused", "unsupported")}
    counts.update(("addresses", "suppressed" if here else "permitted"))
    counts.update(lines.values())
    faults = [f"a second run finds {word or channel} {state}" for word, state in lines.items() if word not in beyond]
    faults += [f"a correction is {state}" for about, state in found.open_corrections if about == address]
    if here != must.suppressed and not must.doubtful:
        faults.append(f"{'suppressed' if here else 'permitted'} here, but the rules say otherwise")
    for word in must.stopped - beyond:
        if held.get(word) != "stop" and not _unheard(key, word, found, counts):
            faults.append(f"Kahuna does not hold {word or 'the stop'}, though it must")
    too_much = channel == "sms" and not here and held.get(None) == "stop" and None not in beyond
    if too_much and not _unheard(key, None, found, counts):
        faults.append("Kahuna holds a stop that it should not")
    if held.get(None) != "stop" and _stopped_last(key, found) and not _like_ours(key, found, counts):
        faults.append("Kahuna lost a STOP that nobody ever told")
    silent = {word for word in must.unsayable if lines.get(word) != "unsupported"}
    if silent:
        faults.append(f"what nobody can tell Kahuna to drop is not listed: {sorted(map(str, silent))}")
    return faults


def _stopped_last(key: tuple[Channel, str], found: Found) -> bool:
    """Whether the last word of all on a number is a STOP that was never told. An opt-in that a person here refused is a
    word all the same: Kahuna heard it."""
    clears = [one.at for one in (*found.words[key], *found.unheard[key], *found.refused[key]) if not one.stops]
    return any(one.stops and one.at > max(clears, default=0) for one in found.unheard[key])


def _like_ours(key: tuple[Channel, str], found: Found, counts: Counter[str]) -> bool:
    """Whether that STOP has the very second of a stop of ours that Kahuna was told. In its slot the two are one: a
    consent that takes ours back takes back both, and neither side can know of the other."""
    last = max(one.at for one in found.unheard[key] if one.stops)
    if (key[1], last) not in found.ours:
        return False
    counts.update(("a STOP never told in the second of a stop of ours",))
    return True


def _unheard(key: tuple[Channel, str], word: str | None, found: Found, counts: Counter[str]) -> bool:
    """Whether Kahuna's last word on a number is one that nobody ever told: its callback is lost, and no log has it."""
    at = found.there[key].get(word, ("", 0))[1]
    if at not in {said.at for said in found.unheard[key]}:
        return False
    counts.update(("numbers about which Kahuna's last word was never told",))
    return True


def _word(channel: Channel, slot: str) -> str | None:
    return WORD_OF[slot] if channel == "email" else None
