"""Lines out of a body that comes in parts: whole, in order, and never much held, whatever is sent."""

import gzip
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRequest
from service.web.lines import GROUP, HELD, LONGEST_LINE, Splitter


def as_it_is(body: bytes) -> bytes:
    return body


def in_members(body: bytes) -> bytes:
    """As two that were compressed apart and put one behind the other."""
    return gzip.compress(body[: len(body) // 3]) + gzip.compress(body[len(body) // 3 :])


FORMS: dict[str, Callable[[bytes], bytes]] = {"as it is": as_it_is, "gzip": gzip.compress, "members": in_members}


def lines_of(body: bytes, size: int, *, zipped: bool) -> list[bytes]:
    """All lines of a body that comes in parts of this size; never many are given out at once."""
    splitter, found = Splitter(zipped=zipped), list[bytes]()

    def empty() -> None:
        while lines := splitter.take():
            assert len(lines) <= GROUP
            found.extend(lines)

    for start in range(0, len(body), size):
        splitter.feed(body[start : start + size])
        empty()
    splitter.end()
    empty()
    return found


def test_lines_may_end_as_on_windows() -> None:
    assert lines_of(b"a\r\nb\rc\r\n", 100, zipped=False) == [b"a", b"b\rc"]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_mark_before_the_first_line_is_no_part_of_it(size: int, zipped: bool) -> None:
    body = b"\xef\xbb\xbfann@example.com\r\n\xef\xbb\xbfbob@example.com"
    lines = lines_of(gzip.compress(body) if zipped else body, size, zipped=zipped)
    assert lines == [b"ann@example.com", b"\xef\xbb\xbfbob@example.com"]


def expected(body: bytes) -> list[bytes]:
    return body.removesuffix(b"\n").split(b"\n") if body else []


@given(st.lists(st.sampled_from([b"", b"a", b"ann@example.com", b"x" * 300]), max_size=30), st.booleans(), st.data())
def test_any_parts_give_the_same_lines(lines: list[bytes], ended: bool, data: st.DataObject) -> None:
    body = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    name = data.draw(st.sampled_from(sorted(FORMS)))
    packed = FORMS[name](body)
    size = data.draw(st.integers(1, max(1, len(packed))))
    assert lines_of(packed, size, zipped=name != "as it is") == expected(body)


@pytest.mark.parametrize("zipped", [False, True])
def test_many_lines_are_given_out_in_groups(zipped: bool) -> None:
    body = b"\n" * (3 * GROUP) + b"last"
    assert lines_of(gzip.compress(body) if zipped else body, 65536, zipped=zipped) == expected(body)


def test_a_bomb_is_never_unpacked_whole() -> None:
    bomb = gzip.compress(b"a@b\n" * 10_000_000)
    splitter = Splitter(zipped=True)
    splitter.feed(bomb)
    for _ in range(20):
        assert 0 < sum(len(line) + 1 for line in splitter.take()) <= 2 * HELD


@pytest.mark.parametrize("zipped", [False, True])
def test_a_line_without_end_is_refused_before_it_is_held(zipped: bool) -> None:
    body = b"a@b\n" + b"x" * (LONGEST_LINE + 1)
    splitter = Splitter(zipped=zipped)
    splitter.feed(gzip.compress(body) if zipped else body)
    with pytest.raises(BadRequest, match="one address a line"):
        splitter.take()


NO_GZIP: dict[str, bytes] = {
    "nothing": b"",
    "text": b"no gzip",
    "its end is missing": gzip.compress(b"a@b\n", mtime=0)[:-3],
    "more behind it": gzip.compress(b"a@b\n", mtime=0) + b"x",
    "half of it": gzip.compress(bytes(range(200)), mtime=0)[:100],
}


@pytest.mark.parametrize("body", NO_GZIP.values(), ids=NO_GZIP)
def test_what_is_no_whole_gzip_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        lines_of(body, 1000, zipped=True)
    assert refused.value.reason == "not-gzip"


def test_members_that_hold_something_may_be_many() -> None:
    body = b"".join(gzip.compress(b"ann@example.com\n" * 80) for _ in range(50))
    assert len(lines_of(body, 4096, zipped=True)) == 4000


def test_members_that_hold_nothing_are_refused() -> None:
    with pytest.raises(BadRequest, match="members"):
        lines_of(gzip.compress(b"") * 1000, 65536, zipped=True)
