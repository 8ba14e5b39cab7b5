"""CBOR: encoding, decoding, and input that is refused before it costs anything."""

import tracemalloc
from collections.abc import Callable

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.vectors import wire_vectors
from trionode.errors import LocalError, WireError
from trionode.protocol.wire.cbor import MAX_DEPTH, MAX_ITEMS, Value, decode, encode, fields, narrow, uint, variant

SCALARS: st.SearchStrategy[Value] = st.one_of(
    st.none(), st.booleans(), st.integers(0, 2**64 - 1), st.binary(max_size=300), st.text(max_size=100)
)
KEYS: st.SearchStrategy[Value] = st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=9), st.text(max_size=9))


def nested(inner: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    return st.one_of(st.lists(inner, max_size=5), st.dictionaries(KEYS, inner, max_size=4))


VALUES: st.SearchStrategy[Value] = st.recursive(SCALARS, nested, max_leaves=20)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (255, "18ff"),
        (256, "190100"),
        (65536, "1a00010000"),
        (2**32, "1b0000000100000000"),
        (2**64 - 1, "1bffffffffffffffff"),
        (b"", "40"),
        (bytes(24), "5818" + "00" * 24),
        ("ü", "62c3bc"),
        (None, "f6"),
        (False, "f4"),
        (True, "f5"),
        ([2, []], "820280"),
        ((1, (2,)), "82018102"),
        ([[0, b"echoer"]], "8182004665" + b"choer".hex()),
        ({b"b": b"1", b"a": b"2"}, "a2416241314161" + "4132"),
    ],
)
def test_values_are_encoded_in_their_shortest_form(value: Value, encoded: str) -> None:
    assert encode(value).hex() == encoded


def test_a_value_of_another_type_raises_config_error() -> None:
    with pytest.raises(LocalError):
        encode(object())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@given(VALUES)
def test_values_round_trip(value: Value) -> None:
    assert decode(encode(value)) == value


@given(VALUES, st.binary(min_size=1, max_size=3), st.integers(min_value=0))
def test_a_mutated_document_is_decoded_or_refused(value: Value, noise: bytes, at: int) -> None:
    encoded = encode(value)
    cut = at % (len(encoded) + 1)
    for bad in (
        encoded[:cut] + noise + encoded[cut:],
        encoded[:cut] + noise + encoded[cut + len(noise) :],
        noise + encoded,
    ):
        try:
            decode(bad)
        except WireError:
            continue


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused_or_decoded_as_by_cbor2(data: bytes) -> None:
    try:
        value = decode(data)
    except WireError:
        return
    if "undefined" not in repr(value):
        assert repr(cbor2.loads(data)) == repr(value)


@given(VALUES, st.data())
def test_every_truncation_of_a_document_is_refused(value: Value, data: st.DataObject) -> None:
    encoded = encode(value)
    with pytest.raises(WireError):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(WireError):
        decode(encoded + b"\x00")


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("1817", 23),
        ("190001", 1),
        ("1a00000001", 1),
        ("1b0000000000000001", 1),
        ("5800", b""),
        ("590001ff", b"\xff"),
        ("7b000000000000000161", "a"),
        ("9a0000000200f6", [0, None]),
        ("b90001410041ff", {b"\0": b"\xff"}),
    ],
)
def test_heads_that_are_not_the_shortest_are_accepted(encoded: str, value: object) -> None:
    assert decode(bytes.fromhex(encoded)) == value


REFUSED = {
    "nothing": "",
    "a head cut short": "19",
    "a head cut shorter than its argument": "1b00000000000000",
    "reserved heads": "1c",
    "indefinite bytes": "5f4100ff",
    "indefinite text": "7f6161ff",
    "indefinite array": "9f00ff",
    "indefinite map": "bf0000ff",
    "a lone break": "ff",
    "bytes beyond the input": "4200",
    "text beyond the input": "6261",
    "2^64-1 bytes": "5bffffffffffffffff",
    "2^63 items": "9b8000000000000000",
    "2^64-1 pairs": "bbffffffffffffffff",
    "an array without its last item": "8200",
    "a map without its last value": "a100",
    "something behind the value": "0000",
    "text that is not UTF-8": "62ffff",
    "text that is half a surrogate": "63eda080",
    "the same key twice": "a2410000410001",
    "the same key with another head": "a2410000580100" + "01",
    "the same integer key with another head": "a20100180101",
    "the same key twice, far inside": "8181a100a2000000f6",
    "an array as a key": "a1810000",
    "a map as a key": "a1a000",
    "null as a key": "a1f600",
    "a tag as a key": "a1c00000",
    "a tag of nothing": "c0",
    "a reserved simple value": "f818",
}


@pytest.mark.parametrize("encoded", REFUSED.values(), ids=REFUSED.keys())
def test_an_item_outside_the_subset_is_refused(encoded: str) -> None:
    with pytest.raises(WireError):
        decode(bytes.fromhex(encoded))


def test_the_same_text_and_bytes_are_two_keys() -> None:
    assert decode(bytes.fromhex("a3410101610102" + "0103")) == {b"\x01": 1, "\x01": 2, 1: 3}


@pytest.mark.parametrize("opening", ["81", "a100", "c1", "d9d9f7"], ids=["arrays", "maps", "tags", "two-byte tags"])
def test_nesting_is_accepted_to_a_depth_of_16(opening: str) -> None:
    decode(bytes.fromhex(opening * MAX_DEPTH + "00"))
    for depth in (MAX_DEPTH + 1, 5000):
        with pytest.raises(WireError, match="deeper"):
            decode(bytes.fromhex(opening * depth + "00"))
    with pytest.raises(WireError, match="deeper"):
        decode(bytes.fromhex(opening * 3 + "00"), max_depth=2)


def test_closed_levels_do_not_count_as_nesting() -> None:
    deep = b"\x81" * (MAX_DEPTH - 1) + b"\x00"
    assert decode(b"\x83" + deep * 3) == [decode(deep)] * 3


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"\x9a\x00\xff\xff\xff", id="one wide array"),
        pytest.param(b"\xba\x00\x7f\xff\xff", id="one wide map"),
        pytest.param(b"\x9a\x00\x00\x03\xe8" + b"\x99\x03\xe8" + bytes(1000), id="many narrow arrays"),
        pytest.param(b"\x5a\xff\xff\xff\xff", id="a string longer than its input"),
    ],
)
def test_a_document_that_is_too_large_is_refused_before_it_is_allocated(head: bytes) -> None:
    flood = head + (head[5:] * 1000 if len(head) > 5 else bytes(2 << 24))
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode(flood)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_the_largest_allowed_number_of_items_is_accepted() -> None:
    assert decode(b"\x99" + (MAX_ITEMS - 1).to_bytes(2, "big") + bytes(MAX_ITEMS - 1)) == [0] * (MAX_ITEMS - 1)
    with pytest.raises(WireError):
        decode(b"\x99" + MAX_ITEMS.to_bytes(2, "big") + bytes(MAX_ITEMS))


@pytest.mark.parametrize(
    ("trailing", "shown"),
    [
        ("c249010000000000000000", "undefined"),
        ("c1fb41d452d9ec200000", "undefined"),
        ("d81c81d81d00", "undefined"),
        ("c1c1c100", "undefined"),
        ("82c100c200", "[undefined, undefined]"),
        ("82c182c100c20000", "[undefined, 0]"),
        ("a100c100", "{0: undefined}"),
        ("f93c00", "1.0"),
        ("20", "-1"),
        ("f7", "undefined"),
        ("f0", "CBORSimpleValue(16)"),
        ("a100a0", "{0: {}}"),
    ],
)
def test_a_struct_may_end_in_items_of_any_type(trailing: str, shown: str) -> None:
    struct = narrow(decode(bytes.fromhex("840743616263" + trailing + "f5")), list)
    assert fields(struct, 2) == [7, b"abc"]
    assert repr(struct[2]) == shown
    assert struct[3] is True


@pytest.mark.parametrize(
    ("items", "required", "optional", "known"),
    [
        ([1, 2, 3], 3, 0, [1, 2, 3]),
        ([1, 2, 3, "later"], 3, 0, [1, 2, 3]),
        ([1, 2, 3], 3, 1, [1, 2, 3, None]),
        ([1, 2, 3, None], 3, 1, [1, 2, 3, None]),
        ([1, 2, 3, "{}", 5], 3, 1, [1, 2, 3, "{}"]),
        ([1, 2, None, 4], 2, 2, [1, 2, None, 4]),
        ([], 0, 2, [None, None]),
    ],
)
def test_fields_of_a_struct(items: list[object], required: int, optional: int, known: list[object]) -> None:
    before = list(items)
    assert fields(items, required, optional) == known
    assert items == before


def test_an_enum_value_is_its_number_and_its_fields() -> None:
    assert variant(decode(bytes.fromhex("820280"))) == (2, [])
    assert variant(decode(bytes.fromhex("82018141ff"))) == (1, [b"\xff"])


NOT_SO: dict[str, Callable[[], object]] = {
    "a struct that is no array": lambda: fields({0: 1}, 1),
    "a struct that lacks a field": lambda: fields([1], 2),
    "an enum without fields": lambda: variant([2]),
    "an enum with a third item": lambda: variant([2, [], 0]),
    "an enum with a name": lambda: variant(["two", []]),
    "an enum with bare fields": lambda: variant([2, 0]),
    "an enum below zero": lambda: variant([-1, []]),
    "a bool as an integer": lambda: uint(True),
    "a float as an integer": lambda: uint(1.0),
    "an integer below zero": lambda: uint(-1),
    "an integer over the limit": lambda: uint(256, 255),
    "null as bytes": lambda: narrow(None, bytes),
    "text as bytes": lambda: narrow("text", bytes),
    "a bool as a number": lambda: narrow(False, int),
    "undefined as bytes": lambda: narrow(cbor2.undefined, bytes),
}


@pytest.mark.parametrize("reading", NOT_SO.values(), ids=NOT_SO.keys())
def test_a_field_of_another_type_is_refused(reading: Callable[[], object]) -> None:
    with pytest.raises(WireError):
        reading()


def test_integers_within_their_limit_are_accepted() -> None:
    assert uint(255, 255) == 255
    assert uint(2**64 - 1) == 2**64 - 1


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("current_messages.json", "current.plaintext"),
        ("current_identities.json", "current.identity"),
        ("current_identity_payloads.json", "current.identity_payload"),
        ("current_identity_payloads.json", "current.credential"),
    ],
)
def test_wire_vectors_decode_and_encode_byte_for_byte(file: str, kind: str) -> None:
    vectors = wire_vectors(file, kind)
    assert vectors
    for vector in vectors:
        value = decode(bytes.fromhex(vector["hex"]))
        assert cbor2.dumps(value).hex() == vector["hex"], vector["name"]


def test_the_wire_frames_hold_one_struct_each() -> None:
    vectors = wire_vectors("current_tcp_frames.json", "current.frame")
    assert vectors
    for vector in vectors:
        onward, back, payload, _ = fields(decode(bytes.fromhex(vector["hex"])[4:]), 3, 1)
        assert isinstance(onward, list)
        assert isinstance(back, list)
        assert isinstance(payload, bytes)
