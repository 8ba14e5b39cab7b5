"""The classic codec: the vectors byte for byte, round trips, and refused input (spec §2, §3.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.vectors import load
from trionode.errors import WireError
from trionode.protocol.wire.address import MAX_VALUE, decode_address, encode_address, local
from trionode.protocol.wire.classic_codec import CLASSIC, ClassicCodec
from trionode.protocol.wire.framing import FrameDecoder, join_frames
from trionode.protocol.wire.route import MAX_HOPS


def texts(route: tuple[bytes, ...]) -> list[str]:
    return [f"{kind}#{value.decode()}" for kind, value in map(decode_address, route)]


@pytest.mark.parametrize("file", ["wire/classic_tcp_frames.json", "wire/classic_stream_frames.json"])
def test_frames_in_vectors_decode_and_encode_byte_for_byte(file: str) -> None:
    vectors = load(file)
    assert vectors
    for vector in vectors:
        data, fields = bytes.fromhex(vector["hex"]), vector["fields"]
        (frame,) = FrameDecoder(CLASSIC).receive(data)
        onward, back, payload = CLASSIC.decode(frame)
        assert texts(onward) == fields["onward"], vector["name"]
        assert texts(back) == fields["return"], vector["name"]
        assert join_frames(CLASSIC, [CLASSIC.encode(onward, back, payload)]) == data, vector["name"]


addresses = st.builds(encode_address, st.integers(0, 255), st.binary(max_size=200))
routes = st.lists(addresses, max_size=MAX_HOPS).map(tuple)


@given(routes, routes, st.binary(max_size=400), st.binary(max_size=5))
def test_messages_round_trip_and_bytes_behind_them_are_ignored(
    onward: tuple[bytes, ...], back: tuple[bytes, ...], payload: bytes, behind: bytes
) -> None:
    codec = ClassicCodec()
    for _ in range(2):  # the second time the routes are remembered
        assert codec.decode(codec.encode(onward, back, payload) + behind) == (onward, back, payload)


@given(st.data())
def test_a_truncated_message_is_refused_and_not_remembered(data: st.DataObject) -> None:
    onward, back = data.draw(routes), data.draw(routes)
    codec = ClassicCodec()
    encoded = codec.encode(onward, back, b"payload")
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(WireError):
        codec.decode(encoded[:cut])
    assert codec.decode(encoded) == (onward, back, b"payload")


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_decoded_or_raise_wire_error(junk: bytes) -> None:
    try:
        onward, back, payload = CLASSIC.decode(junk)
    except WireError:
        return
    assert CLASSIC.decode(CLASSIC.encode(onward, back, payload)) == (onward, back, payload)


REFUSED = {
    "nothing": "",
    "version 0": "00000000",
    "version 2": "02000000",
    "a route of 33 hops": "0121" + "000161" * 33 + "0000",
    "a route of 2^32 hops": "018080808010",
    "an address of 1025 bytes": "01010081 08" + "61" * 1025 + "0000",
    "an address of 2^60 bytes": "010100 808080808080808010",
    "a payload longer than the rest": "01000005616263",
    "a length beyond 64 bits": "010000ffffffffffffffffff7f",
    "an endless length": "010000" + "80" * 20,
}


@pytest.mark.parametrize("encoded", REFUSED.values(), ids=REFUSED.keys())
def test_a_message_out_of_bounds_is_refused(encoded: str) -> None:
    with pytest.raises(WireError):
        CLASSIC.decode(bytes.fromhex(encoded))


def test_the_longest_address_is_accepted() -> None:
    hop = local(b"x" * MAX_VALUE)
    assert CLASSIC.decode(CLASSIC.encode((hop,), (), b"")) == ((hop,), (), b"")


def test_the_example_of_the_specification() -> None:
    encoded = bytes.fromhex("01 0100066563686f6572 010003617070 03026869")
    assert CLASSIC.encode((local("echoer"),), (local("app"),), b"\x02hi") == encoded


def test_an_empty_frame_is_returned_and_undecodable() -> None:
    assert FrameDecoder(CLASSIC).receive(bytes.fromhex("0000 000401000000")) == [b"", b"\x01\x00\x00\x00"]
    with pytest.raises(WireError):
        CLASSIC.decode(b"")
