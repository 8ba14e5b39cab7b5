"""The current codec: vectors, the fast decoder against the strict one, and invalid input (spec §2.2, §7.2)."""

import struct
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.vectors import wire_vectors
from trionode.errors import WireError
from trionode.protocol.wire import cbor
from trionode.protocol.wire.address import MAX_VALUE, Address, decode_address, encode_address, local
from trionode.protocol.wire.current_codec import (
    CLOSE_PLAINTEXT,
    CURRENT,
    Close,
    CurrentCodec,
    RefreshCredentials,
    _message_of,
    encode_refresh,
)
from trionode.protocol.wire.route import MAX_HOPS, Route
from trionode.protocol.wire.version import Decoded

addresses = st.one_of(
    st.builds(encode_address, st.integers(0, 255), st.binary(max_size=40)),
    st.builds(encode_address, st.just(0), st.integers(0, MAX_VALUE).map(bytes)),
)
routes = st.lists(addresses, max_size=MAX_HOPS).map(tuple)
payloads = st.one_of(st.binary(max_size=300), st.sampled_from([0, 23, 24, 255, 256, 65535, 65536]).map(bytes))
tracings = st.one_of(st.none(), st.just("{}"), st.text(max_size=30))
messages = st.tuples(routes, routes, payloads)


def with_tracing(message: Decoded, tracing: str | None) -> bytes:
    """A transport message as Rust peers write it: with the tracing context that ours leave out."""
    plain = CURRENT.encode(*message)
    return plain if tracing is None else b"\x84" + plain[1:] + cbor.encode(tracing)


def decode_strictly(data: bytes) -> Decoded:
    """The reference for the fast decoder."""
    return _message_of(cbor.decode(data))


def decode_plaintext(data: bytes) -> object:
    return CurrentCodec().decode_plaintext(data)


def texts(route: tuple[bytes, ...]) -> list[str]:
    return [f"{kind}#{value.decode()}" for kind, value in map(decode_address, route)]


def test_frames_in_vectors_decode_and_encode_byte_for_byte() -> None:
    vectors = wire_vectors("current_tcp_frames.json", "current.frame")
    assert vectors
    for vector in vectors:
        body, fields = bytes.fromhex(vector["hex"])[4:], vector["fields"]
        onward, back, payload = message = CURRENT.decode(body)
        assert texts(onward) == fields["onward"], vector["name"]
        assert texts(back) == fields["return"]
        assert payload.hex() == fields["payload"]
        assert with_tracing(message, fields["tracing"]) == body
        assert decode_strictly(body) == message


def test_channel_messages_in_vectors_decode_and_encode_byte_for_byte() -> None:
    vectors = wire_vectors("current_messages.json", "current.plaintext")
    assert {vector["fields"]["message"] for vector in vectors} == {"Payload", "RefreshCredentials", "Close"}
    for vector in vectors:
        plain, fields = bytes.fromhex(vector["hex"]), vector["fields"]
        opened = decode_plaintext(plain)
        if isinstance(opened, Close):
            assert fields["message"] == "Close"
            assert plain == CLOSE_PLAINTEXT
        elif isinstance(opened, RefreshCredentials):
            assert len(opened.credentials) == fields["credentials"], vector["name"]
            assert encode_refresh(opened) == plain
        else:
            assert isinstance(opened, tuple)
            onward, back, payload = opened
            assert (texts(onward), texts(back)) == (fields["onward"], fields["return"]), vector["name"]
            assert payload.hex() == fields["payload"]
            assert CurrentCodec().encode_plaintext(onward, back, payload) == plain


def test_the_example_of_the_specification() -> None:
    body = CURRENT.encode((local("echoer"),), (local("app"),), b"\x02hi")
    assert body.hex() == "83818200466563686f65728182004361707043026869"


@given(messages, tracings)
def test_messages_round_trip(message: Decoded, tracing: str | None) -> None:
    codec = CurrentCodec()
    body = with_tracing(message, tracing)
    assert decode_strictly(body) == message
    for _ in range(2):  # the second time the routes are remembered
        assert codec.decode(body) == message


@given(messages)
def test_plaintexts_round_trip(message: Decoded) -> None:
    codec = CurrentCodec()
    plaintext = codec.encode_plaintext(*message)
    for _ in range(2):
        assert codec.decode_plaintext(plaintext) == message


def test_a_codec_returns_the_same_routes_for_the_same_bytes() -> None:
    codec = CurrentCodec()
    first, second = (codec.decode(CURRENT.encode((local("a"),), (local("b"),), payload)) for payload in (b"1", b"2"))
    assert (second[0] is first[0], second[1] is first[1]) == (True, True)


def head(major: int, argument: int, size: int) -> bytes:
    """A CBOR head with `size` bytes of argument, whether or not it is the shortest."""
    if size == 0:
        return bytes((major << 5 | argument,))
    return bytes((major << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[size],)) + argument.to_bytes(size, "big")


@given(st.data())
def test_longer_heads_are_decoded_to_canonical_addresses(data: st.DataObject) -> None:
    def any_head(major: int, argument: int) -> bytes:
        fits = [0] * (argument < 24) + [size for size in (1, 2, 4, 8) if argument < 256**size]
        return head(major, argument, data.draw(st.sampled_from(fits)))

    def route(hops: list[tuple[int, bytes]]) -> bytes:
        return any_head(4, len(hops)) + b"".join(
            any_head(4, 2) + any_head(0, kind) + any_head(2, len(value)) + value for kind, value in hops
        )

    hops = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=4)
    onward, back, payload = data.draw(hops), data.draw(hops), data.draw(st.binary(max_size=40))
    tail = data.draw(st.sampled_from([b"", b"\xf6", b"\x62{}", b"\xf6\x01\x80"]))
    count = 3 + {0: 0, 1: 1, 3: 1 if tail == b"\x62{}" else 3}[len(tail)]
    body = any_head(4, count) + route(onward) + route(back) + any_head(2, len(payload)) + payload + tail
    expected = tuple(encode_address(*hop) for hop in onward), tuple(encode_address(*hop) for hop in back), payload
    assert CURRENT.decode(body) == expected
    assert decode_strictly(body) == expected
    inner = b"\x82\x82\x00\x81" + body + b"\x40"
    assert decode_plaintext(inner) == expected


@pytest.mark.parametrize(
    ("hex_", "reason"),
    [
        ("", "too early"),
        ("80", "0 fields"),
        ("828080", "2 fields"),
        ("83808060", "payload bytes"),
        ("838080f6", "payload bytes"),
        ("8480804001", "tracing text"),
        ("8380804000", "behind"),
        ("83a08040", "route is an array"),
        ("8340" + "8040", "route is an array"),
        ("83" + "9821" + "82004161" * 33 + "8040", "at most 32 addresses"),
        ("83808041", "are left|longer than its input"),
        ("8380805affffffff", "are left|longer"),
        ("8380805bffffffffffffffff", "longer than its input"),
        ("9bffffffffffffffff", "more items"),
        ("839bffffffffffffffff8040", "more items"),
        ("9f808040ff", "indefinite"),
        ("83808040" + "40", "behind"),
        ("83" + "8182f54161" + "8040", "bool, expected"),
        ("83" + "8182204161" + "8040", "outside 0 to 255"),
        ("83" + "81821901004161" + "8040", "outside 0 to 255"),
        ("83" + "818200" + "6161" + "8040", "an address is"),
        ("83" + "8181" + "00" + "8040", "1 fields"),
        ("83" + "818200" + "590401" + "00" * 1025 + "8040", "at most 1024"),
        ("81" * 40 + "00", "nested deeper"),
    ],
)
def test_an_invalid_message_is_refused_by_both_decoders(hex_: str, reason: str) -> None:
    for decode in (CURRENT.decode, decode_strictly):
        with pytest.raises(WireError, match=reason):
            decode(bytes.fromhex(hex_))


@pytest.mark.parametrize(
    ("hex_", "reason"),
    [
        ("", "too early"),
        ("81820280", "1 fields"),
        ("8282028060", "padding bytes"),
        ("8282038040", "variant 0, 1 or 2"),
        ("8282008040", "0 fields"),
        ("82810040", "instead of 2"),
        ("82820081808040", "behind"),
        ("8282018182804040", "array of credentials"),
        ("828200818380804040" + "00", "behind"),
    ],
)
def test_an_invalid_channel_message_is_refused(hex_: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode_plaintext(bytes.fromhex(hex_))


@pytest.mark.parametrize("padding", [b"\x40", b"\x41x", b"\x58\x20" + bytes(32)])
def test_padding_is_skipped(padding: bytes) -> None:
    onward, back = (local("a"),), (local("b"),)
    plaintext = CurrentCodec().encode_plaintext(onward, back, b"hello")
    assert decode_plaintext(plaintext[:-1] + padding) == (onward, back, b"hello")
    assert decode_plaintext(CLOSE_PLAINTEXT[:-1] + padding) == Close()


def only_wire_errors(read: Callable[[bytes], object], data: bytes) -> object:
    try:
        return read(data)
    except WireError:
        return WireError


def agree(data: bytes) -> None:
    assert only_wire_errors(CURRENT.decode, data) == only_wire_errors(decode_strictly, data), data.hex()
    only_wire_errors(decode_plaintext, data)


@given(st.binary(max_size=200))
@example(b"\x84")
@example(b"\x83\x81\x82\x00\x58\x18")
def test_both_decoders_agree_on_arbitrary_bytes(data: bytes) -> None:
    agree(data)


@given(messages, tracings, st.data())
def test_both_decoders_agree_on_mutated_messages(message: Decoded, tracing: str | None, data: st.DataObject) -> None:
    body = bytearray(with_tracing(message, tracing)[:400])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.sampled_from(["flip", "delete", "insert"])):
            case "flip":
                body[at] = data.draw(st.integers(0, 255))
            case "delete" if len(body) > 1:
                del body[at]
            case _:
                body.insert(at, data.draw(st.integers(0, 255)))
    agree(bytes(body))


@given(messages.filter(lambda message: len(message[2]) < 300), tracings)
def test_every_truncation_of_a_message_is_refused(message: Decoded, tracing: str | None) -> None:
    body = with_tracing(message, tracing)
    for end in sorted({*range(min(len(body), 60)), *range(max(0, len(body) - 60), len(body))}):
        for decode in (CURRENT.decode, decode_strictly):
            with pytest.raises(WireError):
                decode(body[:end])


def test_a_mutated_channel_message_is_decoded_or_raises_wire_error() -> None:
    for vector in wire_vectors("current_messages.json", "current.plaintext"):
        plain = bytes.fromhex(vector["hex"])
        for at in range(len(plain)):
            for value in (0x00, 0x40, 0x5F, 0x80, 0x9F, 0xA1, 0xC0, 0xF6, 0xF9, 0xFF, plain[at] ^ 1, plain[at] ^ 0x20):
                only_wire_errors(decode_plaintext, plain[:at] + bytes((value,)) + plain[at + 1 :])
            only_wire_errors(decode_plaintext, plain[:at])


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x9b" + struct.pack(">Q", 2**62),
        b"\x83\x9a" + struct.pack(">I", 2**31) + b"\x80" * 100_000,
        b"\x83\x80\x80\x5a" + struct.pack(">I", 2**31),
        b"\x83" + b"\x9a\x00\x01\x86\xa0" + b"\x82\x00\x40" * 100_000 + b"\x80\x40",
        b"\x81" * 100_000,
    ],
)
def test_huge_lengths_are_refused_before_anything_is_allocated(bomb: bytes) -> None:
    for decode in (CURRENT.decode, decode_strictly, decode_plaintext):
        tracemalloc.start()
        try:
            with pytest.raises(WireError):
                decode(bomb)
            assert tracemalloc.get_traced_memory()[1] < 200_000 + len(bomb)
        finally:
            tracemalloc.stop()


def test_the_payload_of_the_largest_frame_round_trips() -> None:
    payload = bytes(CURRENT.max_frame - 32)
    body = CURRENT.encode((local("a"),), (local("b"),), payload)
    assert len(body) <= CURRENT.max_frame
    assert CURRENT.decode(body)[2] == payload
    assert decode_strictly(body)[2] == payload


def test_a_route_round_trips() -> None:
    route = Route("1#127.0.0.1:4000", "0#echoer", Address(b"\xff\x00", "", 9))
    onward, _, _ = CURRENT.decode(CURRENT.encode(route.encoded, (), b""))
    assert Route.from_encoded(onward) == route


def test_a_truncated_message_is_not_remembered() -> None:
    # The bytes behind the cut, inside the last hop, look like a payload that ends exactly at the end.
    worker, other = local("worker"), local(b"aX\x0azz")
    codec = CurrentCodec()
    whole = codec.encode((worker,), (other,), b"payload")
    with pytest.raises(WireError):
        codec.decode(whole[: whole.index(b"aX") + 1])
    assert codec.decode(whole) == ((worker,), (other,), b"payload")
