"""Bodies as the archive keeps them, and the ids of batches."""

import uuid
from datetime import UTC, datetime

import zstandard
from hypothesis import given
from hypothesis import strategies as st

from service.store.batches import TOO_SMALL, compressor, first_id, new_id


@given(st.binary(max_size=3 * TOO_SMALL) | st.binary(max_size=8).map(lambda part: part * 100))
def test_any_body_comes_back(body: bytes) -> None:
    kept = compressor()(body)
    assert zstandard.decompress(kept, max_output_size=max(len(body), 1)) == body
    assert zstandard.ZstdDecompressor().decompressobj().decompress(kept) == body


def test_what_can_be_made_smaller_is() -> None:
    assert len(compressor()(b"[" + b'{"reason":"unsub"},' * 100)) < 100


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)), st.integers(0, (1 << 74) - 1))  # noqa: DTZ001 (given its zone below)
def test_ids_are_of_version_7_and_in_the_order_of_receipt(moment: datetime, chance: int) -> None:
    at = moment.replace(tzinfo=UTC)
    made = new_id(at, chance)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert uuid.UUID(str(made)) == made
    assert first_id(at) <= made
    assert made.int >> 80 == int(at.timestamp() * 1000)
