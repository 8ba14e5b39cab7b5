"""Delivery frames: what is encoded is decoded, and whatever an authenticated peer sends raises what it may raise."""

from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionode.errors import WireError
from trionode.protocol.delivery.delivery import Delivery, refusal
from trionode.protocol.delivery.frame import MAX_ITEMS, Ack, Frame
from trionode.protocol.delivery.outbox import HistoryError
from trionode.protocol.delivery.terms import MAX_NUMBER, Offer, Position, Terms

NUMBERS = st.integers(0, 2**62)
HASHES = st.binary(min_size=16, max_size=16)
POSITIONS = st.builds(Position, NUMBERS, HASHES)
TERMS = st.builds(Terms, HASHES, POSITIONS, st.none() | HASHES, POSITIONS)
ACKS = st.builds(
    Ack,
    st.integers(0, 2**32 - 1),
    POSITIONS,
    NUMBERS,
    NUMBERS,
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=16),
)
FRAMES = st.builds(
    Frame,
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
    st.none() | ACKS,
    st.none() | POSITIONS,
    accepted=st.none() | TERMS,
    refused=st.booleans(),
    leaving=st.booleans(),
)


@given(FRAMES, st.integers(1, 2**62), HASHES, st.lists(st.binary(max_size=40), max_size=5))
def test_frames_are_read_as_they_were_written(frame: Frame, first: int, before: bytes, items: list[bytes]) -> None:
    if items:
        frame = Frame(
            frame.delay, frame.stamp, frame.ack, frame.end, first, before, items, frame.accepted, frame.refused
        )
    assert Frame.decode(frame.encode()) == frame


@given(TERMS)
def test_terms_are_read_as_they_were_written(terms: Terms) -> None:
    assert Offer.of(terms.item()) == terms


@pytest.mark.parametrize("item", [None, 7, [], ["another item", 1], ["another item", 1, b"x"]])
def test_items_of_others_are_no_offer(item: object) -> None:
    assert Offer.of(item) is None


@pytest.mark.parametrize(
    "frame",
    [
        Frame(1, 1, first=0, before=bytes(16), items=[b"x"]),
        Frame(1, 1, first=MAX_NUMBER, before=bytes(16), items=[b"x"]),
        Frame(1, 1, first=1, before=bytes(16), items=[b""] * (MAX_ITEMS + 1)),
        Frame(1, 1, accepted=Terms(bytes(16), Position(MAX_NUMBER + 1, bytes(16)), None, Position(0, bytes(16)))),
    ],
    ids=["number 0", "a number too large", "too many messages", "a base too large"],
)
def test_frames_beyond_the_bounds_are_refused(frame: Frame) -> None:
    with pytest.raises(WireError):
        Frame.decode(frame.encode())


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_frame_that_is_cut_off_is_refused(cut: int) -> None:
    whole = Frame(1, 1, first=1, before=bytes(16), items=[b"message"]).encode()
    with pytest.raises(WireError):
        Frame.decode(whole[:-cut])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_a_peer_sends_the_layer_can_still_answer(seed: int) -> None:
    """An authenticated peer that sends nonsense may end its channel, and never more."""
    random = Random(seed)
    for _ in range(50):
        now = 100.0
        layer = Delivery(b"B" * 16)
        layer.respond(Terms(b"A" * 16, Position(0, bytes(16)), None, Position(0, bytes(16))), now)
        with suppress(HistoryError):
            for _ in range(40):
                now += random.choice((0.0, 0.001, 0.05, 1.0, 40.0))
                layer.send(random.randbytes(random.randrange(200)), now)
                with suppress(WireError):
                    layer.receive(nonsense(random, layer), now)
                layer.tick(now)
                while layer.frame(now) is not None:
                    pass


def nonsense(random: Random, layer: Delivery) -> bytes:
    """Return a frame with numbers that are near the right ones, or at a bound, or bytes that were changed."""

    def number() -> int:
        return random.choice((0, 1, layer.inbox.count + 1, random.randrange(9), random.randrange(2**64), 2**64 - 1))

    def position() -> Position:
        real = random.choice((layer.inbox.position, layer.outbox.end, Position(number(), random.randbytes(16))))
        return Position(real.count, real.head)

    ack = Ack(
        random.randrange(2**32),
        position(),
        number(),
        number(),
        [(number(), number()) for _ in range(random.randrange(5))],
    )
    frame = Frame(
        random.randrange(2**16),
        random.randrange(2**32),
        random.choice((None, ack)),
        random.choice((None, None, position())),
        number(),
        random.choice((layer.inbox.head, random.randbytes(16))),
        [random.randbytes(random.randrange(60)) for _ in range(random.randrange(4))],
    )
    data = bytearray(random.choice((frame.encode(), frame.encode(), refusal(1.0))))
    if random.random() < 0.3:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)
