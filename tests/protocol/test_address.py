import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.vectors import wire_vectors
from trionode.errors import LocalError
from trionode.protocol.wire.address import MAX_VALUE, Address, decode_address, encode_address, local, parse_host_port

values = st.binary(max_size=300)
kinds = st.integers(0, 255)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("echoer", Address("echoer")),
        ("0#echoer", Address("echoer")),
        ("0#", Address("")),
        ("1#127.0.0.1:4000", Address("127.0.0.1:4000", "tcp")),
        ("tcp:127.0.0.1:4000", Address("127.0.0.1:4000", "tcp", 1)),
        ("tcp:[::1]:4000", Address("[::1]:4000", "tcp")),
        ("loopback:hub", Address("hub", "loopback", 0)),
        ("7#elsewhere", Address("elsewhere", "", 7)),
        ("not a transport:x", Address("not a transport:x")),
        ("tcp:", Address("tcp:")),
        ("grüße", Address("grüße".encode())),
    ],
)
def test_an_address_is_parsed_from_text(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["", "#x", "a#x", "0#a#b", "-1#x", "256#x", "²#x", "9" * 5000 + "#x", " 0#x"])
def test_an_invalid_address_raises_an_error_that_says_what_was_expected(text: str) -> None:
    with pytest.raises(LocalError, match=r"expected an address"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["0#echoer", "tcp:127.0.0.1:4000", "loopback:hub", "7#elsewhere"])
def test_the_text_of_an_address_parses_to_that_address(text: str) -> None:
    assert str(Address.parse(text)) == text


@given(kinds, values)
def test_encoded_addresses_round_trip(kind: int, value: bytes) -> None:
    encoded = encode_address(kind, value)
    assert decode_address(encoded) == (kind, value)
    address = Address.from_encoded(encoded)
    assert (address.kind, address.value, address.encoded) == (kind, value, encoded)


@given(st.binary(max_size=40), kinds)
def test_an_address_whose_value_is_not_utf_8_has_a_text(value: bytes, kind: int) -> None:
    assert str(Address.from_encoded(encode_address(kind, value)))


@pytest.mark.parametrize("length", [0, 23, 24, 255, 256, MAX_VALUE])
def test_lengths_at_the_edges_of_a_head_round_trip(length: int) -> None:
    assert decode_address(local(bytes(length))) == (0, bytes(length))


def test_a_value_that_is_too_long_is_refused() -> None:
    with pytest.raises(LocalError, match="at most 1024 bytes"):
        encode_address(0, bytes(MAX_VALUE + 1))


@pytest.mark.parametrize("kind", [-1, 256])
def test_a_type_that_does_not_fit_a_byte_is_refused(kind: int) -> None:
    with pytest.raises(LocalError, match="from 0 to 255"):
        encode_address(kind, b"x")


def test_the_specified_example_has_the_specified_bytes() -> None:
    assert local("echoer").hex() == "8200466563686f6572"


def test_an_address_of_a_transport_without_a_number_cannot_be_encoded() -> None:
    with pytest.raises(LocalError, match="only be the first hop"):
        _ = Address("hub", "loopback").encoded


def test_addresses_in_vectors_parse_and_encode() -> None:
    for vector in wire_vectors("current_tcp_frames.json", "current.frame"):
        for text in vector["fields"]["onward"] + vector["fields"]["return"]:
            assert Address.from_encoded(Address.parse(text).encoded) == Address.parse(text)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("127.0.0.1:4000", ("127.0.0.1", 4000)),
        ("[::1]:0", ("::1", 0)),
        ("hub.example:65535", ("hub.example", 65535)),
    ],
)
def test_host_and_port_are_parsed(text: str, pair: tuple[str, int]) -> None:
    assert parse_host_port(text) == pair


@pytest.mark.parametrize("text", ["", "hub", ":4000", "hub:", "hub:x", "hub:65536", "hub:-1", "hub:" + "9" * 5000])
def test_an_invalid_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(LocalError, match="expected HOST:PORT"):
        parse_host_port(text)
