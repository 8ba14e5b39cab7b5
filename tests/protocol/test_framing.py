import tracemalloc
from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.vectors import wire_vectors
from trionode.errors import WireError
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.framing import FrameDecoder, join_frames
from trionode.protocol.wire.version import ProtocolVersion

# The framing of the classic version: no preface, two bytes of length (spec §3.1).
CLASSIC_FRAMING = attrs.evolve(CURRENT, name="classic framing", preface=b"", length_size=2, max_frame=65535)
VERSIONS = [CURRENT, CLASSIC_FRAMING]
HEARTBEAT = bytes.fromhex("83808040")


def in_chunks(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    start = 0
    for cut in sorted({cut % (len(data) + 1) for cut in cuts}):
        yield data[start:cut]
        start = cut
    yield data[start:]


@pytest.mark.parametrize("protocol_version", VERSIONS, ids=lambda protocol_version: protocol_version.name)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.lists(st.integers(0, 10_000), max_size=30))
def test_frames_do_not_depend_on_how_the_bytes_are_split(
    protocol_version: ProtocolVersion, frames: list[bytes], cuts: list[int]
) -> None:
    decoder = FrameDecoder(protocol_version)
    data = protocol_version.preface + join_frames(protocol_version, frames)
    assert [frame for chunk in in_chunks(data, cuts) for frame in decoder.receive(chunk)] == frames
    assert decoder.has_preface
    assert decoder.is_between_frames


@pytest.mark.parametrize("protocol_version", VERSIONS, ids=lambda protocol_version: protocol_version.name)
def test_frames_that_arrive_byte_by_byte_are_whole(protocol_version: ProtocolVersion) -> None:
    decoder = FrameDecoder(protocol_version)
    frames = [b"a", b"bb" * 200, b"c"]
    data = protocol_version.preface + join_frames(protocol_version, frames)
    assert [frame for i in range(len(data)) for frame in decoder.receive(data[i : i + 1])] == frames


def test_the_specified_heartbeat_has_the_specified_bytes() -> None:
    assert join_frames(CURRENT, [HEARTBEAT]).hex() == "0000000483808040"


def test_vectors_split_into_frames_and_join_again() -> None:
    vectors = [bytes.fromhex(vector["hex"]) for vector in wire_vectors("current_tcp_frames.json", "current.frame")]
    decoder = FrameDecoder(CURRENT)
    frames = decoder.receive(b"\x01" + b"".join(vectors))
    assert [join_frames(CURRENT, [frame]) for frame in frames] == vectors


def test_the_end_of_a_stream_is_orderly_only_between_frames() -> None:
    decoder = FrameDecoder(CURRENT)
    data = b"\x01" + join_frames(CURRENT, [b"abc", b"de"])
    states = []
    for i in range(len(data)):
        decoder.receive(data[i : i + 1])
        states.append(decoder.is_between_frames)
    assert [i for i, between in enumerate(states) if between] == [0, 7, 13]


@pytest.mark.parametrize("first", [b"\x00", b"\x02", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"SSH-2.0"])
def test_a_wrong_preface_raises_an_error_with_both_prefaces(first: bytes) -> None:
    with pytest.raises(WireError, match=f"began with {first[:1].hex()}, expected 01"):
        FrameDecoder(CURRENT).receive(first)


def test_a_preface_of_many_bytes_may_arrive_in_parts_and_is_checked_at_each() -> None:
    protocol_version = attrs.evolve(CURRENT, preface=b"abc")
    decoder = FrameDecoder(protocol_version)
    assert not decoder.receive(b"a")
    assert not decoder.has_preface
    assert decoder.receive(b"bc" + join_frames(protocol_version, [b"x"])) == [b"x"]
    with pytest.raises(WireError, match="began with 7a"):
        FrameDecoder(protocol_version).receive(b"z")


@pytest.mark.parametrize("protocol_version", VERSIONS, ids=lambda protocol_version: protocol_version.name)
@pytest.mark.parametrize("at_once", [True, False])
def test_an_empty_frame_is_refused(protocol_version: ProtocolVersion, *, at_once: bool) -> None:
    decoder = FrameDecoder(protocol_version)
    decoder.receive(protocol_version.preface)
    length = bytes(protocol_version.length_size)
    if not at_once:
        decoder.receive(length[:1])
        length = length[1:]
    with pytest.raises(WireError, match="a frame of 0 bytes"):
        decoder.receive(length)


@pytest.mark.parametrize("length", [CURRENT.max_frame + 1, 2**31, 2**32 - 1, int.from_bytes(b"HTTP")])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_huge_length_is_refused_as_soon_as_it_is_read_and_before_anything_is_allocated(
    length: int, *, at_once: bool
) -> None:
    decoder = FrameDecoder(CURRENT)
    data = b"\x01" + length.to_bytes(4, "big")
    if not at_once:
        decoder.receive(data[:3])
        data = data[3:]
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=f"a frame of {length} bytes, where 1 to 16777216 are allowed"):
            decoder.receive(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_max_frame_can_only_lower_the_limit_of_the_version() -> None:
    assert FrameDecoder(CURRENT, max_frame=4).receive(b"\x01" + join_frames(CURRENT, [b"1234"])) == [b"1234"]
    with pytest.raises(WireError, match="1 to 4 are allowed"):
        FrameDecoder(CURRENT, max_frame=4).receive(b"\x01" + join_frames(CURRENT, [b"12345"]))
    with pytest.raises(WireError, match="1 to 65535 are allowed"):
        FrameDecoder(attrs.evolve(CURRENT, max_frame=65535), max_frame=2**20).receive(b"\x01\x00\x01\x00\x00")


def test_the_largest_frame_is_not_copied_at_each_read() -> None:
    frame = bytes(range(256)) * 65536
    assert len(frame) == CURRENT.max_frame
    data = b"\x01" + join_frames(CURRENT, [b"before", frame, b"after"])
    decoder = FrameDecoder(CURRENT)
    received = [f for i in range(0, len(data), 4096) for f in decoder.receive(data[i : i + 4096])]
    assert received == [b"before", frame, b"after"]


def test_the_buffer_holds_no_more_than_was_received() -> None:
    decoder = FrameDecoder(CURRENT)
    tracemalloc.start()
    try:
        decoder.receive(b"\x01" + CURRENT.max_frame.to_bytes(4, "big"))
        for _ in range(100):
            decoder.receive(b"x")
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


def test_a_million_tiny_frames_are_split_within_the_memory_of_one_read() -> None:
    read = join_frames(CURRENT, [HEARTBEAT] * 8192)
    decoder = FrameDecoder(CURRENT)
    decoder.receive(b"\x01")
    assert sum(len(decoder.receive(read)) for _ in range(123)) == 123 * 8192 > 1_000_000
    assert decoder.is_between_frames
