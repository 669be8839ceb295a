"""At which addresses processes listen, what they tell each other of it, and how long they may take to end."""

import errno
import socket
from dataclasses import replace
from typing import Any

import pytest

from service.serving import DRAIN, Inherited, grace_of, listening_at
from service.settings import Settings

V4, V6 = socket.AF_INET, socket.AF_INET6
NOWHERE = "192.0.2.1"
"""Reserved for examples: no machine has it."""


def a_port() -> int:
    """A free port, at both families."""
    with socket.create_server(("::", 0), family=V6, dualstack_ipv6=True) as taken:
        port: int = taken.getsockname()[1]
        return port


def reaches(address: Any, family: socket.AddressFamily) -> bool:
    with socket.socket(family) as caller:
        return caller.connect_ex(address) == 0


def test_a_name_of_two_addresses_is_listened_on_at_both() -> None:
    port = a_port()
    four, six = ("127.0.0.1", port), ("::1", port, 0, 0)
    # Names say the same twice, too.
    made = listening_at([(V4, four), (V6, six), (V4, four)])
    assert [one.getsockname() for one in made] == [four, six]
    assert reaches(four, V4)
    assert reaches(six, V6)
    for one in made:
        one.close()


def test_an_address_that_is_not_here_is_left_out_unless_there_is_no_other() -> None:
    port = a_port()
    [one] = listening_at([(V4, (NOWHERE, port)), (V6, ("::1", port, 0, 0))])
    assert one.getsockname()[:2] == ("::1", port)
    one.close()
    with pytest.raises(OSError, match="assign requested address") as refused:
        listening_at([(V4, (NOWHERE, port))])
    assert refused.value.errno == errno.EADDRNOTAVAIL


def test_where_one_is_taken_none_is_left_open() -> None:
    port = a_port()
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(OSError, match="in use") as refused:
            listening_at([(V6, ("::1", port, 0, 0)), (V4, ("127.0.0.1", port))])
        assert refused.value.errno == errno.EADDRINUSE
        assert not reaches(("::1", port, 0, 0), V6)


def test_children_are_told_of_all_sockets_of_each_port() -> None:
    told = Inherited(1, ((5, 6), (7, 8)), (9, 10))
    assert Inherited.read(told.text) == told
    assert Inherited.read(Inherited(0, ((5,),), (9,)).text) == Inherited(0, ((5,),), (9,))


@pytest.mark.parametrize(("delay", "seconds"), [(None, DRAIN), (40.0, DRAIN + 40.0)])
def test_whoever_is_to_wait_before_it_ends_is_given_that_time(
    settings: Settings, delay: float | None, seconds: float
) -> None:
    assert grace_of(replace(settings, stop_delay_seconds=delay)) == seconds
