import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.vectors import wire_vectors
from trionode.errors import LocalError, WireError
from trionode.protocol.wire import bare
from trionode.protocol.wire.bare import Reader


def test_uint_vectors_decode_and_encode_again() -> None:
    for vector in wire_vectors("bare.json", "bare.uint"):
        raw = bytes.fromhex(vector["hex"])
        reader = Reader(raw)
        assert reader.uint() == vector["fields"]["value"]
        reader.end()
        assert bare.uint(vector["fields"]["value"]) == raw


def test_string_vectors_decode_and_encode_again() -> None:
    for vector in wire_vectors("bare.json", "bare.string"):
        raw = bytes.fromhex(vector["hex"])
        reader = Reader(raw)
        assert reader.string() == vector["fields"]["value"]
        reader.end()
        assert bare.string(vector["fields"]["value"]) == raw


def test_data_vectors_decode_and_encode_again() -> None:
    for vector in wire_vectors("bare.json", "bare.data"):
        raw = bytes.fromhex(vector["hex"])
        reader = Reader(raw)
        assert reader.data().hex() == vector["fields"]["value"]
        reader.end()
        assert bare.data(bytes.fromhex(vector["fields"]["value"])) == raw


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (2**63, "80808080808080808001"),
        (2**64 - 1, "ffffffffffffffffff01"),
    ],
)
def test_a_uint_has_one_shortest_form(value: int, encoded: str) -> None:
    assert bare.uint(value).hex() == encoded
    assert Reader(bytes.fromhex(encoded)).uint() == value


@given(st.integers(0, 2**64 - 1), st.binary(max_size=200), st.text(max_size=50), st.none() | st.binary(max_size=3))
def test_values_round_trip(number: int, blob: bytes, text: str, maybe: bytes | None) -> None:
    encoded = (
        bare.uint(number)
        + bare.data(blob)
        + bare.string(text)
        + bare.optional(None if maybe is None else bare.data(maybe))
        + bare.u8(number & 0xFF)
        + bare.u32(number & 0xFFFFFFFF)
    )
    reader = Reader(encoded)
    assert (reader.uint(), reader.data(), reader.string()) == (number, blob, text)
    assert (reader.data() if reader.optional() else None) == maybe
    assert (reader.u8(), reader.u32()) == (number & 0xFF, number & 0xFFFFFFFF)
    assert reader.at == len(encoded)
    reader.end()
    # A value that is cut anywhere is refused and never misread.
    for length in range(len(encoded)):
        cut = Reader(encoded[:length])
        with pytest.raises(WireError):
            _ = (cut.uint(), cut.data(), cut.string(), cut.optional() and cut.data(), cut.u8(), cut.u32())


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ("", Reader.uint),
        ("80", Reader.uint),
        ("ffffffffffffffffff02", Reader.uint),  # 2^64 and more
        ("80" * 10 + "00", Reader.uint),  # an eleventh byte
        ("80" * 100_000, Reader.uint),
        ("05616263", Reader.data),
        ("ffffffffffffffffff01", Reader.data),
        ("02c328", Reader.string),
        ("03eda080", Reader.string),  # a surrogate
        ("02c080", Reader.string),  # an overlong NUL
        ("02", Reader.optional),
        ("ff", Reader.optional),
        ("03", lambda reader: reader.variant(3)),
        ("8001", lambda reader: reader.variant(3)),
        ("030000", lambda reader: reader.count(1)),
        ("02000000", lambda reader: reader.count(2)),
        ("ffffffffffffffffff01", lambda reader: reader.count(1)),
        ("000000", Reader.u32),
        ("0000", lambda reader: reader.fixed(3)),
        ("00", Reader.end),
    ],
)
def test_invalid_values_are_refused(raw: str, read: object) -> None:
    assert callable(read)
    with pytest.raises(WireError):
        read(Reader(bytes.fromhex(raw)))


def test_a_uint_in_a_longer_form_is_accepted() -> None:
    assert Reader(bytes.fromhex("8000")).uint() == 0


def test_a_huge_length_allocates_nothing() -> None:
    raw = bare.uint(2**40) + bytes(10)
    tracemalloc.start()
    try:
        for read in (Reader.data, lambda reader: reader.count(1)):
            with pytest.raises(WireError):
                read(Reader(raw))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_decoded_or_refused(raw: bytes) -> None:
    for read in (Reader.uint, Reader.data, Reader.string, Reader.optional, Reader.u8, Reader.u32):
        reader = Reader(raw)
        try:
            read(reader)
        except WireError:
            continue
        assert 0 <= reader.left <= len(raw)


def test_an_argument_out_of_range_raises_an_error_with_the_bound() -> None:
    for encode, value in ((bare.uint, -1), (bare.uint, 2**64), (bare.u8, 256), (bare.u32, 2**32)):
        with pytest.raises(LocalError, match="holds 0"):
            encode(value)
    with pytest.raises(LocalError, match="UTF-8"):
        bare.string("\ud800")
