import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionode.errors import ConfigError, LocalError
from trionode.protocol.wire.address import Address, encode_address, local
from trionode.protocol.wire.route import MAX_HOPS, Routable, Route

encoded_addresses = st.builds(encode_address, st.integers(0, 255), st.binary(max_size=40))


@attrs.frozen
class Channel:
    address: Address


def test_a_route_accepts_texts_addresses_routables_and_routes() -> None:
    channel = Channel(Address("channel"))
    assert isinstance(channel, Routable)
    route = Route("tcp:hub:1", Address("relay"), channel, Route("a", Route("b")), "0#echoer")
    assert str(route) == "tcp:hub:1 => 0#relay => 0#channel => 0#a => 0#b => 0#echoer"
    assert len(route) == 6
    assert list(route) == list(route.hops)


def test_routes_are_values() -> None:
    assert Route("a", "b") == Route("0#a", Address("b"))
    assert len({Route("a"), Route("a"), Route("b")}) == 2
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Route("a").hops = ()  # type: ignore[misc]


def test_a_route_may_be_empty() -> None:
    assert Route().encoded == ()
    assert not str(Route())


@given(st.lists(encoded_addresses, max_size=MAX_HOPS - 1).map(tuple))
def test_encoded_routes_round_trip(hops: tuple[bytes, ...]) -> None:
    assert Route.from_encoded(hops).encoded == hops


def test_a_route_needs_a_free_hop_for_the_sender() -> None:
    longest = Route(*["x"] * (MAX_HOPS - 1))
    assert longest.encoded == (local("x"),) * (MAX_HOPS - 1)
    with pytest.raises(LocalError, match="at most 31 hops"):
        _ = Route(longest, "x").encoded


def test_an_address_of_a_transport_without_a_number_cannot_be_encoded() -> None:
    with pytest.raises(LocalError, match="first hop of a route"):
        _ = Route("a", "loopback:hub").encoded


def test_lists_and_tuples_stand_for_their_hops() -> None:
    assert Route(["a", Address("b")], ("c", Route("d"))) == Route("a", "b", "c", "d")


@pytest.mark.parametrize("hop", [b"echoer", 7, None, object()])
def test_a_hop_of_another_type_is_refused(hop: object) -> None:
    with pytest.raises(ConfigError, match="a hop is an address, a text"):
        Route(hop)  # type: ignore[arg-type]
