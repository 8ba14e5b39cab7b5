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
    CURRENT,
    Close,
    RefreshCredentials,
    decode_full,
    decode_message,
    encode_full,
    encode_message,
    open_plaintext,
    seal_close,
    seal_payload,
    seal_refresh,
)
from trionode.protocol.wire.message import TransportMessage
from trionode.protocol.wire.route import MAX_HOPS, Route

addresses = st.one_of(
    st.builds(encode_address, st.integers(0, 255), st.binary(max_size=40)),
    st.builds(encode_address, st.just(0), st.integers(0, MAX_VALUE).map(bytes)),
)
routes = st.lists(addresses, max_size=MAX_HOPS).map(tuple)
payloads = st.one_of(st.binary(max_size=300), st.sampled_from([0, 23, 24, 255, 256, 65535, 65536]).map(bytes))
tracings = st.one_of(st.none(), st.just("{}"), st.text(max_size=30))
messages = st.builds(TransportMessage, routes, routes, payloads, tracings)


def texts(route: tuple[bytes, ...]) -> list[str]:
    return [f"{kind}#{value.decode()}" for kind, value in map(decode_address, route)]


def test_frames_in_vectors_decode_and_encode_byte_for_byte() -> None:
    vectors = wire_vectors("current_tcp_frames.json", "current.frame")
    assert vectors
    for vector in vectors:
        body, fields = bytes.fromhex(vector["hex"])[4:], vector["fields"]
        message = decode_full(body)
        assert texts(message.onward) == fields["onward"], vector["name"]
        assert texts(message.back) == fields["return"]
        assert message.payload.hex() == fields["payload"]
        assert message.tracing == fields["tracing"]
        assert encode_full(message) == body
        assert decode_message(body) == (message.onward, message.back, message.payload)


def test_channel_messages_in_vectors_decode_and_encode_byte_for_byte() -> None:
    vectors = wire_vectors("current_messages.json", "current.plaintext")
    assert {vector["fields"]["message"] for vector in vectors} == {"Payload", "RefreshCredentials", "Close"}
    for vector in vectors:
        plain, fields = bytes.fromhex(vector["hex"]), vector["fields"]
        opened = open_plaintext(plain)
        if isinstance(opened, Close):
            assert fields["message"] == "Close"
            assert seal_close() == plain
        elif isinstance(opened, RefreshCredentials):
            assert len(opened.credentials) == fields["credentials"], vector["name"]
            assert seal_refresh(opened) == plain
        else:
            onward, back, payload = opened
            assert (texts(onward), texts(back)) == (fields["onward"], fields["return"]), vector["name"]
            assert payload.hex() == fields["payload"]
            assert seal_payload(onward, back, payload) == plain


def test_the_specified_example_has_the_specified_bytes() -> None:
    body = encode_message((local("echoer"),), (local("app"),), b"\x02hi")
    assert body.hex() == "83818200466563686f65728182004361707043026869"


@given(messages)
def test_messages_come_back_as_they_were(message: TransportMessage) -> None:
    body = encode_full(message)
    assert decode_full(body) == message
    assert decode_message(body) == (message.onward, message.back, message.payload)
    assert body[1:] == encode_message(message.onward, message.back, message.payload)[1:] + (
        b"" if message.tracing is None else cbor.encode(message.tracing)
    )


@given(routes, routes, payloads)
def test_sealed_payloads_open_to_what_they_were(
    onward: tuple[bytes, ...], back: tuple[bytes, ...], payload: bytes
) -> None:
    assert open_plaintext(seal_payload(onward, back, payload)) == (onward, back, payload)


def head(major: int, argument: int, size: int) -> bytes:
    """A CBOR head with `size` bytes of argument, whether or not it is the shortest."""
    if size == 0:
        return bytes((major << 5 | argument,))
    return bytes((major << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[size],)) + argument.to_bytes(size, "big")


@given(st.data())
def test_heads_that_are_not_the_shortest_mean_the_same_and_come_out_canonical(data: st.DataObject) -> None:
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
    assert decode_message(body) == expected
    full = decode_full(body)
    assert (full.onward, full.back, full.payload) == expected
    inner = b"\x82\x82\x00\x81" + body + b"\x40"
    assert open_plaintext(inner) == expected


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
        ("83808041", "announced|longer than its input"),
        ("8380805affffffff", "announced|longer"),
        ("8380805bffffffffffffffff", "longer than its input"),
        ("9bffffffffffffffff", "more items"),
        ("839bffffffffffffffff8040", "more items"),
        ("9f808040ff", "indefinite"),
        ("83808040" + "40", "behind"),
        ("83" + "8182f54161" + "8040", "bool where"),
        ("83" + "8182204161" + "8040", "not within"),
        ("83" + "81821901004161" + "8040", "not within"),
        ("83" + "818200" + "6161" + "8040", "an address is"),
        ("83" + "8181" + "00" + "8040", "1 fields"),
        ("83" + "818200" + "590401" + "00" * 1025 + "8040", "at most 1024"),
        ("81" * 40 + "00", "nested deeper"),
    ],
)
def test_what_is_no_message_is_refused_by_both_readers(hex_: str, reason: str) -> None:
    for read in (decode_message, decode_full):
        with pytest.raises(WireError, match=reason):
            read(bytes.fromhex(hex_))


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
def test_what_is_no_channel_message_is_refused(hex_: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        open_plaintext(bytes.fromhex(hex_))


@pytest.mark.parametrize("padding", [b"\x40", b"\x41x", b"\x58\x20" + bytes(32)])
def test_padding_of_a_channel_message_is_skipped(padding: bytes) -> None:
    onward, back = (local("a"),), (local("b"),)
    assert open_plaintext(seal_payload(onward, back, b"hello")[:-1] + padding) == (onward, back, b"hello")
    assert open_plaintext(seal_close()[:-1] + padding) == Close()


def only_wire_errors(read: Callable[[bytes], object], data: bytes) -> object:
    try:
        return read(data)
    except WireError:
        return WireError


def agree(data: bytes) -> None:
    fast = only_wire_errors(decode_message, data)
    full = only_wire_errors(decode_full, data)
    assert fast == (full if not isinstance(full, TransportMessage) else (full.onward, full.back, full.payload)), (
        data.hex()
    )
    only_wire_errors(open_plaintext, data)


@given(st.binary(max_size=200))
@example(b"\x84")
@example(b"\x83\x81\x82\x00\x58\x18")
def test_arbitrary_bytes_give_a_message_or_a_wire_error_and_the_same_from_both_readers(data: bytes) -> None:
    agree(data)


@given(messages, st.data())
def test_mutated_messages_give_a_message_or_a_wire_error_and_the_same_from_both_readers(
    message: TransportMessage, data: st.DataObject
) -> None:
    body = bytearray(encode_full(message)[:400])
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


@given(messages.filter(lambda message: len(message.payload) < 300))
def test_every_truncation_of_a_message_is_refused(message: TransportMessage) -> None:
    body = encode_full(message)
    for end in sorted({*range(min(len(body), 60)), *range(max(0, len(body) - 60), len(body))}):
        for read in (decode_message, decode_full):
            with pytest.raises(WireError):
                read(body[:end])


def test_mutated_channel_messages_give_one_or_a_wire_error() -> None:
    for vector in wire_vectors("current_messages.json", "current.plaintext"):
        plain = bytes.fromhex(vector["hex"])
        for at in range(len(plain)):
            for value in (0x00, 0x40, 0x5F, 0x80, 0x9F, 0xA1, 0xC0, 0xF6, 0xF9, 0xFF, plain[at] ^ 1, plain[at] ^ 0x20):
                only_wire_errors(open_plaintext, plain[:at] + bytes((value,)) + plain[at + 1 :])
            only_wire_errors(open_plaintext, plain[:at])


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
def test_lengths_that_announce_much_are_refused_before_anything_is_allocated(bomb: bytes) -> None:
    for read in (decode_message, decode_full, open_plaintext):
        tracemalloc.start()
        try:
            with pytest.raises(WireError):
                read(bomb)
            assert tracemalloc.get_traced_memory()[1] < 200_000 + len(bomb)
        finally:
            tracemalloc.stop()


def test_a_payload_of_the_largest_frame_is_read_without_the_slow_reader() -> None:
    payload = bytes(CURRENT.max_frame - 32)
    body = encode_message((local("a"),), (local("b"),), payload)
    assert len(body) <= CURRENT.max_frame
    assert decode_message(body)[2] == payload
    assert decode_full(body).payload == payload


def test_the_text_of_a_route_survives_the_wire() -> None:
    route = Route("1#127.0.0.1:4000", "0#echoer", Address(b"\xff\x00", "", 9))
    onward, _, _ = decode_message(encode_message(route.encoded, (), b""))
    assert Route.from_encoded(onward) == route


def test_a_message_that_was_cut_short_does_not_change_how_the_next_one_is_read() -> None:
    # What follows the cut in the return route's hop looks like a payload of exactly what is left.
    worker, other = local("worker"), local(b"aX\x0azz")
    whole = encode_message((worker,), (other,), b"payload")
    with pytest.raises(WireError):
        decode_message(whole[: whole.index(b"aX") + 1])
    assert decode_message(whole) == ((worker,), (other,), b"payload")
